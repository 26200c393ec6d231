//! The draws of a step and the factor of each.

use crate::graph::op::View;

/// Most draws of a step.
pub const MOST: usize = 64;

/// Draws and their factors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draws {
    all: [(u32, f32); MOST],
    count: usize,
}

impl Draws {
    /// One draw.
    pub(super) fn one(draw: u32, factor: f64) -> Draws {
        let mut all = [(0, 0.0); MOST];
        all[0] = (draw, factor as f32);
        Draws { all, count: 1 }
    }

    /// A draw for each slope, with `factor(slope)` over their number.
    pub(super) fn mean(slopes: &[View], factor: impl Fn(f64) -> f64) -> Draws {
        let mut all = [(0, 0.0); MOST];
        for (draw, (place, slope)) in all.iter_mut().zip(slopes).enumerate() {
            let slope = f64::from(slope.of::<f32>()[0]);
            *place = (draw as u32, (factor(slope) / slopes.len() as f64) as f32);
        }
        Draws {
            all,
            count: slopes.len().min(MOST),
        }
    }

    /// The draws with their factors.
    pub(super) fn all(&self) -> &[(u32, f32)] {
        &self.all[..self.count]
    }
}
