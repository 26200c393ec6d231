//! Embeddings and dropout against candle, their definitions, and themselves on other numbers of threads.

use candle_core::{Device, Tensor, Var};
use memfit::graph::op::dropout::Dropout;
use memfit::graph::op::embedding::{Embedding, PositionEmbedding};
use memfit::graph::tensor::DType;

use crate::bench::{
    Bench, assert_near, bytes_of, flat, floats, integers, limit, rounded, values, var,
};
use crate::reference::Evaluator;

#[test]
fn embeddings_and_positions_agree_with_candle() {
    for (dtype, format) in [
        (DType::F32, DType::F32),
        (DType::Bf16, DType::F32),
        (DType::Bf16, DType::Bf16),
    ] {
        let (vocab, hidden, batch, seq, positions) = (37, 301, 3, 65, 70);
        let mut bench = Bench::new();
        let table = bench.input(&[vocab, hidden], dtype);
        let ids = bench.input(&[batch * seq], DType::U32);
        let places = bench.input(&[positions, hidden], dtype);
        let kinds = bench.input(&[2, hidden], dtype);
        let dy = bench.input(&[batch * seq, hidden], dtype);
        let y = bench.emit(Embedding { scale: 1.5 }, &[table, ids])[0];
        let y = bench.emit(PositionEmbedding { seq, offset: 2 }, &[y, places])[0];
        let y = bench.emit(PositionEmbedding { seq: 1, offset: 0 }, &[y, kinds])[0];
        let mut wanted = vec![y];
        let tables = [table, places, kinds];
        wanted.extend(bench.differentiate(&tables, Some(format), &[(y, dy)]));
        let n = (batch * seq) as usize;
        let draw = |seed, rows: u64| values(seed, (rows * hidden) as usize, 1.0);
        let inputs = [
            (table, draw(1, vocab)),
            (places, draw(2, positions)),
            (kinds, draw(3, 2)),
            (dy, draw(4, batch * seq)),
        ];
        // A frequent token, and tokens that do not occur.
        let mut tokens = integers(6, n, 20);
        tokens.iter_mut().step_by(2).for_each(|t| *t = 11);
        let made = bench.run_alike(&wanted, |e| {
            for (id, values) in &inputs {
                e.raw(*id).copy_from_slice(&bytes_of(values, dtype));
            }
            e.set(ids, &tokens);
        });
        let h = hidden as usize;
        let [t, p, k, dy] = inputs.map(|(_, v)| var(&rounded(&v, dtype), &[v.len() / h, h]));
        let index = |of: &dyn Fn(usize) -> u32| {
            Tensor::from_vec((0..n).map(of).collect(), n, &Device::Cpu).unwrap()
        };
        let rows = |t: &Var, of: &dyn Fn(usize) -> u32| t.index_select(&index(of), 0).unwrap();
        let scaled = (rows(&t, &|i| tokens[i]) * 1.5).unwrap();
        let placed = rows(&p, &|i| (i as u64 % seq + 2) as u32);
        let y = ((scaled + placed).unwrap() + rows(&k, &|_| 0)).unwrap();
        let loss = (&y * dy.as_tensor()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        assert_near("y", &floats(&made[0], dtype), &flat(&y), limit(dtype));
        for (i, var) in [t, p, k].iter().enumerate() {
            let got = floats(&made[1 + i], format);
            assert_near("table", &got, &flat(grads.get(var).unwrap()), limit(format));
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error_that_names_it() {
    let mut bench = Bench::new();
    let table = bench.input(&[10, 2], DType::F32);
    let ids = bench.input(&[3], DType::U32);
    bench.emit(Embedding { scale: 1.0 }, &[table, ids]);
    let mut evaluator = Evaluator::new(bench.step);
    evaluator.set(ids, &[1u32, 10, 2]);
    let error = evaluator.run(0..1).unwrap_err().to_string();
    assert!(error.contains("token 1") && error.contains("10"), "{error}");
}

#[test]
fn dropout_keeps_its_share_and_its_derivative_draws_the_same_mask() {
    for in_place in [true, false] {
        let n = 40_001u64;
        let mut bench = Bench::new();
        let x = bench.input(&[1, n], DType::F32);
        let dy = bench.input(&[1, n], DType::F32);
        let op = Dropout {
            rate: 0.3,
            in_place,
        };
        let y = bench.emit(op, &[x])[0];
        let dx = bench.differentiate(&[x], None, &[(y, dy)])[0];
        let fill = |micro: u64| {
            move |e: &mut Evaluator| {
                e.scalars.micro = micro;
                e.set(x, &vec![1.0f32; n as usize]);
                e.set(dy, &vec![1.0f32; n as usize]);
            }
        };
        let made = bench.run_alike(&[y, dx], fill(0));
        assert_eq!(made[0], made[1]);
        let y = floats(&made[0], DType::F32);
        let kept = y.iter().filter(|y| **y != 0.0).count() as f64 / n as f64;
        assert!((kept - 0.7).abs() < 0.01, "kept {kept}");
        assert!(y.iter().all(|y| *y == 0.0 || (*y - 1.0 / 0.7).abs() < 1e-6));
        assert_ne!(made[0], bench.run(2, &[dx], fill(1))[0]);
    }
}
