//! Time and bytes per second of `advantage` on a CUDA device, by events on its stream. The bytes are those that the mathematics needs: every input
//! once, every result once; 8 of offsets a segment.
//!
//! `cargo bench --bench advantage [-- FILTER]`. Without a device it says so and measures nothing.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("advantage: nothing measured: built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() {
    match moerl::Cuda::open(0) {
        Err(reason) => println!("advantage: nothing measured: {reason}"),
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
    use moerl::advantage::{
        BaselineCall, BaselinePlan, Call, Config, GroupPlan, MOMENTS, TokenBaseline, TokenCall, TokenEstimator,
        Weights, Whitening, baseline_workspace_bytes, moments_workspace_bytes, token_workspace_bytes, whiten,
        workspace_bytes,
    };
    use moerl::device::cuda::{DeviceBuffer, Stream};
    use moerl::objective::{Groups, Plan, Segments};
    use moerl::{Backend, Buffer, Cuda, Result};

    /// In cache, and far out of it.
    const TOKENS: [usize; 2] = [1 << 20, 1 << 24];
    /// Lengths of segments, by name: no kind may cost much more per byte than another.
    const LENGTHS: [(&str, usize); 5] = [("17", 17), ("200", 200), ("1k", 1024), ("16k", 16_384), ("one", usize::MAX)];
    /// Answers to a prompt: few, and more than a warp takes.
    const GROUPS: [(&str, usize); 3] = [("8", 8), ("64", 64), ("one", usize::MAX)];

    pub fn run(gpu: &Cuda, criterion: &mut Criterion) -> Result<()> {
        for segments in [1 << 14, 1 << 20] {
            for (name, size) in GROUPS {
                groups(gpu, criterion, segments, name, size)?;
            }
        }
        for tokens in TOKENS {
            whitening(gpu, criterion, tokens)?;
            for (name, length) in LENGTHS {
                let lengths = vec![length.min(tokens); tokens / length.min(tokens)];
                for (estimator, config) in
                    [("gae", TokenEstimator::Gae { gamma: 1.0, lambda: 0.95 }), ("vtrace", TokenEstimator::vtrace(1.0))]
                {
                    of_tokens(gpu, criterion, (name, &lengths), (estimator, &config))?;
                }
                baseline(gpu, criterion, name, &lengths)?;
            }
        }
        Ok(())
    }

    fn floats(gpu: &Cuda, stream: &Stream, len: usize) -> Result<DeviceBuffer<f32>> {
        // Any values will do: no branch of a warp depends on them.
        gpu.upload(stream, &(0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect::<Vec<f32>>())
    }

    fn measure(
        gpu: &Cuda,
        criterion: &mut Criterion,
        stream: &Stream,
        (what, name, len): (&str, &str, usize),
        bytes: usize,
        mut call: impl FnMut() -> Result<()>,
    ) {
        let mut group = criterion.benchmark_group(format!("advantage/{what}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new(name, len), |bencher| {
            bencher.iter_custom(|iterations| timed(gpu, stream, iterations, &mut call).expect("a valid call"));
        });
        group.finish();
    }

    fn groups(gpu: &Cuda, criterion: &mut Criterion, segments: usize, name: &str, size: usize) -> Result<()> {
        let stream = gpu.stream()?;
        let ids: Vec<i32> = (0..segments).map(|i| (i / size.min(segments)) as i32).collect();
        let plan = GroupPlan::new(gpu, &stream, &Groups::from_ids(&ids))?;
        let rewards = floats(gpu, &stream, segments)?;
        let mut advantages = gpu.allocate(&stream, segments)?;
        let mut workspace = gpu.allocate(&stream, workspace_bytes(&plan))?;
        // A member, its reward, its advantage.
        measure(gpu, criterion, &stream, ("group_norm", name, segments), segments * 12, || {
            let call =
                Call { workspace: Some(workspace.view_mut()), ..Call::new(rewards.view(), advantages.view_mut()) };
            gpu.group_advantages(&stream, &Config::default(), &plan, call)
        });
        Ok(())
    }

    fn whitening(gpu: &Cuda, criterion: &mut Criterion, tokens: usize) -> Result<()> {
        let stream = gpu.stream()?;
        let mut values = floats(gpu, &stream, tokens)?;
        let mask = gpu.upload(&stream, &vec![1_u8; tokens])?;
        let mut moments = gpu.allocate(&stream, MOMENTS)?;
        let mut workspace = gpu.allocate(&stream, moments_workspace_bytes(tokens))?;
        // Two passes over 5 bytes, and one that also writes 4.
        measure(gpu, criterion, &stream, ("whiten", "tokens", tokens), tokens * 19, || {
            let (values, moments, workspace) = (values.view_mut(), moments.view_mut(), workspace.view_mut());
            whiten(gpu, &stream, &Whitening::default(), values, Weights::Mask(mask.view()), moments, workspace)
        });
        Ok(())
    }

    fn of_tokens(
        gpu: &Cuda,
        criterion: &mut Criterion,
        (name, lengths): (&str, &[usize]),
        (estimator, config): (&str, &TokenEstimator),
    ) -> Result<()> {
        let stream = gpu.stream()?;
        let plan = Plan::new(gpu, &stream, &Segments::from_lengths(lengths.iter().copied())?)?;
        let tokens = plan.segments().tokens();
        let (rewards, values, ratio) =
            (floats(gpu, &stream, lengths.len())?, floats(gpu, &stream, tokens)?, floats(gpu, &stream, tokens)?);
        let mask = gpu.upload(&stream, &vec![1_u8; tokens])?;
        let (mut advantages, mut returns) = (gpu.allocate(&stream, tokens)?, gpu.allocate(&stream, tokens)?);
        let mut workspace = gpu.allocate(&stream, token_workspace_bytes(&plan))?;
        let with_ratio = matches!(config, TokenEstimator::Vtrace { .. });
        let bytes = tokens * if with_ratio { 17 } else { 13 } + lengths.len() * 12;
        measure(gpu, criterion, &stream, (estimator, name, tokens), bytes, || {
            let call = TokenCall {
                segment_rewards: Some(rewards.view()),
                values: Some(values.view()),
                ratio: with_ratio.then(|| ratio.view()),
                loss_mask: Some(mask.view()),
                advantages: Some(advantages.view_mut()),
                returns: Some(returns.view_mut()),
                ..TokenCall::new(workspace.view_mut())
            };
            gpu.token_advantages(&stream, config, &plan, call)
        });
        Ok(())
    }

    /// Groups of 8.
    fn baseline(gpu: &Cuda, criterion: &mut Criterion, name: &str, lengths: &[usize]) -> Result<()> {
        let stream = gpu.stream()?;
        let ids: Vec<i32> = (0..lengths.len()).map(|i| (i / 8) as i32).collect();
        let segments = Segments::from_lengths(lengths.iter().copied())?;
        let plan = BaselinePlan::new(gpu, &stream, &segments, &Groups::from_ids(&ids))?;
        let tokens = segments.tokens();
        let [returns, logprobs, sum_p2] =
            [floats(gpu, &stream, tokens)?, floats(gpu, &stream, tokens)?, floats(gpu, &stream, tokens)?];
        let mask = gpu.upload(&stream, &vec![1_u8; tokens])?;
        let mut advantages = gpu.allocate(&stream, tokens)?;
        let mut workspace = gpu.allocate(&stream, baseline_workspace_bytes(&plan))?;
        measure(gpu, criterion, &stream, ("token_baseline", name, tokens), tokens * 17, || {
            let call = BaselineCall {
                returns: returns.view(),
                logprobs: logprobs.view(),
                sum_p2: sum_p2.view(),
                weights: None,
                loss_mask: Some(mask.view()),
                advantages: advantages.view_mut(),
                nonfinite: None,
                errors: None,
                tag: 0,
                workspace: workspace.view_mut(),
            };
            gpu.token_baseline(&stream, &TokenBaseline::default(), &plan, call)
        });
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
}
