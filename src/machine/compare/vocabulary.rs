//! The words of published records and what each stands for. A word that is not here is not guessed.

mod practices;
mod updates;

use super::arch::Part::{self, Down, Gate, Key, Output, Query, Up, Value};
use super::figure::Counter;
use super::record::Reason;
use crate::spec::torch::{Attn, Checkpointing, TorchDtype, TorchLoss};

pub(super) use practices::{Practice, ZERO_BUCKETS, practice};
pub(super) use updates::{OPTIMIZERS, Update};

/// A word, what it means, and what is assumed by that; nothing where the word says it all.
pub(super) type Word<T> = (&'static str, T, &'static str);

/// The meaning of a word, and its assumption put with the others.
pub(super) fn meaning<T: Copy>(
    key: &str,
    word: &str,
    table: &[Word<T>],
    assumed: &mut Vec<String>,
) -> Result<T, Reason> {
    let Some((_, meaning, note)) = table.iter().find(|(known, ..)| *known == word) else {
        let known: Vec<&str> = table.iter().map(|(known, ..)| *known).collect();
        return Err(format!(
            "the field `{key}`: unknown value `{word}`; known are {}",
            known.join("; ")
        ));
    };
    if !note.is_empty() {
        assumed.push(format!("{key} `{word}`: {note}"));
    }
    Ok(*meaning)
}

/// Types of weights, computation and adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Precision {
    /// Of the weights.
    pub(super) weights: TorchDtype,
    /// Of the computation, where it differs.
    pub(super) autocast: Option<TorchDtype>,
    /// Adapters are in fp32.
    pub(super) wide_adapters: bool,
    /// What a 4-bit base leaves in 16 bits is turned to fp32.
    pub(super) prepare_kbit: bool,
    /// Products are in 8 bits.
    pub(super) float8: bool,
}

const fn plain(weights: TorchDtype) -> Precision {
    Precision {
        weights,
        autocast: None,
        wide_adapters: false,
        prepare_kbit: false,
        float8: false,
    }
}

const fn mixed(autocast: TorchDtype) -> Precision {
    Precision {
        autocast: Some(autocast),
        ..plain(TorchDtype::Fp32)
    }
}

/// PEFT on fp16 weights without autocast: adapters turn their inputs to fp32 and the sum back, and a base prepared for k-bit training
/// computes in fp32 but for its 4-bit products.
const fn adapters(prepare_kbit: bool) -> Precision {
    Precision {
        wide_adapters: true,
        prepare_kbit,
        ..plain(TorchDtype::Fp16)
    }
}

const FLOAT8: Precision = Precision {
    float8: true,
    ..plain(TorchDtype::Bf16)
};

pub(super) const PRECISIONS: &[Word<Precision>] = &[
    ("bf16", plain(TorchDtype::Bf16), ""),
    ("bf16-true", plain(TorchDtype::Bf16), ""),
    ("fp16", plain(TorchDtype::Fp16), ""),
    ("fp32", plain(TorchDtype::Fp32), ""),
    (
        "fp32 (16 bytes/param fits the numbers)",
        plain(TorchDtype::Fp32),
        "",
    ),
    ("fp16 AMP (fp32 masters)", mixed(TorchDtype::Fp16), ""),
    (
        "amp_bf16 masters per MP mode DEFAULT",
        mixed(TorchDtype::Bf16),
        "",
    ),
    ("bf16 masters per MP mode PURE", plain(TorchDtype::Bf16), ""),
    (
        "compute fp16; LoRA params/grads/Adam fp32; non-quantised base fp32 upcast",
        adapters(true),
        "no autocast: weights and adapters each in their own type",
    ),
    (
        "compute fp16; LoRA params/grads/Adam fp32; non-quantised base fp16",
        adapters(false),
        "no autocast: weights and adapters each in their own type",
    ),
    (
        "bf16 params and compute; optimizer states fp32 on host where offloaded",
        plain(TorchDtype::Bf16),
        "",
    ),
    ("float8 tensorwise", FLOAT8, ""),
    ("float8 tensorwise + fp8 all-gather", FLOAT8, ""),
    ("float8 rowwise", FLOAT8, ""),
    ("float8 rowwise_with_gw_hp", FLOAT8, ""),
    ("mxfp8 cublas", FLOAT8, ""),
    ("mxfp8 cublas rceil", FLOAT8, ""),
    ("amp_fp8 masters per MP mode DEFAULT", FLOAT8, ""),
];

pub(super) const CHECKPOINTINGS: &[Word<Checkpointing>] = &[
    ("none", Checkpointing::None, ""),
    ("full", Checkpointing::Full, ""),
    (
        "full per-layer",
        Checkpointing::FullReentrant,
        "reentrant, as transformers does by default",
    ),
    (
        "full per-layer (HF gradient checkpointing)",
        Checkpointing::Full,
        "use_reentrant=False, from the harness",
    ),
    ("full (torchtune default)", Checkpointing::Full, ""),
    ("full + offload of checkpoints", Checkpointing::Full, ""),
    ("per-block", Checkpointing::Full, ""),
    (
        "selective per-op",
        Checkpointing::SacMatmul,
        "matmuls and attention are kept",
    ),
    (
        "selective op",
        Checkpointing::SacMatmul,
        "matmuls and attention are kept",
    ),
];

/// Two kernels of one class differ in temporaries, not in what they save.
pub(super) const ATTENTIONS: &[Word<Attn>] = &[
    ("eager", Attn::Eager, ""),
    ("SDPA", Attn::Sdpa, ""),
    ("SDPA flash", Attn::Sdpa, ""),
    ("SDPA flash/flex", Attn::Sdpa, "SDPA's own kernels"),
    (
        "SDPA memory-efficient",
        Attn::Sdpa,
        "the kernel PyTorch picks on a newer GPU",
    ),
    ("FlashAttention", Attn::Sdpa, "SDPA's flash kernel"),
    ("FlashAttention-2", Attn::Sdpa, "SDPA's flash kernel"),
    ("HF eager or SDPA (2024)", Attn::Sdpa, "SDPA"),
];

pub(super) const LOSSES: &[Word<TorchLoss>] = &[
    ("full logits CE", TorchLoss::Hf, ""),
    ("full-logit CE", TorchLoss::Hf, ""),
    (
        "chunked CE (128 tokens)",
        TorchLoss::NoUpcast,
        "chunks are kept: as much as whole logits in their own type",
    ),
    (
        "chunked CE",
        TorchLoss::NoUpcast,
        "chunks are kept: as much as whole logits in their own type",
    ),
    (
        "chunked CE (8)",
        TorchLoss::NoUpcast,
        "chunks are kept: as much as whole logits in their own type",
    ),
];

/// A base in 4 bits: whether its scales are quantized too.
pub(super) const QUANTS: &[Word<Option<bool>>] = &[
    ("none", None, ""),
    ("nf4", Some(false), ""),
    ("bnb-nf4", Some(false), ""),
    ("bnb-nf4-dq", Some(true), ""),
    (
        "torchao NF4",
        Some(true),
        "bitsandbytes' layout instead of torchao's",
    ),
    (
        "GPTQ int4",
        Some(false),
        "nf4 in blocks of 64 instead of GPTQ",
    ),
];

/// What is kept on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offload {
    Nothing,
    Activations,
    State,
}

pub(super) const OFFLOADS: &[Word<Offload>] = &[
    ("none", Offload::Nothing, ""),
    ("none, compiled", Offload::Nothing, ""),
    (
        "activations",
        Offload::Activations,
        "every saved tensor, through save_on_cpu",
    ),
    ("paged optimizer state to host", Offload::State, ""),
    (
        "FSDP CPU offload",
        Offload::State,
        "only the state is taken off the device",
    ),
    ("torchao CPUOffloadOptimizer", Offload::State, ""),
    ("torchao CPUOffloadOptimizer, compiled", Offload::State, ""),
    (
        "torchao CPUOffloadOptimizer + gradients",
        Offload::State,
        "gradients stay on the device",
    ),
    (
        "DeepSpeed ZeRO-Offload (untuned)",
        Offload::State,
        "gradients stay on the device",
    ),
    (
        "ZeRO-Offload style: weights/optimizer on host, per-layer transfers, CPU Adam",
        Offload::State,
        "weights stay on the device",
    ),
    (
        "LSP-Offload: projected gradients to host, subspace Adam on CPU, overlapped per layer",
        Offload::State,
        "",
    ),
];

/// Whether `torch.compile` was on.
pub(super) const COMPILES: &[Word<bool>] = &[
    ("none", false, ""),
    ("torch.compile", true, ""),
    ("yes", true, ""),
];

/// A counter, and whether a device's workspaces are in it.
pub(super) const COUNTERS: &[Word<(Counter, bool)>] = &[
    ("allocated", (Counter::Allocated, true), ""),
    ("active", (Counter::Active, true), ""),
    (
        "reserved",
        (Counter::Reserved, true),
        "the allocator's segments, replayed",
    ),
    (
        "nvidia-smi",
        (Counter::Process, true),
        "the allocator's segments, replayed",
    ),
    (
        "nvml process total (device used)",
        (Counter::Process, true),
        "the allocator's segments, replayed",
    ),
    (
        "sum of profiled parts",
        (Counter::Allocated, false),
        "tensors alone, each part at its highest",
    ),
];

const ALL: &[Part] = &Part::ALL;
const MLP: &[Part] = &[Query, Value, Output, Gate, Up, Down];

/// The modules that have adapters.
pub(super) const TARGETS: &[Word<&[Part]>] = &[
    ("q_proj", &[Query], ""),
    ("k_proj", &[Key], ""),
    ("v_proj", &[Value], ""),
    ("o_proj", &[Output], ""),
    ("query", &[Query], ""),
    ("value", &[Value], ""),
    (
        "c_attn",
        &[Query, Key, Value],
        "an adapter each for queries, keys and values",
    ),
    ("c_proj", &[Output, Down], ""),
    ("w1", &[Up], ""),
    ("w2", &[Gate], ""),
    ("q,v,output proj + MLP", MLP, ""),
    ("q,v,output + MLP", MLP, ""),
    ("attention and MLP linears", ALL, ""),
];
