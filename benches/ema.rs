//! Time and bytes per second of `ema` on a CUDA device, by events on its stream: p read, the state read and written, the copy written.
//!
//! `cargo bench --bench ema [-- FILTER]`. Without a device it says so and measures nothing.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("ema: nothing measured: built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() {
    match moerl::Cuda::open(0) {
        Err(reason) => println!("ema: nothing measured: {reason}"),
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
    use half::bf16;
    use moerl::device::cuda::{DeviceBuffer, Stream};
    use moerl::ema::{Call, Step, Tensor};
    use moerl::memory::{Matrix, MatrixMut};
    use moerl::{Backend, Buffer, Cuda, Result};

    /// One large tensor, a layer's worth, and many small ones: (tensors, elements of each).
    const LISTS: [(usize, usize); 3] = [(1, 1 << 26), (12, 1 << 22), (512, 1 << 14)];

    pub fn run(gpu: &Cuda, criterion: &mut Criterion) -> Result<()> {
        for (count, len) in LISTS {
            for with_copy in [false, true] {
                let stream = gpu.stream()?;
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(Arrays::new(gpu, &stream, len)?);
                }
                let mut group = criterion.benchmark_group(if with_copy { "ema/bf16+copy" } else { "ema/bf16" });
                group.throughput(Throughput::Bytes((count * len * if with_copy { 12 } else { 10 }) as u64));
                group.bench_function(BenchmarkId::new(count.to_string(), len), |bencher| {
                    bencher.iter_custom(|iterations| {
                        timed(gpu, &stream, iterations, || {
                            let mut tensors = Vec::with_capacity(count);
                            for array in &mut arrays {
                                tensors.push(array.tensor(len, with_copy)?);
                            }
                            gpu.ema(&stream, &Step::new(0.999)?, Call { tensors: &mut tensors, nonfinite: None })
                        })
                        .expect("a valid call")
                    });
                });
                group.finish();
            }
        }
        Ok(())
    }

    struct Arrays {
        parameters: DeviceBuffer<bf16>,
        state: DeviceBuffer<f32>,
        copy: DeviceBuffer<bf16>,
    }

    impl Arrays {
        fn new(gpu: &Cuda, stream: &Stream, len: usize) -> Result<Arrays> {
            Ok(Arrays {
                parameters: gpu.allocate(stream, len)?,
                state: gpu.allocate(stream, len)?,
                copy: gpu.allocate(stream, len)?,
            })
        }

        fn tensor(&mut self, len: usize, with_copy: bool) -> Result<Tensor<'_, moerl::memory::Device>> {
            Ok(Tensor {
                copy: with_copy.then(|| self.copy.view_mut()),
                ..Tensor::new(
                    Matrix::new(self.parameters.view(), 1, len)?,
                    MatrixMut::new(self.state.view_mut(), 1, len)?,
                )
            })
        }
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
