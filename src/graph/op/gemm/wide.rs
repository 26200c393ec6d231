//! A product on one thread with AVX-512: 14 rows by 32 columns of sums in registers, operands packed into panels where they are read often.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;

use super::pack::{LANES, pack};
use super::{Strided, Target};

/// Rows and columns of the sums that stay in registers.
const ROWS: usize = 14;
const COLUMNS: usize = 32;

/// Elements from one step of the left operand's panel to the next: a cache line.
const LEFT_STEP: usize = LANES;

/// Most depth, rows and columns that are packed at once; the packed left operand stays in the second cache.
const DEPTH: usize = 256;
const HEIGHT: usize = 12 * ROWS;
const WIDTH: usize = 16 * COLUMNS;

/// An operand that meets at most this many rows or columns of the other is read where it is.
const READ_IN_PLACE: usize = 128;

/// Elements of the packed operands.
const LEFT: usize = (HEIGHT / ROWS * DEPTH + LANES) * LEFT_STEP;
const RIGHT: usize = (DEPTH + LANES) * WIDTH;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; LANES]);

thread_local! {
    /// Where a thread packs operands, for as long as it lives.
    static ROOM: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// What sums are multiplied by, and whether they are added to the result.
type Finish = (f32, bool);

/// Whether this machine can run [`multiply`].
#[inline]
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// `dst = factor * a · b`, or `dst += factor * a · b`, with shape (m, n, k). A sum's order depends on k alone.
///
/// # Safety
/// The machine must have AVX-512, and every element must lie in memory that may be read, or written where it is `dst`'s.
pub(super) unsafe fn multiply(
    dst: Target<f32>,
    (m, n, k): (usize, usize, usize),
    a: Strided,
    b: Strided,
    finish: Finish,
) {
    ROOM.with_borrow_mut(|room| {
        room.resize((LEFT + RIGHT) / LANES, Line([0.0; LANES]));
        let left_room = room.as_mut_ptr().cast::<f32>();
        let right_room = left_room.wrapping_add(LEFT);
        for (from, depth) in pieces(k, DEPTH, 1) {
            let finish = (finish.0, finish.1 || from > 0);
            for (j, columns) in pieces(n, WIDTH, COLUMNS) {
                // SAFETY: the room holds DEPTH by WIDTH elements, and `b` has (depth, columns) more: the caller's promise.
                let right = unsafe { right(right_room, (m, columns, depth), b.at(from, j)) };
                for (i, rows) in pieces(m, HEIGHT, ROWS) {
                    let (dst, shape) = (dst.part(i, j), (rows, columns, depth));
                    // SAFETY: as above, for HEIGHT by DEPTH; the operands and the block of `dst` are inside.
                    unsafe {
                        let left = left(left_room, shape, a.at(i, from));
                        block(dst, shape, left, right, finish);
                    }
                }
            }
        }
    });
}

/// An operand in panels: row r of step p of panel g is at `g * panel + r * row + p * step`.
#[derive(Clone, Copy)]
struct Panels {
    data: *const f32,
    panel: usize,
    row: usize,
    step: usize,
}

impl Panels {
    fn panel(self, index: usize) -> Panels {
        Panels {
            data: self.data.wrapping_add(index * self.panel),
            ..self
        }
    }
}

/// The left operand, where it is if it is read seldom.
///
/// # Safety
/// As for [`pack`].
unsafe fn left(room: *mut f32, (m, n, k): (usize, usize, usize), a: Strided) -> Panels {
    if n <= READ_IN_PLACE {
        return Panels {
            data: a.data,
            panel: ROWS * a.row,
            row: a.row,
            step: a.column,
        };
    }
    // SAFETY: the caller's promise.
    unsafe { pack(room, ROWS, LEFT_STEP, (m, k), a) };
    Panels {
        data: room,
        panel: k * LEFT_STEP,
        row: 1,
        step: LEFT_STEP,
    }
}

/// The right operand, where it is if its columns are whole panels side by side and read seldom.
///
/// # Safety
/// As for [`pack`].
unsafe fn right(room: *mut f32, (m, n, k): (usize, usize, usize), b: Strided) -> Panels {
    if b.column == 1 && n.is_multiple_of(COLUMNS) && m <= READ_IN_PLACE {
        return Panels {
            data: b.data,
            panel: COLUMNS,
            row: 1,
            step: b.row,
        };
    }
    // SAFETY: the caller's promise.
    unsafe { pack(room, COLUMNS, COLUMNS, (n, k), b.t()) };
    Panels {
        data: room,
        panel: k * COLUMNS,
        row: 1,
        step: COLUMNS,
    }
}

/// `length` in nearly equal pieces of at most `most`, a multiple of `unit` each but the last: (start, length).
fn pieces(length: usize, most: usize, unit: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = length.div_ceil(most).max(1);
    let step = length.div_ceil(count).next_multiple_of(unit);
    let starts = (0..length).step_by(step.max(1));
    starts.map(move |at| (at, step.min(length - at)))
}

/// The sums of one block.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f")]
unsafe fn block(
    dst: Target<f32>,
    (m, n, k): (usize, usize, usize),
    left: Panels,
    right: Panels,
    finish: Finish,
) {
    for j in (0..n).step_by(COLUMNS) {
        let (right, columns) = (right.panel(j / COLUMNS), COLUMNS.min(n - j));
        for i in (0..m).step_by(ROWS) {
            let left = left.panel(i / ROWS);
            let tile = TILES[ROWS.min(m - i) - 1];
            // SAFETY: the panels hold k steps each; the tile lies in the result.
            unsafe { tile(dst.part(i, j), columns, k, left, right, finish) };
        }
    }
}

type Tile = unsafe fn(Target<f32>, usize, usize, Panels, Panels, Finish);

/// [`tile`] by its number of rows less one.
const TILES: [Tile; ROWS] = [
    tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>, tile::<7>, tile::<8>,
    tile::<9>, tile::<10>, tile::<11>, tile::<12>, tile::<13>, tile::<14>,
];

/// R rows by at most [`COLUMNS`] columns of sums over `depth` steps.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f")]
#[allow(clippy::pointers_in_nomem_asm_block)] // its asm does nothing
unsafe fn tile<const R: usize>(
    dst: Target<f32>,
    columns: usize,
    depth: usize,
    left: Panels,
    right: Panels,
    finish: Finish,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let (mut x, mut y) = (left.data, right.data);
    for _ in 0..depth {
        // The compiler forgets how `x` came about, or it would chain all addresses of all steps by additions.
        // SAFETY: this is no instruction at all.
        unsafe {
            asm!("/* {0} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags));
        }
        // SAFETY: this step of both panels is inside.
        unsafe {
            let y = [_mm512_loadu_ps(y), _mm512_loadu_ps(y.add(LANES))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x.wrapping_add(r * left.row));
                sums[0] = _mm512_fmadd_ps(x, y[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(x, y[1], sums[1]);
            }
        }
        x = x.wrapping_add(left.step);
        y = y.wrapping_add(right.step);
    }
    let factor = _mm512_set1_ps(finish.0);
    let mask = (1u64 << columns) - 1;
    for (r, sums) in sums.iter().enumerate() {
        for (half, &sum) in sums.iter().enumerate() {
            let at = dst.at(r, half * LANES);
            let mask = (mask >> (half * LANES)) as u16;
            // SAFETY: only elements of the result are read and written.
            unsafe {
                let sum = match finish.1 {
                    true => _mm512_fmadd_ps(sum, factor, _mm512_maskz_loadu_ps(mask, at)),
                    false => _mm512_mul_ps(sum, factor),
                };
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
}
