//! Memory of exactly the planned bytes, carved by offset; and the file that stands for the disk.
#![allow(unsafe_code)] // the arena is the one place where offsets become memory

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use crate::error::{Error, Result};
use crate::spec::units::Bytes;

/// A mapping of `bytes` that ends at a page nobody may touch, so that reaching past the plan stops the process.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    mapping: *mut libc::c_void,
    mapped: usize,
}

// SAFETY: the mapping belongs to the arena alone; who may touch which part is for the machine to say.
unsafe impl Send for Arena {}
// SAFETY: as above; ranges are handed out disjoint to those that write.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `bytes`; pages are taken from the system when first touched.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn new(what: &'static str, bytes: Bytes) -> Result<Arena> {
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
        let refused = |why: std::io::Error| {
            let next = "free memory, or give a smaller --gpu or --ram";
            Error::value(
                format!("arena of the place {what}"),
                bytes,
                why.to_string(),
                next,
            )
        };
        let body = (bytes.0 as usize).next_multiple_of(page);
        let mapped = body + page;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping; the result is checked.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return Err(refused(std::io::Error::last_os_error()));
        }
        let start = mapping.cast::<u8>().wrapping_add(body - bytes.0 as usize);
        let arena = Arena {
            base: NonNull::new(start).unwrap_or(NonNull::dangling()),
            bytes: bytes.0 as usize,
            mapping,
            mapped,
        };
        // SAFETY: the last page of the mapping just made.
        let guarded =
            unsafe { libc::mprotect(mapping.cast::<u8>().add(body).cast(), page, libc::PROT_NONE) };
        if guarded != 0 {
            return Err(refused(std::io::Error::last_os_error()));
        }
        Ok(arena)
    }

    /// Its length.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.bytes as u64)
    }

    /// The pages that hold it: their address and their bytes.
    pub fn pages(&self) -> (*mut libc::c_void, usize) {
        let end = self.base.as_ptr() as usize + self.bytes;
        (self.mapping, end - self.mapping as usize)
    }

    fn at(&self, offset: u64, len: u64) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.bytes as u64),
            "{len} bytes at {offset} leave an arena of {}",
            self.bytes
        );
        self.base.as_ptr().wrapping_add(offset as usize)
    }

    /// Bytes `offset..offset + len` for reading.
    ///
    /// # Safety
    /// Nobody writes them while the slice lives: the program's checker has proved it for accesses a program makes.
    pub unsafe fn read(&self, offset: u64, len: u64) -> &[u8] {
        // SAFETY: in bounds by `at`; unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at(offset, len), len as usize) }
    }

    /// Bytes `offset..offset + len` for writing.
    ///
    /// # Safety
    /// Nobody else touches them while the slice lives.
    #[allow(clippy::mut_from_ref)] // disjointness is the program's, proved by its checker
    pub unsafe fn write(&self, offset: u64, len: u64) -> &mut [u8] {
        // SAFETY: in bounds by `at`; unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, len), len as usize) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, unmapped once.
        unsafe { libc::munmap(self.mapping, self.mapped) };
    }
}

/// The disk place: a file without a name, so that nothing is left behind however the process ends.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    folder: std::path::PathBuf,
}

impl DiskFile {
    /// A file in `folder`, unlinked at once.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn new(folder: &Path) -> Result<DiskFile> {
        let path = folder.join(format!(
            ".memfit-offload-{}-{:x}",
            std::process::id(),
            unique()
        ));
        let refused = |source| Error::io(folder, "create an offload file in", source);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(refused)?;
        std::fs::remove_file(&path).map_err(refused)?;
        Ok(DiskFile {
            file,
            folder: folder.to_path_buf(),
        })
    }

    /// Reads `into.len()` bytes at `offset`; what was never written is zero.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let more = self.file.read_at(&mut into[done..], offset + done as u64);
            match more.map_err(|e| Error::io(&self.folder, "read the offload file in", e))? {
                0 => {
                    into[done..].fill(0);
                    break;
                }
                count => done += count,
            }
        }
        Ok(())
    }

    /// Writes `from` at `offset`.
    ///
    /// # Errors
    /// Where the disk is full or fails.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.file
            .write_all_at(from, offset)
            .map_err(|e| Error::io(&self.folder, "write the offload file in", e))
    }
}

/// A number no other offload file of this process has.
fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
