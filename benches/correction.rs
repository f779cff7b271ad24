//! Time and bytes per second of `correction` on a CUDA device, by events on its stream. The bytes are those that the mathematics needs: what each
//! phase reads of the inputs, the weights and `keep` written, 8 of offsets a segment.
//!
//! `cargo bench --bench correction [-- FILTER]`. Without a device it says so and measures nothing.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("correction: nothing measured: built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() {
    match moerl::Cuda::open(0) {
        Err(reason) => println!("correction: nothing measured: {reason}"),
        Ok(gpu) => {
            let mut criterion = criterion::Criterion::default().configure_from_args();
            on_device::run(&gpu, &mut criterion).expect("every call is valid and the device does its work");
            criterion.final_summary();
        }
    }
}

#[cfg(feature = "cuda")]
mod on_device {
    use std::time::Duration;

    use criterion::{BenchmarkId, Criterion, Throughput};
    use moerl::correction::{Batch, Config, Level, Output, Plans, Rejection, diagnostics, workspace_bytes};
    use moerl::device::cuda::{DeviceBuffer, Stream};
    use moerl::objective::{Plan, Segments};
    use moerl::{Backend, Buffer, Cuda, Result};

    /// In cache, and far out of it.
    const TOKENS: [usize; 2] = [1 << 20, 1 << 24];

    pub fn run(gpu: &Cuda, criterion: &mut Criterion) -> Result<()> {
        let veto = Rejection::Veto { low: 1e-4, high: 1e4 };
        // One launch: 9 read, 5 written. Three: 9 and 1 read. Three, tokens twice: 18.
        let configs = [
            ("tis_token", Config::tis(Level::Token, 2.0), 14),
            ("tis_sequence", Config::tis(Level::Sequence, 2.0), 15),
            ("tis_token+veto", Config::tis(Level::Token, 2.0).with_rejection(veto), 23),
            ("tis_token+diagnostics", Config::tis(Level::Token, 2.0).with_diagnostics(), 23),
        ];
        for tokens in TOKENS {
            for length in [1, 17, 4096, tokens] {
                for (name, config, per_token) in &configs {
                    let lengths = vec![length; tokens / length];
                    let bytes = (tokens * per_token + lengths.len() * 8) as u64;
                    let mut group = criterion.benchmark_group(format!("correction/{name}"));
                    group.throughput(Throughput::Bytes(bytes));
                    let stream = gpu.stream()?;
                    let mut arrays = Arrays::new(gpu, &stream, &lengths, tokens)?;
                    group.bench_function(BenchmarkId::new(length.to_string(), tokens), |bencher| {
                        bencher.iter_custom(|iterations| {
                            timed(gpu, &stream, iterations, || arrays.call(gpu, &stream, config)).expect("a valid call")
                        });
                    });
                    group.finish();
                }
            }
        }
        Ok(())
    }

    /// Device time of `iterations` calls.
    fn timed(gpu: &Cuda, stream: &Stream, iterations: u64, mut call: impl FnMut() -> Result<()>) -> Result<Duration> {
        let (start, end) = (gpu.event()?, gpu.event()?);
        start.record(stream)?;
        for _ in 0..iterations {
            call()?;
        }
        end.record(stream)?;
        end.synchronize()?;
        Ok(Duration::from_secs_f64(f64::from(end.milliseconds_since(&start)?) * 1e-3))
    }

    /// The arrays of a call.
    struct Arrays {
        plan: Plan<Cuda>,
        old_logprobs: DeviceBuffer<f32>,
        rollout_logprobs: DeviceBuffer<f32>,
        loss_mask: DeviceBuffer<u8>,
        weights: DeviceBuffer<f32>,
        keep: DeviceBuffer<u8>,
        sums: DeviceBuffer<f64>,
        workspace: DeviceBuffer<u8>,
    }

    impl Arrays {
        fn new(gpu: &Cuda, stream: &Stream, lengths: &[usize], tokens: usize) -> Result<Arrays> {
            let plan = Plan::new(gpu, stream, &Segments::from_lengths(lengths.iter().copied())?)?;
            // Any log-ratios will do: no branch of a warp depends on them.
            let old: Vec<f32> = (0..tokens).map(|u| -((u * 7919 % 1000) as f32) / 200.0).collect();
            let rollout: Vec<f32> = old.iter().enumerate().map(|(u, o)| o - (u * 31 % 97) as f32 * 1e-3).collect();
            Ok(Arrays {
                workspace: gpu.allocate(stream, workspace_bytes(&Plans::new(&plan)))?,
                plan,
                old_logprobs: gpu.upload(stream, &old)?,
                rollout_logprobs: gpu.upload(stream, &rollout)?,
                loss_mask: gpu.upload(stream, &vec![1; tokens])?,
                weights: gpu.allocate(stream, tokens)?,
                keep: gpu.allocate(stream, tokens)?,
                sums: gpu.allocate(stream, diagnostics::LEN)?,
            })
        }

        fn call(&mut self, gpu: &Cuda, stream: &Stream, config: &Config) -> Result<()> {
            let batch = Batch {
                loss_mask: Some(self.loss_mask.view()),
                ..Batch::new(self.old_logprobs.view(), self.rollout_logprobs.view())
            };
            let output = Output {
                weights: Some(self.weights.view_mut()),
                keep: Some(self.keep.view_mut()),
                diagnostics: config.diagnostics.then(|| self.sums.view_mut()),
                ..Output::new(self.workspace.view_mut())
            };
            gpu.correction(stream, config, Plans::new(&self.plan), batch, output)
        }
    }
}
