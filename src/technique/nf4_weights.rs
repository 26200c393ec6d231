//! Frozen weights in 4 bits.

use super::frozen::{expect_adapter, quantize};
use super::{Args, Argument, Card, Draft, Pattern, Site, Technique};
use crate::error::Result;
use crate::graph::build::Forward;
use crate::graph::op::quantized::Format;
use crate::spec::job::Exactness;

/// The base model of QLoRA.
pub struct Nf4Weights;

impl Technique for Nf4Weights {
    fn card(&self) -> Card {
        Card {
            name: "nf4_weights",
            aliases: &["nf4", "load_in_4bit"],
            summary: "holds the frozen weights of linear layers as 4-bit normal floats and widens panels of them where they are read",
            source: "Dettmers et al. 2023, arXiv:2305.14314 (QLoRA); laid out as in bitsandbytes 0.50",
            exactness: Exactness::Lossy,
            site: Site::Forward,
            arguments: &[Argument {
                key: "double",
                default: "yes",
                meaning: "no: leave the absmax of each 64 elements in f32",
            }],
        }
    }

    fn draft(&self, draft: &mut Draft, _: &Args) -> Result<()> {
        expect_adapter(draft, "nf4_weights")
    }

    fn forward(
        &self,
        forward: &mut Forward,
        sites: &Pattern,
        _: &Draft,
        args: &Args,
    ) -> Result<()> {
        let double = args.word(&self.card(), "double", &["yes", "no"])? == "yes";
        quantize(forward, sites, Format::Nf4 { double })
    }
}
