//! AdamW.

use std::sync::Arc;

use super::{Args, Argument, Card, Rule, Technique};
use crate::error::Result;
use crate::graph::op::optimizer;
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
            arguments: &[
                Argument {
                    key: "beta1",
                    default: "0.9",
                    meaning: "decay of the mean of gradients",
                },
                Argument {
                    key: "beta2",
                    default: "0.999",
                    meaning: "decay of the mean of their squares",
                },
                Argument {
                    key: "eps",
                    default: "1e-8",
                    meaning: "added to the root of the latter",
                },
                Argument {
                    key: "decay",
                    default: "0.01",
                    meaning: "decoupled weight decay",
                },
            ],
        }
    }

    fn rule(&self, master: bool, guard: bool, args: &Args) -> Result<Option<Rule>> {
        let card = self.card();
        let beta1 = args.number(&card, "beta1", (0.0, 1.0))?;
        let beta2 = args.number(&card, "beta2", (0.0, 1.0))?;
        let eps = args.number(&card, "eps", (0.0, 1.0))?;
        let decay = args.number(&card, "decay", (0.0, 1e6))?;
        let op = Arc::new(optimizer::AdamW {
            beta1,
            beta2,
            eps,
            decay,
            master,
            guard,
        });
        Ok(Some(Rule {
            op,
            states: vec!["m", "v"],
        }))
    }
}
