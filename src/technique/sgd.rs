//! Stochastic gradient descent with momentum.

use super::{Args, Argument, Card, Site, Technique, Update};
use crate::error::Result;
use crate::graph::op::optimizer;
use crate::graph::tensor::DType;
use crate::spec::job::Exactness;

/// SGD, with a momentum buffer unless `momentum` is 0.
pub struct Sgd;

impl Technique for Sgd {
    fn card(&self) -> Card {
        Card {
            name: "sgd",
            aliases: &["momentum"],
            summary: "updates by the gradient and a momentum buffer of 4 bytes per parameter",
            source: "Sutskever et al. 2013, ICML; in PyTorch's form",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &[
                Argument {
                    key: "momentum",
                    default: "0.9",
                    meaning: "what remains of the buffer each step; 0 for none",
                },
                Argument {
                    key: "decay",
                    default: "0",
                    meaning: "weight decay, added to the gradient",
                },
                Argument {
                    key: "nesterov",
                    default: "no",
                    meaning: "yes: look ahead along the buffer",
                },
            ],
        }
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        let card = self.card();
        let momentum = args.number(&card, "momentum", (0.0, 1.0))?;
        let decay = args.number(&card, "decay", (0.0, 1e6))?;
        let nesterov = args.word(&card, "nesterov", &["yes", "no"])? == "yes";
        let op = optimizer::Sgd {
            momentum,
            decay,
            nesterov,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let wide = at.at().with(DType::F32);
        match momentum == 0.0 {
            true => at.apply(op, &[]),
            false => at.apply(op, &[("momentum", wide)]),
        }
    }
}
