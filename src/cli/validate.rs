//! `memfit validate`: what was predicted against what happens.

use memfit::error::{Error, Result};

use super::Answer;
use super::job::JobArgs;

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
#[allow(dead_code)] // read once the command is built
pub struct Args {
    /// A plan file, or the name of a worked plan; without, one is searched for
    #[arg(required_unless_present = "model")]
    pub plan: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    /// Layers of the model that are run
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub layers: u64,
    /// Steps to run
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub steps: u64,
}

/// Runs a plan and compares.
///
/// # Errors
/// Always, until it is built.
pub fn validate(_args: &Args, _json: bool) -> Result<Answer> {
    let why = "is not built yet";
    Err(Error::value(
        "command",
        "validate",
        why,
        "use `memfit explain` meanwhile",
    ))
}
