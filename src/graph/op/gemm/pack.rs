//! Operands of products copied into panels: for each step of the depth, the panel's rows side by side.

use std::arch::x86_64::*;

use super::Strided;

impl Strided {
    /// From element (i, j) on.
    pub(super) fn at(self, i: usize, j: usize) -> Strided {
        Strided {
            data: self.data.wrapping_add(i * self.row + j * self.column),
            ..self
        }
    }

    /// The transpose.
    pub(super) fn t(self) -> Strided {
        Strided {
            row: self.column,
            column: self.row,
            ..self
        }
    }
}

/// Vector elements, and steps of the depth that are copied together.
pub(super) const LANES: usize = 16;

/// Packs (rows, depth) elements of `from` into panels of `height` rows: row r of step p is at `p * step + r` of its panel.
/// Rows that a last panel lacks are zero, up to a multiple of 16.
///
/// # Safety
/// The machine must have AVX-512. `from` must hold (rows, depth) elements, `to` depth * `step` for each panel and [`LANES`] steps more.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack(
    to: *mut f32,
    height: usize,
    step: usize,
    (rows, depth): (usize, usize),
    from: Strided,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (from.row, from.column) {
            (1, _) => pack_rows(to, height, step, (rows, depth), from),
            (_, 1) => pack_steps(to, height, step, (rows, depth), from),
            _ => gather(to, height, step, (rows, depth), from),
        }
    }
}

/// [`pack`] where rows lie side by side.
#[target_feature(enable = "avx512f")]
unsafe fn pack_rows(
    to: *mut f32,
    height: usize,
    step: usize,
    (rows, depth): (usize, usize),
    from: Strided,
) {
    for p in (0..depth).step_by(LANES) {
        let steps = LANES.min(depth - p);
        for panel in 0..rows.div_ceil(height) {
            let at = panel * height;
            let to = to.wrapping_add(panel * depth * step + p * step);
            for r in (0..height).step_by(LANES) {
                let mask = first(
                    height
                        .min(rows - at)
                        .saturating_sub(r)
                        .min(LANES)
                        .min(height - r),
                );
                let from = from.at(at + r, p);
                for p in 0..steps {
                    // SAFETY: the caller's promise; the mask keeps to the rows there are.
                    unsafe {
                        let x = _mm512_maskz_loadu_ps(mask, from.at(0, p).data);
                        _mm512_store_ps(to.wrapping_add(p * step + r), x);
                    }
                }
            }
        }
    }
}

/// [`pack`] with any strides.
#[target_feature(enable = "avx512f")]
unsafe fn gather(
    to: *mut f32,
    height: usize,
    step: usize,
    (rows, depth): (usize, usize),
    from: Strided,
) {
    for panel in 0..rows.div_ceil(height) {
        let to = to.wrapping_add(panel * depth * step);
        let rows = height.min(rows - panel * height);
        let from = from.at(panel * height, 0);
        for p in 0..depth {
            for r in 0..height.next_multiple_of(LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    *to.add(p * step + r) = if r < rows { *from.at(r, p).data } else { 0.0 };
                }
            }
        }
    }
}

/// [`pack`] where steps lie side by side: squares of 16 are transposed in registers.
#[target_feature(enable = "avx512f")]
unsafe fn pack_steps(
    to: *mut f32,
    height: usize,
    step: usize,
    (rows, depth): (usize, usize),
    from: Strided,
) {
    for panel in 0..rows.div_ceil(height) {
        let at = panel * height;
        let to = to.wrapping_add(panel * depth * step);
        for r in (0..height).step_by(LANES) {
            let rows = height
                .min(rows - at)
                .saturating_sub(r)
                .min(LANES)
                .min(height - r);
            let (from, to) = (from.at(at + r, 0), to.wrapping_add(r));
            // SAFETY: the caller's promise; a later panel overwrites what goes beyond this one.
            unsafe {
                match rows {
                    16 => turn::<16>(to, step, (rows, depth), from),
                    14 => turn::<14>(to, step, (rows, depth), from),
                    _ => turn::<0>(to, step, (rows, depth), from),
                }
            }
        }
    }
}

/// Transposes up to 16 rows, R where that is known, in squares of 16 steps.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn turn<const R: usize>(
    to: *mut f32,
    step: usize,
    (rows, depth): (usize, usize),
    from: Strided,
) {
    let rows = if R > 0 { R } else { rows };
    for p in (0..depth).step_by(LANES) {
        let mask = first(LANES.min(depth - p));
        let mut x = [_mm512_setzero_ps(); LANES];
        for (r, x) in x.iter_mut().enumerate() {
            let mask = if r < rows { mask } else { 0 };
            // SAFETY: the caller's promise; the mask keeps to the rows and steps there are.
            *x = unsafe { _mm512_maskz_loadu_ps(mask, from.at(r, p).data) };
        }
        let x = transposed(x);
        for (q, x) in x.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm512_store_ps(to.wrapping_add((p + q) * step), x) };
        }
    }
}

/// A mask of the first `count` lanes.
fn first(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

/// The transpose of a square: of pairs, of fours, then of quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(x: [__m512; LANES]) -> [__m512; LANES] {
    let zero = [_mm512_setzero_ps(); LANES];
    let (mut pairs, mut fours, mut eights, mut all) = (zero, zero, zero, zero);
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            let low = _mm512_castps_pd(pairs[i + half]);
            let high = _mm512_castps_pd(pairs[i + half + 2]);
            fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    // fours[4 g + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 g to 4 g + 3.
    for c in 0..4 {
        for g in [0, 2] {
            let (low, high) = (fours[4 * g + c], fours[4 * g + 4 + c]);
            eights[4 * g + c] = _mm512_shuffle_f32x4::<0x88>(low, high);
            eights[4 * g + 4 + c] = _mm512_shuffle_f32x4::<0xdd>(low, high);
        }
    }
    for c in 0..4 {
        let (even, even_high) = (eights[c], eights[8 + c]);
        let (odd, odd_high) = (eights[4 + c], eights[12 + c]);
        all[c] = _mm512_shuffle_f32x4::<0x88>(even, even_high);
        all[c + 8] = _mm512_shuffle_f32x4::<0xdd>(even, even_high);
        all[c + 4] = _mm512_shuffle_f32x4::<0x88>(odd, odd_high);
        all[c + 12] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_high);
    }
    all
}
