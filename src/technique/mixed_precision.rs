//! 16-bit arithmetic with f32 master weights; for fp16 with a loss scale.

use super::{Args, Argument, Card, Draft, Site, Technique};
use crate::error::Result;
use crate::spec::job::{Exactness, Precision};

/// Mixed-precision training.
pub struct MixedPrecision;

impl Technique for MixedPrecision {
    fn card(&self) -> Card {
        Card {
            name: "mixed_precision",
            aliases: &["amp"],
            summary: "computes in 16 bits and keeps an f32 master copy of each weight for the update",
            source: "Micikevicius et al. 2018, arXiv:1710.03740",
            exactness: Exactness::Lossy,
            site: Site::Draft,
            arguments: &[
                Argument {
                    key: "dtype",
                    default: "bf16",
                    meaning: "bf16 or fp16 (with a dynamic loss scale)",
                },
                Argument {
                    key: "master",
                    default: "yes",
                    meaning: "no: update the 16-bit weights themselves",
                },
            ],
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        let card = self.card();
        draft.precision = match args.word(&card, "dtype", &["bf16", "fp16"])? {
            "fp16" => Precision::Fp16,
            _ => Precision::Bf16,
        };
        draft.master = args.word(&card, "master", &["yes", "no"])? == "yes";
        draft.loss_scale = draft.precision == Precision::Fp16;
        Ok(())
    }
}
