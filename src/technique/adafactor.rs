//! Adafactor.

use super::adamw::DECAY;
use super::{Args, Argument, Card, Site, Technique, Update};
use crate::error::Result;
use crate::graph::op::optimizer;
use crate::spec::job::Exactness;

/// Adafactor, at a rate given from outside.
pub struct Adafactor;

impl Technique for Adafactor {
    fn card(&self) -> Card {
        Card {
            name: "adafactor",
            aliases: &[],
            summary: "updates by mean squares of rows and columns in place of elements: almost no state",
            source: "Shazeer and Stern 2018, arXiv:1804.04235; in the form of Hugging Face Transformers with relative_step off",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &[
                Argument {
                    key: "eps",
                    default: "1e-30",
                    meaning: "added to squares of gradients",
                },
                Argument {
                    key: "clip",
                    default: "1.0",
                    meaning: "root mean square above which an update is scaled down to it",
                },
                Argument {
                    key: "exponent",
                    default: "-0.8",
                    meaning: "of the decay: 1 - step^exponent of a mean square remains",
                },
                Argument {
                    key: "beta1",
                    default: "none",
                    meaning: "decay of the mean of updates, 4 bytes per parameter; none: no such mean",
                },
                Argument {
                    key: "scale",
                    default: "no",
                    meaning: "yes: the rate is relative to the root mean square of each parameter (scale_parameter)",
                },
                Argument {
                    key: "least",
                    default: "1e-3",
                    meaning: "with scale=yes: least root mean square that counts",
                },
                Argument {
                    default: "0",
                    ..DECAY
                },
            ],
        }
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        let card = self.card();
        let least = args.number(&card, "least", (0.0, 1e6))?;
        let scaled = args.word(&card, "scale", &["no", "yes"])? == "yes";
        let beta1 = match args.word(&card, "beta1", &["none"]) {
            Ok(_) => None,
            Err(_) => Some(args.number(&card, "beta1", (0.0, 1.0))?),
        };
        let op = optimizer::Adafactor {
            eps: args.number(&card, "eps", (0.0, 1.0))?,
            scale: scaled.then_some(least),
            clip: args.number(&card, "clip", (1e-12, 1e12))?,
            exponent: args.number(&card, "exponent", (-8.0, -1e-3))?,
            beta1,
            decay: args.number(&card, "decay", (0.0, 1e6))?,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let states = op.states(&at.at());
        at.apply(op, &states)
    }
}
