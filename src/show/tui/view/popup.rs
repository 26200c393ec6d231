//! What stands before the rest: keys, lists, lines that are typed.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph, Wrap};

use super::{Look, clipped};
use crate::show::tui::keys::KEYS;
use crate::show::tui::palette::Palette;
use crate::show::tui::prompt;
use crate::show::tui::state::{Popup, State};

/// Columns of the widest one.
const WIDTH: u16 = 74;

/// Draws it, if there is one.
pub fn draw(frame: &mut Frame, area: Rect, state: &State, look: &Look) {
    match &state.popup {
        None => {}
        Some(Popup::Help) => help(frame, area, look),
        Some(Popup::Text(title, text)) => said(frame, area, title, text, look),
        Some(Popup::Palette(palette)) => list(frame, area, palette, look),
        Some(Popup::Value(row, line)) => {
            let shown = row.shown(&state.settings, &Default::default());
            let name = format!("{} (enter sets, esc leaves)", shown.label.trim());
            let below = state.message.clone().unwrap_or(row.detail(&state.settings));
            typed(frame, area, &name, line, &below, look);
        }
        Some(Popup::Save(line)) => {
            let below = "as `memfit plan -o FILE` writes it; a file of that name is replaced";
            typed(
                frame,
                area,
                "save to (enter saves, esc leaves)",
                line,
                below,
                look,
            );
        }
    }
}

/// Clears a part of the middle of the screen and frames it; what is inside.
fn framed(frame: &mut Frame, area: Rect, height: u16, name: &str, look: &Look) -> Rect {
    let width = WIDTH.min(area.width.saturating_sub(4));
    let height = (height + 2).min(area.height.saturating_sub(2));
    let place = area.centered(Constraint::Length(width), Constraint::Length(height));
    let block = Block::bordered()
        .title(Span::styled(format!(" {name} "), look.title()))
        .padding(Padding::horizontal(1));
    let inside = block.inner(place);
    frame.render_widget(Clear, place);
    frame.render_widget(block, place);
    inside
}

fn help(frame: &mut Frame, area: Rect, look: &Look) {
    let marks = [
        (
            "[x] [+] [ ]",
            "decided by you, by the search, not in the plan",
        ),
        (
            "o ● ◎ ▲ ┊",
            "points of the front, plan, point walked to, pinned, budget",
        ),
    ];
    let all = KEYS.iter().chain(&marks);
    let line = |(key, what): &(&'static str, &'static str)| {
        Line::from(vec![
            Span::styled(format!("{key:<14}"), look.strong()),
            Span::styled(*what, look.plain()),
        ])
    };
    let lines: Vec<Line> = all.map(line).collect();
    let inside = framed(frame, area, lines.len() as u16, "keys", look);
    frame.render_widget(Paragraph::new(lines), inside);
}

fn said(frame: &mut Frame, area: Rect, name: &str, text: &str, look: &Look) {
    let columns = WIDTH
        .min(area.width.saturating_sub(4))
        .saturating_sub(4)
        .max(1);
    let rows = (text.chars().count() as u16).div_ceil(columns) + 2;
    let inside = framed(frame, area, rows, name, look);
    let text = Paragraph::new(Line::styled(text.to_string(), look.plain()));
    frame.render_widget(text.wrap(Wrap { trim: true }), inside);
}

fn typed(frame: &mut Frame, area: Rect, name: &str, line: &prompt::Line, below: &str, look: &Look) {
    let inside = framed(frame, area, 4, name, look);
    frame.render_widget(edited(line, inside.width, look), inside);
    let rest = Rect {
        y: inside.y + 1,
        height: inside.height.saturating_sub(1),
        ..inside
    };
    let text = Paragraph::new(Line::styled(below.to_string(), look.dim()));
    frame.render_widget(text.wrap(Wrap { trim: true }), rest);
}

/// A line that is typed, its end in view, the cursor reversed.
fn edited(line: &prompt::Line, width: u16, look: &Look) -> Line<'static> {
    let room = usize::from(width).saturating_sub(3);
    let skipped = line.at.saturating_sub(room);
    let characters: Vec<char> = line.text.chars().chain([' ']).collect();
    let text = |range: std::ops::Range<usize>| characters[range].iter().collect::<String>();
    let end = characters.len().min(skipped + room + 1);
    Line::from(vec![
        Span::styled("> ", look.title()),
        Span::styled(text(skipped..line.at), look.strong()),
        Span::styled(text(line.at..line.at + 1), look.pointed()),
        Span::styled(text(line.at + 1..end.max(line.at + 1)), look.strong()),
    ])
}

fn list(frame: &mut Frame, area: Rect, palette: &Palette, look: &Look) {
    let height = area.height.saturating_sub(6).clamp(6, 24);
    let name = "search: enter takes, esc leaves";
    let inside = framed(frame, area, height, name, look);
    frame.render_widget(edited(&palette.line, inside.width, look), inside);
    let found = palette.found();
    let rows = usize::from(inside.height.saturating_sub(1));
    let first = (palette.at + 1).saturating_sub(rows);
    let mut lines = Vec::new();
    for (at, entry) in found.iter().enumerate().skip(first).take(rows) {
        let text = format!("{:<10}{:<22} {}", entry.kind_name(), entry.name, entry.note);
        let text = clipped(&text, usize::from(inside.width));
        let width = usize::from(inside.width);
        let style = match at == palette.at {
            true => look.pointed(),
            false => look.plain(),
        };
        lines.push(Line::styled(format!("{text:<width$}"), style));
    }
    if found.is_empty() {
        lines.push(Line::styled("nothing by that name", look.dim()));
    }
    let below = Rect {
        y: inside.y + 1,
        height: inside.height.saturating_sub(1),
        ..inside
    };
    frame.render_widget(Paragraph::new(lines), below);
}
