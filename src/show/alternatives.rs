//! Which of the plans considered are worth a row beside the one that was chosen.

use std::collections::BTreeSet;

use super::choice::class_name;
use super::memory::places_json;
use super::table::{Column, Table, labelled};
use crate::plan::Request;
use crate::search::{Answer, Candidate, Outcome, baselines};
use crate::spec::job::Budget;
use crate::spec::units::Bytes;
use serde_json::{Value, json};

/// Most rows of the table.
const ROWS: usize = 12;

/// Everything that was considered, the chosen or closest plan as it was proved.
pub(super) fn considered(answer: &Answer) -> Vec<&Candidate> {
    let chosen = chosen(answer);
    let each = answer.considered.iter();
    each.map(|c| if c.name == chosen.name { chosen } else { c })
        .collect()
}

/// The plan that was chosen, or came closest.
pub fn chosen(answer: &Answer) -> &Candidate {
    match &answer.outcome {
        Outcome::Fits(best) => best,
        Outcome::Misfit(misfit) => &misfit.closest,
    }
}

/// The rows: the baselines, then plans that no other row beats in both time and memory, the fastest first.
pub fn rows<'a>(answer: &'a Answer, request: &Request) -> Vec<&'a Candidate> {
    let known: BTreeSet<String> = baselines::all(request)
        .into_iter()
        .map(|(n, _)| n)
        .collect();
    let (mut rows, mut others): (Vec<&Candidate>, Vec<&Candidate>) = considered(answer)
        .into_iter()
        .filter(|c| c.family.is_none() || c.name == chosen(answer).name)
        .partition(|c| known.contains(&c.name));
    let mut seen = BTreeSet::new();
    rows.retain(|c| seen.insert(price(c)));
    let any_fits = others.iter().any(|c| c.fits(&answer.budget));
    others.retain(|c| !any_fits || c.fits(&answer.budget));
    others.sort_by_key(|c| price(c));
    let mut frontier: Vec<&Candidate> = Vec::new();
    for candidate in others {
        if !frontier.iter().any(|f| beats(f, candidate)) {
            frontier.push(candidate);
        }
    }
    let chosen = chosen(answer);
    let room = ROWS.saturating_sub(rows.len() + 1);
    let mut rest = spread(frontier, room);
    if !rows.iter().chain(&rest).any(|c| c.name == chosen.name) {
        rest.push(chosen);
        rest.sort_by_key(|c| price(c));
    }
    rows.extend(rest);
    rows
}

/// At most `room` of the plans, the first and the last among them.
fn spread(plans: Vec<&Candidate>, room: usize) -> Vec<&Candidate> {
    let (count, last) = (plans.len(), room.saturating_sub(1).max(1));
    let kept = |at: &usize| count <= room || (0..room).any(|n| n * (count - 1) / last == *at);
    let numbered = plans.into_iter().enumerate();
    numbered
        .filter(|(at, _)| kept(at))
        .map(|(_, p)| p)
        .collect()
}

/// Time, then memory: equal prices are one plan by two names.
fn price(c: &Candidate) -> (u64, Bytes, Bytes, Bytes) {
    let peak = &c.estimate.peak;
    (
        c.estimate.step.0.to_bits(),
        peak.gpu,
        peak.pinned + peak.host,
        peak.disk,
    )
}

/// Whether `a`, which is no slower, takes no more anywhere.
fn beats(a: &Candidate, b: &Candidate) -> bool {
    let (_, gpu, host, disk) = price(a);
    let (_, gpu_b, host_b, disk_b) = price(b);
    gpu <= gpu_b && host <= host_b && disk <= disk_b
}

/// The table of alternatives.
pub fn table(answer: &Answer, request: &Request) -> String {
    use Column::{Left, Right, Wrapped};
    let heads = ["", "plan", "device", "host", "disk", "step", "fits"];
    let columns = [Left, Wrapped, Right, Right, Right, Right, Left];
    // What a narrow terminal does without: the disk, the host.
    let mut table = Table::new(&columns).gives_way(&[4, 3]).heads(&heads);
    let rows = rows(answer, request);
    for candidate in &rows {
        let mark = match candidate.name == chosen(answer).name {
            true => ">",
            false => "",
        };
        table.row(row(mark, candidate, &answer.budget));
    }
    let note = match rows.iter().all(|c| c.exact) {
        true => String::new(),
        false => labelled(
            "",
            "> was lowered and checked whole; the others' numbers are continued from fewer layers",
            0,
        ),
    };
    table.render() + &note + &lossy(answer)
}

/// Of each lossy method the fastest plan that fits, or else the smallest, with what is known of its quality.
pub(super) fn families(answer: &Answer) -> Vec<&Candidate> {
    let plans = considered(answer)
        .into_iter()
        .filter(|c| c.family.is_some());
    let mut best: Vec<&Candidate> = Vec::new();
    for plan in plans {
        let rank = |c: &Candidate| match c.fits(&answer.budget) {
            true => (0, price(c)),
            false => (
                1,
                (c.estimate.peak.gpu.0, Bytes::ZERO, Bytes::ZERO, Bytes::ZERO),
            ),
        };
        match best.iter_mut().find(|c| c.family == plan.family) {
            Some(other) if rank(plan) < rank(other) => *other = plan,
            Some(_) => {}
            None => best.push(plan),
        }
    }
    best
}

/// The table of lossy methods, where they were asked for.
fn lossy(answer: &Answer) -> String {
    use Column::{Left, Right, Wrapped};
    let plans = families(answer);
    if plans.is_empty() {
        return String::new();
    }
    let heads = [
        "lossy method",
        "device",
        "step",
        "fits",
        "what is known of its quality",
    ];
    let mut table = Table::new(&[Wrapped, Right, Right, Left, Wrapped]).heads(&heads);
    for plan in plans {
        table.row(vec![
            plan.name.clone(),
            plan.estimate.peak.gpu.to_string(),
            plan.estimate.step.to_string(),
            if plan.fits(&answer.budget) {
                "yes"
            } else {
                "no"
            }
            .to_string(),
            plan.family.map_or(String::new(), |f| f.quality.to_string()),
        ]);
    }
    format!("\n{}", table.render())
}

fn row(mark: &str, candidate: &Candidate, budget: &Budget) -> Vec<String> {
    let peak = &candidate.estimate.peak;
    let size = |bytes: Bytes| match bytes.0 {
        0 => "-".to_string(),
        _ => bytes.to_string(),
    };
    vec![
        mark.to_string(),
        candidate.name.clone(),
        size(peak.gpu),
        size(peak.pinned + peak.host),
        size(peak.disk),
        candidate.estimate.step.to_string(),
        if candidate.fits(budget) { "yes" } else { "no" }.to_string(),
    ]
}

/// The fastest step within less and more of the device's memory.
pub fn front(answer: &Answer) -> String {
    use Column::{Left, Right, Wrapped};
    if answer.front.len() < 2 {
        return String::new();
    }
    let heads = ["device", "step", "results", "plan"];
    let mut table = Table::new(&[Right, Right, Left, Wrapped]).heads(&heads);
    for point in &answer.front {
        let (device, step) = (point.device.to_string(), point.step.to_string());
        let class = class_name(point.class).to_string();
        table.row(vec![device, step, class, point.name.clone()]);
    }
    format!(
        "\nfront: the step that is proposed within less and more of the device\n{}",
        table.render()
    )
}

/// Everything that was considered, the baselines first.
pub fn json(answer: &Answer) -> Value {
    let one = |c: &Candidate| {
        json!({
            "name": c.name,
            "fits": c.fits(&answer.budget),
            "exact": c.exact,
            "family": c.family.map(|f| f.name),
            "quality": c.family.map(|f| f.quality),
            "chosen": c.name == chosen(answer).name,
            "peak": places_json(&c.estimate.peak),
            "step_seconds": c.estimate.step,
            "tokens_per_second": c.estimate.tokens_per_second,
            "choices": c.plan.choices.iter().map(ToString::to_string).collect::<Value>(),
        })
    };
    considered(answer).into_iter().map(one).collect()
}
