//! Products of matrices by NVIDIA's cuBLASLt, where its library is found.
#![allow(unsafe_code)] // cuBLASLt is called

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use cudarc::cublaslt::sys;
use sys::cublasLtMatmulDescAttributes_t as Described;
use sys::cublasLtMatmulPreferenceAttributes_t as Preferred;

use super::driver::Queue;
use super::library::{self, Found};
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Gemm, Matrix, Pointer};
use crate::graph::tensor::DType;

/// Bytes that every operand's address is a multiple of: the most that a kernel of cuBLASLt loads at once. Buffers of programs begin at
/// multiples of more.
const ALIGNED: u64 = 16;

/// Bytes of workspace: with none, and with sums that are not split, a product is the same bits each time.
const WORKSPACE: u64 = 0;

type Status = c_int;
type Opaque = *mut c_void;

/// cuBLASLt's answer when all is well.
const GOOD: Status = 0;

/// cuBLASLt, and what it said of the products it was asked for.
#[derive(Debug)]
pub struct Products {
    library: Arc<Library>,
    known: BTreeMap<String, Option<Arc<Product>>>,
}

impl Products {
    /// cuBLASLt for the device that is in use.
    ///
    /// # Errors
    /// Where it is not found or refuses its service.
    pub fn open() -> Result<Products> {
        let found = library::find("cublasLt").ok_or_else(|| {
            let why = "libcublasLt.so is not found";
            let next = "pip install nvidia-cublas-cu12 into a virtual environment that is active, or set CUDA_HOME";
            Error::value("products", "cuBLASLt", why, next)
        })?;
        let calls = Calls::of(&found)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place to write to.
        good("start", unsafe { (calls.create)(&mut handle) })?;
        let library = Library {
            handle,
            calls,
            found,
        };
        Ok(Products {
            library: Arc::new(library),
            known: BTreeMap::new(),
        })
    }

    /// Its version and where it was found.
    pub fn describe(&self) -> String {
        // SAFETY: a function without parameters.
        let version = unsafe { (self.library.calls.version)() };
        let (major, minor) = (version / 10_000, version / 100 % 100);
        let path = self.library.found.path.display();
        format!("cuBLASLt {major}.{minor} ({path})")
    }

    /// `gemm` by cuBLASLt, wherever its operands lie; none where it does not take it.
    ///
    /// # Errors
    /// Where the library fails.
    pub fn take(&mut self, gemm: &Gemm) -> Result<Option<Arc<Product>>> {
        let key = key(gemm);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let made = match suits(gemm) {
            true => Product::new(&self.library, gemm)?.map(Arc::new),
            false => None,
        };
        self.known.insert(key, made.clone());
        Ok(made)
    }
}

/// What tells a product from others, beside where its operands lie and what it is multiplied by.
fn key(gemm: &Gemm) -> String {
    let matrix = |m: &Matrix| {
        let aligned = m.at.offset.is_multiple_of(ALIGNED);
        format!("{:?} {} {} {aligned}", m.dtype, m.stride, m.transposed)
    };
    let Gemm { m, n, k, .. } = gemm;
    let (a, b, d) = (matrix(&gemm.a), matrix(&gemm.b), matrix(&gemm.d));
    let bias = gemm.bias.map(|at| at.offset.is_multiple_of(ALIGNED));
    let accumulate = gemm.accumulate;
    format!("{m} {n} {k}; {a}; {b}; {d}; {accumulate} {bias:?}")
}

/// Whether cuBLASLt may be asked: it takes operands of one format, and their own or f32 for the result.
fn suits(gemm: &Gemm) -> bool {
    let (a, b, d) = (gemm.a.dtype, gemm.b.dtype, gemm.d.dtype);
    let pointers = [gemm.a.at, gemm.b.at, gemm.d.at].into_iter();
    let mut pointers = pointers.chain(gemm.bias);
    let aligned = pointers.all(|at| at.offset.is_multiple_of(ALIGNED));
    let some = gemm.m > 0 && gemm.n > 0 && gemm.k > 0;
    some && aligned && a == b && (d == a || d == DType::F32) && format(a).is_some()
}

/// A number format as cuBLASLt names it.
fn format(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::F32 => Some(sys::cudaDataType_t::CUDA_R_32F),
        DType::Bf16 => Some(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F16 => Some(sys::cudaDataType_t::CUDA_R_16F),
        _ => None,
    }
}

/// The library in use. Dropped, it gives back what it had.
#[derive(Debug)]
struct Library {
    handle: Opaque,
    calls: Calls,
    found: Found,
}

// SAFETY: a handle of cuBLASLt's may be used by any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: made once, by `open`.
        unsafe { (self.calls.destroy)(self.handle) };
    }
}

type Create = unsafe extern "C" fn(*mut Opaque) -> Status;
type Destroy = unsafe extern "C" fn(Opaque) -> Status;
type Set = unsafe extern "C" fn(Opaque, u32, *const c_void, usize) -> Status;
type Describe = unsafe extern "C" fn(*mut Opaque, u32, u32) -> Status;
type Layout = unsafe extern "C" fn(*mut Opaque, u32, u64, u64, i64) -> Status;
type Choose = unsafe extern "C" fn(
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    c_int,
    *mut sys::cublasLtMatmulHeuristicResult_t,
    *mut c_int,
) -> Status;
type Multiply = unsafe extern "C" fn(
    Opaque,
    Opaque,
    *const c_void,
    *const c_void,
    Opaque,
    *const c_void,
    Opaque,
    *const c_void,
    *const c_void,
    Opaque,
    *mut c_void,
    Opaque,
    *const sys::cublasLtMatmulAlgo_t,
    *mut c_void,
    usize,
    *mut c_void,
) -> Status;

/// The functions of the library, as its header (cublasLt.h) types them.
#[derive(Debug, Clone, Copy)]
struct Calls {
    version: unsafe extern "C" fn() -> usize,
    create: Create,
    destroy: Destroy,
    describe: Describe,
    set: Set,
    undescribe: Destroy,
    layout: Layout,
    unlayout: Destroy,
    prefer: Create,
    set_preferred: Set,
    unprefer: Destroy,
    choose: Choose,
    multiply: Multiply,
}

impl Calls {
    fn of(found: &Found) -> Result<Calls> {
        Ok(Calls {
            version: found.function("cublasLtGetVersion")?,
            create: found.function("cublasLtCreate")?,
            destroy: found.function("cublasLtDestroy")?,
            describe: found.function("cublasLtMatmulDescCreate")?,
            set: found.function("cublasLtMatmulDescSetAttribute")?,
            undescribe: found.function("cublasLtMatmulDescDestroy")?,
            layout: found.function("cublasLtMatrixLayoutCreate")?,
            unlayout: found.function("cublasLtMatrixLayoutDestroy")?,
            prefer: found.function("cublasLtMatmulPreferenceCreate")?,
            set_preferred: found.function("cublasLtMatmulPreferenceSetAttribute")?,
            unprefer: found.function("cublasLtMatmulPreferenceDestroy")?,
            choose: found.function("cublasLtMatmulAlgoGetHeuristic")?,
            multiply: found.function("cublasLtMatmul")?,
        })
    }
}

/// Fails where the library could not do `what`.
fn good(what: &str, status: Status) -> Result<()> {
    match status {
        GOOD => Ok(()),
        _ => {
            let why = format!("it could not {what} (cublasStatus_t {status})");
            let next = "check the GPU with nvidia-smi, or install another cuBLAS";
            Err(Error::value("products", "cuBLASLt", why, next))
        }
    }
}

/// A thing of the library's with what ends it.
#[derive(Debug)]
struct Held(Opaque, Destroy);

impl Held {
    fn new(what: &str, end: Destroy, make: impl FnOnce(&mut Opaque) -> Status) -> Result<Held> {
        let mut made = std::ptr::null_mut();
        good(what, make(&mut made))?;
        Ok(Held(made, end))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: made once, by `new`.
        unsafe { (self.1)(self.0) };
    }
}

/// One product as cuBLASLt computes it. Everything is row-major here and column-major there, so that it is asked for `dᵀ = bᵀ aᵀ`.
/// Fields are dropped in this order.
#[derive(Debug)]
pub struct Product {
    description: Held,
    /// Of b, a and d.
    layouts: [Held; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    library: Arc<Library>,
}

// SAFETY: what is made by the library may be used by any thread, one at a time: products are queued by that of one stream.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Product {
    /// The fastest way that cuBLASLt knows; none where it has none.
    fn new(library: &Arc<Library>, gemm: &Gemm) -> Result<Option<Product>> {
        let calls = library.calls;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as u32;
        let scale = sys::cudaDataType_t::CUDA_R_32F as u32;
        let make = |made: &mut Opaque| {
            // SAFETY: a place to write to.
            unsafe { (calls.describe)(made, compute, scale) }
        };
        let description = Held::new("describe a product", calls.undescribe, make)?;
        let set = |what: Described, value: u32| set(calls.set, &description, what as u32, value);
        let across = |matrix: &Matrix| u32::from(matrix.transposed);
        set(Described::CUBLASLT_MATMUL_DESC_TRANSA, across(&gemm.b))?;
        set(Described::CUBLASLT_MATMUL_DESC_TRANSB, across(&gemm.a))?;
        if gemm.bias.is_some() {
            let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(Described::CUBLASLT_MATMUL_DESC_EPILOGUE, bias)?;
        }
        let (m, n, k) = (gemm.m, gemm.n, gemm.k);
        let layouts = [
            layout(&calls, &gemm.b, (k, n))?,
            layout(&calls, &gemm.a, (m, k))?,
            layout(&calls, &gemm.d, (m, n))?,
        ];
        let algorithm = choose(library, &description, &layouts)?;
        Ok(algorithm.map(|algorithm| Product {
            description,
            layouts,
            algorithm,
            library: library.clone(),
        }))
    }

    /// Queues it with the operands of `gemm`, whose addresses `address` tells; `what` says whose it is.
    ///
    /// # Errors
    /// Where the device refuses it.
    pub fn start(
        &self,
        queue: &Queue,
        gemm: &Gemm,
        address: impl Fn(Pointer) -> Result<u64>,
        what: impl Fn() -> String,
    ) -> Result<()> {
        let calls = &self.library.calls;
        if let Some(bias) = gemm.bias {
            let pointer = Described::CUBLASLT_MATMUL_DESC_BIAS_POINTER as u32;
            set(calls.set, &self.description, pointer, address(bias)?)?;
        }
        let at = |matrix: &Matrix| Ok::<_, Error>(address(matrix.at)? as *mut c_void);
        let (a, b, d) = (at(&gemm.a)?, at(&gemm.b)?, at(&gemm.d)?);
        let (alpha, beta) = (gemm.alpha, f32::from(u8::from(gemm.accumulate)));
        let [of_b, of_a, of_d] = self.layouts.each_ref().map(|layout| layout.0);
        // SAFETY: addresses are of live memory of the size the layouts say; factors are read before it returns.
        let status = unsafe {
            (calls.multiply)(
                self.library.handle,
                self.description.0,
                std::ptr::from_ref(&alpha).cast(),
                b,
                of_b,
                a,
                of_a,
                std::ptr::from_ref(&beta).cast(),
                d,
                of_d,
                d,
                of_d,
                &self.algorithm,
                std::ptr::null_mut(),
                WORKSPACE as usize,
                queue.0.cast(),
            )
        };
        match status {
            GOOD => Ok(()),
            _ => good(&format!("queue the product of {}", what()), status),
        }
    }
}

/// The layout of what is stored of an operand of `rows` and `columns`: its rows are columns there.
fn layout(calls: &Calls, matrix: &Matrix, (rows, columns): (u64, u64)) -> Result<Held> {
    let (rows, columns) = match matrix.transposed {
        true => (columns, rows),
        false => (rows, columns),
    };
    let format = format(matrix.dtype).map_or(0, |format| format as u32);
    Held::new("lay out a matrix", calls.unlayout, |made| {
        // SAFETY: a place to write to.
        unsafe { (calls.layout)(made, format, columns, rows, matrix.stride as i64) }
    })
}

/// Gives an attribute of `of` a value, whose type is that which the attribute has.
fn set<T>(call: Set, of: &Held, what: u32, value: T) -> Result<()> {
    let at = std::ptr::from_ref(&value).cast();
    // SAFETY: the value is read before it returns.
    good("take an attribute", unsafe {
        call(of.0, what, at, size_of::<T>())
    })
}

/// The fastest algorithm for a product; none where there is none.
fn choose(
    library: &Library,
    description: &Held,
    [b, a, d]: &[Held; 3],
) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
    let calls = &library.calls;
    let preferred = Held::new("prefer algorithms", calls.unprefer, |made| {
        // SAFETY: a place to write to.
        unsafe { (calls.prefer)(made) }
    })?;
    let whole = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
    let scheme = Preferred::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as u32;
    let workspace = Preferred::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as u32;
    set(calls.set_preferred, &preferred, scheme, whole)?;
    set(calls.set_preferred, &preferred, workspace, WORKSPACE)?;
    for aligned in [
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        set(
            calls.set_preferred,
            &preferred,
            aligned as u32,
            ALIGNED as u32,
        )?;
    }
    let mut found = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
    let mut count = 0;
    // SAFETY: all were made by the library and live; one place to write to.
    let status = unsafe {
        (calls.choose)(
            library.handle,
            description.0,
            b.0,
            a.0,
            d.0,
            d.0,
            preferred.0,
            1,
            found.as_mut_ptr(),
            &mut count,
        )
    };
    if status != GOOD || count < 1 {
        return Ok(None);
    }
    // SAFETY: zeroed is a value of it, as is what the library wrote.
    let found = unsafe { found.assume_init() };
    let usable = found.state as Status == GOOD && found.workspaceSize as u64 <= WORKSPACE;
    Ok(usable.then_some(found.algo))
}
