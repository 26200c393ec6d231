//! Tensor names of the Hugging Face classes, one table per family.

use super::mapping::{Mapping, Piece};
use crate::spec::model::Family;
use crate::spec::modules::names;

/// Where the parameter `rest` of `shape` lies; `shape_of` knows the shapes of those it may share a tensor with.
pub(super) fn mapping<'s>(
    family: Family,
    layer: Option<u64>,
    rest: &str,
    shape: &[u64],
    shape_of: &dyn Fn(&str) -> Option<&'s [u64]>,
) -> Option<Mapping> {
    let names = names(family);
    let (pairs, prefix) = match layer {
        Some(i) => (names.layer, format!("{}{i}.", names.prefix)),
        None => (names.outer, String::new()),
    };
    let (stem, suffix) = rest.rsplit_once('.')?;
    if let Some((_, whole)) = pairs.iter().find(|(ours, _)| *ours == rest) {
        return Some(Mapping::whole(whole.to_string(), shape));
    }
    let (_, theirs) = pairs.iter().find(|(ours, _)| *ours == stem)?;
    let tensor = format!("{prefix}{theirs}.{suffix}");
    if let [count, rows, columns] = *shape {
        return Some(experts(&tensor, count, rows, columns));
    }
    let rows = |ours: &str| Some(*shape_of(&format!("{ours}.{suffix}"))?.first()?);
    let (mut first, mut total) = (0, 0);
    for (ours, _) in pairs.iter().filter(|(_, other)| other == theirs) {
        if *ours == stem {
            first = total;
        }
        total += rows(ours)?;
    }
    let transposed = names.transposed && layer.is_some() && shape.len() == 2;
    Some(Mapping::part(tensor, shape, first, total, transposed))
}

/// One tensor per expert, one below the other.
pub(super) fn experts(tensor: &str, count: u64, rows: u64, columns: u64) -> Mapping {
    let piece = |e: u64| Piece {
        tensor: tensor.replace("{}", &e.to_string()),
        shape: vec![rows, columns],
        rows: e * rows..(e + 1) * rows,
        first: 0,
        transposed: false,
    };
    Mapping {
        columns,
        pieces: (0..count).map(piece).collect(),
    }
}

/// Other names that files give the tensor, best first: without the base model's prefix, and as old files had it.
pub fn spellings(tensor: &str) -> Vec<String> {
    let mut all = vec![tensor.to_string()];
    let bare = ["transformer.", "model.", "bert."]
        .iter()
        .find_map(|prefix| tensor.strip_prefix(prefix));
    all.extend(bare.map(str::to_string));
    for name in all.clone() {
        if let Some(stem) = name.strip_suffix("LayerNorm.weight") {
            all.push(format!("{stem}LayerNorm.gamma"));
        }
        if let Some(stem) = name.strip_suffix("LayerNorm.bias") {
            all.push(format!("{stem}LayerNorm.beta"));
        }
    }
    if tensor == "cls.predictions.bias" {
        all.push("cls.predictions.decoder.bias".to_string());
    }
    all
}
