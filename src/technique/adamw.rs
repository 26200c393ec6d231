//! AdamW.

use super::{Args, Argument, Card, Site, Technique, Update};
use crate::error::Result;
use crate::graph::op::optimizer::{self, LEAST};
use crate::graph::tensor::DType;
use crate::spec::job::Exactness;

/// Adam with decoupled weight decay.
pub struct AdamW;

impl Technique for AdamW {
    fn card(&self) -> Card {
        Card {
            name: "adamw",
            aliases: &["adam"],
            summary: "updates by two f32 moments, 8 bytes per parameter",
            source: "Loshchilov and Hutter 2019, arXiv:1711.05101; in PyTorch's form",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &[BETA1, BETA2, EPS, DECAY],
        }
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        Adam::read(args, &self.card())?.update(at)
    }
}

/// Decay of the mean of gradients.
pub(super) const BETA1: Argument = Argument {
    key: "beta1",
    default: "0.9",
    meaning: "decay of the mean of gradients",
};

/// Decay of the mean of their squares.
pub(super) const BETA2: Argument = Argument {
    key: "beta2",
    default: "0.999",
    meaning: "decay of the mean of their squares",
};

/// What the root of the latter is kept above.
pub(super) const EPS: Argument = Argument {
    key: "eps",
    default: "1e-8",
    meaning: "added to the root of the latter",
};

/// Weight decay.
pub(super) const DECAY: Argument = Argument {
    key: "decay",
    default: "0.01",
    meaning: "decoupled weight decay",
};

/// Adam's numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adam {
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) eps: f64,
    pub(super) decay: f64,
}

impl Adam {
    /// As a choice gives them.
    pub(super) fn read(args: &Args, card: &Card) -> Result<Adam> {
        Ok(Adam {
            beta1: args.number(card, "beta1", (0.0, 1.0))?,
            beta2: args.number(card, "beta2", (0.0, 1.0))?,
            eps: args.number(card, "eps", (0.0, 1.0))?,
            decay: args.number(card, "decay", (0.0, 1e6))?,
        })
    }

    /// An update by moments in f32.
    pub(super) fn update(self, at: &mut Update) -> Result<()> {
        let op = optimizer::AdamW {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: self.decay,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let wide = at.at().with(DType::F32);
        at.apply(op, &[("m", wide.clone()), ("v", wide)])
    }

    /// An update by moments in bytes, or in f32 where there are few.
    pub(super) fn update_bytewise(self, at: &mut Update) -> Result<()> {
        if at.at().elements() < LEAST {
            return self.update(at);
        }
        let op = optimizer::AdamW8Bit {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: self.decay,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let states = optimizer::AdamW8Bit::states(&at.at());
        at.apply(op, &states)
    }
}
