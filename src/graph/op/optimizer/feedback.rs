//! What MicroAdam's window does not take, held in four bits.

use half::bf16;
use rayon::prelude::*;

use crate::graph::op::Element;
use crate::graph::op::elementwise::CHUNK;
use crate::graph::op::simd::vectorized;

/// What was left out: codes of four bits, the first of two in the high half of a byte, and ends of their ranges.
pub(super) struct Left<'a> {
    /// Elements of a range, even.
    pub(super) quant: usize,
    pub(super) codes: &'a mut [u8],
    pub(super) low: &'a mut [bf16],
    pub(super) high: &'a mut [bf16],
}

impl Left<'_> {
    /// Runs `task` on each range: elements, codes, both ends.
    fn each<G: Element>(
        &mut self,
        a: &mut [G],
        task: impl Fn(&mut [G], &mut [u8], &mut bf16, &mut bf16) + Sync,
    ) {
        let quant = self.quant;
        let ranges = CHUNK.div_ceil(quant); // that one task holds
        let codes = self.codes.par_chunks_mut(ranges * quant / 2);
        let ends = self
            .low
            .par_chunks_mut(ranges)
            .zip(self.high.par_chunks_mut(ranges));
        let pieces = a.par_chunks_mut(ranges * quant).zip(codes).zip(ends);
        pieces.for_each(|((a, codes), (low, high))| {
            let ranges = a.chunks_mut(quant).zip(codes.chunks_mut(quant / 2));
            for ((a, codes), (low, high)) in ranges.zip(low.iter_mut().zip(high)) {
                task(a, codes, low, high);
            }
        });
    }

    /// Scales the gradient and adds what was left out: the accumulator.
    pub(super) fn restore<G: Element>(&mut self, coefficient: f32, a: &mut [G]) {
        self.each(a, |a, codes, low, high| {
            add(a, codes, low.wide(), high.wide(), coefficient, 1.0);
        });
    }

    /// Codes what the window did not take.
    pub(super) fn keep<G: Element>(&mut self, a: &mut [G]) {
        self.each(a, |a, codes, low, high| {
            (*low, *high) = ends(a);
            code(a, codes, low.wide(), high.wide());
        });
    }

    /// Lets share `alpha` of it join the step, and keeps the rest: the same codes of a narrower range.
    pub(super) fn release<G: Element>(&mut self, alpha: f64, a: &mut [G]) {
        if alpha == 0.0 {
            return;
        }
        let (share, rest) = (alpha as f32, (1.0 - alpha) as f32);
        self.each(a, |a, codes, low, high| {
            add(a, codes, low.wide(), high.wide(), 1.0, share);
            *low = Element::narrow(low.wide() * rest);
            *high = Element::narrow(high.wide() * rest);
        });
    }
}

/// The least and the greatest element.
fn ends<G: Element>(a: &[G]) -> (bf16, bf16) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for x in a {
        low = low.min(x.wide());
        high = high.max(x.wide());
    }
    (Element::narrow(low), Element::narrow(high))
}

/// Codes between both ends.
const LAST: f32 = 15.0;

vectorized! {
    /// `a = scale a + share q`, with q what the codes stand for.
    fn add<G: Element>(a: &mut [G], codes: &[u8], low: f32, high: f32, scale: f32, share: f32) {
        let unit = (high - low) / LAST;
        for (pair, code) in a.chunks_mut(2).zip(codes) {
            let halves = [code >> 4, code & 15];
            for (x, half) in pair.iter_mut().zip(halves) {
                *x = G::narrow(scale * x.wide() + share * (f32::from(half) * unit + low));
            }
        }
    }

    /// The nearest codes.
    fn code<G: Element>(a: &[G], codes: &mut [u8], low: f32, high: f32) {
        let unit = (high - low) / LAST;
        let nearest = |x: &G| match unit > 0.0 {
            // Ends are rounded, so that an element may lie beyond them.
            true => ((x.wide() - low) / unit + 0.5).floor().clamp(0.0, LAST) as u8,
            false => 0,
        };
        for (pair, code) in a.chunks(2).zip(codes) {
            *code = nearest(&pair[0]) << 4 | pair.get(1).map_or(0, nearest);
        }
    }
}
