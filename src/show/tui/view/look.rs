//! Colors and the characters that stand beside them: every part can be told from the next without color.

use ratatui::style::{Color, Modifier, Style};

use crate::graph::tensor::Role;
use crate::show::tui::found::Part;
use crate::show::tui::state::Freshness;

/// How things look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Whether there is color.
    pub color: bool,
    faded: bool,
}

impl Look {
    /// With color or without.
    pub fn new(color: bool) -> Look {
        Look {
            color,
            faded: false,
        }
    }

    /// The same for what is or is no longer the answer.
    pub fn of(&self, freshness: Freshness) -> Look {
        Look {
            faded: freshness == Freshness::Stale,
            ..*self
        }
    }

    fn style(&self, color: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        match (self.color, self.faded) {
            (_, true) => Style::new().add_modifier(Modifier::DIM),
            (true, false) => style.fg(color),
            (false, false) => style,
        }
    }

    /// Usual text.
    pub fn plain(&self) -> Style {
        self.style(Color::Reset, Modifier::empty())
    }

    /// What matters.
    pub fn strong(&self) -> Style {
        self.style(Color::Reset, Modifier::BOLD)
    }

    /// What does not.
    pub fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// Titles.
    pub fn title(&self) -> Style {
        self.style(Color::Cyan, Modifier::BOLD)
    }

    /// What fits.
    pub fn good(&self) -> Style {
        self.style(Color::Green, Modifier::BOLD)
    }

    /// What does not fit.
    pub fn bad(&self) -> Style {
        self.style(Color::Red, Modifier::BOLD)
    }

    /// What is not sure.
    pub fn warn(&self) -> Style {
        self.style(Color::Yellow, Modifier::BOLD)
    }

    /// What is pointed at.
    pub fn pointed(&self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// The character and color of a part of memory.
    pub fn part(&self, part: Part) -> (char, Style) {
        let (mark, color) = match part {
            Part::Held(Role::Parameter) => ('█', Color::Blue),
            Part::Held(Role::OptimizerState) => ('▓', Color::Magenta),
            Part::Held(Role::Gradient) => ('▚', Color::Yellow),
            Part::Held(Role::Activation) => ('▒', Color::Green),
            Part::Held(Role::Temporary) => ('░', Color::Cyan),
            Part::Held(Role::Input) => ('i', Color::Gray),
            Part::Held(Role::Padding) => ('╱', Color::Gray),
            Part::Beside => ('╳', Color::Gray),
        };
        (mark, self.style(color, Modifier::empty()))
    }

    /// The letter and color of a phase.
    pub fn phase(&self, name: &str) -> (char, Style) {
        let color = match name {
            "forward" => Color::Green,
            "recompute" => Color::Cyan,
            "backward" => Color::Blue,
            "update" | "optimizer" => Color::Magenta,
            _ => Color::Gray,
        };
        let letter = name.chars().next().map_or(' ', |c| c.to_ascii_uppercase());
        (letter, self.style(color, Modifier::empty()))
    }
}
