//! From launches to curves: launches of a size are one point, and a point faster than the peaks is an error.

use std::collections::BTreeMap;

use super::ops::Launch;
use crate::error::{Error, Result};
use crate::machine::probe::median;
use crate::machine::sim::ideal_seconds;
use crate::spec::device::Device;

/// Points of a curve are at least this factor apart.
const APART: f64 = 1.6;

/// How much faster than the peaks a launch may seem because clocks and neighbours are not steady.
const NOISE: f64 = 1.15;

/// Puts the launches' curves, and the efficiency of each op at its largest size, into `device`.
pub(super) fn fit(device: &mut Device, launches: BTreeMap<String, Vec<Launch>>) -> Result<()> {
    for (key, launches) in launches {
        let point = |l: &Launch| [ideal_seconds(l.work, l.dtype, device), l.seconds];
        let raw = |l: &Launch| [ideal_seconds(l.work, l.dtype, device), l.raw];
        let (passed, curve) = (
            curve(launches.iter().map(raw).collect()),
            curve(launches.iter().map(point).collect()),
        );
        if let Some([ideal, seconds]) = passed.iter().find(|[x, y]| *x > NOISE * y) {
            let why = format!("takes {seconds:.2e} s where the machine's peaks need {ideal:.2e} s");
            let next = "its work is overcounted, or the peaks were measured while the machine was busy: calibrate again";
            return Err(Error::value("efficiency of", key, why, next));
        }
        let op = key.split('@').next().unwrap_or(&key).to_string();
        if let Some([ideal, seconds]) = curve.last() {
            let best = device.efficiency.entry(op).or_insert(0.0);
            *best = best.max((ideal / seconds).min(1.0));
            device.curve.insert(key, curve);
        }
    }
    Ok(())
}

/// Neighbouring launches merged: the middle of their seconds at the mean of their sizes.
fn curve(mut points: Vec<[f64; 2]>) -> Vec<[f64; 2]> {
    points.retain(|[x, y]| *x > 0.0 && *y > 0.0);
    points.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let mut curve = Vec::new();
    let mut rest = &points[..];
    while let Some(first) = rest.first() {
        let count = rest.partition_point(|p| p[0] < first[0] * APART);
        let (bin, more) = rest.split_at(count);
        let mean = bin.iter().map(|p| p[0]).sum::<f64>() / count as f64;
        let factor = median(bin.iter().map(|p| p[1] / p[0]).collect());
        curve.push([mean, factor * mean]);
        rest = more;
    }
    curve
}
