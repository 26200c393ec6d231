//! `memfit selftest`: a GPU held against this machine's cores.

use std::path::PathBuf;

use memfit::error::{Error, Result};
use memfit::machine::selftest;
use memfit::show;
use serde_json::json;

use super::run::Runs;
use super::{Answer, DONE, MISFIT, files, progress};

/// Arguments of `selftest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is tested
    #[arg(long, value_enum, default_value_t = Runs::Cuda)]
    pub device: Runs,
    /// Run every N-th plan only
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub every: usize,
    /// Write the report here, as JSON
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Folder of what lies on disk between uses [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub offload_dir: Option<PathBuf>,
}

/// Runs small plans of every technique on the GPU and on the CPU, and measures what the GPU reaches.
///
/// # Errors
/// Where there is no GPU.
pub fn selftest(args: &Args, quiet: bool) -> Result<Answer> {
    if args.device == Runs::Cpu {
        let why = "a CPU is what others are held against";
        return Err(Error::value("--device", "cpu", why, "give --device cuda"));
    }
    let folder = args.offload_dir.clone().unwrap_or_else(std::env::temp_dir);
    let report = selftest::selftest(args.every, &folder, &mut progress(quiet))?;
    let json = json!({ "holds": report.holds(), "report": report });
    if let Some(path) = &args.output {
        files::write(path, &format!("{json:#}\n"))?;
    }
    Ok(Answer {
        text: show::selftest::text(&report),
        status: if report.holds() { DONE } else { MISFIT },
        json,
    })
}
