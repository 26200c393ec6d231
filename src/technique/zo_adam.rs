//! Zeroth-order Adam.

use super::zeroth_order;
use super::{Args, Argument, Card, Draft, Site, Technique};
use crate::error::Result;
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::op::direction::Rule;
use crate::spec::job::Exactness;

/// Zeroth-order Adam.
pub struct ZoAdam;

impl Technique for ZoAdam {
    fn card(&self) -> Card {
        Card {
            name: "zo_adam",
            aliases: &["zo_adamu"],
            summary: "Adam on a gradient estimated from two forward passes; two moments in the format of the parameters",
            source: "Chen et al. 2019, arXiv:1910.06513 (ZO-AdaMM); Zhang et al. 2024, arXiv:2402.11592",
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
        let rule = Rule::Adam {
            beta1: args.number(&card, "beta1", (0.0, 1.0))?,
            beta2: args.number(&card, "beta2", (0.0, 1.0))?,
            eps: args.number(&card, "adam_eps", (0.0, 1.0))?,
        };
        zeroth_order::step(&card, forward, draft, args, (rule, &["m", "v"]))
    }
}

/// Its arguments: the shared ones and its own.
const ALL: &[Argument; 13] = &zeroth_order::with([
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
        key: "adam_eps",
        default: "1e-8",
        meaning: "added to the root of the latter",
    },
]);
