//! The host's side of CUDA: on a GPU where there is one, and against a stand-in driver (`fake_driver.c`) everywhere else.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::context::Context;
use super::driver::{Driver, Handle};
use super::*;
use crate::abi::{MoerlEcho, MoerlEchoCall};
use crate::backend::{Backend, Buffer};
use crate::device::echo::echo;

// ---- the stand-in -------------------------------------------------------------------------------------------------------

/// What the stand-in counts and obeys, in the order of its own list.
#[derive(Clone, Copy)]
enum Number {
    InitStatus,
    LoadStatus,
    CapabilityMajor,
    StaticShared,
    OptIn,
    Contexts,
    StackDepth,
    Modules,
    Streams,
    Events,
    Buffers,
    Graphs,
    Loads,
    Allocations,
    Waits,
    Launches,
    LastBlocks,
    LastThreads,
    LastShared,
}

/// A driver of its own for each test, so that counts do not mix.
struct Fake {
    library: libloading::Library,
    path: PathBuf,
}

impl Fake {
    /// `None`, with a printed reason, where there is no C compiler.
    fn new() -> Option<Fake> {
        static COMPILED: OnceLock<Option<PathBuf>> = OnceLock::new();
        static COPIES: AtomicUsize = AtomicUsize::new(0);
        let Some(compiled) = COMPILED.get_or_init(compile) else {
            println!("skipped: no C compiler for the stand-in driver");
            return None;
        };
        let path = compiled.with_extension(format!("{}.so", COPIES.fetch_add(1, Ordering::Relaxed)));
        std::fs::copy(compiled, &path).expect("the temporary folder can be written");
        // SAFETY: our own library; its initialisers do nothing.
        let library = unsafe { libloading::Library::new(&path) }.expect("just compiled");
        Some(Fake { library, path })
    }

    fn get(&self, number: Number) -> i64 {
        // SAFETY: the signature is that of the function in fake_driver.c.
        unsafe {
            let get: libloading::Symbol<'_, unsafe extern "C" fn(i32) -> i64> =
                self.library.get(b"fake_get\0").unwrap();
            get(number as i32)
        }
    }

    fn set(&self, number: Number, value: i64) {
        // SAFETY: the signature is that of the function in fake_driver.c.
        unsafe {
            let set: libloading::Symbol<'_, unsafe extern "C" fn(i32, i64)> = self.library.get(b"fake_set\0").unwrap();
            set(number as i32, value);
        }
    }

    /// The driver, which as in earnest lives as long as the process.
    fn driver(&self) -> Result<&'static Driver> {
        Driver::open(&[self.path.to_str().expect("a plain path")]).map(|driver| &*Box::leak(Box::new(driver)))
    }

    fn open(&self) -> Result<Cuda> {
        Cuda::with(Context::primary(self.driver()?, 0)?)
    }

    /// A device; `None`, with a printed reason, where the crate was built without kernels.
    fn cuda(&self) -> Option<Cuda> {
        match self.open() {
            Err(Error::Unavailable { what, .. }) if images().is_empty() => {
                println!("skipped: {what}");
                None
            }
            opened => Some(opened.expect("the stand-in opens")),
        }
    }

    fn alive(&self) -> Vec<i64> {
        use Number::{Buffers, Contexts, Events, Graphs, Modules, StackDepth, Streams};
        [Contexts, StackDepth, Modules, Streams, Events, Buffers, Graphs].map(|number| self.get(number)).to_vec()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn compile() -> Option<PathBuf> {
    let stem = std::env::temp_dir().join(format!("moerl-fake-driver-{}", std::process::id()));
    let (source, library) = (stem.with_extension("c"), stem.with_extension("so"));
    std::fs::write(&source, include_str!("fake_driver.c")).ok()?;
    let output = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output();
    let _ = std::fs::remove_file(&source);
    let output = output.ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

fn sample() -> MoerlEcho {
    MoerlEcho {
        input: 0x1122_3344_5566_7788 as *const c_void,
        output: 0x99aa_bbcc_ddee_ff00 as *mut f32,
        count: u64::MAX - 1,
        stride: -3,
        real64: -0.0,
        number: 0xdead_beef,
        offset: -7,
        real32: f32::MIN_POSITIVE,
        small: 513,
        flag: 1,
        last: 255,
    }
}

fn bytes_of(sent: &MoerlEcho) -> Vec<u8> {
    // SAFETY: the structure is plain data without padding (its size is the sum of its fields', which abi.rs asserts).
    unsafe { std::slice::from_raw_parts((&raw const *sent).cast::<u8>(), size_of::<MoerlEcho>()) }.to_vec()
}

/// Queues the echo kernel without waiting for it.
fn queue_echo(gpu: &Cuda, stream: &Stream, copy: &mut DeviceBuffer<u8>, grid: Grid) -> Result<()> {
    let mut layout = gpu.zeros::<u64>(stream, 12)?;
    queue_echo_into(gpu, stream, copy, &mut layout, grid)
}

fn queue_echo_into(
    gpu: &Cuda,
    stream: &Stream,
    copy: &mut DeviceBuffer<u8>,
    layout: &mut DeviceBuffer<u64>,
    grid: Grid,
) -> Result<()> {
    let mut arguments = Arguments::new::<Cuda>();
    let params = MoerlEchoCall {
        copy: arguments.write("copy", &mut copy.view_mut()).cast(),
        layout: arguments.write("layout", &mut layout.view_mut()),
        sent: sample(),
    };
    let kernel = Kernel { image: "echo", name: "echo" };
    // SAFETY: the kernel of this structure; `copy` has the bytes of a MoerlEcho and `layout` its twelve numbers.
    unsafe { gpu.launch(stream, kernel, grid, &arguments, &params) }
}

const ONE: Grid = Grid { blocks: 1, threads: 32, shared_bytes: 0 };

fn unavailable<T: std::fmt::Debug>(result: Result<T>) -> (String, String) {
    match result {
        Err(Error::Unavailable { what, fix }) => (what, fix),
        other => panic!("expected something unavailable, got {other:?}"),
    }
}

// ---- no driver, or none that works --------------------------------------------------------------------------------------------

#[test]
fn without_a_driver_every_way_in_is_an_error_that_names_the_fix() {
    if Driver::get().is_ok() {
        println!("skipped: this machine has a driver");
        return;
    }
    for (what, fix) in [unavailable(Cuda::open(0)), unavailable(devices()), unavailable(driver_version())] {
        assert!(what.contains("driver"), "{what}");
        assert!(!fix.is_empty());
    }
    let error = Cuda::open(7).expect_err("no driver");
    assert!(!format!("{error} {error:?}").is_empty(), "an error can be shown without a driver");
}

#[test]
fn a_missing_library_is_named() {
    let (what, fix) = unavailable(Driver::open(&["libno-such-driver.so.1", "libno-such-driver.so"]));
    assert!(what.contains("libno-such-driver.so.1, libno-such-driver.so"), "{what}");
    assert!(fix.contains("install"), "{fix}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_library_that_lacks_a_function_is_called_too_old() {
    let (what, fix) = unavailable(Driver::open(&["libc.so.6"]));
    assert!(what.contains("libc.so.6 has no cuInit") && what.contains("too old"), "{what}");
    assert!(fix.contains("update"), "{fix}");
}

#[test]
fn a_driver_that_does_not_start_says_why() {
    for (status, words) in
        [(34, "a stub"), (100, "no GPU"), (803, "different versions"), (804, "compat"), (999, "does not start")]
    {
        let Some(fake) = Fake::new() else { return };
        fake.set(Number::InitStatus, status);
        let (what, _) = unavailable(fake.driver());
        assert!(what.contains(words) && what.contains(&format!("error {status}, CUDA_ERROR_FAKE")), "{what}");
    }
}

#[test]
fn a_status_becomes_an_error_with_its_call_its_number_and_its_name() {
    let Some(fake) = Fake::new() else { return };
    let driver = fake.driver().expect("starts");
    assert_eq!(driver.check("cuAnything", 0), Ok(()));
    let error = driver.check("cuAnything", 719).expect_err("not success");
    assert_eq!(error.to_string(), "cuAnything: CUDA error 719 (CUDA_ERROR_FAKE)");
    let unknown = driver.check("cuAnything", 12345).expect_err("not success");
    assert_eq!(unknown.to_string(), "cuAnything: CUDA error 12345 (unknown)");
}

#[test]
fn a_device_that_is_not_there_or_too_old_is_refused() {
    let Some(fake) = Fake::new() else { return };
    let driver = fake.driver().expect("starts");
    assert_eq!(driver.version(), Ok((13, 0)));
    let (what, _) = unavailable(Context::primary(driver, 1));
    assert_eq!(what, "there is no CUDA device 1: the driver sees 1");
    fake.set(Number::CapabilityMajor, 7);
    let (what, fix) = unavailable(fake.open());
    assert!(what.contains("7.0") && fix.contains("8.0"), "{what}; {fix}");
    assert_eq!(fake.alive(), [0; 7], "a refused device is released");
}

// ---- what is made is released ---------------------------------------------------------------------------------------------------

#[test]
fn everything_that_is_made_is_released_and_the_threads_context_restored() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    {
        let stream = gpu.stream().expect("a stream");
        let event = gpu.event().expect("an event");
        let mut copy = gpu.upload(&stream, &[0u8; 56]).expect("memory");
        queue_echo(&gpu, &stream, &mut copy, ONE).expect("a launch");
        event.record(&stream).expect("a mark");
        stream.wait_for(&event).expect("an order");
        assert_eq!(event.milliseconds_since(&event), Ok(2.5));
        let graph = gpu.capture(&stream, || Ok(())).expect("an empty graph");
        assert_eq!(fake.get(Number::StackDepth), 0, "no context stays current between calls");
        drop(gpu);
        // Streams, memory and graphs keep what they need.
        assert_eq!(stream.synchronize(), Ok(()));
        drop(graph);
        assert_eq!(fake.get(Number::Contexts), 1);
    }
    assert_eq!(fake.alive(), [0; 7]);
}

#[test]
fn somebody_elses_current_context_is_current_again_afterwards() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    let driver = fake.driver().expect("starts");
    let other = 0x1234 as Handle;
    let mut current = std::ptr::null_mut();
    // SAFETY: the stand-in takes any address for a context.
    unsafe { (driver.context_push)(other) };
    gpu.stream().and_then(|stream| stream.synchronize()).expect("works under another context");
    // SAFETY: `current` is valid for the handle.
    unsafe { (driver.context_get)(&mut current) };
    assert_eq!(current, other);
}

#[test]
fn arrays_come_back_as_they_were_sent_also_empty_ones() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    let stream = gpu.stream().expect("a stream");
    let data: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let buffer = gpu.upload(&stream, &data).expect("memory");
    assert_eq!(gpu.download(&stream, buffer.view()), Ok(data.clone()));
    assert_eq!(gpu.download(&stream, buffer.view().slice(10..20)), Ok(data[10..20].to_vec()));
    assert_eq!(gpu.allocate::<u64>(&stream, 3).and_then(|zeros| gpu.download(&stream, zeros.view())), Ok(vec![0; 3]));
    let empty = gpu.upload::<i64>(&stream, &[]).expect("an empty array");
    assert_ne!(empty.view().address(), 0, "an empty array is not an absent one");
    assert_eq!(gpu.download(&stream, empty.view()), Ok(vec![]));
    assert!(gpu.allocate::<u64>(&stream, usize::MAX).is_err_and(|error| error.is(crate::error::Kind::Shape)));
    assert!(matches!(gpu.allocate::<u8>(&stream, 2 << 30), Err(Error::Driver { call: "cuMemAlloc", code: 2, .. })));
}

// ---- launches -------------------------------------------------------------------------------------------------------------------

#[test]
fn a_launch_hands_over_the_structure_and_neither_allocates_nor_waits() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    let stream = gpu.stream().expect("a stream");
    let mut copy = gpu.zeros::<u8>(&stream, 56).expect("memory");
    let mut layout = gpu.zeros::<u64>(&stream, 12).expect("memory");
    let before = [Number::Allocations, Number::Waits].map(|number| fake.get(number));
    for _ in 0..3 {
        let grid = Grid { blocks: 5, threads: 32, shared_bytes: 1024 };
        queue_echo_into(&gpu, &stream, &mut copy, &mut layout, grid).expect("a launch");
    }
    assert_eq!([Number::Allocations, Number::Waits].map(|number| fake.get(number)), before);
    assert_eq!(fake.get(Number::Loads), 1, "an image is loaded once");
    assert_eq!(
        [Number::LastBlocks, Number::LastThreads, Number::LastShared].map(|number| fake.get(number)),
        [5, 32, 1024]
    );
    assert_eq!(gpu.download(&stream, copy.view()), Ok(bytes_of(&sample())));
}

#[test]
fn a_grid_of_no_blocks_is_no_launch() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    let stream = gpu.stream().expect("a stream");
    let mut copy = gpu.zeros::<u8>(&stream, 56).expect("memory");
    assert_eq!(queue_echo(&gpu, &stream, &mut copy, Grid { blocks: 0, ..ONE }), Ok(()));
    assert_eq!(fake.get(Number::Launches), 0);
}

#[test]
fn a_kernel_may_use_all_shared_memory_of_a_block_and_no_more() {
    let Some(fake) = Fake::new() else { return };
    fake.set(Number::StaticShared, 1000);
    let Some(gpu) = fake.cuda() else { return };
    let stream = gpu.stream().expect("a stream");
    let mut copy = gpu.zeros::<u8>(&stream, 56).expect("memory");
    let most = u32::try_from(fake.get(Number::OptIn)).expect("positive") - 1000;
    assert_eq!(queue_echo(&gpu, &stream, &mut copy, Grid { shared_bytes: most, ..ONE }), Ok(()));
    let (what, _) = unavailable(queue_echo(&gpu, &stream, &mut copy, Grid { shared_bytes: most + 1, ..ONE }));
    assert_eq!(what, format!("echo needs {} bytes of shared memory a block, the device has {most}", most + 1));
}

#[test]
fn an_image_that_does_not_load_says_whether_the_device_or_the_driver_is_the_cause() {
    for (status, words) in [(209, "compute capability 9.0 cannot run"), (222, "too new for this NVIDIA driver")] {
        let Some(fake) = Fake::new() else { return };
        let Some(gpu) = fake.cuda() else { return };
        fake.set(Number::LoadStatus, status);
        let (what, fix) = unavailable(gpu.prepare());
        assert!(what.contains(words), "{what}");
        assert!(fix.contains("rebuild"), "{fix}");
    }
}

#[test]
fn a_kernel_that_was_not_built_is_named() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    let stream = gpu.default_stream();
    let arguments = Arguments::new::<Cuda>();
    let params = MoerlEchoCall { copy: std::ptr::null_mut(), layout: std::ptr::null_mut(), sent: sample() };
    let launch = |kernel| {
        // SAFETY: neither kernel exists, so nothing is launched.
        unsafe { gpu.launch(&stream, kernel, ONE, &arguments, &params) }
    };
    let (what, _) = unavailable(launch(Kernel { image: "no-such-image", name: "echo" }));
    assert!(what.contains("no-such-image"), "{what}");
    let absent = launch(Kernel { image: "echo", name: "absent" });
    assert!(matches!(absent, Err(Error::Driver { call: "cuModuleGetFunction", code: 500, .. })), "{absent:?}");
}

// ---- graphs ---------------------------------------------------------------------------------------------------------------------

#[test]
fn captured_work_runs_when_the_graph_is_launched_and_not_before() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    captures(&gpu);
    drop(gpu);
    assert_eq!(fake.alive(), [0; 7]);
}

fn captures(gpu: &Cuda) {
    let stream = gpu.stream().expect("a stream");
    let mut copy = gpu.zeros::<u8>(&stream, 56).expect("memory");
    let mut layout = gpu.zeros::<u64>(&stream, 12).expect("memory");
    let graph = gpu.capture(&stream, || queue_echo_into(gpu, &stream, &mut copy, &mut layout, ONE)).expect("a graph");
    assert_eq!(gpu.download(&stream, copy.view()), Ok(vec![0; 56]), "nothing ran while it was recorded");
    for _ in 0..2 {
        // SAFETY: `copy` and `layout` are still there, and nobody else uses them.
        unsafe { graph.launch(&stream) }.expect("a launch");
    }
    assert_eq!(gpu.download(&stream, copy.view()), Ok(bytes_of(&sample())));
}

#[test]
fn a_capture_that_fails_or_panics_is_ended() {
    let Some(fake) = Fake::new() else { return };
    let Some(gpu) = fake.cuda() else { return };
    let stream = gpu.stream().expect("a stream");
    let failed = gpu.capture(&stream, || Err(Error::Emulation("stop".into())));
    assert_eq!(failed.map(|_| ()), Err(Error::Emulation("stop".into())), "the cause, not the consequence");
    // Waiting cannot be recorded: the stand-in, like the driver, refuses.
    let waited = gpu.capture(&stream, || stream.synchronize());
    assert!(matches!(waited, Err(Error::Driver { call: "cuStreamSynchronize", .. })));
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gpu.capture(&stream, || panic!("in the middle"))));
    assert!(panicked.is_err());
    assert_eq!(stream.synchronize(), Ok(()), "the stream is no longer being recorded");
    assert_eq!(fake.get(Number::Graphs), 0);
    assert!(matches!(
        gpu.capture(&gpu.default_stream(), || Ok(())),
        Err(Error::Driver { call: "cuStreamBeginCapture", .. })
    ));
}

// ---- on a device ------------------------------------------------------------------------------------------------------------------

/// The first device; `None`, with a printed reason, where there is none and `MOERL_REQUIRE_GPU` is not 1.
fn device() -> Option<Cuda> {
    match Cuda::open(0) {
        Ok(gpu) => Some(gpu),
        Err(reason) if std::env::var_os("MOERL_REQUIRE_GPU").is_some_and(|value| value == "1") => {
            panic!("MOERL_REQUIRE_GPU is set, but: {reason}")
        }
        Err(reason) => {
            println!("skipped on cuda: {reason}");
            None
        }
    }
}

#[test]
fn cuda_echoes_a_structure_field_by_field_and_lays_it_out_as_the_host_does() {
    let Some(gpu) = device() else { return };
    for stream in [gpu.stream().expect("a stream"), gpu.default_stream(), gpu.per_thread_stream()] {
        let (copy, layout) = echo(&gpu, &stream, sample()).expect("echo");
        assert_eq!(copy, bytes_of(&sample()));
        assert_eq!(layout, [56, 0, 8, 16, 24, 32, 40, 44, 48, 52, 54, 55]);
    }
}

#[test]
fn cuda_captures_a_graph_and_replays_it() {
    let Some(gpu) = device() else { return };
    captures(&gpu);
}

#[test]
fn cuda_loads_every_kernel_of_every_image() {
    let Some(gpu) = device() else { return };
    gpu.prepare().expect("every kernel");
    assert!(gpu.multiprocessors() > 0);
    println!("{:?}", gpu.info());
}

#[test]
fn cuda_shares_its_context_streams_and_arrays_with_cudarc() {
    let Some(gpu) = device() else { return };
    let context = cudarc::driver::CudaContext::new(0).expect("a context beside ours");
    let shared = Cuda::from_cudarc(&context).expect("the same device");
    let theirs = context.new_stream().expect("a stream");
    let stream = shared.cudarc_stream(&theirs);
    let slice = theirs.clone_htod(&[1.0f32, 2.0, 3.0]).expect("their memory");
    {
        let lent = lend(&slice, &theirs);
        assert_eq!(shared.download(&stream, lent.view()), Ok(vec![1.0, 2.0, 3.0]));
    }
    let mut bytes = theirs.alloc_zeros::<u8>(56).expect("their memory");
    {
        let mut layout = shared.zeros::<u64>(&stream, 12).expect("our memory");
        let mut lent = lend_mut(&mut bytes, &theirs);
        let mut arguments = Arguments::new::<Cuda>();
        let params = MoerlEchoCall {
            copy: arguments.write("copy", &mut lent.view_mut()).cast(),
            layout: arguments.write("layout", &mut layout.view_mut()),
            sent: sample(),
        };
        // SAFETY: the kernel of this structure; `copy` has the bytes of a MoerlEcho and `layout` its twelve numbers.
        unsafe { shared.launch(&stream, Kernel { image: "echo", name: "echo" }, ONE, &arguments, &params) }
            .expect("a launch");
    }
    assert_eq!(theirs.clone_dtoh(&bytes).expect("a copy"), bytes_of(&sample()));
    // SAFETY: cudarc's stream lives on in `theirs`.
    let raw = unsafe { gpu.foreign_stream(stream.as_raw()) };
    assert_eq!(raw.synchronize(), Ok(()));
}

#[test]
fn cuda_measures_time_and_orders_streams_by_events() {
    let Some(gpu) = device() else { return };
    let (first, second) = (gpu.stream().expect("a stream"), gpu.stream().expect("a stream"));
    let (begin, end) = (gpu.event().expect("an event"), gpu.event().expect("an event"));
    begin.record(&first).expect("a mark");
    let zeros = gpu.zeros::<u8>(&first, 64 << 20).expect("memory");
    end.record(&first).expect("a mark");
    second.wait_for(&end).expect("an order");
    assert_eq!(gpu.download(&second, zeros.view().slice(0..4)), Ok(vec![0; 4]));
    assert!(end.milliseconds_since(&begin).expect("both were reached") > 0.0);
}
