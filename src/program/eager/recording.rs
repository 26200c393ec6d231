//! Recording an operation: what it saves, and where its gradients go.

use std::cell::RefCell;
use std::rc::Rc;

use super::autograd::{Edge, Formula, Node};
use super::checkpoint::Saved;
use super::tensor::Tensor;
use super::torch::{Halt, Torch};

/// An op being recorded: what it saves and where its gradients go.
pub struct Recording<'t> {
    torch: &'t Torch,
    name: &'static str,
    sequence: u64,
    edges: Vec<Option<Edge>>,
    saved: Vec<Saved>,
    on: bool,
}

impl<'t> Recording<'t> {
    /// Starts the record of op `name` on `inputs`; nothing is recorded where none requires gradients, or gradients are off.
    pub fn new(torch: &'t Torch, name: &'static str, inputs: &[&Tensor]) -> Recording<'t> {
        let on = torch.grad_enabled() && inputs.iter().any(|t| t.requires_grad());
        Recording {
            torch,
            name,
            sequence: if on { torch.next_sequence() } else { 0 },
            edges: inputs.iter().map(|t| t.edge.clone()).collect(),
            saved: Vec::new(),
            on,
        }
    }

    /// Whether a gradient of input `index` will be wanted.
    pub fn needs(&self, index: usize) -> bool {
        self.on && self.edges[index].is_some()
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Saves a tensor for the backward pass.
    pub fn save(&mut self, tensor: &Tensor) -> Result<(), Halt> {
        if self.on {
            self.saved.push(self.torch.pack(tensor)?);
        }
        Ok(())
    }

    /// The output of the op, saved too where `save` says so.
    pub fn finish(self, made: Tensor, save: bool, formula: Formula) -> Result<Tensor, Halt> {
        let mut made = self.finish_all(vec![made], &[save], formula)?;
        // `finish_all` returns as many as it is given.
        made.pop().ok_or(Halt::Stop)
    }

    /// The outputs of the op; `save` says which are saved too. Integer outputs are not part of the graph.
    pub fn finish_all(
        mut self,
        made: Vec<Tensor>,
        save: &[bool],
        formula: Formula,
    ) -> Result<Vec<Tensor>, Halt> {
        if !self.on {
            return Ok(made);
        }
        for (tensor, _) in made.iter().zip(save).filter(|(_, save)| **save) {
            self.saved.push(self.torch.pack(tensor)?);
        }
        let outputs = made.iter().map(|t| (t.shape, t.dtype)).collect();
        let node = Rc::new(Node {
            sequence: self.sequence,
            name: self.name,
            outputs: RefCell::new(outputs),
            next: self.edges,
            pending: RefCell::default(),
            saved: RefCell::new(self.saved),
            origin: self.torch.origin(),
            formula,
        });
        let attach = |(nr, tensor): (usize, Tensor)| {
            let mut inner = (*tensor).clone();
            drop(tensor);
            let node = node.clone();
            inner.edge = inner.dtype.is_float().then_some(Edge::Node { node, nr });
            Tensor::of(inner)
        };
        Ok(made.into_iter().enumerate().map(attach).collect())
    }
}
