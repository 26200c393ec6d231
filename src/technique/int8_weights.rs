//! Frozen weights in 8 bits.

use super::frozen::{expect_adapter, quantize};
use super::{Args, Argument, Card, Draft, Pattern, Site, Technique};
use crate::error::Result;
use crate::graph::build::Forward;
use crate::graph::op::quantized::Format;
use crate::spec::job::Exactness;

/// A base model in 8-bit integers.
pub struct Int8Weights;

impl Technique for Int8Weights {
    fn card(&self) -> Card {
        Card {
            name: "int8_weights",
            aliases: &["int8", "load_in_8bit"],
            summary: "holds the frozen weights of linear layers as 8-bit integers and widens panels of them where they are read",
            source: "Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8), its weights; products are not in integers",
            exactness: Exactness::Lossy,
            site: Site::Forward,
            arguments: &[Argument {
                key: "block",
                default: "0",
                meaning: "elements that share an absmax; 0: those of a row",
            }],
        }
    }

    fn draft(&self, draft: &mut Draft, _: &Args) -> Result<()> {
        expect_adapter(draft, "int8_weights")
    }

    fn forward(
        &self,
        forward: &mut Forward,
        sites: &Pattern,
        _: &Draft,
        args: &Args,
    ) -> Result<()> {
        let block: u64 = args.number(&self.card(), "block", (0, 1 << 20))?;
        let block = Some(block).filter(|&b| b > 0);
        quantize(forward, sites, Format::Int8 { block })
    }
}
