//! Where NVIDIA's libraries are on people's machines: the system, a CUDA toolkit, or the packages of a Python environment.
#![allow(unsafe_code)] // libraries are loaded

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;
#[cfg(unix)]
use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_NOW};

use crate::error::{Error, Result};

/// Versions that the system's loader is asked for by name, the newest first.
const MAJORS: [&str; 4] = [".13", ".12", ".11.2", ""];

/// Folders of a toolkit that hold libraries.
const TOOLKIT: [&str; 3] = ["lib64", "lib", "targets/x86_64-linux/lib"];

/// A library that was found: kept loaded, and visible to what is loaded by name later.
#[derive(Debug)]
pub struct Found {
    /// The library.
    pub library: Library,
    /// What it was loaded as.
    pub path: PathBuf,
}

impl Found {
    /// A function of it.
    ///
    /// # Errors
    /// Where it has none of that name.
    pub fn function<F: Copy>(&self, name: &str) -> Result<F> {
        // SAFETY: callers name the type that NVIDIA's header gives the function.
        let found = unsafe { self.library.get::<F>(name.as_bytes()) };
        let missing = |e: libloading::Error| {
            let why = format!("it has no {name}: {e}");
            Error::file(&self.path, why, "install a newer one")
        };
        found.map(|f| *f).map_err(missing)
    }
}

/// Loads `lib<stem>.so` of any version: from the loader's own path, else from where people have it.
pub fn find(stem: &str) -> Option<Found> {
    let named = MAJORS
        .iter()
        .map(|v| PathBuf::from(format!("lib{stem}.so{v}")));
    let lying = folders()
        .into_iter()
        .flat_map(|folder| within(&folder, stem));
    named.chain(lying).find_map(|path| load(&path))
}

fn load(path: &Path) -> Option<Found> {
    // SAFETY: NVIDIA's libraries do nothing when loaded but set themselves up.
    let library = unsafe { Unix::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok()?;
    Some(Found {
        library: library.into(),
        path: path.to_path_buf(),
    })
}

/// Files of the library in a folder, the newest version first.
fn within(folder: &Path, stem: &str) -> Vec<PathBuf> {
    let start = format!("lib{stem}.so");
    let mut found: Vec<PathBuf> = entries(folder)
        .into_iter()
        .filter(|path| name(path).is_some_and(|n| n.starts_with(&start)))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(version(path)));
    found
}

/// The numbers behind `.so` in a file's name.
fn version(path: &Path) -> Vec<u32> {
    let name = name(path).unwrap_or_default();
    let (_, numbers) = name.split_once(".so").unwrap_or_default();
    numbers.split('.').filter_map(|n| n.parse().ok()).collect()
}

fn name(path: &Path) -> Option<&str> {
    path.file_name().and_then(OsStr::to_str)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = read.map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Folders in which the libraries may lie, in the order they are looked at.
fn folders() -> Vec<PathBuf> {
    let given = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let mut found = Vec::new();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(given);
    for root in toolkits.chain([PathBuf::from("/usr/local/cuda")]) {
        found.extend(TOOLKIT.map(|below| root.join(below)));
    }
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(given);
    for root in active.chain(python()) {
        found.extend(packages(&root));
        found.push(root.join("lib"));
    }
    found
}

/// The environment of the `python3` that a shell would start, and where that leads to.
fn python() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let program = env::split_paths(&path).find_map(|folder| {
        let names = ["python3", "python"].map(|name| folder.join(name));
        names.into_iter().find(|p| p.is_file())
    });
    let Some(program) = program else {
        return Vec::new();
    };
    let root = |program: &Path| program.parent()?.parent().map(Path::to_path_buf);
    let real = program.canonicalize().ok();
    let roots = [root(&program), real.as_deref().and_then(root)];
    roots.into_iter().flatten().collect()
}

/// Library folders of the `nvidia-*` packages below a Python environment.
fn packages(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let pythons = entries(&root.join("lib")).into_iter();
    for python in pythons.filter(|p| name(p).is_some_and(|n| n.starts_with("python3"))) {
        for packages in ["site-packages", "dist-packages"] {
            let vendor = python.join(packages).join("nvidia");
            found.extend(
                entries(&vendor)
                    .into_iter()
                    .map(|package| package.join("lib")),
            );
        }
    }
    found.retain(|folder| folder.is_dir());
    found
}
