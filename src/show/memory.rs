//! What a plan takes: bytes by place and role, time by phase and queue.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::page;
use super::table::{Column, Table, bar, labelled};
use crate::graph::tensor::Role;
use crate::graph::{Phase, Stream, When};
use crate::machine::estimate::Estimate;
use crate::spec::job::{Budget, PerPlace, Place};
use crate::spec::units::{Bytes, Seconds};

/// Columns of a bar, and on a page narrower than so many.
const BAR: usize = 24;
const NARROW: (usize, usize) = (6, 80);
/// Columns of the labels in front of the lines about time.
const LABEL: usize = 8;

/// A role in words.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Parameter => "parameters",
        Role::Gradient => "gradients",
        Role::OptimizerState => "optimizer state",
        Role::Activation => "activations",
        Role::Temporary => "temporaries",
        Role::Input => "inputs",
        Role::Padding => "padding",
    }
}

/// A phase in words.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Load => "load",
        Phase::Forward => "forward",
        Phase::Recompute => "recompute",
        Phase::Backward => "backward",
        Phase::Update => "update",
        Phase::Save => "save",
    }
}

/// A program in words.
pub fn when_name(when: When) -> String {
    match when {
        When::Steady => "step".into(),
        When::Every(n) => format!("step that renews (every {n})"),
        When::Renew(n) => format!("renewal (ahead of every {n} steps)"),
        When::First => "first micro-batch".into(),
        When::Micro { times } => format!("middle micro-batch (x{times})"),
        When::Start => "loading".into(),
        When::Restart => "restart of states".into(),
        When::Evaluate => "evaluation".into(),
        When::Save => "saving".into(),
    }
}

/// What a row of a budget bounds, in words.
pub fn row_name(places: &[Place]) -> &'static str {
    match places {
        [Place::Gpu] => "device memory",
        [Place::Pinned] => "pinned host memory",
        [Place::Pinned, Place::Host] => "host memory",
        [Place::Disk] => "disk",
        _ => "unified memory",
    }
}

/// Bytes of several places together.
pub fn sum(peak: &PerPlace<Bytes>, places: &[Place]) -> Bytes {
    places.iter().map(|&place| peak[place]).sum()
}

/// Who holds several places together at their peaks.
pub fn holders(estimate: &Estimate, places: &[Place]) -> BTreeMap<Role, Bytes> {
    let mut all: BTreeMap<Role, Bytes> = BTreeMap::new();
    for &place in places {
        for (&role, &bytes) in &estimate.roles[place] {
            *all.entry(role).or_default() += bytes;
        }
    }
    all
}

/// A row of a budget beside what a plan needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// The places it bounds.
    pub places: &'a [Place],
    /// What the plan needs there.
    pub need: Bytes,
    /// What there is.
    pub have: Bytes,
}

/// The rows of `budget` that `estimate` passes; of rows that are passed alike, the first.
pub fn passed<'a>(estimate: &Estimate, budget: &'a Budget) -> Vec<Row<'a>> {
    let rows = budget.rows.iter().map(|(places, most)| Row {
        places,
        need: sum(&estimate.peak, places),
        have: *most,
    });
    let mut passed: Vec<Row> = rows.filter(|row| row.need > row.have).collect();
    passed.dedup_by_key(|row| (row.need, row.have));
    passed
}

/// The peak of each row of the budget in use, with its holders.
pub fn section(estimate: &Estimate, budget: &Budget) -> String {
    let mut table =
        Table::new(&[Column::Left, Column::Right, Column::Left, Column::Left]).indent(2);
    for row in in_use(estimate, budget) {
        rows(&mut table, &row, estimate);
    }
    table.render()
}

/// The rows of the budget that are in use.
pub fn in_use<'a>(estimate: &Estimate, budget: &'a Budget) -> Vec<Row<'a>> {
    let pageable = estimate.peak.host > Bytes::ZERO;
    let rows = budget.rows.iter().map(|(places, most)| Row {
        places,
        need: sum(&estimate.peak, places),
        have: *most,
    });
    // Without pageable memory the row of the whole host repeats the row of its pinned part.
    let repeats = |row: &Row| *row.places == [Place::Pinned, Place::Host] && !pageable;
    let shown =
        |row: &Row| (row.need > Bytes::ZERO && !repeats(row)) || row.places.contains(&Place::Gpu);
    rows.filter(shown).collect()
}

/// Who holds the places of a row at their peaks, the largest first.
pub fn held(estimate: &Estimate, places: &[Place]) -> Vec<(Role, Bytes)> {
    let mut held: Vec<(Role, Bytes)> = holders(estimate, places).into_iter().collect();
    held.sort_by_key(|(role, bytes)| (std::cmp::Reverse(*bytes), *role));
    held
}

fn rows(table: &mut Table, row: &Row, estimate: &Estimate) {
    let (places, used, most) = (row.places, row.need, row.have);
    let share = |part: Bytes, whole: Bytes| match whole.0 {
        0 => f64::from(u8::from(part.0 > 0)),
        _ => part.0 as f64 / whole.0 as f64,
    };
    let percent = match most.0 {
        0 => String::new(),
        _ => format!(" {:.0}%", 100.0 * share(used, most)),
    };
    let wide = if page() < NARROW.1 { NARROW.0 } else { BAR };
    table.row(vec![
        row_name(places).into(),
        used.to_string(),
        format!("{}{percent}", bar(share(used, most), wide)),
        format!("of {most}"),
    ]);
    for (role, bytes) in held(estimate, places) {
        let part = share(bytes, used);
        let name = format!("  {}", role_name(role));
        table.row(vec![name, bytes.to_string(), bar(part, wide)]);
    }
}

/// Time of a step, where it goes, and the peaks of all programs.
pub fn time(estimate: &Estimate) -> String {
    let waits = match estimate.exposed.0 {
        s if s > 0.0 && estimate.step.0 > 0.0 => format!(
            "; the device waits {} of it ({:.0}%) for copies and the host",
            estimate.exposed,
            100.0 * s / estimate.step.0
        ),
        _ => String::new(),
    };
    let line = format!(
        "{}, {:.0} tokens/s{waits}",
        estimate.step, estimate.tokens_per_second
    );
    let mut text = labelled("step", &line, LABEL);
    let phases = estimate.phases.iter();
    let phases = phases.map(|(&p, &s)| format!("{} {}", phase_name(p), Seconds(s)));
    text += &labelled("", &format!("device: {}", join(phases)), LABEL);
    let others = estimate.busy.iter().filter(|(s, _)| **s != Stream::Compute);
    let others = join(others.map(|(&s, &t)| format!("{} {}", stream_name(s), Seconds(t))));
    if !others.is_empty() {
        text += &labelled("", &format!("beside it: {others}"), LABEL);
    }
    text
}

/// The peak of each program on the device.
pub fn programs(estimate: &Estimate) -> String {
    let each = estimate.programs.iter();
    let each = each.map(|(when, bytes)| format!("{} {bytes}", when_name(*when)));
    labelled("peaks", &format!("on the device: {}", join(each)), LABEL)
}

/// A stream in words.
pub fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Compute => "device",
        Stream::HostCompute => "host updates",
        Stream::ToDevice => "copies to the device",
        Stream::ToHost => "copies to the host",
        Stream::DiskRead => "disk reads",
        Stream::DiskWrite => "disk writes",
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// Bytes by place; here `host` is pinned and pageable memory together.
pub fn places_json(peak: &PerPlace<Bytes>) -> Value {
    json!({
        "gpu": peak.gpu,
        "pinned": peak.pinned,
        "host": peak.pinned + peak.host,
        "disk": peak.disk,
    })
}

/// What may be used of each place.
pub fn budget_json(budget: &Budget) -> Value {
    json!({
        "gpu": budget.most(Place::Gpu),
        "pinned": budget.most(Place::Pinned),
        "host": budget.most(Place::Host),
        "disk": budget.most(Place::Disk),
    })
}

/// An estimate; integers are bytes.
pub fn json(estimate: &Estimate) -> Value {
    let program = |(when, bytes): &(When, Bytes)| json!({"when": when, "gpu": bytes});
    json!({
        "peak": places_json(&estimate.peak),
        "peak_by_role": estimate.peak_by_role,
        "peak_by_place": {
            "gpu": estimate.roles.gpu,
            "pinned": estimate.roles.pinned,
            "host": holders(estimate, &[Place::Pinned, Place::Host]),
            "disk": estimate.roles.disk,
        },
        "step_seconds": estimate.step,
        "exposed_seconds": estimate.exposed,
        "tokens_per_second": estimate.tokens_per_second,
        "phases": estimate.phases,
        "busy": estimate.busy,
        "programs": estimate.programs.iter().map(program).collect::<Value>(),
    })
}
