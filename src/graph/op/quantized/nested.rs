//! Absmaxes quantized again, in the signed dynamic code (Dettmers et al. 2023, arXiv:2305.14314, section 3).

use super::nf4;
use crate::graph::op::dynamic::SIGNED;

/// The codes of values that share one absmax, as [`super::Format::quantize`] scales them; returns the absmax.
pub fn quantize(block: &[f32], whole: bool, into: &mut [u8]) -> f32 {
    let absmax = nf4::absmax(block, whole);
    for (&x, code) in block.iter().zip(into) {
        *code = SIGNED.code(nf4::scaled(x, absmax, whole));
    }
    absmax
}
