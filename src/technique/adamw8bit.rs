//! AdamW with moments in one byte each.

use super::adamw::{Adam, BETA1, BETA2, DECAY, EPS};
use super::{Args, Card, Site, Technique, Update};
use crate::error::Result;
use crate::spec::job::Exactness;

/// AdamW with block-wise dynamic quantization of its moments.
///
/// It answers to the paged optimizers' names too: what pages on demand there is planned here, by `offload:what=optimizer`.
pub struct AdamW8Bit;

impl Technique for AdamW8Bit {
    fn card(&self) -> Card {
        Card {
            name: "adamw8bit",
            aliases: &[
                "adam8bit",
                "adamw_8bit",
                "adam_8bit",
                "adamw_bnb_8bit",
                "paged_adamw_8bit",
                "paged_adamw8bit",
                "paged_adam8bit",
            ],
            summary: "updates by two moments of a byte each with a scale per 256, 2.03 bytes per parameter; tensors below 4,096 elements keep f32",
            source: "Dettmers et al. 2022, arXiv:2110.02861; as in bitsandbytes 0.50.2",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &[BETA1, BETA2, EPS, DECAY],
        }
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        Adam::read(args, &self.card())?.update_bytewise(at)
    }
}
