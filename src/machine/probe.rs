//! The probe: a fixed matrix product and a fixed copy, timed at calibration and again beside what is measured later.
//!
//! Machines slow down and speed up with heat, neighbours and other programs. The compute in a time is divided by the ratio of the probe's
//! time now to its time at calibration before it is compared, products by that of the product; the raw time is always given beside it.

use std::hint::black_box;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::graph::op::Work;
use crate::graph::op::gemm::{Mat, matmul};
use crate::spec::device;
use crate::spec::units::Seconds;

/// Side of the product, and how often it is repeated.
const SIDE: usize = 384;
const TIMES: usize = 4;

/// Bytes of the copy: more than a core's own caches hold.
const COPIED: usize = 8 << 20;

/// Readings that are not counted before a mean: those after a step find none of the probe in the caches, and say what the step used.
const WARM: usize = 3;

/// The most a ratio may move during a measurement.
pub const STEADY: f64 = 0.20;

/// The probe's operands and the threads it runs on.
pub struct Probe {
    pool: rayon::ThreadPool,
    operands: [Vec<f32>; 3],
    copied: [Vec<u8>; 2],
}

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The matrix product.
    pub gemm: f64,
    /// The copy.
    pub copy: f64,
}

impl Probe {
    /// A probe on `threads` threads.
    ///
    /// # Errors
    /// Where the threads are refused.
    pub fn new(threads: u32) -> Result<Probe> {
        let pool = pool(threads)?;
        let operand = |seed: usize| {
            let value = move |i: usize| ((i * 31 + seed) % 17) as f32 - 8.0;
            (0..SIDE * SIDE).map(value).collect()
        };
        Ok(Probe {
            pool,
            operands: [operand(1), operand(2), vec![0.0; SIDE * SIDE]],
            copied: [vec![1; COPIED], vec![0; COPIED]],
        })
    }

    /// Times both once.
    pub fn read(&mut self) -> Reading {
        let [a, b, c] = &mut self.operands;
        let begin = Instant::now();
        self.pool.install(|| {
            for _ in 0..TIMES {
                let (a, b) = (Mat::new(a, SIDE, SIDE), Mat::new(b, SIDE, SIDE));
                matmul(black_box(&mut c[..]), SIDE, a, b, false, &mut []);
            }
        });
        let gemm = begin.elapsed().as_secs_f64();
        let [from, to] = &mut self.copied;
        let begin = Instant::now();
        black_box(&mut to[..]).copy_from_slice(black_box(&from[..]));
        let copy = begin.elapsed().as_secs_f64();
        Reading { gemm, copy }
    }

    /// The lower quartile of `times` readings: what the machine does when nobody disturbs it.
    pub fn settled(&mut self, times: usize) -> Reading {
        let readings: Vec<Reading> = (0..times.max(1)).map(|_| self.read()).collect();
        Reading {
            gemm: quartile(readings.iter().map(|r| r.gemm).collect()),
            copy: quartile(readings.iter().map(|r| r.copy).collect()),
        }
    }

    /// The mean of `times` readings once the probe is back in the caches: what happens to everything that runs now.
    pub fn mean(&mut self, times: usize) -> Reading {
        let times = times.max(1);
        (0..WARM).for_each(|_| _ = self.read());
        let readings: Vec<Reading> = (0..times).map(|_| self.read()).collect();
        let mean = |of: fn(&Reading) -> f64| readings.iter().map(of).sum::<f64>() / times as f64;
        Reading {
            gemm: mean(|r| r.gemm),
            copy: mean(|r| r.copy),
        }
    }
}

/// Time of the probe over its time at calibration: how much slower this machine is now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// For matrix products.
    pub product: f64,
    /// For everything else, which is arithmetic as much as it is copies.
    pub rest: f64,
}

impl Ratio {
    /// As fast as at calibration.
    pub const ONE: Ratio = Ratio {
        product: 1.0,
        rest: 1.0,
    };

    /// For `work`.
    pub fn of(self, work: Work) -> f64 {
        match work.matmul {
            0 => self.rest,
            _ => self.product,
        }
    }

    /// For a time of which `products` is the share of matrix products.
    pub fn mixed(self, products: f64) -> f64 {
        1.0 / (products / self.product + (1.0 - products) / self.rest)
    }

    /// Half way to `other`.
    pub fn middle(self, other: Ratio) -> Ratio {
        Ratio {
            product: (self.product + other.product) / 2.0,
            rest: (self.rest + other.rest) / 2.0,
        }
    }
}

impl Reading {
    /// How much slower than `reference` this machine is now, for compute on all threads or on one `fewer`.
    pub fn ratio(&self, reference: &device::Probe, fewer: bool) -> Ratio {
        let product = match (fewer, reference.fewer) {
            (true, Some(fewer)) => fewer,
            _ => reference.gemm,
        };
        let product = self.gemm / product.0;
        Ratio {
            product,
            rest: (product * self.copy / reference.copy.0).sqrt(),
        }
    }
}

/// The readings of calibration as a device file keeps them.
pub(super) fn reference(all: Reading, fewer: Reading) -> device::Probe {
    device::Probe {
        gemm: Seconds(all.gemm),
        fewer: Some(Seconds(fewer.gemm)),
        copy: Seconds(all.copy.min(fewer.copy)),
    }
}

/// A pool of `threads`.
pub(super) fn pool(threads: u32) -> Result<rayon::ThreadPool> {
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1) as usize)
        .build();
    built.map_err(|e| Error::value("threads", threads, e.to_string(), "use fewer threads"))
}

/// The value a quarter of the way up; zero of nothing.
pub(super) fn quartile(values: Vec<f64>) -> f64 {
    nth(values, 0.25)
}

/// The middle value; zero of nothing.
pub(super) fn median(values: Vec<f64>) -> f64 {
    nth(values, 0.5)
}

fn nth(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values.get(at).copied().unwrap_or(0.0)
}
