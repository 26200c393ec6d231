//! A device: what it holds, how fast it is, and the file it is described in.

mod catalog;
mod check;
mod generic;
mod spelling;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::spec::units::{Bytes, Seconds, parse_size};

pub use catalog::all;

/// What context and libraries take of a device's memory where nobody measured it.
///
/// An assumption: measured contexts take 0.1 to 0.6 GiB, depending on driver and libraries.
pub const RESERVED: Bytes = Bytes(512 << 20);

/// Seconds to launch one kernel on a GPU where nobody measured it.
pub const LAUNCH: Seconds = Seconds(5e-6);

/// A device that computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The name it is sold under.
    pub name: String,
    /// The short name it is found by.
    #[serde(default)]
    pub id: String,
    /// The maker.
    #[serde(default)]
    pub vendor: String,
    /// NVIDIA's compute capability times ten: 8.9 is 89.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<u32>,
    /// Whether it stands for any card of its size.
    #[serde(default)]
    pub generic: bool,
    /// Memory a program can see in total.
    #[serde(deserialize_with = "bytes")]
    pub memory: Bytes,
    /// What context and libraries take of it.
    #[serde(default = "reserved", deserialize_with = "bytes")]
    pub reserved: Bytes,
    /// What each CPU thread keeps for itself, besides `reserved`; calibrated CPUs only.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "bytes")]
    pub slab: Bytes,
    /// Whether the CPU shares the memory.
    #[serde(default)]
    pub unified: bool,
    /// Peak memory bandwidth, B/s.
    pub bandwidth: f64,
    /// Peak arithmetic rates.
    pub peak: Peak,
    /// Practical rate between host and device, B/s in each direction.
    pub link: f64,
    /// Time to launch one kernel.
    #[serde(default = "launch")]
    pub launch: Seconds,
    /// Reached share of the roofline per op, from calibration; empty without.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub efficiency: BTreeMap<String, f64>,
    /// Measured seconds of ops, by op, format and number of threads, from calibration: pairs of the seconds at the
    /// device's peaks and the seconds taken, in ascending order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub curve: BTreeMap<String, Vec<[f64; 2]>>,
    /// Time to start a program on a calibrated CPU: the threads of its streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Seconds>,
    /// Time in which a thread of a calibrated CPU notices an event of another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<Seconds>,
    /// Threads of a calibrated CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Rate of a copy inside host memory, B/s, from calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_rate: Option<f64>,
    /// Bandwidth of the memory behind the caches of a calibrated CPU, all threads, B/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dram: Option<f64>,
    /// Rate of the disk, B/s, from calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<f64>,
    /// Times of the fixed probe at calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// What it costs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub price: Vec<Price>,
    /// Power it may draw, the highest where the maker leaves it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tdp_watts: Option<f64>,
    /// What else is known, doubts included.
    #[serde(default)]
    pub notes: String,
    /// Where the numbers come from.
    #[serde(default)]
    pub source: String,
}

/// Peak arithmetic rates without sparsity, FLOP/s; `None` where the device has no such path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    /// 32-bit floats.
    pub fp32: f64,
    /// 32-bit floats with 19 bits in products.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tf32: Option<f64>,
    /// 16-bit IEEE floats, accumulated in 32 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp16: Option<f64>,
    /// bfloat16, accumulated in 32 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16: Option<f64>,
    /// 8-bit floats, accumulated in 32 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp8: Option<f64>,
}

/// Times of a fixed matrix product and a fixed copy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The matrix product, on all threads.
    pub gemm: Seconds,
    /// The same on one thread fewer, which is what runs beside copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewer: Option<Seconds>,
    /// The copy.
    pub copy: Seconds,
}

/// A price; as good as its date.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// `launch_msrp_usd`, `street_usd` or `cloud_usd_per_hour`.
    pub kind: String,
    /// Lowest seen.
    pub low: f64,
    /// Highest seen.
    pub high: f64,
    /// Year, or year and month.
    pub date: String,
    /// A vendor data or a published log; B well known or derived; C estimate.
    pub grade: String,
}

impl Device {
    /// What a program may use: the memory less what context, libraries and threads keep; zero where they keep more.
    pub fn budget(&self) -> Bytes {
        let slabs = u64::from(self.threads.unwrap_or(0)).saturating_mul(self.slab.0);
        self.memory
            .saturating_sub(self.reserved)
            .saturating_sub(Bytes(slabs))
    }

    /// The price of the first of `kinds` that one is known of.
    pub fn price_of(&self, kinds: &[&str]) -> Option<&Price> {
        let of = |kind: &&str| self.price.iter().find(|price| price.kind == **kind);
        kinds.iter().find_map(of)
    }

    /// The same device as if a program might use no more than `most` of it.
    pub fn within(mut self, most: Bytes) -> Device {
        let kept = self.memory.saturating_sub(self.budget());
        self.memory = self.memory.min(kept + most);
        self
    }

    /// Reads the text of a device file; `origin` names it in errors.
    ///
    /// # Errors
    /// Where the text is not TOML, a field is unknown, missing or cannot be used.
    pub fn from_toml(origin: &str, text: &str) -> Result<Device> {
        let next = "correct the device file; the fields are those `memfit calibrate` writes";
        let mut device: Device =
            toml::from_str(text).map_err(|e| Error::file(origin, e.to_string().trim(), next))?;
        if device.id.is_empty() {
            device.id = device.name.to_lowercase().replace(' ', "-");
        }
        check::check(&device)?;
        Ok(device)
    }

    /// The text of a device file.
    ///
    /// # Errors
    /// Where a field cannot be used, and so could not be read back.
    pub fn to_toml(&self) -> Result<String> {
        check::check(self)?;
        toml::to_string(self).map_err(|e| {
            let next = "report it with the device's numbers";
            Error::value("device", &self.name, e.to_string(), next)
        })
    }

    /// Reads the device file at `path`.
    ///
    /// # Errors
    /// As [`Device::from_toml`], and where the file cannot be read.
    pub fn from_path(path: &Path) -> Result<Device> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        Device::from_toml(&path.display().to_string(), &text)
    }
}

/// The device a text means: a name in any usual spelling, a `.toml` file, or a size.
///
/// A decimal size of at least 1 GB, such as `24GB`, is any card sold with that much; a binary size
/// or a smaller one is exactly that many bytes, nothing reserved. Where a name leaves the memory
/// open, the smallest is taken, since a plan that fits there fits all.
///
/// ```
/// use memfit::spec::device;
/// assert_eq!(device::find("rtx4090")?.name, "GeForce RTX 4090 24GB");
/// assert_eq!(device::find("h100-80gb")?.id, "h100-sxm5-80gb");
/// assert!(device::find("24GB")?.generic);
/// # Ok::<(), memfit::error::Error>(())
/// ```
///
/// # Errors
/// Where the text means no device, or several.
pub fn find(text: &str) -> Result<Device> {
    let text = text.trim();
    match () {
        () if text.to_ascii_lowercase().ends_with(".toml") || text.contains(['/', '\\']) => {
            Device::from_path(Path::new(text))
        }
        () if generic::is_size(text) => generic::of_size(text),
        () => spelling::find(text).cloned(),
    }
}

fn reserved() -> Bytes {
    RESERVED
}

fn launch() -> Seconds {
    LAUNCH
}

fn is_zero(bytes: &Bytes) -> bool {
    *bytes == Bytes::ZERO
}

/// A number of bytes, or a size such as "24GiB".
fn bytes<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Bytes, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    match Written::deserialize(from)? {
        Written::Number(bytes) => Ok(Bytes(bytes)),
        Written::Text(text) => match parse_size("size", &text) {
            Ok(size) => Ok(size.bytes),
            Err(why) => Err(serde::de::Error::custom(why)),
        },
    }
}
