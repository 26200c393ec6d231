//! `memfit bench`: benchmarks of the predictions.

use memfit::error::{Error, Result};

use super::Answer;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[allow(dead_code)] // read once the command is built
pub struct Args {
    /// Which one
    #[arg(value_enum)]
    pub name: Name,
    /// The smallest case only
    #[arg(long)]
    pub smoke: bool,
    /// Keep the results that are there, and run the rest
    #[arg(long)]
    pub resume: bool,
}

/// The benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// Predicted against measured memory and time.
    Agreement,
    /// Losses of training runs.
    Training,
}

/// Runs a benchmark.
///
/// # Errors
/// Always, until it is built.
pub fn bench(_args: &Args, _json: bool) -> Result<Answer> {
    let why = "is not built yet";
    Err(Error::value(
        "command",
        "bench",
        why,
        "use `memfit explain` meanwhile",
    ))
}
