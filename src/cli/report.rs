//! `memfit report`: a plan as a page, or one of its figures.

use std::path::{Path, PathBuf};

use memfit::error::{Error, Result};
use memfit::show::course::Course;
use memfit::show::explain::claim_json;
use memfit::show::figure::{Figure, WIDTHS};
use memfit::show::json;
use memfit::show::measured::Measured;
use memfit::show::report::Report;
use serde_json::Value;

use super::plan::with_pytorch;
use super::subject::{self, Subject};
use super::{Answer, DONE, MISFIT, files};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: subject::Which,
    /// What a run of the plan answered: the output of `run --json` or `validate --json`
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,
    /// One figure alone, as SVG
    #[arg(long, value_enum, value_name = "FIGURE")]
    svg: Option<Drawn>,
    /// Write to this file [default: print it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A figure of the page.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Drawn {
    /// The device's memory over the step.
    Memory,
    /// What each stream does.
    Timeline,
    /// The fastest step within less and more memory.
    Front,
    /// Each row of the budget.
    Budget,
}

impl From<Drawn> for Figure {
    fn from(drawn: Drawn) -> Figure {
        match drawn {
            Drawn::Memory => Figure::Memory,
            Drawn::Timeline => Figure::Timeline,
            Drawn::Front => Figure::Front,
            Drawn::Budget => Figure::Budget,
        }
    }
}

/// Writes the page, or the figure.
///
/// # Errors
/// Where the plan or the measurement cannot be read, or the file cannot be written.
pub fn report(args: &Args, quiet: bool) -> Result<Answer> {
    let mut subject = args.subject.open()?;
    let answer = subject.answer()?;
    let course = Course::of_step(&subject.plan, &subject.programs)?;
    let outside = Course::outside(&subject.plan, &subject.programs)?;
    let measured = args.measured.as_deref().map(read).transpose()?;
    let (line, other) = with_pytorch(&subject.plan.job);
    let json = numbers(json::plan(&answer, &subject.asked), other, &subject);
    let holds = subject.claim.as_ref().is_none_or(Vec::is_empty);
    let status = if subject.fits() && holds {
        DONE
    } else {
        MISFIT
    };
    let page = match args.svg {
        Some(drawn) => {
            let figure = Figure::from(drawn);
            let canvas = figure.draw(&answer, &course, WIDTHS[0]);
            let nothing = || {
                let next = "draw another figure, or allow the search more choices";
                Error::value(
                    "--svg",
                    format!("{figure:?}").to_lowercase(),
                    "the plan has nothing to draw",
                    next,
                )
            };
            canvas.ok_or_else(nothing)?.file(figure.label())
        }
        None => Report {
            name: &subject.name,
            answer: &answer,
            request: &subject.request,
            asked: &subject.asked,
            course: &course,
            outside: &outside,
            claim: subject.claim.as_deref(),
            measured: measured.as_ref(),
            pytorch: &line,
            json: &json,
        }
        .html(),
    };
    let text = match &args.output {
        Some(path) => {
            files::write(path, &page)?;
            written(path, page.len(), &subject)
        }
        None if quiet => String::new(),
        None => page,
    };
    Ok(Answer { text, json, status })
}

/// The numbers of the page: those of `plan --json`, without the clock's, so that equal questions have equal pages.
fn numbers(mut json: Value, pytorch: Value, subject: &Subject) -> Value {
    json["pytorch"] = pytorch;
    if let Some(search) = json["search"].as_object_mut() {
        search.remove("seconds");
    }
    if let Some(differences) = &subject.claim {
        json["claim"] = claim_json(Some(differences));
    }
    json
}

/// Reads what a run answered.
fn read(path: &Path) -> Result<Measured> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    Measured::parse(&path.display().to_string(), &text)
}

/// What was written where, and whether the plan fits.
fn written(path: &Path, bytes: usize, subject: &Subject) -> String {
    let path = path.display();
    let verdict = match subject.fits() {
        true => "fits",
        false => "does NOT fit",
    };
    let kib = bytes.div_ceil(1 << 10);
    let name = &subject.name;
    format!("{path}: {kib} KiB; the plan {verdict}: {name}\n")
}
