//! Training for real: losses fall, saves continue bit by bit, interrupted runs leave nothing behind.

use memfit::machine::cpu::Settings;
use memfit::machine::estimate;
use memfit::machine::train::session::{Options, Schedule, Session};
use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source};
use memfit::plan::{Choice, Plan, library};
use memfit::program::Program;
use memfit::spec::job::{Backend, Host, Job, Optimizer, Precision, Target};
use memfit::spec::{catalog, device};

use crate::programs::lower;

/// A plan of `tiny` on two threads.
fn plan(precision: Precision, choices: &[&str]) -> Plan {
    let backend = Backend::Cpu { threads: 2 };
    let target = Target {
        backend,
        ..Target::new(device::find("1GiB").unwrap(), Host::default())
    };
    let model = catalog::find("tiny").unwrap();
    let job = Job {
        model,
        seq: 64,
        batch: 8,
        precision,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    Plan::new(
        job,
        choices.iter().map(|c| Choice::parse(c).unwrap()).collect(),
    )
    .unwrap()
}

fn corpus() -> Corpus {
    let model = catalog::find("tiny").unwrap();
    Corpus::open(
        &Source::default(),
        &Coding::Bytes,
        &HeldOut::Fraction(0.1),
        model.vocab,
        model.head,
    )
    .unwrap()
}

fn options(steps: u64) -> Options {
    Options {
        steps,
        rate: 3e-3,
        schedule: Schedule::Cosine,
        warmup: 10,
        seed: 1,
        machine: Settings::default(),
        folder: std::env::temp_dir(),
        weights: None,
        adapter: None,
        resume: None,
        config: catalog::config_text("tiny").unwrap().to_string(),
        evaluation_rows: 32,
        settings: serde_json::Value::Null,
    }
}

fn losses(session: &mut Session, steps: u64) -> Vec<f32> {
    (0..steps).map(|_| session.step().unwrap().loss).collect()
}

#[test]
fn the_held_out_loss_of_tiny_falls_from_uniform_to_below_two_point_six() {
    let mut session = Session::open(
        plan(Precision::F32, &["flash_attention"]),
        corpus(),
        options(150),
    )
    .unwrap();
    let before = session.evaluate().unwrap().unwrap();
    losses(&mut session, 150);
    let after = session.evaluate().unwrap().unwrap();
    println!("{before} -> {after}");
    assert!(
        (5.3..5.8).contains(&before),
        "a uniform guess over bytes is ln 256 = 5.55, got {before}"
    );
    assert!(after < 2.6, "{after}");
    assert_eq!(session.mark(), session.predicted().peak);
}

#[test]
fn every_optimizer_trains_tiny() {
    for (choice, rate) in [
        ("adamw8bit", 3e-3),
        ("lion", 5e-4),
        ("adafactor", 1e-2),
        ("galore:rank=16,gap=15", 1e-2),
        ("galore:rank=16,gap=15,bits=8,projection=randomized", 1e-2),
        ("microadam", 1e-3),
    ] {
        let options = Options {
            rate,
            ..options(40)
        };
        let plan = plan(Precision::F32, &[choice, "flash_attention"]);
        let mut session = Session::open(plan, corpus(), options).unwrap();
        let all = losses(&mut session, 40);
        let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
        let (before, after) = (mean(&all[..3]), mean(&all[35..]));
        println!("{choice}: {before} -> {after}");
        assert!(after < before - 1.0, "{choice}: {before} -> {after}");
        assert_eq!(session.mark(), session.predicted().peak, "{choice}");
    }
}

#[test]
fn a_resumed_run_continues_bit_by_bit() {
    for (precision, choices) in [
        (Precision::F32, &["offload:what=optimizer,to=disk"][..]),
        (Precision::Bf16, &["recompute", "accumulate:micro=2"]),
        (Precision::Fp16, &["clip"]),
        (Precision::Bf16, &["adamw8bit", "accumulate:micro=2"]),
        (Precision::F32, &["galore:rank=8,gap=3,bits=8"]),
        (Precision::F32, &["microadam", "fused_update"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("save");
        let mut whole = Session::open(plan(precision, choices), corpus(), options(8)).unwrap();
        let first = losses(&mut whole, 4);
        whole.save(&dir).unwrap();
        let rest = losses(&mut whole, 4);
        let resume = Options {
            resume: Some(dir),
            ..options(8)
        };
        let mut second = Session::open(plan(precision, choices), corpus(), resume).unwrap();
        assert_eq!(second.progress().losses, first);
        assert_eq!(losses(&mut second, 4), rest, "{precision} {choices:?}");
        assert!(rest.iter().all(|l| l.is_finite()));
    }
}

#[test]
fn the_committed_training_run_is_about_programs_as_they_are_lowered_now() {
    let text = std::fs::read_to_string("docs/training.json").unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let plan = library::find(result["plan"].as_str().unwrap()).unwrap();
    let plan = estimate::on_cpu(&plan.plan().unwrap(), 2);
    let now = lower(&plan);
    let ran = result["programs"].as_array().unwrap();
    assert!(!ran.is_empty());
    for program in ran {
        let same = |p: &&Program| serde_json::json!(p.when) == program["when"];
        let hash = now.iter().find(same).map(|p| format!("{:016x}", p.hash()));
        assert_eq!(
            hash.as_deref(),
            program["hash"].as_str(),
            "{program} is stale"
        );
    }
    let after = result["held_out_after"].as_f64().unwrap();
    assert!(after < result["bound"].as_f64().unwrap());
}
