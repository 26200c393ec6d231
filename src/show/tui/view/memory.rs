//! What a plan takes of each row of the budget, as bars of parts.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{Look, title};
use crate::show::memory::role_name;
use crate::show::tui::found::{Bar, Found, Part};
use crate::spec::units::Bytes;

/// Rows of a bar: its figures, itself, and its parts.
const ROWS: u16 = 3;

/// Rows that the bars take of an area.
pub fn height(found: &Found, area: Rect) -> u16 {
    let most = if area.height < 24 { 2 } else { 4 };
    1 + ROWS * found.bars.len().min(most) as u16
}

/// Draws the bars.
pub fn draw(frame: &mut Frame, area: Rect, found: &Found, look: &Look) {
    let inside = title(frame, area, "peak by role", look);
    for (at, bar) in found.bars.iter().enumerate() {
        let y = inside.y + ROWS * at as u16;
        if y + ROWS > inside.bottom() {
            return;
        }
        let row = |n: u16| Rect {
            y: y + n,
            height: 1,
            ..inside
        };
        frame.render_widget(figures(bar, look), row(0));
        frame.render_widget(stacked(bar, inside.width, look), row(1));
        frame.render_widget(legend(bar, inside.width, look), row(2));
    }
}

fn figures(bar: &Bar, look: &Look) -> Line<'static> {
    let over = bar.used.saturating_sub(bar.most);
    let mut spans = vec![
        Span::styled(format!("{} ", bar.label), look.strong()),
        Span::styled(
            format!("{} of {}", short(bar.used), short(bar.most)),
            look.plain(),
        ),
    ];
    spans.push(match (over, bar.most.0) {
        (Bytes::ZERO, 0) => Span::raw(""),
        (Bytes::ZERO, most) => {
            let share = 100.0 * bar.used.0 as f64 / most as f64;
            Span::styled(format!(", {share:.0} %"), look.plain())
        }
        (over, _) => Span::styled(format!(", OVER by {}", short(over)), look.bad()),
    });
    Line::from(spans)
}

/// The bar: a character for each part, `·` for what is free, `┃` where the budget ends.
fn stacked(bar: &Bar, width: u16, look: &Look) -> Line<'static> {
    let width = usize::from(width);
    let full = bar.used.max(bar.most).0.max(1) as f64;
    let cell = |bytes: u64| (bytes as f64 / full * width as f64).round() as usize;
    let mut cells: Vec<(char, Style)> = vec![('·', look.dim()); width];
    let mut before = 0;
    for (part, bytes) in &bar.parts {
        let (from, to) = (cell(before), cell(before + bytes.0));
        cells[from.min(width)..to.min(width)].fill(look.part(*part));
        before += bytes.0;
    }
    if bar.used > bar.most {
        cells[cell(bar.most.0).min(width - 1)] = ('┃', look.bad());
    }
    joined(&cells)
}

/// Cells of one style as one span.
pub(super) fn joined(cells: &[(char, Style)]) -> Line<'static> {
    let runs = cells.chunk_by(|a, b| a.1 == b.1);
    let span = |run: &[(char, Style)]| {
        let text: String = run.iter().map(|(c, _)| *c).collect();
        Span::styled(text, run[0].1)
    };
    Line::from(runs.map(span).collect::<Vec<_>>())
}

/// What the characters stand for: as many parts as there is room for, the largest first.
fn legend(bar: &Bar, width: u16, look: &Look) -> Line<'static> {
    let (mut spans, mut used) = (Vec::new(), 0);
    for (part, bytes) in &bar.parts {
        let (mark, style) = look.part(*part);
        let text = format!(" {} {}  ", part_name(*part), short(*bytes));
        used += text.chars().count() + 1;
        if used > usize::from(width) + 2 {
            break;
        }
        spans.push(Span::styled(mark.to_string(), style));
        spans.push(Span::styled(text, look.plain()));
    }
    Line::from(spans)
}

/// A part in words.
pub(super) fn part_name(part: Part) -> &'static str {
    match part {
        Part::Held(role) => role_name(role),
        Part::Beside => "cache, context",
    }
}

/// Bytes to three digits.
pub(super) fn short(bytes: Bytes) -> String {
    let text = bytes.to_string();
    let Some((number, unit)) = text.split_once(' ') else {
        return text;
    };
    match number.parse::<f64>() {
        Ok(n) if n >= 100.0 => format!("{n:.0} {unit}"),
        Ok(n) if n >= 10.0 => format!("{n:.1} {unit}"),
        _ => text,
    }
}
