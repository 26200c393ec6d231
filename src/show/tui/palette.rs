//! A list that is filtered as one types: models, devices, techniques and named sets of them.

use super::prompt::Line;
use super::settings::Settings;
use crate::error::Result;
use crate::plan::Choice;
use crate::spec::units::show_rate;
use crate::spec::{catalog, device};
use crate::technique::{RECIPES, TECHNIQUES};

/// What an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A device.
    Device,
    /// A technique or a named set of them.
    Technique,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it stands for.
    pub kind: Kind,
    /// What it is called.
    pub name: String,
    /// What is told of it, and found by.
    pub note: String,
}

/// The list, what is typed, and the entry that is pointed at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Palette {
    /// All that may be found.
    all: Vec<Entry>,
    /// What kinds there are.
    only: Option<Kind>,
    /// What is typed.
    pub line: Line,
    /// The entry pointed at, among those found.
    pub at: usize,
}

impl Palette {
    /// The list of one kind, or of all.
    pub fn new(only: Option<Kind>) -> Palette {
        let all = models().chain(devices()).chain(techniques());
        Palette {
            all: all
                .filter(|e| only.is_none_or(|kind| kind == e.kind))
                .collect(),
            only,
            line: Line::default(),
            at: 0,
        }
    }

    /// What is found by what is typed, the nearest first; what is typed itself where it could be a size or a path.
    pub fn found(&self) -> Vec<Entry> {
        let wanted = self.line.text.trim().to_lowercase();
        let ranked = self.all.iter().enumerate().filter_map(|(at, entry)| {
            let rank = rank(&wanted, entry)?;
            Some((rank, at, entry))
        });
        let mut ranked: Vec<(u32, usize, &Entry)> = ranked.collect();
        ranked.sort_by_key(|(rank, at, _)| (*rank, *at));
        let mut found: Vec<Entry> = ranked.into_iter().map(|(.., e)| e.clone()).collect();
        found.extend(self.as_typed());
        found
    }

    /// What is typed, where it is no name but something that can be opened.
    fn as_typed(&self) -> Vec<Entry> {
        let text = self.line.text.trim();
        let path = text.contains(['/', '\\']) || text.contains(".json") || text.contains(".toml");
        let digit = |c: char| c.is_ascii_digit();
        let unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
        let size = text.starts_with(digit) && unit && device::find(text).is_ok();
        let entry = |kind| Entry {
            kind,
            name: text.to_string(),
            note: "as typed".to_string(),
        };
        let kinds = [(Kind::Model, path), (Kind::Device, size || path)];
        let kinds = kinds.into_iter();
        let fits = |kind: Kind| self.only.is_none_or(|only| only == kind);
        kinds
            .filter(|(kind, is)| *is && fits(*kind) && !text.is_empty())
            .map(|(kind, _)| entry(kind))
            .collect()
    }
}

impl Entry {
    /// Chooses it.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn choose(&self, settings: &mut Settings) -> Result<()> {
        match self.kind {
            Kind::Model => settings.set_model(&self.name),
            Kind::Device => settings.set_device(&self.name),
            Kind::Technique => {
                for choice in Choice::parse_all(&self.name)? {
                    if !settings.fixed.contains(&choice) {
                        settings.fix(choice);
                    }
                }
                Ok(())
            }
        }
    }

    /// The kind in a word.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Model => "model",
            Kind::Device => "device",
            Kind::Technique => "technique",
        }
    }
}

/// How far an entry is from what is wanted: 0 begins with it, 1 has it, 2 has it in its note, 3 has its letters in order.
fn rank(wanted: &str, entry: &Entry) -> Option<u32> {
    let (name, note) = (entry.name.to_lowercase(), entry.note.to_lowercase());
    let letters = |text: &str| {
        let mut rest = text.chars();
        wanted.chars().all(|c| rest.any(|other| other == c))
    };
    let words = |text: &str| wanted.split_whitespace().all(|word| text.contains(word));
    match () {
        () if name.starts_with(wanted) => Some(0),
        () if words(&name) => Some(1),
        () if words(&format!("{name} {note}")) => Some(2),
        () if letters(&name) => Some(3),
        () => None,
    }
}

fn models() -> impl Iterator<Item = Entry> {
    catalog::names().map(|name| {
        let others = catalog::aliases().filter(|(alias, of)| *of == name && *alias != name);
        let others: Vec<&str> = others.map(|(alias, _)| alias).collect();
        Entry {
            kind: Kind::Model,
            name: name.to_string(),
            note: others.join(" "),
        }
    })
}

fn devices() -> impl Iterator<Item = Entry> {
    let cards = super::dial::CARDS.iter().map(|size| Entry {
        kind: Kind::Device,
        name: size.to_string(),
        note: "any card of that size".to_string(),
    });
    let named = device::all().map(|device| Entry {
        kind: Kind::Device,
        name: device.id.clone(),
        note: format!("{}, {}", device.name, show_rate(device.bandwidth)),
    });
    cards.chain(named)
}

fn techniques() -> impl Iterator<Item = Entry> {
    let entry = |name: &str, note: &str| Entry {
        kind: Kind::Technique,
        name: name.to_string(),
        note: note.to_string(),
    };
    let all = TECHNIQUES.iter().map(|t| t.card());
    let all = all.map(move |card| entry(card.name, card.summary));
    all.chain(
        RECIPES
            .iter()
            .map(move |recipe| entry(recipe.name, recipe.summary)),
    )
}
