//! Embedded images, loaded when first needed, and the functions in them.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::device::cuda::context::{self, Context};
use crate::device::cuda::driver::{Handle, SUCCESS, attribute, function_attribute};
use crate::device::executor::Kernel;
use crate::device::images::{self, Image};
use crate::error::{Error, Result};

/// Dynamic shared memory that a launch may use without asking first.
const SHARED_WITHOUT_OPT_IN: u32 = 48 << 10;

/// The images loaded in one context.
#[derive(Debug)]
pub(super) struct Modules {
    context: Arc<Context>,
    loaded: Mutex<HashMap<&'static str, Module>>,
    functions: RwLock<HashMap<Kernel, Function>>,
}

#[derive(Debug)]
struct Module(Handle);

/// A kernel, ready to launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) handle: Handle,
    /// The most dynamic shared memory that one block may have.
    pub(super) max_shared_bytes: u32,
}

// SAFETY: a module is a handle that the driver allows any thread to use.
unsafe impl Send for Module {}
// SAFETY: as for modules; it stays valid while its module is loaded, which `Modules` sees to.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Modules {
    pub(super) fn new(context: Arc<Context>) -> Modules {
        Modules { context, loaded: Mutex::default(), functions: RwLock::default() }
    }

    /// The function of a kernel. The first call for a kernel loads it, all others only look it up.
    pub(super) fn function(&self, kernel: Kernel) -> Result<Function> {
        // A poisoned lock guards nothing half-done here: entries are inserted whole.
        let known = self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&kernel).copied();
        if let Some(function) = known {
            return Ok(function);
        }
        let function = self.load(kernel)?;
        self.functions.write().unwrap_or_else(PoisonError::into_inner).insert(kernel, function);
        Ok(function)
    }

    /// Loads every kernel of every image.
    pub(super) fn load_all(&self) -> Result<()> {
        for image in images::images() {
            for &name in image.kernels {
                self.function(Kernel { image: image.name, name })?;
            }
        }
        Ok(())
    }

    fn load(&self, kernel: Kernel) -> Result<Function> {
        let module = self.module(kernel.image)?;
        let _entered = self.context.enter()?;
        let driver = self.context.driver;
        let name = CString::new(kernel.name).expect("kernel names are plain words");
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is valid for the handle that the driver stores, `name` is terminated, the module is loaded.
        let status = unsafe { (driver.module_function)(&mut handle, module, name.as_ptr()) };
        driver.check("cuModuleGetFunction", status)?;
        let max_shared_bytes = self.allow_all_shared(handle)?;
        Ok(Function { handle, max_shared_bytes })
    }

    /// Lets a function use all the shared memory that a block can have, beside its static share.
    fn allow_all_shared(&self, function: Handle) -> Result<u32> {
        let driver = self.context.driver;
        let mut fixed = 0;
        // SAFETY: `fixed` is valid for the number that the driver stores; `function` is loaded.
        let status = unsafe { (driver.function_get)(&mut fixed, function_attribute::STATIC_SHARED, function) };
        driver.check("cuFuncGetAttribute", status)?;
        let all = self.context.attribute(attribute::SHARED_PER_BLOCK_OPTIN)?;
        let dynamic = all.saturating_sub(fixed.unsigned_abs());
        if dynamic > SHARED_WITHOUT_OPT_IN {
            // SAFETY: `function` is loaded; shared memory of a block is far below 2³¹ bytes.
            let status =
                unsafe { (driver.function_set)(function, function_attribute::MAX_DYNAMIC_SHARED, dynamic as i32) };
            driver.check("cuFuncSetAttribute", status)?;
        }
        Ok(dynamic)
    }

    fn module(&self, name: &'static str) -> Result<Handle> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(name) {
            return Ok(module.0);
        }
        let image = embedded(name)?;
        let _entered = self.context.enter()?;
        let driver = self.context.driver;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is valid for the handle that the driver stores; the image is a whole fatbin, embedded for the life of the
        // process.
        let status = unsafe { (driver.module_load)(&mut handle, image.bytes.as_ptr().cast()) };
        if status != SUCCESS {
            let (major, minor) = context::capability(driver, self.context.device)?;
            let device = format!("a device of compute capability {major}.{minor}");
            return Err(driver.unloadable(status, name, &device, images::toolkit(), images::targets()));
        }
        loaded.insert(name, Module(handle));
        Ok(handle)
    }
}

fn embedded(name: &str) -> Result<&'static Image> {
    images::images().iter().find(|image| image.name == name).ok_or_else(|| Error::Unavailable {
        what: format!("moerl was built without the GPU kernels of `{name}`: {}", images::absence()),
        fix: "rebuild where nvcc is found (NVCC, CUDA_HOME, PATH; in moerl's repository `cargo xtask toolkit` installs one)".into(),
    })
}

impl Drop for Modules {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        for module in loaded.values() {
            // SAFETY: loaded in `module`, unloaded once; the functions go with this structure. Work still queued keeps the module
            // until it has finished, as cuModuleUnload waits for it.
            unsafe { (self.context.driver.module_unload)(module.0) };
        }
    }
}
