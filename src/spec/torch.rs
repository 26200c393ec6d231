//! The options of a PyTorch training step: what `--torch` and the records of measured runs say, key by key.

mod check;
mod reading;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An enum whose variants are named as the options name them.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$note])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// All values, in the order they are listed.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The name it has among the options.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)+
                }
            }
        }

        impl reading::Choice for $name {
            fn all() -> &'static [$name] {
                $name::ALL
            }

            fn name(self) -> &'static str {
                $name::name(self)
            }
        }
    };
}

choices! {
    /// What is trained for.
    Task {
        /// Next-token prediction.
        CausalLm = "causal_lm",
        /// Masked-language modelling (BERT).
        MaskedLm = "masked_lm",
    }
}

choices! {
    /// A floating-point type.
    TorchDtype {
        /// 32 bits.
        Fp32 = "fp32",
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE half precision.
        Fp16 = "fp16",
    }
}

impl TorchDtype {
    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            TorchDtype::Fp32 => 4,
            TorchDtype::Bf16 | TorchDtype::Fp16 => 2,
        }
    }
}

choices! {
    /// `attn_implementation`.
    Attn {
        /// `scaled_dot_product_attention`, with the kernel PyTorch picks.
        Sdpa = "sdpa",
        /// Matmul, softmax, matmul, each with its tensors.
        Eager = "eager",
    }
}

choices! {
    /// What of a layer is computed again in the backward pass.
    Checkpointing {
        /// Nothing.
        None = "none",
        /// Each layer, non-reentrant.
        Full = "full",
        /// Each layer, reentrant.
        FullReentrant = "full_reentrant",
        /// Layers 0, 2, 4, …; the rest is kept.
        Every2 = "every_2",
        /// Selective: outputs of matmuls and of fused attention are kept.
        SacMatmul = "sac_matmul",
        /// Selective: only the output of fused attention is kept.
        SacAttn = "sac_attn",
    }
}

choices! {
    /// The optimizer.
    TorchOptimizer {
        /// `torch.optim.AdamW`.
        Adamw = "adamw",
        /// `torch.optim.SGD` without momentum.
        Sgd = "sgd",
        /// `torch.optim.SGD` with momentum.
        SgdMomentum = "sgd_momentum",
        /// `torch.optim.RMSprop`.
        Rmsprop = "rmsprop",
        /// `torch.optim.Adagrad`.
        Adagrad = "adagrad",
        /// The `Adafactor` of transformers, as the Trainer sets it.
        Adafactor = "adafactor",
        /// `torch.optim.Adafactor`.
        AdafactorTorch = "adafactor_torch",
        /// AdamW of bitsandbytes with 8-bit states.
        Adamw8bit = "adamw_8bit",
        /// Lion of bitsandbytes with an 8-bit state.
        Lion8bit = "lion_8bit",
        /// SGD with momentum of bitsandbytes with an 8-bit state.
        SgdMomentum8bit = "sgd_momentum_8bit",
        /// AdamW of bitsandbytes with 32-bit states.
        AdamwBnb32bit = "adamw_bnb_32bit",
    }
}

choices! {
    /// How an optimizer walks the parameters.
    OptimizerImpl {
        /// Over lists of tensors, with a list of temporaries.
        Foreach = "foreach",
        /// One kernel per list, without temporaries.
        Fused = "fused",
        /// One parameter after the other.
        Forloop = "forloop",
        /// The kernels of bitsandbytes.
        Bnb = "bnb",
    }
}

choices! {
    /// How the loss is computed.
    TorchLoss {
        /// The model's own: logits copied to fp32, cross entropy.
        Hf = "hf",
        /// Cross entropy on the logits in their own type.
        NoUpcast = "no_upcast",
        /// Head and fp32 cross entropy over chunks of 1024 tokens, each checkpointed.
        Chunked = "chunked",
    }
}

choices! {
    /// The type of adapters.
    AdapterDtype {
        /// fp32, as peft does by default.
        Fp32 = "fp32",
        /// That of the base weights.
        Base = "base",
    }
}

choices! {
    /// A 4-bit type.
    QuantType {
        /// Normal float (Dettmers et al. 2023), blocks of 64.
        Nf4 = "nf4",
    }
}

/// Low-rank adapters (Hu et al. 2021) as peft puts them in; the base is frozen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lora {
    /// Rank.
    pub r: u64,
    /// Scale: the product is multiplied by `alpha / r`.
    pub alpha: u64,
    /// Dropout rate on the adapter's input.
    pub dropout: f64,
    /// Names of the modules that get one: the last part of a module's path.
    pub targets: Vec<String>,
    /// The type of the adapters' weights.
    pub adapter_dtype: AdapterDtype,
}

impl Default for Lora {
    /// peft's `LoraConfig()` for a model of the Llama class.
    fn default() -> Lora {
        Lora {
            r: 8,
            alpha: 8,
            dropout: 0.0,
            targets: ["q_proj", "v_proj"].map(str::to_string).to_vec(),
            adapter_dtype: AdapterDtype::Fp32,
        }
    }
}

/// A base in 4 bits: every Linear but the head, as bitsandbytes stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Quant {
    /// The type.
    #[serde(rename = "type")]
    pub kind: QuantType,
    /// Block scales quantized once more.
    pub double: bool,
    /// `prepare_model_for_kbit_training`: remaining 16-bit parameters in fp32, input gradients on.
    pub prepare_kbit: bool,
}

impl Default for Quant {
    /// `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")` with the usual preparation.
    fn default() -> Quant {
        Quant {
            kind: QuantType::Nf4,
            double: false,
            prepare_kbit: true,
        }
    }
}

/// One training step as PyTorch would be asked for it.
///
/// ```
/// use memfit::spec::torch::{Checkpointing, TorchOptions};
/// let options = TorchOptions::parse_pairs("batch=4,seq=2048,checkpointing=full,lora.r=16")?;
/// assert_eq!((options.batch, options.checkpointing), (4, Checkpointing::Full));
/// assert_eq!(options.lora.map(|l| l.r), Some(16));
/// # Ok::<(), memfit::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct TorchOptions {
    /// What is trained for.
    pub task: Task,
    /// Sequences of a micro-batch (B).
    pub batch: u64,
    /// Tokens of a sequence (T).
    pub seq: u64,
    /// The type weights are stored in.
    pub param_dtype: TorchDtype,
    /// The type of `torch.autocast` around forward and loss; fp32 is none.
    pub autocast: Option<TorchDtype>,
    /// The attention.
    pub attn: Attn,
    /// What is computed again.
    pub checkpointing: Checkpointing,
    /// The optimizer.
    pub optimizer: TorchOptimizer,
    /// How it walks the parameters.
    pub optimizer_impl: OptimizerImpl,
    /// Each parameter is updated, and its gradient freed, as soon as the gradient is there.
    pub optimizer_in_backward: bool,
    /// Micro-batches per step.
    pub grad_accum: u64,
    /// Argument of `zero_grad`: false keeps gradients allocated.
    pub set_to_none: bool,
    /// The largest norm of the gradients, where they are clipped.
    pub clip_grad_norm: Option<f64>,
    /// The loss.
    pub loss: TorchLoss,
    /// Adapters.
    pub lora: Option<Lora>,
    /// A base in 4 bits.
    pub quant: Option<Quant>,
    /// Whether a mask is passed; without one transformers tests for packed sequences and builds a 4-D mask.
    pub attention_mask: bool,
    /// `use_cache` left on while training.
    pub use_cache: bool,
    /// The loop holds the outputs until the next forward pass has finished.
    pub keep_outputs: bool,
    /// Logits are copied to fp32 after the loss, as accelerate does with mixed precision.
    pub convert_outputs_fp32: bool,
    /// `torch.autograd.graph.save_on_cpu()` around the forward pass.
    pub activation_offload: bool,
    /// What published runs do otherwise; no key of the options.
    #[serde(skip)]
    pub habits: Habits,
}

/// How a real device, an older library or a loop of one's own differ from what the options describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Habits {
    /// The step's function names the model's output until it returns: logits live through backward pass and update.
    pub named_outputs: bool,
    /// Kernels' own buffers count: the dequantized weight of a 4-bit product, the fp32 gradient of flash attention's queries.
    pub kernel_scratch: bool,
    /// The bitsandbytes of 2023: 4-bit products save their inputs (`ctx.tensors = (A, B)`).
    pub packed_saves_input: bool,
    /// A GPU before Ampere: flash attention does not run on it.
    pub no_flash: bool,
    /// Key heads are repeated for every query head before attention, with a mask or without.
    pub repeated_heads: bool,
    /// 4-bit weights are unpacked by operations on whole tensors, as AutoGPTQ does in training, instead of by one kernel.
    pub unpacks_in_steps: bool,
    /// Logits without their last position are copied for the loss, as model code did until the end of 2024.
    pub shifted_logits: bool,
}

impl Default for TorchOptions {
    /// What `Trainer(model, TrainingArguments())` would run: 8 sequences per device, fused AdamW, clipping at 1. The
    /// Trainer has no length of its own; 1024 is taken. `use_cache` is off, as in transformers 5.
    fn default() -> TorchOptions {
        TorchOptions {
            task: Task::CausalLm,
            batch: 8,
            seq: 1024,
            param_dtype: TorchDtype::Fp32,
            autocast: None,
            attn: Attn::Sdpa,
            checkpointing: Checkpointing::None,
            optimizer: TorchOptimizer::Adamw,
            optimizer_impl: OptimizerImpl::Fused,
            optimizer_in_backward: false,
            grad_accum: 1,
            set_to_none: true,
            clip_grad_norm: Some(1.0),
            loss: TorchLoss::Hf,
            lora: None,
            quant: None,
            attention_mask: true,
            use_cache: false,
            keep_outputs: false,
            convert_outputs_fp32: false,
            activation_offload: false,
            habits: Habits::default(),
        }
    }
}

impl TorchOptions {
    /// Reads an object of options. Keys that are missing are as in [`TorchOptions::default`], except that the
    /// implementation follows the optimizer, outputs are copied to fp32 where autocast is on, and nothing is clipped
    /// where the optimizer runs in the backward pass.
    ///
    /// # Errors
    /// Where a key or value is unknown, of the wrong type, or two of them exclude each other.
    pub fn from_json(value: &Value) -> Result<TorchOptions> {
        let options = reading::options(value)?;
        check::check(&options)?;
        Ok(options)
    }

    /// Reads `key=value,key=value`. A key inside `lora` or `quant` is written with a dot (`lora.r=16`,
    /// `lora.targets=q_proj+v_proj`, `quant.double=true`); `lora=16` is short for `lora.r=16`, `quant=nf4` for
    /// `quant.type=nf4`, and `none` is the null of the keys that have one.
    ///
    /// # Errors
    /// As [`TorchOptions::from_json`], and where a pair has no `=` or a key is given twice.
    pub fn parse_pairs(text: &str) -> Result<TorchOptions> {
        TorchOptions::from_json(&Value::Object(TorchOptions::pairs(text)?))
    }

    /// The object that the pairs of [`TorchOptions::parse_pairs`] stand for, its values not yet looked at.
    ///
    /// # Errors
    /// Where a pair has no `=` or a key is given twice.
    pub fn pairs(text: &str) -> Result<Map<String, Value>> {
        reading::pairs(text)
    }

    /// Refuses options that no training step could have.
    ///
    /// # Errors
    /// Where a value is out of range, or two of them exclude each other.
    pub fn check(&self) -> Result<()> {
        check::check(self)
    }
}

impl TryFrom<Value> for TorchOptions {
    type Error = Error;

    fn try_from(value: Value) -> Result<TorchOptions> {
        TorchOptions::from_json(&value)
    }
}
