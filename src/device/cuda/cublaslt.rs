//! cuBLASLt, loaded when a product is first asked for: a table of the functions used here, found once or reported missing once.
//!
//! The numbers are cudarc's. Its functions are not used: they panic where the library or a function is missing, and return statuses as an
//! enumeration, which a newer library may leave.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::cublaslt::sys;
use libloading::Library;

use crate::device::cuda::driver::{Driver, Handle};
use crate::error::{Error, Result};

pub(super) use sys::cublasLtMatmulAlgo_t as Algorithm;

pub(super) type Status = c_uint;

const SUCCESS: Status = 0;

/// What cublasLtMatmulAlgoGetHeuristic says of one algorithm; as in cublasLt.h, but the status is a number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Suggestion {
    pub(super) algorithm: Algorithm,
    pub(super) workspace: usize,
    pub(super) state: Status,
    pub(super) waves: f32,
    reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Suggestion>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

macro_rules! table {
    ($($name:ident = $symbol:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// The library's functions.
        pub(super) struct CublasLt {
            $(pub(super) $name: unsafe extern "system" fn($($argument: $type),*) -> Status,)*
            /// Keeps the functions where they are.
            _library: Library,
        }

        impl CublasLt {
            /// Finds every function in a loaded library.
            fn resolve(library: Library, path: &str) -> Result<CublasLt> {
                $(
                    // SAFETY: the type is that of the function of this name in cublasLt.h, and the pointer lives no longer than the
                    // library, which the same structure owns.
                    let $name = *unsafe { library.get(concat!(stringify!($symbol), "\0").as_bytes()) }
                        .map_err(|_| Error::Unavailable {
                            what: format!("{path} has no {}", stringify!($symbol)),
                            fix: "install cuBLAS of CUDA 12 or newer".into(),
                        })?;
                )*
                Ok(CublasLt { $($name,)* _library: library })
            }
        }
    };
}

table! {
    create = cublasLtCreate(handle: *mut Handle);
    destroy = cublasLtDestroy(handle: Handle);
    description_create = cublasLtMatmulDescCreate(description: *mut Handle, compute: c_uint, scale: c_uint);
    description_destroy = cublasLtMatmulDescDestroy(description: Handle);
    description_set = cublasLtMatmulDescSetAttribute(description: Handle, attribute: c_uint, value: *const c_void, bytes: usize);
    layout_create = cublasLtMatrixLayoutCreate(layout: *mut Handle, element: c_uint, rows: u64, columns: u64, stride: i64);
    layout_destroy = cublasLtMatrixLayoutDestroy(layout: Handle);
    preference_create = cublasLtMatmulPreferenceCreate(preference: *mut Handle);
    preference_destroy = cublasLtMatmulPreferenceDestroy(preference: Handle);
    preference_set = cublasLtMatmulPreferenceSetAttribute(preference: Handle, attribute: c_uint, value: *const c_void, bytes: usize);
    suggest = cublasLtMatmulAlgoGetHeuristic(
        handle: Handle,
        description: Handle,
        a: Handle, b: Handle, c: Handle, d: Handle,
        preference: Handle,
        most: c_int,
        suggestions: *mut Suggestion,
        count: *mut c_int,
    );
    algorithm_get = cublasLtMatmulAlgoConfigGetAttribute(
        algorithm: *const Algorithm,
        attribute: c_uint,
        value: *mut c_void,
        bytes: usize,
        written: *mut usize,
    );
    multiply = cublasLtMatmul(
        handle: Handle,
        description: Handle,
        alpha: *const c_void,
        a: *const c_void, a_layout: Handle,
        b: *const c_void, b_layout: Handle,
        beta: *const c_void,
        c: *const c_void, c_layout: Handle,
        d: *mut c_void, d_layout: Handle,
        algorithm: *const Algorithm,
        workspace: *mut c_void, workspace_bytes: usize,
        stream: Handle,
    );
}

impl std::fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CublasLt")
    }
}

/// Under which names the library goes, by the CUDA version of which it is.
#[cfg(windows)]
const NAMES: [&str; 2] = ["cublasLt64_13.dll", "cublasLt64_12.dll"];
#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];
/// Where a toolkit puts it that is not on the library path.
#[cfg(not(windows))]
const FOLDERS: [&str; 3] = ["", "/usr/local/cuda/lib64/", "/opt/cuda/lib64/"];
#[cfg(windows)]
const FOLDERS: [&str; 1] = [""];
/// Names the library's file, where it lies elsewhere: in a Python package, for instance.
const VARIABLE: &str = "MOERL_CUBLASLT";

impl CublasLt {
    /// This machine's library. The first call decides for the life of the process.
    pub(super) fn get(driver: &Driver) -> Result<&'static CublasLt> {
        static LIBRARY: OnceLock<Result<CublasLt>> = OnceLock::new();
        let open = || CublasLt::open(&CublasLt::paths(std::env::var(VARIABLE).ok(), driver.version()?.0));
        LIBRARY.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// Where to look, in this order. A library of CUDA 13 does not start on a driver of CUDA 12.
    fn paths(named: Option<String>, driver: u32) -> Vec<String> {
        let newest = usize::from(driver < 13);
        let found = NAMES[newest..].iter().flat_map(|name| FOLDERS.map(|folder| format!("{folder}{name}")));
        named.into_iter().chain(found).collect()
    }

    /// The first of these libraries that loads.
    pub(super) fn open(paths: &[String]) -> Result<CublasLt> {
        let load = |path: &String| {
            // SAFETY: loading runs the initialisers of the library, which NVIDIA ships to be loaded so; another file of this name is the
            // business of whoever put it on the library path.
            unsafe { Library::new(path) }.ok().map(|library| (library, path.clone()))
        };
        let (library, path) = paths.iter().find_map(load).ok_or_else(|| Error::Unavailable {
            what: format!("no cuBLASLt: {} cannot be loaded", paths.join(", ")),
            fix: format!("install cuBLAS of CUDA 12 or newer, or name the file in {VARIABLE}"),
        })?;
        CublasLt::resolve(library, &path)
    }
}

/// Turns a status into a result.
pub(super) fn check(call: &'static str, status: Status) -> Result<()> {
    if status == SUCCESS { Ok(()) } else { Err(Error::Driver { call, code: status, name: name_of(status).into() }) }
}

fn name_of(status: Status) -> &'static str {
    use sys::cublasStatus_t::*;
    let known = [
        (CUBLAS_STATUS_NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED"),
        (CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED"),
        (CUBLAS_STATUS_INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE"),
        (CUBLAS_STATUS_ARCH_MISMATCH, "CUBLAS_STATUS_ARCH_MISMATCH"),
        (CUBLAS_STATUS_EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED"),
        (CUBLAS_STATUS_INTERNAL_ERROR, "CUBLAS_STATUS_INTERNAL_ERROR"),
        (CUBLAS_STATUS_NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED"),
    ];
    known.iter().find(|(known, _)| *known as Status == status).map_or("unknown cuBLAS status", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_names_the_files_and_the_variable() {
        let error = CublasLt::open(&["libcublasLt-of-nowhere.so".into()]).expect_err("there is no such file");
        let text = error.to_string();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        assert!(text.contains("libcublasLt-of-nowhere.so") && text.contains(VARIABLE), "{text}");
    }

    #[test]
    fn a_library_without_the_functions_is_an_error_that_names_the_first() {
        let own = std::env::var("MOERL_TEST_LIBRARY").unwrap_or_else(|_| "libc.so.6".to_owned());
        let Err(error) = CublasLt::open(&[own]) else { panic!("the C library has no cuBLASLt") };
        assert!(error.to_string().contains("has no cublasLtCreate"), "{error}");
    }

    #[test]
    fn an_old_driver_is_not_given_a_newer_library() {
        let paths = CublasLt::paths(None, 12);
        assert!(!paths.iter().any(|path| path.contains("13")), "{paths:?}");
        assert!(CublasLt::paths(None, 13).iter().any(|path| path.contains("13")));
    }
}
