//! What an op is: its types, its work, its derivative and its definition on a CPU, side by side.

use std::any::Any;
use std::fmt::Debug;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::backward::Backward;
use super::random::Key;
use super::tangent::Tangent;
use super::tensor::{DType, Type};
use crate::error::{Error, Result};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use kernel::{Call, Kernel};

pub mod activation;
pub mod attention;
mod attention_backward;
pub mod attention_tangent;
pub mod compress;
pub mod cross_entropy;
pub mod direction;
pub mod dropout;
pub mod dynamic;
pub mod elementwise;
pub mod embedding;
pub mod flash;
pub mod gemm;
pub mod kernel;
pub mod linear_add;
pub mod linear_cross_entropy;
pub mod matmul;
pub mod moe;
pub mod norm;
pub mod norm_tangent;
pub mod optimizer;
pub mod prepend;
pub mod quantized;
pub mod rope;
pub mod scores;
pub mod simd;
pub mod sparse;
pub mod tile;
pub mod transfer;

/// What becomes of one output of an op.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A storage of its own.
    Fresh(Type),
    /// A new version of input `of`, in its bytes and with its type.
    Overwrite {
        /// The overwritten input.
        of: usize,
    },
}

/// How much an op does, whatever runs it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Floating-point operations of matrix products (two per multiply-add).
    pub matmul: u64,
    /// Floating-point operations of everything else.
    pub vector: u64,
    /// Bytes read and written, each once.
    pub bytes: u64,
}

/// One operation, defined once: what it makes, what it costs, how it is differentiated, what it computes.
pub trait Op: Any + Debug + Send + Sync {
    /// Its name, unique among kinds of ops, in snake case; the backward of `x` is `x_backward`, its tangent `x_tangent`.
    fn name(&self) -> &'static str;

    /// Types, formats and aliases of its outputs.
    ///
    /// # Errors
    /// [`Error::Shape`] where it is not defined on these inputs.
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>>;

    /// Bytes it needs beside inputs and outputs while it runs.
    fn scratch(&self, _inputs: &[Type], _backend: Backend) -> Bytes {
        Bytes::ZERO
    }

    /// The work of one call: no default, no device.
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work;

    /// Emits the nodes that turn gradients of outputs into gradients of inputs.
    ///
    /// # Errors
    /// Where an emitted node is ill-typed, or the op never stands in a forward pass: the answer unless it has a rule.
    fn backward(&self, _at: &mut Backward) -> Result<()> {
        Err(no_derivative(self.name()))
    }

    /// The type of the gradient its derivative gives input `index`, where that has not the input's shape.
    fn gradient(&self, _inputs: &[Type], _index: usize) -> Option<Type> {
        None
    }

    /// Emits the nodes that turn tangents of inputs into tangents of outputs; called where an input has one.
    ///
    /// # Errors
    /// As [`Op::backward`].
    fn tangent(&self, _at: &mut Tangent) -> Result<()> {
        Err(no_derivative(self.name()))
    }

    /// The definition. Outputs and scratch are slices of the arena; nothing of size may be allocated.
    ///
    /// # Errors
    /// Where something outside fails (files); arithmetic does not.
    fn cpu(&self, io: &mut Io) -> Result<()>;

    /// How it runs on an NVIDIA GPU: what [`Op::cpu`] defines, with its rounding points. [`Kernel::Missing`] where nobody wrote it.
    fn cuda(&self, _call: &Call) -> Kernel {
        Kernel::Missing
    }
}

/// An input as an op sees it. Empty where an output overwrites it: then the output's slice holds its old value.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Shape and format.
    pub at: &'a Type,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// An output as an op sees it; an overwriting output holds the old value on entry.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// Shape and format.
    pub at: &'a Type,
    /// The bytes.
    pub bytes: &'a mut [u8],
}

impl<'a> View<'a> {
    /// The elements.
    pub fn of<T: Pod>(&self) -> &'a [T] {
        // An empty slice may be misaligned for `T`.
        if self.bytes.is_empty() {
            &[]
        } else {
            bytemuck::cast_slice(self.bytes)
        }
    }
}

impl ViewMut<'_> {
    /// The elements.
    pub fn of<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes)
    }
}

/// The world outside the program: batches in, losses out, weights from and to files.
pub trait Port: Sync {
    /// Fills `into` with bytes `offset..` of what is known outside as `name`.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Takes bytes `offset..` of what is known outside as `name`.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn write(&self, name: &str, offset: u64, from: &[u8]) -> Result<()>;
}

/// Numbers of the running step that are no tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scalars {
    /// Optimizer steps done before this one, plus one.
    pub step: u64,
    /// Micro-batch within the step.
    pub micro: u64,
    /// Learning rate of this step.
    pub rate: f32,
}

/// Everything one call of an op may touch. It runs inside a rayon pool of the stream's threads.
pub struct Io<'a> {
    /// The inputs, in order.
    pub inputs: Vec<View<'a>>,
    /// The outputs, in order.
    pub outputs: Vec<ViewMut<'a>>,
    /// Scratch of [`Op::scratch`] bytes, 64-byte aligned, contents arbitrary.
    pub scratch: &'a mut [u8],
    /// Randomness of this call: (seed, step, origin).
    pub key: Key,
    /// Numbers of the step.
    pub scalars: Scalars,
    /// The outside.
    pub port: &'a dyn Port,
}

/// A floating-point storage format; arithmetic is in f32.
pub trait Element: Pod + Zeroable + Send + Sync + PartialOrd {
    /// Its tag.
    const DTYPE: DType;
    /// Widened.
    fn wide(self) -> f32;
    /// Rounded to nearest even.
    fn narrow(value: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(value: f32) -> f32 {
        value
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> bf16 {
        // Round to nearest even by integer arithmetic, so that loops over it vectorize.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(value: f32) -> f16 {
        f16::from_f32(value)
    }
}

/// Runs `$body` with `$T` standing for the element type of `$dtype`; integers are a shape error of op `$op`.
#[macro_export]
macro_rules! with_float {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::graph::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::graph::tensor::DType::Bf16 => {
                type $T = half::bf16;
                $body
            }
            $crate::graph::tensor::DType::F16 => {
                type $T = half::f16;
                $body
            }
            other => Err($crate::error::Error::shape(
                $op,
                format!("not defined on {other:?}"),
            )),
        }
    };
}

/// The answer of ops that only ever stand in a backward pass, a tangent or an update.
fn no_derivative(op: &'static str) -> Error {
    Error::shape(op, "has no derivative: it is not part of a forward pass")
}

/// Fails unless `condition` holds, naming the op and what it expected.
///
/// # Errors
/// [`Error::Shape`] with the text of `why`.
pub fn expect(op: &'static str, condition: bool, why: impl FnOnce() -> String) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(Error::shape(op, why()))
    }
}

/// Fails unless `inputs` has `count` entries.
///
/// # Errors
/// [`Error::Shape`] naming both counts.
pub fn expect_inputs(op: &'static str, inputs: &[Type], count: usize) -> Result<()> {
    expect(op, inputs.len() == count, || {
        format!("takes {count} inputs, got {}", inputs.len())
    })
}

/// The output of an op that makes a gradient of type `at`, or with `accumulate` adds it into input `of`.
///
/// # Errors
/// [`Error::Shape`] where that input has another type.
pub fn summed(
    op: &'static str,
    at: Type,
    inputs: &[Type],
    accumulate: bool,
    of: usize,
) -> Result<Vec<Output>> {
    if !accumulate {
        return Ok(vec![Output::Fresh(at)]);
    }
    expect(op, inputs[of] == at, || {
        format!("adds {at} into {}", inputs[of])
    })?;
    Ok(vec![Output::Overwrite { of }])
}

/// The outputs of a call, which must be `N`.
///
/// # Errors
/// [`Error::Shape`] naming both counts.
pub fn exactly<'s, 'a, const N: usize>(
    op: &'static str,
    outputs: &'s mut [ViewMut<'a>],
) -> Result<&'s mut [ViewMut<'a>; N]> {
    let count = outputs.len();
    let why = || Error::shape(op, format!("makes {N} outputs, got room for {count}"));
    outputs.try_into().map_err(|_| why())
}

/// Bytes of all inputs and outputs, each once: the least any kernel moves.
pub fn traffic(inputs: &[Type], outputs: &[Type]) -> u64 {
    inputs.iter().chain(outputs).map(|t| t.bytes().0).sum()
}
