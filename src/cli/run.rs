//! `memfit run`: training by a plan.

use std::path::PathBuf;

use memfit::error::{Error, Result};

use super::Answer;
use super::job::JobArgs;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[allow(dead_code)] // read once the command is built
pub struct Args {
    /// A plan file, or the name of a worked plan; without, one is searched for
    pub plan: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    /// Text to train on
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Tokenizer of the text (tokenizer.json)
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Steps to train
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: u64,
    /// Learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-4)]
    pub lr: f64,
    /// How the learning rate changes after the warm-up
    #[arg(long, value_enum, default_value_t = Schedule::Constant)]
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from zero
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: u64,
    /// Weight decay of the update rule [default: the rule's own]
    #[arg(long, value_name = "DECAY")]
    pub weight_decay: Option<f64>,
    /// Seed of first values, order of the data, and dropout
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Held-out text: a file, or a share of the data such as 10%
    #[arg(long, value_name = "FILE|SHARE")]
    pub eval: Option<String>,
    /// Steps between two evaluations [default: only at the end]
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Folder to save to
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Steps between two saves [default: only at the end]
    #[arg(long, value_name = "N")]
    pub save_every: Option<u64>,
    /// Folder of a save to continue from
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// Folder of weights to start from [default: random first values]
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Threads [default: as many as the machine has]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Folder of what lies on disk between uses [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub offload_dir: Option<PathBuf>,
}

/// How the learning rate changes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls to zero along half a cosine.
    Cosine,
    /// It falls to zero along a line.
    Linear,
}

/// Trains.
///
/// # Errors
/// Always, until it is built.
pub fn run(_args: &Args, _json: bool) -> Result<Answer> {
    let why = "is not built yet";
    Err(Error::value(
        "command",
        "run",
        why,
        "use `memfit plan` meanwhile",
    ))
}
