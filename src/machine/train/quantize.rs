//! Parts of quantized weights, made range by range of the weight wherever that comes from.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::graph::op::quantized::{Format, NESTED, Part, nested as again, offset};
use crate::graph::tensor::Derivation;

/// Elements of a weight that are held at a time, unless a block has more.
const CHUNK: u64 = 1 << 18;

/// Fills elements `first..` of a weight, rounded to the format it is quantized from.
pub type Read<'a> = dyn FnMut(u64, &mut [f32]) -> Result<()> + 'a;

/// A weight on its way into fewer bits.
struct Weight<'a, 'b> {
    format: Format,
    elements: u64,
    block: u64,
    read: &'a mut Read<'b>,
}

/// Fills `into` with bytes `at..` of one part of a quantized weight that `read` reads.
///
/// `known` holds the absmaxes of the weight where they have been found, and holds them afterwards where all were needed.
///
/// # Errors
/// The first of `read`.
pub fn derive(
    how: &Derivation,
    at: u64,
    into: &mut [u8],
    known: &mut Option<Vec<f32>>,
    read: &mut Read,
) -> Result<()> {
    let mut weight = Weight {
        format: how.format,
        elements: how.shape.iter().product(),
        block: how.format.block(&how.shape),
        read,
    };
    if how.part == Part::Codes {
        return weight.codes(at, into);
    }
    if how.format != (Format::Nf4 { double: true }) {
        let absmax = weight.absmax(at / 4..(at + into.len() as u64) / 4)?;
        return put(&absmax, into);
    }
    let absmax = match known.take() {
        Some(absmax) => absmax,
        None => weight.absmax(0..weight.elements.div_ceil(weight.block))?,
    };
    nested(how.part, &absmax, at as usize, into)?;
    *known = Some(absmax);
    Ok(())
}

impl Weight<'_, '_> {
    /// The absmaxes of `blocks`.
    fn absmax(&mut self, blocks: Range<u64>) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity((blocks.end - blocks.start) as usize);
        let (format, block) = (self.format, self.block as usize);
        self.chunks(blocks, &mut |_, values| {
            let of = |block_of: &[f32]| format.absmax(block_of, block_of.len() == block);
            all.extend(values.par_chunks(block).map(of).collect::<Vec<_>>());
        })?;
        Ok(all)
    }

    /// Bytes `at..` of the codes.
    fn codes(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let per = self.format.per_byte();
        let (from, to) = (at, at + into.len() as u64);
        let blocks = from * per / self.block..(to * per).div_ceil(self.block);
        let blocks = blocks.start..blocks.end.min(self.elements.div_ceil(self.block));
        let (format, block) = (self.format, self.block as usize);
        let mut codes = Vec::new();
        self.chunks(blocks, &mut |first, values| {
            codes.resize(values.len().div_ceil(per as usize), 0);
            let bytes = codes.par_chunks_mut(block.div_ceil(per as usize));
            bytes
                .zip(values.par_chunks(block))
                .for_each(|(codes, values)| {
                    let whole = values.len() == block;
                    format.quantize(values, format.absmax(values, whole), whole, codes);
                });
            let start = first / per;
            let (low, high) = (start.max(from), (start + codes.len() as u64).min(to));
            if low < high {
                let part = &codes[(low - start) as usize..(high - start) as usize];
                into[(low - from) as usize..(high - from) as usize].copy_from_slice(part);
            }
        })
    }

    /// Calls `each` with the first element and the values of some blocks at a time.
    fn chunks(&mut self, blocks: Range<u64>, each: &mut dyn FnMut(u64, &[f32])) -> Result<()> {
        let step = (CHUNK / self.block).max(1);
        let mut values = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end {
            let end = (at + step).min(blocks.end);
            let (from, to) = (at * self.block, (end * self.block).min(self.elements));
            values.resize((to - from) as usize, 0.0);
            (self.read)(from, &mut values)?;
            each(from, &values);
            at = end;
        }
        Ok(())
    }
}

/// Bytes `at..` of absmaxes that are quantized again, of their own absmaxes, or of their mean.
fn nested(part: Part, absmax: &[f32], at: usize, into: &mut [u8]) -> Result<()> {
    let mean = offset(absmax);
    if part == Part::Offset {
        return put(&[mean][at / 4..], into);
    }
    let (size, shifted) = (NESTED as usize, |a: &f32| a - mean);
    let mut codes = vec![0; absmax.len()];
    let blocks = codes.chunks_mut(size).zip(absmax.chunks(size));
    let nested = blocks.map(|(codes, absmax)| {
        let shifted: Vec<f32> = absmax.iter().map(shifted).collect();
        again::quantize(&shifted, shifted.len() == size, codes)
    });
    let nested: Vec<f32> = nested.collect();
    match part {
        Part::Nested => put(&nested[at / 4..], into),
        _ => put(&codes[at..], into),
    }
}

/// The first of `values` as bytes, as many as `into` holds.
fn put<T: bytemuck::Pod>(values: &[T], into: &mut [u8]) -> Result<()> {
    into.copy_from_slice(&bytemuck::cast_slice(values)[..into.len()]);
    Ok(())
}
