//! PyTorch's autograd: nodes that save tensors, and the engine that runs them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::rc::Rc;

use super::checkpoint::Saved;
use super::tape::{Class, Origin};
use super::tensor::{DType, Dims, Tensor};
use super::torch::{Halt, Torch};
use super::work::bytes;

/// A tensor that may be missing: an input that wants no gradient, a gradient nobody gave.
pub type Maybe = Option<Tensor>;

/// What a node computes: gradients of its outputs and its saved tensors in, gradients of its inputs out.
pub type Formula = Box<dyn Fn(&Torch, &[Maybe], &[Tensor]) -> Result<Vec<Maybe>, Halt>>;

/// Where a gradient goes.
#[derive(Debug, Clone)]
pub enum Edge {
    /// To output `nr` of a node.
    Node {
        /// The node.
        node: Rc<Node>,
        /// Which output.
        nr: usize,
    },
    /// To a parameter.
    Leaf(Rc<Leaf>),
}

/// What runs after a gradient has been accumulated.
pub type Hook = Box<dyn Fn(&Torch, &Leaf)>;

/// A parameter (or an input) that requires gradients: its `.grad` and its AccumulateGrad node.
pub struct Leaf {
    /// A number of its own.
    pub id: u64,
    /// Sizes.
    pub shape: Dims,
    /// Element type.
    pub dtype: DType,
    /// The gradient so far.
    pub grad: RefCell<Maybe>,
    /// Whether a gradient has ever reached it.
    pub reached: Cell<bool>,
    /// What runs after each accumulation (optimizer in backward).
    pub hook: RefCell<Option<Hook>>,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaf({}, {:?})", self.id, self.shape.all())
    }
}

/// A node of the graph.
pub struct Node {
    /// Sequence number: later nodes run first in the backward pass.
    pub sequence: u64,
    /// Its name, for explanations.
    pub name: &'static str,
    /// Sizes and types of its outputs: gradients are reduced and cast to these.
    pub outputs: RefCell<Vec<(Dims, DType)>>,
    /// Where the gradients of its inputs go.
    pub next: Vec<Option<Edge>>,
    /// What it waits for while the engine runs.
    pub pending: RefCell<Pending>,
    /// What it saved, until it has run.
    pub saved: RefCell<Vec<Saved>>,
    /// Where in the model it was recorded.
    pub origin: Origin,
    pub(super) formula: Formula,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({}, {})", self.name, self.sequence)
    }
}

impl Drop for Node {
    /// Long chains are taken apart one by one: a recursion over a deep graph would exhaust the stack.
    fn drop(&mut self) {
        let mut chain: Vec<Edge> = self.next.drain(..).flatten().collect();
        while let Some(edge) = chain.pop() {
            if let Edge::Node { node, .. } = edge
                && let Some(mut node) = Rc::into_inner(node)
            {
                node.saved.get_mut().clear();
                chain.extend(node.next.drain(..).flatten());
            }
        }
    }
}

/// A node that is ready to run, ordered as PyTorch's queue orders them.
struct Ready {
    order: u64,
    target: Target,
}

#[derive(Clone)]
enum Target {
    Node(Rc<Node>),
    Leaf(Rc<Leaf>),
}

impl PartialEq for Ready {
    fn eq(&self, other: &Ready) -> bool {
        self.order == other.order
    }
}
impl Eq for Ready {}
impl PartialOrd for Ready {
    fn partial_cmp(&self, other: &Ready) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ready {
    fn cmp(&self, other: &Ready) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

impl Edge {
    fn target(&self) -> (Target, usize, u64) {
        match self {
            Edge::Node { node, nr } => (Target::Node(node.clone()), *nr, node.sequence),
            Edge::Leaf(leaf) => (Target::Leaf(leaf.clone()), 0, u64::MAX),
        }
    }
}

/// What a target waits for in a run of the engine, and the gradients it has so far.
#[derive(Debug, Default)]
pub struct Pending {
    edges: usize,
    gradients: Vec<Maybe>,
}

/// One run of the engine. Nodes keep what they wait for; a parameter may be reached by a run within a run, so that each run keeps its own.
#[derive(Default)]
struct Engine {
    leaves: BTreeMap<u64, Pending>,
    ready: BinaryHeap<Ready>,
}

/// Runs the backward pass from `roots` with their gradients.
///
/// # Errors
/// Where a recomputation halts outside a checkpoint.
pub fn backward(torch: &Torch, roots: Vec<(Edge, Tensor)>) -> Result<(), Halt> {
    let mut engine = Engine::default();
    for (edge, _) in &roots {
        engine.count(edge);
    }
    let before = torch.set_grad(false);
    let stood = torch.origin();
    for (edge, gradient) in roots {
        let (target, nr, order) = edge.target();
        engine.add(torch, &edge, nr, gradient)?;
        engine.ready.push(Ready { order, target });
    }
    while let Some(Ready { target, .. }) = engine.ready.pop() {
        engine.run(torch, target)?;
    }
    torch.set_grad(before);
    torch.stand(stood);
    Ok(())
}

impl Engine {
    /// Applies `change` to what an edge's target waits for.
    fn at<T>(&mut self, edge: &Edge, change: impl FnOnce(&mut Pending) -> T) -> T {
        match edge {
            Edge::Node { node, .. } => change(&mut node.pending.borrow_mut()),
            Edge::Leaf(leaf) => change(self.leaves.entry(leaf.id).or_default()),
        }
    }

    /// Counts, for every node reachable from `root`, the edges that lead to it.
    fn count(&mut self, root: &Edge) {
        let Edge::Node { node, .. } = root else {
            return;
        };
        let mut stack = vec![node.clone()];
        while let Some(node) = stack.pop() {
            for edge in node.next.iter().flatten() {
                let edges = self.at(edge, |pending| {
                    pending.edges += 1;
                    pending.edges
                });
                if let (Edge::Node { node, .. }, 1) = (edge, edges) {
                    stack.push(node.clone());
                }
            }
        }
    }

    /// Adds a gradient to the input buffer of an edge's target.
    fn add(&mut self, torch: &Torch, edge: &Edge, nr: usize, gradient: Tensor) -> Result<(), Halt> {
        self.at(edge, |pending| {
            let buffer = &mut pending.gradients;
            if buffer.len() <= nr {
                buffer.resize(nr + 1, None);
            }
            buffer[nr] = Some(match buffer[nr].take() {
                None => gradient,
                Some(old) if old.dtype != gradient.dtype => torch.add(&old, &gradient)?,
                // In place where nobody else holds the older one.
                Some(old) if old.is_dense() && old.is_sole_owner() => {
                    torch.in_place(2 * bytes(&old) + bytes(&gradient));
                    old
                }
                Some(old) => torch.add(&old, &gradient)?,
            });
            Ok(())
        })
    }

    fn run(&mut self, torch: &Torch, target: Target) -> Result<(), Halt> {
        match target {
            Target::Leaf(leaf) => {
                let pending = self.leaves.remove(&leaf.id).unwrap_or_default();
                match pending.gradients.into_iter().next().flatten() {
                    Some(gradient) => accumulate(torch, &leaf, gradient),
                    None => Ok(()),
                }
            }
            Target::Node(node) => {
                let mut gradients = node.pending.take().gradients;
                gradients.resize(node.outputs.borrow().len(), None);
                torch.stand(node.origin);
                let made = call(torch, &node, gradients)?;
                node.saved.borrow_mut().clear();
                for (edge, gradient) in node.next.iter().zip(made) {
                    self.pass(torch, edge, gradient)?;
                }
                Ok(())
            }
        }
    }

    /// Hands a gradient on, and queues its target once all of its gradients have come.
    fn pass(&mut self, torch: &Torch, edge: &Option<Edge>, gradient: Maybe) -> Result<(), Halt> {
        let Some(edge) = edge else { return Ok(()) };
        if let Some(gradient) = gradient {
            let nr = if let Edge::Node { nr, .. } = edge {
                *nr
            } else {
                0
            };
            self.add(torch, edge, nr, gradient)?;
        }
        let left = self.at(edge, |pending| {
            pending.edges = pending.edges.saturating_sub(1);
            pending.edges
        });
        if left == 0 {
            let (target, _, order) = edge.target();
            self.ready.push(Ready { order, target });
        }
        Ok(())
    }
}

/// Runs a node's formula; its gradients live until it returns, and what it makes is reduced and cast to what its inputs are.
fn call(torch: &Torch, node: &Node, gradients: Vec<Maybe>) -> Result<Vec<Maybe>, Halt> {
    let saved: Result<Vec<Tensor>, Halt> = {
        let held = node.saved.borrow();
        held.iter().map(|saved| torch.unpack(saved)).collect()
    };
    let mut made = {
        let saved = saved?;
        (node.formula)(torch, &gradients, &saved)?
    };
    made.resize(node.next.len(), None);
    for (gradient, edge) in made.iter_mut().zip(&node.next) {
        let Some(edge) = edge else {
            *gradient = None;
            continue;
        };
        if let Some(had) = gradient.take() {
            *gradient = Some(validated(torch, had, edge)?);
        }
    }
    Ok(made)
}

/// A gradient summed to its input's sizes and cast to its type, as `validate_outputs` does.
fn validated(torch: &Torch, gradient: Tensor, edge: &Edge) -> Result<Tensor, Halt> {
    let (shape, dtype) = match edge {
        Edge::Leaf(leaf) => (leaf.shape, leaf.dtype),
        Edge::Node { node, nr } => node.outputs.borrow()[*nr],
    };
    let gradient = match gradient.shape == shape {
        true => gradient,
        false => torch.sum_to(gradient, shape)?,
    };
    match gradient.dtype == dtype {
        true => Ok(gradient),
        false => torch.to(gradient, dtype),
    }
}

/// AccumulateGrad: the gradient is stolen where nobody else holds it and it is laid out like the parameter, else copied;
/// a later one is added in place.
fn accumulate(torch: &Torch, leaf: &Rc<Leaf>, gradient: Tensor) -> Result<(), Halt> {
    leaf.reached.set(true);
    let has = leaf.grad.borrow().is_some();
    if !has {
        let kept = match gradient.uses() == 1 && gradient.is_contiguous() {
            true => gradient.detached(),
            false => torch.clone_of(&gradient)?.detached(),
        };
        if let Some(storage) = &kept.storage {
            storage.is(Class::Grads);
        }
        *leaf.grad.borrow_mut() = Some(kept);
    } else {
        torch.in_place(3 * bytes(&gradient));
    }
    if let Some(hook) = &*leaf.hook.borrow() {
        hook(torch, leaf);
    }
    // The node holds what it was given until its hooks have run.
    drop(gradient);
    Ok(())
}

/// A counter of sequence numbers.
#[derive(Debug, Default)]
pub struct Sequence(Cell<u64>);

impl Sequence {
    /// The next number.
    pub fn next(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}
