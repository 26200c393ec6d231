//! Gradient accumulation: a step cut into micro-batches whose gradients are summed in f32.

use super::{Args, Argument, Card, Draft, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::tensor::DType;
use crate::spec::job::Exactness;

/// Gradient accumulation.
pub struct Accumulate;

impl Technique for Accumulate {
    fn card(&self) -> Card {
        Card {
            name: "accumulate",
            aliases: &["gradient_accumulation", "micro_batch"],
            summary: "runs the batch as micro-batches and sums their gradients in f32",
            source: "Ott et al. 2018, arXiv:1806.00187, section 3.1",
            exactness: Exactness::Rounding,
            site: Site::Draft,
            arguments: &[Argument {
                key: "micro",
                default: "1",
                meaning: "sequences of one micro-batch; divides the batch",
            }],
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        let micro: u64 = args.number(&self.card(), "micro", (1, 1 << 20))?;
        if !draft.batch.is_multiple_of(micro) {
            let why = format!("does not divide the batch of {}", draft.batch);
            return Err(Error::value(
                "micro of `accumulate`",
                micro,
                why,
                "choose a divisor of the batch",
            ));
        }
        draft.micro_batches = draft.batch / micro;
        if draft.micro_batches > 1 {
            draft.gradient_format = Some(DType::F32);
        }
        Ok(())
    }
}
