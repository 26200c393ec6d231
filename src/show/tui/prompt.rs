//! A line of text that is being typed.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// A line and where the next character goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// The text.
    pub text: String,
    /// Characters before the cursor.
    pub at: usize,
}

impl Line {
    /// A line with the cursor at its end.
    pub fn new(text: &str) -> Line {
        Line {
            text: text.to_string(),
            at: text.chars().count(),
        }
    }

    /// Edits by a key; whether it did.
    pub fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('u') if control => *self = Line::default(),
            KeyCode::Char('w') if control => {
                let kept = self.text.trim_end().rfind(' ').map_or(0, |at| at + 1);
                *self = Line::new(&self.text[..kept]);
            }
            KeyCode::Char(_) if control => return false,
            KeyCode::Char(c) => {
                self.text.insert(self.byte(), c);
                self.at += 1;
            }
            KeyCode::Backspace if self.at > 0 => {
                self.at -= 1;
                self.text.remove(self.byte());
            }
            KeyCode::Delete if self.byte() < self.text.len() => {
                self.text.remove(self.byte());
            }
            KeyCode::Left => self.at = self.at.saturating_sub(1),
            KeyCode::Right => self.at = (self.at + 1).min(self.text.chars().count()),
            KeyCode::Home => self.at = 0,
            KeyCode::End => self.at = self.text.chars().count(),
            _ => return false,
        }
        true
    }

    /// The cursor in bytes.
    fn byte(&self) -> usize {
        let places = self.text.char_indices();
        places
            .map(|(at, _)| at)
            .nth(self.at)
            .unwrap_or(self.text.len())
    }
}
