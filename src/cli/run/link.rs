//! The link that copies are held to.

use memfit::error::{Error, Result};
use memfit::machine::calibrate;
use memfit::machine::cpu::Settings;
use memfit::plan::Plan;
use memfit::spec::units::show_rate;

/// The link this machine's copies are held to; a faster one than it can copy is refused.
pub(super) fn throttled(plan: &Plan) -> Result<Settings> {
    let wanted = plan.job.target.link();
    let reached = calibrate::copy_rate();
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
