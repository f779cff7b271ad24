//! Time and bytes per second of `objective` on a CUDA device, by events on its stream. The bytes are those that the mathematics needs, a
//! token's and a segment's: what each phase reads of the inputs, the gradient, 8 of offsets and 4 of advantage a segment.
//!
//! `cargo bench --bench objective [-- FILTER]`. Without a device it says so and measures nothing.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("objective: nothing measured: built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() {
    match moerl::Cuda::open(0) {
        Err(reason) => println!("objective: nothing measured: {reason}"),
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
    use moerl::device::cuda::{DeviceBuffer, Stream};
    use moerl::objective::{
        Advantages, Batch, CispoCap, Config, Denominators, Kl, KlForm, Output, Plan, Sapo, Segments, Variant,
        workspace_bytes,
    };
    use moerl::{Backend, Buffer, Cuda, Result, diagnostics};

    /// In cache, and far out of it.
    const TOKENS: [usize; 2] = [1 << 20, 1 << 24];

    /// Lengths of segments that fill `tokens`, by name: no kind may cost much more per byte than another.
    fn distributions(tokens: usize) -> Vec<(&'static str, Vec<usize>)> {
        let fill = |next: &mut dyn FnMut() -> usize| {
            let (mut lengths, mut left) = (Vec::new(), tokens);
            while left > 0 {
                let length = next().clamp(1, left);
                lengths.push(length);
                left -= length;
            }
            lengths
        };
        // A fixed walk through 0..1: the golden ratio's multiples.
        let mut x = 0.0_f64;
        let mut uniform = move || {
            x = (x + 0.618_033_988_749_895) % 1.0;
            x
        };
        // Log-normal with mean 4096: the sum of twelve uniform numbers less six is a normal one.
        let mut log_normal = {
            let mut uniform = uniform.clone();
            move || {
                let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
                (4096.0 * (normal - 0.5).exp()) as usize
            }
        };
        let mut halves = {
            let mut first = true;
            move || if std::mem::take(&mut first) { tokens / 2 } else { 256 }
        };
        vec![
            ("1", fill(&mut || 1)),
            ("17", fill(&mut || 17)),
            ("1-2k", fill(&mut || 1 + (uniform() * 2047.0) as usize)),
            ("log-normal 4k", fill(&mut log_normal)),
            ("one and 256s", fill(&mut halves)),
            ("16k", fill(&mut || 16_384)),
            ("one", fill(&mut || tokens)),
        ]
    }

    pub fn run(gpu: &Cuda, criterion: &mut Criterion) -> Result<()> {
        for tokens in TOKENS {
            for (name, lengths) in distributions(tokens) {
                // ppo_clip: 1 byte for the count, 9 for the tokens, 4 written; gspo: 9, 1 and 4; the divergence reads l and r again.
                for (variant, config, per_token) in [
                    ("ppo_clip", Config::ppo_clip(0.2, 0.28), 14),
                    ("gspo", Config::gspo(3e-4, 4e-4), 14),
                    ("gspo+k3", Config::gspo(3e-4, 4e-4).with_kl(Kl::new(0.01, KlForm::K3)), 22),
                    ("cispo", Config::cispo(CispoCap::Raw { max: 5.0 }), 14),
                    ("sapo", Config::new(Variant::Sapo(Sapo::default())), 14),
                ] {
                    for with_diagnostics in [false, true] {
                        let suffix = if with_diagnostics { "+diagnostics" } else { "" };
                        let bytes = (tokens * per_token + lengths.len() * 12) as u64;
                        let mut group = criterion.benchmark_group(format!("objective/{variant}{suffix}"));
                        group.throughput(Throughput::Bytes(bytes));
                        let stream = gpu.stream()?;
                        let mut arrays = Arrays::new(gpu, &stream, &lengths, tokens)?;
                        group.bench_function(BenchmarkId::new(name, tokens), |bencher| {
                            bencher.iter_custom(|iterations| {
                                timed(gpu, &stream, iterations, || arrays.call(gpu, &stream, &config, with_diagnostics))
                                    .expect("a valid call")
                            });
                        });
                        group.finish();
                    }
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
        logprobs: DeviceBuffer<f32>,
        old_logprobs: DeviceBuffer<f32>,
        ref_logprobs: DeviceBuffer<f32>,
        advantages: DeviceBuffer<f32>,
        loss_mask: DeviceBuffer<u8>,
        loss: DeviceBuffer<f64>,
        d_logprobs: DeviceBuffer<f32>,
        diagnostics: DeviceBuffer<f64>,
        workspace: DeviceBuffer<u8>,
    }

    impl Arrays {
        fn new(gpu: &Cuda, stream: &Stream, lengths: &[usize], tokens: usize) -> Result<Arrays> {
            let plan = Plan::new(gpu, stream, &Segments::from_lengths(lengths.iter().copied())?)?;
            // Any log-ratios will do: no branch of a warp depends on them.
            let old: Vec<f32> = (0..tokens).map(|u| -((u * 7919 % 1000) as f32) / 200.0).collect();
            let new: Vec<f32> = old.iter().enumerate().map(|(u, o)| o - (u * 31 % 97) as f32 * 1e-3).collect();
            let advantages: Vec<f32> = (0..lengths.len()).map(|i| (i % 5) as f32 - 2.0).collect();
            Ok(Arrays {
                workspace: gpu.allocate(stream, workspace_bytes(&plan))?,
                plan,
                logprobs: gpu.upload(stream, &new)?,
                old_logprobs: gpu.upload(stream, &old)?,
                ref_logprobs: gpu.upload(stream, &old)?,
                advantages: gpu.upload(stream, &advantages)?,
                loss_mask: gpu.upload(stream, &vec![1; tokens])?,
                loss: gpu.allocate(stream, 1)?,
                d_logprobs: gpu.allocate(stream, tokens)?,
                diagnostics: gpu.allocate(stream, diagnostics::LEN)?,
            })
        }

        fn call(&mut self, gpu: &Cuda, stream: &Stream, config: &Config, with_diagnostics: bool) -> Result<()> {
            let segments = self.plan.segments();
            let denominators = Denominators::global(segments.tokens() as u64, segments.len() as u64);
            let batch = Batch {
                old_logprobs: Some(self.old_logprobs.view()),
                ref_logprobs: config.kl.map(|_| self.ref_logprobs.view()),
                loss_mask: Some(self.loss_mask.view()),
                ..Batch::new(self.logprobs.view(), Advantages::PerSegment(self.advantages.view()), denominators)
            };
            let output = Output {
                loss: Some(self.loss.view_mut()),
                d_logprobs: Some(self.d_logprobs.view_mut()),
                diagnostics: with_diagnostics.then(|| self.diagnostics.view_mut()),
                ..Output::new(self.workspace.view_mut())
            };
            gpu.objective(stream, config, &self.plan, batch, output)
        }
    }
}
