//! The link that copies are held to.

use std::time::Instant;

use memfit::error::{Error, Result};
use memfit::machine::cpu::Settings;
use memfit::plan::Plan;
use memfit::spec::units::show_rate;

/// The link this machine's copies are held to; a faster one than it can copy is refused.
pub(super) fn throttled(plan: &Plan) -> Result<Settings> {
    let wanted = plan.job.target.link();
    let reached = copy_rate(plan.job.target.host.link.unwrap_or(wanted));
    if wanted > reached {
        let why = format!("this machine copies {}", show_rate(reached));
        return Err(Error::value(
            "--link",
            show_rate(wanted),
            why,
            "give a rate below that",
        ));
    }
    Ok(Settings {
        link: Some(wanted),
        ..Settings::default()
    })
}

/// Bytes per second of a copy within this machine's memory: the best of a few, stopped early once it passes `enough`.
fn copy_rate(enough: f64) -> f64 {
    let from = vec![1u8; 32 << 20];
    let mut to = vec![0u8; 32 << 20];
    let mut best: f64 = 0.0;
    for _ in 0..8 {
        let begin = Instant::now();
        to.copy_from_slice(&from);
        best = best.max(std::hint::black_box(&to).len() as f64 / begin.elapsed().as_secs_f64());
        if best > enough {
            break;
        }
    }
    best
}
