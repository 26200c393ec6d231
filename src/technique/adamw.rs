//! AdamW.

use super::{Args, Argument, Card, Site, Technique, Update};
use crate::error::Result;
use crate::graph::op::optimizer;
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

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        let card = self.card();
        let beta1 = args.number(&card, "beta1", (0.0, 1.0))?;
        let beta2 = args.number(&card, "beta2", (0.0, 1.0))?;
        let eps = args.number(&card, "eps", (0.0, 1.0))?;
        let decay = args.number(&card, "decay", (0.0, 1e6))?;
        let op = optimizer::AdamW {
            beta1,
            beta2,
            eps,
            decay,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let wide = at.at().with(DType::F32);
        at.apply(op, &[("m", wide.clone()), ("v", wide)])
    }
}
