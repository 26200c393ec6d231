//! Optimizers of little state, and what they meet.

use super::cases::Table;

/// Optimizers of little state.
pub(super) const TABLE: Table = Table {
    prefix: "o",
    factors: &[
        &["llama", "gpt2", "mixtral", "bert"],
        &["f32", "bf16", "fp16"],
        &[
            "adamw8bit",
            "lion",
            "lion:momentum=bf16",
            "adafactor",
            "adafactor:beta1=0.9,scale=yes",
            "galore:rank=8,gap=2",
            "galore:rank=80,gap=2,bits=8",
            "galore:rank=4,gap=2,projection=randomized",
            "microadam",
            "microadam:block=1000,window=3,alpha=0.2",
        ],
        &["", "clip:norm=0.5"],
        &["", "accumulate:micro=1", "accumulate:micro=2"],
        &["", "fused_update"],
        &["", "recompute"],
        &[
            "",
            "offload:what=optimizer",
            "offload:what=optimizer,update=host",
            "offload:what=optimizer,to=disk",
        ],
        &[
            "",
            "offload:what=gradients",
            "offload:what=gradients,to=disk",
        ],
    ],
    excluded: &[
        ("clip", "fused_update"),
        ("fp16", "fused_update"),
        ("accumulate", "offload:what=gradients"),
    ],
};
