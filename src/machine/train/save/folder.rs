//! A folder that is replaced in whole: written beside, then swapped in by renames, so a crash leaves one complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{FILES, PROGRESS};
use crate::error::{Error, Result};

/// A folder being replaced. Dropped before the swap, it removes what was written.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    partial: PathBuf,
}

/// What is beside a folder while it is replaced.
enum Beside {
    /// The folder as it was, while the new one is moved to its place.
    Aside,
    /// What the process of this number has written so far.
    Partial(u32),
}

impl Folder {
    /// Makes the partial folder beside `dir`, and clears what crashed processes left there.
    pub(super) fn begin(dir: &Path) -> Result<Folder> {
        let dir = absolute(dir)?;
        recover(&dir)?;
        replaceable(&dir)?;
        let parent = parent(&dir)?;
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
        clear(&dir)?;
        let partial = beside(&dir, &Beside::Partial(std::process::id()))?;
        fs::create_dir(&partial).map_err(|e| Error::io(&partial, "create", e))?;
        Ok(Folder { dir, partial })
    }

    /// The path of a file in the partial folder.
    pub(super) fn partial(&self, file: &str) -> PathBuf {
        self.partial.join(file)
    }

    /// Puts the partial folder in the place of the old one.
    pub(super) fn swap(self) -> Result<()> {
        sync(&self.partial)?;
        let denied = |e| Error::io(&self.dir, "replace", e);
        let aside = beside(&self.dir, &Beside::Aside)?;
        if self.dir.exists() {
            fs::rename(&self.dir, &aside).map_err(denied)?;
        }
        if let Err(refusal) = fs::rename(&self.partial, &self.dir) {
            recover(&self.dir)?;
            return Err(denied(refusal));
        }
        sync(parent(&self.dir)?)?;
        retire(&aside, &self.dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After the swap there is nothing of this name; before it, nothing else to do about a refusal.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// Undoes a swap that was cut short between its two renames: brings the previous save back to `dir`.
///
/// # Errors
/// Where the operating system refuses to rename it.
pub fn recover(dir: &Path) -> Result<()> {
    let dir = absolute(dir)?;
    let aside = beside(&dir, &Beside::Aside)?;
    if dir.exists() || !aside.is_dir() {
        return Ok(());
    }
    fs::rename(&aside, &dir).map_err(|e| Error::io(&dir, "restore", e))?;
    sync(parent(&dir)?)
}

/// The path from the root, so that its name and its parent are known.
fn absolute(dir: &Path) -> Result<PathBuf> {
    let denied = |e| Error::io(dir, "find", e);
    match dir.exists() {
        true => fs::canonicalize(dir).map_err(denied),
        false => std::path::absolute(dir).map_err(denied),
    }
}

fn parent(dir: &Path) -> Result<&Path> {
    dir.parent().ok_or_else(|| nameless(dir))
}

fn nameless(dir: &Path) -> Error {
    let why = "a save is swapped in beside the old one, which needs a folder with a name";
    Error::value(
        "the folder of saves",
        dir.display(),
        why,
        "give a path such as run/save",
    )
}

/// The path of something beside the folder.
fn beside(dir: &Path, what: &Beside) -> Result<PathBuf> {
    let mut name = prefix(dir)?;
    name.push(match what {
        Beside::Aside => "previous".to_string(),
        Beside::Partial(process) => format!("partial-{process}"),
    });
    Ok(parent(dir)?.join(name))
}

/// What the names of all that is beside the folder begin with.
fn prefix(dir: &Path) -> Result<OsString> {
    let mut name = OsString::from(".");
    name.push(dir.file_name().ok_or_else(|| nameless(dir))?);
    name.push(".");
    Ok(name)
}

/// Refuses to replace anything but an earlier save.
fn replaceable(dir: &Path) -> Result<()> {
    if !dir.exists() || dir.join(PROGRESS).is_file() {
        return Ok(());
    }
    let next = "name a new or empty folder, or that of an earlier save";
    if !dir.is_dir() {
        return Err(Error::file(dir, "is a file, not a folder", next));
    }
    let mut entries = fs::read_dir(dir).map_err(|e| Error::io(dir, "read", e))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::file(dir, "holds other files than a save", next)),
    }
}

/// Removes what crashed processes left beside the folder, which is complete.
fn clear(dir: &Path) -> Result<()> {
    let aside = beside(dir, &Beside::Aside)?;
    if dir.exists() {
        retire(&aside, dir)?;
    }
    let parent = parent(dir)?;
    let denied = |e| Error::io(parent, "read", e);
    for entry in fs::read_dir(parent).map_err(denied)? {
        let path = entry.map_err(denied)?.path();
        if abandoned(dir, &path)? {
            fs::remove_dir_all(&path).map_err(|e| Error::io(&path, "remove", e))?;
        }
    }
    Ok(())
}

/// Whether the path is the partial folder of a process that is no more, or of an earlier one with our number.
fn abandoned(dir: &Path, path: &Path) -> Result<bool> {
    let prefix = prefix(dir)?;
    let name = path.file_name().map(|name| name.to_string_lossy());
    let process = name.as_deref().and_then(|name| {
        let rest = name.strip_prefix(prefix.to_string_lossy().as_ref())?;
        rest.strip_prefix("partial-")?.parse::<u32>().ok()
    });
    Ok(process.is_some_and(|process| process == std::process::id() || !alive(process)))
}

/// Whether a process runs, as far as the operating system tells.
fn alive(process: u32) -> bool {
    let processes = Path::new("/proc");
    !processes.join("self").exists() || processes.join(process.to_string()).exists()
}

/// Removes a replaced save; files in it that are not of a save move to the new one.
fn retire(aside: &Path, dir: &Path) -> Result<()> {
    if !aside.is_dir() {
        return Ok(());
    }
    let denied = |e| Error::io(aside, "remove", e);
    for entry in fs::read_dir(aside).map_err(denied)? {
        let entry = entry.map_err(denied)?;
        let (path, to) = (entry.path(), dir.join(entry.file_name()));
        match FILES.iter().any(|file| entry.file_name() == *file) {
            true => fs::remove_file(&path).map_err(denied)?,
            false => fs::rename(&path, &to).map_err(denied)?,
        }
    }
    fs::remove_dir(aside).map_err(denied)
}

/// Waits until the names in a folder are on the disk.
fn sync(folder: &Path) -> Result<()> {
    let denied = |e| Error::io(folder, "write", e);
    File::open(folder)
        .map_err(denied)?
        .sync_all()
        .map_err(denied)
}
