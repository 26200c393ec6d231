//! Optimizers as techniques: what they hold in a plan, to the byte, and that they train.

use std::collections::BTreeMap;

use memfit::graph::tensor::Role;
use memfit::graph::{Stream, When};
use memfit::program::Program;
use memfit::spec::job::{Place, Precision};

use crate::programs::{MICRO, job, lower, plan, train};

/// Matrices of four shapes, tied to nothing.
const MODEL: &str = r#"{"model_type":"llama","vocab_size":300,"hidden_size":72,"intermediate_size":200,
"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"hidden_act":"silu",
"tie_word_embeddings":false,"max_position_embeddings":64}"#;

fn programs(precision: Precision, choices: &[&str]) -> Vec<Program> {
    lower(&plan(job(MODEL, 4, 32, precision, 2), choices))
}

/// Elements of each parameter, by name.
fn parameters(programs: &[Program]) -> BTreeMap<String, Vec<u64>> {
    let step = &programs[0].step;
    let found = step.tensors.iter().filter_map(|t| {
        let storage = step.storage(t.storage);
        let first = t.version == 0 && t.offset == 0 && storage.role == Role::Parameter;
        first.then(|| (storage.name.to_string(), t.at.shape.clone()))
    });
    found.collect()
}

/// Bytes of optimizer state besides master copies, by the last part of its name.
fn held(programs: &[Program]) -> u64 {
    let steady = programs.iter().find(|p| p.when == When::Steady).unwrap();
    let state = |s: &&memfit::graph::tensor::Storage| {
        s.role == Role::OptimizerState && s.shared && !s.name.ends_with(".master")
    };
    steady
        .step
        .storages
        .iter()
        .filter(state)
        .map(|s| s.bytes.0)
        .sum()
}

/// The sum of `bytes` of each parameter's name and shape.
fn sum(programs: &[Program], bytes: impl Fn(&str, &[u64]) -> u64) -> u64 {
    let all = parameters(programs);
    assert_eq!(all.len(), 2 * 9 + 3);
    all.iter().map(|(name, shape)| bytes(name, shape)).sum()
}

fn eight(n: u64) -> u64 {
    if n >= 4096 {
        2 * n + 8 * n.div_ceil(256)
    } else {
        8 * n
    }
}

fn elements(shape: &[u64]) -> u64 {
    shape.iter().product()
}

#[test]
fn states_take_the_bytes_of_the_closed_forms() {
    for precision in [Precision::F32, Precision::Bf16] {
        let of = |choices: &[&str], bytes: &dyn Fn(&str, &[u64]) -> u64| {
            let programs = programs(precision, choices);
            assert_eq!(
                held(&programs),
                sum(&programs, bytes),
                "{choices:?} {precision}"
            );
        };
        of(&["adamw"], &|_, s| 8 * elements(s));
        of(&["adamw8bit"], &|_, s| eight(elements(s)));
        of(&["lion"], &|_, s| 4 * elements(s));
        of(&["lion:momentum=bf16"], &|_, s| 2 * elements(s));
        let factors = |s: &[u64]| 4 * if s.len() > 1 { s[0] + s[1] } else { s[0] };
        of(&["adafactor"], &|_, s| factors(s));
        of(&["adafactor:beta1=0.9"], &|_, s| {
            factors(s) + 4 * elements(s)
        });
        let micro = |d: u64, w: u64, block: u64, qb: u64| {
            let block = block.min(d);
            let ceil = |n: u64| (n as f64 * 0.01).ceil() as u64;
            let k = d / block * ceil(block) + ceil(d % block);
            4 * w * k + d.div_ceil(2) + 4 * (d / qb + 1)
        };
        of(&["microadam"], &|_, s| micro(elements(s), 10, 20_864, 64));
        of(&["microadam:window=20,block=1000,quant=100000"], &|_, s| {
            micro(elements(s), 20, 1000, 100_000)
        });
        let projected = |name: &str| name.contains("attention/") || name.contains("mlp/");
        let galore = |name: &str, s: &[u64], r: u64, bytewise: bool| {
            if s.len() < 2 || !projected(name) {
                return if bytewise {
                    eight(elements(s))
                } else {
                    8 * elements(s)
                };
            }
            let (least, most) = (s[0].min(s[1]), s[0].max(s[1]));
            let r = r.min(least);
            let moments = if bytewise {
                eight(most * r)
            } else {
                8 * most * r
            };
            gradient_bytes(precision) * least * r + moments
        };
        of(&["galore:rank=8"], &|name, s| galore(name, s, 8, false));
        of(&["galore:rank=64,bits=8"], &|name, s| {
            galore(name, s, 64, true)
        });
    }
}

/// Bytes of an element of a gradient.
fn gradient_bytes(precision: Precision) -> u64 {
    let programs = programs(precision, &["adamw"]);
    let step = &programs
        .iter()
        .find(|p| p.when == When::Steady)
        .unwrap()
        .step;
    let gradient = step
        .storages
        .iter()
        .find(|s| s.role == Role::Gradient)
        .unwrap();
    let name = gradient.name.strip_suffix(".gradient").unwrap();
    gradient.bytes.0 / elements(&parameters(&programs)[name])
}

#[test]
fn a_renewed_projector_takes_its_room_beside_activations_where_updates_are_fused() {
    let height = |choices: &[&str], every: bool| {
        let programs = lower(&plan(job(MICRO, 2, 8, Precision::F32, 2), choices));
        let wanted =
            |p: &&Program| matches!(p.when, When::Every(_)) == every && p.when != When::Evaluate;
        let found = programs
            .iter()
            .filter(wanted)
            .map(|p| p.height[Place::Gpu].0);
        found.max().unwrap()
    };
    // Trap 6: the factorization runs within the backward pass, and the gradient is whole.
    let fused = ["galore:rank=2,gap=5", "fused_update"];
    assert!(height(&fused, true) > height(&fused, false));
    let programs = lower(&plan(job(MODEL, 2, 8, Precision::F32, 2), &fused));
    let every = programs.iter().find(|p| p.when == When::Every(5)).unwrap();
    let names: Vec<&str> = every.step.nodes.iter().map(|n| n.op.name()).collect();
    let first = names.iter().position(|n| *n == "galore_refresh").unwrap();
    let last = names
        .iter()
        .rposition(|n| n.ends_with("_backward"))
        .unwrap();
    assert!(first < last);
    for (name, shape) in parameters(&programs) {
        let gradient = format!("{name}.gradient");
        let storage = every.step.storages.iter().find(|s| *s.name == gradient);
        assert_eq!(storage.unwrap().bytes.0, 4 * elements(&shape), "{name}");
    }
}

#[test]
fn bad_arguments_are_refused_by_name() {
    for (choice, word) in [
        ("microadam:quant=63", "even"),
        ("microadam:block=70000", "out of range"),
        ("galore:bits=4", "bits"),
        ("galore:gap=0", "out of range"),
        ("adafactor:beta1=much", "not a number"),
        ("lion:momentum=f16", "momentum"),
    ] {
        let refused = plan(job(MODEL, 2, 8, Precision::F32, 2), &[choice]).steps();
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(word), "{choice}: {error}");
    }
}

#[test]
fn a_gradient_that_becomes_the_step_is_not_sent_back_to_where_nobody_reads_it() {
    for choices in [
        ["microadam", "offload:what=gradients"],
        ["microadam", "offload:what=optimizer,update=host"],
    ] {
        for program in programs(Precision::F32, &choices) {
            let back = |name: &str| name.ends_with(".gradient.write_back");
            assert!(!program.step.nodes.iter().any(|n| back(&n.origin)));
        }
    }
}

/// Bytes that moves of a step carry of what belongs to projected matrices, by the stream that ends them.
fn carried(choices: &[&str], when: fn(&When) -> bool) -> BTreeMap<Stream, u64> {
    let set = plan(job(MICRO, 4, 32, Precision::F32, 2), choices);
    let steps = set.steps().unwrap().steps;
    let (_, step) = steps.iter().find(|(w, _)| when(w)).unwrap();
    let mut bytes = BTreeMap::new();
    for node in step.nodes.iter().filter(|n| n.op.name() == "move") {
        let ours = ["attention/", "mlp/"]
            .iter()
            .any(|p| node.origin.contains(p));
        if ours && !node.origin.contains("norm") {
            *bytes.entry(node.stream).or_insert(0) += step.type_of(node.inputs[0]).bytes().0;
        }
    }
    bytes
}

#[test]
fn a_host_update_of_galore_carries_the_gradient_at_its_low_rank_both_ways() {
    let offload = "offload:what=optimizer,update=host";
    let galore = ["galore:rank=4,gap=3", offload];
    // Two layers: q and o 32 x 32, k and v 16 x 32, gate and up 88 x 32, down 32 x 88; 4 of the smaller side remain.
    let low: u64 = 2 * 4 * (2 * 32 + 2 * 32 + 3 * 88) * 4;
    let both = BTreeMap::from([(Stream::ToDevice, low), (Stream::ToHost, low)]);
    assert_eq!(carried(&galore, |w| *w == When::Steady), both);
    // A step that renews projectors does so where they are.
    assert_eq!(carried(&galore, |w| matches!(w, When::Every(_))), both);
    let shared = plan(job(MICRO, 4, 32, Precision::F32, 2), &galore);
    for storage in shared.steps().unwrap().shared() {
        let moment = storage.name.ends_with(".m") || storage.name.ends_with(".v");
        let wanted = if moment { Place::Host } else { Place::Gpu };
        assert_eq!(storage.place, wanted, "{}", storage.name);
    }
    let (losses, _) = train(&shared, 7);
    let (here, peak) = train(&plan(job(MICRO, 4, 32, Precision::F32, 2), &galore[..1]), 7);
    assert_eq!(losses, here);
    assert!(peak[Place::Host].0 == 0);
    for more in ["fused_update", "clip", "accumulate:micro=2"] {
        let mut choices = galore.to_vec();
        choices.push(more);
        for precision in [Precision::F32, Precision::Bf16] {
            train(&plan(job(MICRO, 4, 32, precision, 2), &choices), 4);
        }
    }
}
