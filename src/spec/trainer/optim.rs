//! The names the Trainer has for optimizers.

use super::fields::Fields;
use crate::error::Result;
use crate::spec::torch::{OptimizerImpl, TorchOptimizer};

/// Name, optimizer, implementation (none: its usual one).
const NAMES: [(&str, &str, Option<&str>); 22] = [
    ("adamw_torch", "adamw", Some("foreach")),
    ("adamw_torch_fused", "adamw", Some("fused")),
    ("adamw_apex_fused", "adamw", Some("fused")),
    ("adamw_hf", "adamw", Some("forloop")),
    ("sgd", "sgd", None),
    ("adagrad", "adagrad", None),
    ("rmsprop", "rmsprop", None),
    ("adafactor", "adafactor", None),
    ("adamw_bnb_8bit", "adamw_8bit", None),
    ("adamw_8bit", "adamw_8bit", None),
    ("paged_adamw_8bit", "adamw_8bit", None),
    ("paged_adamw", "adamw_bnb_32bit", None),
    ("paged_adamw_32bit", "adamw_bnb_32bit", None),
    ("adamw_bnb_32bit", "adamw_bnb_32bit", None),
    ("lion_8bit", "lion_8bit", None),
    ("paged_lion_8bit", "lion_8bit", None),
    ("adamw", "adamw", None),
    ("adamw_fused", "adamw", Some("fused")),
    ("adamw_anyprecision", "adamw", Some("forloop")),
    ("adamw_torch_xla", "adamw", Some("foreach")),
    ("sgd_momentum", "sgd_momentum", None),
    ("adafactor_torch", "adafactor_torch", None),
];

/// The Trainer's name of an optimizer: that of this implementation, or of its usual one.
pub(super) fn name(optimizer: TorchOptimizer, how: OptimizerImpl) -> &'static str {
    let of = |(_, known, _): &&(&str, &str, Option<&str>)| *known == optimizer.name();
    let exact = NAMES.iter().filter(of).find(|n| n.2 == Some(how.name()));
    let found = exact.or_else(|| NAMES.iter().find(of));
    found.map_or(optimizer.name(), |(name, ..)| name)
}

/// Takes the optimizer's name under one of `keys`.
///
/// # Errors
/// Where it is no word.
pub(super) fn read(fields: &mut Fields, keys: &[&'static str]) -> Result<()> {
    let Some((key, word)) = fields.word(keys)? else {
        return Ok(());
    };
    let word = word.trim_start_matches("optimizernames.").to_string();
    let Some((_, optimizer, how)) = NAMES.iter().find(|(name, ..)| *name == word) else {
        fields.refuse(key, word, "no such optimizer is predicted; AdamW is taken");
        fields.set("optimizer", "adamw");
        return Ok(());
    };
    if word.starts_with("paged_") {
        fields.assume(key, word, "its pages are counted as if all were on the GPU");
    }
    fields.set("optimizer", *optimizer);
    fields.set_some("optimizer_impl", *how);
    Ok(())
}
