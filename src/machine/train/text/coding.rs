//! Text to tokens: bytes as they are, or by a Hugging Face `tokenizer.json`.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::error::{Error, Result};

/// Text is coded in blocks of about this many bytes, cut before the start of a line.
const BLOCK: usize = 1 << 16;
/// Names of the token that ends a text, in the tokenizers of the families.
const ENDS: [&str; 6] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "[SEP]",
];

/// How text becomes tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Coding {
    /// Each byte is its own token.
    #[default]
    Bytes,
    /// By a Hugging Face `tokenizer.json`.
    Tokenizer(PathBuf),
}

/// Token ids, a byte each where that is enough.
#[derive(Debug, Clone)]
pub(super) enum Ids {
    Bytes(Cow<'static, [u8]>),
    Wide(Vec<u32>),
}

impl Ids {
    pub(super) fn len(&self) -> usize {
        match self {
            Ids::Bytes(ids) => ids.len(),
            Ids::Wide(ids) => ids.len(),
        }
    }

    pub(super) fn get(&self, at: usize) -> u32 {
        match self {
            Ids::Bytes(ids) => u32::from(ids[at]),
            Ids::Wide(ids) => ids[at],
        }
    }

    /// Appends ids of the same kind.
    pub(super) fn extend(&mut self, other: &Ids) {
        match (self, other) {
            (Ids::Bytes(ids), Ids::Bytes(more)) => ids.to_mut().extend_from_slice(more),
            (Ids::Wide(ids), more) => ids.extend((0..more.len()).map(|at| more.get(at))),
            (Ids::Bytes(_), Ids::Wide(_)) => {}
        }
    }

    /// Cuts off what lies from `at` on.
    pub(super) fn split_off(&mut self, at: usize) -> Ids {
        match self {
            Ids::Wide(ids) => Ids::Wide(ids.split_off(at)),
            Ids::Bytes(Cow::Borrowed(ids)) => {
                let (front, back) = ids.split_at(at);
                *ids = front;
                Ids::Bytes(Cow::Borrowed(back))
            }
            Ids::Bytes(Cow::Owned(ids)) => Ids::Bytes(ids.split_off(at).into()),
        }
    }
}

/// A coding made ready for one model.
pub(super) struct Coder {
    tokenizer: Option<(PathBuf, Box<Tokenizer>)>,
    /// Tokens of the model.
    vocab: u64,
}

impl Coder {
    /// Opens the coding for a model with `vocab` tokens.
    pub(super) fn new(coding: &Coding, vocab: u64) -> Result<Coder> {
        let tokenizer = match coding {
            Coding::Bytes if vocab < 256 => {
                let why = "bytes as tokens need a vocabulary of 256";
                let next = "choose another model, or give its --tokenizer";
                return Err(Error::value("vocabulary", vocab, why, next));
            }
            Coding::Bytes => None,
            Coding::Tokenizer(path) => Some((path.clone(), Box::new(open(path)?))),
        };
        Ok(Coder { tokenizer, vocab })
    }

    /// Number of tokens the coding can give, at most those of the model.
    pub(super) fn size(&self) -> u64 {
        let own = |(_, t): &(PathBuf, Box<Tokenizer>)| t.get_vocab_size(true) as u64;
        self.tokenizer
            .as_ref()
            .map_or(256, own)
            .clamp(1, self.vocab)
    }

    /// No ids, of the kind this coding gives.
    pub(super) fn empty(&self) -> Ids {
        match self.tokenizer {
            None => Ids::Bytes(Cow::Owned(Vec::new())),
            Some(_) => Ids::Wide(Vec::new()),
        }
    }

    /// The ids of a text. Only a tokenizer asks that it be UTF-8.
    pub(super) fn ids(&self, from: &Path, text: Cow<'static, [u8]>) -> Result<Ids> {
        let Some((path, tokenizer)) = &self.tokenizer else {
            return Ok(Ids::Bytes(text));
        };
        let text = std::str::from_utf8(&text).map_err(|e| not_utf8(from, &e))?;
        let mut ids = Vec::with_capacity(text.len() / 3);
        for block in blocks(text) {
            let coded = tokenizer
                .encode_fast(block, false)
                .map_err(|e| unusable(path, &e.to_string()))?;
            ids.extend_from_slice(coded.get_ids());
        }
        let beyond = ids.iter().find(|id| u64::from(**id) >= self.vocab);
        match beyond {
            Some(id) => Err(self.beyond(path, *id)),
            None => Ok(Ids::Wide(ids)),
        }
    }

    /// What ends a text: the tokenizer's token for it, a newline among bytes.
    pub(super) fn ending(&self) -> Ids {
        let Some((_, tokenizer)) = &self.tokenizer else {
            return Ids::Bytes(Cow::Borrowed(b"\n"));
        };
        let known = ENDS.iter().find_map(|name| tokenizer.token_to_id(name));
        let known = known.filter(|id| u64::from(*id) < self.vocab);
        Ids::Wide(known.into_iter().collect())
    }

    /// The mask token: `[MASK]` or `<mask>`, among bytes the model's last token.
    pub(super) fn mask(&self) -> Result<u32> {
        let Some((path, tokenizer)) = &self.tokenizer else {
            return Ok((self.vocab - 1).min(u64::from(u32::MAX - 1)) as u32);
        };
        let known = ["[MASK]", "<mask>"];
        let id = known.iter().find_map(|name| tokenizer.token_to_id(name));
        match id {
            Some(id) if u64::from(id) < self.vocab => Ok(id),
            Some(id) => Err(self.beyond(path, id)),
            None => {
                let why = "has no token `[MASK]`, which a masked-language model needs";
                Err(Error::file(
                    path,
                    why,
                    "give the model's own tokenizer.json",
                ))
            }
        }
    }

    fn beyond(&self, path: &Path, id: u32) -> Error {
        let why = format!(
            "gives token {id}, the model's vocabulary has {} tokens",
            self.vocab
        );
        Error::file(path, why, "give the model's own tokenizer.json")
    }
}

fn open(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| unusable(path, &e.to_string()))?;
    // Files often ask for truncation and padding to one length, which is not for a corpus.
    tokenizer.with_padding(None);
    match tokenizer.with_truncation(None) {
        Ok(_) => Ok(tokenizer),
        Err(e) => Err(unusable(path, &e.to_string())),
    }
}

fn unusable(path: &Path, why: &str) -> Error {
    let next = "give a tokenizer.json of the Hugging Face tokenizers library";
    Error::file(path, format!("not usable as a tokenizer: {why}"), next)
}

fn not_utf8(path: &Path, at: &std::str::Utf8Error) -> Error {
    let why = format!("not UTF-8 at byte {}", at.valid_up_to());
    Error::file(path, why, "convert it to UTF-8, or leave out --tokenizer")
}

/// The text in blocks that end with a newline where no white space follows.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (block, after) = rest.split_at(cut(rest));
        rest = after;
        Some(block)
    })
}

/// Where the first block of a text ends.
fn cut(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |at: &usize| bytes[at - 1] == b'\n' && !bytes[*at].is_ascii_whitespace();
    (BLOCK..bytes.len()).find(ends).unwrap_or(bytes.len())
}
