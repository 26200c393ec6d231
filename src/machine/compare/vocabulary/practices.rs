//! What sources do that their records leave open, from their own code.

use super::Word;
use crate::machine::compare::figure::Counter;
use crate::spec::torch::Habits;
use crate::spec::units::Bytes;

/// How a source trains, where its records leave it open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::machine::compare) struct Practice {
    /// The largest norm of gradients.
    pub(in crate::machine::compare) clip: Option<f64>,
    /// Dropout of adapters.
    pub(in crate::machine::compare) dropout: f64,
    /// What `zero_grad` does.
    pub(in crate::machine::compare) set_to_none: bool,
    /// Queries, keys and values come from one matrix, and the values keep its whole product alive.
    pub(in crate::machine::compare) joined_heads: bool,
    /// The Trainer's `--bf16`: autocast on weights that are in bf16 already, outputs copied to fp32; in the LoRA scripts only, the others
    /// run DeepSpeed, which has no autocast.
    pub(in crate::machine::compare) autocast_lora: bool,
    /// A 4-bit base is trained in DeepSpeed's ZeRO-2.
    pub(in crate::machine::compare) zero: bool,
    /// The counter behind a figure whose counter is not named.
    pub(in crate::machine::compare) unnamed: Counter,
    /// Tokens of a sample on average, where samples are of different lengths and the record has the longest.
    pub(in crate::machine::compare) mean_length: Option<u64>,
    /// Samples are packed to the full length, unless the record says they are not.
    pub(in crate::machine::compare) packs: bool,
    /// Its layers and adapters launch other kernels than Hugging Face's: its speed is compared, and nothing is fitted on it.
    pub(in crate::machine::compare) own_kernels: bool,
    /// Its times are of one micro-batch.
    pub(in crate::machine::compare) times_micro_batches: bool,
    /// What the loop or the libraries do otherwise.
    pub(in crate::machine::compare) habits: Habits,
}

/// A plain loop on a real device.
const LOOP: Practice = Practice {
    clip: None,
    dropout: 0.0,
    set_to_none: true,
    joined_heads: false,
    autocast_lora: false,
    zero: false,
    unnamed: Counter::Allocated,
    mean_length: None,
    packs: false,
    own_kernels: false,
    times_micro_batches: false,
    habits: Habits {
        named_outputs: false,
        kernel_scratch: true,
        packed_saves_input: false,
        no_flash: false,
        repeated_heads: false,
        unpacks_in_steps: false,
        shifted_logits: false,
    },
};

/// ZeRO-2's buffers for gradients on their way (`ipg_buffer`): two of 2e8 16-bit elements, from finetune/ds_config_zero2.json
/// (`reduce_bucket_size`, `overlap_comm`, `contiguous_gradients`).
pub(in crate::machine::compare) const ZERO_BUCKETS: Bytes = Bytes(2 * 200_000_000 * 2);

/// Tokens of an Alpaca sample with its prompt on average, rounded: an assumption, no source gives it. The runs it is used for are bound by the
/// launch of kernels, to which it does not matter.
const ALPACA: u64 = 110;

/// Practices by the beginning of a source's name; others train in a plain loop without clipping.
const PRACTICES: &[Word<Practice>] = &[
    (
        "Anassbzdd/fitcheck",
        Practice {
            habits: Habits {
                named_outputs: true,
                no_flash: true,
                repeated_heads: true,
                ..LOOP.habits
            },
            ..LOOP
        },
        "scripts/measure.py: the step's function names the outputs, so that logits live to its end; on a T4 attention is pinned to the memory-efficient kernel, key heads repeated",
    ),
    (
        "QwenLM/Qwen",
        Practice {
            clip: Some(1.0),
            dropout: 0.05,
            autocast_lora: true,
            zero: true,
            // Figures fall in places where the length doubles: segments of the allocator do so, bytes in use cannot.
            unnamed: Counter::Process,
            habits: Habits {
                unpacks_in_steps: true,
                shifted_logits: true,
                ..LOOP.habits
            },
            ..LOOP
        },
        "the Trainer clips at 1; dropout 0.05 of adapters, from the finetune script; LoRA under autocast, the rest in DeepSpeed; modeling_qwen.py copies the shifted logits",
    ),
    (
        "Lightning-AI/litgpt",
        Practice {
            dropout: 0.05,
            mean_length: Some(ALPACA),
            own_kernels: true,
            times_micro_batches: true,
            joined_heads: true,
            habits: Habits {
                packed_saves_input: true,
                ..LOOP.habits
            },
            ..LOOP
        },
        "dropout 0.05 of adapters; one matrix for queries, keys and values; bitsandbytes of 2023, which saves the inputs of 4-bit products",
    ),
    (
        "pytorch/torchtune",
        Practice {
            mean_length: Some(ALPACA),
            packs: true,
            ..LOOP
        },
        "samples of Alpaca",
    ),
    (
        "huggingface/transformers",
        Practice {
            clip: Some(1.0),
            set_to_none: false,
            ..LOOP
        },
        "the Trainer of 2022: clips at 1, keeps gradients allocated",
    ),
    (
        "MeZO",
        Practice {
            clip: Some(1.0),
            ..LOOP
        },
        "the Trainer clips at 1",
    ),
];

/// The practice of a source.
pub(in crate::machine::compare) fn practice(source: &str, assumed: &mut Vec<String>) -> Practice {
    let Some((_, practice, note)) = PRACTICES
        .iter()
        .find(|(start, ..)| source.starts_with(start))
    else {
        return LOOP;
    };
    assumed.push(note.to_string());
    *practice
}
