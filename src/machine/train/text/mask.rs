//! Masks for masked-language models: 15 % of the positions, as in BERT (Devlin et al. 2018, section 3.1).

use std::ops::Range;

use super::coding::Coder;
use crate::error::Result;
use crate::graph::random::Key;

/// Share of the positions to be predicted.
const MASKED: f32 = 0.15;
/// Of those, the share shown as the mask token; half of the rest is shown as a random token, half as it is.
const HIDDEN: f32 = 0.8;
const REPLACED: f32 = 0.9;

/// How tokens are masked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask {
    token: u32,
    vocab: u64,
}

impl Mask {
    /// Of the coder's mask token.
    pub(super) fn new(coder: &Coder) -> Result<Mask> {
        Ok(Mask {
            token: coder.mask()?,
            vocab: coder.size(),
        })
    }

    /// Masks positions among `eligible`, at least one of them, and sets their targets to what they were.
    pub(super) fn apply(
        &self,
        key: Key,
        eligible: Range<usize>,
        tokens: &mut [u32],
        targets: &mut [u32],
    ) {
        let chosen = |at: &usize| key.uniform(3 * *at as u64) < MASKED;
        let span = eligible.len() as u64;
        if span == 0 {
            return;
        }
        // A row without any would count nothing, and a batch of such rows has no mean.
        let fallback = eligible.start + (key.bits(1) % span) as usize;
        let none = !eligible.clone().any(|at| chosen(&at));
        for at in eligible.filter(|at| chosen(at) || (none && *at == fallback)) {
            targets[at] = tokens[at];
            tokens[at] = self.shown(key, at as u64, tokens[at]);
        }
    }

    /// What stands in the place of `token`.
    fn shown(&self, key: Key, at: u64, token: u32) -> u32 {
        match key.uniform(3 * at + 1) {
            u if u < HIDDEN => self.token,
            u if u < REPLACED => (key.bits(3 * at + 2) % self.vocab) as u32,
            _ => token,
        }
    }
}
