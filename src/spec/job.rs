//! The job: which model is trained with which batch, on what.

mod host;
mod place;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::device::Device;
use crate::spec::model::ModelSpec;
use crate::spec::units::{Bytes, parse_size};

pub use host::HostText;
pub use place::{Budget, PerPlace, Place};

/// Above this, sums of sizes in bytes could leave 64 bits.
const ELEMENT_LIMIT: u128 = 1 << 56;

/// One training step to be planned.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The model.
    pub model: ModelSpec,
    /// Positions of a sequence (T).
    pub seq: u64,
    /// Sequences of a step (B).
    pub batch: u64,
    /// The number format of weights in use and of activations.
    pub precision: Precision,
    /// The update rule.
    pub optimizer: Optimizer,
    /// Where it runs.
    pub target: Target,
}

/// An update rule, by name; which names there are is for the optimizers to say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Optimizer(pub String);

/// The number format of weights in use and of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit IEEE floats.
    F32,
    /// bfloat16, with 32-bit accumulation.
    Bf16,
    /// 16-bit IEEE floats, with 32-bit accumulation.
    Fp16,
}

/// How two runs of one job on one target may differ, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exactness {
    /// Not at all.
    Bitwise,
    /// By the order in which floats are summed.
    Rounding,
    /// By design.
    Lossy,
}

/// Where a job runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The device that computes.
    pub device: Device,
    /// The machine it is in.
    pub host: Host,
    /// Whose rules scratch memory follows.
    pub backend: Backend,
}

/// The kind of machine a program is lowered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Threads of a CPU.
    Cpu {
        /// How many.
        threads: u32,
    },
    /// A GPU.
    Cuda {
        /// Compute capability times ten.
        capability: u32,
    },
}

/// The machine a device is in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Memory in total.
    pub ram: Bytes,
    /// Share of it kept for the operating system and other programs.
    pub kept: f64,
    /// Most that may be pinned; `None`: all that is not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Bytes>,
    /// Free disk.
    pub disk: Bytes,
    /// Rate of the disk, B/s.
    pub disk_rate: f64,
    /// Rate between host and device, B/s in each direction; `None`: the device's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<f64>,
    /// Bandwidth of the memory, B/s.
    pub dram: f64,
}

impl Default for Host {
    /// A workstation: 128 GB of memory at 40 GB/s, a tenth of it kept, and 1 TB of disk at 3 GB/s.
    fn default() -> Host {
        Host {
            ram: Bytes(128 << 30),
            kept: 0.10,
            pinned: None,
            disk: Bytes(1_000_000_000_000),
            disk_rate: 3e9,
            link: None,
            dram: 40e9,
        }
    }
}

impl Host {
    /// Memory for programs: the whole less the kept share.
    pub fn usable(&self) -> Bytes {
        let kept = (self.ram.0 as f64 * self.kept).ceil() as u64;
        self.ram.saturating_sub(Bytes(kept))
    }

    /// Refuses a share, size or rate that cannot be computed with.
    ///
    /// # Errors
    /// Where `kept` is no share, a size passes 2^60 bytes, or a rate is not finite and above zero.
    pub fn check(&self) -> Result<()> {
        let next = "correct the host's description";
        if !(0.0..1.0).contains(&self.kept) {
            let why = "not a share from 0 to below 1";
            return Err(Error::value("host kept", self.kept, why, next));
        }
        let pinned = self.pinned.unwrap_or(Bytes::ZERO);
        for (what, size) in [("ram", self.ram), ("pinned", pinned), ("disk", self.disk)] {
            if size.0 > 1 << 60 {
                let why = "no machine has that many bytes";
                return Err(Error::value(format!("host {what}"), size.0, why, next));
            }
        }
        let link = self.link.unwrap_or(1.0);
        for (what, rate) in [
            ("disk_rate", self.disk_rate),
            ("link", link),
            ("dram", self.dram),
        ] {
            if !(rate.is_finite() && rate > 0.0) {
                let why = "a rate must be finite and above zero";
                return Err(Error::value(format!("host {what}"), rate, why, next));
            }
        }
        Ok(())
    }
}

/// Reads an amount of RAM. RAM is sold in powers of two, so `128GB` is 128 GiB.
///
/// # Errors
/// As [`parse_size`].
pub fn parse_ram(what: &str, text: &str) -> Result<Bytes> {
    let size = parse_size(what, text)?;
    let whole = size.decimal && size.bytes.0 >= 1_000_000_000;
    let binary = u128::from(size.bytes.0) * (1 << 30) / 1_000_000_000;
    match (whole, u64::try_from(binary)) {
        (false, _) => Ok(size.bytes),
        (true, Ok(bytes)) => Ok(Bytes(bytes)),
        (true, Err(_)) => Err(Error::value(
            what,
            text,
            "larger than 2^64 bytes",
            "give the machine's memory, such as 128GB",
        )),
    }
}

impl Precision {
    /// All formats.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Fp16];

    /// The name it is asked for by.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Fp16 => "fp16",
        }
    }

    /// Bytes of one element.
    pub const fn width(self) -> u64 {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 | Precision::Fp16 => 2,
        }
    }

    /// The device's peak rate in this format, FLOP/s; `None` where it has no path.
    pub fn peak(self, device: &Device) -> Option<f64> {
        match self {
            Precision::F32 => Some(device.peak.fp32),
            Precision::Bf16 => device.peak.bf16,
            Precision::Fp16 => device.peak.fp16,
        }
    }

    /// bf16 where the device has it, else fp16 where it has that, else f32.
    pub fn default_for(device: &Device) -> Precision {
        [Precision::Bf16, Precision::Fp16]
            .into_iter()
            .find(|p| p.peak(device).is_some())
            .unwrap_or(Precision::F32)
    }

    /// Refuses a format the device has no path for.
    ///
    /// # Errors
    /// Where the device has no path for it.
    pub fn check(self, device: &Device) -> Result<()> {
        match self.peak(device) {
            Some(_) => Ok(()),
            None => Err(Error::value(
                "precision",
                self.name(),
                format!("{} has no arithmetic for it", device.name),
                format!("use {}", Precision::default_for(device).name()),
            )),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Precision> {
        match text.trim().to_ascii_lowercase().as_str() {
            "f32" | "fp32" | "float32" => Ok(Precision::F32),
            "bf16" | "bfloat16" => Ok(Precision::Bf16),
            "fp16" | "f16" | "float16" | "half" => Ok(Precision::Fp16),
            _ => {
                let known = Precision::ALL.map(Precision::name);
                let next = "write f32, bf16 or fp16";
                Err(Error::unknown("precision", text, known, next))
            }
        }
    }
}

impl Backend {
    /// The backend of a device: its threads if it is a calibrated CPU, else CUDA.
    ///
    /// A GPU of another maker is planned by the rules of capability 8.0.
    pub fn of(device: &Device) -> Backend {
        match (device.threads, device.capability) {
            (Some(threads), None) => Backend::Cpu { threads },
            (_, capability) => Backend::Cuda {
                capability: capability.unwrap_or(80),
            },
        }
    }
}

impl Target {
    /// A device in a machine, with the backend that follows from it.
    pub fn new(device: Device, host: Host) -> Target {
        let backend = Backend::of(&device);
        Target {
            device,
            host,
            backend,
        }
    }

    /// Rate between host and device, B/s in each direction.
    pub fn link(&self) -> f64 {
        self.host.link.unwrap_or(self.device.link)
    }

    /// What a plan may fill.
    ///
    /// Gpu is the device's memory less what is reserved; Pinned what may be pinned; Pinned and Host
    /// together the machine's memory less the kept share. Unified memory is one row over all three.
    pub fn budget(&self) -> Budget {
        use Place::{Disk, Gpu, Host, Pinned};
        let device = self.device.budget();
        let host = self.host.usable();
        let disk = (vec![Disk], self.host.disk);
        let rows = match self.device.unified {
            true => vec![(vec![Gpu, Pinned, Host], device), disk],
            false => {
                let pinned = self.host.pinned.map_or(host, |pinned| pinned.min(host));
                vec![
                    (vec![Gpu], device),
                    (vec![Pinned], pinned),
                    (vec![Pinned, Host], host),
                    disk,
                ]
            }
        };
        Budget { rows }
    }
}

impl Job {
    /// Refuses a job that cannot be trained, or whose sizes could overflow.
    ///
    /// # Errors
    /// Where the sequence does not fit the model, the batch is empty, the device has no arithmetic
    /// for the precision, the host's numbers cannot be used, or a tensor would pass 2^56 elements.
    pub fn check(&self) -> Result<()> {
        let (seq, most) = (self.seq, self.model.max_positions);
        if seq == 0 || seq > most {
            let why = format!("{} takes sequences of 1 to {most} tokens", self.model.name);
            let next = format!(
                "give --seq a number from 1 to {most}, or choose a model that takes longer ones"
            );
            return Err(Error::value("sequence length", seq, why, next));
        }
        if self.batch == 0 {
            let why = "a step needs at least one sequence";
            return Err(Error::value("batch", 0, why, "give --batch 1 or more"));
        }
        self.precision.check(&self.target.device)?;
        self.target.host.check()?;
        match self.element_bound() < ELEMENT_LIMIT {
            true => Ok(()),
            false => Err(Error::value(
                "batch",
                self.batch,
                format!("at {seq} tokens each, activations would pass 2^56 elements"),
                "give a smaller --batch or --seq",
            )),
        }
    }

    /// At least as many elements as any layer's activations have: a guard against overflow, not a count.
    fn element_bound(&self) -> u128 {
        let model = &self.model;
        let wide = |x: u64| u128::from(x);
        let experts = model.experts.map_or(1, |e| wide(e.count));
        let per_token = wide(model.vocab)
            + 8 * wide(model.hidden)
            + 4 * wide(model.heads) * (wide(model.head_dim) + wide(self.seq))
            + 4 * wide(model.ffn) * experts;
        wide(self.batch)
            .saturating_mul(wide(self.seq))
            .saturating_mul(per_token)
            .saturating_mul(wide(model.layers))
    }
}
