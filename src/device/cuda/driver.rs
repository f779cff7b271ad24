//! The CUDA driver, loaded at run time: a table of the functions used here, found once or reported missing once.
//!
//! The table is our own, by the stable C interface, so that a machine without a driver gets an error value: nothing is linked, and
//! nothing panics on a missing library or symbol.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::error::{Error, Result};

pub(super) type Status = c_uint;
pub(super) type Handle = *mut c_void;
pub(super) type DevicePointer = u64;

pub(super) const SUCCESS: Status = 0;
const STUB_LIBRARY: Status = 34;
const NO_DEVICE: Status = 100;
const INVALID_IMAGE: Status = 200;
const NO_BINARY_FOR_GPU: Status = 209;
const UNSUPPORTED_PTX_VERSION: Status = 222;
const JIT_COMPILER_NOT_FOUND: Status = 221;
const SYSTEM_DRIVER_MISMATCH: Status = 803;
const COMPAT_NOT_SUPPORTED_ON_DEVICE: Status = 804;

/// Attributes of a device, by their numbers in cuda.h.
pub(super) mod attribute {
    pub(in super::super) const MULTIPROCESSORS: i32 = 16;
    pub(in super::super) const MAJOR: i32 = 75;
    pub(in super::super) const MINOR: i32 = 76;
    pub(in super::super) const SHARED_PER_BLOCK_OPTIN: i32 = 97;
}

/// Attributes of a function, by their numbers in cuda.h.
pub(super) mod function_attribute {
    pub(in super::super) const STATIC_SHARED: i32 = 1;
    pub(in super::super) const MAX_DYNAMIC_SHARED: i32 = 8;
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// The driver's functions.
        pub(super) struct Driver {
            $($(#[$doc])* pub(super) $name: unsafe extern "system" fn($($argument: $type),*) -> Status,)*
            /// Keeps the functions where they are.
            _library: Library,
        }

        impl Driver {
            /// Finds every function in a loaded library.
            fn resolve(library: Library, path: &str) -> Result<Driver> {
                $(
                    // SAFETY: the type is that of the function of this name in cuda.h, and the pointer lives no longer than the
                    // library, which the same structure owns.
                    let $name = *unsafe { library.get(concat!(stringify!($symbol), "\0").as_bytes()) }
                        .map_err(|_| too_old(path, stringify!($symbol)))?;
                )*
                Ok(Driver { $($name,)* _library: library })
            }
        }
    };
}

table! {
    init = cuInit(flags: c_uint);
    driver_version = cuDriverGetVersion(version: *mut c_int);
    error_name = cuGetErrorName(status: Status, name: *mut *const c_char);
    device_count = cuDeviceGetCount(count: *mut c_int);
    device_get = cuDeviceGet(device: *mut c_int, ordinal: c_int);
    device_name = cuDeviceGetName(name: *mut c_char, bytes: c_int, device: c_int);
    device_attribute = cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int);
    device_memory = cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int);
    context_retain = cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int);
    context_release = cuDevicePrimaryCtxRelease_v2(device: c_int);
    context_get = cuCtxGetCurrent(context: *mut Handle);
    context_push = cuCtxPushCurrent_v2(context: Handle);
    context_pop = cuCtxPopCurrent_v2(context: *mut Handle);
    module_load = cuModuleLoadData(module: *mut Handle, image: *const c_void);
    module_unload = cuModuleUnload(module: Handle);
    module_function = cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char);
    function_get = cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Handle);
    function_set = cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int);
    launch = cuLaunchKernel(
        function: Handle,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared_bytes: c_uint,
        stream: Handle,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    stream_create = cuStreamCreate(stream: *mut Handle, flags: c_uint);
    stream_destroy = cuStreamDestroy_v2(stream: Handle);
    stream_synchronize = cuStreamSynchronize(stream: Handle);
    stream_wait = cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint);
    capture_begin = cuStreamBeginCapture_v2(stream: Handle, mode: c_uint);
    capture_end = cuStreamEndCapture(stream: Handle, graph: *mut Handle);
    graph_instantiate = cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: c_ulonglong);
    graph_launch = cuGraphLaunch(executable: Handle, stream: Handle);
    graph_executable_destroy = cuGraphExecDestroy(executable: Handle);
    graph_destroy = cuGraphDestroy(graph: Handle);
    event_create = cuEventCreate(event: *mut Handle, flags: c_uint);
    event_destroy = cuEventDestroy_v2(event: Handle);
    event_record = cuEventRecord(event: Handle, stream: Handle);
    event_synchronize = cuEventSynchronize(event: Handle);
    event_elapsed = cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle);
    memory_allocate = cuMemAlloc_v2(pointer: *mut DevicePointer, bytes: usize);
    memory_free = cuMemFree_v2(pointer: DevicePointer);
    memory_to_device = cuMemcpyHtoDAsync_v2(to: DevicePointer, from: *const c_void, bytes: usize, stream: Handle);
    memory_to_host = cuMemcpyDtoHAsync_v2(to: *mut c_void, from: DevicePointer, bytes: usize, stream: Handle);
    memory_fill = cuMemsetD8Async(to: DevicePointer, byte: u8, count: usize, stream: Handle);
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Driver")
    }
}

/// Under which names the driver's library goes.
#[cfg(windows)]
const NAMES: &[&str] = &["nvcuda.dll"];
#[cfg(not(windows))]
const NAMES: &[&str] = &["libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"];

impl Driver {
    /// This machine's driver, initialised. The first call decides for the life of the process.
    pub(super) fn get() -> Result<&'static Driver> {
        static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
        DRIVER.get_or_init(|| Driver::open(NAMES)).as_ref().map_err(Clone::clone)
    }

    /// The first of these libraries that loads, initialised.
    pub(super) fn open(names: &[&str]) -> Result<Driver> {
        let load = |&name| {
            // SAFETY: loading runs the initialisers of the driver's library, which NVIDIA ships to be loaded so.
            unsafe { Library::new(name) }.ok().map(|library| (library, name))
        };
        let (library, name) = names.iter().find_map(load).ok_or_else(|| Error::Unavailable {
            what: format!("no NVIDIA driver: {} cannot be loaded", names.join(", ")),
            fix: "install the NVIDIA driver (in a container, start it with the GPU attached, as `--gpus all` does)"
                .into(),
        })?;
        let driver = Driver::resolve(library, name)?;
        // SAFETY: cuInit takes no pointers; the flags must be 0.
        match unsafe { (driver.init)(0) } {
            SUCCESS => Ok(driver),
            status => Err(driver.unusable(status)),
        }
    }

    /// Turns a status into a result.
    pub(super) fn check(&self, call: &'static str, status: Status) -> Result<()> {
        if status == SUCCESS { Ok(()) } else { Err(Error::Driver { call, code: status, name: self.name_of(status) }) }
    }

    fn name_of(&self, status: Status) -> String {
        let mut name = std::ptr::null();
        // SAFETY: `name` is valid for the pointer that the driver stores.
        let known = unsafe { (self.error_name)(status, &mut name) };
        if known != SUCCESS || name.is_null() {
            return "unknown".into();
        }
        // SAFETY: the driver answered with a string of its own, terminated and never freed.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    /// Why cuInit failed, and what helps.
    fn unusable(&self, status: Status) -> Error {
        let name = self.name_of(status);
        let (what, fix) = match status {
            NO_DEVICE => ("the NVIDIA driver sees no GPU", "attach one, or check CUDA_VISIBLE_DEVICES"),
            STUB_LIBRARY => ("a stub of libcuda was loaded", "remove the toolkit's stubs folder from the library path"),
            SYSTEM_DRIVER_MISMATCH => (
                "the driver's library and its kernel module have different versions",
                "reboot, or reinstall the driver",
            ),
            COMPAT_NOT_SUPPORTED_ON_DEVICE => (
                "a forward-compatibility libcuda was loaded that this GPU does not support",
                "remove the compat folder from the library path",
            ),
            _ => ("the NVIDIA driver does not start", "check that nvidia-smi runs"),
        };
        Error::Unavailable { what: format!("{what} (cuInit: error {status}, {name})"), fix: fix.into() }
    }

    /// Why an embedded image did not load, and what helps.
    pub(super) fn unloadable(&self, status: Status, image: &str, device: &str, toolkit: &str, targets: &str) -> Error {
        let (what, fix) = match status {
            NO_BINARY_FOR_GPU => (
                format!("the kernels of `{image}` were built for {targets}, which {device} cannot run"),
                "rebuild with CUDA_COMPUTE_CAPS unset, or naming this device".to_owned(),
            ),
            UNSUPPORTED_PTX_VERSION | INVALID_IMAGE | JIT_COMPILER_NOT_FOUND => (
                format!("the kernels of `{image}`, built by CUDA {toolkit}, are too new for this NVIDIA driver"),
                format!(
                    "update the driver to CUDA {toolkit}, or rebuild with an older toolkit (set NVCC or CUDA_HOME)"
                ),
            ),
            _ => return Error::Driver { call: "cuModuleLoadData", code: status, name: self.name_of(status) },
        };
        Error::Unavailable { what: format!("{what} (error {status}, {})", self.name_of(status)), fix }
    }

    /// The CUDA version that the driver supports, major and minor.
    pub(super) fn version(&self) -> Result<(u32, u32)> {
        let mut version = 0;
        // SAFETY: `version` is valid for the number that the driver stores.
        self.check("cuDriverGetVersion", unsafe { (self.driver_version)(&mut version) })?;
        let version = version.unsigned_abs();
        Ok((version / 1000, version % 1000 / 10))
    }
}

fn too_old(path: &str, symbol: &str) -> Error {
    Error::Unavailable {
        what: format!("{path} has no {symbol}: the NVIDIA driver is too old"),
        fix: "update it to one that supports CUDA 12 or newer".into(),
    }
}
