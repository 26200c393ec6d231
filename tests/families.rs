//! Whole models of every family: loss and all gradients against the published architecture and against differences.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{Tensor, Var};
use memfit::error::Result;
use memfit::graph::backward::{Gradients, differentiate};
use memfit::graph::build::{self, LOSS, Options, SCALE, TARGETS, TOKENS};
use memfit::graph::op::Port;
use memfit::graph::tensor::{DType, Role, TensorId};
use memfit::graph::{Phase, Step, When};
use memfit::spec::config;
use memfit::spec::job::Precision;

use crate::bench::{bytes_of, floats, integers, rounded, values};
use crate::programs::{job, plan};
use crate::published::{Batch, Published, tensor};
use crate::reference::Evaluator;

pub const BATCH: u64 = 2;
pub const SEQ: u64 = 16;

/// The loss scale that gradients carry, and must carry to the end.
pub const LOSS_SCALE: f32 = 8.0;

/// The bound of one op; whole models measured 1.4e-6 at most.
const F32_BOUND: f64 = 1e-5;

/// Every activation on the way is rounded to 8 bits, 2^-9 each, through about forty ops; measured 2.2e-2 at most.
const BF16_BOUND: f64 = 3e-2;

const GPT2: &str = r#"{"model_type":"gpt2","vocab_size":64,"n_embd":32,"n_layer":2,"n_head":4,"n_positions":24,
"layer_norm_epsilon":1e-5,"resid_pdrop":0,"embd_pdrop":0,"attn_pdrop":0}"#;
const OPT: &str = r#"{"model_type":"opt","vocab_size":64,"hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4,
"ffn_dim":96,"max_position_embeddings":24,"dropout":0,"word_embed_proj_dim":32}"#;
const BERT: &str = r#"{"model_type":"bert","vocab_size":64,"hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4,
"intermediate_size":96,"max_position_embeddings":24,"type_vocab_size":2,"layer_norm_eps":1e-12,"hidden_act":"gelu",
"hidden_dropout_prob":0,"attention_probs_dropout_prob":0}"#;
pub const LLAMA: &str = r#"{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":88,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"tie_word_embeddings":false,"rope_theta":500000.0,
"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
"original_max_position_embeddings":640}}"#;
const MISTRAL: &str = r#"{"model_type":"mistral","vocab_size":64,"hidden_size":32,"intermediate_size":88,
"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"sliding_window":5,
"tie_word_embeddings":false}"#;
const QWEN2: &str = r#"{"model_type":"qwen2","vocab_size":64,"hidden_size":32,"intermediate_size":88,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":1,"rms_norm_eps":1e-6,"tie_word_embeddings":true,"rope_theta":1000000.0}"#;
const QWEN3: &str = r#"{"model_type":"qwen3","vocab_size":64,"hidden_size":32,"intermediate_size":88,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"rms_norm_eps":1e-6,"tie_word_embeddings":false}"#;
const PHI3: &str = r#"{"model_type":"phi3","vocab_size":64,"hidden_size":32,"intermediate_size":88,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":4,"rms_norm_eps":1e-5,"sliding_window":7,"partial_rotary_factor":0.5,
"resid_pdrop":0,"embd_pdrop":0,"tie_word_embeddings":false}"#;
const GEMMA2: &str = r#"{"model_type":"gemma2","vocab_size":64,"hidden_size":32,"intermediate_size":88,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"query_pre_attn_scalar":6,"rms_norm_eps":1e-6,
"sliding_window":5,"attn_logit_softcapping":2.0,"final_logit_softcapping":3.0}"#;
const MIXTRAL: &str = r#"{"model_type":"mixtral","vocab_size":64,"hidden_size":32,"intermediate_size":40,
"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"num_local_experts":4,
"num_experts_per_tok":2,"rope_theta":1000000.0,"tie_word_embeddings":false}"#;

pub const FAMILIES: [&str; 10] = [
    GPT2, OPT, BERT, LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA2, MIXTRAL,
];

/// A training step whose gradients can be read: each parameter's name, value and gradient.
pub struct Built {
    pub step: Step,
    pub parameters: Vec<(String, TensorId, TensorId)>,
}

/// Loss and gradients.
pub struct Ran {
    pub loss: f64,
    pub gradients: BTreeMap<String, Vec<f32>>,
}

/// Parameters by name.
pub type Values = BTreeMap<String, Vec<f32>>;

/// The outside of one batch.
pub struct Fed {
    pub batch: Batch,
    pub loss: Arc<Mutex<f32>>,
}

impl Port for Fed {
    fn read(&self, name: &str, _: u64, into: &mut [u8]) -> Result<()> {
        let counted = self.batch.targets.iter().filter(|t| **t != u32::MAX);
        let scale = [1.0 / counted.count() as f32, LOSS_SCALE];
        match name {
            TOKENS => into.copy_from_slice(bytemuck::cast_slice(&self.batch.tokens)),
            TARGETS => into.copy_from_slice(bytemuck::cast_slice(&self.batch.targets)),
            SCALE => into.copy_from_slice(bytemuck::cast_slice(&scale)),
            other => panic!("nobody feeds {other}"),
        }
        Ok(())
    }
    fn write(&self, name: &str, _: u64, from: &[u8]) -> Result<()> {
        assert_eq!(name, LOSS);
        *self.loss.lock().unwrap() = f32::from_ne_bytes(from.try_into().unwrap());
        Ok(())
    }
}

/// Random tokens; two positions do not count.
pub fn batch() -> Batch {
    let tokens = (BATCH * SEQ) as usize;
    let mut targets = integers(6, tokens, 64);
    (targets[3], targets[20]) = (u32::MAX, u32::MAX);
    Batch {
        tokens: integers(5, tokens, 64),
        targets,
        seq: SEQ as usize,
    }
}

/// Forward and derivative, nothing else.
pub fn built(text: &str, dtype: DType) -> Built {
    let model = config::parse("tiny", text).unwrap();
    let options = Options {
        dtype,
        batch: BATCH,
        seq: SEQ,
        training: true,
    };
    let forward = build::forward(&model, options).unwrap();
    let (mut step, parameters) = (forward.step, forward.parameters);
    let gradients = Gradients::new(&step, &parameters, None);
    let gradients = differentiate(&mut step, gradients).unwrap();
    let pair = |&id: &TensorId| {
        let name = step.storage_of(id).name.to_string();
        let gradient = gradients.of(id);
        let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
        (name, id, gradient)
    };
    let parameters = parameters.iter().map(pair).collect();
    Built { step, parameters }
}

/// The training step of a plan; its gradients are what its updates read.
pub fn planned(text: &str, precision: Precision, choices: &[&str]) -> Built {
    let plan = plan(job(text, BATCH, SEQ, precision, 2), choices);
    let set = plan.steps().unwrap();
    let steady = set
        .steps
        .into_iter()
        .find(|(when, _)| *when == When::Steady);
    let step = steady.unwrap().1;
    let updates = step.nodes.iter().filter(|n| n.phase == Phase::Update);
    let parameters = updates
        .map(|n| (n.origin.to_string(), n.inputs[1], n.inputs[0]))
        .collect();
    Built { step, parameters }
}

impl Built {
    /// Normal values of a size that keeps activations near one; norm weights near one.
    pub fn values(&self) -> Values {
        let value = |(index, (name, id, _)): (usize, &(String, TensorId, TensorId))| {
            let at = self.step.type_of(*id);
            let (shift, scale) = match name {
                n if n.contains("norm.weight") => (1.0, 0.2),
                n if n.ends_with("bias") => (0.0, 0.2),
                n if n.starts_with("embedding") => (0.0, 0.5),
                _ => (0.0, 0.15),
            };
            let normal = values(100 + index as u64, at.elements() as usize, scale);
            let shifted: Vec<f32> = normal.into_iter().map(|v| v + shift).collect();
            (name.clone(), rounded(&shifted, at.dtype))
        };
        self.parameters.iter().enumerate().map(value).collect()
    }

    /// What runs `step`, which has at least the storages of the built one, on a batch; and where the loss goes.
    pub fn evaluator(&self, step: Step, values: &Values) -> (Evaluator, Arc<Mutex<f32>>) {
        let mut evaluator = Evaluator::new(step);
        for id in (0..self.step.tensors.len() as u32).map(TensorId) {
            // Moments start at zero; what is read before it is written would be NaN.
            if self.step.storage_of(id).role == Role::OptimizerState {
                evaluator.raw(id).fill(0);
            }
        }
        for (name, id, _) in &self.parameters {
            let bytes = bytes_of(&values[name], self.step.type_of(*id).dtype);
            evaluator.raw(*id).copy_from_slice(&bytes);
        }
        let loss = Arc::new(Mutex::new(f32::NAN));
        evaluator.port = Box::new(Fed {
            batch: batch(),
            loss: loss.clone(),
        });
        (evaluator, loss)
    }

    pub fn run(&self, values: &Values) -> Ran {
        let (mut evaluator, loss) = self.evaluator(self.step.clone(), values);
        evaluator.run(0..self.step.nodes.len()).unwrap();
        let read = |(name, _, gradient): &(String, TensorId, TensorId)| {
            let dtype = self.step.type_of(*gradient).dtype;
            (name.clone(), floats(evaluator.raw(*gradient), dtype))
        };
        let gradients = self.parameters.iter().map(read).collect();
        let loss = f64::from(*loss.lock().unwrap());
        Ran { loss, gradients }
    }

    /// The published architecture with the same parameters and batch.
    fn published(&self, text: &str, values: &Values) -> Ran {
        let var = |(name, id, _): &(String, TensorId, TensorId)| {
            let value = tensor(&values[name], &self.step.type_of(*id).shape);
            (name.clone(), Var::from_tensor(&value).unwrap())
        };
        let vars: BTreeMap<String, Var> = self.parameters.iter().map(var).collect();
        let parameters: BTreeMap<String, Tensor> = vars
            .iter()
            .map(|(name, v)| (name.clone(), v.as_tensor().clone()))
            .collect();
        let published = Published {
            config: serde_json::from_str(text).unwrap(),
            parameters: &parameters,
            batch: batch(),
        };
        let loss = published.loss().unwrap();
        let gradients = (&loss * f64::from(LOSS_SCALE)).unwrap().backward().unwrap();
        let gradient = |(name, v): (&String, &Var)| {
            let gradient = gradients.get(v);
            let gradient = gradient.unwrap_or_else(|| panic!("nobody published {name}"));
            let flat = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            (name.clone(), flat.iter().map(|g| *g as f32).collect())
        };
        Ran {
            loss: loss.to_scalar().unwrap(),
            gradients: vars.iter().map(gradient).collect(),
        }
    }
}

fn norm(values: &[f32]) -> f64 {
    let squares = values.iter().map(|v| f64::from(*v).powi(2));
    squares.sum::<f64>().sqrt()
}

/// What an error of a gradient is measured by: its norm. A bias that all keys share leaves the softmax as it is where nothing
/// turns them, so its true gradient is zero: it is measured by the queries' bias.
fn size(wanted: &Ran, name: &str) -> f64 {
    let own = norm(&wanted.gradients[name]);
    match name.strip_suffix("/k.bias") {
        Some(at) => own.max(norm(&wanted.gradients[&format!("{at}/q.bias")])),
        None => own,
    }
}

fn assert_agrees(what: &str, ran: &Ran, wanted: &Ran, loss_bound: f64, bound: f64) {
    let off = (ran.loss - wanted.loss).abs() / wanted.loss;
    assert!(off <= loss_bound, "{what}: the loss is off by {off:e}");
    assert_eq!(ran.gradients.len(), wanted.gradients.len());
    for (name, gradient) in &ran.gradients {
        let pairs = gradient.iter().zip(&wanted.gradients[name]);
        let difference: Vec<f32> = pairs.map(|(g, w)| g - w).collect();
        let error = norm(&difference) / size(wanted, name);
        assert!(error <= bound, "{what}: {name} is off by {error:e}");
    }
}

pub fn kind(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    value["model_type"].as_str().unwrap().to_string()
}

#[test]
fn every_family_agrees_with_its_published_architecture() {
    for text in FAMILIES {
        let built = built(text, DType::F32);
        let values = built.values();
        let wanted = built.published(text, &values);
        assert_agrees(&kind(text), &built.run(&values), &wanted, 1e-6, F32_BOUND);
    }
}

#[test]
fn narrow_families_stay_near_their_published_architecture() {
    for text in [LLAMA, GPT2] {
        let built = built(text, DType::Bf16);
        let values = built.values();
        let wanted = built.published(text, &values);
        assert_agrees(&kind(text), &built.run(&values), &wanted, 1e-2, BF16_BOUND);
    }
}

#[test]
fn plans_of_every_family_agree_with_the_published_architecture() {
    for text in FAMILIES {
        let mut choices = vec!["flash_attention", "chunked_loss:rows=12"];
        if kind(text) == "bert" {
            choices.pop(); // Its head has a bias.
        }
        let built = planned(text, Precision::F32, &choices);
        let values = built.values();
        let wanted = built.published(text, &values);
        let what = format!("{} with {choices:?}", kind(text));
        assert_agrees(&what, &built.run(&values), &wanted, 1e-6, F32_BOUND);
    }
}

#[test]
fn narrow_plans_stay_near_the_published_architecture() {
    for text in [LLAMA, GPT2] {
        let choices = ["flash_attention", "chunked_loss:rows=12"];
        let built = planned(text, Precision::Bf16, &choices);
        let values = built.values();
        let wanted = built.published(text, &values);
        assert_agrees(&kind(text), &built.run(&values), &wanted, 1e-2, BF16_BOUND);
    }
}

/// Along each parameter's own gradient the loss changes by its norm.
#[test]
fn gradients_of_whole_models_agree_with_differences() {
    for text in [GPT2, BERT, LLAMA, GEMMA2] {
        let built = built(text, DType::F32);
        let values = built.values();
        let ran = built.run(&values);
        for (name, gradient) in &ran.gradients {
            let norm = norm(gradient);
            if norm < 0.1 {
                continue; // Scaled, the loss is known to 3e-6 only.
            }
            let moved = |by: f64| {
                let mut values = values.clone();
                let parameter = values.get_mut(name).unwrap();
                for (v, g) in parameter.iter_mut().zip(gradient) {
                    *v += (by * f64::from(*g) / norm) as f32;
                }
                built.run(&values).loss * f64::from(LOSS_SCALE)
            };
            let slope = |by: f64| (moved(by) - moved(-by)) / (2.0 * by);
            // Richardson's step takes out the third derivative.
            let slope = (4.0 * slope(0.01) - slope(0.02)) / 3.0;
            let error = (slope - norm).abs() / norm;
            assert!(error < 5e-3, "{}: {name} is off by {error:e}", kind(text));
        }
    }
}
