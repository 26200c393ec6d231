//! Frames: the state and what is known of it, drawn on whatever terminal there is.

mod compare;
mod course;
mod front;
mod look;
mod memory;
mod popup;
mod settings;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

pub use look::Look;

use super::settings::Engine;
use super::state::{Freshness, State};

/// The least columns and rows that a frame is drawn in.
const LEAST: (u16, u16) = (60, 16);
/// Columns of the rows at the left, and of those on a wide screen.
const LEFT: (u16, u16) = (29, 38);
/// Columns from which a screen is wide.
const WIDE: u16 = 110;

/// Draws a frame.
pub fn draw(frame: &mut Frame, state: &State, look: &Look) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!(
            "memfit tui needs {} x {} characters; here are {} x {}",
            LEAST.0, LEAST.1, area.width, area.height
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let tall = if area.height >= 32 { 5 } else { 4 };
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(tall),
    ])
    .areas(area);
    let left = if area.width >= WIDE { LEFT.1 } else { LEFT.0 };
    let [left, _, right] = Layout::horizontal([
        Constraint::Length(left),
        Constraint::Length(1),
        Constraint::Min(0),
    ])
    .areas(body);
    header(frame, head, state, look);
    settings::draw(frame, left, state, look);
    match (state.comparing, &state.pinned) {
        (true, Some(pinned)) => compare::draw(frame, right, state, pinned, look),
        _ => pictures(frame, right, state, look),
    }
    footer(frame, foot, state, look);
    popup::draw(frame, area, state, look);
}

/// The job in a line, and what the rest of the screen is worth.
fn header(frame: &mut Frame, area: Rect, state: &State, look: &Look) {
    let job = &state.settings.job;
    let engine = match state.settings.engine {
        Engine::Memfit => "memfit",
        Engine::Torch => "PyTorch",
    };
    let said = format!(
        "{} on {}: {} x {} tokens, {}, {engine}",
        job.model, job.gpu, job.batch, job.seq, job.precision
    );
    let line = Line::from(vec![
        Span::styled("memfit ", look.strong()),
        Span::raw(said),
    ]);
    frame.render_widget(line, area);
    let (word, style) = status(state, look);
    let word = Line::from(Span::styled(word, style)).right_aligned();
    frame.render_widget(word, area);
}

fn status(state: &State, look: &Look) -> (String, ratatui::style::Style) {
    if state.failure().is_some() {
        return (" no plan ".to_string(), look.bad());
    }
    match state.shown() {
        None => (" planning… ".to_string(), look.warn()),
        Some((_, Freshness::Stale)) => (" STALE, planning… ".to_string(), look.warn()),
        Some((_, Freshness::Provisional)) => (" PROVISIONAL, planning… ".to_string(), look.warn()),
        Some((_, Freshness::Solved)) => {
            let seconds = state.solved.as_ref().and_then(|(_, known)| known.seconds);
            let took = seconds.map_or(String::new(), |s| format!(" in {s}"));
            (format!(" solved{took} "), look.good())
        }
    }
}

/// What is known of the plan, in pictures.
fn pictures(frame: &mut Frame, area: Rect, state: &State, look: &Look) {
    let Some((found, freshness)) = state.shown() else {
        title(frame, area, "planning the first answer…", look);
        return;
    };
    let look = &look.of(freshness);
    let bars = memory::height(found, area);
    let rest = area.height.saturating_sub(bars);
    let below = match rest {
        rest if rest < 10 => 0,
        rest => (rest / 2).clamp(5, 12),
    };
    let [bars, course, below] = Layout::vertical([
        Constraint::Length(bars),
        Constraint::Min(0),
        Constraint::Length(below),
    ])
    .areas(area);
    memory::draw(frame, bars, found, look);
    course::memory(frame, course, state, found, look);
    let wide = Constraint::Percentage(45);
    let [spots, _, lanes] =
        Layout::horizontal([wide, Constraint::Length(1), Constraint::Min(0)]).areas(below);
    front::draw(frame, spots, state, found, look);
    course::lanes(frame, lanes, found, look);
}

/// The verdict, what the plan is, and keys.
fn footer(frame: &mut Frame, area: Rect, state: &State, look: &Look) {
    let [said, keys] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(area);
    let mut lines = Vec::new();
    match (state.failure(), state.shown()) {
        (Some(why), _) => lines.push(Line::styled(why.to_string(), look.bad())),
        (None, None) => lines.push(Line::raw("")),
        (None, Some((found, freshness))) => {
            let style = match (freshness, found.fits) {
                (Freshness::Solved, true) => look.good(),
                (Freshness::Solved, false) => look.bad(),
                _ => look.warn(),
            };
            lines.push(Line::styled(verdict(state), style));
            lines.push(Line::styled(format!("plan: {}", found.name), look.plain()));
        }
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), said);
    let keys_line = match &state.message {
        Some(message) => Line::styled(format!("▸ {message}"), look.strong()),
        None => keys_of(state, area.width, look),
    };
    frame.render_widget(keys_line, keys);
}

/// The verdict with what it is worth.
pub fn verdict(state: &State) -> String {
    match state.shown() {
        None => String::new(),
        Some((found, Freshness::Solved)) => found.sentence.clone(),
        Some((found, _)) if state.by_front().is_some() => {
            let said = state.by_front().map_or(String::new(), |spot| {
                format!("{} within {}, {}", spot.step, spot.memory, spot.name)
            });
            match said.is_empty() {
                true => found.sentence.clone(),
                false => format!("provisional, by the front: about {said}"),
            }
        }
        Some((found, Freshness::Provisional)) => {
            format!("provisional, with {}: {}", found.name, found.sentence)
        }
        Some((found, Freshness::Stale)) => {
            format!("stale, of what was chosen before: {}", found.sentence)
        }
    }
}

fn keys_of(state: &State, width: u16, look: &Look) -> Line<'static> {
    let keys: &[(&str, &str)] = match (state.walk, state.comparing) {
        (Some(_), _) => &[
            ("f F", "walk"),
            ("enter", "take this point"),
            ("esc", "leave"),
        ],
        (None, true) => &[
            ("c", "close"),
            ("p", "pin what is now"),
            ("+ -", "turn"),
            ("u", "undo"),
            ("?", "help"),
            ("q", "quit"),
        ],
        (None, false) => &[
            ("⏎", "set"),
            ("+-", "turn"),
            ("/", "search"),
            ("u", "undo"),
            ("f", "front"),
            ("p", "pin"),
            ("c", "compare"),
            ("?", "help"),
            ("q", "quit"),
            ("s", "save"),
            ("y", "command"),
            ("r", "report"),
            ("[]", "instant"),
            ("a", "once more"),
            ("x", "reset"),
        ],
    };
    let mut spans = Vec::new();
    let mut used = 0;
    for (key, what) in keys {
        used += key.chars().count() + what.chars().count() + 3;
        if used > usize::from(width) + 2 {
            break;
        }
        spans.push(Span::styled(*key, look.strong()));
        spans.push(Span::styled(format!(" {what}  "), look.dim()));
    }
    Line::from(spans)
}

/// A title with a rule behind it; what is left of the area below it.
fn title(frame: &mut Frame, area: Rect, text: &str, look: &Look) -> Rect {
    if area.height == 0 {
        return area;
    }
    let width = usize::from(area.width);
    let text = clipped(text, width.saturating_sub(2));
    let rule = "─".repeat(width.saturating_sub(text.chars().count() + 1));
    let line = Line::from(vec![
        Span::styled(format!("{text} "), look.title()),
        Span::styled(rule, look.dim()),
    ]);
    frame.render_widget(line, Rect { height: 1, ..area });
    Rect {
        y: area.y + 1,
        height: area.height - 1,
        ..area
    }
}

/// A text cut to some columns.
fn clipped(text: &str, columns: usize) -> String {
    match text.chars().count() > columns {
        false => text.to_string(),
        true => {
            let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
            format!("{kept}…")
        }
    }
}
