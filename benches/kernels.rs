//! Every case of `moerl bench` by criterion: device time of calls right after one another, by events on their stream. The throughput is that
//! of the bytes that any implementation must move.
//!
//! `cargo bench [-- FILTER]`, where the filter is a part of a name: `gate`, `logprob/forward`, `V=151936`, … Without a device it says so and
//! measures nothing. Figures with the caches full of other things, beside empty launches and what memory gives, are those of `moerl bench`.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("nothing measured: built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() {
    match moerl::Cuda::open(0) {
        Err(reason) => println!("nothing measured: {reason}"),
        Ok(gpu) => on_device::run(gpu),
    }
}

#[cfg(feature = "cuda")]
mod on_device {
    use clap::ValueEnum;
    use criterion::{Criterion, Throughput};
    use moerl::device::cuda::Stream;
    use moerl::{Backend, Cuda};
    use moerl_cli::bench::Noun;
    use moerl_cli::bench::case::{Case, Scale};
    use moerl_cli::bench::measure::Timed;

    pub fn run(gpu: Cuda) {
        let mut criterion = Criterion::default().configure_from_args();
        let device = Timed::new(gpu).expect("the device has room for what its caches are flushed with");
        let stream = device.stream().expect("the device has another stream");
        for &noun in Noun::value_variants() {
            if noun == Noun::Linear && !cfg!(feature = "linear") {
                println!("linear: not measured: built without the feature linear");
                continue;
            }
            for case in noun.cases::<Timed>(Scale::Full) {
                measure(&mut criterion, &device, &stream, &case);
            }
        }
        criterion.final_summary();
    }

    fn measure(criterion: &mut Criterion, device: &Timed, stream: &Stream, case: &Case<Timed>) {
        let mut group = criterion.benchmark_group(format!("{}/{}", case.noun, case.operation));
        group.throughput(Throughput::Bytes(case.floor.bytes()));
        // Arrays are made for what the filter lets pass.
        let mut call = None;
        group.bench_function(format!("{} {}", case.shape, case.element), |bencher| {
            let call = call.get_or_insert_with(|| (case.prepare)(device, stream).expect("a valid call"));
            bencher.iter_custom(|iterations| {
                let mut calls = || (0..iterations).try_for_each(|_| call(device, stream));
                device.time(stream, &mut calls).expect("the device does its work")
            });
        });
        group.finish();
    }
}
