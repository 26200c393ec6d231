//! The families with rotary positions and RMSNorm: Llama and what followed it.

use serde_json::Value;

use super::super::fields::Fields;
use super::super::rope::rotary;
use super::{activation, head_dim, one_rate, spelling};
use crate::error::Result;
use crate::spec::model::{
    Activation, Attention, Experts, Family, Head, Mlp, ModelSpec, Norm, NormKind, NormPlacement,
    Spelling, Windowed,
};

/// What a family's configuration class assumes where a field is absent.
struct Defaults {
    family: Family,
    positions: u64,
    /// `None`: as many as query heads.
    kv_heads: Option<u64>,
    /// `None`: the hidden size divided by the heads.
    head_dim: Option<u64>,
    eps: f64,
    theta: f64,
    tied: bool,
}

impl Defaults {
    const fn new(family: Family, positions: u64) -> Defaults {
        Defaults {
            family,
            positions,
            kv_heads: None,
            head_dim: None,
            eps: 1e-6,
            theta: 10_000.0,
            tied: false,
        }
    }
}

/// Llama 1 to 3 (Touvron et al. 2023, Dubey et al. 2024) and models of its class.
pub(super) fn llama(fields: &Fields) -> Result<ModelSpec> {
    let mut spec = base(fields, &Defaults::new(Family::Llama, 2048))?;
    let bias = fields.bool_or("attention_bias", false)?;
    (spec.attention.qkv_bias, spec.attention.out_bias) = (bias, bias);
    spec.mlp.bias = fields.bool_or("mlp_bias", false)?;
    Ok(spec)
}

/// Mistral (Jiang et al. 2023).
pub(super) fn mistral(fields: &Fields) -> Result<ModelSpec> {
    let mut spec = base(fields, &mistral_defaults(Family::Mistral))?;
    spec.attention.window = match fields.written("sliding_window") {
        true => fields.opt_dim("sliding_window")?,
        false => Some(4096),
    };
    Ok(spec)
}

/// Mixtral (Jiang et al. 2024).
pub(super) fn mixtral(fields: &Fields) -> Result<ModelSpec> {
    if fields.float_or("router_jitter_noise", 0.0)? > 0.0 {
        return Err(fields.unsupported("router_jitter_noise", "above 0", "noise in the router"));
    }
    let defaults = Defaults {
        eps: 1e-5,
        theta: 1e6,
        ..mistral_defaults(Family::Mixtral)
    };
    let mut spec = base(fields, &defaults)?;
    spec.attention.window = fields.opt_dim("sliding_window")?;
    spec.experts = Some(Experts {
        count: fields.dim_or("num_local_experts", 8)?,
        top_k: fields.dim_or("num_experts_per_tok", 2)?,
    });
    Ok(spec)
}

fn mistral_defaults(family: Family) -> Defaults {
    Defaults {
        kv_heads: Some(8),
        ..Defaults::new(family, 131_072)
    }
}

/// Qwen 2 and 2.5 (Yang et al. 2024).
pub(super) fn qwen2(fields: &Fields) -> Result<ModelSpec> {
    let defaults = Defaults {
        kv_heads: Some(32),
        ..Defaults::new(Family::Qwen2, 32_768)
    };
    let mut spec = base(fields, &defaults)?;
    spec.attention.qkv_bias = true;
    spec.attention.window = upper_layers_window(fields, spec.layers)?;
    Ok(spec)
}

/// Qwen 3 (Yang et al. 2025), the dense models.
pub(super) fn qwen3(fields: &Fields) -> Result<ModelSpec> {
    let defaults = Defaults {
        kv_heads: Some(32),
        head_dim: Some(128),
        ..Defaults::new(Family::Qwen3, 32_768)
    };
    let mut spec = base(fields, &defaults)?;
    let bias = fields.bool_or("attention_bias", false)?;
    (spec.attention.qkv_bias, spec.attention.out_bias) = (bias, bias);
    spec.attention.qk_norm = true;
    spec.attention.window = upper_layers_window(fields, spec.layers)?;
    Ok(spec)
}

/// The window of Qwen models: it holds from layer `max_window_layers` on.
fn upper_layers_window(fields: &Fields, layers: u64) -> Result<Option<u64>> {
    if !fields.bool_or("use_sliding_window", false)? {
        return Ok(None);
    }
    let window = fields.dim_or("sliding_window", 4096)?;
    match fields.count("max_window_layers")?.unwrap_or(28) {
        0 => Ok(Some(window)),
        from if from >= layers => Ok(None),
        from => {
            let why = "a sliding window on the upper layers only";
            Err(fields.unsupported("max_window_layers", from, why))
        }
    }
}

/// Gemma 2 (Gemma Team 2024).
pub(super) fn gemma2(fields: &Fields) -> Result<ModelSpec> {
    let why = "attention over all positions";
    fields.refuse("use_bidirectional_attention", false, true, why)?;
    let defaults = Defaults {
        kv_heads: Some(4),
        head_dim: Some(256),
        tied: true,
        ..Defaults::new(Family::Gemma2, 8192)
    };
    let mut spec = base(fields, &defaults)?;
    let bias = fields.bool_or("attention_bias", false)?;
    (spec.attention.qkv_bias, spec.attention.out_bias) = (bias, bias);
    spec.attention.scale = 1.0 / fields.positive_or("query_pre_attn_scalar", 256.0)?.sqrt();
    spec.attention.softcap = softcap(fields, "attn_logit_softcapping", 50.0)?;
    spec.attention.window = match fields.written("sliding_window") {
        true => fields.opt_dim("sliding_window")?,
        false => Some(4096),
    };
    spec.attention.windowed = Windowed::Even;
    spec.final_softcap = softcap(fields, "final_logit_softcapping", 30.0)?;
    spec.embedding_scale = (spec.hidden as f64).sqrt();
    spec.norm.unit_offset = true;
    spec.norm_placement = NormPlacement::Sandwich;
    spec.mlp.activation = activation(fields, "hidden_activation", Activation::GeluTanh)?;
    spec.mlp.spelling = spelling(fields, "hidden_activation", Spelling::Fused)?;
    Ok(spec)
}

/// A soft cap: absent means the default, null none.
fn softcap(fields: &Fields, key: &str, default: f64) -> Result<Option<f64>> {
    match fields.written(key) {
        true => fields.opt_positive(key),
        false => Ok(Some(default)),
    }
}

/// Phi-3 (Abdin et al. 2024).
pub(super) fn phi3(fields: &Fields) -> Result<ModelSpec> {
    let defaults = Defaults {
        eps: 1e-5,
        ..Defaults::new(Family::Phi3, 4096)
    };
    let mut spec = base(fields, &defaults)?;
    spec.attention.window = fields.opt_dim("sliding_window")?;
    spec.dropout = one_rate(fields, "resid_pdrop", "embd_pdrop", 0.0)?;
    Ok(spec)
}

/// What these families share; the rest is set by each.
fn base(fields: &Fields, defaults: &Defaults) -> Result<ModelSpec> {
    let hidden = fields.dim("hidden_size")?;
    let layers = fields.dim("num_hidden_layers")?;
    let heads = fields.dim("num_attention_heads")?;
    let head_dim = match fields.opt_dim("head_dim")?.or(defaults.head_dim) {
        Some(dim) => dim,
        None => head_dim(fields, hidden, heads)?,
    };
    layer_types(fields, defaults.family)?;
    Ok(ModelSpec {
        name: fields.name().to_string(),
        family: defaults.family,
        vocab: fields.dim("vocab_size")?,
        hidden,
        layers,
        heads,
        kv_heads: kv_heads(fields, heads, defaults.kv_heads)?,
        head_dim,
        ffn: fields.dim("intermediate_size")?,
        max_positions: fields.dim_or("max_position_embeddings", defaults.positions)?,
        position: rotary(fields, head_dim, defaults.theta)?,
        token_types: 0,
        embedding_norm: false,
        embedding_scale: 1.0,
        norm: Norm {
            kind: NormKind::RmsNorm,
            eps: fields.positive_or("rms_norm_eps", defaults.eps)?,
            unit_offset: false,
        },
        norm_placement: NormPlacement::Pre,
        attention: plain_attention(fields, head_dim)?,
        mlp: gated(fields, defaults.family)?,
        experts: None,
        final_norm: true,
        head: Head::Causal,
        tied: fields.bool_or("tie_word_embeddings", defaults.tied)?,
        final_softcap: None,
        dropout: 0.0,
    })
}

/// Key and value heads: absent means the family's default, null as many as query heads.
fn kv_heads(fields: &Fields, heads: u64, default: Option<u64>) -> Result<u64> {
    let key = "num_key_value_heads";
    match fields.written(key) {
        true => fields.dim_or(key, heads),
        false => Ok(default.unwrap_or(heads)),
    }
}

/// Causal attention without biases.
fn plain_attention(fields: &Fields, head_dim: u64) -> Result<Attention> {
    Ok(Attention {
        causal: true,
        qkv_bias: false,
        out_bias: false,
        qk_norm: false,
        scale: 1.0 / (head_dim as f64).sqrt(),
        softcap: None,
        window: None,
        windowed: Windowed::All,
        dropout: fields.rate_or("attention_dropout", 0.0)?,
    })
}

/// A gated MLP without biases. Gemma 2 names its activation in another field, and `hidden_act` is then unread.
fn gated(fields: &Fields, family: Family) -> Result<Mlp> {
    let activation = match family {
        Family::Gemma2 => Activation::GeluTanh,
        _ => activation(fields, "hidden_act", Activation::Silu)?,
    };
    Ok(Mlp {
        gated: true,
        activation,
        bias: false,
        spelling: match family {
            Family::Gemma2 => Spelling::Fused,
            _ => spelling(fields, "hidden_act", Spelling::Fused)?,
        },
    })
}

/// Newer configs list each layer's attention; only the family's own pattern is done.
fn layer_types(fields: &Fields, family: Family) -> Result<()> {
    let key = "layer_types";
    let Some(value) = fields.get(key) else {
        return Ok(());
    };
    let types = value
        .as_array()
        .ok_or_else(|| fields.bad(key, value, "expected a list"))?;
    let full = |t: &Value| t.as_str() == Some("full_attention");
    let usual = match family {
        Family::Gemma2 => types
            .iter()
            .enumerate()
            .all(|(i, t)| full(t) == (i % 2 == 1)),
        Family::Qwen2 | Family::Qwen3 => types.windows(2).all(|pair| pair[0] == pair[1]),
        _ => true,
    };
    match usual {
        true => Ok(()),
        false => {
            Err(fields.unsupported(key, "as listed", "another pattern of windows over layers"))
        }
    }
}
