//! Checks of a whole architecture: what no single field can show.

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;

/// More layers than any model has.
const LAYER_LIMIT: u64 = 10_000;
/// Above this, sums of sizes in bytes could leave 64 bits.
const WEIGHT_LIMIT: u128 = 1 << 60;

/// Refuses an architecture whose parts do not fit each other or whose sizes could overflow.
pub(super) fn check(fields: &Fields, spec: &ModelSpec) -> Result<()> {
    if spec.layers > LAYER_LIMIT {
        return Err(fields.unusable("layers", spec.layers, "no model has more than 10000"));
    }
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        let why = format!("it does not divide the {} attention heads", spec.heads);
        return Err(fields.unusable("num_key_value_heads", spec.kv_heads, &why));
    }
    if let Some(experts) = spec.experts
        && experts.top_k > experts.count
    {
        let why = format!("there are only {} experts", experts.count);
        return Err(fields.unusable("num_experts_per_tok", experts.top_k, &why));
    }
    match weight_bound(spec) < WEIGHT_LIMIT {
        true => Ok(()),
        false => Err(Error::value(
            format!("{}: size", fields.name()),
            format!(
                "{} layers of width {}, inner width {}, vocabulary {}",
                spec.layers, spec.hidden, spec.ffn, spec.vocab
            ),
            "the weights would count more than 2^60 elements",
            "correct the sizes in the model's config",
        )),
    }
}

/// At least as many elements as the weights have: a guard against overflow, not a count.
fn weight_bound(spec: &ModelSpec) -> u128 {
    let wide = |x: u64| u128::from(x);
    let experts = spec.experts.map_or(1, |e| wide(e.count));
    let rows = wide(spec.heads) * wide(spec.head_dim) * 4 + wide(spec.ffn) * 3 * experts;
    let layers = wide(spec.layers).saturating_mul(rows.saturating_add(experts + 16));
    let tables = 2 * wide(spec.vocab) + wide(spec.max_positions) + wide(spec.token_types) + 16;
    layers
        .saturating_add(tables)
        .saturating_mul(wide(spec.hidden))
}
