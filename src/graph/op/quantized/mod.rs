//! Weights held in 4 or 8 bits: how they are stored, quantized and found again, and the linear layers that read them.

mod grouped;
mod int8;
mod linear;
pub mod nested;
mod nf4;
mod weight;

use crate::graph::tensor::{DType, Type};

pub use grouped::{QuantizedGroupedLinear, QuantizedGroupedLinearInputGradient};
pub use linear::{QuantizedLinear, QuantizedLinearInputGradient};
pub use nf4::{BLOCK, CODE, NESTED};
pub use weight::Weight;

/// How a weight is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4-bit normal floats with one absmax for each 64 elements (Dettmers et al. 2023, arXiv:2305.14314), as bitsandbytes lays them out.
    Nf4 {
        /// Whether the absmaxes are quantized again, to 8 bits with one absmax for each 256.
        double: bool,
    },
    /// Integers from -127 to 127 with an absmax for each row (Dettmers et al. 2022, arXiv:2208.07339), or for each `block` elements.
    Int8 {
        /// Elements that share an absmax; `None` for those of a row.
        block: Option<u64>,
    },
}

/// One stored part of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The codes.
    Codes,
    /// The largest magnitude of each block, or its code.
    Absmax,
    /// The largest magnitude of each block of absmaxes, less their mean.
    Nested,
    /// The mean of the absmaxes.
    Offset,
}

impl Part {
    /// What follows the weight's name in that of the part.
    pub fn suffix(self) -> &'static str {
        match self {
            Part::Codes => "codes",
            Part::Absmax => "absmax",
            Part::Nested => "nested_absmax",
            Part::Offset => "absmax_offset",
        }
    }
}

impl Format {
    /// The parts of a weight of `shape`, in the order in which ops read them.
    pub fn parts(self, shape: &[u64]) -> Vec<(Part, Type)> {
        let elements: u64 = shape.iter().product();
        let blocks = elements.div_ceil(self.block(shape));
        let one = |part, length, dtype| (part, Type::new(&[length], dtype));
        match self {
            Format::Nf4 { double: false } => vec![
                one(Part::Codes, elements.div_ceil(2), DType::U8),
                one(Part::Absmax, blocks, DType::F32),
            ],
            Format::Nf4 { double: true } => vec![
                one(Part::Codes, elements.div_ceil(2), DType::U8),
                one(Part::Absmax, blocks, DType::U8),
                one(Part::Nested, blocks.div_ceil(NESTED), DType::F32),
                one(Part::Offset, 1, DType::F32),
            ],
            Format::Int8 { .. } => vec![
                one(Part::Codes, elements, DType::U8),
                one(Part::Absmax, blocks, DType::F32),
            ],
        }
    }

    /// How many parts there are.
    pub fn count(self) -> usize {
        match self {
            Format::Nf4 { double: true } => 4,
            Format::Nf4 { double: false } | Format::Int8 { .. } => 2,
        }
    }

    /// Elements that share an absmax in a weight of `shape`.
    pub fn block(self, shape: &[u64]) -> u64 {
        match self {
            Format::Nf4 { .. } => BLOCK,
            Format::Int8 { block: Some(block) } => block,
            Format::Int8 { block: None } => shape.last().copied().unwrap_or(1).max(1),
        }
    }

    /// What a weight of `dtype` is rounded to before it is quantized, as bitsandbytes does.
    pub fn source(self, dtype: DType) -> DType {
        match self {
            Format::Nf4 { .. } => dtype,
            Format::Int8 { .. } => DType::F16,
        }
    }

    /// Codes of a byte.
    pub fn per_byte(self) -> u64 {
        match self {
            Format::Nf4 { .. } => 2,
            Format::Int8 { .. } => 1,
        }
    }

    /// The absmax of one block; `whole` where it is no rest at the end of a weight.
    pub fn absmax(self, block: &[f32], whole: bool) -> f32 {
        match self {
            Format::Nf4 { .. } => nf4::absmax(block, whole),
            Format::Int8 { .. } => int8::absmax(block),
        }
    }

    /// The codes of one block into `into`; `whole` where it is no rest at the end of a weight.
    pub fn quantize(self, block: &[f32], absmax: f32, whole: bool, into: &mut [u8]) {
        match self {
            Format::Nf4 { .. } => nf4::quantize(block, absmax, whole, into),
            Format::Int8 { .. } => int8::quantize(block, absmax, into),
        }
    }
}

/// The mean of absmaxes that is taken off before they are quantized again.
pub fn offset(absmax: &[f32]) -> f32 {
    let sum: f64 = absmax.iter().map(|&a| f64::from(a)).sum();
    (sum / absmax.len().max(1) as f64) as f32
}
