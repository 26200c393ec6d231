//! Attention by tiles, saving only the log-sum-exp of each row.

use std::any::Any;
use std::sync::Arc;

use super::{Args, Card, Draft, Pattern, Site, Technique};
use crate::error::Result;
use crate::graph::build::Forward;
use crate::graph::op::attention::Attention;
use crate::graph::op::{Op, flash};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Exactness;

/// FlashAttention in place of materialised probabilities.
pub struct FlashAttention;

impl Technique for FlashAttention {
    fn card(&self) -> Card {
        Card {
            name: "flash_attention",
            aliases: &["flash", "sdpa"],
            summary: "computes attention by tiles and saves one number per row instead of the T x T probabilities",
            source: "Dao et al. 2022, arXiv:2205.14135",
            exactness: Exactness::Rounding,
            site: Site::Forward,
            arguments: &[],
        }
    }

    fn forward(&self, forward: &mut Forward, sites: &Pattern, _: &Draft, _: &Args) -> Result<()> {
        let step = &mut forward.step;
        for index in 0..step.nodes.len() {
            let node = &step.nodes[index];
            let op: &dyn Any = node.op.as_ref();
            let Some(attention) = op
                .downcast_ref::<Attention>()
                .filter(|_| sites.matches(&node.origin))
            else {
                continue;
            };
            let shape = attention.shape.clone();
            let rows = Type::new(&[shape.batch * shape.heads, shape.seq], DType::F32);
            let saved = node.outputs[1];
            let tensor = &mut step.tensors[saved.0 as usize];
            let storage = tensor.storage;
            step.storages[storage.0 as usize].bytes = rows.bytes();
            tensor.at = rows;
            let op: Arc<dyn Op> = Arc::new(flash::FlashAttention { shape });
            step.nodes[index].op = op;
        }
        Ok(())
    }
}
