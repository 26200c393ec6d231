//! Mixtures of experts against a dense loop in candle, finite differences, and themselves on other numbers of threads.

use candle_core::{D, Tensor, Var};
use memfit::graph::op::moe::{Combine, Gather, GroupedLinear, Route};
use memfit::graph::tensor::{DType, TensorId};

use crate::bench::{Bench, assert_near, bytes_of, flat, floats, limit, rounded, values, var};

/// Sizes of a layer: tokens, hidden, inner, experts, experts per token.
type Sizes = (u64, u64, u64, u64, u64);

/// A layer of experts: route by logits, gather, up, down, combine.
struct Layer {
    bench: Bench,
    /// x, logits, up, down.
    inputs: [TensorId; 4],
    /// y, order, offsets, chosen.
    outputs: [TensorId; 4],
    sizes: Sizes,
}

impl Layer {
    fn new(sizes: Sizes, dtype: DType) -> Layer {
        let (tokens, hidden, inner, experts, top_k) = sizes;
        let mut bench = Bench::new();
        let x = bench.input(&[tokens, hidden], dtype);
        let logits = bench.input(&[tokens, experts], dtype);
        let up = bench.input(&[experts, inner, hidden], dtype);
        let down = bench.input(&[experts, hidden, inner], dtype);
        let route = bench.emit(Route { experts, top_k }, &[logits]);
        let rows = bench.emit(Gather, &[x, route[1]])[0];
        let rows = bench.emit(GroupedLinear, &[rows, up, route[2]])[0];
        let rows = bench.emit(GroupedLinear, &[rows, down, route[2]])[0];
        let y = bench.emit(Combine, &[rows, route[0], route[1]])[0];
        Layer {
            bench,
            inputs: [x, logits, up, down],
            outputs: [y, route[1], route[2], route[3]],
            sizes,
        }
    }

    /// Values of x, logits, up, down; the last expert is never chosen.
    fn values(&self) -> [Vec<f32>; 4] {
        let (tokens, hidden, inner, experts, _) = self.sizes;
        let draw = |seed, len: u64, scale| values(seed, len as usize, scale);
        let mut logits = draw(2, tokens * experts, 1.0);
        let last = logits.iter_mut().skip(experts as usize - 1);
        last.step_by(experts as usize).for_each(|l| *l = -50.0);
        [
            draw(1, tokens * hidden, 1.0),
            logits,
            draw(3, experts * inner * hidden, 0.3),
            draw(4, experts * hidden * inner, 0.3),
        ]
    }
}

/// Every expert on every token, weighted by what the chosen logits say.
fn dense(vars: &[Var; 4], (tokens, _, _, experts, top_k): Sizes) -> Tensor {
    let [x, logits, up, down] = vars;
    let (experts, top_k) = (experts as usize, top_k as usize);
    let mut masks = vec![0.0f32; tokens as usize * experts];
    let raw = flat(logits);
    for (row, mask) in raw.chunks(experts).zip(masks.chunks_mut(experts)) {
        let mut best: Vec<usize> = (0..experts).collect();
        best.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        best[..top_k].iter().for_each(|e| mask[*e] = 1.0);
    }
    let mask = Tensor::from_vec(masks, logits.shape(), logits.device()).unwrap();
    let p = (logits.exp().unwrap() * mask).unwrap();
    let p = p.broadcast_div(&p.sum_keepdim(D::Minus1).unwrap()).unwrap();
    let expert = |e: usize| {
        let (up, down) = (up.get(e).unwrap(), down.get(e).unwrap());
        let inner = x.matmul(&up.t().unwrap()).unwrap();
        let y = inner.matmul(&down.t().unwrap()).unwrap();
        y.broadcast_mul(&p.narrow(1, e, 1).unwrap()).unwrap()
    };
    (1..experts).fold(expert(0), |sum, e| (sum + expert(e)).unwrap())
}

#[test]
fn experts_agree_with_a_dense_loop_over_all_of_them() {
    for (sizes, dtype, format) in [
        ((129, 17, 9, 5, 2), DType::F32, DType::F32),
        ((7, 300, 5, 4, 2), DType::F32, DType::F32),
        ((65, 17, 33, 4, 3), DType::Bf16, DType::F32),
        ((65, 17, 33, 4, 3), DType::Bf16, DType::Bf16),
    ] {
        let mut layer = Layer::new(sizes, dtype);
        let y = layer.outputs[0];
        let dy = layer.bench.input(&[sizes.0, sizes.1], dtype);
        let inputs = layer.inputs;
        let gradients = layer.bench.differentiate(&inputs, Some(format), &[(y, dy)]);
        let wanted: Vec<_> = [y].into_iter().chain(gradients).collect();
        let (given, seed) = (layer.values(), values(9, (sizes.0 * sizes.1) as usize, 1.0));
        let made = layer.bench.run_alike(&wanted, |e| {
            for (id, values) in inputs.iter().zip(&given) {
                e.raw(*id).copy_from_slice(&bytes_of(values, dtype));
            }
            e.raw(dy).copy_from_slice(&bytes_of(&seed, dtype));
        });
        let shape = |id: TensorId| -> Vec<usize> {
            let at = layer.bench.step.type_of(id);
            at.shape.iter().map(|&n| n as usize).collect()
        };
        let vars = [0, 1, 2, 3].map(|i| var(&rounded(&given[i], dtype), &shape(inputs[i])));
        let dy = var(&rounded(&seed, dtype), &shape(dy));
        let want = dense(&vars, sizes);
        let grads = (&want * dy.as_tensor()).unwrap().sum_all().unwrap();
        let grads = grads.backward().unwrap();
        assert_near("y", &floats(&made[0], dtype), &flat(&want), limit(dtype));
        for (i, name) in ["dx", "dlogits", "dup", "ddown"].iter().enumerate() {
            let made_in = layer.bench.step.type_of(wanted[i + 1]).dtype;
            let got = floats(&made[i + 1], made_in);
            let want = flat(grads.get(&vars[i]).unwrap());
            // Rounded activations in between reach every gradient.
            assert_near(name, &got, &want, limit(dtype));
        }
    }
}

/// U32 bytes as indices.
fn indices(bytes: &[u8]) -> Vec<usize> {
    let word = |b: &[u8]| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize;
    bytes.chunks(4).map(word).collect()
}

#[test]
fn slots_are_sorted_by_expert_and_stay_in_order_within_one() {
    let layer = Layer::new((50, 4, 4, 6, 2), DType::F32);
    let given = layer.values();
    let made = layer.bench.run_alike(&layer.outputs[1..], |e| {
        for (id, values) in layer.inputs.iter().zip(&given) {
            e.set(*id, values);
        }
    });
    let [order, offsets, chosen] = [0, 1, 2].map(|i| indices(&made[i]));
    let mut want: Vec<usize> = (0..100).collect();
    want.sort_by_key(|&slot| chosen[slot]);
    assert_eq!(order, want);
    assert_eq!((offsets[0], offsets[6]), (0, 100));
    for expert in 0..6 {
        let slots = &order[offsets[expert]..offsets[expert + 1]];
        assert!(slots.iter().all(|&slot| chosen[slot] == expert));
    }
    assert_eq!(offsets[5], offsets[6], "nobody chooses the last expert");
}

#[test]
fn equal_and_senseless_logits_still_choose_different_experts() {
    for logit in [0.0, f32::NAN, f32::NEG_INFINITY] {
        let mut bench = Bench::new();
        let logits = bench.input(&[2, 4], DType::F32);
        let op = Route {
            experts: 4,
            top_k: 3,
        };
        let outputs = bench.emit(op, &[logits]);
        let made = bench.run(1, &outputs, |e| e.set(logits, &[logit; 8]));
        assert_eq!(indices(&made[3]), [0, 1, 2, 0, 1, 2]);
    }
}

#[test]
fn the_layer_has_the_slopes_its_gradients_claim() {
    let sizes = (5, 3, 4, 4, 2);
    let mut layer = Layer::new(sizes, DType::F32);
    let y = layer.outputs[0];
    let dy = layer.bench.input(&[5, 3], DType::F32);
    let (inputs, seed, given) = (layer.inputs, values(9, 15, 1.0), layer.values());
    let gradients = layer.bench.differentiate(&inputs, None, &[(y, dy)]);
    let wanted: Vec<_> = [y].into_iter().chain(gradients).collect();
    let eval = |given: &[Vec<f32>; 4]| {
        let made = layer.bench.run(1, &wanted, |e| {
            for (id, values) in inputs.iter().zip(given) {
                e.set(*id, values);
            }
            e.set(dy, &seed);
        });
        made.iter()
            .map(|m| floats(m, DType::F32))
            .collect::<Vec<_>>()
    };
    let loss = |given: &[Vec<f32>; 4]| -> f64 {
        let y = &eval(given)[0];
        y.iter().zip(&seed).map(|(y, s)| f64::from(y * s)).sum()
    };
    let claimed = eval(&given);
    for input in 0..4 {
        let slope = |i: usize| {
            let moved = |by: f32| {
                let mut given = given.clone();
                given[input][i] += by;
                loss(&given)
            };
            ((moved(1e-3) - moved(-1e-3)) / 2e-3) as f32
        };
        let slopes: Vec<f32> = (0..given[input].len()).map(slope).collect();
        assert_near("slope", &slopes, &claimed[input + 1], 5e-3);
    }
}

#[test]
fn a_second_use_of_expert_weights_adds_into_the_first_gradient() {
    let mut bench = Bench::new();
    let x = bench.input(&[6, 3], DType::F32);
    let logits = bench.input(&[6, 4], DType::F32);
    let weight = bench.input(&[4, 3, 3], DType::F32);
    let dy = bench.input(&[6, 3], DType::F32);
    let op = Route {
        experts: 4,
        top_k: 1,
    };
    let route = bench.emit(op, &[logits]);
    let rows = bench.emit(Gather, &[x, route[1]])[0];
    let rows = bench.emit(GroupedLinear, &[rows, weight, route[2]])[0];
    let rows = bench.emit(GroupedLinear, &[rows, weight, route[2]])[0];
    let y = bench.emit(Combine, &[rows, route[0], route[1]])[0];
    let gradient = bench.differentiate(&[weight], None, &[(y, dy)])[0];
    assert_eq!(bench.step.tensor(gradient).version, 1);
    let mut picks = values(2, 24, 1.0);
    picks.iter_mut().skip(2).step_by(4).for_each(|l| *l = -9.0);
    let made = bench.run_alike(&[gradient], |e| {
        e.set(x, &values(1, 18, 1.0));
        e.set(logits, &picks);
        e.set(weight, &values(3, 36, 1.0));
        e.set(dy, &values(4, 18, 1.0));
    });
    let [x, dy] = [1, 4].map(|seed| var(&values(seed, 18, 1.0), &[6, 3]));
    let (logits, weight) = (var(&picks, &[6, 4]), var(&values(3, 36, 1.0), &[4, 3, 3]));
    let vars = [x, logits, weight.clone(), weight.clone()];
    let loss = (dense(&vars, (6, 3, 3, 4, 1)) * dy.as_tensor()).unwrap();
    let grads = loss.sum_all().unwrap().backward().unwrap();
    let want = flat(grads.get(&weight).unwrap());
    assert_near("dweight", &floats(&made[0], DType::F32), &want, 1e-5);
}
