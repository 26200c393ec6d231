//! `memfit validate`: what was predicted against what happens on this machine.

use std::path::PathBuf;

use memfit::error::Result;
use memfit::machine::calibrate;
use memfit::machine::validate::{self, Options};
use memfit::plan::Plan;
use memfit::search::{self, Outcome};
use memfit::show::explain::Explained;
use memfit::show::{json, text, validation};
use memfit::spec::device::Device;
use serde_json::json;

use super::job::JobArgs;
use super::run::Runs;
use super::{Answer, DONE, MISFIT, files, progress};

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A plan file, or the name of a worked plan; without, one is searched for
    #[arg(required_unless_present = "model")]
    pub plan: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    /// Layers of the model that are run [default: all where this machine can, else 3]
    #[arg(long, value_name = "N")]
    pub layers: Option<u64>,
    /// Steps to run
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub steps: u64,
    /// What runs it: this machine's cores, or its first NVIDIA GPU
    #[arg(long, value_enum, default_value_t = Runs::Cpu)]
    pub device: Runs,
    /// This machine's device file, as `memfit calibrate -o FILE` wrote it: times are then predicted for it
    #[arg(long, value_name = "FILE")]
    pub here: Option<PathBuf>,
    /// Folder of what lies on disk between uses [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub offload_dir: Option<PathBuf>,
}

/// Runs a plan, as much of it as this machine can, and compares.
///
/// # Errors
/// Where the plan cannot be read or applied, or a step fails.
pub fn validate(args: &Args, quiet: bool) -> Result<Answer> {
    let (plan, stale) = match &args.plan {
        Some(name) => opened(args, name)?,
        None => {
            let (request, asked) = args.job.request()?;
            let answer = search::search(&request)?;
            match &answer.outcome {
                Outcome::Fits(best) => (best.plan.clone(), Vec::new()),
                Outcome::Misfit(_) => {
                    let (text, json) = (
                        text::plan(&answer, &request, &asked),
                        json::plan(&answer, &asked),
                    );
                    return Ok(Answer {
                        text,
                        json,
                        status: MISFIT,
                    });
                }
            }
        }
    };
    let options = Options {
        layers: args.layers,
        steps: args.steps,
        cores: calibrate::cores(),
        gpu: args.device.capability()?,
        folder: args.offload_dir.clone().unwrap_or_else(std::env::temp_dir),
        device: args.here.as_deref().map(Device::from_path).transpose()?,
    };
    let validation = validate::validate(&plan, &options, &mut progress(quiet))?;
    let holds = validation.agrees() && stale.is_empty();
    Ok(Answer {
        text: validation::text(&plan, &validation, &stale),
        json: json!({ "agrees": validation.agrees(), "claim_differences": stale, "validation": validation }),
        status: if holds { DONE } else { MISFIT },
    })
}

/// The plan of a file or name, and where its claim no longer re-derives.
fn opened(args: &Args, name: &str) -> Result<(Plan, Vec<String>)> {
    let file = files::open(name)?;
    let changed = args.job.over(&file)?;
    let plan = changed.plan()?;
    let stale = match (changed == file, &file.claim) {
        (true, Some(claim)) => Explained::new(&plan, Some(claim))?
            .claim
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    Ok((plan, stale))
}
