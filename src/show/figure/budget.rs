//! Each row of the budget as a bar: who holds it at its peak, and what is left or lacks.

use super::svg::{Anchor, Area, Canvas, LETTER, key};
use crate::machine::estimate::Estimate;
use crate::show::memory::{Row, held, in_use, role_name, row_name};
use crate::spec::job::Budget;

/// Height of a bar.
const BAR: f64 = 22.0;
/// Height of a bar with its text.
const ROW: f64 = 52.0;
/// Space at both sides.
const SIDE: f64 = 10.0;

/// The figure.
pub fn draw(estimate: &Estimate, budget: &Budget, width: f64) -> Canvas {
    let rows = in_use(estimate, budget);
    let bottom = ROW * rows.len() as f64;
    let mut canvas = Canvas::new(width, bottom + 40.0);
    for (at, row) in rows.iter().enumerate() {
        bar(&mut canvas, row, estimate, ROW * at as f64);
    }
    let mut roles: Vec<_> = rows
        .iter()
        .flat_map(|row| held(estimate, row.places))
        .collect();
    roles.sort_by_key(|(role, _)| *role);
    roles.dedup_by_key(|(role, _)| *role);
    let entries = roles
        .iter()
        .map(|(r, _)| (key(r), role_name(*r).to_string()));
    let end = canvas.legend((SIDE, bottom + 18.0), &entries.collect::<Vec<_>>());
    canvas.height = end + 10.0;
    canvas
}

fn bar(canvas: &mut Canvas, row: &Row, estimate: &Estimate, top: f64) {
    let width = canvas.width - 2.0 * SIDE;
    // A row that is passed is drawn to what it needs, with a line where what there is ends.
    let whole = row.need.max(row.have).0.max(1) as f64;
    let (need, have) = (row.need, row.have);
    let says = match (need > have, have.0) {
        // A phone has no room for more.
        (true, _) if width < 480.0 => format!("{} too much", need - have),
        (true, _) => format!("{} too much: {need} of {have}", need - have),
        (false, 0) => format!("{need} of {have}"),
        (false, most) => {
            let percent = 100.0 * need.0 as f64 / most as f64;
            format!("{need} of {have}, {percent:.0} %")
        }
    };
    let y = top + 16.0;
    let name = row_name(row.places);
    canvas.text("strong", Anchor::Start, (SIDE, y), name);
    let class = if need > have { "small over" } else { "small" };
    canvas.text(class, Anchor::End, (SIDE + width, y), &says);
    let lane = Area {
        x: SIDE,
        y: top + 24.0,
        width,
        height: BAR,
    };
    canvas.rect("track", lane, "");
    let mut x = SIDE;
    for (role, bytes) in held(estimate, row.places) {
        let part = Area {
            x,
            width: width * bytes.0 as f64 / whole,
            ..lane
        };
        let says = format!("{} {bytes}", role_name(role));
        canvas.rect(&key(role), part, &says);
        // A part says what it is where there is room.
        if part.width > LETTER * says.chars().count() as f64 + 12.0 {
            let middle = (part.x + part.width / 2.0, part.y + BAR / 2.0 + 4.0);
            canvas.text(&format!("on {}", key(role)), Anchor::Middle, middle, &says);
        }
        x += part.width;
    }
    if need > have {
        let limit = SIDE + width * have.0 as f64 / whole;
        canvas.line("limit", (limit, top + 20.0), (limit, top + 28.0 + BAR));
    }
}
