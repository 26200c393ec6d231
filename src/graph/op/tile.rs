//! Tiles of matrices: views with strides, products of them, and the queue that hands them to threads.
#![allow(unsafe_code)] // disjoint tiles of one slice, and the GEMM crate's own interface

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::Element;
use super::gemm::Mat;
use super::simd;
use crate::graph::tensor::DType;

/// f32 elements the pieces of a slot are rounded up to: one cache line.
const LINE: usize = 16;

/// A row-major tile that one task writes, with `stride` elements from one row to the next.
#[derive(Debug)]
pub struct TileMut<'a, T> {
    data: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is the only access to its elements, as a mutable slice is.
unsafe impl<T: Send> Send for TileMut<'_, T> {}

impl<'a, T> TileMut<'a, T> {
    /// All of a contiguous (rows, cols) matrix at the start of `data`.
    ///
    /// # Panics
    /// Where `data` is too short.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> TileMut<'a, T> {
        assert!(rows * cols <= data.len(), "tile leaves its slice");
        TileMut {
            data: data.as_mut_ptr(),
            rows,
            cols,
            stride: cols,
            owner: PhantomData,
        }
    }

    /// The part of `shape` from element `at` on.
    ///
    /// # Safety
    /// It must lie inside the tile, and nothing else may reach its elements while it lives.
    unsafe fn part(&self, at: (usize, usize), shape: (usize, usize)) -> TileMut<'a, T> {
        TileMut {
            // SAFETY: the caller's promise.
            data: unsafe { self.data.add(at.0 * self.stride + at.1) },
            rows: shape.0,
            cols: shape.1,
            ..*self
        }
    }

    /// Row `index`.
    ///
    /// # Panics
    /// Where the tile has no such row.
    pub fn row(&mut self, index: usize) -> &mut [T] {
        assert!(index < self.rows, "tile of {} rows", self.rows);
        // SAFETY: the row lies inside the tile, whose elements only this tile reaches.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(index * self.stride), self.cols) }
    }
}

/// How a matrix of batch * seq rows is cut into tiles that cross no sequence.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Sequences.
    pub batch: usize,
    /// Rows of a sequence.
    pub seq: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Rows of a tile; the last of a sequence may have fewer.
    pub height: usize,
    /// Columns of a tile; divides `columns`.
    pub width: usize,
}

impl Cut {
    /// The tiles of `data`: by sequence, then by columns, then by rows.
    ///
    /// # Panics
    /// Where `data` is not the matrix this cuts.
    pub fn tiles<'a, T: Send>(
        self,
        data: &'a mut [T],
    ) -> impl Iterator<Item = TileMut<'a, T>> + Send {
        let Cut {
            batch,
            seq,
            columns,
            height,
            width,
        } = self;
        assert!(
            columns.is_multiple_of(width) && data.len() == batch * seq * columns,
            "cut of another matrix"
        );
        let whole = TileMut::new(data, batch * seq, columns);
        let (down, across) = (seq.div_ceil(height), columns / width);
        (0..batch * across * down).map(move |index| {
            let first = index % down * height;
            let row = index / (across * down) * seq + first;
            let column = index / down % across * width;
            // SAFETY: the part lies inside `whole`; different indices give disjoint parts, and each comes once.
            unsafe { whole.part((row, column), (height.min(seq - first), width)) }
        })
    }
}

/// The heads of an activation (batch * seq, heads * width), to be read tile by tile.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Rows of a sequence.
    pub seq: usize,
    /// Heads.
    pub count: usize,
    /// Columns of a head.
    pub width: usize,
}

impl<'a, T> Heads<'a, T> {
    /// Rows `rows` of sequence `batch`, columns of `head`.
    pub fn tile(&self, batch: usize, head: usize, rows: Range<usize>) -> Mat<'a, T> {
        let columns = self.count * self.width;
        let start = (batch * self.seq + rows.start) * columns + head * self.width;
        Mat {
            data: &self.data[start..],
            rows: rows.len(),
            cols: self.width,
            row_stride: columns,
            col_stride: 1,
        }
    }
}

impl<'a, T> Mat<'a, T> {
    /// Row `index` of a row-major matrix.
    pub fn row(&self, index: usize) -> &'a [T] {
        &self.data[index * self.row_stride..][..self.cols]
    }

    /// Its rows `rows`.
    pub fn rows_of(self, rows: Range<usize>) -> Mat<'a, T> {
        Mat {
            data: &self.data[rows.start * self.row_stride..],
            rows: rows.len(),
            ..self
        }
    }
}

/// `tile` in f32: itself, or widened into `room`.
pub fn widened<'a, T: Element>(tile: Mat<'a, T>, room: &'a mut [f32]) -> Mat<'a, f32> {
    let Mat { rows, cols, .. } = tile;
    if T::DTYPE == DType::F32 {
        return Mat {
            data: bytemuck::cast_slice(tile.data),
            rows,
            cols,
            row_stride: tile.row_stride,
            col_stride: tile.col_stride,
        };
    }
    packed(tile, room)
}

/// `tile` in f32, copied into `room`: products read it faster where it is read often.
pub fn packed<'a, T: Element>(tile: Mat<T>, room: &'a mut [f32]) -> Mat<'a, f32> {
    let Mat { rows, cols, .. } = tile;
    for (index, wide) in room.chunks_exact_mut(cols).take(rows).enumerate() {
        simd::widen(tile.row(index), wide);
    }
    Mat::new(room, rows, cols)
}

/// `dst = factor * a · b`, or `dst += factor * a · b` with `accumulate`, on the calling thread.
///
/// # Panics
/// Where the shapes do not agree or a matrix leaves its slice.
pub fn product(dst: &mut TileMut<f32>, a: Mat<f32>, b: Mat<f32>, factor: f32, accumulate: bool) {
    let inside = |m: &Mat<f32>| {
        m.rows == 0
            || m.cols == 0
            || (m.rows - 1) * m.row_stride + (m.cols - 1) * m.col_stride < m.data.len()
    };
    assert!(inside(&a) && inside(&b), "product operand leaves its slice");
    assert!(
        dst.rows == a.rows && dst.cols == b.cols && a.cols == b.rows,
        "product of shapes that disagree"
    );
    // SAFETY: all three matrices were checked to lie inside their slices, and `dst` is exclusive.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst.data,
            1,
            dst.stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `range` in pieces of `step`; the last may be shorter.
pub fn pieces(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(step).map(move |at| at..end.min(at + step))
}

/// f32 elements of a slot with pieces of these sizes.
pub fn slot_of<const N: usize>(sizes: [usize; N]) -> usize {
    sizes.iter().map(|n| n.next_multiple_of(LINE)).sum()
}

/// The pieces of a slot made by [`slot_of`].
pub fn carve<const N: usize>(mut slot: &mut [f32], sizes: [usize; N]) -> [&mut [f32]; N] {
    sizes.map(|size| {
        let (piece, rest) = std::mem::take(&mut slot).split_at_mut(size.next_multiple_of(LINE));
        slot = rest;
        &mut piece[..size]
    })
}

/// Runs all `jobs`, each with one of the slots of `size` f32 elements in `scratch`; a slot takes the next job when it is free.
pub fn run_all<J: Send>(
    jobs: impl Iterator<Item = J> + Send,
    scratch: &mut [u8],
    size: usize,
    run: impl Fn(J, &mut [f32]) + Sync,
) {
    let queue = Mutex::new(jobs);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let slots = bytemuck::cast_slice_mut::<u8, f32>(scratch).par_chunks_exact_mut(size);
    slots.for_each(|slot| {
        while let Some(job) = next() {
            run(job, slot);
        }
    });
}
