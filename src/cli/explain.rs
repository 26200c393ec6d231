//! `memfit explain`: who holds the memory of a plan, and whether its claim holds.

use std::path::PathBuf;

use memfit::error::Result;
use memfit::plan::file::PlanFile;
use memfit::show::explain::{self, Explained};
use memfit::show::job::Asked;

use super::{Answer, DONE, MISFIT, files};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A plan file, or the name of a worked plan
    plan: String,
    /// Write the plan to this file with its claim as derived now
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Derives a plan again and takes it apart.
///
/// # Errors
/// Where the plan cannot be read or applied, or the file cannot be written.
pub fn explain(args: &Args) -> Result<Answer> {
    let file = files::open(&args.plan)?;
    let plan = file.plan()?;
    let explained = Explained::new(&plan, file.claim.as_ref())?;
    if let Some(path) = &args.output {
        let claim = explained.estimate.claim();
        let renewed = PlanFile::of(&plan, file.job.clone(), Some(claim));
        files::write(path, &renewed.text()?)?;
    }
    let given = ["ram", "pinned", "disk", "disk_rate", "link", "dram"].into();
    let text = file.job;
    let asked = Asked { text, given };
    let holds = explained.fits && (explained.claim_holds() || args.output.is_some());
    Ok(Answer {
        text: explain::plan(&explained, &plan, &asked),
        json: explain::json(&explained, &plan, &asked),
        status: if holds { DONE } else { MISFIT },
    })
}
