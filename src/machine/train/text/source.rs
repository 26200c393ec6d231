//! Where text comes from: built in, a plain file, or JSON lines; and its parts as rows.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value};

use super::coding::{Coder, Ids};
use crate::error::{Error, Result};
use crate::graph::random::Key;

/// A text that is part of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BuiltIn {
    /// Herman Melville, Moby-Dick (1851): prose.
    #[default]
    MobyDick,
    /// Sources of this package: code.
    Rust,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [BuiltIn; 2] = [BuiltIn::MobyDick, BuiltIn::Rust];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            BuiltIn::MobyDick => "moby-dick",
            BuiltIn::Rust => "rust",
        }
    }

    fn text(self) -> &'static str {
        match self {
            BuiltIn::MobyDick => include_str!("../../../../models/text/moby-dick.txt"),
            BuiltIn::Rust => include_str!("../../../../models/text/rust.txt"),
        }
    }
}

/// More tokens than any sequence has.
const SEQUENCE_LIMIT: u64 = 1 << 30;

/// Where a text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One that is part of the program.
    BuiltIn(BuiltIn),
    /// A file of plain text.
    Text(PathBuf),
    /// A file of JSON objects, one a line: with `text`, or with `prompt` and `response`, where only the response counts.
    JsonLines(PathBuf),
}

/// What is held out of training, to evaluate on.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum HeldOut {
    /// Nothing.
    #[default]
    None,
    /// The last part of the text, as a fraction of it.
    Fraction(f64),
    /// Another file.
    File(PathBuf),
}

impl FromStr for HeldOut {
    type Err = Error;

    /// Reads `10%` or a path.
    fn from_str(text: &str) -> Result<HeldOut> {
        let Some(number) = text.strip_suffix('%') else {
            return Ok(HeldOut::File(PathBuf::from(text)));
        };
        match number.trim().parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent < 100.0 => {
                Ok(HeldOut::Fraction(percent / 100.0))
            }
            _ => {
                let why = "not a share between 0% and 100%";
                Err(Error::value(
                    "--eval",
                    text,
                    why,
                    "give such as 10%, or a file",
                ))
            }
        }
    }
}

/// One row's worth of tokens: of a record, or of a window of running text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// First token.
    pub start: usize,
    /// Tokens at the start that are read but not to be said.
    pub prompt: usize,
    /// Past the last token.
    pub end: usize,
}

impl Record {
    /// Whether a row of length `seq` has a target that counts.
    fn counts(&self, seq: u64) -> bool {
        let first = self.prompt.max(1);
        first as u64 <= seq && self.start + first < self.end
    }
}

/// Tokens, as running text or as records that each begin a row.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    pub(super) ids: Ids,
    pub(super) records: Option<Vec<Record>>,
}

impl Part {
    /// Cuts off the last `fraction` of the records, or of the tokens of running text.
    pub(super) fn split_off(&mut self, fraction: f64) -> Part {
        let keep = |length: usize| {
            let cut = (length as f64 * fraction).ceil() as usize;
            length.saturating_sub(cut.max(1))
        };
        let path = self.path.clone();
        let Some(records) = &mut self.records else {
            let ids = self.ids.split_off(keep(self.ids.len()));
            return Part {
                path,
                ids,
                records: None,
            };
        };
        let mut last = records.split_off(keep(records.len()));
        let start = last.first().map_or(self.ids.len(), |record| record.start);
        for record in &mut last {
            (record.start, record.end) = (record.start - start, record.end - start);
        }
        Part {
            path,
            ids: self.ids.split_off(start),
            records: Some(last),
        }
    }

    /// Windows of running text follow each other; each reads the token after it as its last target.
    pub(super) fn windows(&self, seq: u64) -> u64 {
        let running = (self.ids.len() as u64).saturating_sub(1).checked_div(seq);
        let records = self.records.as_ref().map(|records| records.len() as u64);
        records.or(running).unwrap_or(0)
    }

    /// Refuses a part without a row of length `seq`.
    pub(super) fn check(&self, seq: u64) -> Result<()> {
        let refuse = |why: String| {
            let next = "give more text or a shorter sequence";
            Err(Error::file(&self.path, why, next))
        };
        let length = self.ids.len();
        match &self.records {
            _ if seq == 0 || seq > SEQUENCE_LIMIT => {
                refuse(format!("a sequence of {seq} tokens cannot be cut from it"))
            }
            None if length as u64 <= seq => refuse(format!(
                "has {length} tokens, a sequence of {seq} takes {}",
                seq.saturating_add(1)
            )),
            Some(records) if !records.iter().any(|record| record.counts(seq)) => refuse(format!(
                "none of its {} records has a response within {seq} tokens",
                records.len()
            )),
            _ => Ok(()),
        }
    }

    /// The row that 64 uniform bits choose, of a part that was checked for `seq`.
    pub(super) fn drawn(&self, bits: u64, seq: u64) -> Record {
        let choose = |bits: u64, n: usize| ((u128::from(bits) * n as u128) >> 64) as usize;
        let Some(records) = &self.records else {
            let row = seq as usize + 1;
            let start = choose(bits, self.ids.len() - seq as usize);
            let end = start + row;
            return Record {
                start,
                prompt: 0,
                end,
            };
        };
        let tries = (0..16).map(|i| choose(Key(bits).bits(i), records.len()));
        let first = choose(bits, records.len());
        let following = (0..records.len()).map(|i| (first + i) % records.len());
        let mut all = tries.chain(following).map(|at| records[at]);
        all.find(|record| record.counts(seq)).unwrap_or(records[0])
    }

    /// Row number `row` of the part taken in order; `None` past the last.
    pub(super) fn window(&self, row: u64, seq: u64) -> Option<Record> {
        if row >= self.windows(seq) {
            return None;
        }
        if let Some(records) = &self.records {
            return records.get(row as usize).copied();
        }
        let start = (row * seq) as usize;
        let end = start + seq as usize + 1;
        Some(Record {
            start,
            prompt: 0,
            end,
        })
    }
}

impl Default for Source {
    fn default() -> Source {
        Source::BuiltIn(BuiltIn::default())
    }
}

impl Source {
    /// A file by its ending: `.jsonl` is JSON lines, anything else plain text; or a text that is part of the program by its
    /// name, where no file is called so.
    pub fn from_path(path: &Path) -> Source {
        let named = |text: &BuiltIn| path == Path::new(text.name());
        if let Some(text) = BuiltIn::ALL
            .into_iter()
            .find(named)
            .filter(|_| !path.exists())
        {
            return Source::BuiltIn(text);
        }
        match path.extension().is_some_and(|ending| ending == "jsonl") {
            true => Source::JsonLines(path.to_path_buf()),
            false => Source::Text(path.to_path_buf()),
        }
    }

    /// Reads it as tokens.
    pub(super) fn part(&self, coder: &Coder) -> Result<Part> {
        let running = |path: PathBuf, text: Cow<'static, [u8]>| {
            let ids = coder.ids(&path, text)?;
            let records = None;
            Ok(Part { path, ids, records })
        };
        match self {
            Source::BuiltIn(text) => running(
                PathBuf::from(format!("{}.txt (built in)", text.name())),
                text.text().as_bytes().into(),
            ),
            Source::Text(path) => running(path.clone(), read(path)?.into()),
            Source::JsonLines(path) => json_lines(path, coder),
        }
    }
}

/// The bytes of a file that has some.
fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    match bytes.is_empty() {
        true => Err(Error::file(path, "is empty", "give a file with text")),
        false => Ok(bytes),
    }
}

/// A line of JSON lines.
enum Line {
    Text(String),
    Pair(String, String),
}

/// Reads JSON lines: running text where they have `text`, else records.
fn json_lines(path: &Path, coder: &Coder) -> Result<Part> {
    let bytes = read(path)?;
    let mut part = Part {
        path: path.to_path_buf(),
        ids: coder.empty(),
        records: None,
    };
    for (number, bytes) in bytes.split(|b| *b == b'\n').enumerate() {
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let bad = |why: &str| {
            let why = format!("line {}: {why}", number + 1);
            let next = "give one JSON object a line, with `text`, or with `prompt` and `response`";
            Error::file(path, why, next)
        };
        let line = line(bytes).map_err(|why| bad(&why))?;
        let first = part.ids.len() == 0;
        match (&line, &part.records) {
            (Line::Text(_), Some(_)) => return Err(bad("has `text`, lines before it `prompt`")),
            (Line::Pair(..), None) if !first => {
                return Err(bad("has `prompt`, lines before it `text`"));
            }
            _ => part.push(line, coder)?,
        }
    }
    match part.ids.len() {
        0 => Err(Error::file(path, "has no text", "give a file with text")),
        _ => Ok(part),
    }
}

/// Reads one line.
fn line(bytes: &[u8]) -> std::result::Result<Line, String> {
    let map: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let field = |key: &str| map.get(key).map(|value| (key.to_string(), value));
    let text = |(key, value): (String, &Value)| match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(format!("`{key}` is not a text")),
    };
    match (field("text"), field("prompt"), field("response")) {
        (Some(whole), _, _) => Ok(Line::Text(text(whole)?)),
        (None, Some(prompt), Some(response)) => {
            let (prompt, response) = (text(prompt)?, text(response)?);
            match response.is_empty() {
                true => Err("`response` is empty".to_string()),
                false => Ok(Line::Pair(prompt, response)),
            }
        }
        _ => Err("has neither `text` nor `prompt` and `response`".to_string()),
    }
}

impl Part {
    /// Appends a line and what ends it.
    fn push(&mut self, line: Line, coder: &Coder) -> Result<()> {
        let start = self.ids.len();
        let path = self.path.clone();
        let coded = |text: String| coder.ids(&path, text.into_bytes().into());
        match line {
            Line::Text(text) => {
                self.ids.extend(&coded(text)?);
                self.ids.extend(&coder.ending());
            }
            Line::Pair(prompt, response) => {
                self.ids.extend(&coded(prompt)?);
                let prompt = self.ids.len() - start;
                self.ids.extend(&coded(response)?);
                self.ids.extend(&coder.ending());
                let end = self.ids.len();
                let record = Record { start, prompt, end };
                self.records.get_or_insert_default().push(record);
            }
        }
        Ok(())
    }
}
