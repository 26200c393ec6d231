//! Calls of what moves parameters along directions, of tangents, and of rows before sequences.

use memfit::graph::op::attention_tangent::AttentionTangent;
use memfit::graph::op::direction::{Descend, Direction, Draw, FirstOrder, Perturb, Rule, Slope};
use memfit::graph::op::linear_cross_entropy::LinearCrossEntropyTangent;
use memfit::graph::op::norm_tangent::{LayerNormTangent, RmsNormTangent};
use memfit::graph::op::optimizer::galore::{Apply, Direction as LowStep, Low, Project};
use memfit::graph::op::optimizer::lsp::{AdamStep, ApplyProjected, Renew, TakeStep};
use memfit::graph::op::optimizer::{
    AdamW8Bit, Began, DirectionSum, Factorization, MaskedAdamW, Refresh, Threshold,
};
use memfit::graph::op::prepend::{Prepend, PrependBackward, Trim};
use memfit::graph::op::sparse::SparseProject;
use memfit::graph::tensor::{DType, Type};

use super::{Fill, Near, Sample};

const SHAPE: [u64; 2] = [7, 83];

pub fn directions(all: &mut Vec<Sample>, dtype: DType) {
    let f32 = DType::F32;
    for zeroed in [0.0, 0.4] {
        let direction = Direction { zeroed };
        let at = Type::new(&SHAPE, dtype);
        all.push(Sample::new(Draw { at, direction }, Near::Exact));
        for (slopes, in_place) in [(0, true), (1, false), (3, true)] {
            let op = Perturb {
                by: 1e-2,
                draw: 2,
                slopes,
                direction,
                in_place,
            };
            let mut sample = Sample::new(op, Near::Exact).normal(&SHAPE, dtype);
            for _ in 0..slopes {
                sample = sample.normal(&[1], f32);
            }
            all.push(sample);
        }
        let momentum = Rule::Momentum { keep: 0.9 };
        let adam = Rule::Adam {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-6,
        };
        for rule in [Rule::Sgd, Rule::Sign, Rule::Conservative, momentum, adam] {
            for (slopes, master, shape) in [(1, false, &SHAPE[..]), (4, true, &SHAPE[..1])] {
                let op = Descend {
                    slopes,
                    rule,
                    decay: 0.1,
                    direction,
                    master,
                };
                let mut sample = Sample::new(op, Near::Exact);
                for _ in 0..slopes + rule.losses() {
                    sample = sample.normal(&[1], f32);
                }
                all.push(sample.moved(shape, dtype, master, rule.states()));
            }
            if !matches!(rule, Rule::Sign | Rule::Conservative) {
                let op = FirstOrder {
                    rule,
                    decay: 0.1,
                    factor: 0.5,
                    master: zeroed == 0.0,
                };
                let master = op.master;
                let sample = Sample::new(op, Near::Exact).normal(&SHAPE, dtype);
                all.push(sample.moved(&SHAPE, dtype, master, rule.states()));
            }
        }
    }
    let sample = Sample::new(Slope { distance: 0.02 }, Near::Exact);
    all.push(sample.normal(&[1], f32).normal(&[1], f32));
}

impl Sample {
    /// With a parameter and what is kept for it.
    fn moved(mut self, shape: &[u64], dtype: DType, master: bool, states: usize) -> Sample {
        self = self.normal(shape, dtype);
        if master {
            self = self.normal(shape, DType::F32);
        }
        for _ in 0..states {
            self = self.with(shape, dtype, Fill::Positive(0.5));
        }
        self
    }
}

pub fn steps(all: &mut Vec<Sample>, dtype: DType) {
    let f32 = DType::F32;
    let op = AdamStep {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        guard: false,
    };
    let sample = Sample::new(op, Near::Exact).normal(&SHAPE, dtype);
    let state = || Fill::Positive(0.5);
    all.push(sample.with(&SHAPE, f32, state()).with(&SHAPE, f32, state()));
    for master in [false, true] {
        let op = TakeStep {
            decay: 0.1,
            master,
            guard: false,
        };
        let sample = Sample::new(op, Near::Exact).normal(&SHAPE, f32);
        all.push(sample.moved(&SHAPE, dtype, master, 0));
    }
}

pub fn low_rank(all: &mut Vec<Sample>, dtype: DType) {
    for shape in [[40, 24], [24, 70]] {
        let at = Type::new(&shape, dtype);
        let low = Low::of(&at, 5);
        let (projector, projected) = (low.projector(dtype), low.projected());
        let sample = Sample::new(Project, Near::Sums).normal(&shape, dtype);
        all.push(sample.normal(&projector.shape, dtype));
        for bytewise in [false, true] {
            let op = LowStep {
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                bytewise,
                guard: false,
            };
            let mut sample = Sample::new(op, Near::Exact).normal(&projected.shape, DType::F32);
            let mut states = vec![projected.clone(); 2];
            if bytewise {
                states = AdamW8Bit::states(&projected).map(|(_, at)| at).to_vec();
            }
            for at in states {
                let fill = match at.dtype {
                    DType::U8 => Fill::Below(256),
                    _ => Fill::Positive(0.1),
                };
                sample = sample.with(&at.shape, at.dtype, fill);
            }
            all.push(sample);
        }
        for master in [false, true] {
            let op = Apply {
                scale: 0.25,
                decay: 0.1,
                master,
                guard: false,
            };
            let sample = Sample::new(op, Near::Sums).normal(&projected.shape, DType::F32);
            let sample = sample.normal(&projector.shape, dtype);
            all.push(sample.moved(&shape, dtype, master, 0));
        }
    }
}

pub fn rows(all: &mut Vec<Sample>, dtype: DType) {
    let batch = 3;
    let sample = Sample::new(Prepend { batch }, Near::Exact).normal(&[2, 13], dtype);
    all.push(sample.normal(&[15, 13], dtype));
    for (format, accumulate) in [(dtype, false), (DType::F32, true)] {
        let op = PrependBackward {
            batch,
            rows: 2,
            format,
            accumulate,
        };
        let sample = Sample::new(op, Near::Exact).normal(&[21, 13], dtype);
        all.push(match accumulate {
            true => sample.normal(&[2, 13], format),
            false => sample,
        });
    }
    let sample = Sample::new(Trim { batch, rows: 2 }, Near::Exact);
    all.push(sample.normal(&[21, 13], dtype));
}

pub fn tangents(all: &mut Vec<Sample>, dtype: DType) {
    let (f32, u32) = (DType::F32, DType::U32);
    for (rows, columns) in [(9, 33), (3, 1283)] {
        let (x, w) = ([rows, columns], [columns]);
        let sample = Sample::new(LayerNormTangent, Near::Sums).normal(&x, dtype);
        let sample = sample.normal(&w, dtype).normal(&w, dtype);
        let sample = sample.normal(&x, dtype).normal(&w, dtype);
        all.push(sample.with(&[rows, 2], f32, Fill::Positive(1.0)));
        for unit_offset in [false, true] {
            let op = RmsNormTangent {
                unit_offset,
                width: columns,
            };
            let sample = Sample::new(op, Near::Sums)
                .normal(&x, dtype)
                .normal(&w, dtype);
            let sample = sample.normal(&x, dtype).normal(&w, dtype);
            all.push(sample.with(&[rows, 1], f32, Fill::Positive(1.0)));
        }
    }
    for (input, weight) in [(true, true), (false, true), (true, false)] {
        let op = LinearCrossEntropyTangent {
            rows: 4,
            softcap: Some(3.0),
            input,
            weight,
        };
        let (x, w) = ([13, 20], [37, 20]);
        let sample = Sample::new(op, Near::Within(1e-3)).normal(&x, dtype);
        let sample = sample
            .with(&w, dtype, Fill::Normal(0.3))
            .with(&[13], u32, Fill::Below(37));
        let scale = Fill::Bytes(
            [0.125f32, 64.0]
                .iter()
                .flat_map(|x| x.to_ne_bytes())
                .collect(),
        );
        let mut sample = sample.with(&[2], f32, scale);
        if input {
            sample = sample.normal(&x, dtype);
        }
        if weight {
            sample = sample.normal(&w, dtype);
        }
        all.push(sample);
    }
}

pub fn masked(all: &mut Vec<Sample>, dtype: DType) {
    let f32 = DType::F32;
    let adam = Began {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        since: 1,
    };
    let state = || Fill::Positive(0.5);
    for moments in [false, true] {
        let op = DirectionSum {
            adam,
            moments,
            guard: false,
        };
        let mut sample = Sample::new(op, Near::Sums).normal(&SHAPE, dtype);
        if moments {
            sample = sample.with(&SHAPE, f32, state()).with(&SHAPE, f32, state());
        }
        all.push(sample);
    }
    for (tensors, keep) in [(1, 1), (3, 200)] {
        let op = Threshold {
            adam,
            tensors,
            keep,
            guard: false,
        };
        let mut sample = Sample::new(op, Near::Exact);
        for _ in 0..tensors {
            sample = sample.normal(&SHAPE, dtype);
            sample = sample.with(&SHAPE, f32, state()).with(&SHAPE, f32, state());
        }
        all.push(sample);
    }
    for mask in [false, true] {
        let op = MaskedAdamW {
            adam,
            decay: 0.1,
            mask,
            guard: false,
        };
        let sample = Sample::new(op, Near::Exact)
            .normal(&SHAPE, dtype)
            .normal(&SHAPE, dtype);
        let sample = sample.with(&SHAPE, f32, state()).with(&SHAPE, f32, state());
        let threshold = [0.75f32, 0.1]
            .iter()
            .flat_map(|x| x.to_ne_bytes())
            .collect();
        all.push(match mask {
            true => sample.with(&[2], f32, Fill::Bytes(threshold)),
            false => sample,
        });
    }
}

pub fn attention(all: &mut Vec<Sample>, dtype: DType) {
    for shape in super::attention::shapes() {
        let s = &shape;
        let q = [s.batch * s.seq, s.heads * s.head_dim];
        let k = [s.batch * s.keys(), s.kv_heads * s.head_dim];
        let op = AttentionTangent {
            shape: shape.clone(),
        };
        let mut sample = Sample::new(op, Near::Within(2e-5));
        for at in [&q, &k, &k, &q, &q, &k, &k] {
            sample = sample.normal(at, dtype);
        }
        all.push(sample);
    }
}

/// Values of a sparse matrix, and columns of which those of a row differ.
fn sparse(sample: Sample, rows: u64, width: u64, per_row: u64, dtype: DType) -> Sample {
    let column = |row: u64, k: u64| ((row * 5 + k * (width / per_row).max(1)) % width) as u16;
    let columns = (0..rows).flat_map(|row| (0..per_row).map(move |k| column(row, k)));
    let columns = columns.flat_map(u16::to_ne_bytes).collect();
    let sample = sample.normal(&[rows, per_row], dtype);
    sample.with(&[rows, per_row], DType::U16, Fill::Bytes(columns))
}

pub fn sparse_matrices(all: &mut Vec<Sample>, dtype: DType) {
    for (rows, n, width, per_row) in [(3, 20, 7, 2), (45, 33, 600, 4)] {
        let sample = Sample::new(SparseProject { width }, Near::Exact);
        let sample = sample.normal(&[rows, n], dtype);
        all.push(sparse(sample, n, width, per_row, dtype));
    }
    for (master, guard, width) in [(false, false, 40), (true, true, 4000)] {
        let op = ApplyProjected {
            decay: 0.1,
            master,
            guard,
        };
        let (m, n, f32) = (19, 50, DType::F32);
        let sample = Sample::new(op, Near::Exact).with(&[width, width], f32, Fill::Normal(0.1));
        let sample = sparse(sample, m, width, 3, dtype);
        let sample = sparse(sample, n, width, 2, dtype);
        let sample = sample.moved(&[m, n], dtype, master, 0);
        all.push(match guard {
            true => sample.with(&[3], f32, Fill::Positive(1.0)),
            false => sample,
        });
    }
}

pub fn renewals(all: &mut Vec<Sample>, dtype: DType) {
    let (m, n, width, f32) = (45, 150, 20, DType::F32);
    // Never drawn; kept; left for new ones; drawn though the gradient says nothing.
    for (drawn, threshold, slope) in [
        (false, 1e-3, 1.0),
        (true, 10.0, 1.0),
        (true, 1e-3, 1.0),
        (false, 1e-3, 0.0),
    ] {
        let op = Renew {
            threshold,
            beta: 1e-4,
            fit: 3,
        };
        let sample = Sample::new(op, Near::Sums);
        let mut sample = sample.with(&[m, n], dtype, Fill::Normal(slope));
        sample = sparse(sample, m, width, 3, dtype);
        sample = sparse(sample, n, width, 3, dtype);
        if !drawn {
            for values in [1, 3] {
                sample.inputs[values].1 = Fill::Normal(0.0);
            }
        }
        let square = [width, width];
        let sample = sample.normal(&square, f32);
        all.push(sample.with(&square, f32, Fill::Positive(1.0)));
    }
}

pub fn refreshes(all: &mut Vec<Sample>, dtype: DType) {
    let randomized = |more, power| Factorization::Randomized { more, power };
    for (shape, factorization, drawn, finite) in [
        ([40, 24], Factorization::Exact, true, None),
        ([35, 70], Factorization::Exact, false, Some(true)),
        ([40, 24], randomized(3, 1), true, None),
        ([37, 70], randomized(4, 2), false, Some(true)),
        ([24, 40], Factorization::Exact, true, Some(false)),
        ([24, 40], randomized(2, 0), false, Some(false)),
    ] {
        let projector = Low::of(&Type::new(&shape, dtype), 5).projector(dtype);
        let guard = finite.is_some();
        // Directions turn by what is left of sums in another order, over the distance of their values.
        let op = Refresh {
            factorization,
            guard,
        };
        let sample = Sample::new(op, Near::Within(2e-4)).normal(&shape, dtype);
        let old = Fill::Normal(if drawn { 0.2 } else { 0.0 });
        let sample = sample.with(&projector.shape, dtype, old);
        all.push(match finite {
            Some(finite) => sample.with(&[3], DType::F32, super::update::guard(finite)),
            None => sample,
        });
    }
}
