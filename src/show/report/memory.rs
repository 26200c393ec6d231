//! The parts of the page about memory: rows of the budget, and the curve over the step.

use super::Report;
use super::markup::{Row, Set, bytes, figure, paragraph, section, table};
use crate::graph::tensor::Role;
use crate::show::figure::svg::{escape, key};
use crate::show::figure::{Figure, WIDTHS, memory};
use crate::show::memory::{held, in_use, phase_name, role_name, row_name, when_name};
use crate::spec::job::Place;

/// Tensors listed at the peak.
const LISTED: usize = 12;

/// The rows of the budget, as bars and as numbers.
pub fn budget(report: &Report) -> String {
    let estimate = &report.best().estimate;
    let mut rows: Vec<Row> = Vec::new();
    for row in in_use(estimate, &report.answer.budget) {
        let place = at_place(row.places);
        let at = |root: &str| place.map_or(String::new(), |p| format!("{root}/{p}"));
        rows.push((
            "own",
            vec![
                row_name(row.places).to_string(),
                bytes(row.need, &at("/estimate/peak")),
                bytes(row.have, &at("/budget")),
            ],
        ));
        for (role, size) in held(estimate, row.places) {
            let role_at = match place {
                Some(place) => format!("/estimate/peak_by_place/{place}/{}", key(role)),
                None => String::new(),
            };
            let cells = vec![role_name(role).into(), bytes(size, &role_at), String::new()];
            rows.push(("part", cells));
        }
    }
    let heads = [
        ("", Set::Word),
        ("at the peak", Set::Number),
        ("of", Set::Number),
    ];
    let caption = "padding is alignment, and what placement cannot use";
    let body = report.figure(Figure::Budget, caption) + &table(&heads, &rows);
    section("Memory against the budget", &body)
}

/// The name in JSON of what a row bounds; none where several are bounded together.
fn at_place(places: &[Place]) -> Option<&'static str> {
    match places {
        [Place::Gpu] => Some("gpu"),
        [Place::Pinned] => Some("pinned"),
        [Place::Pinned, Place::Host] => Some("host"),
        [Place::Disk] => Some("disk"),
        _ => None,
    }
}

/// The curves of all places in use, and who is alive at the device's peak.
pub fn over_the_step(report: &Report) -> String {
    let caption = "Counted in the order of the program's text, and drawn at the times at which the device reaches it. A pointer on the curve \
                   tells the largest tensors alive there.";
    let mut body = report.figure(Figure::Memory, caption) + &at_the_peak(report);
    let budget = &report.answer.budget;
    for place in [Place::Pinned, Place::Host, Place::Disk] {
        let draw = |width| memory::draw(report.course, place, budget, width);
        let name = row_name(&[place]);
        let name = if place == Place::Host {
            "pageable host memory"
        } else {
            name
        };
        let label = format!("{name} over the step, by role, with its peak");
        let drawn = figure(WIDTHS.map(draw), &label, "");
        if !drawn.is_empty() {
            body += &format!("<h3>{name}</h3>\n{drawn}");
        }
    }
    for walk in &report.outside.walks {
        let program = walk.program;
        let estimate = &report.best().estimate;
        let reached = Place::ALL
            .into_iter()
            .filter(|p| program.height[*p] == estimate.peak[*p]);
        let reached = reached.filter(|p| estimate.peak[*p].0 > 0);
        let places: Vec<String> = reached
            .map(|p| format!("{} ({})", place_name(p), estimate.peak[p]))
            .collect();
        let text = format!(
            "Not drawn: the program `{}`, which runs outside of a step, reaches the peak of {}.",
            when_name(program.when),
            places.join(" and ")
        );
        body += &paragraph("note", &text);
    }
    section("Memory over the step", &body)
}

/// A place in words.
fn place_name(place: Place) -> &'static str {
    match place {
        Place::Host => "pageable host memory",
        place => row_name(&[place]),
    }
}

/// The largest tensors alive at the device's peak.
fn at_the_peak(report: &Report) -> String {
    let Some(peak) = report.course.peak(Place::Gpu) else {
        return String::new();
    };
    let program = report.course.walks[peak.walk].program;
    let alive = report.course.alive(peak, Place::Gpu);
    let text = format!(
        "At the peak, in the program `{}`, phase {}, instruction {} of {}, {} buffers are alive on the device; the largest:",
        when_name(program.when),
        peak.phase.map_or("none", phase_name),
        peak.at,
        program.code.len(),
        alive.len()
    );
    let row = |(name, role, size): (&str, Role, _)| -> Row {
        let cells = vec![bytes(size, ""), role_name(role).into(), escape(name)];
        ("", cells)
    };
    let rows = alive.iter().take(LISTED);
    let rows: Vec<Row> = rows.map(|b| row((&b.name, b.role, b.exact))).collect();
    let heads = [
        ("bytes", Set::Number),
        ("role", Set::Word),
        ("buffer", Set::Text),
    ];
    paragraph("", &text) + &table(&heads, &rows)
}
