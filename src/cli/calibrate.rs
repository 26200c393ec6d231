//! `memfit calibrate`: this machine or its GPU, measured.

use std::path::PathBuf;

use memfit::error::{Error, Result};
use memfit::machine::calibrate::{self, Options};
use serde_json::json;

use super::run::Runs;
use super::{Answer, DONE, files, progress};

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is measured
    #[arg(long, value_enum, default_value_t = Runs::Cpu)]
    pub device: Runs,
    /// Write the device file here [default: print it]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Fewer repetitions
    #[arg(long)]
    pub quick: bool,
    /// Threads to measure with [default: as many as the machine has]
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
}

/// Measures this machine, or its GPU.
///
/// # Errors
/// Where a measurement fails or the file cannot be written.
pub fn calibrate(args: &Args, quiet: bool) -> Result<Answer> {
    let options = Options {
        cores: args.threads.unwrap_or_else(calibrate::cores),
        quick: args.quick,
        ..Options::default()
    };
    let device = match (args.device, args.threads) {
        (Runs::Cpu, _) => calibrate::calibrate(&options, &mut progress(quiet))?,
        (Runs::Cuda, None) => calibrate::calibrate_gpu(&options, &mut progress(quiet))?,
        (Runs::Cuda, Some(threads)) => {
            let why = "a GPU is measured, not threads of the CPU";
            let next = "leave it out, or give --device cpu";
            return Err(Error::value("--threads", threads, why, next));
        }
    };
    let text = device.to_toml()?;
    let answer = match &args.output {
        Some(path) => {
            files::write(path, &text)?;
            let here = if path.is_absolute() { "" } else { "./" };
            let path = path.display();
            format!("{} measured; use it with --gpu {here}{path}\n", device.name)
        }
        None => text,
    };
    Ok(Answer {
        text: answer,
        json: json!({ "device": device }),
        status: DONE,
    })
}
