//! The families with learned positions and LayerNorm: GPT-2, OPT, BERT.

use super::super::fields::Fields;
use super::{activation, head_dim, one_rate, spelling};
use crate::error::Result;
use crate::spec::model::{
    Activation, Attention, Family, Head, Mlp, ModelSpec, Norm, NormKind, NormPlacement, Position,
    Spelling, Windowed,
};

/// Field names that differ between these families.
struct Keys {
    hidden: &'static str,
    layers: &'static str,
    heads: &'static str,
    positions: &'static str,
}

const GPT2: Keys = Keys {
    hidden: "n_embd",
    layers: "n_layer",
    heads: "n_head",
    positions: "n_positions",
};

const USUAL: Keys = Keys {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    positions: "max_position_embeddings",
};

const LAYER_NORM: Norm = Norm {
    kind: NormKind::LayerNorm,
    eps: 1e-5,
    unit_offset: false,
};

/// GPT-2 (Radford et al. 2019).
pub(super) fn gpt2(fields: &Fields) -> Result<ModelSpec> {
    let why = "attention scaled by the layer's index";
    fields.refuse("scale_attn_by_inverse_layer_idx", false, true, why)?;
    fields.refuse("reorder_and_upcast_attn", false, true, "upcast attention")?;
    fields.refuse("add_cross_attention", false, true, "cross-attention")?;
    let mut spec = base(fields, Family::Gpt2, &GPT2, 1024)?;
    spec.ffn = fields.dim_or("n_inner", spec.hidden.saturating_mul(4))?;
    spec.norm.eps = fields.positive_or("layer_norm_epsilon", 1e-5)?;
    spec.mlp.activation = activation(fields, "activation_function", Activation::GeluTanh)?;
    spec.mlp.spelling = spelling(fields, "activation_function", Spelling::GeluNew)?;
    spec.dropout = one_rate(fields, "resid_pdrop", "embd_pdrop", 0.1)?;
    spec.attention.dropout = fields.rate_or("attn_pdrop", 0.1)?;
    if !fields.bool_or("scale_attn_weights", true)? {
        spec.attention.scale = 1.0;
    }
    Ok(spec)
}

/// OPT (Zhang et al. 2022), the sizes that put the norm first.
pub(super) fn opt(fields: &Fields) -> Result<ModelSpec> {
    let post = "norms after the blocks (opt-350m)";
    fields.refuse("do_layer_norm_before", true, false, post)?;
    let plain = "norms without weights";
    fields.refuse("layer_norm_elementwise_affine", true, false, plain)?;
    if fields.rate_or("layerdrop", 0.0)? > 0.0 {
        return Err(fields.unsupported("layerdrop", "above 0", "dropping whole layers"));
    }
    let mut spec = base(fields, Family::Opt, &USUAL, 2048)?;
    let width = fields.dim_or("word_embed_proj_dim", spec.hidden)?;
    if width != spec.hidden {
        let why = "an embedding narrower than the hidden size (opt-350m)";
        return Err(fields.unsupported("word_embed_proj_dim", width, why));
    }
    spec.ffn = fields.dim("ffn_dim")?;
    spec.mlp.activation = activation(fields, "activation_function", Activation::Relu)?;
    spec.mlp.spelling = spelling(fields, "activation_function", Spelling::Fused)?;
    spec.position = Position::Learned {
        rows: spec.max_positions + 2,
        offset: 2,
    };
    let bias = fields.bool_or("enable_bias", true)?;
    (spec.attention.qkv_bias, spec.attention.out_bias) = (bias, bias);
    spec.mlp.bias = bias;
    spec.final_norm = !fields.bool_or("_remove_final_layer_norm", false)?;
    spec.dropout = fields.rate_or("dropout", 0.1)?;
    spec.attention.dropout = fields.rate_or("attention_dropout", 0.0)?;
    Ok(spec)
}

/// BERT with its masked-language head (Devlin et al. 2018).
pub(super) fn bert(fields: &Fields) -> Result<ModelSpec> {
    fields.refuse("is_decoder", false, true, "BERT as a decoder")?;
    match fields.text("position_embedding_type")? {
        None | Some("absolute") => {}
        Some(other) => {
            let why = "positions other than absolute";
            return Err(fields.unsupported("position_embedding_type", other, why));
        }
    }
    let mut spec = base(fields, Family::Bert, &USUAL, 512)?;
    spec.ffn = fields.dim("intermediate_size")?;
    spec.token_types = fields.dim_or("type_vocab_size", 2)?;
    spec.embedding_norm = true;
    spec.norm.eps = fields.positive_or("layer_norm_eps", 1e-12)?;
    spec.norm_placement = NormPlacement::Post;
    spec.attention.causal = false;
    spec.final_norm = false;
    spec.head = Head::MaskedLm;
    spec.mlp.activation = activation(fields, "hidden_act", Activation::Gelu)?;
    spec.mlp.spelling = spelling(fields, "hidden_act", Spelling::Fused)?;
    spec.dropout = fields.rate_or("hidden_dropout_prob", 0.1)?;
    spec.attention.dropout = fields.rate_or("attention_probs_dropout_prob", 0.1)?;
    Ok(spec)
}

/// What the three families share; the rest is set by each.
fn base(fields: &Fields, family: Family, keys: &Keys, positions: u64) -> Result<ModelSpec> {
    let hidden = fields.dim(keys.hidden)?;
    let heads = fields.dim(keys.heads)?;
    let max_positions = fields.dim_or(keys.positions, positions)?;
    let head_dim = head_dim(fields, hidden, heads)?;
    Ok(ModelSpec {
        name: fields.name().to_string(),
        family,
        vocab: fields.dim("vocab_size")?,
        hidden,
        layers: fields.dim(keys.layers)?,
        heads,
        kv_heads: heads,
        head_dim,
        ffn: hidden,
        max_positions,
        position: Position::Learned {
            rows: max_positions,
            offset: 0,
        },
        token_types: 0,
        embedding_norm: false,
        embedding_scale: 1.0,
        norm: LAYER_NORM,
        norm_placement: NormPlacement::Pre,
        attention: biased_attention(head_dim),
        mlp: Mlp {
            gated: false,
            activation: Activation::Gelu,
            bias: true,
            spelling: Spelling::Fused,
        },
        experts: None,
        final_norm: true,
        head: Head::Causal,
        tied: fields.bool_or("tie_word_embeddings", true)?,
        final_softcap: None,
        dropout: 0.0,
    })
}

/// Causal attention with biases everywhere.
fn biased_attention(head_dim: u64) -> Attention {
    Attention {
        causal: true,
        qkv_bias: true,
        out_bias: true,
        qk_norm: false,
        scale: 1.0 / (head_dim as f64).sqrt(),
        softcap: None,
        window: None,
        windowed: Windowed::All,
        dropout: 0.0,
    }
}
