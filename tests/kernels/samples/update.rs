//! Calls of optimizers and of their guard.

use memfit::graph::op::optimizer::{Adafactor, AdamW, ClipScale, Lion, MicroAdam, Sgd, SquareSum};
use memfit::graph::tensor::{DType, Type};

use super::{FLOATS, Fill, Near, Sample};

const LEN: [u64; 1] = [1003];

/// A guard that scales, and one that says that gradients are not finite.
pub fn guard(finite: bool) -> Fill {
    let values = [0.5f32, f32::from(u8::from(finite)), 3.0];
    Fill::Bytes(values.iter().flat_map(|x| x.to_ne_bytes()).collect())
}

impl Sample {
    /// With gradient and parameter, master, states and a guard.
    fn updates(
        self,
        (gradient, parameter): (DType, DType),
        master: bool,
        states: &[DType],
        guarded: Option<bool>,
    ) -> Sample {
        let mut sample = self.normal(&LEN, gradient).normal(&LEN, parameter);
        if master {
            sample = sample.normal(&LEN, DType::F32);
        }
        for state in states {
            sample = sample.with(&LEN, *state, Fill::Positive(0.3));
        }
        match guarded {
            Some(finite) => sample.with(&[3], DType::F32, guard(finite)),
            None => sample,
        }
    }
}

pub fn updates(all: &mut Vec<Sample>) {
    let f32 = DType::F32;
    for gradient in FLOATS {
        for parameter in FLOATS {
            let both = (gradient, parameter);
            for (master, guarded) in [(false, None), (true, Some(true)), (false, Some(false))] {
                let guard = guarded.is_some();
                let op = AdamW {
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    decay: 0.1,
                    master,
                    guard,
                };
                all.push(Sample::new(op, Near::Exact).updates(both, master, &[f32; 2], guarded));
                for momentum in [0.0, 0.9] {
                    let op = Sgd {
                        momentum,
                        decay: 0.01,
                        nesterov: master,
                        master,
                        guard,
                    };
                    let states = if momentum == 0.0 { &[][..] } else { &[f32] };
                    let sample = Sample::new(op, Near::Exact);
                    all.push(sample.updates(both, master, states, guarded));
                }
                for momentum in [f32, DType::Bf16] {
                    let op = Lion {
                        beta1: 0.9,
                        beta2: 0.99,
                        decay: 0.1,
                        momentum,
                        master,
                        guard,
                    };
                    let sample = Sample::new(op, Near::Exact);
                    all.push(sample.updates(both, master, &[momentum], guarded));
                }
            }
        }
    }
}

pub fn guards(all: &mut Vec<Sample>) {
    for dtype in FLOATS {
        for len in [1, 1003, 70_000] {
            all.push(Sample::new(SquareSum, Near::Sums).normal(&[len], dtype));
        }
    }
    for (count, max_norm, loss_scale) in [
        (1, None, false),
        (9, Some(0.5), true),
        (17, Some(1e9), false),
    ] {
        let op = ClipScale {
            max_norm,
            loss_scale,
        };
        let mut sample = Sample::new(op, Near::Exact);
        for _ in 0..count {
            sample = sample.with(&[1], DType::F32, Fill::Positive(1.0));
        }
        if loss_scale {
            sample = sample.with(&[2], DType::F32, Fill::Positive(8.0));
        }
        all.push(sample);
    }
}

pub fn adafactor(all: &mut Vec<Sample>, dtype: DType) {
    for (shape, beta1, master) in [
        (&[1003][..], None, true),
        (&[37, 50], Some(0.9), false),
        (&[3, 20, 33], None, true),
    ] {
        for guarded in [None, Some(true)] {
            let op = Adafactor {
                eps: 1e-30,
                scale: guarded.map(|_| 1e-3),
                clip: 1.0,
                exponent: -0.8,
                beta1,
                decay: 0.1,
                master,
                guard: guarded.is_some(),
            };
            let states = op.states(&Type::new(shape, dtype));
            let mut sample = Sample::new(op, Near::Sums).normal(shape, dtype);
            sample = sample.normal(shape, dtype);
            if master {
                sample = sample.normal(shape, DType::F32);
            }
            for (_, at) in states {
                sample = sample.with(&at.shape, at.dtype, Fill::Positive(0.5));
            }
            all.push(match guarded {
                Some(finite) => sample.with(&[3], DType::F32, guard(finite)),
                None => sample,
            });
        }
    }
}

/// A window of which the places in each row and block are in their order and differ.
fn places(op: &MicroAdam, elements: u64, rows: u64) -> Vec<u8> {
    let block = u64::from(op.block).min(elements);
    let mut all = Vec::new();
    for row in 0..rows {
        for from in (0..elements).step_by(block as usize) {
            let length = block.min(elements - from);
            let kept = (length as f64 * op.density).ceil() as u64;
            let place = |k: u64| (k * length / kept + row % (length / kept).max(1)) as u16;
            all.extend((0..kept).map(place));
        }
    }
    all.into_iter().flat_map(u16::to_ne_bytes).collect()
}

pub fn microadam(all: &mut Vec<Sample>, gradient: DType) {
    for parameter in FLOATS {
        for (elements, block, quant, density, guarded, step) in [
            (7003, 3000, 64, 0.01, None, 3),
            (7001, 2500, 10, 0.3, Some(true), 23),
            (1003, 2500, 64, 0.05, Some(false), 23),
            (64, 64, 64, 1.0, None, 1),
        ] {
            let master = guarded.is_some();
            let op = MicroAdam {
                window: 10,
                density,
                block,
                quant,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                decay: 0.1,
                alpha: if master { 0.25 } else { 0.0 },
                master,
                guard: guarded.is_some(),
            };
            let at = Type::new(&[elements], parameter);
            let index = places(&op, elements, u64::from(op.window));
            let states = op.states(&at);
            let mut sample = Sample::new(op, Near::Exact).normal(&[elements], gradient);
            sample.scalars.step = step;
            sample = sample.normal(&[elements], parameter);
            if master {
                sample = sample.normal(&[elements], DType::F32);
            }
            for (name, at) in states {
                let fill = match name {
                    "index" => Fill::Bytes(index.clone()),
                    "error" => Fill::Below(256),
                    "low" => Fill::Normal(0.1),
                    "high" => Fill::Positive(0.5),
                    _ => Fill::Normal(1.0),
                };
                sample = sample.with(&at.shape, at.dtype, fill);
            }
            all.push(match guarded {
                Some(finite) => sample.with(&[3], DType::F32, guard(finite)),
                None => sample,
            });
        }
    }
}
