//! Lion.

use super::adamw::DECAY;
use super::{Args, Argument, Card, Site, Technique, Update};
use crate::error::Result;
use crate::graph::op::optimizer;
use crate::graph::tensor::DType;
use crate::spec::job::Exactness;

/// Lion: steps along signs.
pub struct Lion;

impl Technique for Lion {
    fn card(&self) -> Card {
        Card {
            name: "lion",
            aliases: &["lion_32bit"],
            summary: "updates by the sign of a mix of gradient and momentum, 4 bytes per parameter or 2 with momentum=bf16",
            source: "Chen et al. 2023, arXiv:2302.06675, algorithm 2",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &[
                Argument {
                    key: "beta1",
                    default: "0.9",
                    meaning: "share of the momentum in what the sign is taken of",
                },
                Argument {
                    key: "beta2",
                    default: "0.99",
                    meaning: "decay of the momentum",
                },
                Argument {
                    default: "0",
                    ..DECAY
                },
                Argument {
                    key: "momentum",
                    default: "f32",
                    meaning: "format of the momentum: f32 | bf16",
                },
            ],
        }
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        let card = self.card();
        let momentum = match args.word(&card, "momentum", &["f32", "bf16"])? {
            "bf16" => DType::Bf16,
            _ => DType::F32,
        };
        let op = optimizer::Lion {
            beta1: args.number(&card, "beta1", (0.0, 1.0))?,
            beta2: args.number(&card, "beta2", (0.0, 1.0))?,
            decay: args.number(&card, "decay", (0.0, 1e6))?,
            momentum,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let momentum = at.at().with(momentum);
        at.apply(op, &[("momentum", momentum)])
    }
}
