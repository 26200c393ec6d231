//! The front: the fastest step within less and more memory, and where the plan stands.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::memory::{joined, short};
use super::{Look, title};
use crate::show::tui::found::{Found, Spot};
use crate::show::tui::state::State;
use crate::spec::units::Bytes;

/// Columns of the numbers at the left.
const MARGIN: usize = 8;

/// What of memory and time is drawn, and where.
struct Frontiers {
    memory: (f64, f64),
    step: (f64, f64),
    columns: usize,
    rows: usize,
}

impl Frontiers {
    /// The cell of a point: memory by its logarithm, time from the bottom.
    fn cell(&self, memory: Bytes, step: f64) -> (usize, usize) {
        let part = |value: f64, (low, high): (f64, f64), cells: usize| {
            let share = match high > low {
                true => ((value - low) / (high - low)).clamp(0.0, 1.0),
                false => 0.5,
            };
            (share * cells.saturating_sub(1) as f64).round() as usize
        };
        let log = (memory.0.max(1) as f64).ln();
        let row = part(step, self.step, self.rows);
        (part(log, self.memory, self.columns), self.rows - 1 - row)
    }
}

/// Draws the front, the plan on it, and the point that is looked at.
pub fn draw(frame: &mut Frame, area: Rect, state: &State, found: &Found, look: &Look) {
    let front = state.front();
    let walked = state
        .walk
        .and_then(|at| front.get(at).map(|spot| (at, spot)));
    let said = match walked {
        None => "front: memory x step".to_string(),
        Some((at, _)) => format!("front: point {} of {}", at + 1, front.len()),
    };
    let inside = title(frame, area, &said, look);
    if front.is_empty() || inside.height < 3 {
        let none = Line::styled("no front yet", look.dim());
        frame.render_widget(
            none,
            Rect {
                height: inside.height.min(1),
                ..inside
            },
        );
        return;
    }
    let told = match (walked, inside.height) {
        (None, _) => 0,
        (Some(_), h) if h < 6 => 1,
        (Some(_), h) => (h / 3).min(4),
    };
    let rows = usize::from(inside.height - 1 - told);
    let columns = usize::from(inside.width).saturating_sub(MARGIN + 1);
    let limits = limits(front, found, columns, rows);
    let cells = cells(&limits, state, found, look);
    for (row, cells) in cells.iter().enumerate() {
        let label = match row {
            0 => crate::spec::units::Seconds(limits.step.1).to_string(),
            r if r + 1 == rows => crate::spec::units::Seconds(limits.step.0).to_string(),
            _ => String::new(),
        };
        let mut spans = vec![Span::styled(format!("{label:>MARGIN$} "), look.dim())];
        spans.extend(joined(cells).spans);
        let place = Rect {
            y: inside.y + row as u16,
            height: 1,
            ..inside
        };
        frame.render_widget(Line::from(spans), place);
    }
    below(frame, inside, &limits, walked.map(|(_, spot)| spot), look);
}

/// The memory axis, and what is told of the point that is looked at.
fn below(frame: &mut Frame, inside: Rect, limits: &Frontiers, walked: Option<&Spot>, look: &Look) {
    let bytes = |log: f64| short(Bytes(log.exp().round() as u64));
    let (low, high) = (bytes(limits.memory.0), bytes(limits.memory.1));
    let columns = limits.columns + 1;
    let axis = Line::styled(format!("{low:>MARGIN$}{high:>columns$}"), look.dim());
    let place = |y: u16, height: u16| Rect {
        y,
        height: height.min(inside.bottom().saturating_sub(y)),
        ..inside
    };
    let y = inside.y + limits.rows as u16;
    frame.render_widget(axis, place(y, 1));
    if let Some(spot) = walked {
        let said = format!("{}, {}: {}", short(spot.memory), spot.step, spot.name);
        let text = Paragraph::new(Line::styled(said, look.strong()));
        frame.render_widget(text.wrap(Wrap { trim: true }), place(y + 1, inside.height));
    }
}

fn limits(front: &[Spot], found: &Found, columns: usize, rows: usize) -> Frontiers {
    let used = found.bars.first().map_or(Bytes::ZERO, |bar| bar.used);
    let memory = front.iter().map(|s| s.memory).chain([used]);
    let memory: Vec<f64> = memory.map(|m| (m.0.max(1) as f64).ln()).collect();
    let step = front.iter().map(|s| s.step.0).chain([found.step.0]);
    let step: Vec<f64> = step.collect();
    let ends = |all: &[f64]| {
        let low = all.iter().copied().fold(f64::INFINITY, f64::min);
        (low, all.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    };
    Frontiers {
        memory: ends(&memory),
        step: ends(&step),
        columns: columns.max(1),
        rows: rows.max(1),
    }
}

/// The picture: `o` points, `●` the plan, `◎` the point that is looked at, `▲` the pinned plan, `┊` where the budget ends.
fn cells(limits: &Frontiers, state: &State, found: &Found, look: &Look) -> Vec<Vec<(char, Style)>> {
    let mut cells = vec![vec![(' ', look.plain()); limits.columns]; limits.rows];
    let mut put = |memory: Bytes, step: f64, mark: (char, Style)| {
        let (column, row) = limits.cell(memory, step);
        cells[row][column] = mark;
    };
    let bar = found.bars.first();
    let most = bar.map_or(Bytes::ZERO, |bar| bar.most);
    let inside = (most.0.max(1) as f64).ln();
    if inside >= limits.memory.0 && inside <= limits.memory.1 {
        for row in 0..limits.rows {
            let share = row as f64 / limits.rows.max(2).saturating_sub(1) as f64;
            let step = limits.step.0 + share * (limits.step.1 - limits.step.0);
            put(most, step, ('┊', look.dim()));
        }
    }
    for spot in state.front() {
        put(spot.memory, spot.step.0, ('o', look.title()));
    }
    if let Some(pinned) = &state.pinned {
        let used = pinned
            .found
            .bars
            .first()
            .map_or(Bytes::ZERO, |bar| bar.used);
        put(used, pinned.found.step.0, ('▲', look.warn()));
    }
    put(
        bar.map_or(Bytes::ZERO, |b| b.used),
        found.step.0,
        ('●', look.good()),
    );
    if let Some(spot) = state.walk.and_then(|at| state.front().get(at)) {
        put(spot.memory, spot.step.0, ('◎', look.warn()));
    }
    cells
}
