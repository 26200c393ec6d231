//! The corpus: text as tokens, and batches of it drawn so that a step sees the same rows however they are cut.

mod coding;
mod mask;
mod source;

use crate::error::{Error, Result};
use crate::graph::random::Key;
use crate::spec::model::Head;

pub use coding::Coding;
pub use source::{BuiltIn, HeldOut, Source};

use coding::Coder;
use mask::Mask;
use source::{Part, Record};

/// The target of a position that does not count.
pub const IGNORED: u32 = u32::MAX;

/// Which part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What is trained on: rows drawn anew for every step.
    Train,
    /// What is only evaluated on: rows one after the other, the same at every step.
    HeldOut,
}

/// Which rows: those of a micro-batch of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// The first row's number within the global batch.
    pub first: u64,
    /// Number of rows.
    pub count: u64,
    /// Length of each.
    pub seq: u64,
}

/// Rows of tokens and the target of each position, `count * seq` of both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// What the model reads.
    pub tokens: Vec<u32>,
    /// What it is to say there; [`IGNORED`] where that does not count.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Number of targets that count.
    pub fn counted(&self) -> u64 {
        self.targets.iter().filter(|t| **t != IGNORED).count() as u64
    }
}

/// A text as tokens, with what is held out of it.
///
/// ```
/// use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source, Split};
/// use memfit::spec::model::Head;
///
/// let corpus = Corpus::open(&Source::default(), &Coding::Bytes, &HeldOut::None, 256, Head::Causal)?;
/// let whole = corpus.batch(Split::Train, 7, 1, 0, 2, 64)?;
/// let second = corpus.batch(Split::Train, 7, 1, 1, 1, 64)?;
/// assert_eq!(whole.tokens[64..], second.tokens);
/// # Ok::<(), memfit::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Corpus {
    train: Part,
    held_out: Option<Part>,
    /// Where masked tokens are to be predicted rather than next ones.
    mask: Option<Mask>,
}

impl Corpus {
    /// Reads `source` as tokens of a model with `vocab` of them and this head.
    ///
    /// # Errors
    /// Where a file cannot be read or used, or has tokens beyond the vocabulary.
    pub fn open(
        source: &Source,
        coding: &Coding,
        held_out: &HeldOut,
        vocab: u64,
        head: Head,
    ) -> Result<Corpus> {
        let coder = Coder::new(coding, vocab)?;
        let mut train = source.part(&coder)?;
        let held_out = match held_out {
            HeldOut::None => None,
            HeldOut::Fraction(fraction) => Some(train.split_off(*fraction)),
            HeldOut::File(path) => Some(Source::from_path(path).part(&coder)?),
        };
        let mask = match head {
            Head::Causal => None,
            Head::MaskedLm => Some(Mask::new(&coder)?),
        };
        Ok(Corpus {
            train,
            held_out,
            mask,
        })
    }

    /// Checks that both parts have rows of length `seq`.
    ///
    /// # Errors
    /// Where one is too short, or none of its records has a response within that length.
    pub fn check(&self, seq: u64) -> Result<()> {
        let parts = [Some(&self.train), self.held_out.as_ref()];
        parts
            .into_iter()
            .flatten()
            .try_for_each(|part| part.check(seq))
    }

    /// Tokens of a part.
    pub fn tokens(&self, split: Split) -> u64 {
        self.part(split).map_or(0, |part| part.ids.len() as u64)
    }

    /// Rows of the held-out part, each evaluated once; 0 where nothing is held out.
    pub fn evaluation_rows(&self, seq: u64) -> u64 {
        self.held_out.as_ref().map_or(0, |part| part.windows(seq))
    }

    /// Micro-batch `micro` of `rows` rows of a step.
    ///
    /// Rows are drawn by their number in the global batch, `micro * rows` and on, so that a seed and a step give the
    /// same rows however many are taken at a time. Held-out rows are fixed, and past the last one nothing counts.
    ///
    /// # Errors
    /// Where nothing is held out, or the part is too short for one row.
    pub fn batch(
        &self,
        split: Split,
        seed: u64,
        step: u64,
        micro: u64,
        rows: u64,
        seq: u64,
    ) -> Result<Batch> {
        let first = micro.saturating_mul(rows);
        let rows = Rows {
            first,
            count: rows,
            seq,
        };
        self.rows(split, seed, step, rows)
    }

    /// Targets that count in a global batch of `rows` rows.
    ///
    /// # Errors
    /// As [`Corpus::batch`], and where none counts.
    pub fn counted(&self, split: Split, seed: u64, step: u64, rows: u64, seq: u64) -> Result<u64> {
        let part = self.part(split)?;
        if part.records.is_none() && self.mask.is_none() && split == Split::Train {
            part.check(seq)?;
            return Ok(rows * seq);
        }
        let mut counted = 0;
        for first in 0..rows {
            let count = 1;
            counted += self
                .rows(split, seed, step, Rows { first, count, seq })?
                .counted();
        }
        Ok(counted)
    }

    /// Any rows of a step's global batch.
    ///
    /// # Errors
    /// As [`Corpus::batch`].
    pub fn rows(&self, split: Split, seed: u64, step: u64, rows: Rows) -> Result<Batch> {
        let part = self.part(split)?;
        part.check(rows.seq)?;
        let mut batch = Batch::default();
        for row in rows.first..rows.first.saturating_add(rows.count) {
            let draw = Key::new(seed, step, "input/rows");
            let record = match split {
                Split::Train => Some(part.drawn(draw.bits(row), rows.seq)),
                Split::HeldOut => part.window(row, rows.seq),
            };
            let key = match split {
                Split::Train => Key::new(seed, step, "input/mask"),
                Split::HeldOut => Key::new(0, 0, "input/mask"),
            };
            self.append(&mut batch, part, record, Key(key.bits(row)), rows.seq);
        }
        Ok(batch)
    }

    /// One more row: a record, or nothing that counts.
    fn append(&self, batch: &mut Batch, part: &Part, row: Option<Record>, key: Key, seq: u64) {
        let start = batch.tokens.len();
        let length = start + seq as usize;
        batch.tokens.resize(length, 0);
        batch.targets.resize(length, IGNORED);
        let Some(row) = row else { return };
        let (tokens, targets) = (&mut batch.tokens[start..], &mut batch.targets[start..]);
        match &self.mask {
            None => next_tokens(part, row, tokens, targets),
            Some(mask) => {
                let eligible = same_tokens(part, row, tokens);
                mask.apply(key, eligible, tokens, targets);
            }
        }
    }

    fn part(&self, split: Split) -> Result<&Part> {
        let held_out = self.held_out.as_ref();
        match split {
            Split::Train => Ok(&self.train),
            Split::HeldOut => held_out.ok_or_else(|| {
                let why = "no text is held out";
                let next = "hold some out with --eval FILE or --eval 10%";
                Error::value("evaluation", "none", why, next)
            }),
        }
    }
}

/// Each position is to say the token after it.
fn next_tokens(part: &Part, row: Record, tokens: &mut [u32], targets: &mut [u32]) {
    for (t, (token, target)) in tokens.iter_mut().zip(targets).enumerate() {
        let at = row.start + t;
        if at < row.end {
            *token = part.ids.get(at);
        }
        if at + 1 < row.end && t + 1 >= row.prompt {
            *target = part.ids.get(at + 1);
        }
    }
}

/// Each position is read as it is; the positions that may be masked are returned.
fn same_tokens(part: &Part, row: Record, tokens: &mut [u32]) -> std::ops::Range<usize> {
    let length = tokens.len().min(row.end - row.start);
    for (t, token) in tokens[..length].iter_mut().enumerate() {
        *token = part.ids.get(row.start + t);
    }
    row.prompt.min(length)..length
}
