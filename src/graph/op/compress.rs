//! Values held in fewer bits: integers between the least and the most of each block.

use rayon::prelude::*;

use super::kernel::{Call, Kernel, Launch, THREADS, input, output};
use super::simd;
use super::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::random::Key;
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// The name of the op that makes bits fewer.
pub const COMPRESS: &str = "compress";

/// Most elements of a block.
pub const MOST_BLOCK: usize = 4096;
/// Blocks one task works on.
const CHUNK: usize = 16;

/// How values are held: each block of `block` elements by its least value and the width of a step (F32 each), and each element by
/// the number of steps in `bits` bits, two numbers of 4 bits to a byte, the first in the lower half (Chen et al. 2021,
/// arXiv:2104.14129, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Bits of a number: 8 or 4.
    pub bits: u32,
    /// Elements of a block, even, at most [`MOST_BLOCK`].
    pub block: u64,
    /// Whether numbers are rounded up or down at random, so that the mean is the value; else to the nearest.
    pub stochastic: bool,
}

impl Grid {
    /// The type of `elements` held so: blocks' bounds, then numbers.
    pub fn held(self, elements: u64) -> Type {
        let bounds = 8 * elements.div_ceil(self.block);
        let codes = (elements * u64::from(self.bits)).div_ceil(8);
        Type::new(&[bounds + codes], DType::U8)
    }

    /// Threads that take a block together on a GPU.
    fn row(self) -> u32 {
        if self.block > 1024 { THREADS } else { 32 }
    }

    /// A launch of `compress.cu`.
    fn launch(self, entry: &'static str, format: DType) -> Launch {
        Launch::new("compress", entry)
            .format("T", format)
            .define("BITS", self.bits)
            .define("RANDOM", u32::from(self.stochastic))
            .define("ROW", self.row())
    }

    fn bytes(self, elements: usize) -> usize {
        (elements * self.bits as usize).div_ceil(8)
    }

    fn check(self, op: &'static str) -> Result<()> {
        let fits = [4, 8].contains(&self.bits)
            && self.block.is_multiple_of(2)
            && (2..=MOST_BLOCK as u64).contains(&self.block);
        expect(op, fits, || format!("holds no values as {self:?}"))
    }
}

/// Input: values of a float format. Output: the same, held as `grid` says (U8).
#[derive(Debug, Clone)]
pub struct Compress {
    /// How they are held.
    pub grid: Grid,
}

/// Input: what [`Compress`] made of values of type `at`. Output: those values, as near as they were held.
#[derive(Debug, Clone)]
pub struct Decompress {
    /// How they are held.
    pub grid: Grid,
    /// Their type.
    pub at: Type,
}

impl Op for Compress {
    fn name(&self) -> &'static str {
        COMPRESS
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        self.grid.check(self.name())?;
        Ok(vec![Output::Fresh(self.grid.held(inputs[0].elements()))])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let each = if self.grid.stochastic { 16 } else { 6 };
        Work {
            matmul: 0,
            vector: each * inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (from, key, grid) = (io.inputs[0], io.key, self.grid);
        let (bounds, codes) = split(grid, from.at.elements(), io.outputs[0].bytes);
        let size = CHUNK * grid.block as usize;
        with_float!("compress", from.at.dtype, T => {
            let chunks = from.of::<T>().par_chunks(size).zip(bounds.par_chunks_mut(CHUNK));
            let chunks = chunks.zip(codes.par_chunks_mut(grid.bytes(size)));
            chunks.enumerate().for_each(|(chunk, ((from, bounds), codes))| {
                hold(grid, key, (chunk * size) as u64, from, bounds, codes);
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let elements = call.inputs[0].elements();
        let launch = self.grid.launch("compress", call.format(0));
        let per_block = if self.grid.row() == 32 {
            u64::from(THREADS) / 32
        } else {
            1
        };
        let launch = launch.blocks(elements.div_ceil(self.grid.block).div_ceil(per_block));
        let launch = launch.given([input(0), output(0), elements.into()]);
        Kernel::one(launch.given([self.grid.block.into(), call.key.0.into()]))
    }
}

impl Op for Decompress {
    fn name(&self) -> &'static str {
        "decompress"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        self.grid.check(self.name())?;
        let held = self.grid.held(self.at.elements());
        expect(self.name(), inputs[0] == held, || {
            format!("takes {held} for {}; got {}", self.at, inputs[0])
        })?;
        Ok(vec![Output::Fresh(self.at.clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 3 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let grid = self.grid;
        let bytes = io.inputs[0].bytes;
        let (bounds, codes) = bytes.split_at(8 * self.at.elements().div_ceil(grid.block) as usize);
        let bounds: &[[f32; 2]] = bytemuck::cast_slice(bounds);
        let made = &mut io.outputs[0];
        let size = CHUNK * grid.block as usize;
        with_float!("decompress", made.at.dtype, T => {
            let chunks = made.of::<T>().par_chunks_mut(size).zip(bounds.par_chunks(CHUNK));
            let chunks = chunks.zip(codes.par_chunks(grid.bytes(size)));
            chunks.for_each(|((made, bounds), codes)| release(grid, bounds, codes, made));
            Ok(())
        })
    }
    fn cuda(&self, _: &Call) -> Kernel {
        let elements = self.at.elements();
        let launch = self
            .grid
            .launch("decompress", self.at.dtype)
            .elements(elements);
        let launch = launch.given([input(0), output(0), elements.into()]);
        Kernel::one(launch.given([self.grid.block.into()]))
    }
}

/// The bounds and the numbers of `elements` held values.
fn split(grid: Grid, elements: u64, bytes: &mut [u8]) -> (&mut [[f32; 2]], &mut [u8]) {
    let (bounds, codes) = bytes.split_at_mut(8 * elements.div_ceil(grid.block) as usize);
    (bytemuck::cast_slice_mut(bounds), codes)
}

/// Some blocks, from element `first` on.
fn hold<T: Element>(
    grid: Grid,
    key: Key,
    first: u64,
    from: &[T],
    bounds: &mut [[f32; 2]],
    codes: &mut [u8],
) {
    let (mut wide, mut steps) = ([0.0f32; MOST_BLOCK], [0u8; MOST_BLOCK]);
    let size = grid.block as usize;
    let most = ((1u32 << grid.bits) - 1) as f32;
    let blocks = from
        .chunks(size)
        .zip(bounds)
        .zip(codes.chunks_mut(grid.bytes(size)));
    for (index, ((from, bounds), codes)) in blocks.enumerate() {
        let (wide, steps) = (&mut wide[..from.len()], &mut steps[..from.len()]);
        simd::widen(from, wide);
        *bounds = range(wide, most);
        let start = first + (index * size) as u64;
        match grid.stochastic {
            true => round_at_random(wide, *bounds, most, key, start, steps),
            false => round(wide, *bounds, most, steps),
        }
        match grid.bits {
            8 => codes.copy_from_slice(steps),
            _ => pack(steps, codes),
        }
    }
}

/// Some blocks, back.
fn release<T: Element>(grid: Grid, bounds: &[[f32; 2]], codes: &[u8], made: &mut [T]) {
    let (mut wide, mut steps) = ([0.0f32; MOST_BLOCK], [0u8; MOST_BLOCK]);
    let size = grid.block as usize;
    let blocks = made
        .chunks_mut(size)
        .zip(bounds)
        .zip(codes.chunks(grid.bytes(size)));
    for ((made, bounds), codes) in blocks {
        let (wide, steps) = (&mut wide[..made.len()], &mut steps[..made.len()]);
        match grid.bits {
            8 => steps.copy_from_slice(codes),
            _ => unpack(codes, steps),
        }
        place(steps, *bounds, wide);
        simd::narrow(wide, made);
    }
}

fn pack(steps: &[u8], codes: &mut [u8]) {
    for (pair, code) in steps.chunks(2).zip(codes) {
        *code = pair[0] | pair.get(1).map_or(0, |high| high << 4);
    }
}

fn unpack(codes: &[u8], steps: &mut [u8]) {
    for (pair, code) in steps.chunks_mut(2).zip(codes) {
        pair[0] = code & 15;
        if let Some(high) = pair.get_mut(1) {
            *high = code >> 4;
        }
    }
}

simd::vectorized! {
    /// The least value, and the width of one of `most` steps up to the greatest.
    fn range(x: &mut [f32], most: f32) -> [f32; 2] {
        let greatest = simd::max_of(x);
        for x in x.iter_mut() {
            *x = -*x;
        }
        let least = -simd::max_of(x);
        for x in x.iter_mut() {
            *x = -*x;
        }
        [least, (greatest - least) / most]
    }

    /// The nearest steps.
    fn round(x: &[f32], bounds: [f32; 2], most: f32, steps: &mut [u8]) {
        let inverse = if bounds[1] > 0.0 { 1.0 / bounds[1] } else { 0.0 };
        for (x, step) in x.iter().zip(steps) {
            *step = ((x - bounds[0]) * inverse + 0.5).clamp(0.0, most) as u8;
        }
    }

    /// The step below or above, by chance.
    fn round_at_random(x: &[f32], bounds: [f32; 2], most: f32, key: Key, first: u64, steps: &mut [u8]) {
        let inverse = if bounds[1] > 0.0 { 1.0 / bounds[1] } else { 0.0 };
        for (i, (x, step)) in x.iter().zip(steps).enumerate() {
            let up = key.uniform(first + i as u64);
            *step = ((x - bounds[0]) * inverse + up).clamp(0.0, most) as u8;
        }
    }

    /// The values of steps.
    fn place(steps: &[u8], bounds: [f32; 2], x: &mut [f32]) {
        for (x, step) in x.iter_mut().zip(steps) {
            *x = bounds[0] + bounds[1] * f32::from(*step);
        }
    }
}
