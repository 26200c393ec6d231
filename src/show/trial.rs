//! A trial: its candidates side by side, and the one to take.

use serde_json::{Value, json};

use super::memory::places_json;
use super::table::Column::{Left, Right, Wrapped};
use super::table::Table;
use crate::machine::trial::{Outcome, Ran, Row};
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// The table, the verdict, and what the figures are.
pub fn text(rows: &[Row], chosen: Option<usize>, tolerance: f64) -> String {
    let heads = [
        "",
        "candidate",
        "held-out",
        "device",
        "step",
        "J/step",
        "memory here",
        "step here",
    ];
    let columns = [Left, Wrapped, Right, Right, Right, Right, Right, Right];
    let mut table = Table::new(&columns).heads(&heads);
    let mut refused = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mark = if chosen == Some(index) { ">" } else { "" };
        match &row.outcome {
            Outcome::Ran(ran) => table.row(cells(mark, row, ran)),
            Outcome::Misfit { why } => {
                refused += &format!("{} does not fit: {why}\n", row.candidate)
            }
            Outcome::Refused { why } => {
                refused += &format!("{} was not run: {why}\n", row.candidate)
            }
        }
    }
    let verdict = match chosen.and_then(|index| rows.get(index)) {
        Some(row) => format!(
            "{}: the cheapest on the device within {:.1} % of the least held-out loss\n",
            row.candidate,
            100.0 * tolerance
        ),
        None => "no candidate ran to an end\n".to_string(),
    };
    let note = "device, step and J/step are predicted for the plan's device (energy at its board power); the last two columns are measured.\n";
    format!("{}{refused}\n{verdict}{note}", table.render())
}

fn cells(mark: &str, row: &Row, ran: &Ran) -> Vec<String> {
    let (here, planned) = (ran.measured_peak, ran.predicted_peak);
    let total = |of: PerPlace<Bytes>| of.gpu + of.pinned + of.host;
    let within = Place::ALL
        .iter()
        .all(|&place| here[place] <= planned[place]);
    let beside = match (here == planned, within) {
        (true, _) => String::new(),
        // What is selected anew at times is planned at its largest.
        (_, true) => format!(" of {} planned", total(planned)),
        (_, false) => format!(" (MORE THAN THE {} PREDICTED)", total(planned)),
    };
    vec![
        mark.to_string(),
        row.candidate.clone(),
        format!("{:.4} -> {:.4}", ran.before, ran.loss),
        ran.device_peak.gpu.to_string(),
        ran.device_step.to_string(),
        ran.device_joules
            .map_or("-".to_string(), |j| format!("{j:.1}")),
        format!("{}{beside}", total(here)),
        ran.measured_step.to_string(),
    ]
}

/// The trial for programs: integers are bytes, durations seconds.
pub fn json(rows: &[Row], chosen: Option<usize>, tolerance: f64) -> Value {
    json!({
        "candidates": rows.iter().map(row).collect::<Value>(),
        "chosen": chosen.and_then(|index| rows.get(index)).map(|row| &row.candidate),
        "max_loss": tolerance,
    })
}

fn row(row: &Row) -> Value {
    let (name, lr) = (&row.candidate, row.rate);
    match &row.outcome {
        Outcome::Misfit { why } => json!({"name": name, "lr": lr, "outcome": "misfit", "why": why}),
        Outcome::Refused { why } => {
            json!({"name": name, "lr": lr, "outcome": "refused", "why": why})
        }
        Outcome::Ran(ran) => json!({
            "name": name,
            "lr": lr,
            "outcome": "ran",
            "choices": ran.choices,
            "steps": ran.steps,
            "loss_before": ran.before,
            "loss": ran.loss,
            "estimate": {
                "peak": places_json(&ran.device_peak),
                "step_seconds": ran.device_step,
                "joules": ran.device_joules,
            },
            "predicted": {"peak": places_json(&ran.predicted_peak)},
            "measured": {
                "peak": places_json(&ran.measured_peak),
                "process_peak": ran.process_peak,
                "step_seconds": ran.measured_step,
            },
        }),
    }
}
