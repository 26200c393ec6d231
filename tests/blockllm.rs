//! BlockLLM: which tensors are selected, what that takes of memory, and runs that select anew.

use std::collections::{BTreeMap, BTreeSet};

use memfit::graph::tensor::Role;
use memfit::machine::cpu::Settings;
use memfit::machine::estimate;
use memfit::machine::train::session::{Options, Session};
use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source};
use memfit::plan::{Choice, Plan};
use memfit::program::height;
use memfit::spec::catalog;
use memfit::spec::job::{Place, Precision};
use memfit::technique::{Next, Policy, SCALARS, Seen};

use crate::programs::{MICRO, job, plan, train};

pub fn micro(choice: &str) -> Plan {
    plan(job(MICRO, 4, 32, Precision::F32, 2), &[choice])
}

pub fn selected(policy: &dyn Policy) -> Vec<String> {
    let text = policy.args().0["selected"].clone();
    text.split('|').map(str::to_string).collect()
}

pub fn elements(plan: &Plan) -> BTreeMap<String, u64> {
    let shared = plan.steps().unwrap().shared();
    let parameters = shared.into_iter().filter(|s| s.role == Role::Parameter);
    parameters
        .map(|s| (s.name.to_string(), s.bytes.0 / 4))
        .collect()
}

/// After a step whose gradients had these norms.
fn step(policy: &mut dyn Policy, number: u64, loss: f32, norms: &[(&str, f32)]) -> Next {
    let named = norms
        .iter()
        .map(|(name, norm)| (format!("{SCALARS}{name}"), norm * norm));
    let scalars = named.collect();
    policy.after(&Seen {
        step: number,
        loss,
        scalars: &scalars,
    })
}

#[test]
fn the_first_selection_counts_tensors_and_is_drawn_from_the_seed() {
    let plan = micro("blockllm:sparsity=0.8");
    let of = |seed| selected(plan.policy(seed).unwrap().unwrap().as_ref());
    let eligible = elements(&plan)
        .keys()
        .filter(|n| !n.starts_with("embedding") && !n.contains("output"))
        .count();
    assert_eq!(of(1).len(), (eligible as f64 * (1.0 - 0.8)) as usize);
    assert_eq!(of(1), of(1));
    let drawn: BTreeSet<Vec<String>> = (0..20).map(of).collect();
    assert!(
        drawn.len() > 15,
        "{} different selections of 20",
        drawn.len()
    );
    assert!(
        drawn
            .iter()
            .flatten()
            .all(|n| !n.starts_with("embedding") && !n.contains("output"))
    );
}

#[test]
fn a_later_selection_takes_the_largest_norms_and_leaves_out_what_would_pass_the_budget() {
    let plan = micro("blockllm:sparsity=0.7,every=5,patience=2,refresh=100");
    let all = elements(&plan);
    let mut policy = plan.policy(3).unwrap().unwrap();
    let large = ["layers.1/mlp/down.weight", "layers.0/attention/q.weight"];
    let norms = [
        (large[0], 9.0),
        (large[1], 8.0),
        ("layers.0/mlp/norm.weight", 0.1),
    ];
    for number in 1..=4 {
        assert_eq!(step(policy.as_mut(), number, 1.0, &norms), Next::Continue);
    }
    // The last two losses are above the mean of all.
    assert_eq!(
        step(policy.as_mut(), 5, 2.0, &norms),
        Next::Rechoose { fresh: true }
    );
    let chosen = selected(policy.as_ref());
    assert!(
        large.iter().all(|n| chosen.iter().any(|c| c == n)),
        "{chosen:?}"
    );
    let eligible = all
        .iter()
        .filter(|(n, _)| !n.starts_with("embedding") && !n.contains("output"));
    let budget = (eligible.map(|(_, e)| *e).sum::<u64>() as f64 * 0.3) as u64;
    let taken: u64 = chosen.iter().map(|n| all[n]).sum();
    assert!(taken < budget, "{taken} of {budget}");
    // A loss that falls selects nothing anew.
    for number in 6..=30 {
        let next = step(policy.as_mut(), number, 2.0 - number as f32 * 0.01, &norms);
        assert_eq!(next, Next::Continue, "step {number}");
    }
}

#[test]
fn a_policy_goes_on_from_its_saved_state() {
    let plan = micro("blockllm:sparsity=0.8,every=3,patience=1,refresh=2");
    let mut whole = plan.policy(5).unwrap().unwrap();
    let mut first = plan.policy(5).unwrap().unwrap();
    let mut decided = Vec::new();
    for number in 1..=12u64 {
        let loss = 1.0 + (number % 4) as f32;
        decided.push(step(
            whole.as_mut(),
            number,
            loss,
            &[("layers.0/mlp/up.weight", loss)],
        ));
        if number == 6 {
            let mut second = plan.policy(99).unwrap().unwrap();
            second.load(&first.save()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(second.args(), first.args());
        }
        assert_eq!(
            step(
                first.as_mut(),
                number,
                loss,
                &[("layers.0/mlp/up.weight", loss)]
            ),
            decided[number as usize - 1]
        );
    }
    assert!(decided.contains(&Next::Rechoose { fresh: true }));
    assert_eq!(whole.args(), first.args());
    assert!(first.load(&serde_json::json!({"selected": 3})).is_err());
}

#[test]
fn no_first_selection_takes_more_than_was_planned() {
    for sparsity in ["0.5", "0.8", "0.95"] {
        let text = format!("blockllm:sparsity={sparsity},sampled=2");
        let planned = micro(&text);
        let room = height(&estimate::all(&planned).unwrap());
        for seed in 0..12 {
            let policy = planned.policy(seed).unwrap().unwrap();
            let taken = height(&estimate::all(&planned.rechosen(policy.args())).unwrap());
            assert!(
                taken.gpu <= room.gpu,
                "{sparsity}, seed {seed}: {} of {}",
                taken.gpu,
                room.gpu
            );
        }
    }
}

#[test]
fn bytes_depend_on_what_is_selected_and_on_the_lowest_of_it() {
    let peak = |tensor: &str| {
        train(&micro(&format!("blockllm:selected={tensor},adapt=no")), 2).1[Place::Gpu].0
    };
    let (low, high) = (
        peak("layers.0/mlp/up.weight"),
        peak("layers.1/mlp/up.weight"),
    );
    assert!(high < low, "{high} {low}");
    let state = |text: &str| {
        let shared = micro(text).steps().unwrap().shared();
        shared
            .iter()
            .filter(|s| s.role == Role::OptimizerState)
            .map(|s| s.bytes.0)
            .sum::<u64>()
    };
    let up = elements(&micro("adamw"))["layers.0/mlp/up.weight"];
    assert_eq!(
        state("blockllm:selected=layers.0/mlp/up.weight,watched=layers.1/mlp/up.weight"),
        8 * up
    );
    assert!(train(&micro("adamw"), 2).1[Place::Gpu].0 > low);
}

#[test]
fn tensors_that_cannot_be_selected_are_refused_by_name() {
    for name in [
        "embedding/token.weight",
        "head/output.weight",
        "layers.0/mlp/upp.weight",
    ] {
        let choice = Choice::parse(&format!("blockllm:selected={name}")).unwrap();
        let plan = Plan::new(job(MICRO, 4, 32, Precision::F32, 2), vec![choice]).unwrap();
        let error = plan.steps().unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

fn session(
    text: &str,
    steps: u64,
    resume: Option<&std::path::Path>,
    folder: &std::path::Path,
) -> Session {
    let mut job = job(MICRO, 4, 32, Precision::F32, 2);
    job.model = catalog::open("tiny").unwrap();
    let plan = plan(job, &[text]);
    let corpus = Corpus::open(
        &Source::default(),
        &Coding::Bytes,
        &HeldOut::Fraction(0.05),
        256,
        plan.job.model.head,
    );
    let options = Options {
        steps,
        rate: 3e-3,
        resume: resume.map(|p| p.to_path_buf()),
        config: catalog::config_text("tiny").unwrap().to_string(),
        settings: serde_json::json!({"plan": text}),
        ..Options::fixed(
            folder,
            Settings {
                poison: true,
                ..Settings::default()
            },
        )
    };
    Session::open(plan, corpus.unwrap(), options).unwrap()
}

#[test]
fn a_run_selects_anew_within_the_memory_planned_learns_and_resumes_bit_for_bit() {
    let text = "blockllm:sparsity=0.7,every=2,patience=1,refresh=3,sampled=2";
    run_of(text, 60, 30, |selections| selections > 3);
}

/// Runs a plan, and from the save after step `save` again.
pub fn run_of(text: &str, steps: u64, save: u64, varied: impl Fn(usize) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = session(text, steps, None, folder.path());
    let mut selections = BTreeSet::new();
    let state = |session: &Session| {
        let shared = session.programs()[0]
            .buffers
            .iter()
            .filter(|b| b.shared && b.role == Role::OptimizerState);
        shared.map(|b| b.name.to_string()).collect::<Vec<_>>()
    };
    let path = folder.path().join("save");
    for number in 1..=steps {
        whole.step().unwrap();
        selections.insert(state(&whole));
        if number == save {
            whole.save(&path).unwrap();
        }
    }
    println!("{} selections", selections.len());
    assert!(varied(selections.len()), "{} selections", selections.len());
    for place in Place::ALL {
        assert!(
            whole.mark()[place] <= whole.predicted().peak[place],
            "{place}"
        );
    }
    let losses = whole.progress().losses.clone();
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    assert!(
        mean(&losses[steps as usize - 10..]) < losses[0] - 0.5,
        "{losses:?}"
    );
    drop(whole);
    let mut again = session(text, steps, Some(&path), folder.path());
    while again.done() < steps {
        again.step().unwrap();
    }
    assert_eq!(again.progress().losses, losses);
}
