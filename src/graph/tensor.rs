//! Types, storages and tensors: what is computed with, and what is allocated for it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::op::quantized::{Format, Part};
use crate::spec::job::Place;
use crate::spec::units::Bytes;

/// A stable path such as `layers.3/mlp/up.weight`; equal text means the same thing in every program.
pub type Name = Arc<str>;

/// Number formats of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// Unsigned 32-bit integer (tokens, routing, offsets).
    U32,
    /// Unsigned 16-bit integer (indices within a block).
    U16,
    /// Bytes (codes of quantized values, one or two to a byte).
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 | DType::F16 | DType::U16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether it is a 16-bit float.
    pub fn is_half(self) -> bool {
        matches!(self, DType::Bf16 | DType::F16)
    }
}

/// Shape and number format of a contiguous, row-major tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Type {
    /// Lengths, outermost first.
    pub shape: Vec<u64>,
    /// Number format.
    pub dtype: DType,
}

impl Type {
    /// A type of the given lengths and format.
    pub fn new(shape: &[u64], dtype: DType) -> Type {
        Type {
            shape: shape.to_vec(),
            dtype,
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.elements() * self.dtype.bytes())
    }

    /// Rows: the product of all lengths but the last.
    pub fn rows(&self) -> u64 {
        self.shape.iter().rev().skip(1).product()
    }

    /// Columns: the last length.
    pub fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The same shape in another format.
    pub fn with(&self, dtype: DType) -> Type {
        Type {
            shape: self.shape.clone(),
            dtype,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{:?}", self.dtype, self.shape)
    }
}

/// What a storage holds, for the accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Weights the forward pass reads.
    Parameter,
    /// Gradients of parameters.
    Gradient,
    /// Moments, momenta, master copies.
    OptimizerState,
    /// What the forward pass leaves for the backward pass, or for the next layer.
    Activation,
    /// Gradients of activations, scratch, staging.
    Temporary,
    /// Tokens, targets, scales: what enters from outside.
    Input,
    /// Alignment and what placement could not use.
    Padding,
}

/// Index of a storage in its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageId(pub u32);

/// Index of a tensor in its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// What a persistent storage holds before the first step, where no save says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub enum First {
    /// What the model's files hold under its name, or else the model's own law for it.
    Model,
    /// The same, and it stays so: a save names the model it comes from and need not carry it.
    Frozen,
    /// Part of a frozen weight that is held in fewer bits.
    Derived {
        /// The weight's name.
        of: Name,
        /// How the part is made of it.
        how: Derivation,
    },
    /// Zero bytes.
    Zero,
    /// Normal around zero with this standard deviation.
    Normal(f32),
    /// Uniform between this bound and its negative.
    Uniform(f32),
}

impl First {
    /// Whether the value never changes, so that a save need not carry it.
    pub fn is_frozen(&self) -> bool {
        matches!(self, First::Frozen | First::Derived { .. })
    }
}

/// How one part of a quantized weight is made of the weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Derivation {
    /// How the weight is held.
    pub format: Format,
    /// Which part of it.
    pub part: Part,
    /// The weight's lengths.
    pub shape: Vec<u64>,
    /// The format the weight is rounded to before it is quantized.
    pub source: DType,
}

/// What is allocated, freed, moved and counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// Its path.
    pub name: Name,
    /// Exact bytes, before alignment.
    pub bytes: Bytes,
    /// Where it lives.
    pub place: Place,
    /// What it holds.
    pub role: Role,
    /// Alive before, in and after every program of its set; identified by its name.
    pub shared: bool,
    /// What it holds before the first step, where it is shared.
    pub first: First,
}

/// What ops read and write: a typed view of one version of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The bytes behind it.
    pub storage: StorageId,
    /// Shape and format.
    pub at: Type,
    /// First byte within the storage.
    pub offset: u64,
    /// How many times the storage had been overwritten when this value was made.
    pub version: u32,
}
