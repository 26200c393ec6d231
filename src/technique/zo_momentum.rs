//! Zeroth-order SGD with momentum.

use super::zeroth_order;
use super::{Args, Argument, Card, Draft, Site, Technique};
use crate::error::Result;
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::op::direction::Rule;
use crate::spec::job::Exactness;

/// Zeroth-order SGD with momentum.
pub struct ZoMomentum;

impl Technique for ZoMomentum {
    fn card(&self) -> Card {
        Card {
            name: "zo_momentum",
            aliases: &["zo_sgd_mmt", "zo_mmt"],
            summary: "zeroth-order SGD with a momentum buffer in the format of the parameters",
            source: "Zhang et al. 2024, arXiv:2402.11592",
            exactness: Exactness::Lossy,
            site: Site::Step,
            arguments: ALL,
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        zeroth_order::draft(&self.card(), draft, args)
    }

    fn step(&self, forward: Forward, draft: &Draft, args: &Args) -> Result<Step> {
        let card = self.card();
        let keep = args.number(&card, "momentum", (0.0, 1.0))?;
        zeroth_order::step(
            &card,
            forward,
            draft,
            args,
            (Rule::Momentum { keep }, &["momentum"]),
        )
    }
}

/// Its arguments: the shared ones and its own.
const ALL: &[Argument; 11] = &zeroth_order::with([Argument {
    key: "momentum",
    default: "0.9",
    meaning: "what remains of the buffer each step",
}]);
