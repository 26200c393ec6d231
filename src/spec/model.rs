//! A transformer's architecture as its Hugging Face `config.json` states it, in one form for all families.

/// The architecture of one transformer, in the dimensions that decide its training step.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The name it is known by, or the folder it was read from.
    pub name: String,
    /// The family its tensor names follow.
    pub family: Family,
    /// Vocabulary rows of the embedding (V).
    pub vocab: u64,
    /// Width of the residual stream (H).
    pub hidden: u64,
    /// Number of layers (L).
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads; fewer than `heads` with grouped queries.
    pub kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Inner width of the MLP (of one expert with experts).
    pub ffn: u64,
    /// Longest sequence the model takes.
    pub max_positions: u64,
    /// How positions enter.
    pub position: Position,
    /// Rows of the token-type embedding; 0 without one.
    pub token_types: u64,
    /// A norm after the embedding (BERT).
    pub embedding_norm: bool,
    /// What the embedding is multiplied by (Gemma: sqrt(hidden)); 1 elsewhere.
    pub embedding_scale: f64,
    /// The norm of the blocks.
    pub norm: Norm,
    /// Where norms stand in a block.
    pub norm_placement: NormPlacement,
    /// The attention.
    pub attention: Attention,
    /// The MLP.
    pub mlp: Mlp,
    /// Experts, for mixture-of-experts models.
    pub experts: Option<Experts>,
    /// A norm before the head.
    pub final_norm: bool,
    /// The head.
    pub head: Head,
    /// Whether the head's matrix is the token embedding.
    pub tied: bool,
    /// Soft cap of the logits (Gemma 2): `cap * tanh(x / cap)`.
    pub final_softcap: Option<f64>,
    /// Dropout rate on embeddings and on both residual branches, as the config states it.
    pub dropout: f64,
}

/// Model families, by the Hugging Face class whose tensor names they use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the documentation
pub enum Family {
    Gpt2,
    Opt,
    Bert,
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Gemma2,
    Phi3,
}

/// How positions enter the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// A learned table of `rows` rows; position p reads row `p + offset` (OPT: offset 2, so rows = positions + 2).
    Learned {
        /// Rows of the table.
        rows: u64,
        /// First row used.
        offset: u64,
    },
    /// Rotary embedding of the first `dims` of each head.
    Rotary(Rotary),
}

/// Rotary position embedding (Su et al. 2021), half-split as in Hugging Face's `rotate_half`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated dimensions of a head.
    pub dims: u64,
    /// Change of the frequencies for long contexts.
    pub scaling: RotaryScaling,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// As published.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's piecewise rule.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Below this many wavelengths in the original context a frequency is divided.
        low: f64,
        /// Above this many wavelengths it is left alone.
        high: f64,
        /// The original context length.
        original: f64,
    },
}

/// A normalization over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// LayerNorm (mean and variance, with a bias) or RMSNorm.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f64,
    /// Whether the weight acts as `1 + weight` (Gemma).
    pub unit_offset: bool,
}

/// The two kinds of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Ba et al. 2016, weight and bias.
    LayerNorm,
    /// Zhang and Sennrich 2019, weight only.
    RmsNorm,
}

/// Where norms stand in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x + f(norm(x))`.
    Pre,
    /// `norm(x + f(x))` (BERT).
    Post,
    /// `x + norm(f(norm(x)))` (Gemma 2).
    Sandwich,
}

/// The attention of every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Causal, or over all positions (BERT).
    pub causal: bool,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub out_bias: bool,
    /// RMSNorm over each head of query and key (Qwen 3).
    pub qk_norm: bool,
    /// Scores are multiplied by this (usually 1 / sqrt(head_dim)).
    pub scale: f64,
    /// Soft cap of the scores (Gemma 2).
    pub softcap: Option<f64>,
    /// Sliding window: a position sees itself and `window - 1` before it. Which layers use it is `windowed`.
    pub window: Option<u64>,
    /// Which layers use the window.
    pub windowed: Windowed,
    /// Dropout rate on the attention probabilities.
    pub dropout: f64,
}

/// Which layers use the sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windowed {
    /// All layers.
    All,
    /// Layers 0, 2, 4, … (Gemma 2).
    Even,
}

/// The MLP of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    /// Gated: `down(activation(gate(x)) * up(x))`; else `down(activation(up(x)))`.
    pub gated: bool,
    /// The activation.
    pub activation: Activation,
    /// Biases on its projections.
    pub bias: bool,
    /// How Hugging Face's code computes the activation.
    pub spelling: Spelling,
}

/// How model code computes an activation: the value is the same, what it keeps for the backward pass is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// One operation.
    Fused,
    /// `gelu_new`: `0.5 * x * (1 + tanh(c * (x + 0.044715 * pow(x, 3))))`, operation by operation.
    GeluNew,
    /// `gelu_fast`: `0.5 * x * (1 + tanh(x * c * (1 + 0.044715 * x * x)))`, operation by operation.
    GeluFast,
    /// `gelu_python`: `x * 0.5 * (1 + erf(x / sqrt(2)))`, operation by operation.
    GeluPython,
}

/// Activations of the families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x Φ(x), by erf.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// x σ(x).
    Silu,
}

/// Mixture of experts: top-k of a softmax router, renormalized over the k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Number of experts (E).
    pub count: u64,
    /// Experts per token (k).
    pub top_k: u64,
}

/// The head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Next-token prediction.
    Causal,
    /// Masked-LM: dense, activation, LayerNorm, then the (tied) decoder with a bias (BERT).
    MaskedLm,
}
