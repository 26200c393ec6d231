//! The state of an abstract PyTorch: gradient mode, autocast, hooks, and the tape that all tensors report to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::autograd::{Edge, Leaf, Sequence};
use super::checkpoint::{Hook, Selected};
use super::tape::{Class, EagerPhase, Origin, Tape};
use super::tensor::{DType, Dims, Inner, Storage, Tensor};
use crate::spec::torch::Habits;

/// Why a function did not return a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// A replay has made all that its checkpoint needs.
    Stop,
    /// A saved tensor was asked for twice.
    Lost,
}

/// A tensor, or the reason why there is none.
pub type Made = Result<Tensor, Halt>;

/// The interpreter.
#[derive(Debug)]
pub struct Torch {
    tape: Rc<Tape>,
    grad: Cell<bool>,
    sequence: Sequence,
    leaves: Sequence,
    hooks: RefCell<Vec<Hook>>,
    autocast: Cell<Option<DType>>,
    casts: RefCell<BTreeMap<u64, Tensor>>,
    selected: RefCell<Option<Rc<Selected>>>,
    origin: Cell<Origin>,
    habits: Cell<Habits>,
}

impl Default for Torch {
    fn default() -> Torch {
        Torch {
            tape: Rc::new(Tape::default()),
            grad: Cell::new(true),
            sequence: Sequence::default(),
            leaves: Sequence::default(),
            hooks: RefCell::default(),
            autocast: Cell::new(None),
            casts: RefCell::default(),
            selected: RefCell::default(),
            origin: Cell::new(Origin::Other),
            habits: Cell::default(),
        }
    }
}

impl Torch {
    /// The record of allocations.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// What differs from the library's newest version.
    pub fn habits(&self) -> Habits {
        self.habits.get()
    }

    /// From here on these differ.
    pub fn adopt(&self, habits: Habits) {
        self.habits.set(habits);
    }

    /// A buffer a kernel has to itself while it runs, where such count.
    pub fn scratch(&self, shape: &[u64], dtype: DType) -> Option<Tensor> {
        let counted = self.habits().kernel_scratch;
        counted.then(|| self.empty(Dims::new(shape), dtype))
    }

    /// Whether operations are recorded.
    pub fn grad_enabled(&self) -> bool {
        self.grad.get()
    }

    /// Turns recording on or off; returns what it was.
    pub fn set_grad(&self, on: bool) -> bool {
        self.grad.replace(on)
    }

    /// Runs `body` without recording (`torch.no_grad`).
    pub fn no_grad<T>(&self, body: impl FnOnce() -> T) -> T {
        let before = self.set_grad(false);
        let made = body();
        self.set_grad(before);
        made
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.next()
    }

    /// Autocast's type, within its region.
    pub fn autocast(&self) -> Option<DType> {
        self.autocast.get()
    }

    /// Runs `body` in an autocast region of its own; the cache of casts is dropped at its end.
    pub fn in_autocast<T>(&self, to: Option<DType>, body: impl FnOnce() -> T) -> T {
        let before = self.autocast.replace(to);
        let made = body();
        self.autocast.set(before);
        if before.is_none() {
            self.casts.borrow_mut().clear();
        }
        made
    }

    /// Leaves the autocast region for a while (`torch.autocast(enabled=False)`); the cache stays.
    pub fn pause_autocast(&self) -> Option<DType> {
        self.autocast.replace(None)
    }

    /// Ends the pause.
    pub fn resume_autocast(&self, to: Option<DType>) {
        self.autocast.set(to);
    }

    pub(super) fn hook(&self) -> Option<Hook> {
        self.hooks.borrow().last().cloned()
    }

    /// From here on saved tensors go through `hook`.
    pub fn push_hook(&self, hook: Hook) {
        self.hooks.borrow_mut().push(hook);
    }

    /// Ends the innermost hook.
    pub fn pop_hook(&self) {
        self.hooks.borrow_mut().pop();
    }

    pub(super) fn select(&self, selected: Option<Rc<Selected>>) -> Option<Rc<Selected>> {
        self.selected.replace(selected)
    }

    pub(super) fn selected(&self) -> Option<Rc<Selected>> {
        self.selected.borrow().clone()
    }

    /// Where ops stand now.
    pub fn origin(&self) -> Origin {
        self.origin.get()
    }

    /// From here on ops stand in `origin`; returns where they stood.
    pub fn stand(&self, origin: Origin) -> Origin {
        self.tape.stand(origin);
        self.origin.replace(origin)
    }

    /// Runs `body` in `origin`.
    pub fn within<T>(&self, origin: Origin, body: impl FnOnce() -> T) -> T {
        let before = self.stand(origin);
        let made = body();
        self.stand(before);
        made
    }

    /// Names the op that allocates from here on.
    pub(super) fn op(&self, name: &'static str) {
        self.tape.run(name);
    }

    /// Notes that a storage is kept for the backward pass.
    pub(super) fn saved(&self, storage: &Storage) {
        if self.tape.phase() == EagerPhase::Forward {
            storage.keep();
        }
    }

    /// A new row-major tensor, made by the running op.
    pub fn empty(&self, shape: Dims, dtype: DType) -> Tensor {
        self.strided(shape, shape.contiguous(), dtype)
    }

    /// A new dense tensor with these strides.
    pub fn strided(&self, shape: Dims, strides: Dims, dtype: DType) -> Tensor {
        let bytes = shape.elements() * dtype.bytes();
        self.bytes(bytes, shape, strides, dtype)
    }

    /// A new tensor on a storage of `bytes` (several outputs may not fill it, padding may exceed it).
    pub fn bytes(&self, bytes: u64, shape: Dims, strides: Dims, dtype: DType) -> Tensor {
        Tensor::of(Inner {
            storage: Some(Storage::new(&self.tape, bytes, shape, dtype)),
            shape,
            strides,
            dtype,
            edge: None,
            views: 0,
        })
    }

    /// A new tensor like `like`, laid out as it is.
    pub fn empty_like(&self, like: &Tensor, dtype: DType) -> Tensor {
        self.strided(like.shape, like.preserved(), dtype)
    }

    /// A parameter; trained ones get a leaf.
    pub fn parameter(&self, shape: &[u64], dtype: DType, trained: bool) -> Tensor {
        self.op("parameter");
        let made = self.empty(Dims::new(shape), dtype);
        if let Some(storage) = &made.storage {
            storage.is(Class::Params);
        }
        match trained {
            true => self.leaf_like(&made),
            false => made,
        }
    }

    /// The same bytes as a leaf that requires gradients.
    pub fn leaf_like(&self, tensor: &Tensor) -> Tensor {
        let leaf = Leaf {
            id: self.leaves.next(),
            shape: tensor.shape,
            dtype: tensor.dtype,
            grad: RefCell::new(None),
            reached: Cell::new(false),
            hook: RefCell::new(None),
        };
        Tensor::of(Inner {
            edge: Some(Edge::Leaf(Rc::new(leaf))),
            views: tensor.views,
            ..(**tensor).clone()
        })
    }

    /// A buffer of the model or an input, by class.
    pub fn buffer(&self, shape: &[u64], dtype: DType, class: Class) -> Tensor {
        self.op("buffer");
        let made = self.empty(Dims::new(shape), dtype);
        if let Some(storage) = &made.storage {
            storage.is(class);
        }
        made
    }

    /// A tensor in autocast's type, as its lower-precision list does: casts of trained f32 leaves are cached for the region.
    ///
    /// # Errors
    /// Where the cast is halted.
    pub fn lowered(&self, tensor: &Tensor) -> Made {
        let Some(to) = self.autocast() else {
            return Ok(tensor.clone());
        };
        if !tensor.dtype.is_float() || tensor.dtype == to {
            return Ok(tensor.clone());
        }
        let cached = tensor
            .leaf()
            .filter(|_| tensor.dtype == DType::F32 && tensor.views == 0);
        let Some(leaf) = cached else {
            let cast = self.to(tensor, to)?;
            if tensor
                .storage
                .as_ref()
                .is_some_and(|s| s.class() == Some(Class::Params))
                && let Some(storage) = &cast.storage
            {
                storage.is(Class::AutocastWeightCopies);
            }
            return Ok(cast);
        };
        if let Some(cast) = self.casts.borrow().get(&leaf.id) {
            return Ok(cast.clone());
        }
        let cast = self.to(tensor, to)?;
        if let Some(storage) = &cast.storage {
            storage.is(Class::AutocastWeightCopies);
        }
        self.casts.borrow_mut().insert(leaf.id, cast.clone());
        Ok(cast)
    }

    /// A tensor in f32 within an autocast region, as its f32 list does.
    ///
    /// # Errors
    /// As [`Torch::lowered`].
    pub fn raised(&self, tensor: &Tensor) -> Made {
        match self.autocast() {
            Some(_) if tensor.dtype.is_float() => self.to(tensor, DType::F32),
            _ => Ok(tensor.clone()),
        }
    }
}
