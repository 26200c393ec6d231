//! A backward pass through the last layers beside an estimate for the others.

use memfit::graph::Phase;
use memfit::graph::tensor::DType;
use memfit::plan::{Choice, Plan};
use memfit::spec::job::{Place, Precision};

use crate::families::{LLAMA, built};
use crate::programs::{job, plan, train};
use crate::zeroth_order::{Form, Ours, Reference, direction, distance, passes, steady, wide};

const RATE: f64 = 1e-3;

/// Six layers, so that two of them differ from all of them.
const DEEP: &str = r#"{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":88,
"num_hidden_layers":6,"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"hidden_act":"silu",
"tie_word_embeddings":false,"max_position_embeddings":128}"#;

fn deep(choices: &[&str]) -> Plan {
    plan(job(DEEP, 4, 32, Precision::F32, 2), choices)
}

const FORMS: [&str; 8] = [
    "zo_sgd:eps=3e-3,hybrid=1",
    "zo_sgd:eps=3e-3,hybrid=1,sides=1,first_rate=3",
    "zo_sgd:eps=3e-3,hybrid=2,q=2",
    "zo_sgd:eps=3e-3,hybrid=1,in_place=yes,decay=0.5",
    "zo_sign:eps=3e-3,hybrid=1,first_rate=0.5",
    "zo_momentum:eps=3e-3,hybrid=1",
    "zo_conservative:eps=3e-3,hybrid=1,in_place=yes,q=2",
    "zo_adam:eps=3e-3,hybrid=1,first_rate=2",
];

#[test]
fn twenty_updates_of_both_parts_agree_with_a_plain_reference() {
    let base = built(LLAMA, DType::F32);
    let start = base.values();
    for text in FORMS {
        let mut reference = Reference::new(&base, &start);
        let mut ours = Ours::new(text, Precision::F32, &start);
        let form = Form::of(text);
        for step in 1..=20 {
            reference.update(&form);
            ours.step(step, RATE);
        }
        let (made, begin) = (wide(&ours.values()), wide(&start));
        for high in [false, true] {
            let part = |point: &crate::zeroth_order::Point| {
                let own = point.iter().filter(|(name, _)| {
                    (name.starts_with("layers.1") || name.starts_with("head")) == high
                });
                own.map(|(n, v)| (n.clone(), v.clone())).collect()
            };
            let way = distance(&part(&reference.at), &part(&begin));
            let error = distance(&part(&made), &part(&reference.at)) / way;
            println!("{text}, high {high}: off by {error:.1e} of a way of {way:.4}");
            // Adam divides by roots of what f32 knows of small gradients.
            let bound = if text.contains("adam") { 5e-3 } else { 5e-4 };
            assert!(
                way > 1e-4 && error < bound,
                "{text}, high {high}: {error:e}"
            );
        }
    }
}

#[test]
fn the_last_layers_step_as_sgd_does_and_the_others_along_the_draw() {
    let start = built(LLAMA, DType::F32).values();
    let mut hybrid = Ours::new("zo_sgd:hybrid=1", Precision::F32, &start);
    let mut sgd = Ours::new("sgd:momentum=0,decay=0", Precision::F32, &start);
    hybrid.step(1, 0.1);
    sgd.step(1, 0.1);
    let (hybrid, sgd) = (hybrid.values(), sgd.values());
    let mut factors = Vec::new();
    for (name, made) in &hybrid {
        if name.starts_with("layers.1") || name.starts_with("head") {
            assert_eq!(made, &sgd[name], "{name}");
            continue;
        }
        let z = direction(1, name, 0, made.len(), 0.0);
        let moved = made.iter().zip(&start[name]).map(|(a, b)| f64::from(a - b));
        let (along, square) = moved.zip(&z).fold((0.0, 0.0), |(along, square), (d, z)| {
            (along + d * z, square + z * z)
        });
        factors.push(along / square);
    }
    assert!(factors.len() > 5);
    for factor in &factors {
        let error = (factor - factors[0]).abs() / factors[0].abs();
        assert!(error < 1e-4, "{factors:?}");
    }
}

#[test]
fn the_backward_pass_stops_at_the_last_layers_and_keeps_nothing_of_others() {
    let step = steady(&deep(&["zo_sgd:hybrid=2"]));
    let backward = step.nodes.iter().filter(|n| n.phase == Phase::Backward);
    let blocks: std::collections::BTreeSet<&str> = backward.map(|n| &*n.block).collect();
    let wanted = ["head", "layers.4", "layers.5"];
    assert_eq!(blocks.into_iter().collect::<Vec<_>>(), wanted);
    assert_eq!(passes("zo_sgd:hybrid=1"), 3);
    assert_eq!(passes("zo_sgd:hybrid=1,sides=1,q=2"), 3);
    assert_eq!(passes("zo_conservative:hybrid=1"), 6);
}

#[test]
fn the_peak_lies_between_an_estimate_and_a_backward_pass_of_all() {
    let peak = |choice: &str| train(&deep(&[choice]), 2).1[Place::Gpu].0;
    let all = [
        peak("zo_sgd"),
        peak("zo_sgd:hybrid=1"),
        peak("zo_sgd:hybrid=3"),
        peak("zo_sgd:hybrid=6"),
        peak("sgd:momentum=0"),
    ];
    println!("{all:?}");
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
}

#[test]
fn every_form_takes_the_bytes_predicted_beside_what_else_a_plan_does() {
    for form in FORMS {
        for more in [
            &[][..],
            &["flash_attention", "chunked_loss:rows=8"],
            &["recompute"],
            &["offload:what=activations"],
            &["offload:what=parameters"],
            &["lora:rank=4"],
        ] {
            if form.contains("hybrid=2") && more.is_empty() {
                continue;
            }
            let mut choices = vec![form];
            choices.extend(more);
            let (losses, _) = train(&deep(&choices), 2);
            assert!(losses.iter().all(|l| l.is_finite()), "{choices:?}");
        }
    }
    let bf16 = plan(
        job(DEEP, 4, 32, Precision::Bf16, 2),
        &["zo_adam:hybrid=2,master=yes"],
    );
    train(&bf16, 2);
}

#[test]
fn recomputed_layers_give_the_same_losses() {
    let losses = |more: &[&str]| {
        let mut choices = vec!["zo_sgd:hybrid=3"];
        choices.extend(more);
        train(&deep(&choices), 3)
    };
    let (plain, kept) = losses(&[]);
    let (again, least) = losses(&["recompute"]);
    assert_eq!(plain, again);
    assert!(least[Place::Gpu] < kept[Place::Gpu], "{least:?} {kept:?}");
}

#[test]
fn what_a_hybrid_cannot_be_is_refused_by_name() {
    let refused = |precision, choices: &[&str], name: &str| {
        let choices = choices.iter().map(|c| Choice::parse(c).unwrap()).collect();
        let plan = Plan::new(job(DEEP, 4, 16, precision, 1), choices);
        let error = plan.and_then(|p| p.steps().map(|_| ()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    let f32 = Precision::F32;
    refused(f32, &["zo_sgd:hybrid=1,blockwise=yes"], "blockwise");
    refused(
        f32,
        &["zo_sgd:hybrid=1", "accumulate:micro=1"],
        "accumulate",
    );
    refused(f32, &["zo_sgd:hybrid=7"], "hybrid");
    refused(f32, &["zo_sgd:hybrid=6", "lora"], "hybrid");
    refused(f32, &["zo_sgd:hybrid=1", "prompt_tuning"], "hybrid");
    refused(Precision::Fp16, &["zo_sgd:hybrid=1"], "fp16");
}
