//! The approximations against the standard library in f64, and the reductions against plain sums.

use half::bf16;
use memfit::graph::op::{Element, simd};

/// The greatest relative error of `fast` against `exact` over a grid.
fn worst(from: f64, to: f64, fast: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
    let error = |i: u32| {
        let x = (from + (to - from) * f64::from(i) / 100_000.0) as f32;
        let wanted = exact(f64::from(x));
        (f64::from(fast(x)) - wanted).abs() / wanted.abs().max(1e-300)
    };
    (0..=100_000).map(error).fold(0.0, f64::max)
}

#[test]
fn exp_tanh_and_sigmoid_are_accurate_to_a_few_units_in_the_last_place() {
    assert!(worst(-87.0, 88.0, simd::exp, f64::exp) < 2e-7);
    assert!(worst(1e-4, 10.0, simd::tanh, f64::tanh) < 3e-7);
    assert!(worst(-80.0, 80.0, simd::sigmoid, |x| 1.0 / (1.0 + (-x).exp())) < 3e-7);
}

#[test]
fn exp_saturates_and_keeps_nan() {
    assert_eq!(simd::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(simd::exp(-1e4), 0.0);
    assert_eq!(simd::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(simd::exp(0.0), 1.0);
    assert!(simd::exp(f32::NAN).is_nan());
    assert_eq!((simd::tanh(50.0), simd::tanh(-50.0)), (1.0, -1.0));
}

/// erfc by its series or continued fraction, in f64.
fn erfc(z: f64) -> f64 {
    if z < 0.0 {
        return 2.0 - erfc(-z);
    }
    if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for k in 1..200 {
            term *= -z * z / f64::from(k);
            sum += term / f64::from(2 * k + 1);
        }
        return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let fraction = (1..200).rev().fold(z, |f, k| z + f64::from(k) / 2.0 / f);
    (-z * z).exp() / fraction / std::f64::consts::PI.sqrt()
}

#[test]
fn the_normal_distribution_keeps_its_tails() {
    let below = |x: f64| 0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
    assert!(worst(-5.0, 9.0, |x| simd::normal(x).0, below) < 2e-6);
    let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    assert!(worst(-5.0, 5.0, |x| simd::normal(x).1, density) < 2e-6);
    let grid = (-500..=500).map(|i| f64::from(i) / 100.0);
    let error = grid.map(|x| (f64::from(simd::erf(x as f32)) - (1.0 - erfc(x))).abs());
    assert!(error.fold(0.0, f64::max) < 4e-7);
}

#[test]
fn reductions_agree_with_plain_sums_at_odd_lengths() {
    for len in [0usize, 1, 7, 31, 32, 33, 130, 1000] {
        let x: Vec<f32> = (0..len)
            .map(|i| ((i * 37 + 11) % 101) as f32 - 50.0)
            .collect();
        let y: Vec<bf16> = x.iter().rev().map(|&x| bf16::narrow(x)).collect();
        assert_eq!(simd::sum(&x), x.iter().sum::<f32>());
        assert_eq!(simd::sum(&y), x.iter().sum::<f32>());
        assert_eq!(
            simd::sum_of_squares(&x),
            x.iter().map(|x| x * x).sum::<f32>()
        );
        let dot: f32 = x.iter().zip(x.iter().rev()).map(|(a, b)| a * b).sum();
        assert_eq!(simd::dot(&x, &y), dot);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(simd::max(&x), max);
    }
}
