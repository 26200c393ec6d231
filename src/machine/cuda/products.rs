//! Products of matrices by NVIDIA's cuBLASLt, where its library is found.
#![allow(unsafe_code)] // cuBLASLt is called

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::sys;
use sys::cublasLtMatmulDescAttributes_t as Described;
use sys::cublasLtMatmulPreferenceAttributes_t as Preferred;

use super::blas::{Calls, GOOD, Held, Library, Opaque, Status, good, set};
use super::driver::Queue;
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Gemm, Matrix, Pointer};
use crate::graph::tensor::DType;

/// Bytes that every operand's address is a multiple of: the most that a kernel of cuBLASLt loads at once. Buffers of programs begin at
/// multiples of more.
const ALIGNED: u64 = 16;

/// Bytes of workspace: with none, and with sums that are not split, a product is the same bits each time.
const WORKSPACE: u64 = 0;

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
        Ok(Products {
            library: Arc::new(Library::open()?),
            known: BTreeMap::new(),
        })
    }

    /// Its version and where it was found.
    pub fn describe(&self) -> String {
        self.library.describe()
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
                queue.stream.cast(),
            )
        };
        if status != GOOD && !queue.captures {
            // What failed on the device before says more.
            queue.settle()?;
        }
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
    set(calls.set_preferred, &preferred, workspace, WORKSPACE)?;
    let set = |what: u32, value: u32| set(calls.set_preferred, &preferred, what, value);
    set(scheme, whole)?;
    for aligned in [
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        set(aligned as u32, ALIGNED as u32)?;
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
