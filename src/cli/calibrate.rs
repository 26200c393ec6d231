//! `memfit calibrate`: this machine, measured.

use std::path::PathBuf;

use memfit::error::{Error, Result};

use super::Answer;

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
#[allow(dead_code)] // read once the command is built
pub struct Args {
    /// Write the device file here [default: print it]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Fewer repetitions
    #[arg(long)]
    pub quick: bool,
}

/// Measures this machine.
///
/// # Errors
/// Always, until it is built.
pub fn calibrate(_args: &Args, _json: bool) -> Result<Answer> {
    let why = "is not built yet";
    Err(Error::value(
        "command",
        "calibrate",
        why,
        "use a device of `memfit devices` meanwhile",
    ))
}
