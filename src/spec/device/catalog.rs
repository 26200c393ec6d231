//! The devices known by name: the tables in `models/device`, embedded in the binary.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::{Device, LAUNCH, Peak, Price, RESERVED};
use crate::spec::units::Bytes;

/// The tables, in the order their devices are listed.
const TABLES: [(&str, &str); 8] = [
    (
        "nvidia-geforce",
        include_str!("../../../models/device/nvidia-geforce.toml"),
    ),
    (
        "nvidia-laptop",
        include_str!("../../../models/device/nvidia-laptop.toml"),
    ),
    (
        "nvidia-workstation",
        include_str!("../../../models/device/nvidia-workstation.toml"),
    ),
    (
        "nvidia-datacenter",
        include_str!("../../../models/device/nvidia-datacenter.toml"),
    ),
    (
        "nvidia-unified",
        include_str!("../../../models/device/nvidia-unified.toml"),
    ),
    ("amd", include_str!("../../../models/device/amd.toml")),
    ("apple", include_str!("../../../models/device/apple.toml")),
    ("intel", include_str!("../../../models/device/intel.toml")),
];

/// Share of the theoretical link rate that is reached, where no practical range is known.
const LINK_SHARE: f64 = 0.8;
/// fp32 rate over the tf32 or bf16 rate, where fp32 is not published: H100 SXM5 66.9 / 494.7, Gaudi 3 229 / 1677.
const FP32_SHARE: f64 = 0.135;

/// A device and the names it is found by.
pub(super) struct Entry {
    /// The device as planned for.
    pub(super) device: Device,
    /// Further names.
    pub(super) aliases: Vec<String>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let read = |(name, text): &(&str, &str)| match toml::from_str::<Table>(text) {
        Ok(table) => table.device,
        Err(why) => panic!("the embedded table models/device/{name}.toml is broken: {why}"),
    };
    TABLES.iter().flat_map(read).map(Row::entry).collect()
});

/// All entries, in the order they are listed.
pub(super) fn entries() -> &'static [Entry] {
    &ENTRIES
}

/// All devices known by name, in the order they are listed.
pub fn all() -> impl Iterator<Item = &'static Device> {
    ENTRIES.iter().map(|entry| &entry.device)
}

/// One file of `models/device`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    device: Vec<Row>,
}

/// One device as the tables state it; the fields are explained in `models/device/README.md`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // facts kept beside the numbers that are used
struct Row {
    id: String,
    name: String,
    #[serde(default)]
    aliases: Vec<String>,
    vendor: String,
    architecture: String,
    compute_capability: Option<String>,
    class: String,
    #[serde(default = "one")]
    logical_devices: u64,
    memory: Memory,
    peak_tflops: Rates,
    host_link: Link,
    peer_link: Option<Peer>,
    tdp_watts: [f64; 2],
    #[serde(default)]
    price: Vec<Price>,
    #[serde(default)]
    notes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // as above
struct Memory {
    nominal_gb: u64,
    usable_bytes: u64,
    usable_grade: String,
    unified: bool,
    bandwidth_bytes_per_s: u64,
    grade: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // as above
struct Rates {
    fp32: Option<f64>,
    tf32: Option<f64>,
    fp16: Option<f64>,
    bf16: Option<f64>,
    fp8: Option<f64>,
    fp16_fp16acc: Option<f64>,
    int8_tops: Option<f64>,
    grade: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // as above
struct Link {
    r#type: String,
    r#gen: Option<u32>,
    lanes: Option<u32>,
    gbps: Option<f64>,
    practical_gbps: Option<[f64; 2]>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // as above
struct Peer {
    r#type: String,
    r#gen: Option<u32>,
    total_gbps: f64,
    per_direction_gbps: f64,
    scope: String,
}

fn one() -> u64 {
    1
}

impl Row {
    fn entry(self) -> Entry {
        let aliases = self.aliases.clone();
        let device = self.device();
        Entry { device, aliases }
    }

    /// The device as planned for: one logical device of the package.
    fn device(self) -> Device {
        let parts = self.logical_devices.max(1);
        let bandwidth = self.memory.bandwidth_bytes_per_s as f64 / parts as f64;
        Device {
            capability: self.compute_capability.as_deref().and_then(capability),
            generic: false,
            memory: Bytes(self.memory.usable_bytes / parts),
            reserved: RESERVED,
            slab: Bytes::ZERO,
            unified: self.memory.unified,
            bandwidth,
            peak: self.peak_tflops.peak(parts as f64),
            link: self.host_link.rate().unwrap_or(bandwidth),
            launch: LAUNCH,
            efficiency: BTreeMap::new(),
            curve: BTreeMap::new(),
            start: None,
            wake: None,
            threads: None,
            copy_rate: None,
            dram: None,
            disk_rate: None,
            probe: None,
            price: self.price,
            tdp_watts: Some(self.tdp_watts[1] / parts as f64),
            source: format!(
                "models/device/README.md; grades: memory {}, bandwidth {}, rates {}",
                self.memory.usable_grade, self.memory.grade, self.peak_tflops.grade
            ),
            name: match parts {
                1 => self.name,
                _ => format!("{} (one of {parts} dies)", self.name),
            },
            id: self.id,
            vendor: self.vendor,
            notes: self.notes,
        }
    }
}

impl Rates {
    fn peak(&self, parts: f64) -> Peak {
        let rate = |tflops: Option<f64>| tflops.map(|t| t * 1e12 / parts);
        let (tf32, bf16) = (rate(self.tf32), rate(self.bf16));
        let near = tf32.or(bf16).unwrap_or(f64::NAN) * FP32_SHARE;
        Peak {
            fp32: rate(self.fp32).unwrap_or(near),
            tf32,
            fp16: rate(self.fp16),
            bf16,
            fp8: rate(self.fp8),
        }
    }
}

impl Link {
    /// The middle of the practical range, else a share of the theoretical rate; none with unified memory.
    fn rate(&self) -> Option<f64> {
        let share = |gbps: f64| gbps * LINK_SHARE;
        self.practical_gbps
            .map(|[low, high]| (low + high) / 2.0)
            .or(self.gbps.map(share))
            .map(|gbps| gbps * 1e9)
    }
}

/// `8.9` as 89; none for other makers' names.
fn capability(text: &str) -> Option<u32> {
    let (major, minor) = text.split_once('.')?;
    Some(major.parse::<u32>().ok()? * 10 + minor.parse::<u32>().ok()?)
}
