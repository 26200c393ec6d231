//! The signed dynamic 8-bit code: an exponent of as many bits as it takes, the rest linear (Dettmers 2016, arXiv:1511.04561).

use std::sync::OnceLock;

/// Values of the 256 codes, ascending.
pub fn code() -> &'static [f32; 256] {
    static CODE: OnceLock<[f32; 256]> = OnceLock::new();
    CODE.get_or_init(made)
}

/// As `create_dynamic_map` of bitsandbytes makes them: for each of seven decades, twice the means as in the one before.
fn made() -> [f32; 256] {
    let mut values = Vec::with_capacity(256);
    for decade in 0..7 {
        let means = 1usize << decade;
        let power = 10f64.powi(decade - 6) as f32;
        for at in 0..means {
            let mean = (boundary(at, means) + boundary(at + 1, means)) / 2.0;
            values.extend([power * mean, -(power * mean)]);
        }
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    let mut code = [0.0; 256];
    code.copy_from_slice(&values);
    code
}

/// Point `at` of `parts` equal parts of 0.1 to 1, from the nearer end, as PyTorch's `linspace` rounds it.
fn boundary(at: usize, parts: usize) -> f32 {
    let step = (1.0f32 - 0.1) / parts as f32;
    match at < parts.div_ceil(2) {
        true => step.mul_add(at as f32, 0.1),
        false => (-step).mul_add((parts - at) as f32, 1.0),
    }
}

/// The code nearest to `x`; of two equally near ones the lower.
pub fn nearest(x: f32) -> u8 {
    let code = code();
    // The first pair whose middle is not below `x`.
    let (mut from, mut to) = (0, code.len() - 1);
    while from < to {
        let at = (from + to) / 2;
        match x > (code[at] + code[at + 1]) / 2.0 {
            true => from = at + 1,
            false => to = at,
        }
    }
    from as u8
}

/// The codes of values that share one absmax, as [`super::Format::quantize`] scales them; returns the absmax.
pub fn quantize(block: &[f32], whole: bool, into: &mut [u8]) -> f32 {
    let absmax = super::nf4::absmax(block, whole);
    for (&x, code) in block.iter().zip(into) {
        *code = nearest(super::nf4::scaled(x, absmax, whole));
    }
    absmax
}
