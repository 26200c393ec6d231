//! Checks that a device's numbers can be computed with.

use super::Device;
use crate::error::{Error, Result};
use crate::spec::cost;

/// More memory than any device has; sums of a few such sizes stay inside 64 bits.
pub(super) const MEMORY_LIMIT: u64 = 1 << 60;

/// Refuses a device with a number that is no rate, no size or no time.
pub(super) fn check(device: &Device) -> Result<()> {
    if device.name.trim().is_empty() {
        return Err(bad(device, "name", "\"\"", "it is empty"));
    }
    sizes(device)?;
    rates(device)?;
    if !(device.launch.0.is_finite() && device.launch.0 >= 0.0) {
        return Err(bad(device, "launch", device.launch.0, "not a duration"));
    }
    for (field, value) in [("start", device.start), ("wake", device.wake)] {
        let value = value.map_or(0.0, |value| value.0);
        if !(value.is_finite() && value >= 0.0) {
            return Err(bad(device, field, value, "not a duration"));
        }
    }
    if device.threads == Some(0) {
        return Err(bad(device, "threads", 0, "a CPU has at least one"));
    }
    for price in &device.price {
        if !(price.low >= 0.0 && price.high >= price.low && price.high.is_finite()) {
            let range = format!("{} to {}", price.low, price.high);
            return Err(bad(device, "price", range, "not a range of prices"));
        }
        if ![cost::CLOUD, cost::STREET, cost::LAUNCH].contains(&price.kind.as_str()) {
            let why =
                "not a kind of price: these are launch_msrp_usd, street_usd and cloud_usd_per_hour";
            return Err(bad(device, "price", &price.kind, why));
        }
    }
    Ok(())
}

fn sizes(device: &Device) -> Result<()> {
    let sizes = [
        ("memory", device.memory),
        ("reserved", device.reserved),
        ("slab", device.slab),
    ];
    for (field, size) in sizes {
        if size.0 > MEMORY_LIMIT {
            return Err(bad(device, field, size.0, "no device has that many bytes"));
        }
    }
    Ok(())
}

fn rates(device: &Device) -> Result<()> {
    let peak = &device.peak;
    let probe = device.probe.as_ref();
    let single = [
        ("bandwidth", Some(device.bandwidth)),
        ("link", Some(device.link)),
        ("peak.fp32", Some(peak.fp32)),
        ("peak.tf32", peak.tf32),
        ("peak.fp16", peak.fp16),
        ("peak.bf16", peak.bf16),
        ("peak.fp8", peak.fp8),
        ("copy_rate", device.copy_rate),
        ("dram", device.dram),
        ("disk_rate", device.disk_rate),
        ("tdp_watts", device.tdp_watts),
        ("probe.gemm", probe.map(|p| p.gemm.0)),
        ("probe.fewer", probe.and_then(|p| p.fewer).map(|p| p.0)),
        ("probe.copy", probe.map(|p| p.copy.0)),
    ];
    for (field, value) in single {
        positive(device, field, value)?;
    }
    for (op, share) in &device.efficiency {
        positive(device, &format!("efficiency.{op}"), Some(*share))?;
    }
    device
        .curve
        .iter()
        .try_for_each(|(op, curve)| ascending(device, op, curve))
}

/// A curve has points, all finite and above zero, each further than the last.
fn ascending(device: &Device, op: &str, curve: &[[f64; 2]]) -> Result<()> {
    let field = format!("curve.{op}");
    for value in curve.iter().flatten() {
        positive(device, &field, Some(*value))?;
    }
    match curve.is_empty() || curve.windows(2).any(|w| w[1][0] <= w[0][0]) {
        true => Err(bad(device, &field, curve.len(), "its points do not ascend")),
        false => Ok(()),
    }
}

fn positive(device: &Device, field: &str, value: Option<f64>) -> Result<()> {
    match value {
        Some(x) if !(x.is_finite() && x > 0.0) => {
            Err(bad(device, field, x, "it must be finite and above zero"))
        }
        _ => Ok(()),
    }
}

fn bad(device: &Device, field: &str, value: impl std::fmt::Display, why: &str) -> Error {
    let name = match device.name.trim() {
        "" => "device",
        name => name,
    };
    Error::value(
        format!("{name}: {field}"),
        value,
        why,
        "correct it in the device file",
    )
}
