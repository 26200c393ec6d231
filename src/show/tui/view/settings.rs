//! The rows at the left: what is chosen, with the row that is pointed at explained below.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::{Look, clipped, title};
use crate::show::tui::rows::{Row, Shown};
use crate::show::tui::state::State;

/// Columns of the name of a row that has no switch.
const LABEL: usize = 11;

/// Draws the rows.
pub fn draw(frame: &mut Frame, area: Rect, state: &State, look: &Look) {
    let lines = if area.height > 25 { 5 } else { 4 };
    let [list, below] =
        Layout::vertical([Constraint::Min(0), Constraint::Length(lines)]).areas(area);
    let (rows, used) = (state.rows(), state.used());
    let height = usize::from(list.height);
    let first = first(state.cursor, rows.len(), height);
    for (at, row) in rows.iter().enumerate().skip(first).take(height) {
        let place = Rect {
            y: list.y + (at - first) as u16,
            height: 1,
            ..list
        };
        let shown = row.shown(&state.settings, &used);
        match row {
            Row::Heading(_) => {
                title(frame, place, &shown.label, look);
            }
            _ => frame.render_widget(line(&shown, at == state.cursor, place.width, look), place),
        }
    }
    let detail = state.row().detail(&state.settings);
    let inside = title(frame, below, more(first, height, rows.len()), look);
    let detail = Paragraph::new(Line::styled(detail, look.plain()));
    frame.render_widget(detail.wrap(Wrap { trim: true }), inside);
}

/// Whether there are rows beyond those that are shown.
fn more(first: usize, height: usize, count: usize) -> &'static str {
    match (first > 0, first + height < count) {
        (false, false) => "─",
        (true, false) => "↑ more",
        (false, true) => "↓ more",
        (true, true) => "↑↓ more",
    }
}

/// The first row shown: the one pointed at stays within, with a few around it.
fn first(cursor: usize, count: usize, height: usize) -> usize {
    let around = height / 3;
    (cursor + around + 1)
        .saturating_sub(height)
        .min(count.saturating_sub(height))
}

fn line(shown: &Shown, pointed: bool, width: u16, look: &Look) -> Line<'static> {
    let width = usize::from(width);
    let text = match shown.mark {
        "" => {
            let gap = LABEL.max(shown.label.chars().count() + 1);
            format!("{:<gap$}{}", shown.label, shown.value)
        }
        mark if shown.value.is_empty() => format!("{mark} {}", shown.label),
        mark => format!("{mark} {} {}", shown.label, shown.value),
    };
    let text = clipped(&text, width.saturating_sub(2));
    let style = match (pointed, shown.mark) {
        (true, _) => look.pointed(),
        (false, "[x]") => look.strong(),
        (false, "[+]") => look.good(),
        _ => look.plain(),
    };
    let arrow = if pointed { "▸" } else { " " };
    let rest = width - 1;
    Line::from(Span::styled(format!("{arrow}{text:<rest$}"), style))
}
