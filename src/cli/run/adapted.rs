//! The choice that a folder of an adapter makes.

use std::path::Path;

use memfit::error::Result;
use memfit::machine::train::adapter::described;
use memfit::plan::Choice;

/// Adds to `fixed` what the folder says, unless the technique is chosen already.
pub(super) fn choose(dir: Option<&Path>, chosen: &[Choice], fixed: &mut Vec<Choice>) -> Result<()> {
    let Some(dir) = dir else {
        return Ok(());
    };
    let (_, choice) = described(dir)?;
    let mut all = chosen.iter().chain(fixed.iter());
    if !all.any(|other| other.technique == choice.technique) {
        fixed.push(choice);
    }
    Ok(())
}
