//! Plan files: found by path or name, and written whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use memfit::error::{Error, Result};
use memfit::plan::file::PlanFile;
use memfit::plan::library;

/// The plan of a name, or of a file; a name wins over a file of that name, `./name` is the file.
///
/// # Errors
/// Where there is neither, or the file is no plan.
pub fn open(text: &str) -> Result<PlanFile> {
    match library::find(text) {
        Err(unknown @ Error::Unknown { .. }) if is_name(text) => Err(unknown),
        Err(Error::Unknown { .. }) => read(Path::new(text)),
        found => found,
    }
}

/// Whether a text can only be meant as a name.
fn is_name(text: &str) -> bool {
    let path = Path::new(text);
    !path.exists() && !text.contains(['/', '\\']) && path.extension().is_none_or(|e| e != "toml")
}

fn read(path: &Path) -> Result<PlanFile> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let text = String::from_utf8(bytes).map_err(|_| {
        let next = "give a plan that `memfit plan -o FILE` wrote";
        Error::file(path, "not text", next)
    })?;
    PlanFile::parse(&path.display().to_string(), &text)
}

/// Writes a file beside its place and moves it there, so that a crash leaves the old one or the new one.
///
/// # Errors
/// Where the operating system refuses.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let denied = |e| Error::io(path, "write", e);
    // A pipe or a device is written to; only a file can be replaced.
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return fs::write(path, text).map_err(denied);
    }
    let beside = beside(path);
    let moved = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    moved.map_err(|refusal| {
        let _ = fs::remove_file(&beside);
        denied(refusal)
    })
}

/// A name in the same folder that no other process uses.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}
