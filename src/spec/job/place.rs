//! The places a tensor may lie in, and the budget over them.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use crate::spec::units::Bytes;

/// A place a tensor may lie in, the nearest to the arithmetic first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The device's memory.
    Gpu,
    /// Host memory that the device copies from and to directly.
    Pinned,
    /// Other host memory.
    Host,
    /// Files.
    Disk,
}

impl Place {
    /// All places, the nearest first.
    pub const ALL: [Place; 4] = [Place::Gpu, Place::Pinned, Place::Host, Place::Disk];

    /// Its name in files and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Place::Gpu => "gpu",
            Place::Pinned => "pinned",
            Place::Host => "host",
            Place::Disk => "disk",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One value for each place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerPlace<T> {
    /// Of the device's memory.
    pub gpu: T,
    /// Of pinned host memory.
    pub pinned: T,
    /// Of other host memory.
    pub host: T,
    /// Of files.
    pub disk: T,
}

impl<T> PerPlace<T> {
    /// The value `of` each place.
    pub fn new(mut of: impl FnMut(Place) -> T) -> PerPlace<T> {
        PerPlace {
            gpu: of(Place::Gpu),
            pinned: of(Place::Pinned),
            host: of(Place::Host),
            disk: of(Place::Disk),
        }
    }

    /// Every value, changed.
    pub fn map<U>(self, mut to: impl FnMut(T) -> U) -> PerPlace<U> {
        PerPlace {
            gpu: to(self.gpu),
            pinned: to(self.pinned),
            host: to(self.host),
            disk: to(self.disk),
        }
    }

    /// Every place with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        Place::ALL.into_iter().map(|place| (place, &self[place]))
    }
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

/// What a plan may fill: each row bounds the sum over its places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// The rows: places, and the most they may hold together.
    pub rows: Vec<(Vec<Place>, Bytes)>,
}

impl Budget {
    /// The same with `device` bytes of the device.
    pub fn with_device(&self, device: Bytes) -> Budget {
        let mut budget = self.clone();
        let own = budget.rows.iter_mut();
        own.filter(|(places, _)| places[..] == [Place::Gpu])
            .for_each(|(_, most)| *most = device);
        budget
    }

    /// The first row that `used` passes, and by how much; `None` where it fits.
    pub fn passed(&self, used: &PerPlace<Bytes>) -> Option<(&[Place], Bytes)> {
        self.rows.iter().find_map(|(places, most)| {
            let sum: u128 = places.iter().map(|p| u128::from(used[*p].0)).sum();
            let over = sum.checked_sub(u128::from(most.0)).filter(|o| *o > 0)?;
            let over = Bytes(u64::try_from(over).unwrap_or(u64::MAX));
            Some((places.as_slice(), over))
        })
    }

    /// Whether `used` passes no row.
    pub fn fits(&self, used: &PerPlace<Bytes>) -> bool {
        self.passed(used).is_none()
    }

    /// The tightest bound on a single place.
    pub fn most(&self, place: Place) -> Bytes {
        let rows = self
            .rows
            .iter()
            .filter(|(places, _)| places.contains(&place));
        rows.map(|(_, most)| *most).min().unwrap_or(Bytes::ZERO)
    }
}
