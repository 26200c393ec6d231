//! Step times against published ones, and the table fitted to them.

use super::comparison::{percent, signed};
use super::table::{Column, Table, labelled};
use crate::error::{Error, Result};
use crate::machine::compare::{Fit, Run, SpeedRow, Speeds};
use crate::spec::units::Seconds;

/// Columns of a label.
const LABEL: usize = 14;

/// A row a run; with `worst` only so many, the worst first.
pub fn table_of(speeds: &Speeds, worst: Option<usize>) -> String {
    let mut rows: Vec<&SpeedRow> = speeds.rows.iter().collect();
    if let Some(count) = worst {
        rows.sort_by(|a, b| b.error.abs().total_cmp(&a.error.abs()));
        rows.truncate(count);
    }
    let columns = [
        Column::Left,
        Column::Left,
        Column::Right,
        Column::Right,
        Column::Right,
    ];
    let heads = ["record", "a step on", "measured", "predicted", "error"];
    let mut table = Table::new(&columns).heads(&heads);
    for row in rows {
        table.row(vec![
            row.id.clone(),
            row.device.clone(),
            Seconds(row.measured).to_string(),
            Seconds(row.predicted).to_string(),
            signed(row.error),
        ]);
    }
    table.render()
}

/// The errors in a line, and a line a source.
pub fn summary(speeds: &Speeds, label: usize) -> String {
    let (Some(median), Some(p90)) = (speeds.median_abs_error, speeds.p90_abs_error) else {
        return String::new();
    };
    let held = speeds.held_out.map_or(String::new(), |held| {
        let (median, p90) = (percent(held.median), percent(held.p90));
        format!(
            "; the table on runs of sources it had not seen: median {median}, 90 % within {p90}"
        )
    });
    let all = format!(
        "{} step times, median {}, 90 % within {}{held}",
        speeds.cases,
        percent(median),
        percent(p90)
    );
    let mut text = labelled("speed", &all, label);
    for source in &speeds.by_source {
        let unseen = source.held_out_median.map_or(String::new(), |median| {
            format!("; unseen, median {}", percent(median))
        });
        let line = format!(
            "{}: {}, median {}, worst {}{unseen}",
            source.source,
            source.cases,
            percent(source.median_abs_error),
            percent(source.max_abs_error)
        );
        text += &labelled("", &line, label);
    }
    text
}

/// The text of a fitted table's file.
///
/// # Errors
/// Where it cannot be written.
pub fn table(fit: &Fit, from: &str) -> Result<String> {
    let body = toml::to_string(&fit.table).map_err(|e| {
        Error::value(
            "table",
            "of step times",
            e.to_string(),
            "report it with the records",
        )
    })?;
    Ok(format!(
        "# What PyTorch reaches of a device's peaks, fitted: memfit compare {from} --fit FILE. The runs are in the .csv beside it.\n\
         # Shares of the 16-bit and 32-bit rates and of the bandwidth; seconds of the host for a launch; `link` is not fitted.\n\n{body}"
    ))
}

/// The runs a table was fitted on, one a line.
pub fn runs(runs: &[Run], fit: &Fit) -> String {
    let mut text = "id,source,device,fitted,measured_s,predicted_s,held_out_s\n".to_string();
    for (run, [predicted, held]) in runs.iter().zip(&fit.predicted) {
        let source = run.source.replace(',', ";");
        text += &format!(
            "{},{source},{},{},{:.4},{predicted:.4},{held:.4}\n",
            run.id, run.device, run.fitted, run.seconds
        );
    }
    text
}

/// A fit in words.
pub fn fitted(fit: &Fit) -> String {
    let table = &fit.table;
    let said = |name: &str, a: &crate::machine::speed::Accuracy| {
        format!(
            "{name}: median {}, 90 % within {}",
            percent(a.median),
            percent(a.p90)
        )
    };
    let mut text = labelled("fitted", &said("in sample", &table.in_sample), LABEL);
    text += &labelled("", &said("sources held out", &table.held_out), LABEL);
    for source in &table.source {
        let line = format!(
            "{}: {}, median {}, held out {}",
            source.name,
            source.runs,
            percent(source.in_sample.median),
            percent(source.held_out.median)
        );
        text += &labelled("", &line, LABEL);
    }
    text
}
