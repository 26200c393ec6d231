//! Values held in fewer bits.

use super::Table;
use crate::machine::micro::FAMILIES;

/// The techniques that hold them, and what those meet.
pub(super) const HELD: Table = Table {
    prefix: "h",
    factors: &[
        &FAMILIES,
        &["f32", "bf16", "fp16"],
        &["adamw", "sgd"],
        &["", "accumulate:micro=2"],
        &["", "recompute:what=cheap", "recompute:site=layers.0"],
        &[
            "",
            "compress_activations",
            "compress_activations:bits=4,block=32,rounding=nearest",
            "compress_activations:site=layers.1",
        ],
        &[
            "",
            "offload:what=activations",
            "offload:what=activations,to=disk",
        ],
        &[
            "",
            "offload:what=optimizer",
            "offload:what=optimizer,update=host",
        ],
        &["", "compress_offload", "compress_offload:to=disk,bits=4"],
        &[
            "",
            "compress_offload:what=optimizer",
            "compress_offload:what=optimizer,to=disk,rounding=nearest",
        ],
    ],
    excluded: &[
        ("accumulate", "compress_offload$"),
        ("accumulate", "compress_offload:to=disk"),
    ],
};
