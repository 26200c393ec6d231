//! The memory of a set of programs: an arena for each place, and a file for the disk.

use std::path::Path;

use super::arena::{Arena, DiskFile};
use super::stream::Range;
use crate::error::Result;
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// The memory of a set of programs on this machine.
#[derive(Debug)]
pub struct Places {
    gpu: Arena,
    pinned: Arena,
    host: Arena,
    disk: Option<DiskFile>,
}

impl Places {
    /// Takes exactly `height` bytes of each place; the disk is an unnamed file in `folder`.
    ///
    /// # Errors
    /// Where memory or the folder is refused.
    pub fn new(height: PerPlace<Bytes>, folder: &Path) -> Result<Places> {
        let disk = (height.disk > Bytes::ZERO)
            .then(|| DiskFile::new(folder))
            .transpose()?;
        Ok(Places {
            gpu: Arena::new("gpu", height.gpu)?,
            pinned: Arena::new("pinned", height.pinned)?,
            host: Arena::new("host", height.host)?,
            disk,
        })
    }

    /// The memory of a place.
    pub fn arena(&self, place: Place) -> &Arena {
        match place {
            Place::Gpu => &self.gpu,
            Place::Pinned => &self.pinned,
            Place::Host => &self.host,
            Place::Disk => panic!("the disk is a file: it is read and written, never mapped"),
        }
    }

    fn file(&self) -> &DiskFile {
        self.disk
            .as_ref()
            .unwrap_or_else(|| panic!("a program without disk buffers touched the disk"))
    }

    /// Bytes of a place for an access of the running program.
    #[allow(unsafe_code)]
    pub fn read(&self, range: Range) -> &[u8] {
        // SAFETY: `check` proved that no write to these bytes is unordered with this read.
        unsafe { self.arena(range.place).read(range.offset, range.bytes) }
    }

    /// Bytes of a place for a write of the running program.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub fn write(&self, range: Range) -> &mut [u8] {
        // SAFETY: `check` proved that no other access to these bytes is unordered with this write.
        unsafe { self.arena(range.place).write(range.offset, range.bytes) }
    }

    /// Copies between places.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn copy(&self, from: Range, to: Range) -> Result<()> {
        match (from.place, to.place) {
            (Place::Disk, Place::Disk) => panic!("nothing copies disk to disk"),
            (Place::Disk, _) => self.file().read(from.offset, self.write(to)),
            (_, Place::Disk) => self.file().write(to.offset, self.read(from)),
            _ => {
                self.write(to).copy_from_slice(self.read(from));
                Ok(())
            }
        }
    }

    /// Overwrites with what is no number.
    pub fn poison(&self, range: Range) {
        if range.place != Place::Disk {
            self.write(range).fill(0xff); // NaN in every float format
        }
    }
}
