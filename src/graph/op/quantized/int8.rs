//! 8-bit integers scaled by the largest magnitude of a row or block.

/// Steps on either side of zero.
pub(super) const STEPS: f32 = 127.0;
/// A step as a share of the absmax, as bitsandbytes multiplies by it.
pub(super) const STEP: f32 = 7.874_016e-3;

/// The largest magnitude of a block.
pub(super) fn absmax(block: &[f32]) -> f32 {
    block.iter().fold(0f32, |most, x| most.max(x.abs()))
}

/// The nearest integers, ties to even, in two's complement.
pub(super) fn quantize(block: &[f32], absmax: f32, into: &mut [u8]) {
    let steps = STEPS / absmax;
    for (x, code) in block.iter().zip(into) {
        // A block of zeros has no steps: 0 times infinity is no number, which becomes 0.
        *code = (x * steps).round_ties_even() as i8 as u8;
    }
}
