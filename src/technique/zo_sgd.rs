//! Zeroth-order SGD.

use super::zeroth_order::{self, ARGUMENTS};
use super::{Args, Card, Draft, Site, Technique};
use crate::error::Result;
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::op::direction::Rule;
use crate::spec::job::Exactness;

/// Zeroth-order SGD: SPSA, as MeZO has it.
pub struct ZoSgd;

impl Technique for ZoSgd {
    fn card(&self) -> Card {
        Card {
            name: "zo_sgd",
            aliases: &["mezo_sgd"],
            summary: "estimates the slope of the loss along one random direction from two forward passes and steps along it; no backward pass, no state",
            source: "Malladi et al. 2023, arXiv:2305.17333 (MeZO); Spall 1992",
            exactness: Exactness::Lossy,
            site: Site::Step,
            arguments: ARGUMENTS,
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        zeroth_order::draft(&self.card(), draft, args)
    }

    fn step(&self, forward: Forward, draft: &Draft, args: &Args) -> Result<Step> {
        zeroth_order::step(&self.card(), forward, draft, args, (Rule::Sgd, &[]))
    }
}
