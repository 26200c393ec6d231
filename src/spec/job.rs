//! The job: places and backends.
use serde::{Deserialize, Serialize};
use std::ops::{Index, IndexMut};

/// Where bytes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Device memory.
    Gpu,
    /// Page-locked host memory.
    Pinned,
    /// Pageable host memory.
    Host,
    /// A file.
    Disk,
}
impl Place {
    /// All places.
    pub const ALL: [Place; 4] = [Place::Gpu, Place::Pinned, Place::Host, Place::Disk];
}
/// One value per place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PerPlace<T> {
    /// Device memory.
    pub gpu: T,
    /// Page-locked host memory.
    pub pinned: T,
    /// Pageable host memory.
    pub host: T,
    /// Disk.
    pub disk: T,
}
impl<T> Index<Place> for PerPlace<T> {
    type Output = T;
    fn index(&self, place: Place) -> &T {
        match place {
            Place::Gpu => &self.gpu,
            Place::Pinned => &self.pinned,
            Place::Host => &self.host,
            Place::Disk => &self.disk,
        }
    }
}
impl<T> IndexMut<Place> for PerPlace<T> {
    fn index_mut(&mut self, place: Place) -> &mut T {
        match place {
            Place::Gpu => &mut self.gpu,
            Place::Pinned => &mut self.pinned,
            Place::Host => &mut self.host,
            Place::Disk => &mut self.disk,
        }
    }
}
/// Whose kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// This machine's cores.
    Cpu {
        /// Threads of the compute stream.
        threads: u32,
    },
    /// An NVIDIA GPU.
    Cuda {
        /// Compute capability times ten.
        capability: u32,
    },
}
