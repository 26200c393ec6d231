//! The tangent of each op alone: against differences, in 16 bits, and on any number of threads.

use std::sync::Arc;

use memfit::graph::op::Op;
use memfit::graph::op::activation::{Act, Gated};
use memfit::graph::op::attention::{Attention, AttentionShape};
use memfit::graph::op::cross_entropy::{CrossEntropy, IGNORED};
use memfit::graph::op::dropout::Dropout;
use memfit::graph::op::elementwise::{Add, Sum, Zero};
use memfit::graph::op::embedding::{Embedding, PositionEmbedding};
use memfit::graph::op::flash::FlashAttention;
use memfit::graph::op::linear_cross_entropy::LinearCrossEntropy;
use memfit::graph::op::matmul::{Linear, LinearInputGradient};
use memfit::graph::op::moe::{Combine, Gather, GroupedLinear, Route};
use memfit::graph::op::norm::{LayerNorm, RmsNorm};
use memfit::graph::tangent::{Tangents, push_forward};
use memfit::graph::tensor::{DType, Role, Type};
use memfit::graph::{Phase, Spot, Step};
use memfit::spec::job::Place;
use memfit::spec::model::{Activation, RotaryScaling};

use crate::bench::{bytes_of, distance, floats, integers, rounded, values};
use crate::reference::Evaluator;
use crate::{ops_attention, ops_rope};

/// A value of an input.
#[derive(Clone)]
enum Value {
    /// Moves along a normal direction.
    Moves(Vec<f32>),
    /// Does not, and is f32.
    Stays(Vec<f32>),
    Ids(Vec<u32>),
}
use Value::{Ids, Moves, Stays};

/// An op and its inputs.
#[derive(Clone)]
struct Case {
    op: Arc<dyn Op>,
    inputs: Vec<(Vec<u64>, Value)>,
}

/// An op whose inputs all move from normal values.
fn moving(op: impl Op + 'static, shapes: &[&[u64]]) -> Case {
    let input = |(index, shape): (usize, &&[u64])| {
        let count = shape.iter().product::<u64>() as usize;
        (shape.to_vec(), Moves(values(index as u64, count, 1.0)))
    };
    Case {
        op: Arc::new(op),
        inputs: shapes.iter().enumerate().map(input).collect(),
    }
}

impl Case {
    fn and(mut self, shape: &[u64], value: Value) -> Case {
        self.inputs.push((shape.to_vec(), value));
        self
    }

    /// Which inputs can move.
    fn movable(&self) -> Vec<usize> {
        let moves = |&i: &usize| matches!(self.inputs[i].1, Moves(_));
        (0..self.inputs.len()).filter(moves).collect()
    }

    /// Output 0 with inputs `moved` a step of `by` along their directions, and its tangent there.
    fn run(&self, dtype: DType, moved: &[usize], by: f32) -> (Vec<f32>, Vec<f32>) {
        let (mut step, mut tangents) = (Step::default(), Tangents::default());
        let (mut inputs, mut fill) = (Vec::new(), Vec::new());
        for (index, (shape, value)) in self.inputs.iter().enumerate() {
            let (format, bytes) = match value {
                Ids(ids) => (DType::U32, bytemuck::cast_slice(ids).to_vec()),
                Stays(values) => (DType::F32, bytes_of(values, DType::F32)),
                Moves(start) => {
                    let along = values(50 + index as u64, start.len(), 1.0);
                    // Both formats move along the same direction.
                    let along = rounded(&along, DType::Bf16);
                    let at = Type::new(shape, dtype);
                    if moved.contains(&index) {
                        let name = format!("tangent{index}");
                        let seed = step.persistent(&name, at, Place::Gpu, Role::Temporary);
                        fill.push((seed, bytes_of(&along, dtype)));
                    }
                    let by = if moved.contains(&index) { by } else { 0.0 };
                    let there = start.iter().zip(&along).map(|(x, v)| x + by * v);
                    (dtype, bytes_of(&there.collect::<Vec<_>>(), dtype))
                }
            };
            let at = Type::new(shape, format);
            let id = step.persistent(&format!("input{index}"), at, Place::Gpu, Role::Input);
            if moved.contains(&index) {
                tangents.seed(id, fill[fill.len() - 1].0);
            }
            inputs.push(id);
            fill.push((id, bytes));
        }
        let spot = Spot::compute(Phase::Forward, "test", "op");
        let made = step.emit(self.op.clone(), &inputs, spot, Role::Activation);
        let made = made.unwrap()[0];
        let tangent = push_forward(&mut step, tangents).unwrap().of(made).unwrap();
        assert_eq!(step.type_of(tangent), step.type_of(made));
        let (nodes, format) = (step.nodes.len(), step.type_of(made).dtype);
        let mut evaluator = Evaluator::new(step);
        for (id, bytes) in fill {
            evaluator.raw(id).copy_from_slice(&bytes);
        }
        evaluator.run(0..nodes).unwrap();
        let mut read = |id| floats(evaluator.raw(id), format);
        (read(made), read(tangent))
    }

    /// Whichever inputs move, the tangent is the slope of the output along their directions.
    fn agrees_with_differences(&self) {
        const BY: f32 = 4e-3;
        let movable = self.movable();
        for mask in 1..1 << movable.len() {
            let chosen = movable.iter().enumerate();
            let moved: Vec<usize> = chosen
                .filter(|(bit, _)| mask >> bit & 1 == 1)
                .map(|(_, &input)| input)
                .collect();
            let tangent = self.run(DType::F32, &moved, 0.0).1;
            let at = |by: f32| self.run(DType::F32, &moved, by).0;
            let ends = at(BY).into_iter().zip(at(-BY));
            let slope: Vec<f32> = ends.map(|(a, b)| (a - b) / (2.0 * BY)).collect();
            let error = distance(&tangent, &slope);
            println!("{:?} along {moved:?}: {error:.1e}", self.op);
            assert!(error < 2e-3, "{:?} along {moved:?}: {error:e}", self.op);
        }
    }

    /// The same inputs, rounded to bf16.
    fn rounded(&self) -> Case {
        let mut case = self.clone();
        for (_, value) in &mut case.inputs {
            if let Moves(values) = value {
                *values = rounded(values, DType::Bf16);
            }
        }
        case
    }
}

/// Attention of each feature, and of several tiles of keys.
fn attentions() -> Vec<Case> {
    let mut shapes = ops_attention::shapes(19);
    let all = shapes[shapes.len() - 1].clone();
    shapes.push(AttentionShape {
        dropout: 0.3,
        ..all.clone()
    });
    shapes.push(AttentionShape {
        seq: 330,
        window: Some(250),
        dropout: 0.1,
        ..all
    });
    let case = |shape: AttentionShape| {
        let rows = shape.batch * shape.seq;
        let [q, kv] = [shape.heads, shape.kv_heads].map(|h| [rows, h * shape.head_dim]);
        let flash = FlashAttention {
            shape: shape.clone(),
        };
        let inputs: [&[u64]; 3] = [&q, &kv, &kv];
        [moving(Attention { shape }, &inputs), moving(flash, &inputs)]
    };
    shapes.into_iter().flat_map(case).collect()
}

fn pointwise() -> Vec<Case> {
    let kinds = [
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
    ];
    let (x, w): (&[u64], &[u64]) = (&[5, 12], &[12]);
    let mut cases = vec![
        moving(Add, &[x, x]),
        moving(Sum, &[x, x]),
        moving(LayerNorm { eps: 1e-5 }, &[x, w, w]),
    ];
    for kind in kinds {
        cases.push(moving(Act { kind }, &[x]));
        cases.push(moving(Gated { kind }, &[x, x]));
    }
    for (width, unit_offset) in [(12, false), (4, true)] {
        let op = RmsNorm {
            eps: 1e-6,
            unit_offset,
            width,
        };
        cases.push(moving(op, &[x, &[width]]));
    }
    for in_place in [false, true] {
        let rate = 0.4;
        cases.push(moving(Dropout { rate, in_place }, &[x]));
    }
    cases.push(moving(
        ops_rope::rope(2, 3, 2, 6, 4, RotaryScaling::None),
        &[&[6, 12]],
    ));
    cases
}

fn products() -> Vec<Case> {
    let table = moving(Embedding { scale: 3.0 }, &[&[11, 6]]);
    let rows = PositionEmbedding { seq: 3, offset: 2 };
    // Slots 0 to 9 of five tokens, sorted by some expert.
    let order = Ids(vec![3, 4, 9, 0, 1, 2, 5, 6, 7, 8]);
    let experts = moving(GroupedLinear, &[&[10, 4], &[3, 5, 4]]);
    vec![
        moving(Linear { bias: false }, &[&[5, 7], &[6, 7]]),
        moving(Linear { bias: true }, &[&[5, 7], &[6, 7], &[6]]),
        table.and(&[5], Ids(integers(3, 5, 11))),
        moving(rows, &[&[6, 4], &[5, 4]]),
        moving(Gather, &[&[5, 4]]).and(&[10], order.clone()),
        experts.and(&[4], Ids(vec![0, 4, 4, 10])),
        moving(Combine, &[&[10, 4], &[5, 2]]).and(&[10], order),
    ]
}

fn losses() -> Vec<Case> {
    let targets = Ids(vec![4, IGNORED, 0, 8, 8, 2, 7]);
    let scale = Stays(vec![1.0 / 6.0, 8.0]);
    let (experts, top_k) = (4, 2);
    let mut cases = vec![moving(Route { experts, top_k }, &[&[9, 4]])];
    for softcap in [None, Some(2.0)] {
        let op = CrossEntropy {
            softcap,
            gradient: true,
        };
        cases.push(
            moving(op, &[&[7, 9]])
                .and(&[7], targets.clone())
                .and(&[2], scale.clone()),
        );
        for gradient in [false, true] {
            let op = LinearCrossEntropy {
                frozen: false,
                rows: 3,
                softcap,
                gradient,
                format: DType::F32,
            };
            cases.push(
                moving(op, &[&[7, 5], &[9, 5]])
                    .and(&[7], targets.clone())
                    .and(&[2], scale.clone()),
            );
        }
    }
    cases
}

fn cases() -> Vec<Case> {
    [attentions(), pointwise(), products(), losses()].concat()
}

#[test]
fn tangents_of_attention_agree_with_differences() {
    attentions().iter().for_each(Case::agrees_with_differences);
}

#[test]
fn tangents_of_pointwise_ops_and_norms_agree_with_differences() {
    pointwise().iter().for_each(Case::agrees_with_differences);
}

#[test]
fn tangents_of_products_agree_with_differences() {
    products().iter().for_each(Case::agrees_with_differences);
}

#[test]
fn tangents_of_losses_and_routes_agree_with_differences() {
    losses().iter().for_each(Case::agrees_with_differences);
}

#[test]
fn narrow_tangents_stay_near_wide_ones() {
    for case in cases() {
        if case.op.name() == "combine" {
            continue; // Its weights are always wide.
        }
        let (case, moved) = (case.rounded(), case.movable());
        let wanted = case.run(DType::F32, &moved, 0.0).1;
        let error = distance(&case.run(DType::Bf16, &moved, 0.0).1, &wanted);
        println!("{:?}: {error:.1e}", case.op);
        assert!(error < 2e-2, "{:?} is off by {error:e}", case.op);
    }
}

#[test]
fn tangents_do_not_depend_on_threads() {
    for case in cases() {
        let moved = case.movable();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let run = || case.run(DType::F32, &moved, 0.0).1;
            pool.build().unwrap().install(run)
        };
        let one = on(1);
        assert!(one == on(2) && one == on(3), "threads change {:?}", case.op);
    }
}

#[test]
fn ops_that_stand_in_no_forward_pass_say_so() {
    let mut step = Step::default();
    let at = Type::new(&[3, 3], DType::F32);
    let x = step.persistent("x", at.clone(), Place::Gpu, Role::Input);
    let spot = Spot::compute(Phase::Forward, "test", "op");
    step.emit(
        Arc::new(LinearInputGradient),
        &[x, x],
        spot,
        Role::Temporary,
    )
    .unwrap();
    let mut tangents = Tangents::default();
    tangents.seed(x, x);
    let error = push_forward(&mut step, tangents).err().unwrap().to_string();
    assert!(error.contains("linear_input_backward") && error.contains("no derivative"));
    let zero = Zero { at: at.clone() };
    assert!(zero.outputs(&[at]).is_err());
}
