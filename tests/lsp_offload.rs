//! LSP-Offload as a technique: what its programs hold to the byte, what they never hold, and that runs repeat.

use std::collections::{BTreeMap, BTreeSet};

use memfit::graph::tensor::{Role, Storage};
use memfit::graph::{Phase, Step, When};
use memfit::machine::cpu::Settings;
use memfit::machine::estimate;
use memfit::machine::train::session::{Options, Session};
use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source};
use memfit::plan::Plan;
use memfit::program::Program;
use memfit::spec::catalog;
use memfit::spec::job::{Place, Precision};

use crate::programs::{MICRO, job, lower, plan, train};

fn micro(precision: Precision, threads: u32, choices: &[&str]) -> Plan {
    plan(job(MICRO, 4, 16, precision, threads), choices)
}

fn of(programs: &[Program], when: fn(&When) -> bool) -> &Program {
    programs.iter().find(|p| when(&p.when)).unwrap()
}

fn steady(programs: &[Program]) -> &Program {
    of(programs, |w| *w == When::Steady)
}

fn renewal(programs: &[Program]) -> &Program {
    of(programs, |w| matches!(w, When::Renew(_)))
}

fn parameters(step: &Step) -> BTreeMap<String, Vec<u64>> {
    let found = step.tensors.iter().filter_map(|t| {
        let storage = step.storage(t.storage);
        let first = t.version == 0 && t.offset == 0 && storage.role == Role::Parameter;
        first.then(|| (storage.name.to_string(), t.at.shape.clone()))
    });
    found.collect()
}

fn is_projected(name: &str, shape: &[u64]) -> bool {
    shape.len() == 2 && (name.contains("attention/") || name.contains("mlp/"))
}

#[test]
fn states_take_the_bytes_of_the_closed_form() {
    for (precision, w) in [(Precision::F32, 4u64), (Precision::Bf16, 2)] {
        for (d, r, text) in [
            (None, 4u64, "lsp_offload"),
            (Some(10u64), 3, "lsp_offload:d=10,nonzeros=3"),
            (Some(500), 2, "lsp_offload:d=500,nonzeros=2,rest=device"),
        ] {
            let programs = lower(&micro(
                precision,
                2,
                &[text, "mixed_precision:master=no"][..if w == 2 { 2 } else { 1 }],
            ));
            let step = &steady(&programs).step;
            let bytes = |role: Role, place: Place| -> u64 {
                let held = |s: &&Storage| s.shared && s.role == role && s.place == place;
                step.storages.iter().filter(held).map(|s| s.bytes.0).sum()
            };
            let (mut device, mut host, mut pinned) = (0, 0, 0);
            for (name, shape) in parameters(step) {
                let elements: u64 = shape.iter().product();
                if is_projected(&name, &shape) {
                    let side = shape[0].min(shape[1]);
                    let d = d.unwrap_or(side / 2).min(side);
                    device += r.min(d) * (shape[0] + shape[1]) * (w + 2);
                    host += 8 * d * d;
                    pinned += 4 * d * d;
                } else if text.contains("device") {
                    device += 8 * elements;
                } else {
                    host += 8 * elements;
                    pinned += w * elements;
                }
            }
            assert_eq!(bytes(Role::OptimizerState, Place::Gpu), device, "{text}");
            assert_eq!(bytes(Role::OptimizerState, Place::Host), host, "{text}");
            assert_eq!(bytes(Role::Gradient, Place::Pinned), pinned, "{text}");
        }
    }
}

#[test]
fn a_steady_step_keeps_projected_inputs_and_makes_no_whole_gradient() {
    let programs = lower(&micro(Precision::F32, 2, &["lsp_offload:d=8"]));
    let step = &steady(&programs).step;
    let whole: BTreeSet<Vec<u64>> = parameters(step)
        .into_iter()
        .filter(|(name, shape)| is_projected(name, shape))
        .map(|(_, shape)| shape)
        .collect();
    let mut gradients = 0;
    for node in &step.nodes {
        let backward = node.phase == Phase::Backward;
        for &made in &node.outputs {
            let shape = &step.type_of(made).shape;
            assert!(
                !backward || !whole.contains(shape),
                "{} makes {shape:?}",
                node.origin
            );
            gradients += u64::from(backward && *shape == [8, 8]);
        }
        if backward && node.op.name() == "linear_weight_backward" && !node.origin.contains("head") {
            // Of (dy P)ᵀ (x Q), the second is what the forward pass kept: (tokens, d).
            assert_eq!(step.type_of(node.inputs[1]).shape, [64, 8]);
        }
    }
    assert_eq!(gradients, 14);
    // Inputs of attention's output and of the MLP's last layer are read by no later node.
    let reads = |leaf: &str| {
        let made = step
            .nodes
            .iter()
            .find(|n| &*n.origin == leaf)
            .unwrap()
            .outputs[0];
        let later = step.nodes.iter().filter(|n| n.phase.is_later());
        later.filter(|n| n.inputs.contains(&made)).count()
    };
    assert_eq!(reads("layers.0/mlp/act"), 0);
    assert_eq!(reads("layers.0/mlp/down.lsp_input"), 1);
}

#[test]
fn renewing_takes_another_peak_than_the_steady_step() {
    let programs = lower(&micro(Precision::F32, 2, &["lsp_offload"]));
    let (renewal, steady) = (renewal(&programs), steady(&programs));
    assert_ne!(renewal.height.gpu, steady.height.gpu);
    let names: Vec<&str> = renewal.step.nodes.iter().map(|n| n.op.name()).collect();
    assert_eq!(names.iter().filter(|n| **n == "lsp_renew").count(), 14);
    assert!(
        !names
            .iter()
            .any(|n| ["adam_step", "lsp_apply", "take_step"].contains(n))
    );
    // Whole gradients end one by one: the first look is before the last gradient.
    let first = names.iter().position(|n| *n == "lsp_renew").unwrap();
    let last = names
        .iter()
        .rposition(|n| *n == "linear_weight_backward")
        .unwrap();
    assert!(first < last);
}

#[test]
fn steps_wait_for_their_delay_and_all_are_taken() {
    let position = |delay: &str| {
        let programs = lower(&micro(
            Precision::F32,
            2,
            &[&format!("lsp_offload:delay={delay}")],
        ));
        let nodes = &steady(&programs).step.nodes;
        let at = |op: &str, origin: &str| {
            let found = nodes
                .iter()
                .position(|n| n.op.name() == op && n.origin.starts_with(origin));
            found.unwrap()
        };
        let apply = at("lsp_apply", "layers.1/mlp/down");
        assert!(at("adam_step", "layers.1/mlp/down") < at("adam_step", "layers.0/mlp/down"));
        assert_eq!(
            nodes.iter().filter(|n| n.op.name() == "lsp_apply").count(),
            14
        );
        apply
    };
    let (none, one, many) = (position("0"), position("1"), position("9"));
    assert!(none < one && one < many, "{none} {one} {many}");
}

#[test]
fn programs_take_what_was_predicted_beside_everything_they_meet() {
    let all: [(Precision, &[&str]); 10] = [
        (Precision::F32, &["lsp_offload:check=2"]),
        (
            Precision::F32,
            &[
                "lsp_offload:check=2,schedule=after,rest=device",
                "clip:norm=0.5",
            ],
        ),
        (
            Precision::F32,
            &["lsp_offload:check=2", "accumulate:micro=1", "recompute"],
        ),
        (
            Precision::F32,
            &[
                "lsp_offload:check=2",
                "accumulate:micro=2",
                "chunked_loss:rows=8",
            ],
        ),
        (
            Precision::Bf16,
            &[
                "lsp_offload:check=2",
                "flash_attention",
                "recompute:what=cheap",
            ],
        ),
        (
            Precision::Bf16,
            &[
                "lsp_offload:check=2",
                "mixed_precision:master=no",
                "recompute",
            ],
        ),
        (
            Precision::F32,
            &["lsp_offload:check=2", "offload:what=activations"],
        ),
        (
            Precision::F32,
            &[
                "lsp_offload:check=2,rest=device",
                "offload:what=parameters",
                "recompute",
            ],
        ),
        (
            Precision::F32,
            &["lsp_offload:check=2", "compress_activations"],
        ),
        (
            Precision::F32,
            &[
                "lsp_offload:check=3,delay=0",
                "fused_update",
                "offload:what=parameters,to=disk",
            ],
        ),
    ];
    for (precision, choices) in all {
        let (losses, _) = train(&micro(precision, 2, choices), 4);
        assert!(
            losses.iter().all(|l| l.is_finite()),
            "{choices:?}: {losses:?}"
        );
    }
}

#[test]
fn schedules_and_threads_change_no_bit() {
    let of = |threads, text: &str| train(&micro(Precision::F32, threads, &[text]), 5).0;
    let one = of(1, "lsp_offload:check=2");
    assert!(one.iter().all(|l| l.is_finite()), "{one:?}");
    for (threads, text) in [
        (2, "lsp_offload:check=2"),
        (3, "lsp_offload:check=2"),
        (2, "lsp_offload:check=2,schedule=after"),
        (2, "lsp_offload:check=2,delay=0"),
        (2, "lsp_offload:check=2,delay=30"),
    ] {
        assert_eq!(of(threads, text), one, "{threads} threads, {text}");
    }
}

#[test]
fn what_it_cannot_stand_beside_is_refused_by_name() {
    for (choices, words) in [
        (&["lsp_offload", "clip"][..], "schedule=after"),
        (
            &["lsp_offload", "mixed_precision:dtype=fp16"],
            "schedule=after",
        ),
        (
            &["lsp_offload:schedule=after", "fused_update"],
            "schedule=layerwise",
        ),
        (&["lsp_offload", "lora"], "freezes"),
        (
            &["lsp_offload", "offload:what=optimizer"],
            "where its moments lie",
        ),
        (
            &["lsp_offload", "offload:what=gradients"],
            "where its moments lie",
        ),
        (
            &["lsp_offload", "compress_offload"],
            "where its moments lie",
        ),
        (&["lsp_offload", "adamw"], "one update rule"),
        (&["lsp_offload:d=0"], "out of range"),
        (&["lsp_offload:rest=disk"], "rest"),
    ] {
        let parsed = choices
            .iter()
            .map(|c| memfit::plan::Choice::parse(c))
            .collect::<Result<Vec<_>, _>>();
        let made = parsed.and_then(|all| Plan::new(job(MICRO, 4, 16, Precision::F32, 2), all));
        let error = made.and_then(|p| p.steps()).unwrap_err().to_string();
        assert!(error.contains(words), "{choices:?}: {error}");
    }
}

/// A session of a micro run; continued from `resume`.
fn session(folder: &std::path::Path, resume: Option<std::path::PathBuf>) -> Session {
    let mut job = job(MICRO, 4, 32, Precision::F32, 2);
    job.model = catalog::open("tiny").unwrap();
    let plan = plan(job, &["lsp_offload:check=2,d=16"]);
    let (vocab, head) = (plan.job.model.vocab, plan.job.model.head);
    let corpus = Corpus::open(
        &Source::default(),
        &Coding::Bytes,
        &HeldOut::Fraction(0.05),
        vocab,
        head,
    );
    let mut options = Options::fixed(folder, Settings::default());
    options.resume = resume;
    options.config = catalog::config_text("tiny").unwrap().to_string();
    Session::open(plan, corpus.unwrap(), options).unwrap()
}

#[test]
fn a_continued_run_is_the_whole_one_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = session(folder.path(), None);
    let wanted: Vec<f32> = (0..7).map(|_| whole.step().unwrap().loss).collect();
    println!("losses: {wanted:?}");
    assert!(wanted[6] < wanted[0] - 0.05, "{wanted:?}");
    let mut first = session(folder.path(), None);
    for _ in 0..3 {
        first.step().unwrap();
    }
    let save = folder.path().join("save");
    first.save(&save).unwrap();
    drop(first);
    let mut rest = session(folder.path(), Some(save));
    let got: Vec<f32> = (0..4).map(|_| rest.step().unwrap().loss).collect();
    assert_eq!(got, wanted[3..]);
    assert_eq!(rest.mark(), rest.predicted().peak);
}

#[test]
fn renewals_are_priced_over_their_period() {
    let step = |check: u32| {
        let plan = micro(Precision::F32, 2, &[&format!("lsp_offload:check={check}")]);
        estimate::proved(&plan).unwrap().step.0
    };
    let (each, rare) = (step(1), step(1000));
    let half = step(2);
    assert!(each > half && half > rare);
    let renewal = each - rare;
    assert!(((each - half) / (renewal * 0.5) - 1.0).abs() < 0.01);
}
