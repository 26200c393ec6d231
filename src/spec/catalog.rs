//! The models known by name: published configs, embedded in the binary.

use std::path::Path;

use crate::error::{Error, Result};
use crate::spec::config;
use crate::spec::model::ModelSpec;

/// A model known by name.
struct Entry {
    /// The name it is listed under.
    name: &'static str,
    /// Other names: short ones, and those it was published under.
    aliases: &'static [&'static str],
    /// Its `config.json`.
    text: &'static str,
}

/// An entry whose config lies in `models/transformer/<name>.json`.
macro_rules! entry {
    ($name:literal $(, $alias:literal)*) => {
        Entry {
            name: $name,
            aliases: &[$($alias),*],
            text: include_str!(concat!("../../models/transformer/", $name, ".json")),
        }
    };
}

/// All models, in the order they are listed.
const ENTRIES: &[Entry] = &[
    entry!("tiny"),
    entry!("small"),
    entry!("gpt2", "gpt2-small", "gpt2-124m"),
    entry!("gpt2-medium", "gpt2-355m"),
    entry!("gpt2-large", "gpt2-774m"),
    entry!("gpt2-xl", "gpt2-1.5b"),
    entry!("opt-125m"),
    entry!("opt-1.3b"),
    entry!("opt-6.7b"),
    entry!("opt-13b"),
    entry!("opt-30b"),
    entry!("llama-2-7b", "7b", "llama-2-7b-hf", "llama-2-7b-chat-hf"),
    entry!(
        "llama-2-13b",
        "13b",
        "llama-2-13b-hf",
        "llama-2-13b-chat-hf"
    ),
    entry!(
        "llama-2-70b",
        "70b",
        "llama-2-70b-hf",
        "llama-2-70b-chat-hf"
    ),
    entry!(
        "llama-3.1-8b",
        "8b",
        "llama-3.1-8b-instruct",
        "meta-llama-3.1-8b",
        "meta-llama-3.1-8b-instruct"
    ),
    entry!(
        "llama-3.1-70b",
        "llama-3.1-70b-instruct",
        "meta-llama-3.1-70b",
        "meta-llama-3.1-70b-instruct"
    ),
    entry!("llama-3.2-1b", "1b", "llama-3.2-1b-instruct"),
    entry!("llama-3.2-3b", "3b", "llama-3.2-3b-instruct"),
    entry!(
        "tinyllama-1.1b",
        "tinyllama",
        "tinyllama-1.1b-chat-v1.0",
        "tinyllama-1.1b-intermediate-step-1431k-3t"
    ),
    entry!("mistral-7b", "mistral-7b-v0.1", "mistral-7b-instruct-v0.1"),
    entry!("qwen2.5-0.5b"),
    entry!("qwen2.5-1.5b"),
    entry!("qwen2.5-7b"),
    entry!("qwen2.5-14b"),
    entry!("qwen3-0.6b"),
    entry!("qwen3-8b"),
    entry!("gemma-2-2b", "gemma-2-2b-it"),
    entry!("gemma-2-9b", "gemma-2-9b-it"),
    entry!("phi-3-mini", "phi-3-mini-4k", "phi-3-mini-4k-instruct"),
    entry!(
        "mixtral-8x7b",
        "mixtral-8x7b-v0.1",
        "mixtral-8x7b-instruct-v0.1"
    ),
    entry!(
        "deepseek-coder-1.3b",
        "deepseek-coder-1.3b-base",
        "deepseek-coder-1.3b-instruct"
    ),
    entry!(
        "deepseek-coder-6.7b",
        "deepseek-coder-6.7b-base",
        "deepseek-coder-6.7b-instruct"
    ),
    entry!("bert-base", "bert-base-uncased"),
];

/// The publishers of the models, whose names may stand in front.
const PUBLISHERS: [&str; 10] = [
    "openai-community",
    "facebook",
    "meta-llama",
    "tinyllama",
    "mistralai",
    "qwen",
    "google",
    "microsoft",
    "deepseek-ai",
    "google-bert",
];

/// The names of all models, in the order they are listed.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().map(|entry| entry.name)
}

/// Every name and alias with the model it stands for.
pub fn aliases() -> impl Iterator<Item = (&'static str, &'static str)> {
    ENTRIES.iter().flat_map(|entry| {
        let others = entry.aliases.iter().map(move |alias| (*alias, entry.name));
        std::iter::once((entry.name, entry.name)).chain(others)
    })
}

/// The published config a name stands for, as text.
///
/// # Errors
/// Where no model has that name.
pub fn config_text(name: &str) -> Result<&'static str> {
    entry(name).map(|entry| entry.text)
}

/// The model of a name; case, `-`, `_`, `.` and the publisher's prefix do not matter.
///
/// ```
/// use memfit::spec::catalog;
/// let model = catalog::find("meta-llama/Llama-2-7b-hf")?;
/// assert_eq!((model.name.as_str(), model.layers), ("llama-2-7b", 32));
/// # Ok::<(), memfit::error::Error>(())
/// ```
///
/// # Errors
/// Where no model has that name.
pub fn find(name: &str) -> Result<ModelSpec> {
    let entry = entry(name)?;
    config::parse(entry.name, entry.text)
}

/// A model by name, or from a `config.json`, a folder that holds one, or a `.gguf` file.
///
/// A name wins over a file of that name; `./gpt2` is the file.
///
/// # Errors
/// Where the text is neither a known name nor a path that can be read.
pub fn open(text: &str) -> Result<ModelSpec> {
    let path = Path::new(text);
    let slash = text.contains(['/', '\\']);
    let extension = path.extension().map(|e| e.to_ascii_lowercase());
    let is = |wanted: &str| extension.as_deref().is_some_and(|e| e == wanted);
    match entry(text) {
        Ok(_) if !(slash && path.exists()) => find(text),
        _ if is("gguf") => config::from_gguf_path(path),
        Err(unknown) if !(path.exists() || is("json")) => Err(unknown),
        _ => config::from_path(path),
    }
}

/// The entry of a name, by the first spelling rule that gives exactly one.
fn entry(name: &str) -> Result<&'static Entry> {
    let wanted = published(name);
    SPELLINGS
        .iter()
        .find_map(|rule| only(ENTRIES.iter().filter(|entry| entry.spelled(*rule, wanted))))
        .ok_or_else(|| {
            let known = aliases().map(|(alias, _)| alias);
            let next = "list the names with `memfit models`, or give the path of a config.json, its folder, or a .gguf file";
            Error::unknown("model", name.trim(), known, next)
        })
}

impl Entry {
    /// Whether the text, spelled by a rule, is one of the entry's names spelled so.
    fn spelled(&self, rule: Spelling, text: &str) -> bool {
        let same = |known: &str| rule(known) == rule(text);
        same(self.name) || self.aliases.iter().any(|alias| same(alias))
    }
}

/// The one item there is.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}

/// A way to write a name that makes usual variants alike.
type Spelling = fn(&str) -> String;

/// The rules, the strictest first: opt-1.3b must not be taken for opt-13b.
const SPELLINGS: [Spelling; 3] = [
    |name| {
        letters(name)
            .map(|c| if is_mark(c) { '-' } else { c })
            .collect()
    },
    |name| {
        letters(name)
            .filter(|c| *c == '.' || !is_mark(*c))
            .collect()
    },
    |name| letters(name).filter(|c| !is_mark(*c)).collect(),
];

fn letters(name: &str) -> impl Iterator<Item = char> {
    name.trim().chars().flat_map(char::to_lowercase)
}

fn is_mark(c: char) -> bool {
    matches!(c, '-' | '_' | '.' | ' ')
}

/// A name without its publisher: `meta-llama/Llama-2-7b-hf` is `Llama-2-7b-hf`; paths stay whole.
fn published(name: &str) -> &str {
    match name.trim().split_once('/') {
        Some((publisher, rest)) if PUBLISHERS.contains(&publisher.to_lowercase().as_str()) => rest,
        _ => name,
    }
}
