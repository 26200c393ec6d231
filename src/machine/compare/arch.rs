//! A published architecture as the model of a class: the one its name says, or a generic decoder.

use serde::Deserialize;
use serde_json::{Value, json};

use super::record::Reason;
use crate::spec::config;
use crate::spec::model::{Family, ModelSpec};

/// Layer sizes as records state them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Arch {
    hidden: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    ffn: u64,
    gated: bool,
    vocab: u64,
    tied_embeddings: bool,
    #[serde(default)]
    qkv_bias: bool,
    #[serde(default)]
    learned_positions: u64,
    #[serde(default)]
    linear_bias: bool,
    /// The parameters these sizes make.
    pub(super) params_computed: Option<u64>,
}

/// Parts of models' names, the longer before those they contain, and the class in transformers they run in.
const NAMES: [(&str, &str, &str); 9] = [
    ("qwen2.5", "qwen2", ""),
    (
        "qwen",
        "qwen2",
        "Qwen 1 as its successor's class: queries, keys and values in a matrix each",
    ),
    ("tinyllama", "llama", ""),
    ("smollm2", "llama", ""),
    ("deepseek-coder", "llama", ""),
    ("llama", "llama", ""),
    ("opt-", "opt", ""),
    ("gpt2", "gpt2", ""),
    (
        "bert",
        "bert",
        "the masked-language head, whatever head was trained",
    ),
];

/// The model of a record, and what was assumed about it. With `joined` heads a gated decoder is of Phi 3's class, the one whose queries, keys
/// and values are cut out of one product.
pub(super) fn model(
    name: &str,
    arch: &Arch,
    seq: u64,
    joined: bool,
) -> Result<(ModelSpec, Vec<String>), Reason> {
    let lower = name.to_lowercase();
    let known = NAMES.iter().find(|(part, class, _)| {
        let gated = matches!(*class, "llama" | "qwen2");
        lower.contains(part) && gated == arch.gated
    });
    let (class, note) = match (known, arch.gated) {
        (_, true) if joined => ("phi3", "one matrix for queries, keys and values"),
        (Some((_, class, note)), _) => (*class, *note),
        (None, true) if arch.qkv_bias => ("qwen2", "unknown family: a decoder of Qwen 2's class"),
        (None, true) => ("llama", "unknown family: a decoder of Llama's class"),
        (None, false) => (
            "opt",
            "unknown family: a decoder of OPT's class, learned positions included",
        ),
    };
    let config = match class {
        "opt" => opt(arch, seq, known.is_some()),
        "gpt2" => gpt2(arch, seq),
        "bert" => bert(arch, seq),
        _ => gated(class, arch, seq),
    };
    let spec = config::parse(name, &config.to_string()).map_err(|e| format!("`arch`: {e}"))?;
    let note = (!note.is_empty()).then(|| note.to_string());
    Ok((spec, note.into_iter().collect()))
}

fn gated(class: &str, arch: &Arch, seq: u64) -> Value {
    json!({
        "model_type": class,
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.ffn,
        "vocab_size": arch.vocab,
        "tie_word_embeddings": arch.tied_embeddings,
        "max_position_embeddings": seq.max(2048),
    })
}

fn opt(arch: &Arch, seq: u64, named: bool) -> Value {
    json!({
        "model_type": "opt",
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "ffn_dim": arch.ffn,
        "vocab_size": arch.vocab,
        "enable_bias": arch.linear_bias,
        "tie_word_embeddings": arch.tied_embeddings,
        // OPT's table has two rows before the first position.
        "max_position_embeddings": seq.max(arch.learned_positions.saturating_sub(2)),
        "activation_function": if named { "relu" } else { "gelu" },
        "dropout": if named { 0.1 } else { 0.0 },
    })
}

fn gpt2(arch: &Arch, seq: u64) -> Value {
    json!({
        "model_type": "gpt2",
        "n_embd": arch.hidden,
        "n_layer": arch.layers,
        "n_head": arch.heads,
        "n_inner": arch.ffn,
        "vocab_size": arch.vocab,
        "tie_word_embeddings": arch.tied_embeddings,
        "n_positions": seq.max(arch.learned_positions),
    })
}

fn bert(arch: &Arch, seq: u64) -> Value {
    json!({
        "model_type": "bert",
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.ffn,
        "vocab_size": arch.vocab,
        "tie_word_embeddings": arch.tied_embeddings,
        "max_position_embeddings": seq.max(arch.learned_positions),
    })
}

/// The names of the matrices of a family's layers: what peft's `all-linear` adapts.
pub fn linear_modules(family: Family) -> Vec<&'static str> {
    if family == Family::Mixtral {
        return vec![
            "q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3",
        ];
    }
    let mut names: Vec<&str> = Vec::new();
    for name in Part::ALL.into_iter().filter_map(|part| part.name(family)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What peft adapts in a family where no modules are named: queries and values, in one matrix where they are.
pub fn default_targets(family: Family) -> Vec<&'static str> {
    let parts = [Part::Query, Part::Value].map(|part| part.name(family));
    let mut names: Vec<&str> = parts.into_iter().flatten().collect();
    names.dedup();
    names
}

/// A matrix of a layer, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Part {
    /// All of them.
    pub(super) const ALL: [Part; 7] = [
        Part::Query,
        Part::Key,
        Part::Value,
        Part::Output,
        Part::Gate,
        Part::Up,
        Part::Down,
    ];

    /// The name it has in a family's class; nothing where the class has no such matrix.
    pub(super) fn name(self, family: Family) -> Option<&'static str> {
        let names: [&str; 7] = match family {
            Family::Gpt2 => ["c_attn", "c_attn", "c_attn", "c_proj", "", "c_fc", "c_proj"],
            Family::Bert => ["query", "key", "value", "dense", "", "dense", "dense"],
            Family::Opt => ["q_proj", "k_proj", "v_proj", "out_proj", "", "fc1", "fc2"],
            Family::Phi3 => [
                "qkv_proj",
                "qkv_proj",
                "qkv_proj",
                "o_proj",
                "gate_up_proj",
                "gate_up_proj",
                "down_proj",
            ],
            _ => [
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ],
        };
        let at = Part::ALL.iter().position(|p| *p == self)?;
        names.get(at).copied().filter(|n| !n.is_empty())
    }
}
