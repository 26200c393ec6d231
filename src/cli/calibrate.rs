//! `memfit calibrate`: this machine, measured.

use std::path::PathBuf;

use memfit::error::Result;
use memfit::machine::calibrate::{self, Options};
use serde_json::json;

use super::{Answer, DONE, files, progress};

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
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

/// Measures this machine.
///
/// # Errors
/// Where a measurement fails or the file cannot be written.
pub fn calibrate(args: &Args, quiet: bool) -> Result<Answer> {
    let options = Options {
        cores: args.threads.unwrap_or_else(calibrate::cores),
        quick: args.quick,
        ..Options::default()
    };
    let device = calibrate::calibrate(&options, &mut progress(quiet))?;
    let text = device.to_toml()?;
    let answer = match &args.output {
        Some(path) => {
            files::write(path, &text)?;
            let path = path.display();
            format!("{} measured; use it with --gpu ./{path}\n", device.name)
        }
        None => text,
    };
    Ok(Answer {
        text: answer,
        json: json!({ "device": device }),
        status: DONE,
    })
}
