//! What is measured: a call on arrays of a given shape, and the bytes that any implementation of it must move.

use moerl::Backend;
use moerl::element::Element;

/// A call, to be made any number of times.
pub type Call<B> = Box<dyn FnMut(&B, &<B as Backend>::Stream) -> moerl::Result<()>>;

/// Makes the arrays of a call, and the call.
pub type Prepare<B> = Box<dyn Fn(&B, &<B as Backend>::Stream) -> moerl::Result<Call<B>>>;

/// The fewest bytes that a call can move: every input read once, every output written once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

impl Floor {
    /// Both.
    pub fn bytes(self) -> u64 {
        self.read + self.written
    }
}

/// One line of the table.
pub struct Case<B: Backend> {
    /// `gate`, `logprob`, …
    pub noun: &'static str,
    /// `forward, native`, …
    pub operation: String,
    /// `T=4096 E=128 k=8`, …
    pub shape: String,
    /// The type of the array that dominates.
    pub element: Element,
    /// The fewest bytes.
    pub floor: Floor,
    /// Makes the call.
    pub prepare: Prepare<B>,
}

/// How large the shapes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scale {
    /// Those of training, for a device.
    Full,
    /// A few rows of them, for the CPU.
    Small,
}

/// A number in [0, 1) without a pattern, a function of `i` alone.
pub fn hashed(i: usize) -> f32 {
    let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 40) as f32 / (1_u32 << 24) as f32
}

/// What `f` gives for 0, 1, …, by all the cores there are: a large case has a thousand million numbers.
pub fn generate<T: Send + Clone + bytemuck::Zeroable>(len: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut numbers = vec![T::zeroed(); len];
    let part = len.div_ceil(std::thread::available_parallelism().map_or(1, usize::from)).max(1 << 16);
    std::thread::scope(|scope| {
        for (turn, numbers) in numbers.chunks_mut(part).enumerate() {
            let f = &f;
            scope.spawn(move || {
                numbers.iter_mut().enumerate().for_each(|(i, number)| *number = f(turn * part + i));
            });
        }
    });
    numbers
}

/// Something like a standard normal variable, a function of `i` alone.
pub fn normal(i: usize) -> f32 {
    (0..4).map(|j| hashed(4 * i + j) - 0.5).sum::<f32>() * 3_f32.sqrt()
}
