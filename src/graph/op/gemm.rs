//! Matrix products on slices of the arena, in blocks that threads take as they get free.
#![allow(unsafe_code)] // raw pointers into disjoint blocks, and the GEMM crate's own interface

mod grid;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::Element;
use crate::graph::tensor::DType;
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use grid::{Block, Grid};

/// Most rows, columns and depth of a block that is widened first.
const ROWS: usize = 384;
const COLUMNS: usize = 512;
const DEPTH: usize = 1024;

/// Most rows and columns of a block in f32. The crate packs a block's operands into its own heap, which these bound.
const PLAIN: (usize, usize) = (2048, 1536);

/// A strided matrix over a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Mat<'a, T> {
        Mat {
            data,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// Its transpose, over the same elements.
    pub fn t(self) -> Mat<'a, T> {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Whether every element lies within the slice.
    fn is_inside(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride
                < self.data.len()
    }
}

/// Scratch of [`matmul`] for these formats: for each thread one block of both operands and of the result, widened.
pub fn matmul_scratch(operand: DType, result: DType, backend: Backend) -> Bytes {
    let threads = match backend {
        Backend::Cpu { threads } => u64::from(threads.max(1)),
        Backend::Cuda { .. } => return Bytes::ZERO,
    };
    match operand.is_half() || result.is_half() {
        true => Bytes((SLOT * 4) as u64 * threads),
        false => Bytes::ZERO,
    }
}

/// f32 elements of one thread's scratch.
const SLOT: usize = ROWS * DEPTH + DEPTH * COLUMNS + ROWS * COLUMNS;

/// `dst = a · b`, or `dst += a · b` with `accumulate`; `dst` is (a.rows, b.cols), rows `stride` apart.
/// Sums are in f32 and rounded once. Bits depend on shapes and formats, never on the number of threads.
///
/// # Panics
/// Where the shapes do not agree or a matrix leaves its slice.
pub fn matmul<A: Element, B: Element, D: Element>(
    dst: &mut [D],
    stride: usize,
    a: Mat<A>,
    b: Mat<B>,
    accumulate: bool,
    scratch: &mut [u8],
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        k == b.rows && a.is_inside() && b.is_inside(),
        "matmul operands disagree: ({m}, {k}) by ({}, {n})",
        b.rows
    );
    assert!(
        (m - 1) * stride + n <= dst.len() && n <= stride,
        "matmul result leaves its slice"
    );
    let target = Target {
        data: dst.as_mut_ptr(),
        stride,
    };
    match (f32s(a), f32s(b), D::DTYPE) {
        (Some(a), Some(b), DType::F32) => {
            let target = Target {
                data: target.data.cast::<f32>(),
                stride,
            };
            let slots = rayon::current_num_threads();
            let grid = Grid::new(m, n, slots, PLAIN);
            each_block(slots, grid.blocks(), |_, index| {
                plain_block(target, &a, &b, grid.block(index), accumulate)
            });
        }
        _ => {
            let scratch: &mut [f32] = bytemuck::cast_slice_mut(scratch);
            assert!(
                scratch.len() >= SLOT,
                "matmul was given {} bytes of scratch",
                scratch.len() * 4
            );
            let slots: Vec<_> = scratch
                .chunks_exact_mut(SLOT)
                .map(std::sync::Mutex::new)
                .collect();
            let grid = Grid::new(m, n, slots.len(), (ROWS, COLUMNS));
            each_block(slots.len(), grid.blocks(), |slot, index| {
                // Each slot is used by one task only, so the lock is never waited for.
                if let Ok(mut slot) = slots[slot].lock() {
                    wide_block(target, &a, &b, grid.block(index), accumulate, &mut slot);
                }
            });
        }
    }
}

/// Runs `task(slot, index)` for every index below `blocks`, each slot on one task, indices taken as slots get free.
fn each_block(slots: usize, blocks: usize, task: impl Fn(usize, usize) + Sync) {
    let next = AtomicUsize::new(0);
    (0..slots.min(blocks))
        .into_par_iter()
        .with_max_len(1)
        .for_each(|slot| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= blocks {
                    break;
                }
                task(slot, index);
            }
        });
}

/// The result, writable from several tasks, each in blocks of its own.
#[derive(Clone, Copy)]
struct Target<T> {
    data: *mut T,
    stride: usize,
}

// SAFETY: tasks write disjoint blocks, which `each_block` hands out once each; the slice outlives them all.
unsafe impl<T> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Target<T> {}

impl<T> Target<T> {
    fn at(&self, row: usize, column: usize) -> *mut T {
        self.data.wrapping_add(row * self.stride + column)
    }
}

/// The matrix as f32, where it is.
fn f32s<T: Element>(mat: Mat<T>) -> Option<Mat<f32>> {
    let Mat {
        data,
        rows,
        cols,
        row_stride,
        col_stride,
    } = mat;
    let data = bytemuck::try_cast_slice(data)
        .ok()
        .filter(|_| T::DTYPE == DType::F32)?;
    Some(Mat {
        data,
        rows,
        cols,
        row_stride,
        col_stride,
    })
}

/// One block of an f32 product, straight from and to the arena.
fn plain_block(dst: Target<f32>, a: &Mat<f32>, b: &Mat<f32>, block: Block, accumulate: bool) {
    let (i, j, rows, columns) = block;
    let left = Corner {
        data: &a.data[i * a.row_stride..],
        row: a.row_stride,
        column: a.col_stride,
    };
    let right = Corner {
        data: &b.data[j * b.col_stride..],
        row: b.row_stride,
        column: b.col_stride,
    };
    call(
        dst.at(i, j),
        dst.stride,
        (rows, columns, a.cols),
        left,
        right,
        accumulate,
    );
}

/// One block with a 16-bit operand or result: widened, multiplied in f32 over all depths, rounded once.
fn wide_block<A: Element, B: Element, D: Element>(
    dst: Target<D>,
    a: &Mat<A>,
    b: &Mat<B>,
    block: Block,
    accumulate: bool,
    slot: &mut [f32],
) {
    let (i, j, rows, columns) = block;
    let (left, rest) = slot.split_at_mut(ROWS * DEPTH);
    let (right, sum) = rest.split_at_mut(DEPTH * COLUMNS);
    for from in (0..a.cols).step_by(DEPTH) {
        let depth = DEPTH.min(a.cols - from);
        let (left_row, left_column) = widen(left, a, (i, from, rows, depth));
        let (right_row, right_column) = widen(right, b, (from, j, depth, columns));
        let left = Corner {
            data: left,
            row: left_row,
            column: left_column,
        };
        let right = Corner {
            data: right,
            row: right_row,
            column: right_column,
        };
        call(
            sum.as_mut_ptr(),
            columns,
            (rows, columns, depth),
            left,
            right,
            from > 0,
        );
    }
    for (row, sums) in sum.chunks_exact(columns).take(rows).enumerate() {
        // SAFETY: `matmul` checked that every row of the block lies in the result, and no other task has this block.
        let into = unsafe { std::slice::from_raw_parts_mut(dst.at(i + row, j), columns) };
        for (into, &sum) in into.iter_mut().zip(sums) {
            *into = D::narrow(if accumulate { into.wide() + sum } else { sum });
        }
    }
}

/// Copies a block of `from` into `into` as f32, keeping its contiguous direction; returns the copy's strides.
fn widen<T: Element>(into: &mut [f32], from: &Mat<T>, block: Block) -> (usize, usize) {
    let (i, j, rows, columns) = block;
    let by_rows = from.col_stride == 1;
    let (outer, inner) = if by_rows {
        (rows, columns)
    } else {
        (columns, rows)
    };
    let (outer_stride, inner_stride) = if by_rows {
        (from.row_stride, from.col_stride)
    } else {
        (from.col_stride, from.row_stride)
    };
    let start = i * from.row_stride + j * from.col_stride;
    for (line, into) in into.chunks_exact_mut(inner).take(outer).enumerate() {
        let line = &from.data[start + line * outer_stride..];
        match inner_stride {
            1 => into
                .iter_mut()
                .zip(line)
                .for_each(|(to, from)| *to = from.wide()),
            _ => into
                .iter_mut()
                .zip(line.iter().step_by(inner_stride))
                .for_each(|(to, from)| *to = from.wide()),
        }
    }
    if by_rows { (inner, 1) } else { (1, inner) }
}

/// A strided operand from its first element on.
struct Corner<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

/// One call of the GEMM crate on one thread.
fn call(
    dst: *mut f32,
    stride: usize,
    shape: (usize, usize, usize),
    a: Corner,
    b: Corner,
    accumulate: bool,
) {
    let (m, n, k) = shape;
    if k == 0 {
        return;
    }
    assert!(
        (m - 1) * a.row + (k - 1) * a.column < a.data.len(),
        "left operand leaves its slice"
    );
    assert!(
        (k - 1) * b.row + (n - 1) * b.column < b.data.len(),
        "right operand leaves its slice"
    );
    // SAFETY: the operands were checked just above; `matmul` checked that the block lies within the result.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            f32::from(u8::from(accumulate)),
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
