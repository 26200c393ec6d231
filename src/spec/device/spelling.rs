//! Finds a device by any usual spelling of its name.

use super::Device;
use super::catalog::{Entry, entries};
use crate::error::{Error, Result};

/// Words that name no model of their own: makers, brands, forms of mounting.
const PLAIN: [&str; 16] = [
    "nvidia", "amd", "intel", "apple", "geforce", "rtx", "radeon", "rx", "instinct", "tesla",
    "arc", "jetson", "sxm2", "sxm4", "sxm5", "hbm2e",
];

/// Words that may be added to any name.
const ADDED: [&str; 9] = [
    "gpu",
    "graphics",
    "card",
    "generation",
    "sxm",
    "oam",
    "hbm2e",
    "hbm3",
    "hbm3e",
];

/// Names longer than this are not searched for.
const LONGEST: usize = 80;
/// At most so many names are listed where several match.
const LISTED: usize = 8;

/// The device of a name.
///
/// A name matches a device when it is made of the device's words, in any order, each once. It
/// matches fully when the words left out name no model of their own; among full matches the one
/// with the least memory is taken.
pub(super) fn find(text: &str) -> Result<&'static Device> {
    let wanted = squeezed(text);
    let named = |entry: &&Entry| {
        let own = [&entry.device.id, &entry.device.name];
        let mut names = own.into_iter().chain(&entry.aliases);
        names.any(|name| squeezed(name) == wanted)
    };
    if let Some(entry) = entries().iter().find(named) {
        return Ok(&entry.device);
    }
    let (full, partial) = matches(&wanted);
    match full.into_iter().min_by_key(|device| device.memory) {
        Some(device) => Ok(device),
        None => Err(unknown(text, &partial)),
    }
}

/// Devices matched fully and in part.
fn matches(wanted: &str) -> (Vec<&'static Device>, Vec<&'static Device>) {
    let (mut full, mut partial) = (Vec::new(), Vec::new());
    if wanted.is_empty() || wanted.len() > LONGEST {
        return (full, partial);
    }
    for entry in entries() {
        match left_out(wanted, &words(&entry.device)) {
            Some(0) => full.push(&entry.device),
            Some(_) => partial.push(&entry.device),
            None => {}
        }
    }
    (full, partial)
}

/// A device's words; true for those that name its model.
fn words(device: &Device) -> Vec<(String, bool)> {
    let split = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words.filter(|w| !w.is_empty()).map(squeezed).collect()
    };
    let of_id = split(&device.id);
    let others = split(&format!("{} {}", device.name, device.vendor));
    let added = ADDED.map(String::from);
    let mut words: Vec<(String, bool)> = Vec::new();
    for (i, word) in of_id.iter().chain(&others).chain(&added).enumerate() {
        if words.iter().all(|(known, _)| known != word) {
            words.push((word.clone(), i < of_id.len() && names_a_model(word)));
        }
    }
    words
}

/// Whether a word of an id tells models apart.
fn names_a_model(word: &str) -> bool {
    !PLAIN.contains(&word) && !ADDED.contains(&word) && !is_memory(word)
}

/// The words of a device that name its model, together: `4060ti`.
fn short(device: &Device) -> String {
    let words = device.id.split('-').filter(|word| names_a_model(word));
    words.collect()
}

/// Whether a word is a memory size: `16gb`.
fn is_memory(word: &str) -> bool {
    word.strip_suffix("gb")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The fewest naming words left out when `rest` is made of `words`; `None` where it cannot be.
fn left_out(rest: &str, words: &[(String, bool)]) -> Option<usize> {
    if rest.is_empty() {
        return Some(words.iter().filter(|(_, names)| *names).count());
    }
    let without = |taken: usize| -> Vec<(String, bool)> {
        let others = words.iter().enumerate().filter(|(i, _)| *i != taken);
        others.map(|(_, word)| word.clone()).collect()
    };
    words
        .iter()
        .enumerate()
        .filter_map(|(i, (word, _))| left_out(rest.strip_prefix(word.as_str())?, &without(i)))
        .min()
}

/// What to say where nothing matches fully.
fn unknown(text: &str, partial: &[&Device]) -> Error {
    let next = "list the names with `memfit devices`, or give a size such as 24GB or a .toml file";
    let ids = || partial.iter().map(|device| device.id.as_str());
    let suggested = |suggestion: String| Error::Unknown {
        kind: "device",
        name: text.to_string(),
        suggestion: Some(suggestion),
        next: next.to_string(),
    };
    // A number alone is a size whose unit was left out.
    let number = text.trim().parse::<u32>();
    if let Ok(size @ 1..1000) = number {
        return suggested(format!("{size}GB"));
    }
    match partial {
        [] => {
            let ids = entries().iter().map(|entry| entry.device.id.clone());
            let shorts = entries().iter().map(|entry| short(&entry.device));
            let known: Vec<String> = ids.chain(shorts).collect();
            let start: String = text.chars().take(LONGEST).collect();
            Error::unknown("device", &start, known.iter().map(String::as_str), next)
        }
        [one] => suggested(one.id.clone()),
        many => {
            let listed: Vec<&str> = ids().take(LISTED).collect();
            let more = match many.len().saturating_sub(LISTED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let why = format!("it may mean {}{more}", listed.join(", "));
            Error::value("device", text, why, "write one of these names")
        }
    }
}

/// A name without case, spaces and punctuation.
fn squeezed(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}
