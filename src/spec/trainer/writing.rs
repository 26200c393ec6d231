//! Options written as what a trainer takes: TrainingArguments with the fields TRL adds, which read back as the same options.

use serde_json::{Map, Value, json};

use super::optim;
use crate::error::Result;
use crate::spec::torch::{Attn, Checkpointing, TorchDtype, TorchOptions};

/// A job as a trainer is told it.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// TrainingArguments, and the model, PEFT and quantization fields of TRL's command line, as JSON.
    pub arguments: Map<String, Value>,
    /// What no argument says, as options of `--torch`.
    pub torch: String,
    /// What is set in code, where the script does not take TRL's fields: the call, and how.
    pub elsewhere: Vec<(&'static str, String)>,
}

/// The keys that no trainer's file decides: the model does.
const OF_MODEL: [&str; 1] = ["task"];

/// Writes the options of a job on the model named `model`.
///
/// # Errors
/// Where what was written cannot be read back.
pub fn write(model: &str, options: &TorchOptions) -> Result<Written> {
    let arguments = arguments(model, options);
    let text = Value::Object(arguments.clone()).to_string();
    let read = super::parse("the written arguments", &text)?;
    let read = TorchOptions::from_json(&Value::Object(read.options))?;
    Ok(Written {
        arguments,
        torch: differences(options, &read),
        elsewhere: elsewhere(options),
    })
}

fn arguments(model: &str, options: &TorchOptions) -> Map<String, Value> {
    let o = options;
    let full = matches!(
        o.checkpointing,
        Checkpointing::Full | Checkpointing::FullReentrant
    );
    let mut all = json!({
        "model_name_or_path": model,
        "dtype": full_name(o.param_dtype),
        "attn_implementation": o.attn.name(),
        "max_length": o.seq,
        "per_device_train_batch_size": o.batch,
        "gradient_accumulation_steps": o.grad_accum,
        "bf16": o.autocast == Some(TorchDtype::Bf16),
        "fp16": o.autocast == Some(TorchDtype::Fp16),
        "gradient_checkpointing": full,
        "optim": optim::name(o.optimizer, o.optimizer_impl),
        "max_grad_norm": o.clip_grad_norm.unwrap_or(0.0),
    });
    if full {
        let reentrant = o.checkpointing == Checkpointing::FullReentrant;
        all["gradient_checkpointing_kwargs"] = json!({"use_reentrant": reentrant});
    }
    if o.activation_offload {
        all["activation_offloading"] = json!(true);
    }
    if let Some(lora) = &o.lora {
        all["use_peft"] = json!(true);
        all["lora_r"] = json!(lora.r);
        all["lora_alpha"] = json!(lora.alpha);
        all["lora_dropout"] = json!(lora.dropout);
        all["lora_target_modules"] = json!(lora.targets);
    }
    if let Some(quant) = &o.quant {
        all["load_in_4bit"] = json!(true);
        all["bnb_4bit_quant_type"] = json!("nf4");
        all["use_bnb_nested_quant"] = json!(quant.double);
    }
    match all {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// PyTorch's name of a type.
fn full_name(dtype: TorchDtype) -> &'static str {
    match dtype {
        TorchDtype::Fp32 => "float32",
        TorchDtype::Bf16 => "bfloat16",
        TorchDtype::Fp16 => "float16",
    }
}

/// The options in which `read` differs, as pairs.
fn differences(options: &TorchOptions, read: &TorchOptions) -> String {
    let all = |of: &TorchOptions| serde_json::to_value(of).unwrap_or_default();
    let (wanted, read) = (all(options), all(read));
    let mut pairs = Vec::new();
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if OF_MODEL.contains(&key.as_str()) || read[key] == *value {
            continue;
        }
        match value {
            Value::Object(members) => {
                let differ = members.iter().filter(|(name, v)| read[key][*name] != **v);
                pairs.extend(differ.map(|(name, v)| format!("{key}.{name}={}", plain(v))));
            }
            _ => pairs.push(format!("{key}={}", plain(value))),
        }
    }
    pairs.join(",")
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

/// What a script of one's own sets in its calls.
fn elsewhere(o: &TorchOptions) -> Vec<(&'static str, String)> {
    let attention = match o.attn {
        Attn::Sdpa => "sdpa",
        Attn::Eager => "eager",
    };
    let dtype = full_name(o.param_dtype);
    let mut all = vec![(
        "from_pretrained",
        format!("dtype=torch.{dtype}, attn_implementation=\"{attention}\""),
    )];
    if let Some(quant) = &o.quant {
        let double = if quant.double { "True" } else { "False" };
        all.push((
            "from_pretrained",
            format!(
                "quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=\"nf4\", bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant={double})"
            ),
        ));
    }
    if let Some(lora) = &o.lora {
        let targets: Vec<String> = lora.targets.iter().map(|t| format!("\"{t}\"")).collect();
        all.push((
            "get_peft_model",
            format!(
                "LoraConfig(r={}, lora_alpha={}, lora_dropout={}, target_modules=[{}])",
                lora.r,
                lora.alpha,
                lora.dropout,
                targets.join(", ")
            ),
        ));
    }
    let checkpointed = match o.checkpointing {
        Checkpointing::Every2 => Some(
            "torch.utils.checkpoint.checkpoint(layer, …, use_reentrant=False) around every second layer",
        ),
        Checkpointing::SacMatmul => Some(
            "checkpoint(layer, …, use_reentrant=False, context_fn=…) around each layer, with create_selective_checkpoint_contexts keeping mm and attention",
        ),
        Checkpointing::SacAttn => Some(
            "checkpoint(layer, …, use_reentrant=False, context_fn=…) around each layer, with create_selective_checkpoint_contexts keeping attention",
        ),
        _ => None,
    };
    all.extend(checkpointed.map(|how| ("the layers' forward", how.to_string())));
    if o.activation_offload {
        let how = "with torch.autograd.graph.save_on_cpu(): around forward and loss, where the trainer is not TRL's";
        all.push(("the training step", how.into()));
    }
    all
}

/// The arguments as flags of a command line.
pub fn flags(arguments: &Map<String, Value>) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Object(_) => format!("'{value}'"),
        other => other.to_string(),
    };
    let flag = |(key, value): (&String, &Value)| format!("--{key} {}", word(value));
    arguments.iter().map(flag).collect::<Vec<_>>().join(" ")
}
