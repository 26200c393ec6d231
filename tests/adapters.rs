//! Adapters on whole models: their losses, gradients and tangents, what they leave in memory, and what is refused.

use std::collections::BTreeMap;

use memfit::graph::op::matmul::Linear;
use memfit::graph::op::quantized::Format;
use memfit::graph::tangent::{Tangents, push_forward};
use memfit::graph::tensor::{First, Role, TensorId, Type};
use memfit::graph::{Phase, Step, When};
use memfit::machine::train::quantize::derive;
use memfit::plan::{Choice, Plan};
use memfit::program::Program;
use memfit::spec::job::{Place, Precision};

use crate::bench::{bytes_of, rounded};
use crate::families::{BATCH, Built, FAMILIES, LOSS_SCALE, Ran, SEQ, Values, kind, planned};
use crate::programs::{MICRO, job, lower, plan};

/// Adapters of every kind.
const ADAPTERS: [&str; 5] = [
    "lora:targets=all-linear,rank=3,alpha=6",
    "adapter:width=5",
    "adapter:width=5,after=mlp,activation=silu,residual=no",
    "prefix_tuning:tokens=3,spread=0.5",
    "prompt_tuning:tokens=3,spread=0.5",
];

/// A training step on a frozen model.
struct Adapted {
    built: Built,
    frozen: Vec<(String, TensorId, First)>,
}

fn adapted(text: &str, precision: Precision, choices: &[&str]) -> Adapted {
    let built = planned(text, precision, choices);
    let mut frozen = Vec::new();
    for (index, tensor) in built.step.tensors.iter().enumerate() {
        let storage = built.step.storage(tensor.storage);
        if storage.shared && tensor.version == 0 && storage.first.is_frozen() {
            let id = TensorId(index as u32);
            frozen.push((storage.name.to_string(), id, storage.first.clone()));
        }
    }
    Adapted { built, frozen }
}

/// Values of all parameters of a model, as full training has them, and of the adapter's.
fn all_values(text: &str, adapted: &Adapted) -> Values {
    let mut all = planned(text, Precision::F32, &[]).values();
    all.extend(adapted.built.values());
    all
}

impl Adapted {
    /// What runs `step` with these values, and where the loss goes.
    fn run(&self, step: &Step, values: &Values, wanted: &[TensorId]) -> (f64, Vec<Vec<f32>>) {
        let (mut evaluator, loss) = self.built.evaluator(step.clone(), values);
        for (name, id, first) in &self.frozen {
            let at = step.type_of(*id).clone();
            let bytes = match first {
                First::Derived { of, how } => {
                    let weight = rounded(&values[&**of], how.source);
                    let mut bytes = vec![0; at.bytes().0 as usize];
                    derive(how, 0, &mut bytes, &mut None, &mut |first, into| {
                        into.copy_from_slice(&weight[first as usize..][..into.len()]);
                        Ok(())
                    })
                    .unwrap();
                    bytes
                }
                _ => bytes_of(&values[name], at.dtype),
            };
            evaluator.raw(*id).copy_from_slice(&bytes);
        }
        evaluator.run(0..step.nodes.len()).unwrap();
        let wide = |&id: &TensorId| {
            let dtype = step.type_of(id).dtype;
            crate::bench::floats(evaluator.raw(id), dtype)
        };
        let read = wanted.iter().map(wide).collect();
        (f64::from(*loss.lock().unwrap()), read)
    }

    fn ran(&self, values: &Values) -> Ran {
        let ids: Vec<TensorId> = self.built.parameters.iter().map(|p| p.2).collect();
        let (loss, read) = self.run(&self.built.step, values, &ids);
        let names = self.built.parameters.iter().map(|p| p.0.clone());
        Ran {
            loss,
            gradients: names.zip(read).collect(),
        }
    }
}

fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|&v| f64::from(v).powi(2))
        .sum::<f64>()
        .sqrt()
}

#[test]
fn lora_that_has_not_moved_leaves_the_loss_bit_for_bit() {
    for text in FAMILIES {
        for (precision, choices) in [
            (Precision::F32, vec!["lora:targets=all-linear,rank=4"]),
            (Precision::Bf16, vec!["lora", "flash_attention"]),
        ] {
            let base = planned(text, precision, &choices[1..]);
            let adapted = adapted(text, precision, &choices);
            let mut values = all_values(text, &adapted);
            for (name, value) in &mut values {
                if name.ends_with("lora_b.weight") {
                    value.fill(0.0);
                }
            }
            let wanted = base.run(&rounded_all(&base, &values)).loss;
            let got = adapted.ran(&values).loss;
            assert_eq!(
                got.to_bits(),
                wanted.to_bits(),
                "{} {precision}",
                kind(text)
            );
        }
    }
}

/// Values rounded to the formats a built step has them in.
fn rounded_all(built: &Built, values: &Values) -> Values {
    let one = |(name, id, _): &(String, TensorId, TensorId)| {
        let dtype = built.step.type_of(*id).dtype;
        (name.clone(), rounded(&values[name], dtype))
    };
    built.parameters.iter().map(one).collect()
}

/// `c (m, n) += a (m, k) · b (k, n)`, each with its strides, in doubles.
fn multiply(
    a: &[f32],
    b: &[f32],
    (m, k, n): (usize, usize, usize),
    turned: (bool, bool),
) -> Vec<f32> {
    let mut c = vec![0f32; m * n];
    for (i, row) in c.chunks_mut(n).enumerate() {
        for (j, c) in row.iter_mut().enumerate() {
            let at = |l: usize| {
                let a = if turned.0 { a[l * m + i] } else { a[i * k + l] };
                let b = if turned.1 { b[j * k + l] } else { b[l * n + j] };
                f64::from(a) * f64::from(b)
            };
            *c = (0..k).map(at).sum::<f64>() as f32;
        }
    }
    c
}

/// The model with every product merged into its weight has the same loss, and its gradients give those of both factors:
/// d(W + s B A) gives dB = s dW Aᵀ and dA = s Bᵀ dW, summed over layers that share an A.
#[test]
fn lora_has_the_loss_and_the_gradients_of_the_merged_model() {
    const SCALE: f32 = 2.0;
    for text in FAMILIES {
        let adapted = adapted(
            text,
            Precision::F32,
            &["lora:targets=all-linear,rank=3,alpha=6"],
        );
        let values = all_values(text, &adapted);
        let got = adapted.ran(&values);
        let base = planned(text, Precision::F32, &[]);
        let shapes: BTreeMap<&str, Vec<u64>> = base
            .parameters
            .iter()
            .map(|(name, id, _)| (name.as_str(), base.step.type_of(*id).shape.clone()))
            .collect();
        let a_of = |stem: &str| {
            let own = format!("{stem}.lora_a.weight");
            let (at, _) = stem.rsplit_once('/').unwrap_or((stem, ""));
            let first = format!("{at}/q.lora_a.weight");
            let gate = format!("{at}/gate.lora_a.weight");
            [own, first, gate]
                .into_iter()
                .find(|name| values.contains_key(name))
                .unwrap()
        };
        let mut merged = rounded_all(&base, &values);
        let stems: Vec<String> = values
            .keys()
            .filter_map(|name| name.strip_suffix(".lora_b.weight").map(str::to_string))
            .collect();
        assert!(stems.len() >= 8, "{stems:?}");
        let parts = |stem: &str| {
            let shape = &shapes[format!("{stem}.weight").as_str()];
            let (o, i) = (
                shape[shape.len() - 2] as usize,
                shape[shape.len() - 1] as usize,
            );
            let experts = if shape.len() == 3 {
                shape[0] as usize
            } else {
                1
            };
            (experts, o, i)
        };
        for stem in &stems {
            let (experts, o, i) = parts(stem);
            let (a, b) = (
                &values[&a_of(stem)],
                &values[&format!("{stem}.lora_b.weight")],
            );
            let weight = merged.get_mut(&format!("{stem}.weight")).unwrap();
            for e in 0..experts {
                let part = multiply(
                    &b[e * o * 3..(e + 1) * o * 3],
                    &a[e * 3 * i..(e + 1) * 3 * i],
                    (o, 3, i),
                    (false, false),
                );
                let own = &mut weight[e * o * i..(e + 1) * o * i];
                own.iter_mut().zip(part).for_each(|(w, p)| *w += SCALE * p);
            }
        }
        let wanted = base.run(&merged);
        assert!(
            (got.loss - wanted.loss).abs() < 2e-6 * wanted.loss,
            "{}: {} for {}",
            kind(text),
            got.loss,
            wanted.loss
        );
        let mut gradients: Values = Values::new();
        for stem in &stems {
            let (experts, o, i) = parts(stem);
            let (a_name, b_name) = (a_of(stem), format!("{stem}.lora_b.weight"));
            let dw = &wanted.gradients[&format!("{stem}.weight")];
            let (mut da, mut db) = (Vec::new(), Vec::new());
            for e in 0..experts {
                let dw = &dw[e * o * i..(e + 1) * o * i];
                db.extend(multiply(
                    dw,
                    &values[&a_name][e * 3 * i..(e + 1) * 3 * i],
                    (o, i, 3),
                    (false, true),
                ));
                da.extend(multiply(
                    &values[&b_name][e * o * 3..(e + 1) * o * 3],
                    dw,
                    (3, o, i),
                    (true, false),
                ));
            }
            gradients.insert(b_name, db);
            let sum = gradients
                .entry(a_name)
                .or_insert_with(|| vec![0.0; da.len()]);
            sum.iter_mut().zip(da).for_each(|(sum, da)| *sum += da);
        }
        for (name, gradient) in &got.gradients {
            let wanted: Vec<f32> = gradients[name].iter().map(|g| SCALE * g).collect();
            let size = norm(&wanted).max(0.01);
            let difference: Vec<f32> = gradient.iter().zip(&wanted).map(|(g, w)| g - w).collect();
            let off = norm(&difference) / size;
            assert!(off < 3e-5, "{}: {name} is off by {off:e}", kind(text));
        }
    }
}

/// Along each parameter's own gradient the loss changes by its norm; not where it has kinks (OPT's ReLU) or steps (Mixtral's
/// routing), whose derivatives the tangents hold.
#[test]
fn gradients_of_adapters_agree_with_differences() {
    let smooth = |text: &&str| !["opt", "mixtral"].contains(&kind(text).as_str());
    for text in FAMILIES.into_iter().filter(smooth) {
        for choice in ADAPTERS {
            let adapted = adapted(text, Precision::F32, &[choice]);
            let values = all_values(text, &adapted);
            let ran = adapted.ran(&values);
            let mut checked = 0;
            for (name, gradient) in &ran.gradients {
                let norm = norm(gradient);
                if norm < 0.2 || checked == 4 {
                    continue; // Scaled, the loss is known to 3e-6 only.
                }
                checked += 1;
                let moved = |by: f64| {
                    let mut values = values.clone();
                    let parameter = values.get_mut(name).unwrap().iter_mut();
                    parameter
                        .zip(gradient)
                        .for_each(|(v, g)| *v += (by * f64::from(*g) / norm) as f32);
                    let (loss, _) = adapted.run(&forward(&adapted.built), &values, &[]);
                    loss * f64::from(LOSS_SCALE)
                };
                let slope = |by: f64| (moved(by) - moved(-by)) / (2.0 * by);
                let slope = (4.0 * slope(0.01) - slope(0.02)) / 3.0;
                let off = (slope - norm).abs() / norm;
                assert!(
                    off < 1e-2,
                    "{} {choice}: {name} is off by {off:e}",
                    kind(text)
                );
            }
            assert!(checked > 0, "{} {choice}", kind(text));
        }
    }
}

/// The forward nodes of a step.
fn forward(built: &Built) -> Step {
    let mut step = built.step.clone();
    step.nodes.retain(|n| n.phase == Phase::Forward);
    step
}

/// ⟨∇loss, v⟩ by forward mode and by the backward pass, relative to ‖∇loss‖; flash attention and frozen quantized weights beside.
#[test]
fn tangents_of_adapted_models_agree_with_their_gradients() {
    for text in FAMILIES {
        for (index, choice) in ADAPTERS.iter().enumerate() {
            let mut choices = vec![*choice];
            choices.extend(["flash_attention", "nf4_weights"].iter().skip(index % 2));
            let adapted = adapted(text, Precision::F32, &choices);
            let values = all_values(text, &adapted);
            let gradients = adapted.ran(&values).gradients;
            let mut step = forward(&adapted.built);
            let mut tangents = Tangents::default();
            let mut along = Vec::new();
            for (index, (name, id, _)) in adapted.built.parameters.iter().enumerate() {
                let at: Type = step.type_of(*id).clone();
                let v = crate::bench::values(500 + index as u64, at.elements() as usize, 1.0);
                let seed =
                    step.persistent(&format!("tangent/{name}"), at, Place::Gpu, Role::Temporary);
                tangents.seed(*id, seed);
                along.push((name.clone(), seed, v));
            }
            let report = step.nodes.iter().find(|n| n.op.name() == "report").unwrap();
            let loss = report.inputs[0];
            let tangents = push_forward(&mut step, tangents).unwrap();
            let slope = tangents.of(loss).unwrap();
            let (mut square, mut product) = (0.0, 0.0);
            for (name, _, v) in &along {
                for (g, v) in gradients[name].iter().zip(v) {
                    let g = f64::from(*g) / f64::from(LOSS_SCALE);
                    square += g * g;
                    product += g * f64::from(*v);
                }
            }
            let (mut adapted, mut with) = (adapted, values.clone());
            for (name, seed, v) in along {
                adapted
                    .built
                    .parameters
                    .push((format!("tangent/{name}"), seed, seed));
                with.insert(format!("tangent/{name}"), v);
            }
            adapted.built.step = step.clone();
            let got = f64::from(adapted.run(&step, &with, &[slope]).1[0][0]);
            let off = (got - product).abs() / square.sqrt();
            println!(
                "{} {choices:?}: {got} for {product}, {off:.1e} of {}",
                kind(text),
                square.sqrt()
            );
            assert!(
                square.sqrt() > 1e-3 && off < 5e-6,
                "{} {choices:?}: {off:e}",
                kind(text)
            );
        }
    }
}

#[test]
fn quantized_weights_stand_for_their_widened_values() {
    for text in FAMILIES {
        for (choice, format) in [
            ("nf4_weights", Format::Nf4 { double: true }),
            ("nf4_weights:double=no", Format::Nf4 { double: false }),
            ("int8_weights", Format::Int8 { block: None }),
        ] {
            let adapted = adapted(text, Precision::F32, &["lora:targets=all-linear", choice]);
            let values = all_values(text, &adapted);
            let got = adapted.ran(&values);
            let codes = adapted
                .frozen
                .iter()
                .filter(|(name, ..)| name.ends_with(".codes"))
                .count();
            let plain = self::adapted(text, Precision::F32, &["lora:targets=all-linear"]);
            let exact = plain.ran(&values);
            let off = (got.loss - exact.loss).abs() / exact.loss;
            let bound = if matches!(format, Format::Int8 { .. }) {
                0.01
            } else {
                0.1
            };
            assert!(
                codes >= 8 && off > 0.0 && off < bound,
                "{} {choice}: {off}",
                kind(text)
            );
            assert_eq!(got.gradients.len(), exact.gradients.len());
        }
    }
}

#[test]
fn inputs_of_frozen_layers_are_not_kept() {
    for text in FAMILIES {
        let step = planned(text, Precision::F32, &["lora:rank=2"]).step;
        let kept: Vec<TensorId> = step
            .nodes
            .iter()
            .filter(|n| n.phase == Phase::Backward)
            .flat_map(|n| n.inputs.clone())
            .collect();
        let mut frozen = 0;
        for node in step.nodes.iter().filter(|n| n.phase == Phase::Forward) {
            let op: &dyn std::any::Any = node.op.as_ref();
            let leaf = node.origin.rsplit('/').next().unwrap();
            // The core of attention keeps nothing of its output; what enters the others is made by norms, activations and sums.
            if op.is::<Linear>()
                && ["o", "gate", "up", "down"].contains(&leaf)
                && node.block.starts_with("layers")
            {
                let again = step.nodes.iter().any(|n| {
                    n.phase == Phase::Backward
                        && n.op.name().contains("weight")
                        && n.inputs.contains(&node.inputs[0])
                });
                assert!(!again, "{}: {}", kind(text), node.origin);
                frozen += 1;
                if leaf == "down" {
                    assert!(
                        !kept.contains(&node.inputs[0]),
                        "{}: {}",
                        kind(text),
                        node.origin
                    );
                }
            }
        }
        assert!(frozen >= 2, "{}", kind(text));
        assert!(
            !step
                .nodes
                .iter()
                .any(|n| n.op.name() == "embedding_backward")
        );
    }
}

/// Bytes of persistent buffers of a role.
fn held(programs: &[Program], role: Role) -> u64 {
    let steady = programs.iter().find(|p| p.when == When::Steady).unwrap();
    let buffers = steady.buffers.iter().filter(|b| b.shared && b.role == role);
    buffers.map(|b| b.exact.0).sum()
}

#[test]
fn parameters_and_states_take_the_bytes_of_the_closed_forms() {
    // hidden 32, ffn 88, 2 layers, 4 heads of 8, 2 of keys and values, vocabulary 64.
    let (h, f, kv, layers) = (32u64, 88u64, 16u64, 2u64);
    let base = lower(&plan(job(MICRO, 4, 16, Precision::F32, 2), &[]));
    let all = held(&base, Role::Parameter) / 4;
    let linear = layers * (2 * h * h + 2 * h * kv + 3 * h * f);
    let r = 4;
    let lora = layers * r * (2 * (h + h) + 2 * (h + kv) + 3 * (h + f));
    let cases: [(&str, u64); 5] = [
        ("lora:targets=all-linear,rank=4", lora),
        ("lora:rank=4", layers * r * ((h + h) + (h + kv))),
        ("adapter:width=6", layers * 2 * (2 * h * 6 + 6 + h)),
        ("prefix_tuning:tokens=5", 2 * layers * 5 * kv),
        ("prompt_tuning:tokens=5", 5 * h),
    ];
    for (choice, trained) in cases {
        for (precision, width, state) in [(Precision::F32, 4, 8), (Precision::Bf16, 2, 12)] {
            let programs = lower(&plan(job(MICRO, 4, 16, precision, 2), &[choice]));
            assert_eq!(
                held(&programs, Role::Parameter),
                width * (all + trained),
                "{choice}"
            );
            assert_eq!(
                held(&programs, Role::OptimizerState),
                state * trained,
                "{choice}"
            );
        }
    }
    let blocks = |n: u64| n.div_ceil(64);
    let weights = [h * h, h * h, h * kv, h * kv, h * f, h * f, h * f];
    let double: u64 = weights
        .iter()
        .map(|&n| n / 2 + blocks(n) + 4 * blocks(n).div_ceil(256) + 4)
        .sum();
    let choices = ["lora:targets=all-linear,rank=4", "nf4_weights"];
    let programs = lower(&plan(job(MICRO, 4, 16, Precision::Bf16, 2), &choices));
    let wanted = 2 * (all - linear + lora) + layers * double;
    assert_eq!(held(&programs, Role::Parameter), wanted);
}

fn refusal(choices: &[&str]) -> String {
    let choices = choices.iter().map(|c| Choice::parse(c).unwrap()).collect();
    let plan = Plan::new(job(MICRO, 4, 16, Precision::F32, 2), choices);
    match plan.and_then(|plan| plan.steps()) {
        Ok(_) => panic!("was not refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (choices, expected) in [
        (&["nf4_weights"][..], "nothing to train"),
        (&["int8_weights"], "nothing to train"),
        (&["lora", "prefix_tuning"], "holds one kind"),
        (&["lora:targets=q_prog"], "q_proj"),
        (&["lora:site=layers.7"], "no targeted module"),
        (&["adapter:site=embedding"], "no branch"),
        (&["prefix_tuning:site=layers.0"], "leave the site out"),
        (&["prompt_tuning:site=head"], "leave the site out"),
        (&["lora", "nf4_weights:site=layers.9"], "no linear layer"),
    ] {
        let message = refusal(choices);
        assert!(message.contains(expected), "{choices:?}: {message}");
    }
    let gpt2 = FAMILIES[0];
    let choices = |text: &str| vec![Choice::parse(text).unwrap()];
    let too_long = Plan::new(
        job(gpt2, BATCH, SEQ, Precision::F32, 2),
        choices("prompt_tuning:tokens=9"),
    );
    let message = too_long
        .and_then(|plan| plan.steps())
        .unwrap_err()
        .to_string();
    assert!(message.contains("has 24 rows"), "{message}");
}

/// Three queries behind two keys from elsewhere, seen by hand.
#[test]
fn a_query_sees_the_past_and_the_keys_up_to_its_own() {
    let shape = memfit::graph::op::attention::AttentionShape {
        batch: 1,
        seq: 3,
        past: 2,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        causal: true,
        window: None,
        scale: 0.5,
        softcap: None,
        dropout: 0.0,
    };
    let seen: Vec<_> = (0..3).map(|i| shape.visible(i)).collect();
    assert_eq!(seen, [0..3, 0..4, 0..5]);
    let near = memfit::graph::op::attention::AttentionShape {
        window: Some(2),
        ..shape.clone()
    };
    assert_eq!(
        (0..3).map(|i| near.visible(i)).collect::<Vec<_>>(),
        [1..3, 2..4, 3..5]
    );
    let both = memfit::graph::op::attention::AttentionShape {
        causal: false,
        ..shape
    };
    assert_eq!(
        (0..3).map(|i| both.visible(i)).collect::<Vec<_>>(),
        [0..5, 0..5, 0..5]
    );
}

/// transformers 5 scales Gemma's embedding inside its own class, which virtual tokens do not pass through.
#[test]
fn virtual_tokens_of_gemma_enter_as_they_are() {
    let model = memfit::machine::micro::model(
        "gemma2",
        memfit::machine::micro::Size {
            hidden: 64,
            layers: 2,
            vocab: 128,
        },
    );
    let mut job = job(MICRO, 2, 16, Precision::F32, 1);
    job.model = model.unwrap();
    assert!(job.model.embedding_scale > 1.0);
    let step = crate::zeroth_order::steady(&plan(job, &["prompt_tuning:tokens=3"]));
    let prepend = step
        .nodes
        .iter()
        .find(|n| n.op.name() == "prepend")
        .unwrap();
    let first = step.storage_of(prepend.inputs[0]);
    assert_eq!(&*first.name, "embedding/prompt.weight");
}
