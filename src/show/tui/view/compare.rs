//! Two plans side by side: the pinned one, the one of now, and how they differ by role and by queue.

use std::collections::{BTreeMap, BTreeSet};

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

use super::memory::{part_name, short};
use super::{Look, clipped, title};
use crate::show::tui::found::{Bar, Found, Known};
use crate::show::tui::state::State;
use crate::spec::units::{Bytes, Seconds};

/// Columns of names.
const NAME: usize = 17;
/// Columns of a figure.
const FIGURE: usize = 10;

/// Draws both plans.
pub fn draw(frame: &mut Frame, area: Rect, state: &State, pinned: &Known, look: &Look) {
    let inside = title(frame, area, "pinned and now", look);
    let Some((now, freshness)) = state.shown() else {
        return;
    };
    let look = &look.of(freshness);
    let mut lines = vec![Line::styled(
        row("", "pinned", "now", "difference"),
        look.strong(),
    )];
    let plain = |text: String| Line::styled(text, look.plain());
    lines.extend(times(&pinned.found, now).into_iter().map(plain));
    for (label, a, b) in paired(&pinned.found, now) {
        lines.push(Line::styled(bytes(label, used(a), used(b)), look.strong()));
        lines.extend(parts(a, b).into_iter().map(plain));
    }
    lines.push(Line::styled("choices", look.strong()));
    lines.extend(choices(pinned, state).into_iter().map(plain));
    lines.push(Line::styled("plans", look.strong()));
    lines.push(plain(format!("  pinned: {}", pinned.found.name)));
    lines.push(plain(format!("  now: {}", now.name)));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), inside);
}

fn row(name: &str, a: &str, b: &str, difference: &str) -> String {
    let name = clipped(name, NAME);
    format!("{name:<NAME$}{a:>FIGURE$} {b:>FIGURE$} {difference:>FIGURE$}")
}

fn sign(more: bool) -> &'static str {
    if more { "+" } else { "-" }
}

fn seconds(name: &str, a: Seconds, b: Seconds) -> String {
    let difference = match (b.0 - a.0).abs() {
        d if d < 1e-9 => "=".to_string(),
        d => format!("{}{}", sign(b.0 > a.0), Seconds(d)),
    };
    row(name, &a.to_string(), &b.to_string(), &difference)
}

fn bytes(name: &str, a: Bytes, b: Bytes) -> String {
    let difference = match a == b {
        true => "=".to_string(),
        false => {
            let size = a.max(b) - a.min(b);
            format!("{}{}", sign(b > a), short(size))
        }
    };
    row(name, &size(a), &size(b), &difference)
}

fn size(bytes: Bytes) -> String {
    match bytes.0 {
        0 => "-".to_string(),
        _ => bytes.to_string(),
    }
}

/// The step, and the work of each queue in it.
fn times(a: &Found, b: &Found) -> Vec<String> {
    let mut lines = vec![
        seconds("step", a.step, b.step),
        row(
            "tokens/s",
            &format!("{:.0}", a.tokens_per_second),
            &format!("{:.0}", b.tokens_per_second),
            &format!("{:+.0}", b.tokens_per_second - a.tokens_per_second),
        ),
    ];
    let mut names: Vec<&str> = a.lanes.iter().map(|lane| lane.name).collect();
    names.extend(b.lanes.iter().map(|lane| lane.name));
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    for name in names {
        let busy = |of: &Found| {
            let lane = of.lanes.iter().find(|lane| lane.name == name);
            lane.map_or(Seconds(0.0), |lane| lane.busy)
        };
        lines.push(seconds(&format!("  {name}"), busy(a), busy(b)));
    }
    lines
}

/// The rows of both budgets, those of the first first.
fn paired<'a>(a: &'a Found, b: &'a Found) -> Vec<(&'static str, Option<&'a Bar>, Option<&'a Bar>)> {
    let mut labels: Vec<&'static str> = a.bars.iter().map(|bar| bar.label).collect();
    labels.extend(b.bars.iter().map(|bar| bar.label));
    let mut seen = BTreeSet::new();
    labels.retain(|label| seen.insert(*label));
    let of = |found: &'a Found, label: &str| found.bars.iter().find(|bar| bar.label == label);
    let pair = |label: &'static str| (label, of(a, label), of(b, label));
    labels.into_iter().map(pair).collect()
}

fn used(bar: Option<&Bar>) -> Bytes {
    bar.map_or(Bytes::ZERO, |bar| bar.used)
}

fn parts(a: Option<&Bar>, b: Option<&Bar>) -> Vec<String> {
    let mut held: BTreeMap<_, (Bytes, Bytes)> = BTreeMap::new();
    for (part, bytes) in a.into_iter().flat_map(|bar| &bar.parts) {
        held.entry(*part).or_default().0 = *bytes;
    }
    for (part, bytes) in b.into_iter().flat_map(|bar| &bar.parts) {
        held.entry(*part).or_default().1 = *bytes;
    }
    let line = |(part, (a, b))| bytes(&format!("  {}", part_name(part)), a, b);
    held.into_iter().map(line).collect()
}

/// What only one of them chooses, in the settings or by search.
fn choices(pinned: &Known, state: &State) -> Vec<String> {
    let texts = |found: &Found| -> BTreeSet<String> {
        let chosen = found.choices.iter().map(ToString::to_string);
        match found.choices.is_empty() {
            true => found.used.clone(),
            false => chosen.collect(),
        }
    };
    let now = state
        .shown()
        .map_or_else(BTreeSet::new, |(found, _)| texts(found));
    let then = texts(&pinned.found);
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>, label: &str| {
        let all: Vec<String> = a.difference(b).cloned().collect();
        format!(
            "  only {label}: {}",
            if all.is_empty() {
                "-".into()
            } else {
                all.join("; ")
            }
        )
    };
    vec![only(&then, &now, "pinned"), only(&now, &then, "now")]
}
