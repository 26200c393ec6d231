//! First values of parameters and optimizer states, each a pure function of the seed and the element's index.

use rayon::prelude::*;

use super::names;
use crate::error::{Error, Result};
use crate::graph::op::Element;
use crate::graph::random::Key;
use crate::graph::tensor::{DType, First};
use crate::spec::model::ModelSpec;
use crate::with_float;

/// Standard deviation of weights (Radford et al. 2019).
const SPREAD: f32 = 0.02;
/// Elements that one thread draws at a time.
const BLOCK: usize = 1 << 14;

/// The values of one storage before the first step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Law {
    /// All the same.
    Constant(f32),
    /// Normal around zero with this standard deviation.
    Normal(f32),
    /// Uniform between this bound and its negative.
    Uniform(f32),
}

/// Fills `into` with bytes `offset..` of the first value of `storage`, which has elements of `dtype` and starts as `first` says.
///
/// Of a model's own, norms are ones (zeros where the weight acts as `1 + weight`), biases zeros, other weights normal with
/// standard deviation 0.02, divided by sqrt(2 L) where they end a residual branch (Radford et al. 2019). A `.master`
/// copy has the same values in 32 bits, so the parameter is its rounding.
///
/// # Errors
/// Where the model has no such storage, or the bytes are not whole elements of it.
pub fn initial(
    model: &ModelSpec,
    (storage, first): (&str, &First),
    seed: u64,
    offset: u64,
    dtype: DType,
    into: &mut [u8],
) -> Result<()> {
    let parameter = storage.strip_suffix(".master").unwrap_or(storage);
    let law = match first {
        First::Zero => {
            into.fill(0);
            return Ok(());
        }
        First::Normal(spread) => Law::Normal(*spread),
        First::Uniform(bound) => Law::Uniform(*bound),
        First::Model | First::Frozen => {
            let shape = names::shape(model, parameter)?;
            let elements = shape.iter().product();
            super::tensors::elements(storage, offset, into.len(), dtype, elements)?;
            law(model, parameter)
        }
        First::Derived { of, .. } => {
            let why = "it is made of another weight";
            let next = format!("read {of} and quantize it");
            return Err(Error::value("storage", storage, why, next));
        }
    };
    let (key, start) = (Key::new(seed, 0, parameter), offset / dtype.bytes());
    with_float!("initial", dtype, T => { fill::<T>(law, key, start, into); Ok(()) })
        .map_err(|_: Error| not_float(storage, dtype))
}

/// How a parameter starts.
fn law(model: &ModelSpec, parameter: &str) -> Law {
    if parameter.ends_with("norm.weight") {
        return Law::Constant(if model.norm.unit_offset { 0.0 } else { 1.0 });
    }
    if parameter.ends_with(".bias") {
        return Law::Constant(0.0);
    }
    let ends = [
        "attention/o.weight",
        "mlp/down.weight",
        "experts.down.weight",
    ];
    match ends.iter().any(|end| parameter.ends_with(end)) {
        true => Law::Normal(SPREAD / (2.0 * model.layers as f32).sqrt()),
        false => Law::Normal(SPREAD),
    }
}

/// Writes elements `first..` of the law.
fn fill<T: Element>(law: Law, key: Key, first: u64, into: &mut [u8]) {
    let size = size_of::<T>();
    let block = |(index, block): (usize, &mut [u8])| {
        let start = first + (index * BLOCK) as u64;
        for (i, element) in block.chunks_exact_mut(size).enumerate() {
            let value = match law {
                Law::Constant(value) => value,
                Law::Normal(spread) => spread * key.normal(start + i as u64),
                Law::Uniform(bound) => bound * (2.0 * key.uniform(start + i as u64) - 1.0),
            };
            element.copy_from_slice(bytemuck::bytes_of(&T::narrow(value)));
        }
    };
    into.par_chunks_mut(BLOCK * size)
        .enumerate()
        .for_each(block);
}

fn not_float(storage: &str, dtype: DType) -> Error {
    Error::value(
        storage,
        format!("{dtype:?}"),
        "weights and their states are floating-point numbers",
        "use f32, bf16 or f16",
    )
}
