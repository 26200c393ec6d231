//! Tensor names of the Hugging Face classes, one table per family.

use super::mapping::{Mapping, Piece};
use crate::spec::model::Family;

/// Our name and theirs. Those of ours that share one of theirs lie in it one below the other, in this order.
type Pairs = &'static [(&'static str, &'static str)];

/// How one family names its tensors.
struct Names {
    /// Tensors outside the layers.
    outer: Pairs,
    /// What stands before a layer's number.
    prefix: &'static str,
    /// Tensors of one layer.
    layer: Pairs,
    /// Whether the matrices of layers are stored `[in, out]` (the Conv1D of GPT-2).
    transposed: bool,
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
fn names(family: Family) -> &'static Names {
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

/// Where the parameter `rest` of `shape` lies; `shape_of` knows the shapes of those it may share a tensor with.
pub(super) fn mapping<'s>(
    family: Family,
    layer: Option<u64>,
    rest: &str,
    shape: &[u64],
    shape_of: &dyn Fn(&str) -> Option<&'s [u64]>,
) -> Option<Mapping> {
    let names = names(family);
    let (pairs, prefix) = match layer {
        Some(i) => (names.layer, format!("{}{i}.", names.prefix)),
        None => (names.outer, String::new()),
    };
    let (stem, suffix) = rest.rsplit_once('.')?;
    if let Some((_, whole)) = pairs.iter().find(|(ours, _)| *ours == rest) {
        return Some(Mapping::whole(whole.to_string(), shape));
    }
    let (_, theirs) = pairs.iter().find(|(ours, _)| *ours == stem)?;
    let tensor = format!("{prefix}{theirs}.{suffix}");
    if let [count, rows, columns] = *shape {
        return Some(experts(&tensor, count, rows, columns));
    }
    let rows = |ours: &str| Some(*shape_of(&format!("{ours}.{suffix}"))?.first()?);
    let (mut first, mut total) = (0, 0);
    for (ours, _) in pairs.iter().filter(|(_, other)| other == theirs) {
        if *ours == stem {
            first = total;
        }
        total += rows(ours)?;
    }
    let transposed = names.transposed && layer.is_some() && shape.len() == 2;
    Some(Mapping::part(tensor, shape, first, total, transposed))
}

/// One tensor per expert, one below the other.
fn experts(tensor: &str, count: u64, rows: u64, columns: u64) -> Mapping {
    let piece = |e: u64| Piece {
        tensor: tensor.replace("{}", &e.to_string()),
        shape: vec![rows, columns],
        rows: e * rows..(e + 1) * rows,
        first: 0,
        transposed: false,
    };
    Mapping {
        columns,
        pieces: (0..count).map(piece).collect(),
    }
}

/// Other names that files give the tensor, best first: without the base model's prefix, and as old files had it.
pub fn spellings(tensor: &str) -> Vec<String> {
    let mut all = vec![tensor.to_string()];
    let bare = ["transformer.", "model.", "bert."]
        .iter()
        .find_map(|prefix| tensor.strip_prefix(prefix));
    all.extend(bare.map(str::to_string));
    for name in all.clone() {
        if let Some(stem) = name.strip_suffix("LayerNorm.weight") {
            all.push(format!("{stem}LayerNorm.gamma"));
        }
        if let Some(stem) = name.strip_suffix("LayerNorm.bias") {
            all.push(format!("{stem}LayerNorm.beta"));
        }
    }
    if tensor == "cls.predictions.bias" {
        all.push("cls.predictions.decoder.bias".to_string());
    }
    all
}
