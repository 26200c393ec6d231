//! Predictions against measured runs, for people: a row a record, what was skipped, a summary; or one case taken apart.

use super::speeds;
use super::table::{Column, Table, labelled};
use crate::machine::compare::explain::{Explanation, Pair};
use crate::machine::compare::{Comparison, Row};
use crate::program::eager::{Class, EagerPhase, Live};
use crate::spec::units::{Bytes, Seconds};

/// Columns of a label.
const LABEL: usize = 14;

/// Tensors that are listed of each side.
const LARGEST: usize = 12;

/// The whole comparison; with `worst` only so many rows, the worst first.
pub fn text(comparison: &Comparison, worst: Option<usize>) -> String {
    let rows = match worst {
        Some(count) => comparison.worst(count),
        None => comparison.rows.iter().collect(),
    };
    let mut text = String::new();
    if !rows.is_empty() {
        text += &table(&rows);
        text.push('\n');
    }
    if comparison.speed.cases > 0 {
        text += &format!("{}\n", speeds::table_of(&comparison.speed, worst));
    }
    if !comparison.skipped.is_empty() {
        text += &skipped(comparison);
        text.push('\n');
    }
    text + &summary(comparison)
}

fn table(rows: &[&Row]) -> String {
    let columns = [
        Column::Left,
        Column::Left,
        Column::Right,
        Column::Right,
        Column::Right,
    ];
    let mut table =
        Table::new(&columns).heads(&["record", "counter", "measured", "predicted", "error"]);
    for row in rows {
        table.row(vec![
            row.id.clone(),
            row.counter.name().to_string(),
            row.measured.to_string(),
            row.predicted.to_string(),
            signed(row.error),
        ]);
    }
    table.render()
}

/// A line of a file is named once: a record without an id is called by its line.
fn skipped(comparison: &Comparison) -> String {
    let mut text = String::new();
    for skipped in &comparison.skipped {
        let said = match skipped.reason.starts_with(&skipped.id) {
            true => skipped.reason.clone(),
            false => format!("{}: {}", skipped.id, skipped.reason),
        };
        text += &labelled("skipped", &said, LABEL);
    }
    text
}

fn summary(comparison: &Comparison) -> String {
    let counts = format!(
        "{}: {} compared, {} skipped, {} without a memory figure or a speed",
        comparison.cases,
        comparison.rows.len(),
        comparison.skipped.len(),
        comparison.unmeasured.len(),
    );
    let mut text = labelled("records", &counts, LABEL);
    let errors = [
        ("median", comparison.median_abs_error),
        ("90 % within", comparison.p90_abs_error),
        ("95 % within", comparison.p95_abs_error),
        ("worst", comparison.max_abs_error),
    ];
    let errors = errors.map(|(name, error)| Some(format!("{name} {}", percent(error?))));
    let errors: Vec<String> = errors.into_iter().flatten().collect();
    if !errors.is_empty() {
        text += &labelled("error", &errors.join(", "), LABEL);
    }
    if let Some(share) = comparison.saved_layer_exact_share {
        text += &labelled(
            "middle layer",
            &format!("saved bytes exact in {}", percent(share)),
            LABEL,
        );
    }
    if let Some(share) = comparison.phase_right_share {
        text += &labelled(
            "phase",
            &format!("that of the peak right in {}", percent(share)),
            LABEL,
        );
    }
    text += &speeds::summary(&comparison.speed, LABEL);
    let spent = format!("{} for the predictions", Seconds(comparison.seconds));
    text + &labelled("time", &spent, LABEL)
}

/// One case taken apart.
pub fn explanation(explanation: &Explanation) -> String {
    let mut text = labelled("record", &explanation.id, LABEL);
    if let Some(row) = &explanation.row {
        let peak = format!(
            "{}: measured {}, predicted {}, {}",
            row.counter.name(),
            row.measured,
            row.predicted,
            signed(row.error)
        );
        text += &labelled("peak", &peak, LABEL);
        text += &labelled("phase", &phases(row), LABEL);
    }
    let op = match &explanation.measured_op {
        Some(measured) => format!("measured {measured}, predicted {}", explanation.op),
        None => format!("predicted {}", explanation.op),
    };
    text += &labelled("op", &op, LABEL);
    for assumed in &explanation.assumed {
        text += &labelled("assumed", assumed, LABEL);
    }
    text += &format!("\n{}", accounts(explanation));
    if !explanation.items.is_empty() {
        text += &format!("\n{}", items(explanation));
    }
    let sides = [
        ("predicted", &explanation.largest),
        ("measured", &explanation.measured_largest),
    ];
    for (side, tensors) in sides.into_iter().filter(|(_, t)| !t.is_empty()) {
        text += &format!("\n{}", largest(side, tensors));
    }
    text
}

fn phases(row: &Row) -> String {
    match row.measured_phase {
        Some(measured) => format!(
            "measured {}, predicted {}",
            phase_name(measured),
            phase_name(row.phase)
        ),
        None => format!("predicted {}", phase_name(row.phase)),
    }
}

/// Classes at the peak, peaks of phases, moments.
fn accounts(explanation: &Explanation) -> String {
    let columns = [Column::Left, Column::Right, Column::Right, Column::Right];
    let mut table =
        Table::new(&columns).heads(&["at the peak", "measured", "predicted", "difference"]);
    for (class, pair) in &explanation.classes {
        table.row(cells(class_name(*class), pair));
    }
    for (phase, pair) in &explanation.phases {
        table.row(cells(&format!("peak of {}", phase_name(*phase)), pair));
    }
    for (moment, pair) in &explanation.moments {
        table.row(cells(moment, pair));
    }
    table.render()
}

fn items(explanation: &Explanation) -> String {
    let columns = [Column::Left, Column::Right, Column::Right, Column::Right];
    let mut table = Table::new(&columns).heads(&[
        "a middle layer keeps",
        "measured",
        "predicted",
        "difference",
    ]);
    for item in &explanation.items {
        let counts = match item.measured_count {
            Some(measured) if measured != item.predicted_count => {
                format!(" ({measured} measured, {} predicted)", item.predicted_count)
            }
            _ => format!(" ({})", item.predicted_count),
        };
        table.row(cells(&format!("{}{counts}", item.what), &item.bytes));
    }
    table.render()
}

fn largest(side: &str, tensors: &[Live]) -> String {
    let columns = [Column::Left, Column::Left, Column::Left, Column::Right];
    let head = format!("largest at the peak, {side}");
    let mut table = Table::new(&columns).heads(&[&head, "shape", "class", "bytes"]);
    for tensor in tensors.iter().take(LARGEST) {
        table.row(vec![
            tensor.op.clone(),
            format!("{:?} {}", tensor.shape, tensor.dtype),
            class_name(tensor.class).to_string(),
            tensor.bytes.to_string(),
        ]);
    }
    table.render()
}

/// A figure, measured and predicted, and by how many bytes they differ.
fn cells(name: &str, pair: &Pair) -> Vec<String> {
    let difference = pair
        .measured
        .map(|measured| match pair.predicted >= measured {
            true if pair.predicted == measured => "0".to_string(),
            true => format!("+{}", pair.predicted.saturating_sub(measured)),
            false => format!("-{}", measured.saturating_sub(pair.predicted)),
        });
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    vec![
        name.to_string(),
        or_none(pair.measured.as_ref().map(Bytes::to_string)),
        pair.predicted.to_string(),
        or_none(difference),
    ]
}

/// A class in words.
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Params => "parameters",
        Class::Buffers => "buffers",
        Class::Grads => "gradients",
        Class::OptimizerState => "optimizer state",
        Class::Inputs => "inputs",
        Class::AutocastWeightCopies => "autocast's copies of weights",
        Class::SavedActivations => "saved activations",
        Class::LogitsAndLoss => "logits and loss",
        Class::RecomputedActivations => "recomputed activations",
        Class::BackwardTemp => "temporaries of backward",
        Class::ForwardTemp => "temporaries of forward",
        Class::OptimizerTemp => "temporaries of the optimizer",
        Class::Other => "other",
    }
}

/// A phase in words.
pub fn phase_name(phase: EagerPhase) -> &'static str {
    match phase {
        EagerPhase::Start => "start",
        EagerPhase::Forward => "forward",
        EagerPhase::Backward => "backward",
        EagerPhase::Optimizer => "optimizer",
        EagerPhase::End => "end",
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{} %", digits(100.0 * share))
}

pub(super) fn signed(error: f64) -> String {
    let sign = if error > 0.0 { "+" } else { "" };
    format!("{sign}{}", percent(error))
}

/// Two digits after the point, or four where that would be nothing.
fn digits(percent: f64) -> String {
    match percent.abs() {
        size if size > 0.0 && size < 0.01 => format!("{percent:.4}"),
        _ => format!("{percent:.2}"),
    }
}
