//! Time and bytes per second of `logprob` on a CUDA device, by events on its stream. The bytes are those that the mathematics needs: forward
//! reads every logit, backward reads every logit of a row that has a gradient and writes every gradient.
//!
//! `cargo bench --bench logprob [-- FILTER]`. Without a device it says so and measures nothing.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("logprob: nothing measured: built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() {
    match moerl::Cuda::open(0) {
        Err(reason) => println!("logprob: nothing measured: {reason}"),
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
    use moerl::element::{Float, bf16};
    use moerl::logprob::{Backward, Config, Forward, Gradient, KeepSets, Partial, workspace_bytes};
    use moerl::memory::{Device, Matrix, MatrixMut};
    use moerl::{Backend, Buffer, Cuda, Result};

    /// Rows of a training micro-batch.
    const ROWS: usize = 8192;
    /// Vocabularies of released models; 50257 is odd, so that almost no row begins at a 16-byte boundary.
    const VOCABULARIES: [usize; 5] = [32_000, 50_257, 128_256, 151_936, 262_144];
    /// Rows of a decoding step, where latency is what counts.
    const FEW: [usize; 3] = [1, 16, 128];

    pub fn run(gpu: &Cuda, criterion: &mut Criterion) -> Result<()> {
        for vocabulary in VOCABULARIES {
            training::<bf16>(gpu, criterion, vocabulary)?;
            training::<f32>(gpu, criterion, vocabulary)?;
        }
        for rows in FEW {
            decoding(gpu, criterion, rows)?;
        }
        extras(gpu, criterion)?;
        keep_sets(gpu, criterion)
    }

    /// Device milliseconds of `iterations` calls.
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
    struct Arrays<T> {
        rows: usize,
        vocabulary: usize,
        logits: DeviceBuffer<T>,
        tokens: DeviceBuffer<i32>,
        logprobs: DeviceBuffer<f32>,
        entropy: DeviceBuffer<f32>,
        saved: DeviceBuffer<Partial>,
        workspace: DeviceBuffer<u8>,
    }

    impl<T: Float> Arrays<T> {
        fn new(gpu: &Cuda, stream: &Stream, rows: usize, vocabulary: usize) -> Result<Arrays<T>> {
            // Any numbers will do: no branch of the kernels depends on them.
            let row: Vec<T> = (0..vocabulary).map(|j| T::from_f32((j * 7919 % 1000) as f32 / 100.0)).collect();
            let tokens: Vec<i32> = (0..rows).map(|r| (r * 31 % vocabulary) as i32).collect();
            Ok(Arrays {
                rows,
                vocabulary,
                logits: gpu.upload(stream, &row.repeat(rows))?,
                tokens: gpu.upload(stream, &tokens)?,
                logprobs: gpu.allocate(stream, rows)?,
                entropy: gpu.allocate(stream, rows)?,
                saved: gpu.allocate(stream, rows)?,
                workspace: gpu.allocate(stream, workspace_bytes(rows, vocabulary))?,
            })
        }

        fn bytes(&self) -> u64 {
            (self.rows * self.vocabulary * size_of::<T>()) as u64
        }

        fn forward(&mut self, gpu: &Cuda, stream: &Stream) -> Result<()> {
            gpu.logprob_forward(stream, &Config::default(), self.call()?)
        }

        /// What a trainer asks for.
        fn call(&mut self) -> Result<Forward<'_, Device>> {
            let mut call = Forward::new(Matrix::new(self.logits.view(), self.rows, self.vocabulary)?);
            call.tokens = Some(Matrix::new(self.tokens.view(), self.rows, 1)?);
            call.logprobs = Some(self.logprobs.view_mut());
            call.entropy = Some(self.entropy.view_mut());
            call.saved = Some(self.saved.view_mut());
            call.workspace = Some(self.workspace.view_mut());
            Ok(call)
        }

        fn backward(
            &self,
            gpu: &Cuda,
            stream: &Stream,
            target: &mut DeviceBuffer<T>,
            up: &DeviceBuffer<f32>,
        ) -> Result<()> {
            let gradient = Gradient::Into {
                logits: Matrix::new(self.logits.view(), self.rows, self.vocabulary)?,
                d_logits: MatrixMut::new(target.view_mut(), self.rows, self.vocabulary)?,
            };
            let mut call = Backward::new(gradient, self.saved.view());
            call.tokens = Some(Matrix::new(self.tokens.view(), self.rows, 1)?);
            call.d_logprobs = Some(up.view());
            call.d_entropy = Some(up.view());
            gpu.logprob_backward(stream, &Config::default(), call)
        }
    }

    fn training<T: Float>(gpu: &Cuda, criterion: &mut Criterion, vocabulary: usize) -> Result<()> {
        let stream = gpu.stream()?;
        let mut arrays = Arrays::<T>::new(gpu, &stream, ROWS, vocabulary)?;
        let mut target = gpu.allocate::<T>(&stream, ROWS * vocabulary)?;
        let mut group = criterion.benchmark_group(format!("logprob/{}", T::ELEMENT));
        group.throughput(Throughput::Bytes(arrays.bytes()));
        group.bench_function(BenchmarkId::new("forward", vocabulary), |bencher| {
            bencher.iter_custom(|n| timed(gpu, &stream, n, || arrays.forward(gpu, &stream)).expect("a valid call"));
        });
        for zeros in [0, 90, 100] {
            // Clipped and masked tokens have no gradient; their rows are only filled.
            let live = |r: usize| r * 61 % 100 >= zeros;
            let up: Vec<f32> = (0..ROWS).map(|r| f32::from(u8::from(live(r)))).collect();
            let read = up.iter().filter(|&&a| a != 0.0).count() * vocabulary * size_of::<T>();
            let up = gpu.upload(&stream, &up)?;
            group.throughput(Throughput::Bytes(arrays.bytes() + read as u64));
            group.bench_function(BenchmarkId::new(format!("backward, {zeros} % zero rows"), vocabulary), |bencher| {
                bencher.iter_custom(|n| {
                    timed(gpu, &stream, n, || arrays.backward(gpu, &stream, &mut target, &up)).expect("a valid call")
                });
            });
        }
        group.finish();
        Ok(())
    }

    /// What each output costs that the plain kernels do not have, beside the plain call.
    fn extras(gpu: &Cuda, criterion: &mut Criterion) -> Result<()> {
        let stream = gpu.stream()?;
        let mut arrays = Arrays::<bf16>::new(gpu, &stream, ROWS, 151_936)?;
        let mut sum_p2 = gpu.allocate::<f32>(&stream, ROWS)?;
        let mut rank = gpu.allocate::<i32>(&stream, ROWS)?;
        let mut argmax = gpu.allocate::<i32>(&stream, ROWS)?;
        let mut group = criterion.benchmark_group("logprob/with");
        group.throughput(Throughput::Bytes(arrays.bytes()));
        let plain = Config::default();
        let capped = Config { softcap: Some(30.0), ..Config::default() };
        for (name, config, outputs) in [
            ("nothing more", &plain, [false, false, false]),
            ("sum_p2", &plain, [true, false, false]),
            ("rank", &plain, [false, true, false]),
            ("argmax", &plain, [false, false, true]),
            ("all three", &plain, [true, true, true]),
            ("softcap", &capped, [false, false, false]),
        ] {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|n| {
                    let call = || {
                        let mut call = arrays.call()?;
                        call.sum_p2 = outputs[0].then(|| sum_p2.view_mut());
                        call.rank = outputs[1].then(|| rank.view_mut());
                        call.argmax = outputs[2].then(|| argmax.view_mut());
                        gpu.logprob_forward(&stream, config, call)
                    };
                    timed(gpu, &stream, n, call).expect("a valid call")
                });
            });
        }
        group.finish();
        Ok(())
    }

    /// Keep-sets of 512 tokens, without the rest of the row. The bytes are a sector per kept logit, and the ids.
    fn keep_sets(gpu: &Cuda, criterion: &mut Criterion) -> Result<()> {
        const KEPT: usize = 512;
        let stream = gpu.stream()?;
        let vocabulary = 151_936;
        let arrays = Arrays::<bf16>::new(gpu, &stream, ROWS, vocabulary)?;
        let step = vocabulary / KEPT;
        let set = |r: usize| (0..KEPT).map(move |i| (i * step + (r * 7 + i * 13) % step) as i32);
        let ids = gpu.upload(&stream, &(0..ROWS).flat_map(set).collect::<Vec<i32>>())?;
        let offsets = gpu.upload(&stream, &(0..=ROWS).map(|r| (r * KEPT) as i64).collect::<Vec<i64>>())?;
        let mut logprobs = gpu.allocate::<f32>(&stream, ROWS)?;
        let mut entropy = gpu.allocate::<f32>(&stream, ROWS)?;
        let mut group = criterion.benchmark_group("logprob/keep-sets");
        group.throughput(Throughput::Bytes((ROWS * KEPT * (32 + 4)) as u64));
        group.bench_function(BenchmarkId::new("forward", KEPT), |bencher| {
            bencher.iter_custom(|n| {
                let call = || {
                    let mut call = Forward::new(Matrix::new(arrays.logits.view(), ROWS, vocabulary)?);
                    call.tokens = Some(Matrix::new(arrays.tokens.view(), ROWS, 1)?);
                    call.keep = Some(KeepSets { ids: ids.view(), offsets: offsets.view() });
                    call.kept_logprobs = Some(logprobs.view_mut());
                    call.kept_entropy = Some(entropy.view_mut());
                    gpu.logprob_forward(&stream, &Config::default(), call)
                };
                timed(gpu, &stream, n, call).expect("a valid call")
            });
        });
        group.finish();
        Ok(())
    }

    fn decoding(gpu: &Cuda, criterion: &mut Criterion, rows: usize) -> Result<()> {
        let stream = gpu.stream()?;
        let mut arrays = Arrays::<bf16>::new(gpu, &stream, rows, 151_936)?;
        let mut group = criterion.benchmark_group("logprob/few rows");
        group.throughput(Throughput::Bytes(arrays.bytes()));
        group.bench_function(BenchmarkId::new("forward", rows), |bencher| {
            bencher.iter_custom(|n| timed(gpu, &stream, n, || arrays.forward(gpu, &stream)).expect("a valid call"));
        });
        group.finish();
        Ok(())
    }
}
