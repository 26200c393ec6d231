//! The parameters of adapters by this package's names, and where PEFT's files keep each of them.

use super::mapping::{Mapping, Piece};
use super::{families, shape};
use crate::spec::model::ModelSpec;
use crate::spec::modules::{Module, linears, names};

/// What stands before every tensor of a module.
const BASE: &str = "base_model.model.";
/// The tensor of all virtual tokens and prefixes.
const EMBEDDINGS: &str = "prompt_embeddings";
/// The name of trained virtual tokens.
const PROMPT: &str = "embedding/prompt.weight";

/// Endings of parameters of a module: ours, and those of files. PEFT has no bottleneck adapters; their endings are those of
/// LLM-Adapters (Hu et al. 2023, arXiv:2304.01933).
const ENDINGS: [(&str, &str); 6] = [
    ("lora_a.weight", "lora_A.weight"),
    ("lora_b.weight", "lora_B.weight"),
    ("adapter.down.weight", "adapter_down.weight"),
    ("adapter.down.bias", "adapter_down.bias"),
    ("adapter.up.weight", "adapter_up.weight"),
    ("adapter.up.bias", "adapter_up.bias"),
];

/// Kinds of adapters, by PEFT's names for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// Low-rank updates.
    Lora,
    /// Bottlenecks before residual sums; not of PEFT.
    Bottleneck,
    /// Keys and values before those of a sequence.
    PrefixTuning,
    /// Virtual tokens before a sequence.
    PromptTuning,
}

/// Where files keep the parameter `name` of `shape` of an adapter of `model`; `None` where it is none.
pub fn place(model: &ModelSpec, name: &str, shape: &[u64]) -> Option<Mapping> {
    if name == PROMPT {
        return Some(Mapping::whole(EMBEDDINGS.to_string(), shape));
    }
    let (layer, rest) = match name.strip_prefix("layers.") {
        Some(tail) => {
            let (layer, rest) = tail.split_once('/')?;
            (Some(layer.parse().ok()?), rest)
        }
        None => (None, name),
    };
    match rest.strip_prefix("attention/prefix.") {
        Some(side @ ("k" | "v")) => Some(prefix(model, layer?, side == "v", shape)),
        // A state of one: its name goes on.
        Some(_) => None,
        None => of_module(model, layer, rest, shape),
    }
}

/// The names and lengths of an adapter's parameters, among tensors whose lengths `shape_of` knows.
pub fn listed(
    model: &ModelSpec,
    kind: Kind,
    shape_of: &dyn Fn(&str) -> Option<Vec<u64>>,
) -> Vec<(String, Vec<u64>)> {
    let mut found = Vec::new();
    for (name, own) in candidates(model, kind) {
        // Any lengths do to find the tensor's name.
        let Some(mapping) = place(model, &name, &own) else {
            continue;
        };
        let Some(held) = mapping.pieces.first().and_then(|p| shape_of(&p.tensor)) else {
            continue;
        };
        found.push((name, lengths(own, &held)));
    }
    found
}

/// The lengths of a parameter whose own are known but for the width of the adapter, zero, which a tensor of lengths `held` tells.
fn lengths(own: Vec<u64>, held: &[u64]) -> Vec<u64> {
    let skipped = own.len() - held.len().min(own.len());
    let width = |i: usize| held.get(i.saturating_sub(skipped)).copied().unwrap_or(0);
    let length = |(i, &n): (usize, &u64)| if n == 0 { width(i) } else { n };
    own.iter().enumerate().map(length).collect()
}

/// The parameters that an adapter of `kind` may have, with zero for the adapter's width.
fn candidates(model: &ModelSpec, kind: Kind) -> Vec<(String, Vec<u64>)> {
    let layers = 0..model.layers;
    let hidden = model.hidden;
    match kind {
        Kind::PromptTuning => vec![(PROMPT.to_string(), vec![0, hidden])],
        Kind::PrefixTuning => {
            let width = model.kv_heads * model.head_dim;
            let side = |layer, side| {
                (
                    format!("layers.{layer}/attention/prefix.{side}"),
                    vec![0, width],
                )
            };
            layers.flat_map(|i| [side(i, "k"), side(i, "v")]).collect()
        }
        Kind::Bottleneck => {
            let shapes = [vec![0, hidden], vec![0], vec![hidden, 0], vec![hidden]];
            let named = ENDINGS[2..].iter().zip(shapes);
            let in_branch = |stem: String| {
                let each = named.clone();
                each.map(move |((ending, _), shape)| (format!("{stem}/{ending}"), shape))
            };
            let branches =
                layers.flat_map(|i| ["attention", "mlp"].map(|b| format!("layers.{i}/{b}")));
            branches.flat_map(in_branch).collect()
        }
        Kind::Lora => linears(model.family)
            .iter()
            .flat_map(|m| low_rank(model, m))
            .collect(),
    }
}

/// The low-rank parameters that a module may have, in all layers.
fn low_rank(model: &ModelSpec, module: &Module) -> Vec<(String, Vec<u64>)> {
    let layers = if module.layered { model.layers } else { 1 };
    let mut all = Vec::new();
    for layer in 0..layers {
        for (index, ours) in module.ours.iter().enumerate() {
            let stem = match module.layered {
                true => format!("layers.{layer}/{ours}"),
                false => ours.to_string(),
            };
            let Ok(mut weight) = shape(model, &format!("{stem}.weight")) else {
                continue;
            };
            let (rows, last) = (weight.len() - 2, weight.len() - 1);
            if index == 0 {
                let mut a = weight.clone();
                a[rows] = 0;
                all.push((format!("{stem}.lora_a.weight"), a));
            }
            weight[last] = 0;
            all.push((format!("{stem}.lora_b.weight"), weight));
        }
    }
    all
}

/// A prefix: some columns of the tensor that holds those of all layers, keys before values. Read as rows as long as the prefix
/// of one layer, they are one row for each virtual token.
fn prefix(model: &ModelSpec, layer: u64, values: bool, shape: &[u64]) -> Mapping {
    let (tokens, width) = (shape[0], shape[1]);
    let rows = 2 * model.layers;
    let piece = |token: u64| Piece {
        tensor: EMBEDDINGS.to_string(),
        shape: vec![tokens, rows * width],
        rows: token..token + 1,
        first: token * rows + 2 * layer + u64::from(values),
        transposed: false,
    };
    Mapping {
        columns: width,
        pieces: (0..tokens.max(1)).map(piece).collect(),
    }
}

/// A parameter of a linear module, or of the branch that one ends.
fn of_module(
    model: &ModelSpec,
    layer: Option<u64>,
    rest: &str,
    shape_of: &[u64],
) -> Option<Mapping> {
    let (ours, theirs) = ENDINGS.iter().find(|(ours, _)| rest.ends_with(ours))?;
    let stem = rest.strip_suffix(ours)?;
    let stem = match stem {
        "attention/" => "attention/o",
        "mlp/" if model.experts.is_some() => "mlp/experts.down",
        "mlp/" => "mlp/down",
        other => other.strip_suffix('.')?,
    };
    let modules = linears(model.family);
    let module = modules.iter().find(|m| m.ours.contains(&stem))?;
    let mut module_name = module.theirs;
    if theirs.starts_with("adapter") {
        // The bottleneck of a branch with experts is beside all of them.
        module_name = module_name.split(".experts").next()?;
    }
    let tensor = match layer {
        Some(i) => format!(
            "{BASE}{}{i}.{module_name}.{theirs}",
            names(model.family).prefix
        ),
        None => format!("{BASE}{module_name}.{theirs}"),
    };
    if let [count, rows, columns] = *shape_of {
        return Some(families::experts(&tensor, count, rows, columns));
    }
    if *ours != "lora_b.weight" {
        return Some(Mapping::whole(tensor, shape_of));
    }
    let rows = |ours: &str| match layer {
        Some(i) => shape(model, &format!("layers.{i}/{ours}.weight"))
            .ok()?
            .first()
            .copied(),
        None => shape(model, &format!("{ours}.weight"))
            .ok()?
            .first()
            .copied(),
    };
    let (mut first, mut total) = (0, 0);
    for ours in &module.ours {
        if *ours == stem {
            first = total;
        }
        total += rows(ours)?;
    }
    Some(Mapping::part(tensor, shape_of, first, total, false))
}
