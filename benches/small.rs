//! Training speed of `small` at batch 8 x 256, AdamW, on two threads: tokens/s, share of matrix products, GFLOP/s, memory.

use memfit::graph::Stream;
use memfit::graph::tensor::Type;
use memfit::machine::cpu::Settings;
use memfit::machine::train::session::{Options, Schedule, Session};
use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source};
use memfit::plan::{Choice, Plan};
use memfit::program::Instr;
use memfit::spec::catalog;
use memfit::spec::device;
use memfit::spec::job::{Backend, Host, Job, Optimizer, Precision, Target};

fn main() {
    let smoke = std::env::args().any(|a| a == "--test" || a == "--smoke");
    let precisions = [Precision::F32, Precision::Bf16];
    for precision in precisions {
        for choices in [
            &[][..],
            &["flash_attention"],
            &["flash_attention", "chunked_loss", "fused_update"],
            &["recompute", "flash_attention"],
        ] {
            if let Err(error) = measure(precision, choices, if smoke { 1 } else { 6 }) {
                println!("{precision} {choices:?}: {error}");
            }
        }
    }
}

/// Trains a few steps and prints what came of it.
fn measure(precision: Precision, choices: &[&str], steps: u64) -> memfit::error::Result<()> {
    let target = Target {
        backend: Backend::Cpu { threads: 2 },
        ..Target::new(device::find("16GiB")?, Host::default())
    };
    let model = catalog::find("small")?;
    let corpus = Corpus::open(
        &Source::default(),
        &Coding::Bytes,
        &HeldOut::None,
        model.vocab,
        model.head,
    )?;
    let job = Job {
        model,
        seq: 256,
        batch: 8,
        precision,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    let choices: Vec<Choice> = choices
        .iter()
        .map(|c| Choice::parse(c))
        .collect::<Result<_, _>>()?;
    let names: Vec<String> = choices.iter().map(ToString::to_string).collect();
    let plan = Plan::new(job, choices)?;
    let mut session = Session::open(plan, corpus, options(steps))?;
    for _ in 0..steps {
        session.step()?;
    }
    let seconds = session.step_seconds().0;
    let (share, rate) = products(&session);
    let tokens = 8.0 * 256.0 / seconds;
    println!(
        "{precision} [{}]: {tokens:.0} tokens/s, step {:.0} ms, matrix products {:.0} % of it at {rate:.0} GFLOP/s, planned {}, process {}",
        names.join(" "),
        seconds * 1e3,
        share * 100.0,
        session.mark().gpu,
        session.process_peak(),
    );
    if std::env::args().any(|a| a == "--ops") {
        by_op(&session);
    }
    Ok(())
}

fn options(steps: u64) -> Options {
    Options {
        steps,
        rate: 3e-4,
        schedule: Schedule::Constant,
        warmup: 0,
        seed: 1,
        machine: Settings::default(),
        folder: std::env::temp_dir(),
        weights: None,
        adapter: None,
        resume: None,
        config: "{}".to_string(),
        evaluation_rows: 0,
        settings: serde_json::Value::Null,
    }
}

/// The share of a step spent in matrix products, and their rate in GFLOP/s.
fn products(session: &Session) -> (f64, f64) {
    let (mut flops, mut busy, mut total) = (0u64, 0.0, 0.0);
    for (when, timeline) in session.timelines() {
        let Some(program) = session.programs().iter().find(|p| p.when == *when) else {
            continue;
        };
        total += timeline.total.0;
        for mark in timeline
            .marks
            .iter()
            .filter(|m| m.stream == Stream::Compute)
        {
            let Instr::Launch { node, .. } = program.code[mark.at] else {
                continue;
            };
            let node = &program.step.nodes[node as usize];
            let types = |ids: &[_]| {
                ids.iter()
                    .map(|&i| program.step.type_of(i).clone())
                    .collect::<Vec<Type>>()
            };
            let work = node.op.work(&types(&node.inputs), &types(&node.outputs));
            if work.matmul > 0 {
                flops += work.matmul;
                busy += mark.end - mark.start;
            }
        }
    }
    (busy / total, flops as f64 / busy / 1e9)
}

/// Seconds by op, largest first.
fn by_op(session: &Session) {
    let mut ops = std::collections::BTreeMap::new();
    for (when, timeline) in session.timelines() {
        let Some(program) = session.programs().iter().find(|p| p.when == *when) else {
            continue;
        };
        for mark in &timeline.marks {
            let Instr::Launch { node, .. } = program.code[mark.at] else {
                continue;
            };
            *ops.entry(program.step.nodes[node as usize].op.name())
                .or_insert(0.0) += mark.end - mark.start;
        }
    }
    let mut rows: Vec<_> = ops.into_iter().collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    rows.iter()
        .take(14)
        .for_each(|(name, s)| println!("    {name:28} {:.1} ms", s * 1e3));
}
