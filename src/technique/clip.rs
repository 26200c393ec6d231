//! Clipping by the global norm of all gradients.

use super::{Args, Argument, Card, Draft, Site, Technique};
use crate::error::Result;
use crate::spec::job::Exactness;

/// Global-norm clipping.
pub struct Clip;

impl Technique for Clip {
    fn card(&self) -> Card {
        Card {
            name: "clip",
            aliases: &["gradient_clipping", "clip_grad_norm"],
            summary: "scales all gradients down so that their joint norm stays below a bound; needs every gradient at once",
            source: "Pascanu et al. 2013, arXiv:1211.5063",
            exactness: Exactness::Lossy,
            site: Site::Draft,
            arguments: &[Argument {
                key: "norm",
                default: "1.0",
                meaning: "the bound",
            }],
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        draft.max_norm = Some(args.number(&self.card(), "norm", (1e-12, 1e12))?);
        Ok(())
    }
}
