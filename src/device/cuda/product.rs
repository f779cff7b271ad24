//! Products of matrices by cuBLASLt.
//!
//! The algorithm of a product is chosen once for its shapes, row strides and types, and of algorithms that do not split the sums: the same product
//! then has the same bits, whatever it is part of.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{from_mut, from_ref, null_mut};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::cublaslt::sys;

use crate::device::cuda::context::Context;
use crate::device::cuda::cublaslt::{Algorithm, CublasLt, Suggestion, check};
use crate::device::cuda::driver::Handle;
use crate::device::cuda::stream::Stream;
use crate::device::executor::{Factor, Product};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::linear_logprob::ROW_ALIGNMENT;
use crate::memory::{Device, Layout};

/// The products of one context.
#[derive(Debug)]
pub(super) struct Products {
    context: Arc<Context>,
    library: OnceLock<Result<Opened>>,
}

impl Products {
    pub(super) fn new(context: Arc<Context>) -> Products {
        Products { context, library: OnceLock::new() }
    }

    /// Queues one.
    pub(super) fn multiply(&self, stream: &Stream, product: Product<'_, Device>) -> Result<()> {
        product.validate()?;
        let _entered = self.context.enter()?;
        let opened = self.library.get_or_init(|| Opened::new(&self.context)).as_ref().map_err(Clone::clone)?;
        opened.multiply(stream, product)
    }
}

/// cuBLASLt, ready for one context, and what it has been asked so far.
#[derive(Debug)]
struct Opened {
    library: &'static CublasLt,
    context: Arc<Context>,
    handle: Handle,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: cuBLASLt allows any thread to use a handle at any time; what is planned is only touched under the lock.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

/// All that an algorithm is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// In cuBLAS's order of columns first: it takes our second factor first, and makes the transpose of the product.
    first: Stored,
    second: Stored,
    to: Stored,
    workspace: usize,
}

/// A matrix as it lies: `rows` are the numbers behind one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stored {
    element: Element,
    rows: usize,
    columns: usize,
    stride: usize,
    is_transposed: bool,
}

impl Stored {
    /// Rows one behind the other are the transpose of columns one behind the other.
    fn of(layout: &Layout, is_transposed: bool) -> Stored {
        Stored {
            element: layout.element,
            rows: layout.columns,
            columns: layout.rows,
            stride: layout.row_stride,
            is_transposed,
        }
    }

    fn of_factor(factor: &Factor<'_, Device>) -> Stored {
        Stored::of(factor.matrix.layout(), factor.is_transposed)
    }
}

/// What cublasLtMatmul is given again and again.
struct Plan {
    library: &'static CublasLt,
    description: Handle,
    /// Of the first factor, the second one and the product; null where one was not made.
    layouts: [Handle; 3],
    algorithm: Algorithm,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plan")
    }
}

impl Opened {
    fn new(context: &Arc<Context>) -> Result<Opened> {
        let library = CublasLt::get(context.driver)?;
        let mut handle = null_mut();
        // SAFETY: `handle` is valid for the handle that the library stores; the caller has entered the context.
        check("cublasLtCreate", unsafe { (library.create)(&mut handle) })?;
        Ok(Opened { library, context: context.clone(), handle, plans: Mutex::default() })
    }

    fn multiply(&self, stream: &Stream, product: Product<'_, Device>) -> Result<()> {
        let Product { a, b, to, is_added, workspace } = product;
        let shape = Shape {
            first: Stored::of_factor(&b),
            second: Stored::of_factor(&a),
            to: Stored::of(to.layout(), false),
            workspace: workspace.len(),
        };
        // A poisoned lock guards nothing half-done here: plans are inserted whole.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Plan::new(self.library, self.handle, &shape)?),
        };
        let (alpha, beta) = (1.0_f32, f32::from(u8::from(is_added)));
        let address = to.address() as *mut c_void;
        // SAFETY: the plan's layouts are those of the matrices, whose shapes fit (`Product::validate`) and which are device memory lent to this
        // call, the product for writing alone, as the workspace is; the library
        // reads alpha and beta before it returns.
        let status = unsafe {
            (self.library.multiply)(
                self.handle,
                plan.description,
                from_ref(&alpha).cast(),
                b.matrix.address() as *const c_void,
                plan.layouts[0],
                a.matrix.address() as *const c_void,
                plan.layouts[1],
                from_ref(&beta).cast(),
                address,
                plan.layouts[2],
                address,
                plan.layouts[2],
                &plan.algorithm,
                workspace.address() as *mut c_void,
                workspace.len(),
                stream.handle,
            )
        };
        check("cublasLtMatmul", status)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created in `new`, destroyed once.
            unsafe { (self.library.destroy)(self.handle) };
        }
    }
}

/// The number that cuBLAS has for a type.
fn data_type(element: Element) -> c_uint {
    use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};
    let number = match element {
        Element::Bf16 => CUDA_R_16BF,
        Element::F16 => CUDA_R_16F,
        _ => CUDA_R_32F,
    };
    number as c_uint
}

impl Plan {
    fn new(library: &'static CublasLt, handle: Handle, shape: &Shape) -> Result<Plan> {
        use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        let compute =
            if shape.first.element == Element::F32 { CUBLAS_COMPUTE_32F_FAST_TF32 } else { CUBLAS_COMPUTE_32F };
        let mut description = null_mut();
        // SAFETY: `description` is valid for the handle that the library stores.
        let status =
            unsafe { (library.description_create)(&mut description, compute as c_uint, data_type(Element::F32)) };
        check("cublasLtMatmulDescCreate", status)?;
        // From here on dropping the plan gives back what there is of it.
        let mut plan = Plan { library, description, layouts: [null_mut(); 3], algorithm: Algorithm { data: [0; 8] } };
        for (attribute, stored) in
            [(CUBLASLT_MATMUL_DESC_TRANSA, shape.first), (CUBLASLT_MATMUL_DESC_TRANSB, shape.second)]
        {
            let operation = c_int::from(stored.is_transposed);
            // SAFETY: the attribute is a number of 4 bytes.
            let status = unsafe {
                (library.description_set)(
                    description,
                    attribute as c_uint,
                    from_ref(&operation).cast(),
                    size_of::<c_int>(),
                )
            };
            check("cublasLtMatmulDescSetAttribute", status)?;
        }
        for (layout, stored) in plan.layouts.iter_mut().zip([shape.first, shape.second, shape.to]) {
            let (rows, columns) = (stored.rows as u64, stored.columns as u64);
            // SAFETY: `layout` is valid for the handle that the library stores.
            let status = unsafe {
                (library.layout_create)(layout, data_type(stored.element), rows, columns, stored.stride as i64)
            };
            check("cublasLtMatrixLayoutCreate", status)?;
        }
        plan.algorithm = plan.choose(handle, shape)?;
        Ok(plan)
    }

    /// The library's first suggestion that does not split sums.
    fn choose(&self, handle: Handle, shape: &Shape) -> Result<Algorithm> {
        const MOST: usize = 16;
        let preference = Preference::new(self.library, shape.workspace)?;
        let [first, second, to] = self.layouts;
        let mut found = [const { std::mem::MaybeUninit::<Suggestion>::zeroed() }; MOST];
        let mut count = 0;
        // SAFETY: all handles are alive; `found` has room for as many suggestions as are asked for.
        let status = unsafe {
            (self.library.suggest)(
                handle,
                self.description,
                first,
                second,
                to,
                to,
                preference.handle,
                MOST as c_int,
                found.as_mut_ptr().cast(),
                &mut count,
            )
        };
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        let count = usize::try_from(count).unwrap_or(0).min(MOST);
        // SAFETY: zeros are valid in every field of a suggestion, and so is what the library wrote over them.
        let suggestions = found[..count].iter().map(|found| unsafe { found.assume_init() });
        let fits = |s: &Suggestion| s.state == 0 && s.workspace <= shape.workspace && self.is_whole(&s.algorithm);
        let fitting: Vec<Suggestion> = suggestions.filter(fits).collect();
        // Sums split over blocks in ways that have no attribute (stream-K) need memory to be put together in.
        let chosen = fitting.iter().find(|s| s.workspace == 0).or(fitting.first());
        chosen.map(|s| s.algorithm).ok_or_else(|| Error::Unavailable {
            what: format!("cuBLASLt has no algorithm without split sums for {shape:?}"),
            fix: "give it a larger product_workspace, or another shape".into(),
        })
    }

    /// True if each sum is made in one piece.
    fn is_whole(&self, algorithm: &Algorithm) -> bool {
        use sys::cublasLtMatmulAlgoConfigAttributes_t::{
            CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
        };
        let most = |attribute: sys::cublasLtMatmulAlgoConfigAttributes_t, most: c_int| {
            let (mut value, mut written) = (0, 0);
            let to: *mut c_int = &mut value;
            // SAFETY: both attributes are numbers of 4 bytes, which `value` has room for.
            let status = unsafe {
                (self.library.algorithm_get)(
                    algorithm,
                    attribute as c_uint,
                    to.cast(),
                    size_of::<c_int>(),
                    from_mut(&mut written),
                )
            };
            // An algorithm without the attribute does not split.
            status != 0 || value <= most
        };
        most(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 1) && most(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 0)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; a null layout is one that was not created.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                (self.library.layout_destroy)(layout);
            }
            (self.library.description_destroy)(self.description);
        }
    }
}

/// What an algorithm must be like.
struct Preference {
    library: &'static CublasLt,
    handle: Handle,
}

impl Preference {
    /// Of at most this workspace, without split sums, for addresses that need be no more than multiples of 16: whether arrays happen to be
    /// better aligned must not decide.
    fn new(library: &'static CublasLt, workspace: usize) -> Result<Preference> {
        use sys::cublasLtMatmulPreferenceAttributes_t::*;
        let mut handle = null_mut();
        // SAFETY: `handle` is valid for the handle that the library stores.
        check("cublasLtMatmulPreferenceCreate", unsafe { (library.preference_create)(&mut handle) })?;
        let preference = Preference { library, handle };
        preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace as u64)?;
        let none = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, none)?;
        for matrix in [
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(matrix, ROW_ALIGNMENT as u32)?;
        }
        Ok(preference)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        // SAFETY: `value` is as long as the attribute: 8 bytes for the workspace, 4 for the others.
        let status = unsafe {
            (self.library.preference_set)(self.handle, attribute as c_uint, from_ref(&value).cast(), size_of::<T>())
        };
        check("cublasLtMatmulPreferenceSetAttribute", status)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        unsafe { (self.library.preference_destroy)(self.handle) };
    }
}
