//! The whole bench: every combination once, rows kept as they finish, and what they say together.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::{Bases, Case, Row, cases, lowered, run_case, total};
use crate::error::{Error, Result};
use crate::machine::probe::median;
use crate::machine::rows::{self, Named};
use crate::spec::device::Device;

/// What a bench is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The calibrated device file; without one, rows are made without times.
    pub device: Option<PathBuf>,
    /// Folder of offload files and temporary saves.
    pub folder: PathBuf,
    /// Rows, one JSON object a line; a row whose programs have not changed is not run again.
    pub rows: PathBuf,
    /// Whether the combinations over 1 GiB are run too.
    pub big: bool,
}

/// What the rows say together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Rows.
    pub count: usize,
    /// Rows over 1 GiB.
    pub over_1_gib: usize,
    /// Rows with a disk tier.
    pub with_disk: usize,
    /// Rows with three or more techniques.
    pub stacks: usize,
    /// Rows whose time was measured.
    pub timed: usize,
    /// Median absolute error of the simulated step time, probe-corrected.
    pub median_error: f64,
    /// The same against raw times.
    pub median_error_raw: f64,
    /// Rows during which the probe moved too far even after repeating.
    pub unsteady: usize,
}

/// Runs every combination that has no valid row yet, those over 1 GiB in processes of their own: this program called
/// with `bench agreement --case NAME`, which prints the row.
///
/// # Errors
/// The first combination that disagrees, or a file that cannot be written.
pub fn bench(options: &Options, progress: &mut dyn FnMut(&str, f64)) -> Result<Vec<Row>> {
    let device = options
        .device
        .as_deref()
        .map(Device::from_path)
        .transpose()?;
    let all: Vec<Case> = cases()
        .into_iter()
        .filter(|c| options.big || !c.big)
        .collect();
    let mut rows = read(&options.rows)?;
    let mut bases = Bases::default();
    for (done, case) in all.iter().enumerate() {
        progress(&case.name, done as f64 / all.len() as f64);
        let programs = lowered(case)?;
        if rows.iter().any(|r| {
            r.name == case.name && r.programs == programs && (r.time.is_some() || device.is_none())
        }) {
            continue;
        }
        let row = match case.big {
            true => in_a_process(case, options)?,
            false => run_case(case, device.as_ref(), &options.folder, &mut bases)?,
        };
        rows::keep(&options.rows, &mut rows, row)?;
    }
    Ok(rows)
}

impl Named for Row {
    fn name(&self) -> &str {
        &self.name
    }
}

/// The rows of a file; a later row replaces an earlier one of its name, and a line cut short by a crash is no row.
///
/// # Errors
/// Where the file is there but cannot be read.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    rows::latest(path)
}

/// Runs a case in a fresh process, so that the process's peak is the case's.
fn in_a_process(case: &Case, options: &Options) -> Result<Row> {
    let program = std::env::current_exe().map_err(|e| Error::io("memfit", "find", e))?;
    let here = options
        .device
        .iter()
        .flat_map(|path| ["--here".as_ref(), path.as_os_str()]);
    let output = Command::new(&program)
        .args(["bench", "agreement", "--case", &case.name])
        .args(here)
        .arg("--offload-dir")
        .arg(&options.folder)
        .output()
        .map_err(|e| Error::io(&program, "run", e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let row = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok());
    row.ok_or_else(|| {
        let why = String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace('\n', " ");
        Error::value("case", &case.name, why, "run it alone with --case")
    })
}

/// Counts and medians.
pub fn summary(rows: &[Row]) -> Summary {
    let times: Vec<_> = rows.iter().filter_map(|r| r.time).collect();
    let error = |raw: bool| {
        let errors = times.iter().map(|t| t.step.errors());
        median(
            errors
                .map(|(corrected, plain)| if raw { plain } else { corrected })
                .collect(),
        )
    };
    Summary {
        count: rows.len(),
        over_1_gib: rows
            .iter()
            .filter(|r| total(r.predicted).0 > 1 << 30)
            .count(),
        with_disk: rows.iter().filter(|r| r.predicted.disk.0 > 0).count(),
        stacks: rows.iter().filter(|r| r.choices.len() >= 3).count(),
        timed: times.len(),
        median_error: error(false),
        median_error_raw: error(true),
        unsteady: times.iter().filter(|t| !t.steady).count(),
    }
}
