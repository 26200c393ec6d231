//! A quantized weight as ops read it: any run of its elements, widened.

use std::ops::Range;

use rayon::prelude::*;

use super::{BLOCK, CODE, Format, NESTED, int8, nf4};
use crate::graph::op::dynamic;
use crate::graph::op::{Element, View};

/// A quantized weight in its parts.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    format: Format,
    /// Elements of a row.
    columns: usize,
    codes: &'a [u8],
    absmax: Absmax<'a>,
}

/// The absmaxes of blocks, as they are stored.
#[derive(Debug, Clone, Copy)]
enum Absmax<'a> {
    Plain(&'a [f32]),
    Coded {
        codes: &'a [u8],
        nested: &'a [f32],
        offset: f32,
    },
}

impl Absmax<'_> {
    #[inline(always)]
    fn of(&self, block: usize) -> f32 {
        match self {
            Absmax::Plain(absmax) => absmax[block],
            Absmax::Coded {
                codes,
                nested,
                offset,
            } => {
                dynamic::SIGNED.values[usize::from(codes[block])] * nested[block / NESTED as usize]
                    + offset
            }
        }
    }
}

/// Elements `rows` by `columns` of a weight.
pub(super) type Panel = (Range<usize>, Range<usize>);

impl<'a> Weight<'a> {
    /// The weight with `columns` elements in a row whose parts are `parts`.
    pub fn new(format: Format, columns: usize, parts: &[View<'a>]) -> Weight<'a> {
        let absmax = match format {
            Format::Nf4 { double: true } => Absmax::Coded {
                codes: parts[1].bytes,
                nested: parts[2].of(),
                offset: parts[3].of::<f32>()[0],
            },
            _ => Absmax::Plain(parts[1].of()),
        };
        Weight {
            format,
            columns,
            codes: parts[0].bytes,
            absmax,
        }
    }

    /// Elements from `from` on, as many as `into` holds, in its format.
    pub fn dequantize<T: Element>(&self, from: usize, into: &mut [T]) {
        let block = match self.format {
            Format::Nf4 { .. } => BLOCK as usize,
            Format::Int8 { block } => block.map_or(self.columns, |b| b as usize),
        };
        let mut done = 0;
        while done < into.len() {
            let at = from + done;
            let count = (block - at % block).min(into.len() - done);
            let (absmax, piece) = (self.absmax.of(at / block), &mut into[done..done + count]);
            match self.format {
                Format::Nf4 { .. } => self.nibbles(at, absmax, piece),
                Format::Int8 { .. } => self.integers(at, absmax, piece),
            }
            done += count;
        }
    }

    /// 4-bit codes from `at` on, within one block.
    fn nibbles<T: Element>(&self, at: usize, absmax: f32, into: &mut [T]) {
        let value = CODE.map(|code| T::narrow(code * absmax));
        let (head, rest) = into.split_at_mut((at % 2).min(into.len()));
        for element in head {
            *element = value[nf4::code(self.codes, at)];
        }
        let first = at.div_ceil(2);
        let (pairs, tail) = rest.as_chunks_mut::<2>();
        let end = first + pairs.len();
        for (pair, byte) in pairs.iter_mut().zip(&self.codes[first..end]) {
            *pair = [
                value[usize::from(byte >> 4)],
                value[usize::from(byte & 0xf)],
            ];
        }
        for element in tail {
            *element = value[usize::from(self.codes[end] >> 4)];
        }
    }

    /// 8-bit codes from `at` on, within one block.
    fn integers<T: Element>(&self, at: usize, absmax: f32, into: &mut [T]) {
        let codes = &self.codes[at..at + into.len()];
        for (element, &code) in into.iter_mut().zip(codes) {
            *element = T::narrow(f32::from(code as i8) * absmax * int8::STEP);
        }
    }

    /// A panel into `into`, row by row, on all threads.
    pub(super) fn panel<T: Element>(&self, (rows, columns): Panel, into: &mut [T]) {
        let width = columns.len();
        let lines = into.par_chunks_exact_mut(width.max(1)).take(rows.len());
        lines.enumerate().for_each(|(row, into)| {
            self.dequantize((rows.start + row) * self.columns + columns.start, into);
        });
    }
}
