//! Axolotl's YAML.

use serde_json::{Value, json};

use super::fields::{Fields, word_of};
use super::training_arguments as trainer;
use crate::error::Result;

/// `sequence_len` where none is given.
const LENGTH: u64 = 512;

/// Takes the fields.
pub(super) fn read(fields: &mut Fields) -> Result<()> {
    if let Some((_, name)) = fields.first(&["base_model"]) {
        fields.model = Some(word_of(&name));
    }
    let seq = match fields.count(&["sequence_len"])? {
        Some(seq) => seq,
        None => {
            fields.assume("sequence_len", LENGTH, "Axolotl's default");
            LENGTH
        }
    };
    fields.set("seq", seq);
    if !fields.left.contains_key("micro_batch_size") {
        fields.assume("micro_batch_size", 1, "Axolotl's default");
        fields.set("batch", 1);
    }
    trainer::step(fields)?;
    numbers(fields)?;
    recompute(fields)?;
    attention(fields)?;
    adapters(fields)
}

/// Weights are loaded in the type that is asked for (`bf16: true` loads bf16).
fn numbers(fields: &mut Fields) -> Result<()> {
    let (bfloat, half) = (fields.truth("bfloat16")?, fields.truth("float16")?);
    let autocast = trainer::precision(fields)?;
    let stored = match (bfloat, half, autocast) {
        (Some(true), ..) => "bf16",
        (_, Some(true), _) => "fp16",
        (_, _, Some(dtype)) => dtype,
        _ => "fp32",
    };
    fields.set("param_dtype", stored);
    let dtype = fields.word(&["torch_dtype"])?;
    trainer::weights(fields, dtype.map(|(_, word)| word));
    Ok(())
}

/// `gradient_checkpointing` may be a word: `offload` moves what is kept to the host.
fn recompute(fields: &mut Fields) -> Result<()> {
    let word = fields
        .left
        .get("gradient_checkpointing")
        .map(word_of)
        .unwrap_or_default();
    if word.starts_with("offload") {
        fields
            .left
            .insert("gradient_checkpointing".into(), json!(true));
        fields.refuse(
            "gradient_checkpointing",
            word,
            "predicted with what is kept on the GPU",
        );
    }
    trainer::checkpointing(fields, "full_reentrant")
}

fn attention(fields: &mut Fields) -> Result<()> {
    trainer::attention(fields, &["attn_implementation"])?;
    for key in [
        "flash_attention",
        "xformers_attention",
        "sdp_attention",
        "flex_attention",
        "eager_attention",
    ] {
        if fields.truth(key)? != Some(true) {
            continue;
        }
        let eager = key == "eager_attention";
        fields.set("attn", if eager { "eager" } else { "sdpa" });
        if !eager && key != "sdp_attention" {
            fields.assume(
                key,
                true,
                "taken as SDPA, whose flash kernel keeps the same tensors",
            );
        }
    }
    let packing = fields.truth("sample_packing")?;
    let padded = fields.truth("pad_to_sequence_len")?;
    if let Some(on) = packing.or(padded) {
        fields.assume(
            "sample_packing",
            on,
            "every row is taken to be `sequence_len` long",
        );
    }
    Ok(())
}

fn adapters(fields: &mut Fields) -> Result<()> {
    let four = fields.truth("load_in_4bit")? == Some(true);
    let kind = fields.word(&["adapter"])?.map(|(_, word)| word);
    match kind.as_deref() {
        None | Some("") => {
            if four {
                fields.refuse(
                    "load_in_4bit",
                    true,
                    "weights in 4 bits are trained through an adapter only",
                );
            }
            return trainer::whole_base(fields);
        }
        Some("lora" | "qlora") => {}
        Some(other) => fields.refuse("adapter", other, "predicted as low-rank adapters"),
    }
    fields.set("lora", json!({}));
    let linear = fields.truth("lora_target_linear")?;
    trainer::adapter(fields, &["lora_target_modules"])?;
    if linear == Some(true) {
        fields.set("lora.targets", json!(["all-linear"]));
    }
    if four || kind.as_deref() == Some("qlora") {
        // Axolotl's BitsAndBytesConfig quantizes the scales too.
        fields.set("quant.double", Value::Bool(true));
        trainer::four_bits(fields)?;
    }
    trainer::whole_base(fields)
}
