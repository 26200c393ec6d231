//! 4-bit normal floats: the quantiles of a normal distribution, scaled by the largest magnitude of 64 elements.

/// Elements that share an absmax.
pub const BLOCK: u64 = 64;
/// Absmaxes that share one of their own.
pub const NESTED: u64 = 256;

/// The values of the codes (Dettmers et al. 2023, appendix E), as bitsandbytes has them.
pub const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of zero.
const ZERO: u8 = 7;

/// The least a block's absmax counts as, so that zeros can be divided by it.
const LEAST: f32 = 1e-38;

/// The largest magnitude of a block; bitsandbytes bounds that of a rest from below.
pub(super) fn absmax(block: &[f32], whole: bool) -> f32 {
    let largest = block.iter().fold(0f32, |most, x| most.max(x.abs()));
    match whole {
        true => largest,
        false => largest.max(LEAST),
    }
}

/// An element between -1 and 1: a whole block is multiplied where a rest is divided, as in bitsandbytes.
pub(super) fn scaled(x: f32, absmax: f32, whole: bool) -> f32 {
    match whole {
        true => (x * (1.0 / absmax.max(LEAST))).clamp(-1.0, 1.0),
        false => (x / absmax).clamp(-1.0, 1.0),
    }
}

/// Codes of a block, two to a byte, the first in the high half.
pub(super) fn quantize(block: &[f32], absmax: f32, whole: bool, into: &mut [u8]) {
    for (pair, byte) in block.chunks(2).zip(into) {
        let code = |x: &f32| nearest(scaled(*x, absmax, whole));
        *byte = code(&pair[0]) << 4 | pair.get(1).map_or(ZERO, code);
    }
}

/// The nearest code; of two equally near ones the lower.
fn nearest(x: f32) -> u8 {
    let above = |pair: &&[f32]| x > (pair[0] + pair[1]) / 2.0;
    CODE.windows(2).filter(above).count() as u8
}

/// Code `index` of a row of bytes.
#[inline(always)]
pub(super) fn code(codes: &[u8], index: usize) -> usize {
    let byte = codes[index / 2];
    usize::from(if index.is_multiple_of(2) {
        byte >> 4
    } else {
        byte & 0xf
    })
}
