//! Values in fewer bits: what the ops keep of them, and what plans take and learn with them.

use memfit::graph::op::compress::{Compress, Decompress, Grid};
use memfit::graph::tensor::{DType, Role, Type};
use memfit::plan::{Choice, Plan};
use memfit::spec::job::{Place, Precision};

use crate::bench::{Bench, bytes_of, floats, values};
use crate::programs::{MICRO, job, plan, train};
use crate::reference::Evaluator;

const LEN: u64 = 10_007;

fn grids() -> Vec<Grid> {
    let mut grids = Vec::new();
    for bits in [4, 8] {
        for block in [2, 64, 4096] {
            for stochastic in [false, true] {
                grids.push(Grid {
                    bits,
                    block,
                    stochastic,
                });
            }
        }
    }
    grids
}

/// Values after they were held, on a number of threads.
fn round_trip(grid: Grid, dtype: DType, x: &[f32], threads: usize, seed: u64) -> Vec<f32> {
    let mut bench = Bench::new();
    let input = bench.input(&[x.len() as u64], dtype);
    let held = bench.emit(Compress { grid }, &[input])[0];
    let at = Type::new(&[x.len() as u64], dtype);
    let back = bench.emit(Decompress { grid, at }, &[held])[0];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(|| {
        let mut evaluator = Evaluator::new(bench.step.clone());
        evaluator.seed = seed;
        evaluator.raw(input).copy_from_slice(&bytes_of(x, dtype));
        evaluator.run(0..2).unwrap();
        floats(evaluator.raw(back), dtype)
    })
}

#[test]
fn values_come_back_within_a_step_of_their_block_on_any_number_of_threads() {
    let x = values(11, LEN as usize, 3.0);
    for grid in grids() {
        let back = round_trip(grid, DType::F32, &x, 1, 1);
        assert_eq!(back, round_trip(grid, DType::F32, &x, 3, 1));
        for (x, back) in x
            .chunks(grid.block as usize)
            .zip(back.chunks(grid.block as usize))
        {
            let (least, most) = x
                .iter()
                .fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
            let step = (most - least) / ((1 << grid.bits) - 1) as f32;
            let bound = step * if grid.stochastic { 1.0 } else { 0.5 } + 1e-5;
            for (x, back) in x.iter().zip(back) {
                assert!(
                    (x - back).abs() <= bound,
                    "{grid:?}: {x} came back as {back}"
                );
            }
        }
    }
}

#[test]
fn rounding_by_chance_is_right_on_average_and_constant_blocks_are_exact() {
    let grid = Grid {
        bits: 4,
        block: 64,
        stochastic: true,
    };
    let x = values(12, 64, 1.0);
    let mut mean = [0.0f64; 64];
    for seed in 0..2000 {
        for (mean, back) in mean
            .iter_mut()
            .zip(round_trip(grid, DType::F32, &x, 1, seed))
        {
            *mean += f64::from(back) / 2000.0;
        }
    }
    let (least, most) = x
        .iter()
        .fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    // Five standard errors of a mean of 2,000 roundings, each off by at most a step.
    let bound = 5.0 * f64::from(most - least) / 15.0 * 0.5 / 2000f64.sqrt();
    for (x, mean) in x.iter().zip(mean) {
        assert!(
            (f64::from(*x) - mean).abs() < bound,
            "{x} is {mean} on average"
        );
    }
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        assert_eq!(round_trip(grid, dtype, &[0.25; 100], 2, 3), vec![0.25; 100]);
        assert_eq!(round_trip(grid, dtype, &[0.0; 100], 2, 3), vec![0.0; 100]);
    }
}

#[test]
fn held_values_take_their_bits_and_eight_bytes_a_block() {
    for grid in grids() {
        let wanted = 8 * LEN.div_ceil(grid.block) + (LEN * u64::from(grid.bits)).div_ceil(8);
        assert_eq!(grid.held(LEN).bytes().0, wanted);
    }
}

const BASE: (u64, u64) = (8, 64);

fn trained(
    choices: &[&str],
    steps: u64,
) -> (
    Vec<f32>,
    memfit::spec::job::PerPlace<memfit::spec::units::Bytes>,
) {
    train(
        &plan(job(MICRO, BASE.0, BASE.1, Precision::F32, 2), choices),
        steps,
    )
}

#[test]
fn compressed_plans_take_fewer_bytes_as_predicted_and_learn_nearly_the_same() {
    let (plain, full) = trained(&["offload:what=optimizer"], 4);
    for bits in ["8", "4"] {
        let held = format!("compress_activations:bits={bits}");
        let (losses, peak) = trained(&["offload:what=optimizer", &held], 4);
        assert!(
            peak[Place::Gpu] < full[Place::Gpu],
            "{bits}: {peak:?} {full:?}"
        );
        let off = (losses[3] - plain[3]).abs();
        assert!(off > 0.0 && off < 0.05, "{bits}: {losses:?} {plain:?}");
        let state = format!("compress_offload:what=optimizer,bits={bits}");
        let (losses, peak) = trained(&[&state], 4);
        assert!(
            peak[Place::Pinned] < full[Place::Pinned],
            "{bits}: {peak:?} {full:?}"
        );
        assert!(
            (losses[3] - plain[3]).abs() < 0.3,
            "{bits}: {losses:?} {plain:?}"
        );
        let sent = format!("compress_offload:bits={bits}");
        let (losses, _) = trained(&["offload:what=optimizer,update=host", &sent], 4);
        assert!(
            (losses[3] - plain[3]).abs() < 0.1,
            "{bits}: {losses:?} {plain:?}"
        );
    }
}

#[test]
fn compressed_state_takes_the_place_of_the_state() {
    let kept = |choice: &str| {
        let plan = plan(job(MICRO, 2, 16, Precision::F32, 1), &[choice]);
        let shared = plan.steps().unwrap().shared();
        let state = shared
            .into_iter()
            .filter(|s| s.role == Role::OptimizerState);
        state.map(|s| s.bytes.0).sum::<u64>()
    };
    let plain = kept("offload:what=optimizer");
    let eight = kept("compress_offload:what=optimizer,block=64");
    let four = kept("compress_offload:what=optimizer,bits=4,block=64");
    assert!(eight < plain * 3 / 8 + 4096 && eight > plain / 4);
    assert!(four < plain / 4 && four > plain / 8);
}

#[test]
fn what_cannot_be_compressed_is_refused_by_name() {
    for (choices, name) in [
        (vec!["compress_activations:block=7"], "block"),
        (
            vec!["compress_offload", "accumulate:micro=1"],
            "compress_offload",
        ),
        (
            vec!["compress_offload:what=optimizer", "sgd:momentum=0"],
            "compress_offload",
        ),
    ] {
        let parsed: Vec<Choice> = choices.iter().map(|c| Choice::parse(c).unwrap()).collect();
        let plan = Plan::new(job(MICRO, 4, 16, Precision::F32, 1), parsed);
        let error = plan
            .and_then(|p| p.steps().map(|_| ()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(name), "{error}");
    }
}
