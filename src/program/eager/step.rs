//! A training step as the loop writes it: forward and loss, backward, clipping, update, zeroing.

use std::rc::Rc;

use super::autograd::{self, Leaf};
use super::checkpoint::{Hook, Replay};
use super::family::cache::Cache;
use super::family::{Call, Model};
use super::optimizer::{self, Optimizer};
use super::tape::{Class, EagerPhase, Origin};
use super::tensor::{DType, Tensor};
use super::torch::{Halt, Made, Torch};
use crate::spec::model::ModelSpec;
use crate::spec::torch::{Task, TorchLoss, TorchOptions};

/// Tokens of a chunk of the chunked loss.
const CHUNK: u64 = 1024;

/// A job ready to take steps.
pub struct Trainer<'a> {
    /// The interpreter.
    pub torch: &'a Torch,
    /// The architecture.
    pub spec: &'a ModelSpec,
    /// The options.
    pub options: &'a TorchOptions,
    /// The model.
    pub model: Box<dyn Model>,
    /// Parameters that are trained.
    pub trained: Vec<Tensor>,
    optimizer: Option<Box<dyn Optimizer>>,
    outputs: std::cell::RefCell<Vec<Tensor>>,
}

/// What the model returns (its own loss, logits, where they were made), and the loss.
type Outputs = Result<(Vec<Tensor>, Tensor), Halt>;

/// The type of the options.
pub fn dtype(of: crate::spec::torch::TorchDtype) -> DType {
    match of {
        crate::spec::torch::TorchDtype::Fp32 => DType::F32,
        crate::spec::torch::TorchDtype::Bf16 => DType::Bf16,
        crate::spec::torch::TorchDtype::Fp16 => DType::F16,
    }
}

impl<'a> Trainer<'a> {
    /// The job's optimizer, made beside its model.
    pub fn new(
        torch: &'a Torch,
        spec: &'a ModelSpec,
        options: &'a TorchOptions,
        model: Box<dyn Model>,
        trained: Vec<Tensor>,
    ) -> Trainer<'a> {
        let optimizer = match options.optimizer_in_backward {
            false => Some(optimizer::build(torch, &leaves(&trained), options)),
            true => {
                each_its_own(torch, &trained, options);
                None
            }
        };
        Trainer {
            torch,
            spec,
            options,
            model,
            trained,
            optimizer,
            outputs: std::cell::RefCell::default(),
        }
    }

    /// Leaves the job as after a step in which every parameter had a gradient: optimizer state is made, gradients are kept where they are kept.
    /// Kept outputs are not made.
    pub fn prime(&self) {
        let leaves = leaves(&self.trained);
        for leaf in &leaves {
            let gradient = self.torch.plain("grad", leaf.shape.all(), leaf.dtype);
            if let Some(storage) = &gradient.storage {
                storage.is(Class::Grads);
            }
            *leaf.grad.borrow_mut() = Some(gradient);
        }
        match &self.optimizer {
            Some(optimizer) => {
                optimizer.step(self.torch, &leaves);
                if self.options.set_to_none {
                    leaves.into_iter().for_each(forget);
                }
            }
            None => leaves.into_iter().for_each(|leaf| {
                if let Some(hook) = &*leaf.hook.borrow() {
                    hook(self.torch, leaf);
                }
            }),
        }
    }

    /// Whether every parameter has had a gradient, as [`Trainer::prime`] takes for granted.
    pub fn is_all_reached(&self) -> bool {
        leaves(&self.trained).iter().all(|leaf| leaf.reached.get())
    }

    /// One step; `seen` is told of the moment at which the last forward pass has returned.
    ///
    /// # Errors
    /// Where an operation halts outside a checkpoint.
    pub fn step(&self, mut seen: impl FnMut()) -> Result<(), Halt> {
        let tape = self.torch.tape();
        for micro in 0..self.options.grad_accum {
            tape.enter(EagerPhase::Forward);
            let (mut outputs, loss) = self.forward()?;
            let mut named = Vec::new();
            if self.options.keep_outputs {
                outputs.push(loss.clone());
                *self.outputs.borrow_mut() = outputs;
            } else if self.options.habits.named_outputs {
                named = outputs;
            } else {
                drop(outputs);
            }
            if micro + 1 == self.options.grad_accum {
                seen();
            }
            tape.enter(EagerPhase::Backward);
            if let Some(edge) = loss.edge.clone() {
                // Python's `grad_tensors` holds it until the engine is done.
                let one = self.torch.one_like(&loss);
                autograd::backward(self.torch, vec![(edge, one.clone())])?;
            }
            drop(named);
        }
        tape.enter(EagerPhase::Optimizer);
        let params = with_gradients(&self.trained);
        if self.options.clip_grad_norm.is_some() {
            optimizer::clip_grad_norm(self.torch, &params);
        }
        if let Some(optimizer) = &self.optimizer {
            optimizer.step(self.torch, &params);
            if self.options.set_to_none {
                params.into_iter().for_each(forget);
            }
        }
        tape.enter(EagerPhase::End);
        Ok(())
    }

    fn forward(&self) -> Outputs {
        let (t, o) = (self.torch, self.options);
        let new = |name| {
            let made = t.plain(name, &[o.batch, o.seq], DType::I64);
            if let Some(storage) = &made.storage {
                storage.is(Class::Inputs);
            }
            made
        };
        let (ids, labels) = (new("zeros"), new("zeros"));
        let call = Call {
            spec: self.spec,
            options: o,
            ids,
            cache: Cache::new(o),
            mask: o.attention_mask.then(|| new("ones")),
        };
        if o.activation_offload {
            t.push_hook(Hook::ToHost);
        }
        let made = t.in_autocast(o.autocast.map(dtype), || match o.loss {
            // BERT's own loss takes the scores as they are.
            TorchLoss::Hf if o.task == Task::MaskedLm => self.plain_loss(&call, &labels),
            _ if o.habits.shifted_logits && o.loss != TorchLoss::Chunked => {
                self.shifted_loss(&call, &labels)
            }
            TorchLoss::Hf => self.own_loss(&call, &labels),
            TorchLoss::NoUpcast => self.plain_loss(&call, &labels),
            TorchLoss::Chunked => self.chunked_loss(&call, &labels),
        });
        if o.activation_offload {
            t.pop_hook();
        }
        let (mut outputs, loss) = made?;
        if o.convert_outputs_fp32
            && let Some(logits) = outputs.pop()
        {
            outputs.push(t.to(logits, DType::F32)?);
        }
        Ok((outputs, loss))
    }

    /// Hidden states and logits: the model's own `forward` names both while it computes a loss.
    fn logits(&self, call: &Call) -> Result<(Tensor, Tensor), Halt> {
        let t = self.torch;
        let hidden = self.model.hidden(t, call)?;
        let logits = t.within(Origin::LmHead, || self.model.head().call(t, &hidden))?;
        let logits = self.model.after_head(t, logits)?;
        Ok((hidden, logits))
    }

    /// Labels padded by one, and moved by one position: a copy, or a view of the padded where there is one sequence. As they are for a masked
    /// model.
    fn targets(&self, labels: &Tensor) -> Result<(Tensor, Tensor), Halt> {
        let (t, o) = (self.torch, self.options);
        if o.task == Task::MaskedLm {
            return Ok((labels.clone(), labels.clone()));
        }
        let padded = t.plain("constant_pad_nd", &[o.batch, o.seq + 1], DType::I64);
        let shifted = t.contiguous(t.slice(&padded, 1, 1, o.seq + 1)?)?;
        Ok((padded, shifted))
    }

    /// The model's own loss: logits in f32, cross entropy. The caller's `logits` live on in the outputs.
    fn own_loss(&self, call: &Call, labels: &Tensor) -> Outputs {
        let t = self.torch;
        let (_hidden, logits) = self.logits(call)?;
        let wide = t.to(&logits, DType::F32)?;
        let (_padded, targets) = self.targets(labels)?;
        let loss = self.entropy(wide, &targets)?;
        let mut outputs = call.cache.take();
        outputs.extend([loss.clone(), logits]);
        Ok((outputs, loss))
    }

    /// The loss of older model code: `shift_logits` is a copy of all positions but the last; f32 only where the logits were made so.
    fn shifted_loss(&self, call: &Call, labels: &Tensor) -> Outputs {
        let (t, o) = (self.torch, self.options);
        let (_hidden, mut logits) = self.logits(call)?;
        if o.loss == TorchLoss::Hf {
            logits = t.to(&logits, DType::F32)?;
        }
        let most = o.seq.saturating_sub(1).max(1);
        let shifted = t.contiguous(t.slice(&logits, 1, 0, most)?)?;
        let targets = t.contiguous(t.slice(labels, 1, o.seq - most, o.seq)?)?;
        let loss = self.entropy(shifted, &targets)?;
        let mut outputs = call.cache.take();
        outputs.extend([loss.clone(), logits]);
        Ok((outputs, loss))
    }

    fn entropy(&self, logits: Tensor, targets: &Tensor) -> Made {
        let flat = self.torch.reshape(
            &logits,
            &[logits.elements() / logits.shape.last(), logits.shape.last()],
        )?;
        drop(logits);
        self.torch.cross_entropy(&flat, targets)
    }

    fn plain_loss(&self, call: &Call, labels: &Tensor) -> Outputs {
        let (_, logits) = self.logits(call)?;
        let (_, targets) = self.targets(labels)?;
        let loss = self.entropy(logits.clone(), &targets)?;
        let mut outputs = call.cache.take();
        outputs.push(logits);
        Ok((outputs, loss))
    }

    /// Head and cross entropy over chunks of tokens, each checkpointed; logits are never whole.
    fn chunked_loss(&self, call: &Call, labels: &Tensor) -> Outputs {
        let (t, o) = (self.torch, self.options);
        let hidden = self.model.hidden(t, call)?;
        drop(call.cache.take());
        let tokens = o.batch * o.seq;
        let hidden = t.reshape(hidden, &[tokens, self.spec.hidden])?;
        let (_, targets) = self.targets(labels)?;
        let sizes: Vec<u64> = (0..tokens)
            .step_by(CHUNK as usize)
            .map(|from| CHUNK.min(tokens - from))
            .collect();
        let chunks = t.split(&hidden, 0, &sizes)?;
        let targets = t.split(&t.reshape(targets, &[tokens])?, 0, &sizes)?;
        let mut total: Option<Tensor> = None;
        for (hidden, targets) in chunks.iter().zip(&targets) {
            let head = self.model.head().clone();
            let run: Replay = Rc::new(move |t, inputs| {
                let logits = t.within(Origin::LmHead, || head.call(t, &inputs[0]))?;
                let wide = t.to(logits, DType::F32)?;
                t.cross_entropy(wide, &inputs[1])
            });
            let part = t.checkpoint(run, &[hidden.clone(), targets.clone()], None)?;
            total = Some(match total {
                None => part,
                Some(sum) => t.add(sum, part)?,
            });
        }
        let total = total.ok_or(Halt::Lost)?;
        Ok((Vec::new(), t.scaled(total)?))
    }
}

/// One optimizer for each parameter, stepped as soon as its gradient is whole, which is then freed.
fn each_its_own(torch: &Torch, trained: &[Tensor], options: &TorchOptions) {
    for leaf in leaves(trained) {
        let own = optimizer::build(torch, &[leaf], options);
        *leaf.hook.borrow_mut() = Some(Box::new(move |torch, leaf| {
            own.step(torch, &[leaf]);
            forget(leaf);
        }));
    }
}

/// The parameters among these tensors.
fn leaves(trained: &[Tensor]) -> Vec<&Leaf> {
    trained
        .iter()
        .filter_map(|param| param.leaf().map(|leaf| &**leaf))
        .collect()
}

/// Those that have a gradient: optimizers and clipping pass over the others.
fn with_gradients(trained: &[Tensor]) -> Vec<&Leaf> {
    leaves(trained)
        .into_iter()
        .filter(|leaf| leaf.grad.borrow().is_some())
        .collect()
}

fn forget(leaf: &Leaf) {
    leaf.grad.borrow_mut().take();
}
