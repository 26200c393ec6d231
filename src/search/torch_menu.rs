//! What `--engine torch` may choose from: options that PyTorch, PEFT, bitsandbytes and the Trainer have.

use super::torch::TorchRequest;
use crate::error::Result;
use crate::machine::pytorch::settle_targets;
use crate::spec::job::Exactness;
use crate::spec::torch::{
    Attn, Checkpointing, Lora, Quant, TorchDtype, TorchOptimizer, TorchOptions,
};

/// Rank and scale of adapters that are proposed, as in PEFT's guides: `alpha` twice the rank.
const RANK: u64 = 16;

/// Named options, and how far they change results.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The name.
    pub name: String,
    /// The options.
    pub options: TorchOptions,
    /// How results relate to those of the reference.
    pub exactness: Exactness,
}

/// The name of activations that are kept.
const PLAIN: &str = "nothing recomputed";

/// A change of the options: what it is called, the keys it decides, how far it changes results, and itself.
struct Change {
    name: &'static str,
    keys: &'static [&'static str],
    exactness: Exactness,
    make: fn(&mut TorchOptions),
}

const fn change(
    name: &'static str,
    keys: &'static [&'static str],
    exactness: Exactness,
    make: fn(&mut TorchOptions),
) -> Change {
    Change {
        name,
        keys,
        exactness,
        make,
    }
}

use Exactness::{Bitwise, Lossy, Rounding};

/// What is trained, in which type, by which optimizer. The reference's own come first.
const METHODS: &[Change] = &[
    change("", &[], Bitwise, |_| {}),
    change(
        "16-bit weights",
        &["param_dtype", "autocast"],
        Lossy,
        narrow,
    ),
    change("8-bit AdamW", &["optimizer"], Lossy, eight_bit),
    change(
        "16-bit weights, 8-bit AdamW",
        &["param_dtype", "autocast", "optimizer"],
        Lossy,
        |o| {
            narrow(o);
            eight_bit(o);
        },
    ),
    change("Adafactor", &["optimizer"], Lossy, factored),
    change(
        "16-bit weights, Adafactor",
        &["param_dtype", "autocast", "optimizer"],
        Lossy,
        |o| {
            narrow(o);
            factored(o);
        },
    ),
    change("LoRA", &["lora", "param_dtype"], Lossy, adapters),
    change("QLoRA", &["lora", "quant", "param_dtype"], Lossy, |o| {
        adapters(o);
        o.quant = Some(Quant {
            double: true,
            ..Quant::default()
        });
    }),
];

/// What becomes of activations.
const ACTIVATIONS: &[Change] = &[
    change(PLAIN, &["checkpointing"], Bitwise, |_| {}),
    change(
        "products kept, the rest recomputed",
        &["checkpointing"],
        Bitwise,
        |o| {
            o.checkpointing = Checkpointing::SacMatmul;
        },
    ),
    change(
        "every second layer recomputed",
        &["checkpointing"],
        Bitwise,
        |o| {
            o.checkpointing = Checkpointing::Every2;
        },
    ),
    change(
        "attention kept, the rest recomputed",
        &["checkpointing"],
        Bitwise,
        |o| {
            o.checkpointing = Checkpointing::SacAttn;
        },
    ),
    change("every layer recomputed", &["checkpointing"], Bitwise, |o| {
        o.checkpointing = Checkpointing::Full;
    }),
    change(
        "activations on the host",
        &["checkpointing", "activation_offload"],
        Bitwise,
        |o| o.activation_offload = true,
    ),
    change(
        "every layer recomputed, inputs on the host",
        &["checkpointing", "activation_offload"],
        Bitwise,
        |o| {
            o.checkpointing = Checkpointing::Full;
            o.activation_offload = true;
        },
    ),
    change(
        "eager attention",
        &["attn", "checkpointing"],
        Rounding,
        |o| {
            o.attn = Attn::Eager;
        },
    ),
];

/// Weights in the computation's own 16 bits, without autocast.
fn narrow(o: &mut TorchOptions) {
    o.param_dtype = sixteen(o);
    o.autocast = None;
    o.convert_outputs_fp32 = false;
}

fn sixteen(o: &TorchOptions) -> TorchDtype {
    o.autocast.unwrap_or(match o.param_dtype {
        TorchDtype::Fp16 => TorchDtype::Fp16,
        _ => TorchDtype::Bf16,
    })
}

fn optimized(o: &mut TorchOptions, by: TorchOptimizer) {
    o.optimizer = by;
    o.optimizer_impl = by.implementations()[0];
}

fn eight_bit(o: &mut TorchOptions) {
    optimized(o, TorchOptimizer::Adamw8bit);
}

fn factored(o: &mut TorchOptions) {
    optimized(o, TorchOptimizer::Adafactor);
}

/// Adapters on every linear layer over a frozen base in 16 bits.
fn adapters(o: &mut TorchOptions) {
    o.param_dtype = sixteen(o);
    o.lora = Some(Lora {
        r: RANK,
        alpha: 2 * RANK,
        targets: vec!["all-linear".into()],
        ..Lora::default()
    });
}

/// All that a request may choose, in a fixed order.
///
/// # Errors
/// Where the model has no modules for adapters that are fixed.
pub fn proposals(request: &TorchRequest) -> Result<Vec<Proposal>> {
    let mut all: Vec<Proposal> = Vec::new();
    for method in METHODS.iter().filter(|c| may(request, c)) {
        for activation in ACTIVATIONS.iter().filter(|c| may(request, c)) {
            for (micro, times) in splits(request) {
                let made = proposal(request, [method, activation], micro, times)?;
                if made.exactness <= request.allow && !all.iter().any(|p| p.options == made.options)
                {
                    all.push(made);
                }
            }
        }
    }
    Ok(all)
}

/// Whether a change is allowed and touches nothing that is fixed; the first of a list changes nothing.
fn may(request: &TorchRequest, change: &Change) -> bool {
    let keeps = matches!(change.name, "" | PLAIN);
    let free = change.keys.iter().all(|key| !is_fixed(request, key));
    change.exactness <= request.allow && (keeps || free)
}

/// Whether an option is decided already.
fn is_fixed(request: &TorchRequest, key: &str) -> bool {
    request.fixed.iter().any(|fixed| fixed == key)
}

/// Micro-batches and their number for the whole batch, the largest first.
fn splits(request: &TorchRequest) -> Vec<(u64, u64)> {
    let whole = request.reference.batch * request.reference.grad_accum;
    let fixed = ["batch", "grad_accum"]
        .iter()
        .any(|key| is_fixed(request, key));
    if fixed {
        return vec![(request.reference.batch, request.reference.grad_accum)];
    }
    let divisors = (1..=whole)
        .rev()
        .filter(|micro| whole.is_multiple_of(*micro));
    divisors.map(|micro| (micro, whole / micro)).collect()
}

fn proposal(
    request: &TorchRequest,
    changes: [&Change; 2],
    micro: u64,
    times: u64,
) -> Result<Proposal> {
    let mut options = request.reference.clone();
    let mut exactness = Bitwise;
    for change in changes {
        (change.make)(&mut options);
        exactness = exactness.max(change.exactness);
    }
    let undivided = (request.reference.batch, request.reference.grad_accum);
    (options.batch, options.grad_accum) = (micro, times);
    if (micro, times) != undivided {
        exactness = exactness.max(Rounding);
    }
    settle_targets(&request.model, &mut options, true)?;
    // What is decided beforehand is not told as a choice.
    let decided = |c: &Change| c.name == PLAIN && is_fixed(request, "checkpointing");
    let names = changes.map(|c| if decided(c) { "" } else { c.name }.to_string());
    let split = match times {
        1 => String::new(),
        _ => format!("{micro} x {times} sequences"),
    };
    let parts = names.into_iter().chain([split]);
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    let name = match parts.is_empty() {
        true => "as asked".to_string(),
        false => parts.join(", "),
    };
    Ok(Proposal {
        name,
        options,
        exactness,
    })
}
