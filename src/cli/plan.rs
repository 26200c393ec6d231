//! `memfit plan`: the fastest plan that fits.

use std::path::PathBuf;

use memfit::error::Result;
use memfit::plan::file::PlanFile;
use memfit::search::{self, Candidate, Outcome};
use memfit::show::job::Asked;
use memfit::show::{json, text};

use super::job::JobArgs;
use super::{Answer, DONE, MISFIT, complain, files};

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Write the plan to this file, with what it is claimed to take
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Searches, saves the plan where asked, and answers.
///
/// # Errors
/// Where the job or a choice is wrong, or the file cannot be written.
pub fn plan(args: &Args) -> Result<Answer> {
    let (request, asked) = args.job.request()?;
    let answer = search::search(&request)?;
    let status = match (&answer.outcome, &args.output) {
        (Outcome::Fits(best), Some(path)) => {
            files::write(path, &saved(best, &asked)?)?;
            DONE
        }
        (Outcome::Fits(_), None) => DONE,
        (Outcome::Misfit(_), Some(path)) => {
            let path = path.display();
            complain(&format!("{path} was not written: no plan fits\n"));
            MISFIT
        }
        (Outcome::Misfit(_), None) => MISFIT,
    };
    Ok(Answer {
        text: text::plan(&answer, &request, &asked),
        json: json::plan(&answer, &asked),
        status,
    })
}

/// The text of the plan's file.
fn saved(best: &Candidate, asked: &Asked) -> Result<String> {
    let claim = best.estimate.claim();
    PlanFile::of(&best.plan, asked.text.clone(), Some(claim)).text()
}
