//! The machine around a device as it is written: sizes and rates as text, each of which may be left out.

use std::collections::BTreeSet;

use super::{Host, parse_ram};
use crate::error::Result;
use crate::spec::units::{parse_rate, parse_size};

/// The machine's values as given; what is `None` comes from elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostText {
    /// Memory, such as `128GB`.
    pub ram: Option<String>,
    /// Most of it that may be pinned.
    pub pinned: Option<String>,
    /// Free disk.
    pub disk: Option<String>,
    /// Rate of the disk, such as `3GB/s`.
    pub disk_rate: Option<String>,
    /// Rate between host and device in each direction.
    pub link: Option<String>,
    /// Bandwidth of the memory.
    pub dram: Option<String>,
}

/// A value, if its text can be read.
fn read<T>(
    flag: &'static str,
    text: Option<&String>,
    by: fn(&str, &str) -> Result<T>,
) -> Result<Option<T>> {
    text.map(|text| by(flag, text)).transpose()
}

impl HostText {
    /// The machine: what is given, else what `base` says.
    ///
    /// # Errors
    /// Where a size or rate cannot be read.
    pub fn open(&self, base: Host) -> Result<Host> {
        let size = |what: &str, text: &str| parse_size(what, text).map(|size| size.bytes);
        Ok(Host {
            ram: read("--ram", self.ram.as_ref(), parse_ram)?.unwrap_or(base.ram),
            kept: base.kept,
            pinned: read("--pinned", self.pinned.as_ref(), parse_ram)?.or(base.pinned),
            disk: read("--disk", self.disk.as_ref(), size)?.unwrap_or(base.disk),
            disk_rate: read("--disk-rate", self.disk_rate.as_ref(), parse_rate)?
                .unwrap_or(base.disk_rate),
            link: read("--link", self.link.as_ref(), parse_rate)?.or(base.link),
            dram: read("--dram", self.dram.as_ref(), parse_rate)?.unwrap_or(base.dram),
        })
    }

    /// Each value that is given: its name in plan files, the argument that sets it, its text.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        let all = [
            ("ram", "--ram", &self.ram),
            ("pinned", "--pinned", &self.pinned),
            ("disk", "--disk", &self.disk),
            ("disk_rate", "--disk-rate", &self.disk_rate),
            ("link", "--link", &self.link),
            ("dram", "--dram", &self.dram),
        ];
        let given = all.into_iter();
        given.filter_map(|(name, flag, text)| Some((name, flag, text.as_deref()?)))
    }

    /// Names of the values that are given.
    pub fn given(&self) -> BTreeSet<&'static str> {
        self.values().map(|(name, ..)| name).collect()
    }
}
