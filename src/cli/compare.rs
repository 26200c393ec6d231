//! `memfit compare`: what is predicted for PyTorch against measured runs.

use std::fs;
use std::path::{Path, PathBuf};

use memfit::error::{Error, Result};
use memfit::machine::compare::explain::Explanation;
use memfit::machine::compare::{self, Line};
use memfit::program::eager;
use memfit::show::{comparison, speeds};
use serde_json::json;

use super::{Answer, DONE, MISFIT, files, progress};

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measured runs, one JSON object a line
    #[arg(value_name = "FILE.jsonl")]
    pub file: PathBuf,
    /// List only the N records that are furthest off, the worst first
    #[arg(long, value_name = "N", conflicts_with = "explain")]
    pub worst: Option<usize>,
    /// Take the record of this id apart: what is alive at the peak, predicted and measured
    #[arg(long, value_name = "ID")]
    pub explain: Option<String>,
    /// Fit the table of step times to the speeds of these records and write it to this file, the runs beside it (.csv)
    #[arg(long, value_name = "TABLE.toml", conflicts_with_all = ["worst", "explain"])]
    pub fit: Option<PathBuf>,
}

/// Predicts every record of a file and compares.
///
/// # Errors
/// Where the file cannot be read or has no records, or the one to explain cannot be predicted.
pub fn compare(args: &Args, quiet: bool) -> Result<Answer> {
    let bytes = fs::read(&args.file).map_err(|e| Error::io(&args.file, "read", e))?;
    let lines = compare::read(&bytes);
    if lines.is_empty() {
        let next = "give a file of measured runs, one JSON object a line";
        return Err(Error::file(&args.file, "no records in it", next));
    }
    match (&args.explain, &args.fit) {
        (Some(id), _) => explain(&lines, id),
        (None, Some(path)) => fit(&lines, path, &args.file, quiet),
        (None, None) => all(&lines, args.worst, quiet),
    }
}

/// Where no record can be compared, what was asked for does not hold.
fn all(lines: &[Line], worst: Option<usize>, quiet: bool) -> Result<Answer> {
    let compared = compare::compare(lines, eager::predict, &mut progress(quiet));
    let mut json = json!(compared);
    if let Some(count) = worst {
        json["rows"] = json!(compared.worst(count));
    }
    Ok(Answer {
        text: comparison::text(&compared, worst),
        json,
        status: if compared.rows.is_empty() {
            MISFIT
        } else {
            DONE
        },
    })
}

/// Writes the fitted table and its runs.
fn fit(lines: &[Line], path: &Path, from: &Path, quiet: bool) -> Result<Answer> {
    let runs = compare::runs(lines, eager::predict, &mut progress(quiet));
    if runs.is_empty() {
        let next = "give records with `throughput` or `step_time_s`";
        return Err(Error::file(from, "no speeds in it", next));
    }
    let fit = compare::fit(&runs);
    let from = from.display().to_string();
    files::write(path, &speeds::table(&fit, &from)?)?;
    files::write(&path.with_extension("csv"), &speeds::runs(&runs, &fit))?;
    Ok(Answer {
        text: speeds::fitted(&fit),
        json: json!({"table": fit.table, "runs": runs.len()}),
        status: DONE,
    })
}

fn explain(lines: &[Line], id: &str) -> Result<Answer> {
    let case = compare::find(lines, id)?;
    let prediction = eager::explain(&case.model, &case.options)?;
    let explanation = Explanation::new(case, &prediction);
    Ok(Answer {
        text: comparison::explanation(&explanation),
        json: json!({"explanation": explanation, "model": case.model.name, "options": case.options}),
        status: DONE,
    })
}
