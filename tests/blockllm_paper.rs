//! BlockLLM by the paper's rule: what is selected, how many coordinates move, and what a selection takes of memory.

use std::collections::{BTreeMap, BTreeSet};

use memfit::graph::tensor::Role;
use memfit::machine::estimate;
use memfit::program::height;
use memfit::spec::job::{Place, Precision};
use memfit::technique::{Next, Policy, SCALARS, Seen};

use crate::blockllm::{elements, micro, run_of, selected};
use crate::programs::{MICRO, job, plan, train};
use crate::zeroth_order::steady;

/// After a step that showed directions of these norms.
fn step(policy: &mut dyn Policy, number: u64, loss: f32, norms: &BTreeMap<String, f64>) -> Next {
    let named = norms
        .iter()
        .map(|(name, norm)| (format!("{SCALARS}{name}"), (norm * norm) as f32));
    let scalars = named.collect();
    policy.after(&Seen {
        step: number,
        loss,
        scalars: &scalars,
    })
}

fn eligible(plan: &memfit::plan::Plan) -> BTreeMap<String, u64> {
    let all = elements(plan).into_iter();
    all.filter(|(n, _)| !n.starts_with("embedding") && !n.contains("output"))
        .collect()
}

/// Norms that depend on the round, so that selections differ.
fn norms(sizes: &BTreeMap<String, u64>, round: u64) -> BTreeMap<String, f64> {
    let norm = |(index, (name, _)): (usize, (&String, &u64))| {
        let mixed = (index as u64 * 7_919 + round * 104_729) % 1_009;
        (name.clone(), 1.0 + mixed as f64)
    };
    sizes.iter().enumerate().map(norm).collect()
}

/// What the rule says: tensors by falling norm over frequency until their elements reach the budget.
fn reference(
    sizes: &BTreeMap<String, u64>,
    norms: &BTreeMap<String, f64>,
    past: &[BTreeSet<String>],
    budget: u64,
) -> BTreeSet<String> {
    let score = |name: &String| {
        let times = past.iter().filter(|s| s.contains(name)).count();
        norms[name] / ((1 + times) as f64 / (1 + past.len()) as f64)
    };
    let mut order: Vec<&String> = sizes.keys().collect();
    order.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let mut taken = BTreeSet::new();
    let mut sum = 0;
    while sum < budget {
        let name = order.remove(0);
        sum += sizes[name];
        taken.insert(name.clone());
    }
    taken
}

#[test]
fn tensors_are_taken_by_score_until_the_one_that_reaches_the_budget() {
    let plan = micro("blockllm:rule=paper,sparsity=0.8,patience=2");
    let sizes = eligible(&plan);
    let budget = (sizes.values().sum::<u64>() as f64 * (1.0 - 0.8)) as u64;
    let mut policy = plan.policy(1).unwrap().unwrap();
    let mut past: Vec<BTreeSet<String>> = Vec::new();
    let mut number = 0;
    for round in 0..12 {
        // A step that measures: everything is watched that is not selected.
        let args = policy.args();
        let watched: BTreeSet<&str> = args.0["watched"].split('|').collect();
        let updated = past.last().map_or(0, BTreeSet::len);
        assert_eq!(watched.len() + updated, sizes.len());
        number += 1;
        let norms = norms(&sizes, round);
        let next = step(policy.as_mut(), number, 1.0, &norms);
        assert_eq!(next, Next::Rechoose { fresh: true });
        let chosen: BTreeSet<String> = selected(policy.as_ref()).into_iter().collect();
        assert_eq!(chosen, reference(&sizes, &norms, &past, budget), "{round}");
        let sum: u64 = chosen.iter().map(|n| sizes[n]).sum();
        let least = chosen.iter().map(|n| sizes[n]).max().unwrap();
        assert!(sum >= budget && sum - least < budget, "{sum} of {budget}");
        let args = policy.args();
        assert_eq!(args.0["since"], number.to_string());
        assert_eq!(args.0["budget"], budget.to_string());
        past.push(chosen);
        // Two losses are too few, a lower one does not stall, an equal one does.
        for (loss, next) in [
            (2.0, Next::Continue),
            (2.0, Next::Continue),
            (1.9, Next::Continue),
            (1.95, Next::Rechoose { fresh: false }),
        ] {
            number += 1;
            assert_eq!(step(policy.as_mut(), number, loss, &norms), next, "{loss}");
        }
    }
    let all: BTreeSet<&String> = past.iter().flatten().collect();
    assert!(all.len() > past[0].len(), "frequency brings others in");
}

#[test]
fn a_paper_policy_goes_on_from_its_saved_state() {
    let plan = micro("blockllm:rule=paper,sparsity=0.8,patience=1");
    let sizes = eligible(&plan);
    let (mut whole, mut first) = (
        plan.policy(5).unwrap().unwrap(),
        plan.policy(5).unwrap().unwrap(),
    );
    for number in 1..=12u64 {
        let norms = norms(&sizes, number);
        let decided = step(whole.as_mut(), number, 1.0, &norms);
        assert_eq!(step(first.as_mut(), number, 1.0, &norms), decided);
        if number == 5 {
            let mut second = plan.policy(99).unwrap().unwrap();
            second.load(&first.save()).unwrap();
            first = second;
        }
    }
    assert_eq!(whole.args(), first.args());
    assert!(first.load(&serde_json::json!({"chosen": 3})).is_err());
}

#[test]
fn no_selection_takes_more_than_was_planned() {
    for sparsity in ["0.5", "0.8", "0.95"] {
        let planned = micro(&format!("blockllm:rule=paper,sparsity={sparsity}"));
        let sizes = eligible(&planned);
        let room = height(&estimate::all(&planned).unwrap());
        let mut policy = planned.policy(0).unwrap().unwrap();
        for round in 0..6 {
            let fits = |policy: &dyn Policy| {
                let taken = height(&estimate::all(&planned.rechosen(policy.args())).unwrap());
                assert!(taken.gpu <= room.gpu, "{sparsity}, {round}: {}", taken.gpu);
            };
            fits(policy.as_ref());
            step(policy.as_mut(), 10 * round + 1, 1.0, &norms(&sizes, round));
            fits(policy.as_ref());
            for more in 2..=200 {
                if policy.args().0["watched"] != "auto" {
                    break;
                }
                step(policy.as_mut(), 10 * round + more, 1.0, &BTreeMap::new());
            }
        }
    }
}

#[test]
fn a_selection_takes_less_than_the_gradients_of_all_and_what_is_predicted() {
    let (_, adam) = train(&micro("adamw"), 2);
    for text in [
        "blockllm:rule=paper,sparsity=0.8",
        "blockllm:rule=paper,sparsity=0.8,mask=no",
        "blockllm:rule=paper,sparsity=0.8,adapt=no",
    ] {
        for more in [
            &[][..],
            &["accumulate:micro=2"],
            &["clip"],
            &["fused_update"],
        ] {
            if more == ["clip"] && text.contains("mask=no") {
                continue;
            }
            let mut choices = vec![text];
            choices.extend(more);
            let plan = plan(job(MICRO, 4, 32, Precision::F32, 2), &choices);
            let (losses, peak) = train(&plan, 3);
            assert!(losses.iter().all(|l| l.is_finite()), "{choices:?}");
            assert!(peak[Place::Gpu] < adam[Place::Gpu], "{choices:?}");
        }
    }
}

/// A step that measures holds the gradient of one tensor at a time beside those of the tensors it updates.
#[test]
fn a_gradient_that_is_only_measured_is_let_go_before_the_next_is_whole() {
    let planned = micro("blockllm:rule=paper,sparsity=0.9");
    let step = steady(&planned);
    let updated: BTreeSet<String> = (step.nodes.iter())
        .filter(|n| n.op.name() == "masked_adamw")
        .map(|n| format!("{}.gradient", n.origin))
        .collect();
    let mut ranges: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for (index, node) in step.nodes.iter().enumerate() {
        for &value in node.inputs.iter().chain(&node.outputs) {
            let storage = step.tensor(value).storage;
            let named = &step.storage(storage).name;
            if named.ends_with(".gradient") && !updated.contains(&**named) {
                ranges.entry(storage.0).or_insert((index, index)).1 = index;
            }
        }
    }
    let bytes = |id: &u32| step.storages[*id as usize].bytes.0;
    let alive = |at: usize| -> u64 {
        let here = ranges.iter().filter(|(_, r)| r.0 <= at && at <= r.1);
        here.map(|(id, _)| bytes(id)).sum()
    };
    let most = (0..step.nodes.len()).map(alive).max().unwrap();
    let largest = ranges.keys().map(bytes).max().unwrap();
    let all: u64 = ranges.keys().map(bytes).sum();
    println!("{most} bytes at a time of {all}, the largest {largest}");
    assert!(ranges.len() > 10 && most <= largest, "{most} of {all}");
}

#[test]
fn a_mask_takes_no_bytes_beside_the_moments_of_what_is_selected() {
    let state = |text: &str| {
        let shared = micro(text).steps().unwrap().shared();
        let states = shared.iter().filter(|s| s.role == Role::OptimizerState);
        states.map(|s| s.bytes.0).sum::<u64>()
    };
    let up = elements(&micro("adamw"))["layers.0/mlp/up.weight"];
    for mask in ["yes", "no"] {
        let text = format!("blockllm:rule=paper,mask={mask},selected=layers.0/mlp/up.weight");
        assert_eq!(state(&text), 8 * up);
    }
}

#[test]
fn a_run_by_the_paper_selects_anew_within_the_memory_planned_learns_and_resumes_bit_for_bit() {
    let text = "blockllm:rule=paper,sparsity=0.7,patience=4";
    run_of(text, 60, 30, |names| names > 1);
}
