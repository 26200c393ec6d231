//! The front: the fastest step within less and more memory of the device, with the plan and what others would do.

use super::memory::RIGHT;
use super::svg::{Anchor, Axis, Canvas, byte_ticks, second_ticks, tick_text};
use crate::search::{Answer, Candidate};
use crate::show::alternatives::chosen;
use crate::show::choice::{class_name, plan_class};
use crate::spec::job::{Exactness, Place};
use crate::spec::units::{Bytes, Seconds};

/// Space at the left, for times.
const LEFT: f64 = 54.0;
/// Space at the top.
const TOP: f64 = 24.0;
/// Height of the field.
const HEIGHT: f64 = 220.0;

/// The figure; `None` where nothing is known beside the plan.
pub fn draw(answer: &Answer, width: f64) -> Option<Canvas> {
    if answer.front.is_empty() {
        return None;
    }
    let plan = chosen(answer);
    let (most, slowest) = reach(answer, plan);
    let mut canvas = Canvas::new(width, TOP + HEIGHT + 62.0);
    let x = Axis {
        values: (0.0, most.0 as f64 * 1.05),
        places: (LEFT, width - RIGHT),
    };
    let y = Axis {
        values: (0.0, slowest * 1.08),
        places: (TOP + HEIGHT, TOP),
    };
    grid(&mut canvas, (x, y), most, slowest);
    let budget = answer.budget.most(Place::Gpu);
    if budget.0 as f64 <= x.values.1 {
        let at = x.at(budget.0 as f64);
        canvas.line("limit", (at, TOP), (at, TOP + HEIGHT));
        let (anchor, beside) = match at > width / 2.0 {
            true => (Anchor::End, at - 5.0),
            false => (Anchor::Start, at + 5.0),
        };
        let says = format!("budget {budget}");
        canvas.text("small", anchor, (beside, TOP + 4.0), &says);
    }
    stairs(&mut canvas, answer, (x, y));
    dots(&mut canvas, answer, (x, y));
    let at = (
        x.at(plan.estimate.peak.gpu.0 as f64),
        y.at(plan.estimate.step.0),
    );
    canvas.dot("chosen", at, 7.5, &told(plan));
    canvas.text("small", Anchor::Start, (4.0, 12.0), "step");
    let right = width - RIGHT;
    canvas.text(
        "small",
        Anchor::End,
        (right, TOP + HEIGHT + 32.0),
        "memory of the device",
    );
    let classes = [Exactness::Bitwise, Exactness::Rounding, Exactness::Lossy].map(class_name);
    let entry = |class: &str| (class.to_string(), class.to_string());
    let mut entries: Vec<(String, String)> = classes.iter().map(|c| entry(c)).collect();
    entries.push(("other".into(), "what others would do".into()));
    entries.push(("chosen".into(), "this plan".into()));
    let end = canvas.legend((LEFT, TOP + HEIGHT + 50.0), &entries);
    canvas.height = end + 10.0;
    Some(canvas)
}

/// The largest memory and the longest step that are drawn: those of the front and of the plan.
fn reach(answer: &Answer, plan: &Candidate) -> (Bytes, f64) {
    let points = answer.front.iter().map(|p| (p.device, p.step.0));
    let own = (plan.estimate.peak.gpu, plan.estimate.step.0);
    let fold = |a: (Bytes, f64), b: (Bytes, f64)| (a.0.max(b.0), a.1.max(b.1));
    points.fold(own, fold)
}

fn grid(canvas: &mut Canvas, (x, y): (Axis, Axis), most: Bytes, slowest: f64) {
    let ticks = second_ticks(slowest, 5);
    let last = ticks.last().copied().unwrap_or(Seconds(0.0));
    for tick in ticks {
        let at = y.at(tick.0);
        canvas.line("grid", (LEFT, at), (canvas.width - RIGHT, at));
        let text = tick_text(tick, last);
        canvas.text("small", Anchor::End, (LEFT - 6.0, at + 4.0), &text);
    }
    for tick in byte_ticks(most) {
        let at = x.at(tick.0 as f64);
        canvas.line("grid", (at, TOP + HEIGHT), (at, TOP + HEIGHT + 4.0));
        if tick.0 > 0 {
            let text = tick.to_string().replace(".00 ", " ");
            canvas.text("small", Anchor::Middle, (at, TOP + HEIGHT + 17.0), &text);
        }
    }
}

/// The front as what it is: less memory than a point's takes the step of the point before it.
fn stairs(canvas: &mut Canvas, answer: &Answer, (x, y): (Axis, Axis)) {
    let mut line: Vec<(f64, f64)> = Vec::new();
    for point in &answer.front {
        let at = (x.at(point.device.0 as f64), y.at(point.step.0));
        if let Some(&(_, before)) = line.last() {
            line.push((at.0, before));
        }
        line.push(at);
    }
    if let Some(&(_, last)) = line.last() {
        line.push((canvas.width - RIGHT, last));
    }
    canvas.path("outline", &line, false);
}

fn dots(canvas: &mut Canvas, answer: &Answer, (x, y): (Axis, Axis)) {
    let others = answer.considered.iter().filter(|c| {
        let (device, step) = (c.estimate.peak.gpu.0 as f64, c.estimate.step.0);
        c.name != chosen(answer).name && device <= x.values.1 && step <= y.values.1
    });
    for other in others {
        let estimate = &other.estimate;
        let at = (x.at(estimate.peak.gpu.0 as f64), y.at(estimate.step.0));
        canvas.dot("other", at, 4.0, &told(other));
    }
    for point in &answer.front {
        let at = (x.at(point.device.0 as f64), y.at(point.step.0));
        let class = class_name(point.class);
        let title = format!(
            "{}: {} within {} ({class})",
            point.name, point.step, point.device
        );
        canvas.dot(class, at, 4.5, &title);
    }
}

/// A plan in words.
fn told(candidate: &Candidate) -> String {
    let class = class_name(plan_class(&candidate.plan));
    let estimate = &candidate.estimate;
    format!(
        "{}: {} with {} ({class})",
        candidate.name, estimate.step, estimate.peak.gpu
    )
}
