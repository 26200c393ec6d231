//! Kernels compiled for this CPU, one library for each stem, and their launches on buffers between guards.
#![allow(unsafe_code)] // a compiled library is loaded and called

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, c_void};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use libloading::Library;
use memfit::graph::op::kernel::{Argument, Launch, THREADS};

/// The C++ compiler, where there is one; else the reason why nothing is emulated.
pub fn compiler() -> Result<String, String> {
    let name = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    let answers = Command::new(&name).arg("--version").output();
    match answers {
        Ok(output) if output.status.success() => Ok(name),
        _ => Err(format!("skipped: no C++ compiler `{name}`")),
    }
}

/// Macros that the emulator's header sets once, for all texts.
const HEADER: [&str; 4] = ["DEVICE", "DYNAMIC", "KERNEL", "SHARED"];

/// What one library is compiled from: each module's text in a namespace of its own.
fn source(modules: &BTreeMap<String, String>) -> String {
    let mut source = String::from("#include \"emulator.hpp\"\n");
    for (index, (module, text)) in modules.iter().enumerate() {
        source += &format!("#define VARIANT \"{module}\"\nnamespace v{index} {{\n{text}\n}}\n");
        source += "#undef VARIANT\n";
        let names = text.lines().filter_map(|l| l.strip_prefix("#define "));
        for name in names {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            let name = &name[..end.unwrap_or(name.len())];
            if !HEADER.contains(&name) {
                source += &format!("#undef {name}\n");
            }
        }
    }
    source
}

/// Compiles `source` unless a library of the same bytes is there.
fn compile(stem: &str, source: &str) -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let mut hash = DefaultHasher::new();
    let header = fs::read_to_string(home.join("emulator.hpp")).unwrap();
    (header, source).hash(&mut hash);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    fs::create_dir_all(&folder).unwrap();
    let made = folder.join(format!("{stem}-{:016x}.so", hash.finish()));
    if made.exists() {
        return made;
    }
    let work = tempfile::tempdir_in(&folder).unwrap();
    let (text, library) = (work.path().join("kernels.cpp"), work.path().join("out.so"));
    fs::write(&text, source).unwrap();
    let flags = "-std=c++17 -O1 -ffp-contract=off -fPIC -shared -fvisibility=hidden -fno-strict-aliasing -w";
    let mut command = Command::new(compiler().unwrap());
    command.args(flags.split(' ')).arg("-I").arg(&home);
    // Without it, what is one per library would be one for all that are loaded.
    command.args(Some("-fno-gnu-unique").filter(|_| !cfg!(target_os = "macos")));
    let output = command.arg(&text).arg("-o").arg(&library).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kernels/{stem}.cu: {errors}");
    fs::rename(&library, &made).unwrap();
    made
}

type Run =
    unsafe extern "C" fn(*const i8, *const u32, u32, u32, *mut *mut c_void, u64, *mut u8, usize);

/// The compiled kernels of one stem.
pub struct Emulator {
    library: Library,
}

impl Emulator {
    /// Compiles what these launches need, all of one stem.
    pub fn of<'a>(launches: impl IntoIterator<Item = &'a Launch>) -> Arc<Emulator> {
        static LOADED: Mutex<BTreeMap<PathBuf, Arc<Emulator>>> = Mutex::new(BTreeMap::new());
        let mut stem = "";
        let mut modules = BTreeMap::new();
        for launch in launches {
            assert!(stem.is_empty() || stem == launch.stem);
            stem = launch.stem;
            modules.insert(launch.module(), launch.text());
        }
        Emulator::load(&LOADED, compile(stem, &source(&modules)))
    }

    /// Compiles a text of its own, for a launch that stands for it.
    pub fn of_text(launch: &Launch, text: &str) -> Arc<Emulator> {
        let modules = BTreeMap::from([(launch.module(), text.to_string())]);
        let path = compile(&format!("{}-changed", launch.stem), &source(&modules));
        Emulator::load(&Mutex::default(), path)
    }

    fn load(loaded: &Mutex<BTreeMap<PathBuf, Arc<Emulator>>>, path: PathBuf) -> Arc<Emulator> {
        let mut loaded = loaded.lock().unwrap();
        let emulator = loaded.entry(path).or_insert_with_key(|path| {
            // SAFETY: the library is ours; loading it fills a table and does nothing else.
            let library = unsafe { Library::new(path) }.unwrap();
            Arc::new(Emulator { library })
        });
        emulator.clone()
    }

    /// Runs one launch under schedule `seed`; `address` tells where a pointer points.
    ///
    /// # Errors
    /// What the emulator found wrong.
    pub fn launch(
        &self,
        launch: &Launch,
        seed: u64,
        address: impl Fn(&Argument) -> *mut u8,
    ) -> Result<(), String> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let mut words: Vec<u64> = launch
            .arguments
            .iter()
            .map(|argument| match *argument {
                Argument::U32(value) => u64::from(value),
                Argument::U64(value) => value,
                Argument::F32(value) => u64::from(value.to_bits()),
                Argument::F64(value) => value.to_bits(),
                Argument::Null => 0,
                Argument::Pointer(_) => address(argument) as u64,
            })
            .collect();
        let mut arguments: Vec<*mut c_void> =
            words.iter_mut().map(|w| (w as *mut u64).cast()).collect();
        let name = CString::new(format!("{}/{}", launch.module(), launch.entry)).unwrap();
        let mut message = [0u8; 256];
        // SAFETY: the function has this signature; the arguments outlive the call, and every pointer among them points to a
        // buffer that does. A kernel that leaves its buffers writes into guards, or worse: then the test process ends.
        unsafe {
            let run = self.library.get::<Run>(b"emulator_launch").unwrap();
            run(
                name.as_ptr().cast(),
                launch.grid.as_ptr(),
                THREADS,
                launch.shared,
                arguments.as_mut_ptr(),
                seed,
                message.as_mut_ptr(),
                message.len(),
            );
        }
        let end = message.iter().position(|b| *b == 0).unwrap();
        match &message[..end] {
            [] => Ok(()),
            message => Err(String::from_utf8_lossy(message).into_owned()),
        }
    }
}
