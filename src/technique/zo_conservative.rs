//! Zeroth-order SGD that keeps the best of three.

use super::zeroth_order::{self, ARGUMENTS};
use super::{Args, Card, Draft, Site, Technique};
use crate::error::Result;
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::op::direction::Rule;
use crate::spec::job::Exactness;

/// Zeroth-order SGD that never takes a step that raises the loss of its batch.
pub struct ZoConservative;

impl Technique for ZoConservative {
    fn card(&self) -> Card {
        Card {
            name: "zo_conservative",
            aliases: &["zo_sgd_cons", "zo_cons"],
            summary: "tries a step down and up the estimated slope and keeps what has the least loss: five forward passes, no state",
            source: "Zhang et al. 2024, arXiv:2402.11592",
            exactness: Exactness::Lossy,
            site: Site::Step,
            arguments: ARGUMENTS,
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        zeroth_order::draft(&self.card(), draft, args)
    }

    fn step(&self, forward: Forward, draft: &Draft, args: &Args) -> Result<Step> {
        zeroth_order::step(
            &self.card(),
            forward,
            draft,
            args,
            (Rule::Conservative, &[]),
        )
    }
}
