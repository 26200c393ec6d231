//! An NVIDIA GPU measured as a device: what products, memory and link reach, and what each op reaches of that.

use std::collections::BTreeMap;

use super::Options;
use super::ops::{self, Launch, Samples};
use crate::error::Result;
use crate::graph::Stream;
use crate::machine::cuda::ceilings::{Ceilings, ceilings};
use crate::machine::cuda::driver::{Gpu, Room};
use crate::machine::probe::median;
use crate::machine::sim::ideal_seconds;
use crate::spec::device::{Device, Peak};
use crate::spec::job::{Backend, Precision};
use crate::spec::units::Seconds;

/// Launches within this factor of an op's largest are taken together.
const NEAR: f64 = 0.5;

/// An op that takes less than so many times a launch alone tells nothing of its share: it is left out, and what is assumed of it stays.
const SEEN: f64 = 2.0;

/// What crosses the link, and is no kernel.
const OUTSIDE: [&str; 2] = ["feed.", "report."];

/// Measures the first GPU: its ceilings, then the share of them that each op reaches at its largest size in training runs.
///
/// # Errors
/// Where there is no GPU or no compiler of kernels, or a run fails.
pub fn calibrate_gpu(options: &Options, progress: &mut dyn FnMut(&str, f64)) -> Result<Device> {
    let gpu = Gpu::open()?;
    let room = gpu.room()?;
    progress("ceilings", 0.0);
    let mut device = device(&gpu, room, ceilings(&gpu)?);
    let backend = Backend::Cuda {
        capability: gpu.capability,
    };
    let runs = ops::runs_of_gpu(options.quick)?;
    let runs: Vec<_> = runs
        .iter()
        .flat_map(|run| Precision::ALL.map(|precision| (run, precision)))
        .collect();
    let mut found: BTreeMap<String, Vec<Launch>> = BTreeMap::new();
    for (done, (run, precision)) in runs.iter().enumerate() {
        let share = 0.1 + 0.9 * done as f64 / runs.len() as f64;
        progress(&format!("training {}", run.model.name), share);
        let mut around = Samples::default();
        let folder = &options.folder;
        let launches = ops::launches(run, *precision, backend, &device, folder, &mut around)?;
        for (stream, key, launch) in launches {
            if stream == Stream::Compute && !OUTSIDE.iter().any(|name| key.starts_with(name)) {
                found.entry(key).or_default().push(launch);
            }
        }
    }
    for (key, launches) in found {
        if let Some(share) = reached(&launches, &device) {
            device.efficiency.insert(key, share);
        }
    }
    progress("done", 1.0);
    Ok(device)
}

/// The share of the ceilings that an op reaches at its largest size, its launches apart: the middle of those near it; none where they are
/// most of it. What is held in the device's cache may pass the ceiling of its memory: that counts as all of it.
fn reached(launches: &[Launch], device: &Device) -> Option<f64> {
    let queued = |l: &Launch| l.kernels as f64 * device.launch.0;
    let ideal = |l: &Launch| ideal_seconds(l.work, l.dtype, device);
    let most = launches.iter().map(ideal).fold(0.0, f64::max);
    let large = launches.iter();
    let large = large.filter(|l| ideal(l) >= NEAR * most && l.seconds >= SEEN * queued(l));
    let shares: Vec<f64> = large
        .map(|l| ideal(l) / (l.seconds - queued(l)).max(ideal(l)))
        .collect();
    (most > 0.0 && !shares.is_empty()).then(|| median(shares))
}

/// The device without its ops.
fn device(gpu: &Gpu, room: Room, found: Ceilings) -> Device {
    Device {
        name: gpu.name.clone(),
        id: "this-gpu".into(),
        vendor: "NVIDIA".into(),
        capability: Some(gpu.capability),
        generic: false,
        memory: room.total,
        reserved: room.total.saturating_sub(room.free),
        slab: Default::default(),
        unified: false,
        bandwidth: found.copy,
        peak: Peak {
            fp32: found.product_f32,
            tf32: None,
            fp16: Some(found.product_fp16),
            bf16: Some(found.product_bf16),
            fp8: None,
        },
        link: found.to_device.min(found.to_host),
        launch: Seconds(found.launch),
        efficiency: BTreeMap::new(),
        curve: BTreeMap::new(),
        start: None,
        wake: None,
        threads: None,
        copy_rate: None,
        dram: None,
        disk_rate: None,
        probe: None,
        price: Vec::new(),
        tdp_watts: None,
        notes: notes(found),
        source: "measured by `memfit calibrate --device cuda`".into(),
    }
}

fn notes(found: Ceilings) -> String {
    let memory = match found.pinned {
        true => "pinned",
        false => "pageable (it could not be pinned)",
    };
    format!(
        "peaks: the best square products, cuBLASLt's where it is found and else of memfit's own kernel, which other libraries may pass; efficiency: of ops that took more than their launch; bandwidth: a copy within the device, read \
         and written; link: the slower way of copies of {memory} memory, both at once reached {:.2} GB/s together; reserved: what the \
         context and other programs held",
        found.both / 1e9
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::op::Work;
    use crate::graph::tensor::DType;

    #[test]
    fn a_share_is_of_the_largest_launches_and_none_of_those_that_are_launches_alone() -> Result<()>
    {
        let mut device = crate::spec::device::find("h100-80gb")?;
        (device.bandwidth, device.launch) = (1e12, Seconds(1e-5));
        let of = |megabytes: u64, (kernels, seconds): (u64, f64)| Launch {
            kernels,
            work: Work {
                matmul: 0,
                vector: 0,
                bytes: megabytes << 20,
            },
            dtype: DType::Bf16,
            seconds,
            raw: seconds,
        };
        let ideal = |megabytes: u64| (megabytes << 20) as f64 / 1e12;
        let half = of(1000, (3, 3e-5 + 2.0 * ideal(1000)));
        let slow = of(10, (1, 1e-5 + 20.0 * ideal(10)));
        let share = |launches: &[Launch]| reached(launches, &device);
        assert!(share(&[half, slow]).is_some_and(|s| (s - 0.5).abs() < 1e-9));
        assert_eq!(share(&[of(1000, (1, ideal(500)))]), Some(1.0));
        assert_eq!(share(&[of(1, (1, 1.5e-5))]), None);
        assert_eq!(share(&[]), None);
        Ok(())
    }
}
