//! Folders of adapters in PEFT's format: what their `adapter_config.json` says, as a choice of a plan, and their tensors.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::names::{self, Kind};
use super::tensors::TensorFile;
use super::weights::WeightFiles;
use crate::error::{Error, Result};
use crate::plan::{Choice, Plan};
use crate::spec::model::{Family, Head, ModelSpec};
use crate::spec::modules::{Module, linears, targeted};
use crate::technique::{self, Pattern};

/// The files of such a folder.
pub const CONFIG: &str = "adapter_config.json";
/// As [`CONFIG`].
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Fields that change what an adapter computes, and the values with which they do not.
const PLAIN: [(&str, &[&str]); 9] = [
    ("bias", &["\"none\""]),
    ("use_dora", &["false"]),
    ("use_rslora", &["false"]),
    ("modules_to_save", &["null", "[]"]),
    ("rank_pattern", &["null", "{}"]),
    ("alpha_pattern", &["null", "{}"]),
    ("prefix_projection", &["false"]),
    ("target_parameters", &["null", "[]"]),
    ("use_parallel_adapter", &["false"]),
];

/// What to do where a folder cannot be used.
const NEXT: &str = "give a folder that PEFT or --save has written for this model";

/// A folder of adapters.
#[derive(Debug)]
pub struct Adapter {
    choice: Choice,
    weights: WeightFiles,
}

impl Adapter {
    /// Opens a folder of adapters of `model`.
    ///
    /// # Errors
    /// Where a file is missing or damaged, the adapter is of a kind that no technique has, or a tensor is of no module of the model.
    pub fn open(dir: &Path, model: &ModelSpec) -> Result<Adapter> {
        let (kind, choice) = described(dir)?;
        let weights = weights(&dir.join(WEIGHTS), model, kind)?;
        Ok(Adapter { choice, weights })
    }

    /// The choice that a plan with this adapter makes.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Its tensors, by our names.
    pub fn weights(&self) -> &WeightFiles {
        &self.weights
    }

    /// Its tensors, by our names.
    pub fn into_weights(self) -> WeightFiles {
        self.weights
    }
}

/// The choice that a plan with the adapter of a folder makes, by its config alone.
///
/// # Errors
/// Where it cannot be read, or says of the adapter what no technique has.
pub fn described(dir: &Path) -> Result<(Kind, Choice)> {
    let path = dir.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    let config: Value = serde_json::from_str(&text)
        .map_err(|e| Error::file(&path, format!("not valid JSON: {e}"), NEXT))?;
    let refuse = |why: String| Error::file(&path, why, NEXT);
    for (field, plain) in PLAIN {
        let value = config.get(field).filter(|v| !v.is_null());
        let value = value.map(Value::to_string);
        if let Some(value) = value.filter(|v| !plain.contains(&v.as_str())) {
            return Err(refuse(format!("{field} = {value} is not supported")));
        }
    }
    let kind = kind(&config).ok_or_else(|| {
        let kind = &config["peft_type"];
        refuse(format!("adapters of the kind {kind} are not supported"))
    })?;
    Ok((kind, choice(kind, &config)))
}

fn kind(config: &Value) -> Option<Kind> {
    serde_json::from_value(config["peft_type"].clone()).ok()
}

/// The parameters of an adapter in a file, none of whose tensors may be left over.
pub(super) fn weights(path: &Path, model: &ModelSpec, kind: Kind) -> Result<WeightFiles> {
    let file = TensorFile::open(path)?;
    let shape_of = |tensor: &str| Some(file.entries().get(tensor)?.shape.clone());
    let mut wanted = Vec::new();
    for (name, shape) in names::listed(model, kind, &shape_of) {
        wanted.extend(names::place(model, &name, &shape).map(|mapping| (name, mapping)));
    }
    let used = |tensor: &str| {
        let mut pieces = wanted.iter().flat_map(|(_, mapping)| &mapping.pieces);
        pieces.any(|piece| piece.tensor == tensor)
    };
    if let Some(tensor) = file.entries().keys().find(|tensor| !used(tensor)) {
        let why = format!(
            "its tensor `{tensor}` is of no linear layer of {}",
            model.name
        );
        return Err(Error::file(path, why, NEXT));
    }
    WeightFiles::of(path, vec![file], wanted)
}

/// The choice that a config stands for.
fn choice(kind: Kind, config: &Value) -> Choice {
    let text = |field: &str| match &config[field] {
        Value::String(text) => text.clone(),
        Value::Array(all) => all
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join("+"),
        other => other.to_string(),
    };
    let (name, fields): (_, &[(&str, &str)]) = match kind {
        Kind::Lora => (
            "lora",
            &[
                ("targets", "target_modules"),
                ("rank", "r"),
                ("alpha", "lora_alpha"),
                ("dropout", "lora_dropout"),
            ],
        ),
        Kind::Bottleneck => (
            "adapter",
            &[
                ("width", "bottleneck_size"),
                ("activation", "non_linearity"),
                ("after", "after"),
                ("residual", "residual"),
            ],
        ),
        Kind::PrefixTuning => ("prefix_tuning", &[("tokens", "num_virtual_tokens")]),
        Kind::PromptTuning => ("prompt_tuning", &[("tokens", "num_virtual_tokens")]),
    };
    let given = fields.iter().filter(|(_, field)| !config[*field].is_null());
    let args: Vec<(&str, String)> = given.map(|&(key, field)| (key, text(field))).collect();
    let args: Vec<(&str, &str)> = args
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    let layers = config["layers_to_transform"].as_array();
    let layers = layers.map(|all| {
        all.iter()
            .map(|i| format!("layers.{i}"))
            .collect::<Vec<_>>()
    });
    Choice::new(
        name,
        &layers.map_or("*".to_string(), |all| all.join("+")),
        &args,
    )
}

/// The text of the `adapter_config.json` of a plan that has an adapter, whose base is to be found at `base`.
///
/// # Errors
/// Where an argument of the adapter is wrong.
pub fn config(plan: &Plan, base: &str) -> Result<Option<String>> {
    let Some(name) = plan.draft()?.adapter else {
        return Ok(None);
    };
    let (model, card) = (&plan.job.model, technique::find(name)?.card());
    let chosen = plan.choices.iter().find(|c| c.technique == name);
    let args = chosen.map(|c| c.args.clone()).unwrap_or_default();
    let text = |key: &str| args.text(&card, key);
    let number = |key: &str| text(key).parse::<f64>().unwrap_or(0.0);
    let whole = |key: &str| number(key) as u64;
    let mut fields = Map::new();
    let mut put = |field: &str, value: Value| fields.insert(field.to_string(), value);
    put("base_model_name_or_path", json!(base));
    put("inference_mode", json!(true));
    put(
        "task_type",
        match model.head {
            Head::Causal => json!("CAUSAL_LM"),
            Head::MaskedLm => Value::Null,
        },
    );
    match name {
        "lora" => {
            let mut modules = targeted(model.family, text("targets"))?;
            let sites = chosen.map(Choice::sites).transpose()?;
            modules.retain(|m| {
                sites
                    .as_ref()
                    .is_none_or(|s| !reached(model, m, s).is_empty())
            });
            let names: Vec<&str> = modules.iter().map(|m| m.short(model.family)).collect();
            put("peft_type", json!(Kind::Lora));
            put("target_modules", json!(names));
            put("r", json!(whole("rank")));
            put("lora_alpha", json!(number("alpha")));
            put("lora_dropout", json!(number("dropout")));
            put("fan_in_fan_out", json!(model.family == Family::Gpt2));
            put("bias", json!("none"));
            put("init_lora_weights", json!(true));
            put("layers_to_transform", layers(model, &modules, sites));
        }
        "adapter" => {
            put("peft_type", json!(Kind::Bottleneck));
            put("bottleneck_size", json!(whole("width")));
            put("non_linearity", json!(text("activation")));
            put("after", json!(text("after")));
            put("residual", json!(text("residual")));
            let sites = chosen.map(Choice::sites).transpose()?;
            put(
                "layers_to_transform",
                layers(model, &linears(model.family), sites),
            );
        }
        _ => virtual_tokens(model, name, whole("tokens"), &mut put),
    }
    Ok(Some(format!("{:#}\n", Value::Object(fields))))
}

/// The fields of prompt and prefix tuning.
fn virtual_tokens(
    model: &ModelSpec,
    name: &str,
    tokens: u64,
    put: &mut dyn FnMut(&str, Value) -> Option<Value>,
) {
    let (kind, heads, width) = match name {
        "prefix_tuning" => (
            Kind::PrefixTuning,
            model.kv_heads,
            model.kv_heads * model.head_dim,
        ),
        _ => (Kind::PromptTuning, model.heads, model.hidden),
    };
    put("peft_type", json!(kind));
    put("num_virtual_tokens", json!(tokens));
    put("num_layers", json!(model.layers));
    put("num_attention_heads", json!(heads));
    put("token_dim", json!(width));
    put("num_transformer_submodules", json!(1));
    match kind {
        Kind::PrefixTuning => {
            put("prefix_projection", json!(false));
            put("encoder_hidden_size", json!(model.hidden));
        }
        _ => {
            put("prompt_tuning_init", json!("RANDOM"));
        }
    }
}

/// The layers in which a site has a module.
fn reached(model: &ModelSpec, module: &Module, sites: &Pattern) -> Vec<u64> {
    let path = |i: u64, ours: &str| match module.layered {
        true => format!("layers.{i}/{ours}"),
        false => ours.to_string(),
    };
    let inside = |i: &u64| {
        module
            .ours
            .iter()
            .any(|ours| sites.matches(&path(*i, ours)))
    };
    (0..model.layers).filter(inside).collect()
}

/// The layers that a choice is for, where not for all.
fn layers(model: &ModelSpec, modules: &[Module], sites: Option<Pattern>) -> Value {
    let Some(sites) = sites else {
        return Value::Null;
    };
    let of = |m: &Module| reached(model, m, &sites);
    let all: BTreeSet<u64> = modules.iter().filter(|m| m.layered).flat_map(of).collect();
    match all.len() as u64 == model.layers {
        true => Value::Null,
        false => json!(all),
    }
}
