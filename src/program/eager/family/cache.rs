//! What surrounds the layers: keys and values kept by `DynamicCache`, input gradients of adapters.

use std::cell::RefCell;
use std::rc::Rc;

use crate::program::eager::tensor::Tensor;
use crate::program::eager::torch::{Made, Torch};
use crate::spec::torch::{Checkpointing, TorchOptions};

/// `transformers.DynamicCache`, where `use_cache` is left on: every key and value is copied, and the copies are held.
#[derive(Debug, Clone, Default)]
pub struct Cache(Option<Rc<RefCell<Vec<Tensor>>>>);

impl Cache {
    /// A cache if the job has one; layers that may be checkpointed get none.
    pub fn new(options: &TorchOptions) -> Cache {
        let on = options.use_cache && options.checkpointing == Checkpointing::None;
        Cache(on.then(Rc::default))
    }

    /// All that is kept, which is forgotten.
    pub fn take(&self) -> Vec<Tensor> {
        self.0.as_ref().map(|kept| kept.take()).unwrap_or_default()
    }

    /// Keys or values (B, heads, T, D) behind those of the cache, which has none yet.
    ///
    /// # Errors
    /// Where the copy is halted.
    pub fn update(&self, t: &Torch, states: Tensor) -> Made {
        let Some(kept) = &self.0 else {
            return Ok(states);
        };
        let made = t.cat(&[&states], 2)?;
        kept.borrow_mut().push(made.clone());
        Ok(made)
    }
}

/// The output of the token embedding: a leaf of its own where `enable_input_require_grads` was called, so that checkpointed layers over a
/// frozen embedding are reached by gradients. PEFT calls it for a checkpointed base that is not quantised, the preparation for k-bit
/// training for one that is.
pub fn reached(t: &Torch, options: &TorchOptions, embedded: Tensor) -> Tensor {
    let reached = match (&options.lora, &options.quant) {
        (_, Some(quant)) => quant.prepare_kbit,
        (Some(_), None) => options.checkpointing != Checkpointing::None,
        (None, None) => false,
    };
    if !reached || embedded.requires_grad() || !t.grad_enabled() {
        return embedded;
    }
    let leaf = t.leaf_like(&embedded);
    if let Some(node) = leaf.leaf() {
        // AccumulateGrad holds the tensor itself as long as the graph lives.
        let held = embedded.detached();
        *node.hook.borrow_mut() = Some(Box::new(move |_, _| {
            let _held = &held;
        }));
    }
    leaf
}
