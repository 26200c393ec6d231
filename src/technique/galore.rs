//! GaLore.

use super::adamw::{Adam, BETA1, BETA2, DECAY, EPS};
use super::{Args, Argument, Card, Site, Technique, Update};
use crate::error::Result;
use crate::graph::op::optimizer::galore::{Apply, Direction, Low, Project};
use crate::graph::op::optimizer::{AdamW8Bit, Factorization, LEAST, Refresh};
use crate::graph::tensor::{DType, TensorId, Type};
use crate::spec::job::Exactness;

/// Adam on gradients projected to a low rank.
///
/// Its layer-wise form is this with `fused_update`: the gradient of one matrix is alive at a time.
pub struct GaLore;

impl Technique for GaLore {
    fn card(&self) -> Card {
        Card {
            name: "galore",
            aliases: &["galore_adamw"],
            summary: "projects gradients of attention and MLP matrices to a low rank, keeps moments there and renews projectors every 200 steps",
            source: "Zhao et al. 2024, arXiv:2403.03507; as in galore-torch, layer-wise with fused_update",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &[
                Argument {
                    key: "rank",
                    default: "128",
                    meaning: "rank gradients are projected to",
                },
                Argument {
                    key: "gap",
                    default: "200",
                    meaning: "steps from one renewal of the projectors to the next",
                },
                Argument {
                    key: "scale",
                    default: "0.25",
                    meaning: "what steps at the low rank are multiplied by (alpha)",
                },
                Argument {
                    key: "projection",
                    default: "exact",
                    meaning: "exact: singular vectors | randomized: a range finder",
                },
                Argument {
                    key: "more",
                    default: "8",
                    meaning: "with randomized: directions sought beyond the rank",
                },
                Argument {
                    key: "power",
                    default: "1",
                    meaning: "with randomized: rounds through the gradient and its transpose",
                },
                Argument {
                    key: "bits",
                    default: "32",
                    meaning: "of a moment: 32 | 8, by blocks of 256 as in adamw8bit",
                },
                BETA1,
                BETA2,
                Argument {
                    default: "1e-6",
                    ..EPS
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
        let choice = Choice {
            adam: Adam::read(args, &card)?,
            rank: args.number(&card, "rank", (1, 1 << 20))?,
            scale: args.number(&card, "scale", (0.0, 1e6))?,
            factorization: factorization(args, &card)?,
            bytewise: args.word(&card, "bits", &["32", "8"])? == "8",
        };
        match is_projected(&at.name(), &at.at()) {
            true => choice.update(at),
            false if choice.bytewise => choice.adam.update_bytewise(at),
            false => choice.adam.update(at),
        }
    }

    fn period(&self, args: &Args) -> Result<Option<u32>> {
        args.number(&self.card(), "gap", (1, 1 << 30)).map(Some)
    }
}

fn factorization(args: &Args, card: &Card) -> Result<Factorization> {
    let (more, power) = (
        args.number(card, "more", (0, 1 << 20))?,
        args.number(card, "power", (0, 64))?,
    );
    Ok(
        match args.word(card, "projection", &["exact", "randomized"])? {
            "exact" => Factorization::Exact,
            _ => Factorization::Randomized { more, power },
        },
    )
}

/// Whether the authors' code projects it: a matrix of a layer's attention or MLP.
pub(super) fn is_projected(name: &str, at: &Type) -> bool {
    at.shape.len() == 2 && (name.contains("attention/") || name.contains("mlp/"))
}

/// What a choice says.
struct Choice {
    adam: Adam,
    rank: u64,
    scale: f64,
    factorization: Factorization,
    bytewise: bool,
}

impl Choice {
    /// The update of a projected matrix: renew the projector where that is due, project, step at the low rank, project back.
    fn update(&self, at: &mut Update) -> Result<()> {
        let gradient = at.gradient();
        let dtype = at.type_of(gradient).dtype;
        let low = Low::of(&at.at(), self.rank);
        let guard = at.guard();
        let mut projector = at.state("projector", low.projector(dtype));
        if at.refreshes() {
            let op = Refresh {
                factorization: self.factorization,
                guard: guard.is_some(),
            };
            let inputs: Vec<_> = [gradient, projector].into_iter().chain(guard).collect();
            projector = at.emit(op, &inputs, "refresh")?[0];
        }
        let step = at.emit(Project, &[gradient, projector], "projected")?[0];
        let step = self.direction(at, step, &low.projected())?;
        let op = Apply {
            scale: self.scale,
            decay: self.adam.decay,
            master: at.master().is_some(),
            guard: guard.is_some(),
        };
        let mut inputs = vec![step, projector, at.parameter()];
        inputs.extend(at.master());
        inputs.extend(guard);
        at.emit(op, &inputs, "").map(|_| ())
    }

    /// Turns a projected gradient into Adam's step.
    fn direction(&self, at: &mut Update, step: TensorId, low: &Type) -> Result<TensorId> {
        let bytewise = self.bytewise && low.elements() >= LEAST;
        let op = Direction {
            beta1: self.adam.beta1,
            beta2: self.adam.beta2,
            eps: self.adam.eps,
            bytewise,
            guard: at.guard().is_some(),
        };
        let states = match bytewise {
            true => AdamW8Bit::states(low).to_vec(),
            false => ["m", "v"].map(|s| (s, low.with(DType::F32))).to_vec(),
        };
        let mut inputs = vec![step];
        for (suffix, at_low) in states {
            inputs.push(at.state(suffix, at_low));
        }
        inputs.extend(at.guard());
        Ok(at.emit(op, &inputs, "step")?[0])
    }
}
