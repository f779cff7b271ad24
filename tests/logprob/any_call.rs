//! Calls of drawn data with any outputs, at any addresses, with margins around every array.

use bytemuck::Pod;
use moerl::element::Float;
use moerl::error::Fault;
use moerl::logprob::{Backward, Forward, Gradient, KeepSets, Partial, workspace_bytes};
use moerl::memory::{Matrix, MatrixMut, ViewMut};
use moerl::{Backend, Buffer, Error, ErrorWord};
use rand::RngExt;
use rand::rngs::StdRng;

pub use super::any_drawn::*;
use super::support::*;
use crate::common::property::{Padded, bytes_of};
use crate::common::seeded;

// ---- forward --------------------------------------------------------------------------------------------------------

/// The outputs of a call: those of f32, then of i32, records, and a count.
pub const OUTPUTS: [&str; 16] = [
    "logprobs",
    "entropy",
    "max",
    "log_sum",
    "lse",
    "sum_p2",
    "sum_sq",
    "other_labels",
    "kept_logprobs",
    "kept_entropy",
    "kept_mass",
    "rank",
    "argmax",
    "saved",
    "kept_saved",
    "label_added",
];
pub const ALL: u32 = (1 << OUTPUTS.len()) - 1;
const OF_TOKENS: u32 = 1 | 1 << 7 | 1 << 11;
pub const KEPT: u32 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14 | 1 << 15;

/// What a call may be asked for of these.
pub fn possible<T>(inputs: &Inputs<T>, mut asked: u32) -> u32 {
    asked &= ALL;
    if inputs.tokens.is_none() {
        asked &= !(OF_TOKENS | KEPT);
    }
    if inputs.keep.is_none() {
        asked &= !KEPT;
    }
    if asked >> 13 & 1 == 0 {
        asked &= !(1 << 10); // kept_mass needs saved
    }
    asked
}

/// What a call wrote: the 32-bit words of each output, NaN being one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub words: Vec<Option<Vec<u32>>>,
    pub fault: Option<Fault>,
}

impl Found {
    pub fn words(&self, name: &str) -> Option<&[u32]> {
        self.words[OUTPUTS.iter().position(|&output| output == name).expect("an output")].as_deref()
    }

    /// One word as f32.
    pub fn float(&self, name: &str, at: usize) -> f32 {
        f32::from_bits(self.words(name).expect("it was asked for")[at])
    }

    pub fn records(&self, name: &str) -> Vec<Partial> {
        self.words(name).map_or(Vec::new(), |words| bytemuck::cast_slice(words).to_vec())
    }

    /// Those of a row, of `rows`.
    pub fn row(&self, row: usize, rows: usize) -> Vec<Option<Vec<u32>>> {
        let of_row = |words: &Vec<u32>| {
            let width = words.len() / rows;
            words[row * width..(row + 1) * width].to_vec()
        };
        self.words[..15].iter().map(|words| words.as_ref().map(of_row)).collect()
    }
}

/// What fills arrays that are to be written: a small number, as a float.
const BLANK: u32 = 0xa5a5_a5a5;

pub fn blank<T: Pod>(len: usize) -> Vec<T> {
    let mut array = vec![T::zeroed(); len];
    bytemuck::cast_slice_mut::<T, u8>(&mut array).fill(BLANK as u8);
    array
}

/// The arrays for all outputs of `rows` rows, each `skipped` elements behind a boundary.
pub struct Arrays<B: Backend> {
    pub floats: Vec<Padded<B, f32>>,
    pub ints: Vec<Padded<B, i32>>,
    pub records: Vec<Padded<B, Partial>>,
    pub added: Padded<B, u64>,
}

impl<B: Backend> Arrays<B> {
    pub fn new(backend: &B, stream: &B::Stream, rows: usize, ids: usize, rng: &mut StdRng) -> Arrays<B> {
        fn array<B: Backend, T: Pod + Send + Sync>(
            backend: &B,
            stream: &B::Stream,
            len: usize,
            rng: &mut StdRng,
        ) -> Padded<B, T> {
            Padded::new(backend, stream, &blank(len), rng.random_range(0..4), blank(1)[0])
        }
        let widths = [ids, 1, 1, 1, 1, 1, 1, ids - 1, 1, 1, 1];
        Arrays {
            floats: widths.iter().map(|width| array(backend, stream, rows * width, rng)).collect(),
            ints: [ids, 1].iter().map(|width| array(backend, stream, rows * width, rng)).collect(),
            records: (0..2).map(|_| array(backend, stream, rows, rng)).collect(),
            added: Padded::new(backend, stream, &[5], rng.random_range(0..4), blank(1)[0]),
        }
    }

    /// What they hold of the outputs that were asked for; the others must be blank.
    pub fn read(&self, backend: &B, stream: &B::Stream, asked: u32, calls: u64) -> Vec<Option<Vec<u32>>> {
        let mut all: Vec<Vec<u32>> = Vec::new();
        for (array, name) in self.floats.iter().zip(OUTPUTS) {
            all.push(canonical(&array.read(backend, stream, name)).collect());
        }
        for (array, name) in self.ints.iter().zip(&OUTPUTS[11..]) {
            all.push(array.read(backend, stream, name).iter().map(|&x| x as u32).collect());
        }
        for (array, name) in self.records.iter().zip(&OUTPUTS[13..]) {
            let records = array.read(backend, stream, name);
            all.push(canonical(bytemuck::cast_slice(&records)).collect());
        }
        let added = self.added.read(backend, stream, "label_added")[0];
        all.push(vec![((added - 5) / calls) as u32]);
        let is_asked = |i: usize| asked >> i & 1 == 1;
        let one = |(i, words): (usize, Vec<u32>)| {
            if is_asked(i) {
                assert!(words.iter().all(|&word| word != BLANK), "{} was not written", OUTPUTS[i]);
                return Some(words);
            }
            let is_blank = words.iter().all(|&word| word == if i == 15 { 0 } else { BLANK });
            assert!(is_blank, "{} was written and not asked for", OUTPUTS[i]);
            None
        };
        all.into_iter().enumerate().map(one).collect()
    }
}

/// The arrays that were asked for.
pub struct Views<'a, M> {
    pub floats: Vec<Option<ViewMut<'a, f32, M>>>,
    pub ints: Vec<Option<ViewMut<'a, i32, M>>>,
    pub records: Vec<Option<ViewMut<'a, Partial, M>>>,
    pub added: Option<ViewMut<'a, u64, M>>,
}

impl<B: Backend> Arrays<B> {
    pub fn views(&mut self, asked: u32) -> Views<'_, B::Memory> {
        fn those<B: Backend, T: Pod + Send + Sync>(
            arrays: &mut [Padded<B, T>],
            asked: u32,
        ) -> Vec<Option<ViewMut<'_, T, B::Memory>>> {
            arrays.iter_mut().enumerate().map(|(i, a)| (asked >> i & 1 == 1).then(|| a.view_mut())).collect()
        }
        Views {
            floats: those(&mut self.floats, asked),
            ints: those(&mut self.ints, asked >> 11),
            records: those(&mut self.records, asked >> 13),
            added: (asked >> 15 & 1 == 1).then(|| self.added.view_mut()),
        }
    }
}

/// Hands the outputs that forward and combine have in common to a call.
#[macro_export]
macro_rules! ask {
    ($call:ident, $views:ident) => {
        $call.logprobs = $views.floats[0].take();
        $call.entropy = $views.floats[1].take();
        $call.max = $views.floats[2].take();
        $call.log_sum = $views.floats[3].take();
        $call.lse = $views.floats[4].take();
        $call.sum_p2 = $views.floats[5].take();
        $call.sum_sq = $views.floats[6].take();
        $call.kept_logprobs = $views.floats[8].take();
        $call.kept_entropy = $views.floats[9].take();
        $call.kept_mass = $views.floats[10].take();
        $call.rank = $views.ints[0].take();
        $call.argmax = $views.ints[1].take();
        $call.saved = $views.records[0].take();
        $call.kept_saved = $views.records[1].take();
    };
}

/// A row's optional inputs on a backend, at any address.
pub struct Given<B: Backend> {
    wide: Option<Padded<B, i64>>,
    narrow: Option<Padded<B, i32>>,
    shape: [usize; 3],
    pub temperature: Option<Padded<B, f32>>,
    pub loss_mask: Option<Padded<B, u8>>,
    keep: Option<(Padded<B, i32>, Padded<B, i64>)>,
}

impl<B: Backend> Given<B> {
    pub fn new<T>(backend: &B, stream: &B::Stream, inputs: &Inputs<T>, rng: &mut StdRng) -> Given<B> {
        let gap = rng.random_range(0..3);
        let stride = inputs.ids + gap;
        let tokens = inputs.tokens.as_ref().map(|tokens| {
            tokens.chunks(inputs.ids).flat_map(|row| [row, &vec![-3; gap][..]].concat()).collect::<Vec<i64>>()
        });
        let is_wide = inputs.wide_tokens;
        let narrow = tokens.as_ref().filter(|_| !is_wide).map(|t| t.iter().map(|&t| t as i32).collect::<Vec<i32>>());
        let mut skip = || rng.random_range(0..4);
        Given {
            wide: tokens.filter(|_| is_wide).map(|t| Padded::new(backend, stream, &t, skip(), -3)),
            narrow: narrow.map(|t| Padded::new(backend, stream, &t, skip(), -3)),
            shape: [inputs.rows, inputs.ids, stride],
            temperature: inputs.temperature.as_ref().map(|t| Padded::new(backend, stream, t, skip(), f32::NAN)),
            loss_mask: inputs.loss_mask.as_ref().map(|m| Padded::new(backend, stream, m, skip(), 7)),
            keep: inputs.keep.as_ref().map(|keep| {
                let ids = Padded::new(backend, stream, &keep.ids, skip(), -9);
                (ids, Padded::new(backend, stream, &keep.offsets, skip(), -9))
            }),
        }
    }

    pub fn tokens(&self) -> Result<Option<Matrix<'_, B::Memory>>, Error> {
        let [rows, ids, stride] = self.shape;
        let wide = self.wide.as_ref().map(|tokens| Matrix::strided(tokens.view(), rows, ids, stride));
        let narrow = || self.narrow.as_ref().map(|tokens| Matrix::strided(tokens.view(), rows, ids, stride));
        wide.or_else(narrow).transpose()
    }

    pub fn keep(&self) -> Option<KeepSets<'_, B::Memory>> {
        self.keep.as_ref().map(|(ids, offsets)| KeepSets { ids: ids.view(), offsets: offsets.view() })
    }
}

pub fn fault_of<B: Backend>(backend: &B, stream: &B::Stream, word: &mut ErrorWord<B>) -> Result<Option<Fault>, Error> {
    match backend.check(stream, word) {
        Ok(()) => Ok(None),
        Err(Error::Data(fault)) => Ok(Some(fault)),
        Err(other) => Err(other),
    }
}

/// A forward call that asks for some outputs, `calls` times into the same arrays; `seed` decides their addresses.
pub fn forward_of<B: Backend, T: Float>(
    backend: &B,
    inputs: &Inputs<T>,
    asked: u32,
    calls: u64,
    seed: u64,
) -> Result<Found, Error> {
    let stream = backend.stream()?;
    let mut rng = seeded(seed);
    let logits = backend.upload(&stream, &inputs.logits)?;
    let given = Given::new(backend, &stream, inputs, &mut rng);
    let mut arrays = Arrays::new(backend, &stream, inputs.rows, inputs.ids, &mut rng);
    let scratch = blank(workspace_bytes(inputs.rows, inputs.vocabulary()));
    let mut scratch = Padded::new(backend, &stream, &scratch, rng.random_range(0..16), 0xee);
    let mut errors = backend.error_word(&stream)?;
    let mut found: Option<Found> = None;
    for call_number in 1..=calls {
        let words = {
            let view = logits.view().slice(inputs.offset..inputs.logits.len());
            let mut views = arrays.views(asked);
            let mut call = Forward::new(Matrix::strided(view, inputs.rows, inputs.columns, inputs.stride)?);
            call.tokens = given.tokens()?;
            call.temperature = given.temperature.as_ref().map(Padded::view);
            call.loss_mask = given.loss_mask.as_ref().map(Padded::view);
            call.keep = given.keep();
            call.workspace = inputs.workspace.then(|| scratch.view_mut());
            call.errors = Some(errors.view_mut());
            call.tag = TAG;
            ask!(call, views);
            call.other_labels = views.floats[7].take();
            call.label_added = views.added.take();
            backend.logprob_forward(&stream, &inputs.config, call)?;
            arrays.read(backend, &stream, asked, call_number)
        };
        let next = Found { words, fault: fault_of(backend, &stream, &mut errors)? };
        assert!(found.is_none_or(|found| found == next), "the same call again gives something else");
        found = Some(next);
    }
    scratch.read(backend, &stream, "workspace");
    let after = backend.download(&stream, logits.view())?;
    assert!(bytes_of(&after) == bytes_of(&inputs.logits), "forward wrote logits");
    Ok(found.expect("a call"))
}

// ---- backward -------------------------------------------------------------------------------------------------------

/// The gradient's rows, in the type G (in place it must be T), after `calls` calls that must agree.
pub fn backward_of<B: Backend, T: Float, G: Float>(
    backend: &B,
    inputs: &Inputs<T>,
    saved: [&[Partial]; 2],
    up: &Gradients,
    target: Target,
    seed: u64,
) -> Result<Vec<Vec<G>>, Error> {
    let stream = backend.stream()?;
    let mut rng = seeded(seed);
    let Inputs { rows, columns, .. } = *inputs;
    let given = Given::new(backend, &stream, inputs, &mut rng);
    let mut skip = || rng.random_range(0..4);
    let saved = saved.map(|saved| Padded::new(backend, &stream, saved, skip(), blank(1)[0]));
    let has_kept = up[3].is_some() || up[4].is_some();
    let upstream: Vec<_> =
        up.iter().map(|a| a.as_ref().map(|a| Padded::new(backend, &stream, a, skip(), f32::NAN))).collect();
    let mut logits = backend.upload(&stream, &inputs.logits)?;
    let (offset, stride) = match target {
        Target::Elsewhere { offset, stride } => (offset, stride),
        _ => (inputs.offset, inputs.stride),
    };
    let mut apart = backend.upload(&stream, &vec![G::from_f32(BEFORE); offset + rows * stride])?;
    for _ in 0..if target == Target::InPlace { 1 } else { 2 } {
        let gradient = if target == Target::InPlace {
            let view = logits.view_mut().slice(inputs.offset..inputs.logits.len());
            Gradient::InPlace(MatrixMut::strided(view, rows, columns, stride)?)
        } else {
            let from = logits.view().slice(inputs.offset.min(inputs.logits.len())..inputs.logits.len());
            let to = apart.view_mut().slice(offset..offset + rows * stride);
            Gradient::Into {
                logits: Matrix::strided(from, rows, columns, inputs.stride)?,
                d_logits: MatrixMut::strided(to, rows, columns, stride)?,
            }
        };
        let mut call = Backward::new(gradient, saved[0].view());
        call.tokens = given.tokens()?;
        call.temperature = given.temperature.as_ref().map(Padded::view);
        call.loss_mask = given.loss_mask.as_ref().map(Padded::view);
        call.keep = given.keep();
        call.kept_saved = has_kept.then(|| saved[1].view());
        call.d_logprobs = upstream[0].as_ref().map(Padded::view);
        call.d_entropy = upstream[1].as_ref().map(Padded::view);
        call.d_lse = upstream[2].as_ref().map(Padded::view);
        call.d_kept_logprobs = upstream[3].as_ref().map(Padded::view);
        call.d_kept_entropy = upstream[4].as_ref().map(Padded::view);
        backend.logprob_backward(&stream, &inputs.config, call)?;
    }
    let (memory, before): (Vec<G>, Vec<u32>) = if target == Target::InPlace {
        let memory = backend.download(&stream, logits.view())?;
        (bytemuck::cast_slice(&memory).to_vec(), inputs.logits.iter().map(|x| canonical_bits(x.to_f32())).collect())
    } else {
        let memory = backend.download(&stream, apart.view())?;
        let before = vec![BEFORE.to_bits(); memory.len()];
        (memory, before)
    };
    let is_between = |i: usize| i < offset || (i - offset) % stride >= columns;
    for i in (0..memory.len()).filter(|&i| is_between(i)) {
        assert_eq!(canonical_bits(memory[i].to_f32()), before[i], "element {i} lies between the rows and was written");
    }
    Ok((0..rows).map(|r| memory[offset + r * stride..][..columns].to_vec()).collect())
}
