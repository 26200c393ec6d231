//! Where the members of a zip file begin: its central directory, with the 64-bit extension (APPNOTE 6.3, 4.3 and 4.5.3).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Bytes of the end record without its comment, and the longest comment.
const END: usize = 22;
const COMMENT: usize = 0xffff;
/// A directory longer than this is not of a file of weights.
const DIRECTORY_LIMIT: u64 = 64 << 20;
/// Stands where the number is in the 64-bit extension.
const WIDE: u32 = u32::MAX;

/// A file within the zip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// First byte of its data.
    pub start: u64,
    /// Bytes of its data.
    pub bytes: u64,
    /// Whether the data are not stored as they are.
    pub compressed: bool,
}

/// The members by name.
pub(super) fn members(path: &Path, file: &File) -> Result<BTreeMap<String, Member>> {
    let length = file
        .metadata()
        .map_err(|e| Error::io(path, "read", e))?
        .len();
    let zip = Zip { file, length };
    zip.members().ok_or_else(|| {
        let why = "not a complete zip file, as PyTorch has written since 1.6";
        Error::file(path, why, "download it again, or convert it to safetensors")
    })
}

/// An open zip file; what is not where it should be is `None`.
struct Zip<'a> {
    file: &'a File,
    length: u64,
}

impl Zip<'_> {
    fn bytes(&self, at: u64, count: u64) -> Option<Vec<u8>> {
        if at.checked_add(count)? > self.length {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(count).ok()?];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    fn members(&self) -> Option<BTreeMap<String, Member>> {
        let (at, bytes) = self.directory()?;
        let directory = self.bytes(at, bytes.min(DIRECTORY_LIMIT))?;
        let (mut rest, mut members) = (directory.as_slice(), BTreeMap::new());
        while number(rest, 0, 4) == Some(0x0201_4b50) {
            let (name, extra) = (number(rest, 28, 2)?, number(rest, 30, 2)?);
            let end = 46 + name + extra + number(rest, 32, 2)?;
            let record = rest.get(..end as usize)?;
            let (name, member) = self.member(record, name as usize)?;
            members.insert(name, member);
            rest = rest.get(end as usize..)?;
        }
        Some(members)
    }

    /// Start and length of the central directory.
    fn directory(&self) -> Option<(u64, u64)> {
        let tail = self.length.min((END + COMMENT) as u64);
        let base = self.length - tail;
        let bytes = self.bytes(base, tail)?;
        let at = (0..=bytes.len().checked_sub(END)?)
            .rev()
            .find(|at| number(&bytes, *at, 4) == Some(0x0605_4b50))?;
        if let Some(wide) = self.wide_directory(base + at as u64) {
            return Some(wide);
        }
        Some((number(&bytes, at + 16, 4)?, number(&bytes, at + 12, 4)?))
    }

    /// The same from the 64-bit end record, whose locator stands before the end record at `end`.
    fn wide_directory(&self, end: u64) -> Option<(u64, u64)> {
        let locator = self.bytes(end.checked_sub(20)?, 20)?;
        (number(&locator, 0, 4)? == 0x0706_4b50).then_some(())?;
        let record = self.bytes(number(&locator, 8, 8)?, 56)?;
        (number(&record, 0, 4)? == 0x0606_4b50).then_some(())?;
        Some((number(&record, 48, 8)?, number(&record, 40, 8)?))
    }

    /// The member of one record of the directory.
    fn member(&self, record: &[u8], name: usize) -> Option<(String, Member)> {
        let text = String::from_utf8_lossy(record.get(46..46 + name)?).into_owned();
        let extra = 46 + name..46 + name + number(record, 30, 2)? as usize;
        let mut wide = extension(record.get(extra)?).into_iter();
        let mut field = |at| match number(record, at, 4)? {
            n if n == u64::from(WIDE) => wide.next(),
            n => Some(n),
        };
        let (bytes, _stored, local) = (field(24)?, field(20)?, field(42)?);
        let header = self.bytes(local, 30)?;
        (number(&header, 0, 4)? == 0x0403_4b50).then_some(())?;
        let skip = 30 + number(&header, 26, 2)? + number(&header, 28, 2)?;
        let compressed = number(record, 10, 2)? != 0;
        let start = local.checked_add(skip)?;
        let fits = start.checked_add(bytes)? <= self.length || compressed;
        fits.then_some((
            text,
            Member {
                start,
                bytes,
                compressed,
            },
        ))
    }
}

/// The numbers of the 64-bit extension among the extra fields.
fn extension(mut extra: &[u8]) -> Vec<u64> {
    while let (Some(id), Some(size)) = (number(extra, 0, 2), number(extra, 2, 2)) {
        let body = extra.get(4..4 + size as usize).unwrap_or_default();
        if id == 1 {
            let numbers = body.chunks_exact(8).filter_map(|c| number(c, 0, 8));
            return numbers.collect();
        }
        extra = extra.get(4 + size as usize..).unwrap_or_default();
    }
    Vec::new()
}

/// The little-endian number of `size` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}
