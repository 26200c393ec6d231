//! Calibration: this machine measured as a device, so that plans can be timed for it and checked on it.

mod curve;
mod gpu;
mod ops;
mod rates;

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::cpu::Settings;
use super::probe::{self, Probe, median};
use super::train::memory;
use crate::error::Result;
use crate::spec::device::{Device, Peak};
use crate::spec::units::{Bytes, Seconds};
pub use gpu::calibrate_gpu;
use rates::Products;
pub use rates::copy_rate;

/// Readings of the probe that everything is measured beside.
const READINGS: usize = 64;

/// How thorough a calibration is.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads of compute: this machine's cores, or as many of them as shall be used.
    pub cores: u32,
    /// Folder whose disk is measured.
    pub folder: PathBuf,
    /// Leaves out the larger models and the rarer ops: seconds instead of minutes, and curves that end early.
    pub quick: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cores: cores(),
            folder: PathBuf::from("."),
            quick: false,
        }
    }
}

/// Cores this process may use.
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Rates that are measured directly.
struct Rates {
    products: Products,
    near: f64,
    far: f64,
    copy: f64,
    disk: (f64, f64),
    slab: Bytes,
}

/// Measures this machine; `progress` hears what is under way and the share that is done.
///
/// # Errors
/// Where a run fails, the folder cannot be written, or an op seems faster than the machine's peaks, which means that its
/// work is overcounted.
pub fn calibrate(options: &Options, progress: &mut dyn FnMut(&str, f64)) -> Result<Device> {
    let cores = options.cores.max(1);
    let mut probes = [
        Probe::new(cores)?,
        Probe::new(cores.saturating_sub(1).max(1))?,
    ];
    let settled = probes.each_mut().map(|p| p.settled(READINGS));
    progress("peak rates", 0.0);
    let rates = measure(options)?;
    let mut device = device(options, &rates);
    // Everything is told at the pace of these readings, however much slower the machine is meanwhile.
    device.probe = Some(probe::reference(settled[0], settled[1]));
    let mut inner = |what: &str, share: f64| progress(what, 0.1 + 0.85 * share);
    let samples = ops::sample(&device, &options.folder, options.quick, &mut inner)?;
    progress("peak rates again", 0.96);
    device.peak = raised(device.peak, rates::products(cores)?);
    device.launch = Seconds(median(samples.gaps));
    device.start = Some(Seconds(median(samples.starts)));
    curve::fit(&mut device, samples.launches)?;
    progress("done", 1.0);
    Ok(device)
}

fn measure(options: &Options) -> Result<Rates> {
    let (near, far) = rates::triads(options.cores)?;
    Ok(Rates {
        slab: rates::slab(options.cores)?,
        products: rates::products(options.cores)?,
        near,
        far,
        copy: rates::copy_rate(),
        disk: rates::disk_rates(&options.folder)?,
    })
}

/// The device without its ops.
fn device(options: &Options, rates: &Rates) -> Device {
    let (memory, available) = memory::of_machine();
    let held = memory.saturating_sub(available);
    let Rates {
        products,
        near,
        far,
        copy,
        disk,
        slab,
    } = *rates;
    Device {
        name: format!("this machine ({} threads)", options.cores),
        id: "this-machine".into(),
        vendor: String::new(),
        capability: None,
        generic: false,
        memory,
        reserved: held + memory::resident(),
        slab,
        unified: true,
        bandwidth: near.max(far),
        peak: Peak {
            fp32: products.f32,
            tf32: None,
            fp16: Some(products.f16),
            bf16: Some(products.bf16),
            fp8: None,
        },
        link: copy,
        launch: Seconds(1e-6),
        efficiency: BTreeMap::new(),
        curve: BTreeMap::new(),
        start: None,
        wake: Some(Seconds(rates::wake())),
        threads: Some(options.cores),
        copy_rate: Some(copy),
        dram: Some(far),
        disk_rate: Some(disk.0.min(disk.1)),
        probe: None,
        price: Vec::new(),
        tdp_watts: None,
        notes: notes(options, rates),
        source: "measured by `memfit calibrate`".into(),
    }
}

fn notes(options: &Options, rates: &Rates) -> String {
    format!(
        "bandwidth: triad in the first caches; dram: triad over arrays of 192 MiB; disk_rate: the slower of writing 256 MiB \
         until it is on the device ({:.0} MB/s) and of reading it back without the page cache ({:.0} MB/s) in {}; \
         memory: the machine's, of which others held `reserved` at the time",
        rates.disk.0 / 1e6,
        rates.disk.1 / 1e6,
        options.folder.display()
    )
}

/// Peaks are the best rates seen.
fn raised(peak: Peak, again: Products) -> Peak {
    let best = |old: Option<f64>, new: f64| old.map(|old| old.max(new));
    Peak {
        fp32: peak.fp32.max(again.f32),
        fp16: best(peak.fp16, again.f16),
        bf16: best(peak.bf16, again.bf16),
        ..peak
    }
}

impl Settings {
    /// How this machine stands in for the host of `target`: its link and disk are held to the rates the target states,
    /// where this machine is faster.
    pub fn of(target: &crate::spec::job::Target) -> Settings {
        let slower = |rate: f64, own: Option<f64>| own.is_none_or(|own| rate < own).then_some(rate);
        Settings {
            link: target
                .host
                .link
                .and_then(|link| slower(link, target.device.copy_rate)),
            disk: slower(target.host.disk_rate, target.device.disk_rate),
            ..Settings::default()
        }
    }
}
