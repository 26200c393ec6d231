//! NVIDIA's cuBLASLt: its functions, found when it is asked for, and what it makes.
#![allow(unsafe_code)] // cuBLASLt is called

use std::ffi::{c_int, c_void};

use cudarc::cublaslt::sys;

use super::library::{self, Found};
use crate::error::{Error, Result};

/// What its functions answer.
pub type Status = c_int;
/// What it makes, as it hands it out.
pub type Opaque = *mut c_void;

/// Its answer when all is well.
pub const GOOD: Status = 0;

/// The library in use. Dropped, it gives back what it had.
#[derive(Debug)]
pub struct Library {
    pub(super) handle: Opaque,
    pub(super) calls: Calls,
    found: Found,
}

// SAFETY: a handle of cuBLASLt's may be used by any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// cuBLASLt for the device that is in use.
    ///
    /// # Errors
    /// Where it is not found or refuses its service.
    pub fn open() -> Result<Library> {
        let found = library::find("cublasLt").ok_or_else(|| {
            let why = "libcublasLt.so is not found";
            let next = "pip install nvidia-cublas-cu12 into a virtual environment that is active, or set CUDA_HOME";
            Error::value("products", "cuBLASLt", why, next)
        })?;
        let calls = Calls::of(&found)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place to write to.
        good("start", unsafe { (calls.create)(&mut handle) })?;
        Ok(Library {
            handle,
            calls,
            found,
        })
    }

    /// Its version and where it was found.
    pub fn describe(&self) -> String {
        // SAFETY: a function without parameters.
        let version = unsafe { (self.calls.version)() };
        let (major, minor) = (version / 10_000, version / 100 % 100);
        format!("cuBLASLt {major}.{minor} ({})", self.found.path.display())
    }
}

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
pub struct Calls {
    pub(super) version: unsafe extern "C" fn() -> usize,
    pub(super) create: Create,
    pub(super) destroy: Destroy,
    pub(super) describe: Describe,
    pub(super) set: Set,
    pub(super) undescribe: Destroy,
    pub(super) layout: Layout,
    pub(super) unlayout: Destroy,
    pub(super) prefer: Create,
    pub(super) set_preferred: Set,
    pub(super) unprefer: Destroy,
    pub(super) choose: Choose,
    pub(super) multiply: Multiply,
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
///
/// # Errors
/// Then.
pub fn good(what: &str, status: Status) -> Result<()> {
    match status {
        GOOD => Ok(()),
        _ => {
            let why = format!("it could not {what} (cublasStatus_t {status})");
            let next = "check the GPU with nvidia-smi, or install another cuBLAS";
            Err(Error::value("products", "cuBLASLt", why, next))
        }
    }
}

/// A thing of the library's, with what ends it once it is dropped.
#[derive(Debug)]
pub struct Held(pub(super) Opaque, Destroy);

impl Held {
    /// What `make` makes, to be ended by `end`.
    ///
    /// # Errors
    /// Where the library could not do `what`.
    pub fn new(what: &str, end: Destroy, make: impl FnOnce(&mut Opaque) -> Status) -> Result<Held> {
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

/// Gives an attribute of `of` a value, whose type is that which the attribute has.
///
/// # Errors
/// Where the library does not take it.
pub fn set<T>(call: Set, of: &Held, what: u32, value: T) -> Result<()> {
    let at = std::ptr::from_ref(&value).cast();
    // SAFETY: the value is read before it returns.
    good("take an attribute", unsafe {
        call(of.0, what, at, size_of::<T>())
    })
}
