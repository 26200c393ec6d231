//! A validation for people: bytes by place and role, seconds by op and phase, and what was left out.

use super::memory::{phase_name, role_name};
use super::table::{Column, Table, labelled};
use crate::graph::tensor::Role;
use crate::machine::measure::Times;
use crate::machine::validate::Validation;
use crate::plan::Plan;
use crate::spec::job::Place;
use crate::spec::units::Bytes;

/// Columns of a label.
const LABEL: usize = 12;

/// Ops that are listed.
const OPS: usize = 12;

/// The whole report; `stale` says where the plan's saved claim no longer re-derives.
pub fn text(plan: &Plan, validation: &Validation, stale: &[String]) -> String {
    let verdict = match validation.agrees() {
        true => "every place took what was predicted, to the byte",
        false => "the prediction does NOT hold",
    };
    let mut text = labelled("agreement", verdict, LABEL);
    let ran = format!(
        "{} of {} layers, sequences of {}, {} threads",
        validation.layers, plan.job.model.layers, validation.seq, validation.threads
    );
    text += &labelled("ran", &ran, LABEL);
    for left_out in &validation.left_out {
        text += &labelled("left out", left_out, LABEL);
    }
    for difference in stale {
        text += &labelled("stale claim", difference, LABEL);
    }
    format!("{text}\n{}\n{}", memory(validation), time(validation))
}

fn memory(validation: &Validation) -> String {
    let mut table = Table::new(&[Column::Left, Column::Right, Column::Right]);
    table = table.heads(&["peak memory", "predicted", "measured"]);
    let (predicted, measured) = (&validation.predicted, &validation.measured);
    for place in Place::ALL
        .into_iter()
        .filter(|&p| predicted[p].0 + measured[p].0 > 0)
    {
        let mut row =
            |name: String, a: Bytes, b: Bytes| table.row(vec![name, a.to_string(), b.to_string()]);
        row(place.name().to_string(), predicted[place], measured[place]);
        let (a, b) = (
            &validation.predicted_roles[place],
            &validation.measured_roles[place],
        );
        let mut roles: Vec<Role> = a.keys().chain(b.keys()).copied().collect();
        roles.sort_unstable();
        roles.dedup();
        for role in roles {
            let of = |roles: &std::collections::BTreeMap<Role, Bytes>| {
                roles.get(&role).copied().unwrap_or_default()
            };
            row(format!("  {}", role_name(role)), of(a), of(b));
        }
    }
    let total = predicted.gpu + predicted.pinned + predicted.host;
    table.row(vec![
        "process".into(),
        total.to_string(),
        validation.process.to_string(),
    ]);
    table.render()
}

fn time(validation: &Validation) -> String {
    let time = &validation.time;
    let mut table = Table::new(&[
        Column::Left,
        Column::Right,
        Column::Right,
        Column::Right,
        Column::Right,
    ]);
    table = table.heads(&[
        "time of a step",
        "predicted",
        "measured",
        "corrected",
        "error",
    ]);
    let mut row = |name: &str, times: &Times| {
        let error = match validation.calibrated {
            true => format!("{:.0} %", 100.0 * times.errors().0),
            false => "-".to_string(),
        };
        let Times {
            predicted,
            raw,
            corrected,
        } = times;
        table.row(vec![
            name.to_string(),
            predicted.to_string(),
            raw.to_string(),
            corrected.to_string(),
            error,
        ]);
    };
    row("step", &time.step);
    time.phases
        .iter()
        .for_each(|(phase, times)| row(phase_name(*phase), times));
    let mut ops: Vec<_> = time.ops.iter().collect();
    ops.sort_by(|a, b| b.1.raw.0.total_cmp(&a.1.raw.0));
    ops.into_iter()
        .take(OPS)
        .for_each(|(op, times)| row(&format!("  {op}"), times));
    let note = match validation.calibrated {
        true => format!("corrected by the probe's ratio {:.2}, which moved by {:.0} %\n", time.ratio, 100.0 * time.moved),
        false => "predicted for the plan's device; with `--here FILE` of `memfit calibrate`, for this machine\n".to_string(),
    };
    table.render() + &note
}
