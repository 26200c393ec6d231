//! The parts of the page that list: choices, the front, alternatives.

use super::Report;
use super::markup::{Row, Set, bytes, paragraph, seconds, section, some_bytes, table};
use crate::plan::Choice;
use crate::search::Candidate;
use crate::show::alternatives::{considered, families, rows};
use crate::show::choice::{class_name, plan_class, sentence, standing};
use crate::show::figure::Figure;
use crate::show::figure::svg::escape;

/// The choices of the plan.
pub fn choices(report: &Report) -> String {
    let plan = report.plan();
    let row = |choice: &Choice| -> Row {
        let command = format!("<code>{}</code>", escape(&choice.to_string()));
        let standing = standing(choice, plan).to_string();
        ("", vec![command, escape(&sentence(choice)), standing])
    };
    let rows: Vec<Row> = plan.choices.iter().map(row).collect();
    let heads = [
        ("choice", Set::Text),
        ("what it does", Set::Text),
        ("class", Set::Word),
    ];
    section("What the plan chooses", &table(&heads, &rows))
}

/// The front, as a figure and as numbers.
pub fn front(report: &Report) -> String {
    let points = report.answer.front.iter().enumerate();
    let row = |(at, point): (usize, &crate::search::front::Point)| -> Row {
        let cells = vec![
            bytes(point.device, &format!("/front/{at}/device_bytes")),
            seconds(point.step, &format!("/front/{at}/step_seconds")),
            class_name(point.class).to_string(),
            escape(&point.name),
        ];
        ("", cells)
    };
    let rows: Vec<Row> = points.map(row).collect();
    if rows.is_empty() {
        let text = "No front: the search has nothing to choose from for this job.";
        return section("Less memory, more time", &paragraph("", text));
    }
    let heads = [
        ("device", Set::Number),
        ("step", Set::Number),
        ("class", Set::Word),
        ("plan", Set::Text),
    ];
    let caption = "The fastest step that is proposed within less and more of the device's memory; proposals are not lowered whole. \
                   Bitwise: equal losses. Rounding: equal up to the order of sums. Lossy: different by design.";
    let body = report.figure(Figure::Front, caption) + &table(&heads, &rows);
    section("Less memory, more time", &body)
}

/// What else was considered.
pub fn alternatives(report: &Report) -> String {
    let answer = report.answer;
    let shown = rows(answer, report.request);
    let all = considered(answer);
    let place = |c: &Candidate| all.iter().position(|other| std::ptr::eq(*other, c));
    let row = |candidate: &&Candidate| -> Row {
        let at = place(candidate).map_or(String::new(), |n| format!("/alternatives/{n}"));
        let under = |tail: &str| match at.as_str() {
            "" => String::new(),
            at => format!("{at}/{tail}"),
        };
        let estimate = &candidate.estimate;
        let (peak, own) = (&estimate.peak, candidate.name == report.best().name);
        let cells = vec![
            escape(&candidate.name),
            some_bytes(peak.gpu, &under("peak/gpu")),
            some_bytes(peak.pinned + peak.host, &under("peak/host")),
            some_bytes(peak.disk, &under("peak/disk")),
            seconds(estimate.step, &under("step_seconds")),
            class_name(plan_class(&candidate.plan)).to_string(),
            yes(candidate.fits(&answer.budget)).to_string(),
        ];
        (if own { "own" } else { "" }, cells)
    };
    let heads = [
        ("plan", Set::Text),
        ("device", Set::Number),
        ("host", Set::Number),
        ("disk", Set::Number),
        ("step", Set::Number),
        ("class", Set::Word),
        ("fits", Set::Word),
    ];
    let list: Vec<Row> = shown.iter().map(row).collect();
    let mut body = table(&heads, &list);
    if shown.iter().any(|c| !c.exact) {
        let text = "This plan was lowered and checked whole; others' numbers may be continued from fewer layers.";
        body += &paragraph("note", text);
    }
    section("Alternatives", &(body + &lossy(report)))
}

/// Lossy methods, where they were asked for.
fn lossy(report: &Report) -> String {
    let row = |plan: &&Candidate| -> Row {
        let quality = plan.family.map_or("", |family| family.quality);
        let cells = vec![
            escape(&plan.name),
            bytes(plan.estimate.peak.gpu, ""),
            seconds(plan.estimate.step, ""),
            yes(plan.fits(&report.answer.budget)).to_string(),
            escape(quality),
        ];
        ("", cells)
    };
    let rows: Vec<Row> = families(report.answer).iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let heads = [
        ("lossy method", Set::Text),
        ("device", Set::Number),
        ("step", Set::Number),
        ("fits", Set::Word),
        ("what is known of its quality", Set::Text),
    ];
    table(&heads, &rows)
}

fn yes(fits: bool) -> &'static str {
    if fits { "yes" } else { "no" }
}
