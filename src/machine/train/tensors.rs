//! Files of tensors: where each tensor's bytes are, read and written in place and never mapped.

mod pytorch;
mod safetensors;
mod zip;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::graph::tensor::{DType, Type};

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its lengths, outermost first.
    pub shape: Vec<u64>,
    /// Its number format, where it is one of ours.
    pub dtype: Option<DType>,
    /// The format as the file names it.
    pub format: String,
    /// First byte in the file.
    pub start: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Why it cannot be read, where the file is fine but the tensor is not.
    pub flaw: Option<String>,
}

/// A file of named tensors.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Opens a file by its ending: `.safetensors`, or PyTorch's zip of a pickle.
    ///
    /// # Errors
    /// Where it cannot be read, or its header is damaged or does not fit its length.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
        let entries = match path.extension().and_then(|ending| ending.to_str()) {
            Some("safetensors") => safetensors::entries(path, &file)?,
            Some("gguf") => {
                let why = "GGUF files are read for their architecture, not for weights to train";
                let next = "give the folder of safetensors that it was made from";
                return Err(Error::file(path, why, next));
            }
            _ => pytorch::entries(path, &file)?,
        };
        let path = path.to_path_buf();
        Ok(TensorFile {
            path,
            file,
            entries,
        })
    }

    /// Makes a safetensors file with room for `tensors`, all zero.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(path: &Path, tensors: &BTreeMap<String, Type>) -> Result<TensorFile> {
        let denied = |e| Error::io(path, "create", e);
        let (header, entries, bytes) = safetensors::layout(path, tensors)?;
        let file = File::create_new(path).map_err(denied)?;
        file.write_all_at(&header, 0).map_err(denied)?;
        file.set_len(bytes).map_err(denied)?;
        let path = path.to_path_buf();
        Ok(TensorFile {
            path,
            file,
            entries,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Fills `into` with bytes `offset..` of the tensor.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(&self, entry: &Entry, offset: u64, into: &mut [u8]) -> Result<()> {
        let at = self.position(entry, offset, into.len())?;
        let denied = |e| Error::io(&self.path, "read", e);
        self.file.read_exact_at(into, at).map_err(denied)
    }

    /// Puts `from` at bytes `offset..` of the tensor.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, entry: &Entry, offset: u64, from: &[u8]) -> Result<()> {
        let at = self.position(entry, offset, from.len())?;
        let denied = |e| Error::io(&self.path, "write", e);
        self.file.write_all_at(from, at).map_err(denied)
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn sync(&self) -> Result<()> {
        let denied = |e| Error::io(&self.path, "write", e);
        self.file.sync_all().map_err(denied)
    }

    /// The place in the file of `length` bytes of a tensor.
    fn position(&self, entry: &Entry, offset: u64, length: usize) -> Result<u64> {
        let end = offset.checked_add(length as u64);
        match end.is_some_and(|end| end <= entry.bytes) {
            true => Ok(entry.start + offset),
            false => Err(Error::file(
                &self.path,
                format!(
                    "bytes {offset}.. ({length} of them) are not within a tensor of {} bytes",
                    entry.bytes
                ),
                "use files of the same model",
            )),
        }
    }
}

/// Elements that bytes `offset..offset + length` of `name` are, if they are whole ones of its `count` elements.
///
/// # Errors
/// Where they are not.
pub(super) fn elements(
    name: &str,
    offset: u64,
    length: usize,
    dtype: DType,
    count: u64,
) -> Result<Range<u64>> {
    let (size, length) = (dtype.bytes(), length as u64);
    let whole = offset.is_multiple_of(size) && length.is_multiple_of(size);
    let start = offset / size;
    let end = start.checked_add(length / size).filter(|end| *end <= count);
    match end {
        Some(end) if whole => Ok(start..end),
        _ => Err(Error::value(
            name,
            format!("bytes {offset}.. ({length} of them)"),
            format!("they are not whole elements of its {count} ({dtype:?})"),
            "ask for bytes within it, by whole elements",
        )),
    }
}
