//! Compiled kernels on the device, by module and entry.
#![allow(unsafe_code)] // modules are loaded, and their functions looked up and launched

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};
use rayon::prelude::*;

use super::compile::Compiler;
use super::driver::{Gpu, Queue, check};
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Launch, THREADS};

/// Dynamic shared memory a function may have without being allowed more.
const USUAL_SHARED: u32 = 48 << 10;

/// A function on the device.
#[derive(Debug, Clone, Copy)]
pub struct Function(pub(super) sys::CUfunction);

// SAFETY: a handle of the driver's, valid in every thread that uses its context.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Most parameters a kernel has.
const PARAMETERS: usize = 48;

/// Where the driver finds the value of each parameter of `launch`.
///
/// # Errors
/// Where it has more parameters than any kernel.
pub(super) fn parameters(launch: &Launch, words: &mut [u64]) -> Result<[*mut c_void; PARAMETERS]> {
    if words.len() > PARAMETERS {
        let why = format!("{} takes more than {PARAMETERS} parameters", launch.entry);
        return Err(Error::shape("kernel", why));
    }
    let mut parameters = [std::ptr::null_mut(); PARAMETERS];
    for (parameter, word) in parameters.iter_mut().zip(words) {
        *parameter = std::ptr::from_mut(word).cast();
    }
    Ok(parameters)
}

impl Function {
    /// Queues one launch, with the values of its parameters in `words`; nothing where it has no blocks. `what` says whose it is.
    ///
    /// # Errors
    /// Where the device refuses it, or it has more parameters than any kernel.
    pub fn start(
        self,
        queue: &Queue,
        launch: &Launch,
        words: &mut [u64],
        what: impl Fn() -> String,
    ) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let count = words.len();
        let mut parameters = parameters(launch, words)?;
        let [x, y, z] = launch.grid;
        // SAFETY: the function of this launch; the driver copies parameters before it returns; addresses are of live memory.
        let queued = unsafe {
            result::launch_kernel(
                self.0,
                (x, y, z),
                (THREADS, 1, 1),
                launch.shared,
                queue.stream,
                &mut parameters[..count],
            )
        };
        check(|| format!("kernel {} of {}", launch.entry, what()), queued)
    }
}

/// All modules that were loaded.
#[derive(Debug)]
pub struct Modules {
    compiler: Compiler,
    loaded: BTreeMap<String, Module>,
    functions: BTreeMap<(String, &'static str), (Function, u32)>,
}

#[derive(Debug)]
struct Module(sys::CUmodule);

// SAFETY: as for functions.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Modules {
    /// None yet, for a device.
    ///
    /// # Errors
    /// Where there is no compiler for it.
    pub fn new(gpu: &Gpu) -> Result<Modules> {
        Ok(Modules {
            compiler: Compiler::open(gpu.capability)?,
            loaded: BTreeMap::new(),
            functions: BTreeMap::new(),
        })
    }

    /// What compiles them.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// Compiles, on all cores, and loads what `launches` need and is not there.
    ///
    /// # Errors
    /// Where a text does not compile, or the device refuses it.
    pub fn load<'a>(&mut self, launches: impl Iterator<Item = &'a Launch>) -> Result<()> {
        let mut seen = BTreeSet::new();
        let missing: Vec<(String, &Launch)> = launches
            .map(|launch| (launch.module(), launch))
            .filter(|(module, _)| !self.loaded.contains_key(module) && seen.insert(module.clone()))
            .collect();
        let compiler = &self.compiler;
        let images = missing.into_par_iter().map(|(module, launch)| {
            let image = compiler.compile(&module, &launch.text())?;
            Ok((module, image))
        });
        for (module, mut image) in images.collect::<Result<Vec<_>>>()? {
            image.push(0); // PTX ends with a zero byte
            // SAFETY: an image NVRTC made, which lives until it is loaded; unloaded once, when this is dropped.
            let loaded = unsafe { result::module::load_data(image.as_ptr().cast()) };
            let loaded = check(|| format!("module {module}"), loaded)?;
            self.loaded.insert(module, Module(loaded));
        }
        Ok(())
    }

    /// The function of a launch whose module is loaded, allowed the shared memory it asks for.
    ///
    /// # Errors
    /// Where the module has no such function, or the device not so much shared memory.
    pub fn function(&mut self, launch: &Launch) -> Result<Function> {
        let key = (launch.module(), launch.entry);
        let known = self.functions.get(&key).copied();
        if let Some((function, _)) = known.filter(|(_, shared)| *shared >= launch.shared) {
            return Ok(function);
        }
        let module = self.loaded.get(&key.0).ok_or_else(|| {
            Error::value(
                "kernel",
                launch.module(),
                "it was not loaded",
                "report this plan",
            )
        })?;
        let what = || format!("kernel {}/{}", key.0, key.1);
        let entry = CString::new(launch.entry).unwrap_or_default();
        // SAFETY: a loaded module.
        let function = check(what, unsafe {
            result::module::get_function(module.0, entry)
        })?;
        if launch.shared > USUAL_SHARED {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
            // SAFETY: a function of a loaded module.
            let allowed = unsafe {
                result::function::set_function_attribute(function, SHARED, launch.shared as i32)
            };
            check(what, allowed)?;
        }
        let function = Function(function);
        self.functions
            .insert(key, (function, launch.shared.max(USUAL_SHARED)));
        Ok(function)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for module in self.loaded.values() {
            // SAFETY: loaded once; nothing runs any more.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}
