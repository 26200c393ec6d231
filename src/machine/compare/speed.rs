//! Predicted seconds of a step against published ones.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Timed, statistics};
use crate::error::Result;
use crate::machine::speed::{Accuracy, Rooflines, Table};
use crate::program::eager::{EagerPhase, Work};
use crate::spec::device;
use crate::spec::job::Host;
use crate::spec::units::Seconds;

/// Bytes of host memory that an update of one parameter moves there: fp32 weight and moments read and written, a 16-bit gradient read and a
/// 16-bit weight written.
const UPDATED: f64 = 28.0;
/// Bytes of one parameter that cross the link in each direction: a 16-bit gradient there, a 16-bit weight back.
const SENT: f64 = 2.0;

/// A run whose speed was published, on its device's rooflines.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its record.
    pub id: String,
    /// Who published it.
    pub source: String,
    /// The device it was found to be.
    pub device: String,
    /// Published seconds of a step.
    pub seconds: f64,
    /// Whether its kernels are those of Hugging Face's code.
    pub fitted: bool,
    /// Its work.
    pub rooflines: Rooflines,
}

/// A run beside its prediction.
#[derive(Debug, Clone, Serialize)]
pub struct SpeedRow {
    /// Its record.
    pub id: String,
    /// Who published it.
    pub source: String,
    /// The device.
    pub device: String,
    /// Published seconds of a step.
    pub measured: f64,
    /// Predicted ones.
    pub predicted: f64,
    /// `predicted / measured - 1`.
    pub error: f64,
}

/// The runs of one source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BySource {
    /// Its name.
    pub source: String,
    /// Its runs.
    pub cases: usize,
    /// Half of the errors are at most this.
    pub median_abs_error: f64,
    /// The largest.
    pub max_abs_error: f64,
    /// The median error of these runs predicted by a table fitted without them, where the table knows the source.
    pub held_out_median: Option<f64>,
}

/// All runs whose speed was published.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Speeds {
    /// Their number.
    pub cases: usize,
    /// Half of the errors are at most this; nothing without runs.
    pub median_abs_error: Option<f64>,
    /// Nine in ten are.
    pub p90_abs_error: Option<f64>,
    /// The built-in table's error on the runs it was fitted on, each predicted without its source.
    pub held_out: Option<Accuracy>,
    /// The same by source.
    pub by_source: Vec<BySource>,
    /// The runs, in the file's order.
    pub rows: Vec<SpeedRow>,
}

/// A record's run with the work that was counted for it.
///
/// # Errors
/// Where its device is not known.
pub(super) fn run(id: &str, timed: &Timed, work: &BTreeMap<EagerPhase, Work>) -> Result<Run> {
    let device = device::find(&timed.gpu)?;
    let params = timed.on_host as f64;
    let update = params * UPDATED / Host::default().dram;
    let beside = Seconds(update.max(params * SENT / device.link));
    Ok(Run {
        id: id.to_string(),
        source: timed.source.clone(),
        device: device.id.clone(),
        seconds: timed.seconds,
        fitted: timed.counted,
        rooflines: Rooflines::new(work, &device, beside),
    })
}

/// The runs beside what the built-in table predicts.
pub(super) fn against(runs: &[Run]) -> Speeds {
    let table = Table::built_in();
    let row = |run: &Run| {
        let predicted = run.rooflines.seconds(&table.efficiency).0;
        SpeedRow {
            id: run.id.clone(),
            source: run.source.clone(),
            device: run.device.clone(),
            measured: run.seconds,
            predicted,
            error: predicted / run.seconds - 1.0,
        }
    };
    let rows: Vec<SpeedRow> = runs.iter().map(row).collect();
    let errors = statistics::sorted(rows.iter().map(|r| r.error.abs()));
    Speeds {
        cases: rows.len(),
        median_abs_error: statistics::quantile(&errors, 0.5),
        p90_abs_error: statistics::quantile(&errors, 0.9),
        held_out: (!rows.is_empty()).then_some(table.held_out),
        by_source: by_source(&rows, table),
        rows,
    }
}

fn by_source(rows: &[SpeedRow], table: &Table) -> Vec<BySource> {
    let mut sources: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in rows {
        let errors = sources.entry(&row.source).or_default();
        errors.push(row.error.abs());
    }
    let one = |(source, errors): (&str, Vec<f64>)| {
        let errors = statistics::sorted(errors.into_iter());
        let known = table.source.iter().find(|known| known.name == source);
        BySource {
            source: source.to_string(),
            cases: errors.len(),
            median_abs_error: statistics::quantile(&errors, 0.5).unwrap_or(0.0),
            max_abs_error: errors.last().copied().unwrap_or(0.0),
            held_out_median: known.map(|known| known.held_out.median),
        }
    };
    sources.into_iter().map(one).collect()
}
