//! MicroAdam.

use super::adamw::{BETA1, BETA2, DECAY, EPS};
use super::{Args, Argument, Card, Site, Technique, Update};
use crate::error::{Error, Result};
use crate::graph::op::optimizer;
use crate::spec::job::Exactness;

/// Adam on a window of sparse gradients with error feedback.
pub struct MicroAdam;

impl Technique for MicroAdam {
    fn card(&self) -> Card {
        Card {
            name: "microadam",
            aliases: &["micro_adam"],
            summary: "updates by a window of the largest 1 % of recent gradients and feeds the rest back in four bits, 0.96 bytes per parameter",
            source: "Modoranu et al. 2024, arXiv:2405.15593; as in IST-DASLab/ISTA-DASLab-Optimizers, whose block depends on the GPU",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &[
                Argument {
                    key: "window",
                    default: "10",
                    meaning: "gradients in the window",
                },
                Argument {
                    key: "density",
                    default: "0.01",
                    meaning: "share of each block that the window takes",
                },
                Argument {
                    key: "block",
                    default: "20864",
                    meaning: "elements the largest are sought among (the authors': 20864 on an A100, 29056 on an H100, 12672 on an RTX 4090)",
                },
                Argument {
                    key: "quant",
                    default: "64",
                    meaning: "elements that share a range of four-bit codes, even",
                },
                BETA1,
                BETA2,
                EPS,
                Argument {
                    default: "0",
                    ..DECAY
                },
                Argument {
                    key: "alpha",
                    default: "0",
                    meaning: "share of what was left out that joins the step at once",
                },
            ],
        }
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        let card = self.card();
        let quant: u32 = args.number(&card, "quant", (2, 1 << 30))?;
        if !quant.is_multiple_of(2) {
            let why = "two codes share a byte";
            let next = "give an even number";
            return Err(Error::value(
                "quant of `microadam`",
                quant.to_string(),
                why,
                next,
            ));
        }
        let op = optimizer::MicroAdam {
            window: args.number(&card, "window", (1, 1 << 16))?,
            density: args.number(&card, "density", (1e-6, 1.0))?,
            block: args.number(&card, "block", (1, 1 << 16))?,
            quant,
            beta1: args.number(&card, "beta1", (0.0, 1.0))?,
            beta2: args.number(&card, "beta2", (0.0, 1.0))?,
            eps: args.number(&card, "eps", (0.0, 1.0))?,
            decay: args.number(&card, "decay", (0.0, 1e6))?,
            alpha: args.number(&card, "alpha", (0.0, 1.0))?,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let states = op.states(&at.at());
        at.apply(op, &states)
    }
}
