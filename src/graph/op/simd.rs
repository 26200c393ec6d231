//! Loops compiled once per vector width and chosen at run time, with the functions and reductions they are made of.
#![allow(unsafe_code)]

use super::Element;

/// A loop that is compiled for each vector width; made by `vectorized!`.
pub(crate) trait Kernel {
    /// What the loop returns.
    type Output;
    /// The loop; must be `#[inline(always)]`, or it is compiled for the narrowest width only.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` as compiled for the widest vectors this machine has. No version contracts multiply
/// and add, and reductions have fixed lanes, so all versions give the same bits.
#[inline]
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if wide::has_avx512() {
            // SAFETY: the machine has the features `avx512` is compiled for.
            return unsafe { wide::avx512(kernel) };
        }
        if wide::has_avx2() {
            // SAFETY: the machine has the features `avx2` is compiled for.
            return unsafe { wide::avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::Kernel;

    #[inline]
    pub fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    }

    #[inline]
    pub fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2")
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    #[target_feature(enable = "avx2")]
    pub fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }
}

/// Defines functions whose bodies are compiled for each vector width and dispatched at run time.
///
/// ```text
/// vectorized! {
///     /// `y += a * x`.
///     pub fn axpy<T: Element>(a: f32, x: &(T), y: &mut [f32]) {
///         for (y, x) in y.iter_mut().zip(x) { *y += a * x.wide(); }
///     }
/// }
/// ```
///
/// Type parameters must occur in argument types, lifetimes are elided, arguments are plain names,
/// and the return type may not borrow. What the body calls must be `#[inline(always)]` (or a small
/// closure) to be widened too.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident
        $(<$($g:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)+) => {
        $(
            $(#[$meta])*
            // All a loop reads and writes are arguments: only those are known not to overlap.
            #[allow(clippy::too_many_arguments, clippy::type_complexity)] // a macro takes any parameters
            $vis fn $name $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                // A function of its own, since only arguments are known not to overlap.
                #[inline(always)]
                fn body $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
                struct Call<A>(A);
                impl $(<$($g: $bound),+>)? $crate::graph::op::simd::Kernel for Call<($($ty,)*)> {
                    type Output = $crate::graph::op::simd::returned!($($ret)?);
                    #[inline(always)]
                    fn run(self) -> Self::Output {
                        let ($($arg,)*) = self.0;
                        body $(::<$($g),+>)? ($($arg),*)
                    }
                }
                $crate::graph::op::simd::run(Call(($($arg,)*)))
            }
        )+
    };
}

/// The return type as written, or `()`.
macro_rules! returned {
    () => {
        ()
    };
    ($ret:ty) => {
        $ret
    };
}

pub(crate) use {returned, vectorized};

/// Independent sums of a reduction; they are added by halves at the end.
pub const LANES: usize = 32;

/// Adds up the lanes by halves.
#[inline(always)]
fn halve(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ term(x[i])`, for use inside `vectorized!` bodies.
#[inline(always)]
pub fn sum_of<T: Element>(x: &[T], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(x.wide());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += term(x.wide());
    }
    halve(lanes, |a, b| a + b)
}

/// `Σ term(x[i], y[i])`, for use inside `vectorized!` bodies.
#[inline(always)]
pub fn sum_of_pairs<T: Element, U: Element>(
    x: &[T],
    y: &[U],
    term: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += term(x.wide(), y.wide());
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += term(x.wide(), y.wide());
    }
    halve(lanes, |a, b| a + b)
}

/// `Σ term(x[i], y[i], z[i])`, for use inside `vectorized!` bodies.
#[inline(always)]
pub fn sum_of_triples<T: Element>(
    x: &[T],
    y: &[T],
    z: &[T],
    term: impl Fn(f32, f32, f32) -> f32,
) -> f32 {
    let mut lanes = [0f32; LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let ((y, y_rest), (z, z_rest)) = (y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    for ((x, y), z) in x.iter().zip(y).zip(z) {
        for ((lane, x), (y, z)) in lanes.iter_mut().zip(x).zip(y.iter().zip(z)) {
            *lane += term(x.wide(), y.wide(), z.wide());
        }
    }
    for ((lane, x), (y, z)) in lanes.iter_mut().zip(x_rest).zip(y_rest.iter().zip(z_rest)) {
        *lane += term(x.wide(), y.wide(), z.wide());
    }
    halve(lanes, |a, b| a + b)
}

/// The greatest element (-∞ of none; NaNs are passed over), for use inside `vectorized!` bodies.
#[inline(always)]
pub fn max_of<T: Element>(x: &[T]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x.wide());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x.wide());
    }
    halve(lanes, larger)
}

vectorized! {
    /// Σ x.
    pub fn sum<T: Element>(x: &[T]) -> f32 {
        sum_of(x, |x| x)
    }
    /// Σ x².
    pub fn sum_of_squares<T: Element>(x: &[T]) -> f32 {
        sum_of(x, |x| x * x)
    }
    /// Σ x y.
    pub fn dot<T: Element, U: Element>(x: &[T], y: &[U]) -> f32 {
        sum_of_pairs(x, y, |x, y| x * y)
    }
    /// The greatest element, -∞ of none.
    pub fn max<T: Element>(x: &[T]) -> f32 {
        max_of(x)
    }
    /// `y = x`, widened.
    pub fn widen<T: Element>(x: &[T], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x.wide();
        }
    }
    /// `y = x`, rounded.
    pub fn narrow<T: Element>(x: &[f32], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = T::narrow(*x);
        }
    }
    /// `y += x`.
    pub fn add<T: Element>(x: &[T], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x.wide();
        }
    }
    /// `x *= by`.
    pub fn scale(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn polynomial<const D: usize>(x: f32, coefficients: [f32; D]) -> f32 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

/// eˣ to 2 ulp; 0 below -87.3 (no denormals), ∞ above 88.3.
// x = n ln 2 + r, then a polynomial (Chebyshev interpolation of (eʳ - 1 - r) / r²) and n into the exponent.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.3;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves n in the low bits
    let held = x.clamp(LOWEST, HIGHEST);
    let shifted = held * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = held - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let tail = polynomial(
        r,
        [
            1.392_626_8e-3,
            8.363_247e-3,
            4.166_655_4e-2,
            1.666_657_7e-1,
            0.5,
        ],
    );
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let y = (r * r * tail + r + 1.0) * power;
    let y = if x < LOWEST { 0.0 } else { y };
    if x > HIGHEST { f32::INFINITY } else { y }
}

/// σ(x) = 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh x to 3 ulp.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let near = x + x
        * square
        * polynomial(
            square,
            [
                -6.045_165_3e-3,
                2.096_133e-2,
                -5.384_326_3e-2,
                1.333_271_9e-1,
                -3.333_332_8e-1,
            ],
        );
    let size = x.abs();
    let far = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    if size < 0.625 { near } else { far }
}

/// erfc z for z ≥ 0, relative error below 1e-6 to z = 5; `exp_square` is e^(-z²).
// e^(z²) erfc(z) / t is a polynomial of t = 1 / (1 + 0.4 z) within 1.7e-7 (Chebyshev interpolation).
#[inline(always)]
fn erfc_tail(z: f32, exp_square: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.4 * z);
    let p = polynomial(
        t,
        [
            5.134_648_5e-2,
            -1.873_254_9e-1,
            1.764_279_3e-1,
            -1.196_157_3e-2,
            1.444_813_4e-1,
            1.677_462_9e-1,
            2.079_446_6e-1,
            2.256_646_3e-1,
            2.256_759e-1,
        ],
    );
    t * p * exp_square
}

/// erf x, absolute error below 3e-7.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let size = x.abs();
    (1.0 - erfc_tail(size, exp(-size * size))).copysign(x)
}

/// Φ(x) and φ(x), the standard normal's distribution and density; both keep relative accuracy in the tails.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    let exp_square = exp(-0.5 * x * x);
    let tail = 0.5 * erfc_tail(x.abs() * std::f32::consts::FRAC_1_SQRT_2, exp_square);
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
    (below, INVERSE_SQRT_TAU * exp_square)
}
