//! Standard normal numbers from a counter, many at a time.

use crate::graph::op::simd::vectorized;
use crate::graph::random::Key;

/// Pairs drawn together: their cosines, then their sines.
const PAIRS: usize = 64;

/// Elements `first..` of the stream of `key`, standard normal (Box and Muller 1958), at most 5.8 from zero; `first` is a
/// multiple of 128.
///
/// Elements come in blocks of 128: 64 draws give 64 cosines and then 64 sines. Logarithm, sine and cosine are polynomials
/// (Cephes, single precision), so that the bits do not depend on the machine's library.
pub fn normals(key: Key, first: u64, into: &mut [f32]) {
    debug_assert!(first.is_multiple_of(2 * PAIRS as u64));
    for (block, into) in into.chunks_mut(2 * PAIRS).enumerate() {
        let pair = (first / (2 * PAIRS as u64) + block as u64) * PAIRS as u64;
        let mut made = [0.0f32; 2 * PAIRS];
        pairs(key, pair, &mut made);
        into.copy_from_slice(&made[..into.len()]);
    }
}

vectorized! {
    /// The cosines and sines of pairs `first..`.
    fn pairs(key: Key, first: u64, into: &mut [f32; 128]) {
        let (mut u, mut v) = ([0.0f32; PAIRS], [0.0f32; PAIRS]);
        for i in 0..PAIRS {
            let bits = key.bits(first + i as u64);
            u[i] = ((bits >> 40) as i32 + 1) as f32 * (1.0 / (1u32 << 24) as f32);
            v[i] = ((bits >> 8) as u32 >> 8) as i32 as f32 * (1.0 / (1u32 << 24) as f32);
        }
        let (cosines, sines) = into.split_at_mut(PAIRS);
        for i in 0..PAIRS {
            let radius = (-2.0 * ln(u[i])).sqrt();
            let (cosine, sine) = turn(v[i]);
            cosines[i] = radius * cosine;
            sines[i] = radius * sine;
        }
    }
}

/// The natural logarithm of a normal number in (0, 1].
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = m · 2^e with m in [sqrt(1/2), sqrt(2)).
    let bits = x.to_bits() as i32;
    let shifted = bits - 0x3f35_04f3;
    let exponent = (shifted >> 23) as f32;
    let m = f32::from_bits((bits - (shifted & !0x007f_ffff)) as u32) - 1.0;
    let square = m * m;
    let mut p = 7.037_683_6e-2;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p * m + c;
    }
    let low = p * m * square - 2.121_944_4e-4 * exponent - 0.5 * square;
    m + low + 0.693_359_4 * exponent
}

/// Cosine and sine of `turns` whole turns, in [0, 1).
#[inline(always)]
fn turn(turns: f32) -> (f32, f32) {
    let quarter = (4.0 * turns + 0.5) as i32;
    let angle = (turns - 0.25 * quarter as f32) * std::f32::consts::TAU;
    let z = angle * angle;
    let sine = angle + angle * z * (-1.666_665_5e-1 + z * (8.332_161e-3 - 1.951_529_6e-4 * z));
    let tail = z * z * (4.166_664_6e-2 + z * (-1.388_731_6e-3 + 2.443_315_7e-5 * z));
    let cosine = 1.0 - 0.5 * z + tail;
    let odd = quarter & 1 == 1;
    let (a, b) = if odd { (sine, cosine) } else { (cosine, sine) };
    let flip = |value: f32, negative: bool| if negative { -value } else { value };
    (flip(a, (quarter + 1) & 2 != 0), flip(b, quarter & 2 != 0))
}
