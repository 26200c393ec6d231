//! Options that cannot be together, or cannot be at all.

use super::{Lora, OptimizerImpl, Task, TorchLoss, TorchOptimizer, TorchOptions};
use crate::error::{Error, Result};

/// Longest sequence: its square times the tokens of a micro-batch still fits 64 bits with any number of heads.
const LONGEST: u64 = 1 << 24;
/// Most tokens of a micro-batch.
const MOST_TOKENS: u64 = 1 << 28;
/// Most micro-batches of a step.
const MOST_MICRO_BATCHES: u64 = 1 << 20;
/// Largest rank.
const LARGEST_RANK: u64 = 1 << 20;

/// Refuses options no training step could have.
pub(super) fn check(options: &TorchOptions) -> Result<()> {
    sizes(options)?;
    implementation(options)?;
    if let Some(norm) = options.clip_grad_norm
        && !(norm.is_finite() && norm > 0.0)
    {
        let why = "a norm is above zero";
        return Err(Error::value(
            "clip_grad_norm",
            norm,
            why,
            "give a number such as 1.0, or none",
        ));
    }
    if let Some(lora) = &options.lora {
        adapters(lora)?;
    }
    if options.quant.is_some() && options.lora.is_none() {
        return Err(Error::Conflict {
            one: "quant".into(),
            other: "lora=none".into(),
            why: "4-bit weights cannot be trained themselves".into(),
            next: "add adapters, such as lora.r=16".into(),
        });
    }
    if options.task == Task::MaskedLm && options.loss == TorchLoss::Chunked {
        return Err(Error::Conflict {
            one: "task=masked_lm".into(),
            other: "loss=chunked".into(),
            why: "the chunked loss takes the head of a causal model".into(),
            next: "take loss=hf".into(),
        });
    }
    Ok(())
}

fn sizes(options: &TorchOptions) -> Result<()> {
    let within = |key: &str, value: u64, most: u64| match value {
        0 => Err(Error::value(
            key,
            value,
            "it must be at least 1",
            "give a whole number",
        )),
        _ if value > most => {
            let why = format!("larger than {most}");
            Err(Error::value(key, value, why, "give a smaller number"))
        }
        _ => Ok(()),
    };
    within("batch", options.batch, MOST_TOKENS)?;
    within("seq", options.seq, LONGEST)?;
    within("grad_accum", options.grad_accum, MOST_MICRO_BATCHES)?;
    within("batch * seq", options.batch * options.seq, MOST_TOKENS)
}

fn implementation(options: &TorchOptions) -> Result<()> {
    let offered = options.optimizer.implementations();
    if offered.contains(&options.optimizer_impl) {
        return Ok(());
    }
    let names: Vec<&str> = offered.iter().map(|i| i.name()).collect();
    Err(Error::Conflict {
        one: format!("optimizer={}", options.optimizer.name()),
        other: format!("optimizer_impl={}", options.optimizer_impl.name()),
        why: "the optimizer has no such implementation".into(),
        next: format!("it comes as {}", names.join(", ")),
    })
}

fn adapters(lora: &Lora) -> Result<()> {
    let next = "give a whole number such as 16";
    if lora.r == 0 || lora.r > LARGEST_RANK {
        let why = format!("a rank is between 1 and {LARGEST_RANK}");
        return Err(Error::value("lora.r", lora.r, why, next));
    }
    if lora.alpha == 0 {
        return Err(Error::value(
            "lora.alpha",
            lora.alpha,
            "it must be at least 1",
            next,
        ));
    }
    if !(0.0..1.0).contains(&lora.dropout) {
        let why = "a dropout rate is at least 0 and below 1";
        return Err(Error::value(
            "lora.dropout",
            lora.dropout,
            why,
            "give a number such as 0.05",
        ));
    }
    if lora.targets.is_empty() || lora.targets.iter().any(|t| t.trim().is_empty()) {
        let why = "adapters need modules";
        let next = "name them, such as q_proj+v_proj";
        return Err(Error::value(
            "lora.targets",
            lora.targets.join("+"),
            why,
            next,
        ));
    }
    Ok(())
}

impl TorchOptimizer {
    /// The implementations it comes in; the first is what it takes when none is named.
    pub fn implementations(self) -> &'static [OptimizerImpl] {
        use OptimizerImpl::{Bnb, Foreach, Forloop, Fused};
        match self {
            TorchOptimizer::Adamw => &[Fused, Foreach, Forloop],
            TorchOptimizer::Sgd | TorchOptimizer::SgdMomentum | TorchOptimizer::Adagrad => {
                &[Foreach, Fused, Forloop]
            }
            TorchOptimizer::Rmsprop => &[Foreach, Forloop],
            TorchOptimizer::Adafactor => &[Forloop],
            TorchOptimizer::AdafactorTorch => &[Forloop, Foreach],
            TorchOptimizer::Adamw8bit
            | TorchOptimizer::Lion8bit
            | TorchOptimizer::SgdMomentum8bit
            | TorchOptimizer::AdamwBnb32bit => &[Bnb],
        }
    }
}
