//! Zeroth-order SGD by the sign of the slope.

use super::zeroth_order::{self, ARGUMENTS};
use super::{Args, Card, Draft, Site, Technique};
use crate::error::Result;
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::op::direction::Rule;
use crate::spec::job::Exactness;

/// Zeroth-order SGD by the sign of the slope.
pub struct ZoSign;

impl Technique for ZoSign {
    fn card(&self) -> Card {
        Card {
            name: "zo_sign",
            aliases: &["zo_sgd_sign", "zo_signsgd"],
            summary: "steps along a random direction by the sign of the loss's slope; no backward pass, no state",
            source: "Liu et al. 2019, ICLR; Zhang et al. 2024, arXiv:2402.11592",
            exactness: Exactness::Lossy,
            site: Site::Step,
            arguments: ARGUMENTS,
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        zeroth_order::draft(&self.card(), draft, args)
    }

    fn step(&self, forward: Forward, draft: &Draft, args: &Args) -> Result<Step> {
        zeroth_order::step(&self.card(), forward, draft, args, (Rule::Sign, &[]))
    }
}
