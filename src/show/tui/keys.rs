//! What keys do: to the state, and beyond it.

use std::path::PathBuf;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::palette::{Kind, Palette};
use super::prompt::Line;
use super::rows::Row;
use super::settings::Engine;
use super::state::{Popup, State};

/// What is to be done outside of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Leave.
    Quit,
    /// Write a text to a file.
    Save(PathBuf, String),
    /// Put a text on the clipboard.
    Copy(String),
    /// Make the report of a job, by these arguments; of a plan's text where arguments do not say all.
    Report(Vec<String>, Option<String>),
}

/// The keys, as help lists them.
pub const KEYS: [(&str, &str); 17] = [
    ("↑ ↓ or k j", "move; ← → or h l by sections"),
    ("enter, space", "switch a technique, type or search a value"),
    ("+ -", "turn a dial"),
    ("a", "decide the same technique once more"),
    ("x", "leave a row to what is assumed or found"),
    ("/", "search models, devices and techniques"),
    ("u U", "undo, redo"),
    ("p", "pin the plan"),
    ("c", "compare it with the pinned one"),
    ("f F", "walk along the front; enter takes the point"),
    ("[ ]", "move along the step: who is alive"),
    ("s", "save the plan to a file"),
    ("y", "show and copy the command line"),
    ("r", "make the report"),
    ("esc", "back: close, leave the front, to the peak"),
    ("?", "this help"),
    ("q", "quit"),
];

/// Takes a key.
pub fn key(state: &mut State, key: KeyEvent) -> Option<Effect> {
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return Some(Effect::Quit);
    }
    state.message = None;
    match state.popup.take() {
        Some(popup) => in_popup(state, popup, key),
        None => on_screen(state, key),
    }
}

fn on_screen(state: &mut State, key: KeyEvent) -> Option<Effect> {
    let row = state.row();
    match key.code {
        KeyCode::Char('q') => return Some(Effect::Quit),
        KeyCode::Char('?') => state.popup = Some(Popup::Help),
        KeyCode::Char('/') => state.popup = Some(Popup::Palette(Palette::new(None))),
        KeyCode::Char('u') => state.undo(),
        KeyCode::Char('U') => state.redo(),
        KeyCode::Char('r') if key.modifiers.contains(KeyModifiers::CONTROL) => state.redo(),
        KeyCode::Char('p') => state.pin(),
        KeyCode::Char('c') => compare(state),
        KeyCode::Char('f') => state.step_front(true),
        KeyCode::Char('F') => state.step_front(false),
        KeyCode::Char('[') => state.step_instant(-4),
        KeyCode::Char(']') => state.step_instant(4),
        KeyCode::Char('s') => save(state),
        KeyCode::Char('y') => {
            let command = state.settings.command();
            state.popup = Some(Popup::Text("command line, copied", command.clone()));
            return Some(Effect::Copy(command));
        }
        KeyCode::Char('r') => return report(state),
        KeyCode::Char('+' | '=') => state.change(|s| row.turn(s, true)),
        KeyCode::Char('-' | '_') => state.change(|s| row.turn(s, false)),
        KeyCode::Char('x') | KeyCode::Delete => state.change(|s| row.reset(s)),
        KeyCode::Char('a') => again(state, row),
        KeyCode::Enter if state.walk.is_some() => state.adopt(),
        KeyCode::Enter | KeyCode::Char(' ') => enter(state, row),
        KeyCode::Esc => escape(state),
        _ => moved(state, key.code),
    }
    None
}

fn moved(state: &mut State, code: KeyCode) {
    let walking = state.walk.is_some();
    match code {
        KeyCode::Right | KeyCode::Char('l') if walking => state.step_front(true),
        KeyCode::Left | KeyCode::Char('h') if walking => state.step_front(false),
        KeyCode::Up | KeyCode::Char('k') => state.point(-1),
        KeyCode::Down | KeyCode::Char('j') => state.point(1),
        KeyCode::Left | KeyCode::Char('h') => state.section(false),
        KeyCode::Right | KeyCode::Char('l') => state.section(true),
        KeyCode::PageUp => state.point(-10),
        KeyCode::PageDown => state.point(10),
        KeyCode::Home | KeyCode::Char('g') => state.cursor = 1,
        KeyCode::End | KeyCode::Char('G') => state.cursor = state.rows().len() - 1,
        _ => {}
    }
}

fn escape(state: &mut State) {
    match state.walk.take() {
        Some(_) => {}
        None if state.instant.is_some() => state.instant = None,
        None => state.comparing = false,
    }
}

fn compare(state: &mut State) {
    match state.pinned {
        Some(_) => state.comparing = !state.comparing,
        None => state.message = Some("pin a plan first, with p; then change something".to_string()),
    }
}

/// Decides the technique of a row once more, as offload of another thing.
fn again(state: &mut State, row: Row) {
    let at = match row {
        Row::Fixed(at) | Row::Argument(at, _) => at,
        _ => return,
    };
    let mut choice = state.settings.fixed[at].clone();
    state.change(|settings| {
        // The next value of its first argument is another subject.
        let card = super::settings::card(&choice.technique)?;
        if let Some(first) = card.arguments.first() {
            let now = choice.args.text(&card, first.key).to_string();
            if let Some(next) = super::dial::next(first, &now, true) {
                choice.args.0.insert(first.key.to_string(), next);
            }
        }
        settings.fix(choice);
        Ok(())
    });
}

fn enter(state: &mut State, row: Row) {
    let settings = &state.settings;
    match row {
        Row::Model => state.popup = Some(Popup::Palette(Palette::new(Some(Kind::Model)))),
        Row::Device => state.popup = Some(Popup::Palette(Palette::new(Some(Kind::Device)))),
        _ if row.is_typed(settings) => {
            let shown = row.shown(settings, &Default::default());
            let now = shown.value.trim_matches(['(', ')']).to_string();
            state.popup = Some(Popup::Value(row, Line::new(&now)));
        }
        _ => state.change(|s| row.switch(s)),
    }
}

fn save(state: &mut State) {
    let file = state.shown().and_then(|(found, _)| found.file.as_ref());
    if state.waits() || file.is_none() {
        let why = match state.waits() {
            true => "wait for the answer, then save it",
            false => "nothing to save: no plan fits",
        };
        state.message = Some(why.to_string());
        return;
    }
    let name = match state.settings.engine {
        Engine::Memfit => "plan.toml",
        Engine::Torch => "trainer.json",
    };
    state.popup = Some(Popup::Save(Line::new(name)));
}

fn report(state: &mut State) -> Option<Effect> {
    if state.settings.engine == Engine::Torch {
        let why = "reports are of plans of memfit's own engine";
        state.message = Some(why.to_string());
        return None;
    }
    state.message = Some("making the report…".to_string());
    let file = state.shown().and_then(|(found, _)| found.file.clone());
    let plan = file.filter(|_| state.settings.within.is_some() && !state.waits());
    Some(Effect::Report(state.settings.arguments(), plan))
}

fn in_popup(state: &mut State, popup: Popup, key: KeyEvent) -> Option<Effect> {
    let enter = key.code == KeyCode::Enter;
    match popup {
        _ if key.code == KeyCode::Esc => None,
        Popup::Help | Popup::Text(..) => None,
        Popup::Palette(palette) => {
            in_palette(state, palette, key);
            None
        }
        Popup::Value(row, line) if enter => {
            state.change(|s| row.typed(s, &line.text));
            // What cannot be read stays to be mended.
            if state.message.is_some() {
                state.popup = Some(Popup::Value(row, line));
            }
            None
        }
        Popup::Value(row, mut line) => {
            line.key(key);
            state.popup = Some(Popup::Value(row, line));
            None
        }
        Popup::Save(line) if enter => {
            let text = state.shown().and_then(|(found, _)| found.file.clone())?;
            let path = line.text.trim();
            (!path.is_empty()).then(|| Effect::Save(PathBuf::from(path), text))
        }
        Popup::Save(mut line) => {
            line.key(key);
            state.popup = Some(Popup::Save(line));
            None
        }
    }
}

fn in_palette(state: &mut State, mut palette: Palette, key: KeyEvent) {
    let found = palette.found();
    match key.code {
        KeyCode::Enter => {
            if let Some(entry) = found.get(palette.at) {
                state.change(|s| entry.choose(s));
            }
            return;
        }
        KeyCode::Up => palette.at = palette.at.saturating_sub(1),
        KeyCode::Down => palette.at = (palette.at + 1).min(found.len().saturating_sub(1)),
        KeyCode::PageUp => palette.at = palette.at.saturating_sub(10),
        KeyCode::PageDown => palette.at = (palette.at + 10).min(found.len().saturating_sub(1)),
        _ => {
            if palette.line.key(key) {
                palette.at = 0;
            }
        }
    }
    state.popup = Some(Popup::Palette(palette));
}
