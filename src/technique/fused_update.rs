//! Updates as soon as a gradient is whole, so that few gradients are alive at once.

use super::{Args, Card, Draft, Site, Technique};
use crate::error::{Error, Result};
use crate::spec::job::Exactness;

/// The fused backward and update.
pub struct FusedUpdate;

impl Technique for FusedUpdate {
    fn card(&self) -> Card {
        Card {
            name: "fused_update",
            aliases: &["optimizer_in_backward"],
            summary: "updates each parameter as soon as its gradient is whole and frees the gradient",
            source: "Lv et al. 2023, arXiv:2306.09782 (LOMO), section 3.1",
            exactness: Exactness::Bitwise,
            site: Site::Draft,
            arguments: &[],
        }
    }

    fn draft(&self, draft: &mut Draft, _: &Args) -> Result<()> {
        let (other, why) = match (draft.max_norm, draft.loss_scale) {
            (Some(_), _) => (
                "clip",
                "the global norm needs every gradient before the first update",
            ),
            (_, true) => (
                "fp16 loss scaling",
                "a step is skipped if any gradient overflowed, which is known only at the end",
            ),
            _ => {
                draft.fused_update = true;
                return Ok(());
            }
        };
        let (one, other, why) = (
            "fused_update".to_string(),
            other.to_string(),
            why.to_string(),
        );
        Err(Error::Conflict {
            one,
            other,
            why,
            next: "leave one of them out".to_string(),
        })
    }
}
