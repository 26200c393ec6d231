//! What the explorer knows: settings and their history, the answers to them, and what stands before the eyes.

use std::collections::BTreeSet;

use super::found::{Found, Known, Spot};
use super::palette::Palette;
use super::prompt::Line;
use super::rows::{Row, rows};
use super::settings::{Settings, line};
use super::spans::Moment;
use crate::error::Result;
use crate::plan::Choice;
use crate::spec::units::Seconds;

/// Most changes that can be undone.
const HISTORY: usize = 1000;

/// Most answers that are kept.
const REMEMBERED: usize = 16;

/// How what is shown relates to what is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is the answer.
    Solved,
    /// The last plan's choices, priced with what is chosen now.
    Provisional,
    /// It answers what was chosen before.
    Stale,
}

/// Something before the rest of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Popup {
    /// The keys.
    Help,
    /// A list that is filtered as one types.
    Palette(Palette),
    /// A value typed over a row.
    Value(Row, Line),
    /// The name of a file to save to.
    Save(Line),
    /// A text to read.
    Text(&'static str, String),
}

/// The whole state.
#[derive(Debug, Clone)]
pub struct State {
    /// What is chosen.
    pub settings: Settings,
    /// The number of what is chosen: each change counts it up.
    pub serial: u64,
    /// Answers of before, the last ones last.
    remembered: Vec<Known>,
    past: Vec<Settings>,
    future: Vec<Settings>,
    /// The row pointed at.
    pub cursor: usize,
    /// What stands before the rest.
    pub popup: Option<Popup>,
    /// A word to the user, until the next key.
    pub message: Option<String>,
    /// The last search's answer, and what it answers.
    pub solved: Option<(u64, Known)>,
    /// The last plan's choices with other settings.
    pub provisional: Option<(u64, Found)>,
    /// Why there is no answer.
    pub failed: Option<(u64, String)>,
    /// A plan that is kept for comparison.
    pub pinned: Option<Known>,
    /// Whether it is compared.
    pub comparing: bool,
    /// The point of the front that is looked at.
    pub walk: Option<usize>,
    /// The span of the step that is looked at; the peak where none is.
    pub instant: Option<usize>,
}

impl State {
    /// The state before anything is known.
    pub fn new(settings: Settings) -> State {
        State {
            settings,
            serial: 1,
            remembered: Vec::new(),
            past: Vec::new(),
            future: Vec::new(),
            cursor: 2,
            popup: None,
            message: None,
            solved: None,
            provisional: None,
            failed: None,
            pinned: None,
            comparing: false,
            walk: None,
            instant: None,
        }
    }

    /// The rows at the left.
    pub fn rows(&self) -> Vec<Row> {
        rows(&self.settings)
    }

    /// The row pointed at.
    pub fn row(&self) -> Row {
        let rows = self.rows();
        rows.get(self.cursor).copied().unwrap_or(Row::Model)
    }

    /// Moves by rows that are no titles.
    pub fn point(&mut self, by: isize) {
        let rows = self.rows();
        let step = by.signum();
        for _ in 0..by.abs() {
            let mut at = self.cursor as isize + step;
            while matches!(rows.get(at.max(0) as usize), Some(Row::Heading(_))) && at > 0 {
                at += step;
            }
            if at > 0 && (at as usize) < rows.len() {
                self.cursor = at as usize;
            }
        }
    }

    /// Moves to the first row of the title before or behind.
    pub fn section(&mut self, forward: bool) {
        let rows = self.rows();
        let title = |at: &usize| matches!(rows[*at], Row::Heading(_));
        let found = match forward {
            true => (self.cursor..rows.len()).find(title),
            false => {
                let own = (0..self.cursor).rev().find(title).unwrap_or(0);
                (0..own).rev().find(title).or(Some(0))
            }
        };
        if let Some(at) = found {
            self.cursor = (at + 1).min(rows.len() - 1);
        }
    }

    /// Changes the settings, if what comes of it can be planned; else says why not.
    pub fn change(&mut self, how: impl FnOnce(&mut Settings) -> Result<()>) {
        let mut next = self.settings.clone();
        let changed = how(&mut next).and_then(|()| next.check());
        match changed {
            Err(error) => self.message = Some(line(&error)),
            Ok(()) if next == self.settings => {}
            Ok(()) => {
                let last = std::mem::replace(&mut self.settings, next);
                self.past.push(last);
                if self.past.len() > HISTORY {
                    self.past.remove(0);
                }
                self.future.clear();
                self.changed();
            }
        }
    }

    fn changed(&mut self) {
        self.serial += 1;
        self.walk = None;
        self.instant = None;
        let known = self
            .remembered
            .iter()
            .find(|known| known.settings == self.settings);
        if let Some(known) = known.cloned() {
            self.solved = Some((self.serial, known));
        }
        self.cursor = self.cursor.min(self.rows().len() - 1);
        if matches!(self.row(), Row::Heading(_)) {
            self.cursor -= 1;
        }
    }

    /// Takes the last change back.
    pub fn undo(&mut self) {
        match self.past.pop() {
            Some(last) => {
                self.future
                    .push(std::mem::replace(&mut self.settings, last));
                self.changed();
            }
            None => self.message = Some("nothing to undo".to_string()),
        }
    }

    /// Makes the last change again that was taken back.
    pub fn redo(&mut self) {
        match self.future.pop() {
            Some(next) => {
                self.past.push(std::mem::replace(&mut self.settings, next));
                self.changed();
            }
            None => self.message = Some("nothing to redo".to_string()),
        }
    }

    /// Takes the answer of a search over settings of number `serial`; older ones than what is known are dropped.
    pub fn take(
        &mut self,
        serial: u64,
        settings: Settings,
        answer: std::result::Result<Found, String>,
        seconds: Option<Seconds>,
    ) {
        if self.solved.as_ref().is_some_and(|(last, _)| *last > serial) {
            return;
        }
        match answer {
            Ok(found) => {
                let known = Known {
                    settings,
                    found,
                    seconds,
                };
                self.remembered.retain(|old| old.settings != known.settings);
                self.remembered.push(known.clone());
                if self.remembered.len() > REMEMBERED {
                    self.remembered.remove(0);
                }
                self.solved = Some((serial, known));
            }
            Err(why) => self.failed = Some((serial, why)),
        }
    }

    /// Takes the front of what was solved for settings of number `serial`.
    pub fn take_front(&mut self, serial: u64, spots: Vec<Spot>) {
        let Some((_, known)) = self.solved.as_mut().filter(|(last, _)| *last == serial) else {
            return;
        };
        self.walk = self.walk.filter(|at| *at < spots.len());
        known.found.front = spots;
        let mut all = self.remembered.iter_mut();
        if let Some(old) = all.find(|old| old.settings == known.settings) {
            old.found.front.clone_from(&known.found.front);
        }
    }

    /// Takes what the last plan's choices come to with settings of number `serial`.
    pub fn take_provisional(&mut self, serial: u64, found: Found) {
        self.provisional = Some((serial, found));
    }

    /// The last solved plan's choices that nobody had decided: what a provisional answer is made of.
    pub fn last_choices(&self) -> Vec<Choice> {
        let Some((_, known)) = &self.solved else {
            return Vec::new();
        };
        let decided = known.settings.decided();
        let choices = known.found.choices.iter();
        choices
            .filter(|c| !decided.contains(c.technique.as_str()))
            .cloned()
            .collect()
    }

    /// What is shown, and how it relates to what is chosen.
    pub fn shown(&self) -> Option<(&Found, Freshness)> {
        let solved = self
            .solved
            .as_ref()
            .map(|(serial, known)| (*serial, &known.found));
        let provisional = self
            .provisional
            .as_ref()
            .map(|(serial, found)| (*serial, found));
        match (solved, provisional) {
            (Some((serial, found)), _) if serial == self.serial => Some((found, Freshness::Solved)),
            (_, Some((serial, found))) if serial == self.serial => {
                Some((found, Freshness::Provisional))
            }
            (Some((_, found)), _) => Some((found, Freshness::Stale)),
            (None, _) => None,
        }
    }

    /// Why what is chosen has no answer.
    pub fn failure(&self) -> Option<&str> {
        let failed = self
            .failed
            .as_ref()
            .filter(|(serial, _)| *serial == self.serial);
        failed.map(|(_, why)| why.as_str())
    }

    /// Whether an answer is awaited.
    pub fn waits(&self) -> bool {
        let solved = self
            .solved
            .as_ref()
            .is_some_and(|(serial, _)| *serial == self.serial);
        !solved && self.failure().is_none()
    }

    /// The front of the last search.
    pub fn front(&self) -> &[Spot] {
        self.solved
            .as_ref()
            .map_or(&[], |(_, known)| &known.found.front)
    }

    /// What the front says of what is chosen, where only the memory that may be taken is other than what it was solved for.
    pub fn by_front(&self) -> Option<&Spot> {
        let (_, known) = self.solved.as_ref()?;
        let within = self.settings.within?;
        let same = Settings {
            within: known.settings.within,
            ..self.settings.clone()
        };
        let spots = known.found.front.iter().filter(|s| s.memory <= within);
        spots
            .max_by_key(|s| s.memory)
            .filter(|_| same == known.settings)
    }

    /// Walks along the front.
    pub fn step_front(&mut self, forward: bool) {
        let count = self.front().len();
        if count == 0 {
            self.message = Some("there is no front to walk yet".to_string());
            return;
        }
        let taken = self.solved.as_ref().and_then(|(_, k)| k.found.bars.first());
        let taken = taken.map(|bar| bar.used);
        let here = || {
            let below = |s: &&Spot| taken.is_some_and(|used| s.memory <= used);
            self.front().iter().filter(below).count().saturating_sub(1)
        };
        self.walk = Some(match (self.walk, forward) {
            (None, _) => here(),
            (Some(at), true) => (at + 1) % count,
            (Some(at), false) => (at + count - 1) % count,
        });
    }

    /// Chooses the point of the front that is looked at.
    pub fn adopt(&mut self) {
        let Some(spot) = self.walk.and_then(|at| self.front().get(at)).cloned() else {
            return;
        };
        self.change(|settings| {
            match &spot.options {
                None => {
                    let all = settings.device()?.budget();
                    settings.within = Some(spot.memory).filter(|memory| *memory < all);
                }
                Some(options) => {
                    let pairs = options.split(',').filter_map(|pair| pair.split_once('='));
                    let own = |(k, v): (&str, &str)| (k.to_string(), v.to_string());
                    settings.torch = pairs.map(own).collect();
                }
            }
            Ok(())
        });
    }

    /// Keeps what is shown for comparison.
    pub fn pin(&mut self) {
        match &self.solved {
            Some((serial, known)) if *serial == self.serial => {
                self.message = Some(format!("pinned: {}", known.found.name));
                self.pinned = Some(known.clone());
            }
            _ => self.message = Some("wait for the answer, then pin it".to_string()),
        }
    }

    /// The span of the step that is looked at: one that was moved to, or the peak.
    pub fn span(&self, moments: &[Moment]) -> usize {
        let peak = || {
            let spans = moments.iter().enumerate().rev();
            spans.max_by_key(|(_, m)| m.total).map_or(0, |(at, _)| at)
        };
        self.instant
            .unwrap_or_else(peak)
            .min(moments.len().saturating_sub(1))
    }

    /// Moves along the step.
    pub fn step_instant(&mut self, by: isize) {
        let Some((found, _)) = self.shown() else {
            return;
        };
        let last = found.moments.len().saturating_sub(1);
        let now = self.span(&found.moments);
        self.instant = Some(now.saturating_add_signed(by).min(last));
    }

    /// What the plan that is shown uses.
    pub fn used(&self) -> BTreeSet<String> {
        self.shown()
            .map_or_else(BTreeSet::new, |(found, _)| found.used.clone())
    }
}
