//! Who holds the memory of a plan, and when.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::curve::{Curve, alive};
use super::job::{Asked, header};
use super::plot::{COLUMNS, plot};
use super::table::{Column, Table, labelled};
use super::{json as answer, memory, text};
use crate::error::Result;
use crate::graph::tensor::Role;
use crate::graph::{Phase, When};
use crate::machine::estimate::{self, Estimate};
use crate::plan::Plan;
use crate::plan::file::Claim;
use crate::program::Buffer;
use crate::program::check::check;
use crate::spec::job::Place;
use crate::spec::units::Bytes;

/// Buffers listed by name.
const LISTED: usize = 20;
/// Columns of the label of the verdict.
const LABEL: usize = 8;

/// A plan taken apart.
#[derive(Debug, Clone)]
pub struct Explained {
    /// What it takes, proved.
    pub estimate: Estimate,
    /// Whether it stays within its budget.
    pub fits: bool,
    /// The program whose height on the device is largest.
    pub when: When,
    /// Instruction after which the device holds most.
    pub instruction: usize,
    /// Its phase.
    pub phase: Option<Phase>,
    /// Who is alive there, the largest first.
    pub alive: Vec<Buffer>,
    /// The device's memory over the program.
    pub curve: Curve,
    /// What the saved claim says otherwise; `None` without a claim.
    pub claim: Option<Vec<String>>,
}

impl Explained {
    /// Derives everything of `plan` again, and compares with what was claimed.
    ///
    /// # Errors
    /// Where a choice cannot be applied, or a program breaks a rule.
    pub fn new(plan: &Plan, claim: Option<&Claim>) -> Result<Explained> {
        let programs = estimate::all(plan)?;
        for program in &programs {
            check(program)?;
        }
        let estimate = estimate::summarize(plan, &programs)?;
        let highest = programs.iter().rev().max_by_key(|p| p.height.gpu);
        let program = highest.unwrap_or_else(|| panic!("a plan has a program for its step"));
        let instruction = estimate::peak_position(program, Place::Gpu);
        let curve = Curve::new(program, Place::Gpu);
        Ok(Explained {
            fits: plan.job.target.budget().fits(&estimate.peak),
            when: program.when,
            instruction,
            phase: curve.points.get(instruction).and_then(|(_, phase)| *phase),
            alive: alive(program, instruction, Place::Gpu)
                .into_iter()
                .cloned()
                .collect(),
            curve,
            claim: claim.map(|c| c.differences(&estimate.claim())),
            estimate,
        })
    }

    /// Whether there is no claim, or it holds.
    pub fn claim_holds(&self) -> bool {
        self.claim.as_ref().is_none_or(Vec::is_empty)
    }

    fn by_role(&self) -> BTreeMap<Role, (usize, Bytes)> {
        let mut roles: BTreeMap<Role, (usize, Bytes)> = BTreeMap::new();
        for buffer in &self.alive {
            let entry = roles.entry(buffer.role).or_default();
            *entry = (entry.0 + 1, entry.1 + buffer.exact);
        }
        roles
    }
}

/// The explanation, for people.
pub fn plan(explained: &Explained, plan: &Plan, asked: &Asked) -> String {
    let budget = plan.job.target.budget();
    format!(
        "{}\n{}{}\n{}\nmemory of the device over the program `{}`\n{}\n{}",
        header(plan, asked),
        labelled("fits", if explained.fits { "yes" } else { "no" }, LABEL),
        claim(explained),
        text::body(plan, &explained.estimate, &budget),
        memory::when_name(explained.when),
        plot(&explained.curve),
        holders(explained),
    )
}

fn claim(explained: &Explained) -> String {
    match &explained.claim {
        None => labelled("claim", "none saved", LABEL),
        Some(found) if found.is_empty() => labelled("claim", "holds: derived again, equal", LABEL),
        Some(found) => {
            let line = format!("DOES NOT HOLD: {}", found.join("; "));
            let next = "write it anew with `memfit explain PLAN -o PLAN`";
            labelled("claim", &line, LABEL) + &labelled("", next, LABEL)
        }
    }
}

/// The largest buffers alive at the peak, and the others by role.
fn holders(explained: &Explained) -> String {
    let phase = explained.phase.map_or("", memory::phase_name);
    let count = explained.alive.len();
    let mut out = format!(
        "alive at the peak: instruction {} of {}, phase {phase}; {count} buffers\n",
        explained.instruction,
        explained.curve.points.len(),
    );
    let columns = [Column::Right, Column::Left, Column::Wrapped];
    let mut table = Table::new(&columns)
        .indent(2)
        .heads(&["bytes", "role", "buffer"]);
    for buffer in explained.alive.iter().take(LISTED) {
        let role = memory::role_name(buffer.role).to_string();
        table.row(vec![
            buffer.exact.to_string(),
            role,
            buffer.name.to_string(),
        ]);
    }
    out += &table.render();
    let roles = explained.by_role();
    let each = roles.iter();
    let each =
        each.map(|(role, (n, bytes))| format!("{} {bytes} in {n}", memory::role_name(*role)));
    out + &labelled("in all", &each.collect::<Vec<_>>().join(", "), LABEL)
}

/// The explanation, for programs.
pub fn json(explained: &Explained, plan: &Plan, asked: &Asked) -> Value {
    let budget = plan.job.target.budget();
    let mut all = answer::body(plan, &explained.estimate, &budget, asked);
    all.insert(
        "outcome".into(),
        json!(if explained.fits { "fits" } else { "misfit" }),
    );
    all.insert("peak".into(), peak_json(explained));
    all.insert("curve".into(), curve_json(explained));
    all.insert("claim".into(), claim_json(explained));
    Value::Object(all)
}

fn peak_json(explained: &Explained) -> Value {
    let buffer = |b: &Buffer| json!({"name": &*b.name, "role": b.role, "bytes": b.exact});
    let role = |(role, (count, bytes)): (Role, (usize, Bytes))| json!({"role": role, "buffers": count, "bytes": bytes});
    json!({
        "program": explained.when,
        "instruction": explained.instruction,
        "instructions": explained.curve.points.len(),
        "phase": explained.phase,
        "buffers": explained.alive.len(),
        "largest": explained.alive.iter().take(LISTED).map(buffer).collect::<Value>(),
        "roles": explained.by_role().into_iter().map(role).collect::<Value>(),
    })
}

fn curve_json(explained: &Explained) -> Value {
    let point = |(bytes, phase)| json!({"gpu": bytes, "phase": phase});
    let columns = explained.curve.columns(COLUMNS).into_iter();
    columns.map(point).collect()
}

fn claim_json(explained: &Explained) -> Value {
    json!({
        "saved": explained.claim.is_some(),
        "holds": explained.claim.as_ref().map(Vec::is_empty),
        "differences": explained.claim.clone().unwrap_or_default(),
    })
}
