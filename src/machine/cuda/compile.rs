//! Kernels' text compiled by NVRTC for one GPU, and kept in a folder between runs.
#![allow(unsafe_code)] // NVRTC is called

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};

use super::library::{self, Found};
use crate::error::{Error, Result};
use crate::graph::op::kernel::OPTIONS;

/// NVRTC, and the folder of what it made before.
#[derive(Debug)]
pub struct Compiler {
    nvrtc: Found,
    version: (i32, i32),
    /// How its output is asked for, and whether that is machine code rather than PTX.
    target: (String, bool),
    folder: Option<PathBuf>,
}

type Program = *mut c_void;
type Status = c_int;

/// NVRTC's answer when all is well.
const GOOD: Status = 0;

impl Compiler {
    /// NVRTC for a device of `capability`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(capability: u32) -> Result<Compiler> {
        let nvrtc = library::find("nvrtc").ok_or_else(|| {
            Error::value(
                "--device",
                "cuda",
                "NVIDIA's kernel compiler is not found (libnvrtc.so; looked in the loader's path, CUDA_HOME, CUDA_PATH, \
                 /usr/local/cuda and the active Python environment)",
                "pip install nvidia-cuda-nvrtc-cu12 into a virtual environment that is active, or set CUDA_HOME",
            )
        })?;
        let mut compiler = Compiler {
            nvrtc,
            version: (0, 0),
            target: (String::new(), false),
            folder: folder(),
        };
        compiler.version = compiler.version()?;
        compiler.target = compiler.target(capability)?;
        Ok(compiler)
    }

    /// Its version and where it was found.
    pub fn describe(&self) -> String {
        let (major, minor) = self.version;
        format!("NVRTC {major}.{minor} ({})", self.nvrtc.path.display())
    }

    fn version(&self) -> Result<(i32, i32)> {
        let ask = self
            .nvrtc
            .function::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status>("nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places to write to.
        self.good("tell its version", unsafe { ask(&mut major, &mut minor) })?;
        Ok((major, minor))
    }

    /// Machine code for the device itself where NVRTC knows it, which any driver of that major version loads; else PTX for
    /// the newest it knows that the device can run.
    fn target(&self, capability: u32) -> Result<(String, bool)> {
        let count = self
            .nvrtc
            .function::<unsafe extern "C" fn(*mut c_int) -> Status>("nvrtcGetNumSupportedArchs")?;
        let list = self
            .nvrtc
            .function::<unsafe extern "C" fn(*mut c_int) -> Status>("nvrtcGetSupportedArchs")?;
        let mut number = 0;
        // SAFETY: a place to write to.
        self.good("count GPUs", unsafe { count(&mut number) })?;
        let mut known = vec![0; number.max(0) as usize];
        // SAFETY: as many places as it said.
        self.good("list GPUs", unsafe { list(known.as_mut_ptr()) })?;
        let wanted = capability as c_int;
        let below = known.iter().copied().filter(|&c| c <= wanted).max();
        match below {
            Some(best) if best == wanted => Ok((format!("--gpu-architecture=sm_{best}"), true)),
            Some(best) => Ok((format!("--gpu-architecture=compute_{best}"), false)),
            None => {
                let why = format!("{} does not compile for it", self.describe());
                let next = "install an older NVRTC";
                Err(Error::value("compute capability", capability, why, next))
            }
        }
    }

    fn good(&self, what: &str, status: Status) -> Result<()> {
        match status {
            GOOD => Ok(()),
            _ => {
                let why = format!("it could not {what} (nvrtcResult {status})");
                Err(Error::file(&self.nvrtc.path, why, "install another NVRTC"))
            }
        }
    }

    /// What the device loads for `text`: from the folder, or compiled now.
    ///
    /// # Errors
    /// Where the text does not compile.
    pub fn compile(&self, module: &str, text: &str) -> Result<Vec<u8>> {
        let kept = self.folder.as_deref().map(|folder| self.kept(folder, text));
        if let Some(image) = kept.as_deref().and_then(read) {
            return Ok(image);
        }
        let image = self.built(module, text)?;
        if let Some(path) = kept {
            keep(&path, &image);
        }
        Ok(image)
    }

    /// The file that holds what `text` becomes: named by all that decides it.
    fn kept(&self, folder: &Path, text: &str) -> PathBuf {
        let options = self.options().join(" ");
        let (major, minor) = self.version;
        let all = format!("{major}.{minor}\n{options}\n{text}");
        folder.join(format!(
            "{:016x}{:016x}",
            hash(1, all.as_bytes()),
            hash(2, all.as_bytes())
        ))
    }

    fn options(&self) -> Vec<String> {
        let fixed = OPTIONS.map(String::from);
        fixed.into_iter().chain([self.target.0.clone()]).collect()
    }

    fn built(&self, module: &str, text: &str) -> Result<Vec<u8>> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status;
        let create = self.nvrtc.function::<Create>("nvrtcCreateProgram")?;
        let destroy = self
            .nvrtc
            .function::<unsafe extern "C" fn(*mut Program) -> Status>("nvrtcDestroyProgram")?;
        let source = text_of(text)?;
        let name = text_of(&format!("{module}.cu"))?;
        let mut program: Program = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: both texts outlive the program, which is destroyed below.
        let made = unsafe { create(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none) };
        self.good("take a text", made)?;
        let built = self.image(program, module);
        // SAFETY: the program made above.
        unsafe { destroy(&mut program) };
        built
    }

    fn image(&self, program: Program, module: &str) -> Result<Vec<u8>> {
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
        let compile = self.nvrtc.function::<Compile>("nvrtcCompileProgram")?;
        let options = self.options();
        let options = options
            .iter()
            .map(|o| text_of(o))
            .collect::<Result<Vec<_>>>()?;
        let list: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: a live program, and as many texts as are said.
        if unsafe { compile(program, list.len() as c_int, list.as_ptr()) } != GOOD {
            let log = self.bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
            let why = format!("NVRTC refused it: {}", log.to_string_lossy().trim());
            return Err(Error::value(
                "kernel",
                module,
                why,
                "report this; try another NVRTC",
            ));
        }
        match self.target.1 {
            true => self.bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
            false => self.bytes(program, "nvrtcGetPTXSize", "nvrtcGetPTX"),
        }
    }

    /// Bytes NVRTC has of a program: their number, then they.
    fn bytes(&self, program: Program, size: &str, get: &str) -> Result<Vec<u8>> {
        let size = self
            .nvrtc
            .function::<unsafe extern "C" fn(Program, *mut usize) -> Status>(size)?;
        let read = self
            .nvrtc
            .function::<unsafe extern "C" fn(Program, *mut c_char) -> Status>(get)?;
        let mut count = 0;
        // SAFETY: a live program and a place to write to.
        self.good("measure its output", unsafe { size(program, &mut count) })?;
        let mut bytes = vec![0u8; count];
        // SAFETY: as many bytes as it said.
        self.good("give its output", unsafe {
            read(program, bytes.as_mut_ptr().cast())
        })?;
        Ok(bytes)
    }
}

fn text_of(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::value("kernel", "a zero byte", "no text has one", "report this"))
}

/// The folder of compiled kernels.
fn folder() -> Option<PathBuf> {
    let given = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let cache = given("XDG_CACHE_HOME").or_else(|| Some(given("HOME")?.join(".cache")))?;
    Some(cache.join("memfit/kernels"))
}

/// What a file of the folder holds, where it is whole: eight bytes of its hash stand first.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (sum, image) = bytes.split_at_checked(8)?;
    (sum == hash(0, image).to_le_bytes()).then(|| image.to_vec())
}

/// Keeps an image: whole or not at all. Where that fails the next run compiles again, which is no error.
fn keep(path: &Path, image: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let beside = path.with_extension(format!(
        "{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let bytes = [&hash(0, image).to_le_bytes()[..], image].concat();
    let written = fs::create_dir_all(folder)
        .and_then(|()| fs::write(&beside, bytes))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
}

/// FNV-1a from a seed: equal on every machine.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes.iter().fold(start, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}
