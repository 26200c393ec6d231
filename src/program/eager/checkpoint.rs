//! What becomes of a saved tensor: kept, copied to the host, or dropped and made again by a checkpoint.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::autograd::{self, Formula};
use super::recording::Recording;
use super::tensor::Tensor;
use super::torch::{Halt, Torch};
use super::work::bytes;

/// A function that a checkpoint runs again: the tensors it was given in, its output out.
pub type Replay = Rc<dyn Fn(&Torch, &[Tensor]) -> Result<Tensor, Halt>>;

/// A saved tensor.
#[derive(Debug)]
pub enum Saved {
    /// Itself.
    Kept(Tensor),
    /// A copy in host memory of a tensor like this (`save_on_cpu`).
    OnHost(Box<super::tensor::Inner>),
    /// Number `index` of those a checkpoint's function saved.
    Replayed {
        /// The checkpoint.
        frame: Rc<Frame>,
        /// Its number.
        index: usize,
    },
}

/// What happens to tensors as they are saved; the innermost hook decides.
#[derive(Debug, Clone)]
pub enum Hook {
    /// Copies to the host.
    ToHost,
    /// Drops them: the frame makes them again.
    Drop(Rc<Frame>),
    /// Notes them: the frame is being replayed.
    Note(Rc<Frame>),
}

/// One checkpointed call (non-reentrant).
pub struct Frame {
    replay: Replay,
    /// Its inputs, saved like any tensor, and whether each requires a gradient.
    inputs: Vec<(Saved, bool)>,
    count: Cell<usize>,
    seen: Cell<usize>,
    made: RefCell<Option<Vec<Option<Tensor>>>>,
    kept: Option<Rc<Selected>>,
    autocast: Option<super::tensor::DType>,
    origin: Cell<super::tape::Origin>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({} saved)", self.count.get())
    }
}

/// Outputs of ops that a selective checkpoint keeps, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Selected {
    /// Whether matrix products are kept beside attention.
    pub matmul: bool,
    kept: RefCell<std::collections::VecDeque<Vec<Tensor>>>,
    replaying: Cell<bool>,
}

impl Torch {
    /// Saves a tensor as the innermost hook says.
    ///
    /// # Errors
    /// [`Halt::Stop`] where a replay has noted all it needs.
    pub fn pack(&self, tensor: &Tensor) -> Result<Saved, Halt> {
        match self.hook() {
            None => {
                if let Some(storage) = &tensor.storage {
                    self.saved(storage);
                }
                Ok(Saved::Kept(tensor.detached()))
            }
            Some(Hook::ToHost) => {
                self.crosses(bytes(tensor));
                Ok(Saved::OnHost(Box::new(super::tensor::Inner {
                    storage: None,
                    edge: None,
                    ..(**tensor).clone()
                })))
            }
            Some(Hook::Drop(frame)) => {
                let index = frame.count.get();
                frame.count.set(index + 1);
                Ok(Saved::Replayed { frame, index })
            }
            Some(Hook::Note(frame)) => {
                let index = frame.seen.get();
                frame.seen.set(index + 1);
                if let Some(made) = &mut *frame.made.borrow_mut() {
                    made.push(Some(tensor.detached()));
                }
                match index + 1 == frame.count.get() {
                    true => Err(Halt::Stop),
                    false => Ok(Saved::Kept(tensor.detached())),
                }
            }
        }
    }

    /// The tensor again.
    ///
    /// # Errors
    /// Where a replay does.
    pub fn unpack(&self, saved: &Saved) -> Result<Tensor, Halt> {
        match saved {
            Saved::Kept(tensor) => Ok(tensor.detached()),
            Saved::OnHost(inner) => {
                self.op("_to_copy");
                let made = self.strided(inner.shape, inner.strides, inner.dtype);
                self.crosses(bytes(&made));
                Ok(made)
            }
            Saved::Replayed { frame, index } => {
                if frame.made.borrow().is_none() {
                    frame.run(self)?;
                }
                let mut made = frame.made.borrow_mut();
                let tensor = made.as_mut().and_then(|made| made.get_mut(*index)?.take());
                tensor.ok_or(Halt::Lost)
            }
        }
    }

    /// `torch.utils.checkpoint.checkpoint(function, inputs, use_reentrant=False)`; with `keep`, a selective one.
    ///
    /// # Errors
    /// Where the function does.
    pub fn checkpoint(
        &self,
        function: Replay,
        inputs: &[Tensor],
        keep: Option<Selected>,
    ) -> Result<Tensor, Halt> {
        let save = |input: &Tensor| Ok((self.pack(input)?, input.requires_grad()));
        let frame = Rc::new(Frame {
            replay: function.clone(),
            inputs: inputs.iter().map(save).collect::<Result<_, Halt>>()?,
            count: Cell::new(0),
            seen: Cell::new(0),
            made: RefCell::new(None),
            kept: keep.map(Rc::new),
            autocast: self.autocast(),
            origin: Cell::new(self.origin()),
        });
        self.push_hook(Hook::Drop(frame.clone()));
        let before = self.select(frame.kept.clone());
        let made = function(self, inputs);
        self.select(before);
        self.pop_hook();
        made
    }

    /// `torch.utils.checkpoint.checkpoint(function, inputs, use_reentrant=True)`.
    ///
    /// # Errors
    /// Where the function does.
    pub fn checkpoint_reentrant(
        &self,
        function: Replay,
        inputs: &[Tensor],
    ) -> Result<Tensor, Halt> {
        let borrowed: Vec<&Tensor> = inputs.iter().collect();
        let mut record = Recording::new(self, "CheckpointFunction", &borrowed);
        for input in inputs {
            record.save(input)?;
        }
        let (autocast, origin) = (self.autocast(), self.origin());
        let before = self.set_grad(false);
        let made = function(self, inputs);
        self.set_grad(before);
        let formula: Formula = Box::new(move |torch, gradients, saved| {
            let stood = torch.stand(origin);
            let inputs: Vec<Tensor> = saved.iter().map(|s| torch.leaf_like(s)).collect();
            let before = torch.set_grad(true);
            let recomputing = torch.tape().recompute(true);
            let made = torch.in_autocast(autocast, || function(torch, &inputs));
            torch.tape().recompute(recomputing);
            torch.set_grad(before);
            let made = made?;
            if let (Some(edge), Some(gradient)) = (&made.edge, &gradients[0]) {
                autograd::backward(torch, vec![(edge.clone(), gradient.clone())])?;
            }
            torch.stand(stood);
            Ok(inputs
                .iter()
                .map(|i| i.leaf().and_then(|l| l.grad.borrow_mut().take()))
                .collect())
        });
        record.finish(made?, false, formula)
    }
}

impl Frame {
    /// Runs the function again, under its own autocast region, until the last tensor needed is made.
    fn run(self: &Rc<Frame>, torch: &Torch) -> Result<(), Halt> {
        *self.made.borrow_mut() = Some(Vec::new());
        let again = |(saved, trained): &(Saved, bool)| {
            let tensor = torch.unpack(saved)?;
            Ok(if *trained {
                torch.leaf_like(&tensor)
            } else {
                tensor
            })
        };
        let inputs = self
            .inputs
            .iter()
            .map(again)
            .collect::<Result<Vec<Tensor>, Halt>>()?;
        let stood = torch.stand(self.origin.get());
        if let Some(kept) = &self.kept {
            kept.replaying.set(true);
        }
        torch.push_hook(Hook::Note(self.clone()));
        let recomputing = torch.tape().recompute(true);
        let grad = torch.set_grad(true);
        let selected = torch.select(self.kept.clone());
        let done = torch.in_autocast(self.autocast, || (self.replay)(torch, &inputs));
        torch.select(selected);
        torch.set_grad(grad);
        torch.tape().recompute(recomputing);
        torch.pop_hook();
        torch.stand(stood);
        match done {
            Ok(_) | Err(Halt::Stop) => Ok(()),
            Err(halt) => Err(halt),
        }
    }
}

impl Selected {
    /// What op `name` made, where it is kept: noted on the way forward, returned in the replay.
    pub(super) fn replayed(&self) -> Option<Vec<Tensor>> {
        match self.replaying.get() {
            true => self.kept.borrow_mut().pop_front(),
            false => None,
        }
    }

    pub(super) fn note(&self, made: &[Tensor]) {
        if !self.replaying.get() {
            let made = made.iter().map(Tensor::detached).collect();
            self.kept.borrow_mut().push_back(made);
        }
    }

    /// A cache for a policy: attention only, or matrix products too.
    pub fn new(matmul: bool) -> Selected {
        Selected {
            matmul,
            ..Selected::default()
        }
    }
}
