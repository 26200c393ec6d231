//! Losses against candle, finite differences and themselves on other numbers of threads.

use candle_core::{D, Device, Tensor};
use memfit::graph::op::cross_entropy::{CrossEntropy, IGNORED};
use memfit::graph::op::dropout::Dropout;
use memfit::graph::op::embedding::{Embedding, PositionEmbedding};
use memfit::graph::op::linear_cross_entropy::LinearCrossEntropy;
use memfit::graph::tensor::DType;

use crate::bench::{
    Bench, assert_near, bytes_of, flat, floats, integers, limit, rounded, values, var,
};

/// The mean loss of counted rows, in candle.
fn candle_loss(logits: &Tensor, targets: &[u32], softcap: Option<f64>) -> Tensor {
    let logits = match softcap {
        Some(cap) => ((logits / cap).unwrap().tanh().unwrap() * cap).unwrap(),
        None => logits.clone(),
    };
    let top = logits.max_keepdim(D::Minus1).unwrap().detach();
    let shifted = logits.broadcast_sub(&top).unwrap();
    let sum = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap();
    let logs = shifted.broadcast_sub(&sum.log().unwrap()).unwrap();
    let columns = logits.dim(1).unwrap();
    let mut picks = vec![0.0f32; targets.len() * columns];
    for (n, &t) in targets.iter().enumerate().filter(|(_, t)| **t != IGNORED) {
        picks[n * columns + t as usize] = -1.0;
    }
    let picks = Tensor::from_vec(picks, (targets.len(), columns), &Device::Cpu).unwrap();
    let counted = targets.iter().filter(|t| **t != IGNORED).count() as f64;
    ((logs * picks).unwrap().sum_all().unwrap() / counted).unwrap()
}

/// Targets of which some do not count.
fn targets(rows: usize, vocab: usize) -> (Vec<u32>, f32) {
    let mut targets = integers(5, rows, vocab as u64);
    targets.iter_mut().step_by(4).for_each(|t| *t = IGNORED);
    let counted = targets.iter().filter(|t| **t != IGNORED).count();
    (targets, 1.0 / counted as f32)
}

#[test]
fn cross_entropy_and_its_gradient_agree_with_candle() {
    for (dtype, softcap) in [
        (DType::F32, None),
        (DType::F32, Some(5.0)),
        (DType::Bf16, None),
        (DType::F16, Some(30.0)),
    ] {
        let (rows, vocab) = (7, 2051);
        let mut bench = Bench::new();
        let logits = bench.input(&[rows as u64, vocab as u64], dtype);
        let labels = bench.input(&[rows as u64], DType::U32);
        let scale = bench.input(&[2], DType::F32);
        let op = CrossEntropy {
            softcap,
            gradient: true,
        };
        let loss = bench.emit(op, &[logits, labels, scale])[0];
        let gradient = bench.differentiate(&[logits], None, &[])[0];
        let x = values(1, rows * vocab, 3.0);
        let (t, weight) = targets(rows, vocab);
        let made = bench.run_alike(&[loss, gradient], |e| {
            e.raw(logits).copy_from_slice(&bytes_of(&x, dtype));
            e.set(labels, &t);
            e.set(scale, &[weight, 128.0]);
        });
        let x = var(&rounded(&x, dtype), &[rows, vocab]);
        let oracle = candle_loss(&x, &t, softcap);
        let want = oracle.backward().unwrap();
        let want = flat(&(want.get(&x).unwrap() * 128.0).unwrap());
        assert_near("loss", &floats(&made[0], DType::F32), &flat(&oracle), 1e-5);
        assert_near("dlogits", &floats(&made[1], dtype), &want, limit(dtype));
    }
}

#[test]
fn evaluation_gives_the_same_loss_and_leaves_the_logits() {
    let loss = |gradient: bool| {
        let mut bench = Bench::new();
        let logits = bench.input(&[3, 33], DType::F32);
        let labels = bench.input(&[3], DType::U32);
        let scale = bench.input(&[2], DType::F32);
        let op = CrossEntropy {
            softcap: None,
            gradient,
        };
        let outputs = bench.emit(op, &[logits, labels, scale]);
        assert_eq!(outputs.len(), 1 + usize::from(gradient));
        bench.run(2, &[outputs[0], logits], |e| {
            e.set(logits, &values(1, 99, 2.0));
            e.set(labels, &[3u32, IGNORED, 32]);
            e.set(scale, &[0.5f32, 7.0]);
        })
    };
    assert_eq!(loss(false)[0], loss(true)[0]);
    let kept = floats(&loss(false)[1], DType::F32);
    assert_eq!(kept, values(1, 99, 2.0));
}

#[test]
fn cross_entropy_bears_impossible_tokens_and_tells_of_nonsense() {
    let run = |fill: &(dyn Fn(&mut [f32]) + Sync)| {
        let mut bench = Bench::new();
        let logits = bench.input(&[1, 1500], DType::F32);
        let labels = bench.input(&[1], DType::U32);
        let scale = bench.input(&[2], DType::F32);
        let op = CrossEntropy {
            softcap: None,
            gradient: true,
        };
        let outputs = bench.emit(op, &[logits, labels, scale]);
        let made = bench.run(1, &outputs, |e| {
            let mut x = vec![0.0f32; 1500];
            fill(&mut x);
            e.set(logits, &x);
            e.set(labels, &[1499u32]);
            e.set(scale, &[1.0f32, 1.0]);
        });
        (
            floats(&made[0], DType::F32)[0],
            floats(&made[1], DType::F32),
        )
    };
    // The whole first block impossible, two tokens left.
    let (loss, gradient) = run(&|x| x[..1498].fill(f32::NEG_INFINITY));
    assert!((loss - 2f32.ln()).abs() < 1e-6);
    assert_eq!(gradient[..1498], [0.0; 1498]);
    assert!((gradient[1498] - 0.5).abs() < 1e-6 && (gradient[1499] + 0.5).abs() < 1e-6);
    let (loss, _) = run(&|x| x[..1024].fill(f32::NAN));
    assert!(loss.is_nan());
    let (loss, _) = run(&|x| x[3] = f32::INFINITY);
    assert!(!loss.is_finite());
    let (loss, gradient) = run(&|x| x[1499] = 1e4);
    assert!(loss == 0.0 && gradient.iter().all(|g| *g == 0.0));
}

/// One LinearCrossEntropy: loss, dx, dweight from x [N, H] and weight [V, H].
fn linear_loss(
    (rows, hidden, vocab): (usize, usize, usize),
    dtype: DType,
    op: LinearCrossEntropy,
) -> (Vec<Vec<u8>>, Vec<f32>) {
    let format = op.format;
    let softcap = op.softcap;
    let mut bench = Bench::new();
    let x = bench.input(&[rows as u64, hidden as u64], dtype);
    let weight = bench.input(&[vocab as u64, hidden as u64], dtype);
    let labels = bench.input(&[rows as u64], DType::U32);
    let scale = bench.input(&[2], DType::F32);
    let loss = bench.emit(op, &[x, weight, labels, scale])[0];
    let mut wanted = vec![loss];
    wanted.extend(bench.differentiate(&[x, weight], None, &[]));
    let (xs, ws) = (
        values(1, rows * hidden, 1.0),
        values(2, vocab * hidden, 0.3),
    );
    let (t, counted) = targets(rows, vocab);
    let made = bench.run_alike(&wanted, |e| {
        e.raw(x).copy_from_slice(&bytes_of(&xs, dtype));
        e.raw(weight).copy_from_slice(&bytes_of(&ws, dtype));
        e.set(labels, &t);
        e.set(scale, &[counted, 64.0]);
    });
    let xs = var(&rounded(&xs, dtype), &[rows, hidden]);
    let ws = var(&rounded(&ws, dtype), &[vocab, hidden]);
    let oracle = candle_loss(&xs.matmul(&ws.t().unwrap()).unwrap(), &t, softcap);
    let want = oracle.backward().unwrap();
    let want = [want.get(&xs), want.get(&ws)].map(|g| flat(&(g.unwrap() * 64.0).unwrap()));
    assert_near("loss", &floats(&made[0], DType::F32), &flat(&oracle), 1e-5);
    assert_near("dx", &floats(&made[1], dtype), &want[0], limit(dtype));
    assert_near(
        "dweight",
        &floats(&made[2], format),
        &want[1],
        limit(format),
    );
    (made, want[1].clone())
}

#[test]
fn linear_cross_entropy_agrees_with_candle_in_chunks_of_any_size() {
    for (dtype, format, rows, softcap) in [
        (DType::F32, DType::F32, 100, None),
        (DType::F32, DType::F32, 4, Some(2.0)),
        (DType::F32, DType::Bf16, 4, None),
        (DType::Bf16, DType::Bf16, 3, None),
        (DType::Bf16, DType::F32, 5, Some(10.0)),
    ] {
        let op = LinearCrossEntropy {
            frozen: false,
            rows,
            softcap,
            gradient: true,
            format,
        };
        linear_loss((13, 19, 301), dtype, op);
    }
}

#[test]
fn a_narrow_weight_gradient_over_many_chunks_is_rounded_once() {
    let op = |rows| LinearCrossEntropy {
        frozen: false,
        rows,
        softcap: None,
        gradient: true,
        format: DType::Bf16,
    };
    let (made, want) = linear_loss((96, 8, 40), DType::Bf16, op(1));
    let wide = LinearCrossEntropy {
        frozen: false,
        format: DType::F32,
        ..op(1)
    };
    let (exact, _) = linear_loss((96, 8, 40), DType::Bf16, wide);
    let exact = floats(&exact[2], DType::F32);
    assert_eq!(made[2], bytes_of(&exact, DType::Bf16));
    assert_near("dweight", &exact, &want, 1e-5);
}

#[test]
fn the_loss_has_the_slope_its_gradient_claims() {
    let (rows, hidden, vocab) = (3usize, 4usize, 6usize);
    let mut bench = Bench::new();
    let x = bench.input(&[rows as u64, hidden as u64], DType::F32);
    let weight = bench.input(&[vocab as u64, hidden as u64], DType::F32);
    let labels = bench.input(&[rows as u64], DType::U32);
    let scale = bench.input(&[2], DType::F32);
    let op = LinearCrossEntropy {
        frozen: false,
        rows: 2,
        softcap: Some(3.0),
        gradient: true,
        format: DType::F32,
    };
    let outputs = bench.emit(op, &[x, weight, labels, scale]);
    let eval = |xs: &[f32]| {
        let made = bench.run(1, &outputs, |e| {
            e.set(x, xs);
            e.set(weight, &values(2, vocab * hidden, 1.0));
            e.set(labels, &[1u32, 5, 0]);
            e.set(scale, &[1.0f32 / 3.0, 1.0]);
        });
        (
            floats(&made[0], DType::F32)[0],
            floats(&made[1], DType::F32),
        )
    };
    let xs = values(1, rows * hidden, 1.0);
    let slopes: Vec<f32> = (0..xs.len())
        .map(|i| {
            let moved = |by: f32| {
                let mut xs = xs.clone();
                xs[i] += by;
                f64::from(eval(&xs).0)
            };
            ((moved(1e-2) - moved(-1e-2)) / 2e-2) as f32
        })
        .collect();
    assert_near("slope", &slopes, &eval(&xs).1, 1e-3);
}

#[test]
fn a_tied_table_sums_the_gradients_of_both_its_uses_in_one_storage() {
    let mut bench = Bench::new();
    let table = bench.input(&[9, 5], DType::F32);
    let ids = bench.input(&[4], DType::U32);
    let labels = bench.input(&[4], DType::U32);
    let scale = bench.input(&[2], DType::F32);
    let x = bench.emit(Embedding { scale: 2.0 }, &[table, ids])[0];
    let op = LinearCrossEntropy {
        frozen: false,
        rows: 3,
        softcap: None,
        gradient: true,
        format: DType::F32,
    };
    let outputs = bench.emit(op, &[x, table, labels, scale]);
    let gradient = bench.differentiate(&[table], None, &[])[0];
    let homes = [outputs[2], gradient].map(|t| bench.step.tensor(t).storage);
    assert_eq!(homes[0], homes[1]);
    let (tokens, t) = ([8u32, 0, 0, 3], [1u32, 2, 3, 3]);
    let made = bench.run_alike(&[gradient], |e| {
        e.set(table, &values(1, 45, 1.0));
        e.set(ids, &tokens);
        e.set(labels, &t);
        e.set(scale, &[0.25f32, 1.0]);
    });
    let w = var(&values(1, 45, 1.0), &[9, 5]);
    let index = Tensor::from_slice(&tokens, 4, &Device::Cpu).unwrap();
    let x = (w.index_select(&index, 0).unwrap() * 2.0).unwrap();
    let loss = candle_loss(&x.matmul(&w.t().unwrap()).unwrap(), &t, None);
    let want = loss.backward().unwrap();
    let want = flat(want.get(&w).unwrap());
    assert_near("dtable", &floats(&made[0], DType::F32), &want, 1e-5);
}

#[test]
fn ops_refuse_what_they_are_not_defined_on() {
    let mut bench = Bench::new();
    let x = bench.input(&[6, 4], DType::F32);
    let table = bench.input(&[5, 4], DType::F32);
    let ids = bench.input(&[6], DType::U32);
    let scale = bench.input(&[2], DType::F32);
    let long = PositionEmbedding { seq: 6, offset: 0 };
    assert!(bench.try_emit(long, &[x, table]).is_err());
    let uneven = PositionEmbedding { seq: 4, offset: 0 };
    assert!(bench.try_emit(uneven, &[x, table]).is_err());
    assert!(
        bench
            .try_emit(Embedding { scale: 1.0 }, &[table, x])
            .is_err()
    );
    let loss = CrossEntropy {
        softcap: None,
        gradient: true,
    };
    assert!(bench.try_emit(loss.clone(), &[x, ids]).is_err());
    assert!(bench.try_emit(loss.clone(), &[x, ids, scale]).is_ok());
    assert!(bench.try_emit(loss, &[table, ids, scale]).is_err());
    let dropout = Dropout {
        rate: 1.5,
        in_place: true,
    };
    assert!(bench.try_emit(dropout, &[x]).is_err());
}
