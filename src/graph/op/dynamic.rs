//! Numbers in one byte: the dynamic maps of 8-bit optimizers and of absmaxes that are quantized again.

use std::sync::LazyLock;

/// Entries of a map, and exponents it has.
const ENTRIES: usize = 256;
const EXPONENTS: usize = 7;

/// A sorted map from codes to numbers of at most 1 (Dettmers 2016, arXiv:1511.04561; Dettmers et al. 2022, arXiv:2110.02861,
/// section 2.1): each power of ten from 1e-6 to 1 is cut into twice as many equal parts as the one below.
///
/// The two maps are constants: on a GPU they lie in each thread block's shared memory, and count as no state.
#[derive(Debug)]
pub struct Map {
    /// The number of each code, ascending.
    pub values: [f32; ENTRIES],
    /// What lies halfway to the next number.
    middles: [f32; ENTRIES],
}

/// For numbers of both signs.
pub static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
/// For numbers that are not negative.
pub static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

impl Map {
    /// The published construction; in f32, as bitsandbytes has it.
    fn new(signed: bool) -> Map {
        let mut values = [0.0f32; ENTRIES];
        let mut count = 0;
        let mut add = |value: f32| {
            values[count] = value;
            count += 1;
        };
        for exponent in 0..EXPONENTS {
            let parts = 1 << (exponent + usize::from(!signed));
            let power = 10f64.powi(exponent as i32 - (EXPONENTS as i32 - 1)) as f32;
            for part in 0..parts {
                let middle = (boundary(part, parts) + boundary(part + 1, parts)) / 2.0;
                add(power * middle);
                if signed {
                    add(-power * middle);
                }
            }
        }
        add(0.0);
        add(1.0);
        assert_eq!(count, ENTRIES, "each code has a number");
        values.sort_by(f32::total_cmp);
        let next = |i: usize| values.get(i + 1).copied().unwrap_or(f32::INFINITY);
        Map {
            values,
            middles: std::array::from_fn(|i| (values[i] + next(i)) * 0.5),
        }
    }

    /// The code of the nearest number, by bisection; the lower of two as near.
    #[inline(always)]
    pub fn code(&self, value: f32) -> u8 {
        let mut code = 0;
        let mut half = ENTRIES / 2;
        while half > 0 {
            code += half * usize::from(value > self.middles[code + half - 1]);
            half /= 2;
        }
        code as u8
    }
}

/// Boundary `at` of `parts` equal parts of 0.1..1, counted from the nearer end and rounded once as PyTorch's `linspace` is.
fn boundary(at: usize, parts: usize) -> f32 {
    let step = (1.0f32 - 0.1) / parts as f32;
    match at < parts.div_ceil(2) {
        true => step.mul_add(at as f32, 0.1),
        false => (-step).mul_add((parts - at) as f32, 1.0),
    }
}
