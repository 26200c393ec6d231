//! Random directions that take no memory: drawn from a counter where they are used, the same wherever the same parameter is moved.

mod descend;
mod draw;
mod draws;
mod first_order;
mod normal;
mod perturb;
mod slope;

pub use descend::{Descend, Rule};
pub use draw::Draw;
pub use draws::MOST;
pub use first_order::FirstOrder;
pub use normal::normals;
pub use perturb::Perturb;
pub use slope::Slope;

use super::kernel::{Argument, Launch, THREADS, input};
use super::simd::vectorized;
use crate::graph::random::Key;
use crate::graph::tensor::DType;

/// Elements worked on at a time, on the stack.
const BLOCK: usize = 512;
/// Elements one task works on at least.
const CHUNK: usize = 1 << 14;
/// Vector operations of one normal draw, about.
const DRAW: u64 = 40;

/// Most draws of a kernel.
const CUDA_DRAWS: usize = 16;

/// A launch of `direction.cu` with a thread for each two of `count` elements.
fn launch(entry: &'static str, format: DType, count: u64) -> Launch {
    Launch::new("direction", entry)
        .format("T", format)
        .define("RULE", "SGD")
        .define("GIVEN", 0u32)
        .blocks(count.div_ceil(2 * u64::from(THREADS)))
}

/// The slopes that are inputs `first..`, null behind the last, and their number; nothing where they are too many for a kernel.
fn slopes(first: usize, count: usize) -> Option<Vec<Argument>> {
    let slope = |i: usize| {
        if i < count {
            input(first + i)
        } else {
            Argument::Null
        }
    };
    let all = (0..CUDA_DRAWS).map(slope).chain([(count as u32).into()]);
    (count <= CUDA_DRAWS).then(|| all.collect())
}

/// Directions of one parameter: standard normal elements, of which some are zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Direction {
    /// Share of elements that are zero, in [0, 1); which ones is drawn anew in each step (Zhang et al. 2024, arXiv:2402.11592).
    pub zeroed: f64,
}

impl Direction {
    /// `into += weight · z` for each draw and its weight, where `into` starts at element `first` of the parameter.
    ///
    /// `key` is the parameter's in this step; each draw has a stream of its own.
    fn add(self, key: Key, draws: &[(u32, f32)], first: u64, into: &mut [f32]) {
        let mut z = [0.0f32; BLOCK];
        for &(draw, weight) in draws {
            let z = &mut z[..into.len()];
            self.fill(key.part(u64::from(draw)), first, z);
            axpy(weight, z, into);
        }
    }

    /// Elements `first..` of the direction of one draw.
    fn fill(self, key: Key, first: u64, z: &mut [f32]) {
        normals(key, first, z);
        if self.zeroed > 0.0 {
            let mask = key.part(u64::MAX);
            for (i, z) in z.iter_mut().enumerate() {
                if f64::from(mask.uniform(first + i as u64)) < self.zeroed {
                    *z = 0.0;
                }
            }
        }
    }
}

vectorized! {
    /// `into += weight · z`.
    fn axpy(weight: f32, z: &[f32], into: &mut [f32]) {
        for (into, z) in into.iter_mut().zip(z) {
            *into += weight * z;
        }
    }
}
