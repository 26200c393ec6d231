//! Hugging Face `TrainingArguments`, with the fields TRL adds; what LLaMA-Factory and Axolotl take over from them is here too.

use serde_json::{Value, json};

use super::fields::{Fields, word_of, wrong};
use super::optim;
use crate::error::Result;

/// Takes the fields of a JSON file.
pub(super) fn read(fields: &mut Fields) -> Result<()> {
    if let Some((_, name)) = fields.first(&["model_name_or_path"]) {
        fields.model = Some(word_of(&name));
    }
    let seq = fields.count(&["max_length", "max_seq_length", "block_size"])?;
    fields.set_some("seq", seq);
    let dtype = fields.word(&["dtype", "torch_dtype"])?;
    weights(fields, dtype.map(|(_, word)| word));
    step(fields)?;
    precision(fields)?;
    checkpointing(fields, "full_reentrant")?;
    attention(fields, &["attn_implementation"])?;
    if fields.truth("use_peft")? == Some(true) {
        fields.set("lora", json!({}));
        adapter(fields, &["lora_target_modules"])?;
    }
    if fields.truth("load_in_4bit")? == Some(true) {
        four_bits(fields)?;
    }
    whole_base(fields)
}

/// Batch, accumulation, optimizer, clipping: the same names in all three kinds of file.
pub(super) fn step(fields: &mut Fields) -> Result<()> {
    let batch = fields.count(&["per_device_train_batch_size", "micro_batch_size"])?;
    fields.set_some("batch", batch);
    let accumulated = fields.count(&["gradient_accumulation_steps"])?;
    fields.set_some("grad_accum", accumulated.map(|times| times.max(1)));
    optim::read(fields, &["optim", "optimizer"])?;
    if fields.truth("adafactor")? == Some(true) {
        fields.set("optimizer", "adafactor");
        fields.options.remove("optimizer_impl");
    }
    match fields.number(&["max_grad_norm", "gradient_clipping"])? {
        Some(norm) if norm > 0.0 => fields.set("clip_grad_norm", norm),
        Some(_) => fields.set("clip_grad_norm", Value::Null),
        None => {}
    }
    let cache = fields.truth("use_cache")?;
    fields.set_some("use_cache", cache);
    let offload = fields.truth("activation_offloading")?;
    fields.set_some("activation_offload", offload);
    Ok(())
}

/// `bf16` and `fp16`: autocast.
pub(super) fn precision(fields: &mut Fields) -> Result<Option<&'static str>> {
    let (bf16, fp16) = (fields.truth("bf16")?, fields.truth("fp16")?);
    let to = match (bf16, fp16) {
        (Some(true), _) => "bf16",
        (_, Some(true)) => "fp16",
        (None, None) => return Ok(None),
        _ => {
            fields.set("autocast", Value::Null);
            return Ok(None);
        }
    };
    fields.set("autocast", to);
    Ok(Some(to))
}

/// The type weights are loaded in.
pub(super) fn weights(fields: &mut Fields, dtype: Option<String>) {
    let known = match dtype.as_deref().map(|d| d.trim_start_matches("torch.")) {
        Some("bfloat16" | "bf16") => "bf16",
        Some("float16" | "fp16" | "half") => "fp16",
        Some("float32" | "fp32" | "float") => "fp32",
        Some(other) => {
            let why = "the checkpoint decides; give --torch param_dtype=bf16 where it is bf16";
            fields.assume("param_dtype", "fp32", format!("`{other}`: {why}"));
            "fp32"
        }
        None => return,
    };
    fields.set("param_dtype", known);
}

/// `gradient_checkpointing` and its kwargs; `usual` where they do not say which.
pub(super) fn checkpointing(fields: &mut Fields, usual: &'static str) -> Result<()> {
    let on = fields.truth("gradient_checkpointing")?;
    let kwargs = fields.take("gradient_checkpointing_kwargs");
    let said = match &kwargs {
        Some(Value::Object(map)) => map.get("use_reentrant").and_then(Value::as_bool),
        None => None,
        Some(other) => {
            let next = "give an object such as {\"use_reentrant\": false}";
            return Err(wrong(
                "gradient_checkpointing_kwargs",
                other,
                "expected an object",
                next,
            ));
        }
    };
    match (on, said) {
        (None, _) => {}
        (Some(false), _) => fields.set("checkpointing", "none"),
        (Some(true), Some(true)) => fields.set("checkpointing", "full_reentrant"),
        (Some(true), Some(false)) => fields.set("checkpointing", "full"),
        (Some(true), None) => {
            fields.assume(
                "gradient_checkpointing_kwargs.use_reentrant",
                usual == "full_reentrant",
                "the trainer's default",
            );
            fields.set("checkpointing", usual);
        }
    }
    Ok(())
}

/// The attention.
pub(super) fn attention(fields: &mut Fields, keys: &[&'static str]) -> Result<()> {
    let Some((key, word)) = fields.word(keys)? else {
        return Ok(());
    };
    match word.as_str() {
        "eager" | "disabled" => fields.set("attn", "eager"),
        "sdpa" | "auto" => fields.set("attn", "sdpa"),
        _ => {
            fields.assume(
                key,
                word,
                "taken as SDPA, whose flash kernel keeps the same tensors",
            );
            fields.set("attn", "sdpa");
        }
    }
    Ok(())
}

/// Rank, scale, dropout and modules of adapters.
pub(super) fn adapter(fields: &mut Fields, targets: &[&'static str]) -> Result<()> {
    let rank = fields.count(&["lora_r", "lora_rank"])?;
    fields.set_some("lora.r", rank);
    let alpha = fields.count(&["lora_alpha"])?;
    fields.set_some("lora.alpha", alpha);
    let dropout = fields.number(&["lora_dropout"])?;
    fields.set_some("lora.dropout", dropout);
    let modules = fields.modules(targets)?;
    fields.set_some("lora.targets", modules);
    match fields.modules(&[
        "modules_to_save",
        "lora_modules_to_save",
        "additional_target",
    ])? {
        Some(whole) if !whole.is_empty() => {
            fields.refuse(
                "modules_to_save",
                whole,
                "predicted as if these modules were frozen",
            );
        }
        _ => {}
    }
    Ok(())
}

/// A base in four bits.
pub(super) fn four_bits(fields: &mut Fields) -> Result<()> {
    let kind = fields.word(&["bnb_4bit_quant_type", "quantization_type"])?;
    match kind {
        Some((key, word)) if word != "nf4" => {
            fields.assume(key, word, "taken as nf4, which is as large");
        }
        _ => {}
    }
    fields.set("quant.type", "nf4");
    let double = [
        "use_bnb_nested_quant",
        "bnb_4bit_use_double_quant",
        "double_quantization",
    ];
    for key in double {
        let said = fields.truth(key)?;
        fields.set_some("quant.double", said);
    }
    Ok(())
}

/// Eight bits have no counterpart.
pub(super) fn whole_base(fields: &mut Fields) -> Result<()> {
    if fields.truth("load_in_8bit")? == Some(true) {
        fields.refuse(
            "load_in_8bit",
            true,
            "predicted with the base in its own type",
        );
    }
    Ok(())
}
