//! Forward mode: tangents of whole models against the gradients of the backward pass, and what they cost in memory.

use memfit::graph::tangent::{Tangents, push_forward};
use memfit::graph::tensor::{DType, Role, TensorId};
use memfit::graph::{Phase, Step, StepSet, When};
use memfit::program::{check::check, programs};
use memfit::spec::job::{Backend, Place, Precision};

use crate::bench::{bytes_of, rounded, values};
use crate::families::{Built, FAMILIES, LOSS_SCALE, Values, built, kind, planned};

/// Bound of the error of ⟨∇loss, v⟩ relative to ‖∇loss‖, its deviation over normal v: measured 7.9e-7 at most, which is 6.8e-6
/// of ⟨∇loss, v⟩ itself.
const F32_BOUND: f64 = 2e-6;
/// The same where every value on both ways is rounded to 8 bits: measured 1.5e-2 at most.
const BF16_BOUND: f64 = 2e-2;

/// The forward nodes of a built step with the tangent of its loss along tangents of all parameters, in their order.
struct Pushed {
    step: Step,
    seeds: Vec<TensorId>,
    loss: TensorId,
}

fn forward(built: &Built) -> Step {
    let mut step = built.step.clone();
    step.nodes.retain(|n| n.phase == Phase::Forward);
    step
}

fn pushed(built: &Built) -> Pushed {
    let mut step = forward(built);
    let mut tangents = Tangents::default();
    let mut seeds = Vec::new();
    for (name, id, _) in &built.parameters {
        let (name, at) = (format!("tangent/{name}"), step.type_of(*id).clone());
        let seed = step.persistent(&name, at, Place::Gpu, Role::Temporary);
        tangents.seed(*id, seed);
        seeds.push(seed);
    }
    let report = step.nodes.iter().find(|n| n.op.name() == "report").unwrap();
    let loss = report.inputs[0];
    let tangents = push_forward(&mut step, tangents).unwrap();
    let loss = tangents.of(loss).unwrap();
    Pushed { step, seeds, loss }
}

/// A normal direction in the space of all parameters, in their formats.
fn direction(built: &Built) -> Values {
    let along = |(index, (name, id, _)): (usize, &(String, TensorId, TensorId))| {
        let at = built.step.type_of(*id);
        let normal = values(300 + index as u64, at.elements() as usize, 1.0);
        (name.clone(), rounded(&normal, at.dtype))
    };
    built.parameters.iter().enumerate().map(along).collect()
}

/// The tangent of the loss by forward mode.
fn slope(built: &Built, values: &Values, direction: &Values) -> f64 {
    let Pushed { step, seeds, loss } = pushed(built);
    let nodes = step.nodes.len();
    let (mut evaluator, _) = built.evaluator(step, values);
    for ((name, id, _), seed) in built.parameters.iter().zip(seeds) {
        let bytes = bytes_of(&direction[name], built.step.type_of(*id).dtype);
        evaluator.raw(seed).copy_from_slice(&bytes);
    }
    evaluator.run(0..nodes).unwrap();
    f64::from(evaluator.get::<f32>(loss)[0])
}

/// ‖∇loss‖ and ⟨∇loss, v⟩ by the backward pass.
fn gradient_along(built: &Built, values: &Values, direction: &Values) -> (f64, f64) {
    let gradients = built.run(values).gradients;
    let (mut square, mut product) = (0.0, 0.0);
    for (name, gradient) in &gradients {
        for (g, v) in gradient.iter().zip(&direction[name]) {
            let g = f64::from(*g) / f64::from(LOSS_SCALE);
            square += g * g;
            product += g * f64::from(*v);
        }
    }
    (square.sqrt(), product)
}

fn assert_agrees(what: &str, built: &Built, bound: f64) {
    let (values, direction) = (built.values(), direction(built));
    let got = slope(built, &values, &direction);
    let (norm, wanted) = gradient_along(built, &values, &direction);
    let error = (got - wanted).abs() / norm;
    println!("{what}: {got} for {wanted}, {error:.1e} of the norm {norm}");
    assert!(norm > 0.1 && wanted.abs() > 0.01 * norm && error < bound);
}

/// The configuration with dropout wherever the family has it.
fn dropping(text: &str) -> String {
    let keys = ["drop\":0", "dropout\":0", "prob\":0"];
    keys.iter().fold(text.to_string(), |text, key| {
        text.replace(key, &format!("{key}.1"))
    })
}

fn choices(text: &str) -> Vec<&'static str> {
    match kind(text).as_str() {
        "bert" => vec!["flash_attention"], // Its head has a bias.
        _ => vec!["flash_attention", "chunked_loss:rows=12"],
    }
}

#[test]
fn tangents_of_every_family_agree_with_gradients() {
    for text in FAMILIES {
        assert_agrees(&kind(text), &built(text, DType::F32), F32_BOUND);
    }
}

#[test]
fn tangents_draw_the_dropout_of_their_values() {
    let dropped = FAMILIES.map(dropping);
    let mut families = 0;
    for text in &dropped {
        let plain = built(text, DType::F32);
        families += usize::from(plain.step.nodes.iter().any(|n| n.op.name() == "dropout"));
        assert_agrees(&kind(text), &plain, F32_BOUND);
        let flash = planned(text, Precision::F32, &choices(text));
        assert_agrees(&kind(text), &flash, F32_BOUND);
    }
    assert_eq!(families, 4, "GPT-2, OPT, BERT and Phi-3 drop");
}

#[test]
fn tangents_of_tiles_and_chunks_agree_with_gradients() {
    for text in FAMILIES {
        let built = planned(text, Precision::F32, &choices(text));
        assert_agrees(&kind(text), &built, F32_BOUND);
    }
}

#[test]
fn narrow_tangents_stay_near_gradients() {
    for text in FAMILIES {
        assert_agrees(&kind(text), &built(text, DType::Bf16), BF16_BOUND);
        let flash = planned(text, Precision::Bf16, &choices(text));
        assert_agrees(&kind(text), &flash, BF16_BOUND);
    }
}

/// Each value moves as soon as it is there: the nodes of its tangent follow its own at once, under its name.
#[test]
fn tangents_follow_their_nodes() {
    for text in FAMILIES {
        for built in [
            built(text, DType::F32),
            planned(text, Precision::F32, &choices(text)),
        ] {
            let plain = forward(&built);
            let mut primal = plain.nodes.iter().peekable();
            let mut follow: Vec<(&str, usize)> = Vec::new();
            let mut origin = None;
            for node in &pushed(&built).step.nodes {
                if let Some(own) = primal.next_if(|n| n.outputs == node.outputs) {
                    follow.push((own.op.name(), 0));
                    origin = Some(own.origin.clone());
                    continue;
                }
                follow.last_mut().unwrap().1 += 1;
                assert_eq!(Some(&node.origin), origin.as_ref());
                assert_eq!(node.phase, Phase::Forward);
            }
            assert!(primal.next().is_none());
            for (name, count) in follow {
                let outside = ["feed", "report"].contains(&name);
                assert_eq!(count == 0, outside, "{count} nodes follow {name}");
            }
        }
    }
}

/// A forward pass is made of ops that have both rules: none answers that it has no derivative.
#[test]
fn every_op_of_a_forward_pass_has_both_rules() {
    let mut names = std::collections::BTreeSet::new();
    for text in &FAMILIES.map(dropping) {
        for built in [
            built(text, DType::F32),
            planned(text, Precision::F32, &choices(text)),
        ] {
            // Both were applied to every node that moves, or this would have failed.
            let pushed = pushed(&built);
            let nodes = forward(&built).nodes;
            let moved = pushed.step.nodes.len() - nodes.len();
            assert!(moved > 0 && built.parameters.len() > 2);
            names.extend(nodes.iter().map(|n| n.op.name()));
        }
    }
    assert_eq!(names.len(), 20, "{names:?}");
}

/// Most bytes alive on the device at once, without what lives between steps.
fn transient(step: Step) -> u64 {
    let set = StepSet {
        steps: vec![(When::Steady, step)],
        ..StepSet::default()
    };
    let lowered = programs(set, Backend::Cpu { threads: 1 }).unwrap();
    check(&lowered[0]).unwrap();
    let kept = lowered[0].buffers.iter().filter(|b| b.shared);
    lowered[0].load[Place::Gpu].0 - kept.map(|b| b.bytes.0).sum::<u64>()
}

/// What forward gradients are for (Baydin et al. 2022): no activation waits for a backward pass.
#[test]
fn tangents_take_the_same_memory_at_any_depth() {
    for text in FAMILIES {
        let deep = text.replace("_layers\":2", "_layers\":8");
        let deep = deep.replace("n_layer\":2", "n_layer\":8");
        let (shallow, deep) = (built(text, DType::F32), built(&deep, DType::F32));
        let tangent = |built: &Built| transient(pushed(built).step);
        let (low, high) = (tangent(&shallow), tangent(&deep));
        let backward = transient(deep.step.clone());
        let alone = transient(forward(&deep));
        println!(
            "{}: forward {alone}, tangent {high}, backward {backward}",
            kind(text)
        );
        assert_eq!(high, low, "{} grows with depth", kind(text));
        assert!(high <= 3 * alone && 2 * high < backward);
    }
}
