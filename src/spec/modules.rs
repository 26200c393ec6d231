//! Modules and tensors of the Hugging Face classes, one table per family.

use super::model::Family;
use crate::error::{Error, Result};

/// Our name and theirs. Those of ours that share one of theirs lie in it one below the other, in this order.
pub type Pairs = &'static [(&'static str, &'static str)];

/// How one family names its tensors.
#[derive(Debug)]
pub struct Names {
    /// Tensors outside the layers.
    pub outer: Pairs,
    /// What stands before a layer's number.
    pub prefix: &'static str,
    /// Tensors of one layer.
    pub layer: Pairs,
    /// Whether the matrices of layers are stored `[in, out]` (the Conv1D of GPT-2).
    pub transposed: bool,
}

/// Of `GPT2LMHeadModel`.
const GPT2: Names = Names {
    outer: &[
        ("embedding/token", "transformer.wte"),
        ("embedding/position", "transformer.wpe"),
        ("head/norm", "transformer.ln_f"),
        ("head/output", "lm_head"),
    ],
    prefix: "transformer.h.",
    layer: &[
        ("attention/norm", "ln_1"),
        ("attention/q", "attn.c_attn"),
        ("attention/k", "attn.c_attn"),
        ("attention/v", "attn.c_attn"),
        ("attention/o", "attn.c_proj"),
        ("mlp/norm", "ln_2"),
        ("mlp/up", "mlp.c_fc"),
        ("mlp/down", "mlp.c_proj"),
    ],
    transposed: true,
};

/// Of `OPTForCausalLM`.
const OPT: Names = Names {
    outer: &[
        ("embedding/token", "model.decoder.embed_tokens"),
        ("embedding/position", "model.decoder.embed_positions"),
        ("head/norm", "model.decoder.final_layer_norm"),
        ("head/output", "lm_head"),
    ],
    prefix: "model.decoder.layers.",
    layer: &[
        ("attention/norm", "self_attn_layer_norm"),
        ("attention/q", "self_attn.q_proj"),
        ("attention/k", "self_attn.k_proj"),
        ("attention/v", "self_attn.v_proj"),
        ("attention/o", "self_attn.out_proj"),
        ("mlp/norm", "final_layer_norm"),
        ("mlp/up", "fc1"),
        ("mlp/down", "fc2"),
    ],
    transposed: false,
};

/// Of `BertForMaskedLM`.
const BERT: Names = Names {
    outer: &[
        ("embedding/token", "bert.embeddings.word_embeddings"),
        ("embedding/position", "bert.embeddings.position_embeddings"),
        ("embedding/type", "bert.embeddings.token_type_embeddings"),
        ("embedding/norm", "bert.embeddings.LayerNorm"),
        ("head/dense", "cls.predictions.transform.dense"),
        ("head/transform_norm", "cls.predictions.transform.LayerNorm"),
        ("head/output.weight", "cls.predictions.decoder.weight"),
        ("head/output.bias", "cls.predictions.bias"),
    ],
    prefix: "bert.encoder.layer.",
    layer: &[
        ("attention/q", "attention.self.query"),
        ("attention/k", "attention.self.key"),
        ("attention/v", "attention.self.value"),
        ("attention/o", "attention.output.dense"),
        ("attention/norm", "attention.output.LayerNorm"),
        ("mlp/up", "intermediate.dense"),
        ("mlp/down", "output.dense"),
        ("mlp/norm", "output.LayerNorm"),
    ],
    transposed: false,
};

/// Outside the layers, for Llama and all that followed it.
const LLAMA_OUTER: Pairs = &[
    ("embedding/token", "model.embed_tokens"),
    ("head/norm", "model.norm"),
    ("head/output", "lm_head"),
];

/// Of `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM`.
const LLAMA: Names = Names {
    outer: LLAMA_OUTER,
    prefix: "model.layers.",
    layer: &[
        ("attention/norm", "input_layernorm"),
        ("attention/q", "self_attn.q_proj"),
        ("attention/k", "self_attn.k_proj"),
        ("attention/v", "self_attn.v_proj"),
        ("attention/q_norm", "self_attn.q_norm"),
        ("attention/k_norm", "self_attn.k_norm"),
        ("attention/o", "self_attn.o_proj"),
        ("mlp/norm", "post_attention_layernorm"),
        ("mlp/gate", "mlp.gate_proj"),
        ("mlp/up", "mlp.up_proj"),
        ("mlp/down", "mlp.down_proj"),
    ],
    transposed: false,
};

/// Of `MixtralForCausalLM`; each expert has tensors of its own.
const MIXTRAL: Names = Names {
    layer: &[
        ("attention/norm", "input_layernorm"),
        ("attention/q", "self_attn.q_proj"),
        ("attention/k", "self_attn.k_proj"),
        ("attention/v", "self_attn.v_proj"),
        ("attention/o", "self_attn.o_proj"),
        ("mlp/norm", "post_attention_layernorm"),
        ("mlp/router", "block_sparse_moe.gate"),
        ("mlp/experts.gate", "block_sparse_moe.experts.{}.w1"),
        ("mlp/experts.up", "block_sparse_moe.experts.{}.w3"),
        ("mlp/experts.down", "block_sparse_moe.experts.{}.w2"),
    ],
    ..LLAMA
};

/// Of `Gemma2ForCausalLM`.
const GEMMA2: Names = Names {
    layer: &[
        ("attention/norm", "input_layernorm"),
        ("attention/q", "self_attn.q_proj"),
        ("attention/k", "self_attn.k_proj"),
        ("attention/v", "self_attn.v_proj"),
        ("attention/o", "self_attn.o_proj"),
        ("attention/post_norm", "post_attention_layernorm"),
        ("mlp/norm", "pre_feedforward_layernorm"),
        ("mlp/gate", "mlp.gate_proj"),
        ("mlp/up", "mlp.up_proj"),
        ("mlp/down", "mlp.down_proj"),
        ("mlp/post_norm", "post_feedforward_layernorm"),
    ],
    ..LLAMA
};

/// Of `Phi3ForCausalLM`.
const PHI3: Names = Names {
    layer: &[
        ("attention/norm", "input_layernorm"),
        ("attention/q", "self_attn.qkv_proj"),
        ("attention/k", "self_attn.qkv_proj"),
        ("attention/v", "self_attn.qkv_proj"),
        ("attention/o", "self_attn.o_proj"),
        ("mlp/norm", "post_attention_layernorm"),
        ("mlp/gate", "mlp.gate_up_proj"),
        ("mlp/up", "mlp.gate_up_proj"),
        ("mlp/down", "mlp.down_proj"),
    ],
    ..LLAMA
};

/// The table of a family.
pub fn names(family: Family) -> &'static Names {
    match family {
        Family::Gpt2 => &GPT2,
        Family::Opt => &OPT,
        Family::Bert => &BERT,
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => &LLAMA,
        Family::Mixtral => &MIXTRAL,
        Family::Gemma2 => &GEMMA2,
        Family::Phi3 => &PHI3,
    }
}

/// A linear layer as a class has it: several of ours where it computes them in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name in the class, below the layer; `{}` stands for an expert's number.
    pub theirs: &'static str,
    /// Ours, one below the other in its weight.
    pub ours: Vec<&'static str>,
    /// Whether every layer has one.
    pub layered: bool,
}

impl Module {
    /// The shortest end of its name that names no other of the family.
    pub fn short(&self, family: Family) -> &'static str {
        let all = linears(family);
        let ends = self
            .theirs
            .rmatch_indices('.')
            .map(|(at, _)| &self.theirs[at + 1..]);
        let alone = |end: &&str| all.iter().filter(|m| m.is_named(end)).count() == 1;
        ends.filter(|end| !end.contains('}'))
            .find(alone)
            .unwrap_or(self.theirs)
    }

    /// Whether `target` names it, as PEFT matches names: in full, or by what ends them; or by our name, where it is one of ours alone.
    fn is_named(&self, target: &str) -> bool {
        let ends = |name: &str, mark: char| {
            let before = name.strip_suffix(target);
            before.is_some_and(|before| before.is_empty() || before.ends_with(mark))
        };
        ends(self.theirs, '.') || (self.ours.len() == 1 && ends(self.ours[0], '/'))
    }
}

/// The linear layers of a family's classes, without the output over the vocabulary.
pub fn linears(family: Family) -> Vec<Module> {
    let names = names(family);
    let mut modules: Vec<Module> = Vec::new();
    let layered = names.layer.iter().map(|pair| (pair, true));
    let outer = names.outer.iter().filter(|(ours, _)| *ours == "head/dense");
    for (&(ours, theirs), layered) in layered.chain(outer.map(|pair| (pair, false))) {
        if ours.ends_with("norm") {
            continue;
        }
        match modules.iter_mut().find(|m| m.theirs == theirs) {
            Some(module) => module.ours.push(ours),
            None => modules.push(Module {
                theirs,
                ours: vec![ours],
                layered,
            }),
        }
    }
    modules
}

/// The linear layers that `targets` name, joined by `+`; `all-linear` names all, `usual` those that PEFT adapts by default.
///
/// # Errors
/// [`Error::Unknown`] where a target names none.
pub fn targeted(family: Family, targets: &str) -> Result<Vec<Module>> {
    let mut modules = linears(family);
    if targets == "all-linear" {
        return Ok(modules);
    }
    let targets = match targets {
        "usual" => usual_targets(family),
        named => named,
    };
    let targets: Vec<&str> = targets.split('+').map(str::trim).collect();
    for target in &targets {
        if !modules.iter().any(|m| m.is_named(target)) {
            let known = modules.iter().map(|m| m.short(family));
            let next = "name modules of this family, joined by `+`, or all-linear";
            return Err(Error::unknown("target", target, known, next));
        }
    }
    modules.retain(|m| targets.iter().any(|target| m.is_named(target)));
    Ok(modules)
}

/// What PEFT 0.21 adapts by default (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`); for Phi-3 it names nothing.
fn usual_targets(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "c_attn",
        Family::Bert => "query+value",
        Family::Phi3 => "qkv_proj",
        _ => "q_proj+v_proj",
    }
}
