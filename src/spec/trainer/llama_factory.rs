//! LLaMA-Factory's YAML: the Trainer's names and its own, with its own defaults.

use serde_json::json;

use super::fields::{Fields, word_of};
use super::training_arguments as trainer;
use crate::error::Result;

/// `cutoff_len` where none is given.
const LENGTH: u64 = 2048;
/// `lora_rank` where none is given; `lora_alpha` is twice the rank.
const RANK: u64 = 8;

/// Takes the fields.
pub(super) fn read(fields: &mut Fields) -> Result<()> {
    if let Some((_, name)) = fields.first(&["model_name_or_path"]) {
        fields.model = Some(word_of(&name));
    }
    let seq = match fields.count(&["cutoff_len"])? {
        Some(seq) => seq,
        None => {
            fields.assume("cutoff_len", LENGTH, "LLaMA-Factory's default");
            LENGTH
        }
    };
    fields.set("seq", seq);
    stage(fields)?;
    trainer::step(fields)?;
    let autocast = trainer::precision(fields)?;
    let pure = fields.truth("pure_bf16")? == Some(true);
    let adapters = finetuning(fields)?;
    // Weights that are trained are held in fp32 unless `pure_bf16`; frozen ones in the type of autocast.
    match (pure, adapters, autocast) {
        (true, ..) => {
            fields.set("param_dtype", "bf16");
            fields.set("autocast", serde_json::Value::Null);
        }
        (_, true, Some(dtype)) => fields.set("param_dtype", dtype),
        _ => fields.set("param_dtype", "fp32"),
    }
    recompute(fields)?;
    trainer::attention(fields, &["flash_attn"])?;
    bits(fields)
}

fn stage(fields: &mut Fields) -> Result<()> {
    if let Some((key, word)) = fields.word(&["stage"])?
        && !["sft", "pt"].contains(&word.as_str())
    {
        fields.refuse(
            key,
            word,
            "predicted as supervised fine-tuning: one model, one forward pass",
        );
    }
    Ok(())
}

/// Whether adapters are trained, and which.
fn finetuning(fields: &mut Fields) -> Result<bool> {
    let kind = fields.word(&["finetuning_type"])?.map(|(_, word)| word);
    match kind.as_deref() {
        Some("full") => return Ok(false),
        Some("lora") => {}
        None => fields.assume("finetuning_type", "lora", "LLaMA-Factory's default"),
        Some(other) => {
            fields.refuse(
                "finetuning_type",
                other,
                "predicted with every weight trained",
            );
            return Ok(false);
        }
    }
    fields.set("lora", json!({}));
    fields.set("lora.r", RANK);
    fields.set("lora.targets", json!(["all-linear"]));
    let ranked = fields.left.contains_key("lora_rank");
    let (scaled, targeted) = (
        fields.left.contains_key("lora_alpha"),
        fields.left.contains_key("lora_target"),
    );
    trainer::adapter(fields, &["lora_target"])?;
    if !ranked {
        fields.assume("lora_rank", RANK, "LLaMA-Factory's default");
    }
    if !scaled {
        let rank = fields.options["lora"]["r"].as_u64().unwrap_or(RANK);
        fields.set("lora.alpha", rank.saturating_mul(2));
    }
    if !targeted {
        fields.assume("lora_target", "all", "LLaMA-Factory's default");
    }
    Ok(true)
}

/// Checkpointing is on unless it is disabled.
fn recompute(fields: &mut Fields) -> Result<()> {
    let off = fields.truth("disable_gradient_checkpointing")?;
    let reentrant = fields.truth("use_reentrant_gc")?;
    trainer::checkpointing(fields, "full_reentrant")?;
    if off.is_none() {
        fields.assume(
            "disable_gradient_checkpointing",
            false,
            "LLaMA-Factory's default: layers are computed again",
        );
    }
    let kind = match (off, reentrant) {
        (Some(true), _) => "none",
        (_, Some(false)) => "full",
        _ => "full_reentrant",
    };
    fields.set("checkpointing", kind);
    Ok(())
}

fn bits(fields: &mut Fields) -> Result<()> {
    match fields.count(&["quantization_bit"])? {
        Some(4) => {
            // `double_quantization` is on by default.
            fields.set("quant.double", true);
            trainer::four_bits(fields)
        }
        Some(bits) => {
            fields.refuse(
                "quantization_bit",
                bits,
                "predicted with the base in its own type",
            );
            Ok(())
        }
        None => Ok(()),
    }
}
