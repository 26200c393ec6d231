//! Seconds of a PyTorch step: its counted work on a device's rooflines, with efficiencies fitted on published runs.
//!
//! Kernels run one after the other, so their times are summed: a matrix product takes its arithmetic or its bytes, whichever is longer,
//! everything else its bytes. Python and the autograd engine launch them ahead of the device; a part of the step in which launching takes
//! longer is as long as that takes.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::program::eager::{EagerPhase, Products, Unit, Work};
use crate::spec::device::Device;
use crate::spec::units::Seconds;

/// The table in use.
const TABLE: &str = include_str!("../../models/speed/torch.toml");

/// What of a device's peaks PyTorch reaches, and what a launch costs the host. All but `link` are fitted (`memfit compare --fit`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Efficiency {
    /// Share of the 16-bit rate in matrix products.
    pub half: f64,
    /// Share of the 32-bit rate in matrix products.
    pub single: f64,
    /// Share of the 16-bit rate in fused attention.
    pub attention: f64,
    /// Share of the 32-bit rate in fused attention.
    pub attention_single: f64,
    /// Share of the bandwidth.
    pub moved: f64,
    /// Share of the bandwidth in the kernel that unpacks 4-bit weights.
    pub unpacked: f64,
    /// Seconds of the host for a kernel that the autograd engine or an optimizer launches.
    pub launch: f64,
    /// Seconds of the host for a kernel that Python's model code asks for.
    pub call: f64,
    /// Share of the link's rate in a copy to or from memory that is not pinned.
    pub link: f64,
}

/// Number of fitted efficiencies.
pub const FITTED: usize = 8;

impl Efficiency {
    /// What is known before any run of this kind: libraries' products reach two thirds to four fifths of the peak and streaming kernels four
    /// fifths of the bandwidth; flash attention, forward and backward together, two fifths to a half (Dao 2023, figure 4: A100); an operator
    /// costs the host 10 µs and more. `link`: copies through a staging buffer. A fit moves from here as far as its runs ask for.
    pub const PRIOR: Efficiency = Efficiency {
        half: 0.7,
        single: 0.8,
        attention: 0.4,
        attention_single: 0.3,
        moved: 0.8,
        unpacked: 0.5,
        launch: 12e-6,
        call: 25e-6,
        link: 0.5,
    };

    /// Those that are fitted: shares first, then seconds.
    pub fn fitted(&self) -> [f64; FITTED] {
        let e = self;
        let shares = [e.half, e.single, e.attention, e.attention_single];
        let [a, b, c, d] = shares;
        [a, b, c, d, e.moved, e.unpacked, e.launch, e.call]
    }

    /// With these in the order of [`Efficiency::fitted`].
    #[must_use]
    pub fn with(&self, fitted: [f64; FITTED]) -> Efficiency {
        let [
            half,
            single,
            attention,
            attention_single,
            moved,
            unpacked,
            launch,
            call,
        ] = fitted;
        Efficiency {
            half,
            single,
            attention,
            attention_single,
            moved,
            unpacked,
            launch,
            call,
            link: self.link,
        }
    }
}

/// How far predicted times are off, as shares of what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// Half of the errors are at most this.
    pub median: f64,
    /// Nine in ten are.
    pub p90: f64,
}

/// A source of runs, and how far its times are off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its runs.
    pub runs: usize,
    /// Whether they take part in the fit.
    pub fitted: bool,
    /// With the table as it is.
    pub in_sample: Accuracy,
    /// With a table fitted without this source.
    pub held_out: Accuracy,
}

/// The fitted table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The efficiencies.
    pub efficiency: Efficiency,
    /// Errors over all runs.
    pub in_sample: Accuracy,
    /// Errors over all runs, each predicted without its source.
    pub held_out: Accuracy,
    /// The same by source.
    pub source: Vec<Source>,
}

impl Table {
    /// The table that is built in.
    pub fn built_in() -> &'static Table {
        static BUILT_IN: LazyLock<Table> = LazyLock::new(|| {
            Table::from_toml("models/speed/torch.toml", TABLE).unwrap_or(Table {
                efficiency: Efficiency::PRIOR,
                in_sample: Accuracy::default(),
                held_out: Accuracy::default(),
                source: Vec::new(),
            })
        });
        &BUILT_IN
    }

    /// Reads a table; `origin` names it in errors.
    ///
    /// # Errors
    /// Where the text is not TOML, or an efficiency cannot be.
    pub fn from_toml(origin: &str, text: &str) -> Result<Table> {
        let next = "write it again with memfit compare FILE.jsonl --fit";
        let table: Table =
            toml::from_str(text).map_err(|e| Error::file(origin, e.to_string().trim(), next))?;
        let e = &table.efficiency;
        let shares = [e.half, e.single, e.attention, e.attention_single];
        let shares = shares.into_iter().chain([e.moved, e.unpacked, e.link]);
        let whole = shares.into_iter().all(|share| share > 0.0 && share <= 1.0);
        let costs = [e.launch, e.call].iter().all(|s| (0.0..1.0).contains(s));
        match whole && costs {
            true => Ok(table),
            false => {
                let why =
                    "an efficiency is above 0 and at most 1, a launch takes less than a second";
                Err(Error::file(origin, why, next))
            }
        }
    }
}

/// The work of one part of a step in seconds at a device's peaks.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    half: Vec<[f64; 2]>,
    single: Vec<[f64; 2]>,
    attention: f64,
    attention_single: f64,
    moved: f64,
    unpacked: f64,
    link: f64,
    launches: f64,
    calls: f64,
}

/// A step on a device's rooflines, its efficiencies not yet chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Rooflines {
    parts: BTreeMap<EagerPhase, Part>,
    /// What the host and the link do beside the backward pass.
    beside: f64,
}

impl Rooflines {
    /// Work on a device; `beside` takes so many seconds while the backward pass runs.
    pub fn new(work: &BTreeMap<EagerPhase, Work>, device: &Device, beside: Seconds) -> Rooflines {
        let parts = work
            .iter()
            .map(|(phase, work)| (*phase, Part::new(work, device)));
        Rooflines {
            parts: parts.collect(),
            beside: beside.0,
        }
    }

    /// Seconds of each part.
    pub fn phases(&self, e: &Efficiency) -> BTreeMap<EagerPhase, Seconds> {
        let seconds = |(phase, part): (&EagerPhase, &Part)| {
            let own = part.device(e).max(part.host(e));
            let longest = match phase {
                EagerPhase::Backward => own.max(self.beside),
                _ => own,
            };
            (*phase, Seconds(longest))
        };
        self.parts.iter().map(seconds).collect()
    }

    /// Seconds of the step.
    pub fn seconds(&self, e: &Efficiency) -> Seconds {
        Seconds(self.phases(e).values().map(|s| s.0).sum())
    }

    /// The share of the step in which the device waits for launches.
    pub fn launch_bound(&self, e: &Efficiency) -> f64 {
        let waits = |part: &Part| (part.host(e) - part.device(e)).max(0.0);
        let all = self.seconds(e).0;
        let waiting: f64 = self.parts.values().map(waits).sum();
        if all > 0.0 { waiting / all } else { 0.0 }
    }
}

impl Part {
    fn new(work: &Work, device: &Device) -> Part {
        let peak = &device.peak;
        let half = peak.bf16.or(peak.fp16).unwrap_or(peak.fp32);
        let products = |of: &[Products], rate: f64| {
            let filled = of.iter().filter(|p| p.flops > 0);
            filled
                .map(|p| [p.flops as f64 / rate, p.bytes as f64 / device.bandwidth])
                .collect()
        };
        let amount = |unit| work.of(unit) as f64;
        Part {
            half: products(&work.half, half),
            single: products(&work.single, peak.fp32),
            attention: amount(Unit::Attention) / half,
            attention_single: amount(Unit::AttentionSingle) / peak.fp32,
            moved: amount(Unit::Moved) / device.bandwidth,
            unpacked: amount(Unit::Unpacked) / device.bandwidth,
            link: amount(Unit::Link) / device.link,
            launches: amount(Unit::Kernels) - amount(Unit::Called)
                + amount(Unit::Blocks) / f64::from(Unit::BLOCKS),
            calls: amount(Unit::Called),
        }
    }

    /// Seconds of the device.
    fn device(&self, e: &Efficiency) -> f64 {
        let products = |of: &[[f64; 2]], share: f64| -> f64 {
            of.iter()
                .map(|[flops, bytes]| (flops / share).max(bytes / e.moved))
                .sum()
        };
        products(&self.half, e.half)
            + products(&self.single, e.single)
            + self.attention / e.attention
            + self.attention_single / e.attention_single
            + self.moved / e.moved
            + self.unpacked / e.unpacked
            + self.link / e.link
    }

    /// Seconds of the host.
    fn host(&self, e: &Efficiency) -> f64 {
        self.launches * e.launch + self.calls * e.call
    }
}
