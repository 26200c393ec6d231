//! The memory of a place over the step: who holds it, how much is allowed, and where the peak is.

use super::svg::{Anchor, Area, Axis, Canvas, byte_ticks, key, second_ticks, tick_text};
use crate::graph::tensor::Role;
use crate::show::course::{Course, Sample};
use crate::show::memory::{phase_name, role_name, when_name};
use crate::spec::job::{Budget, Place};
use crate::spec::units::{Bytes, Seconds};

/// Space at the left, for numbers.
pub(super) const LEFT: f64 = 66.0;
/// Space at the right.
pub(super) const RIGHT: f64 = 10.0;
/// Space at the top, for what the peak and the limit are called.
const TOP: f64 = 34.0;
/// Height of the curve.
const HEIGHT: f64 = 220.0;
/// Width of what one pointer position tells about.
const COLUMN: f64 = 3.0;
/// Tensors named at a pointer position.
const NAMED: usize = 6;

/// The roles from the bottom up: what stays first.
const ORDER: [Role; 7] = [
    Role::Parameter,
    Role::OptimizerState,
    Role::Gradient,
    Role::Input,
    Role::Activation,
    Role::Temporary,
    Role::Padding,
];

/// The figure of a place; `None` where it holds nothing.
pub fn draw(course: &Course, place: Place, budget: &Budget, width: f64) -> Option<Canvas> {
    let peak = course.peak(place)?;
    let count = ((width - LEFT - RIGHT) / COLUMN).max(1.0) as usize;
    let columns = course.columns(place, count);
    // A limit far above the curve would flatten it.
    let most = budget.most(place);
    let shown = Some(most).filter(|m| m.0 > 0 && m.0 / 2 <= peak.total.0);
    let top = shown.map_or(peak.total, |most| most.max(peak.total));
    let mut canvas = Canvas::new(width, TOP + HEIGHT + 68.0);
    let x = Axis {
        values: (0.0, course.end()),
        places: (LEFT, width - RIGHT),
    };
    let y = Axis {
        values: (0.0, top.0 as f64 * 1.02),
        places: (TOP + HEIGHT, TOP),
    };
    grid(&mut canvas, (x, y), top);
    let used = areas(&mut canvas, &columns, (x, y));
    seams(&mut canvas, course, x, (TOP, TOP + HEIGHT));
    marks(&mut canvas, (x, y), peak, shown);
    pointers(&mut canvas, course, place, (x, y), &columns);
    let entries = used.iter().rev();
    let entries: Vec<_> = entries
        .map(|r| (key(r), role_name(*r).to_string()))
        .collect();
    let end = canvas.legend((LEFT, TOP + HEIGHT + 40.0), &entries);
    canvas.height = end + 10.0;
    Some(canvas)
}

/// Lines and numbers behind the curve.
fn grid(canvas: &mut Canvas, (x, y): (Axis, Axis), top: Bytes) {
    for tick in byte_ticks(top) {
        let at = y.at(tick.0 as f64);
        canvas.line("grid", (LEFT, at), (canvas.width - RIGHT, at));
        let text = match tick.0 {
            0 => "0".to_string(),
            _ => tick.to_string().replace(".00 ", " "),
        };
        canvas.text("small", Anchor::End, (LEFT - 6.0, at + 4.0), &text);
    }
    time_axis(canvas, x, TOP + HEIGHT);
}

/// Times under a figure whose lower edge is at `bottom`.
pub(super) fn time_axis(canvas: &mut Canvas, x: Axis, bottom: f64) {
    let most = ((x.places.1 - x.places.0) / 90.0) as usize;
    let ticks = second_ticks(x.values.1, most);
    let last = ticks.last().copied().unwrap_or(Seconds(0.0));
    for tick in ticks {
        let at = x.at(tick.0);
        canvas.line("grid", (at, bottom), (at, bottom + 4.0));
        let text = tick_text(tick, last);
        canvas.text("small", Anchor::Middle, (at, bottom + 16.0), &text);
    }
}

/// Where one program ends and the next begins.
pub(super) fn seams(canvas: &mut Canvas, course: &Course, x: Axis, (top, bottom): (f64, f64)) {
    for walk in course.walks.iter().skip(1) {
        let at = x.at(walk.begin);
        canvas.line("seam", (at, top), (at, bottom));
    }
    if course.walks.len() < 2 {
        return;
    }
    for walk in &course.walks {
        let middle = x.at((walk.begin + walk.end()) / 2.0);
        let name = when_name(walk.program.when);
        // A name that does not fit between its seams is told by the text beside the figure.
        if x.at(walk.end()) - x.at(walk.begin) > 6.5 * name.chars().count() as f64 {
            canvas.text("small", Anchor::Middle, (middle, bottom + 28.0), &name);
        }
    }
}

/// The areas of the roles, one on another; those that are seen.
fn areas(canvas: &mut Canvas, columns: &[&Sample], (x, y): (Axis, Axis)) -> Vec<Role> {
    let mut floor = vec![0.0; columns.len()];
    let mut used = Vec::new();
    let wide = (x.places.1 - x.places.0) / columns.len().max(1) as f64;
    let steps = |levels: &[f64]| -> Vec<(f64, f64)> {
        let each = levels.iter().enumerate();
        let each = each.flat_map(|(at, level)| {
            let left = x.places.0 + wide * at as f64;
            [(left, y.at(*level)), (left + wide, y.at(*level))]
        });
        each.collect()
    };
    for role in ORDER {
        let held = columns.iter().map(|s| s.roles.get(&role).copied());
        let held: Vec<f64> = held.map(|b| b.unwrap_or_default().0 as f64).collect();
        if held.iter().all(|b| *b == 0.0) {
            continue;
        }
        let lower = steps(&floor);
        floor.iter_mut().zip(&held).for_each(|(f, h)| *f += h);
        let mut outline = steps(&floor);
        outline.extend(lower.into_iter().rev());
        outline.dedup();
        canvas.path(&key(role), &outline, true);
        used.push(role);
    }
    used
}

/// The peak and the limit, with what they are.
fn marks(canvas: &mut Canvas, (x, y): (Axis, Axis), peak: &Sample, most: Option<Bytes>) {
    let right = canvas.width - RIGHT;
    if let Some(most) = most {
        let at = y.at(most.0 as f64);
        canvas.line("limit", (LEFT, at), (right, at));
        canvas.text(
            "small",
            Anchor::End,
            (right, 12.0),
            &format!("-- budget {most}"),
        );
    }
    let (at, height) = (x.at(peak.time), y.at(peak.total.0 as f64));
    let title = format!("peak {}", peak.total);
    canvas.dot("peak", (at, height), 4.0, &title);
    let text = format!("\u{25cb} {title} at {}", Seconds(peak.time));
    canvas.text("strong", Anchor::Start, (4.0, 12.0), &text);
}

/// What a pointer on the curve tells: the moment, the load, and the largest tensors alive.
fn pointers(
    canvas: &mut Canvas,
    course: &Course,
    place: Place,
    (x, y): (Axis, Axis),
    columns: &[&Sample],
) {
    let wide = (x.places.1 - x.places.0) / columns.len().max(1) as f64;
    for (at, sample) in columns.iter().enumerate() {
        let area = Area {
            x: x.places.0 + wide * at as f64,
            y: y.places.1,
            width: wide,
            height: HEIGHT,
        };
        canvas.rect("column", area, &told(course, sample, place));
    }
}

/// A sample in words.
pub fn told(course: &Course, sample: &Sample, place: Place) -> String {
    let phase = sample.phase.map_or("", phase_name);
    let mut text = format!("{} {phase}: {}", Seconds(sample.time), sample.total);
    for buffer in course.alive(sample, place).into_iter().take(NAMED) {
        text += &format!(
            "\n{}  {} ({})",
            buffer.exact,
            buffer.name,
            role_name(buffer.role)
        );
    }
    text
}
