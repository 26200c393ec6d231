//! Tensors as PyTorch has them: counted views on counted storages, whose death is told to the tape.

use std::rc::Rc;

use super::autograd::{Edge, Leaf};
use super::tape::{Class, Tape};

/// Element types, by their names in PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the documentation
pub enum DType {
    F32,
    Bf16,
    F16,
    I64,
    I32,
    U64,
    U8,
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether gradients can be taken through it.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }

    /// PyTorch's name.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
            DType::I64 => "int64",
            DType::I32 => "int32",
            DType::U64 => "uint64",
            DType::U8 => "uint8",
            DType::Bool => "bool",
        }
    }

    /// The type of an element-wise result of tensors of both types.
    pub fn promoted(self, other: DType) -> DType {
        match (self.is_float(), other.is_float()) {
            (true, false) => self,
            (false, true) => other,
            (true, true) if self != other => DType::F32,
            (true, true) => self,
            (false, false) if self.bytes() >= other.bytes() => self,
            (false, false) => other,
        }
    }
}

/// Most dimensions of a tensor here.
pub const MOST_DIMS: usize = 6;

/// Sizes or strides of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Dims {
    count: u8,
    of: [u64; MOST_DIMS],
}

impl Dims {
    /// These sizes; dimensions beyond [`MOST_DIMS`] are folded into the last.
    pub fn new(sizes: &[u64]) -> Dims {
        let mut dims = Dims::default();
        for &size in sizes {
            dims.push(size);
        }
        dims
    }

    fn push(&mut self, size: u64) {
        let at = usize::from(self.count);
        if at < MOST_DIMS {
            self.of[at] = size;
            self.count += 1;
        } else {
            self.of[MOST_DIMS - 1] *= size;
        }
    }

    /// As a slice.
    pub fn all(&self) -> &[u64] {
        &self.of[..usize::from(self.count)]
    }

    /// Product of the sizes.
    pub fn elements(&self) -> u64 {
        self.all().iter().product()
    }

    /// The last size; 1 of a scalar.
    pub fn last(&self) -> u64 {
        self.all().last().copied().unwrap_or(1)
    }

    /// Row-major strides of these sizes.
    pub fn contiguous(&self) -> Dims {
        let mut strides = *self;
        let mut stride = 1;
        for at in (0..usize::from(self.count)).rev() {
            strides.of[at] = stride;
            stride *= self.of[at].max(1);
        }
        strides
    }

    /// With dimensions `a` and `b` exchanged.
    pub fn swapped(mut self, a: usize, b: usize) -> Dims {
        self.of.swap(a, b);
        self
    }

    /// With dimension `at` of size `size`.
    pub fn with(mut self, at: usize, size: u64) -> Dims {
        self.of[at] = size;
        self
    }

    /// With the last dimension of size `size`.
    pub fn with_last(self, size: u64) -> Dims {
        let at = usize::from(self.count).saturating_sub(1);
        self.with(at, size)
    }

    /// With a dimension of `size` before dimension `at`.
    pub fn inserted(self, at: usize, size: u64) -> Dims {
        let mut dims = Dims::default();
        self.all()[..at].iter().for_each(|&s| dims.push(s));
        dims.push(size);
        self.all()[at..].iter().for_each(|&s| dims.push(s));
        dims
    }

    /// The sizes two tensors have together, by PyTorch's broadcasting.
    pub fn broadcast(&self, other: &Dims) -> Dims {
        let (long, short) = match self.count >= other.count {
            true => (self, other),
            false => (other, self),
        };
        let mut dims = *long;
        let shift = usize::from(long.count - short.count);
        for (at, &size) in short.all().iter().enumerate() {
            if dims.of[at + shift] == 1 {
                dims.of[at + shift] = size;
            }
        }
        dims
    }
}

/// A device allocation. It lives as long as a tensor views it.
#[derive(Debug)]
pub struct Storage {
    tape: Rc<Tape>,
    id: u64,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.tape.free(self.id);
    }
}

impl Storage {
    /// A new allocation, charged to the running op.
    pub fn new(tape: &Rc<Tape>, bytes: u64, shape: Dims, dtype: DType) -> Rc<Storage> {
        Rc::new(Storage {
            id: tape.alloc(bytes, shape, dtype),
            tape: tape.clone(),
        })
    }

    /// Says that it is kept for the backward pass.
    pub fn keep(&self) {
        self.tape.keep(self.id);
    }

    /// What it holds.
    pub fn class(&self) -> Option<Class> {
        self.tape.class(self.id)
    }

    /// Says what it holds.
    pub fn is(&self, class: Class) {
        self.tape.classify(self.id, class);
    }
}

/// A view on a storage, with its place in the autograd graph. A clone is another reference to the same tensor.
#[derive(Debug, Clone)]
pub struct Tensor(Rc<Inner>);

/// What a tensor is; fields as in PyTorch's `TensorImpl`.
#[derive(Debug, Clone)]
pub struct Inner {
    /// Its bytes; none on the host.
    pub storage: Option<Rc<Storage>>,
    /// Sizes.
    pub shape: Dims,
    /// Elements from one index to the next.
    pub strides: Dims,
    /// Element type.
    pub dtype: DType,
    /// The node that made it, or the leaf it is.
    pub edge: Option<Edge>,
    /// How many views it is away from the tensor that made its storage.
    pub views: u8,
}

impl std::ops::Deref for Tensor {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Tensor {
    /// The tensor of these fields.
    pub fn of(inner: Inner) -> Tensor {
        Tensor(Rc::new(inner))
    }

    /// A view of the same storage with other sizes and strides, outside the graph.
    pub fn view(&self, shape: Dims, strides: Dims) -> Inner {
        Inner {
            shape,
            strides,
            edge: None,
            views: self.views.saturating_add(1),
            ..(*self.0).clone()
        }
    }

    /// The same bytes outside the graph: another tensor.
    pub fn detached(&self) -> Tensor {
        Tensor::of(Inner {
            views: self.views,
            ..self.view(self.shape, self.strides)
        })
    }

    /// Whether gradients flow through it.
    pub fn requires_grad(&self) -> bool {
        self.edge.is_some()
    }

    /// The leaf it is, where it is a parameter that requires gradients.
    pub fn leaf(&self) -> Option<&Rc<Leaf>> {
        match &self.edge {
            Some(Edge::Leaf(leaf)) => Some(leaf),
            _ => None,
        }
    }

    /// References to this tensor.
    pub fn uses(&self) -> usize {
        Rc::strong_count(&self.0)
    }

    /// Whether nobody else holds it or its storage.
    pub fn is_sole_owner(&self) -> bool {
        self.uses() == 1
            && self
                .storage
                .as_ref()
                .is_some_and(|s| Rc::strong_count(s) == 1)
    }

    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.elements()
    }

    /// Whether it is laid out row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        let both = self.shape.all().iter().zip(self.strides.all()).rev();
        for (&size, &stride) in both {
            if size != 1 && stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }

    /// Whether its elements fill a range without overlap, in whatever order.
    pub fn is_dense(&self) -> bool {
        let both = self.shape.all().iter().zip(self.strides.all());
        let mut axes: Vec<_> = both.filter(|(size, _)| **size != 1).collect();
        axes.sort_by_key(|(_, stride)| **stride);
        let mut expected = 1;
        for (&size, &stride) in axes {
            if stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }

    /// The strides of a new tensor like it: its own where it is dense, else dense ones in the same order (PyTorch's `infer_dense_strides`).
    pub fn preserved(&self) -> Dims {
        if self.is_dense() {
            return self.strides;
        }
        let (sizes, strides) = (self.shape.all(), self.strides.all());
        // Innermost first. A stride of 0 compares with nothing, so a plain sort would not do.
        let mut order: Vec<usize> = (0..sizes.len()).rev().collect();
        for start in 1..order.len() {
            let mut at = start;
            for before in (0..start).rev() {
                let (a, b) = (order[before], order[at]);
                if strides[a] == 0 || strides[b] == 0 {
                    continue;
                }
                match strides[a].cmp(&strides[b]).then(sizes[a].cmp(&sizes[b])) {
                    std::cmp::Ordering::Greater => {
                        order.swap(before, at);
                        at = before;
                    }
                    std::cmp::Ordering::Less if strides[a] < strides[b] => break,
                    _ => {}
                }
            }
        }
        let mut made = self.shape;
        let mut stride = 1;
        for axis in order {
            made = made.with(axis, stride);
            stride *= sizes[axis].max(1);
        }
        made
    }

    /// The strides with which its elements can be seen in `shape` without a copy (PyTorch's `computeStride`).
    pub fn viewed(&self, shape: &Dims) -> Option<Dims> {
        if shape.elements() != self.elements() {
            return None;
        }
        if self.elements() == 0 {
            return Some(shape.contiguous());
        }
        let (old, strides) = (self.shape.all(), self.strides.all());
        let mut made = *shape;
        let new = shape.all();
        let mut at = new.len();
        let mut base = strides.last().copied().unwrap_or(1);
        let (mut run, mut viewed) = (1, 1);
        for i in (0..old.len()).rev() {
            run *= old[i];
            let ends = i == 0 || (old[i - 1] != 1 && strides[i - 1] != run * base);
            if !ends {
                continue;
            }
            while at > 0 && (viewed < run || new[at - 1] == 1) {
                made = made.with(at - 1, viewed * base);
                viewed *= new[at - 1];
                at -= 1;
            }
            if viewed != run {
                return None;
            }
            if i > 0 {
                base = strides[i - 1];
                (run, viewed) = (1, 1);
            }
        }
        (at == 0).then_some(made)
    }
}
