//! Rotary embeddings as the configs state them: base, rotated share of a head, scaling.

use super::fields::Fields;
use crate::error::Result;
use crate::spec::model::{Position, Rotary, RotaryScaling};

/// Published kinds that are known and not done here.
const NOT_DONE: [&str; 6] = ["yarn", "longrope", "su", "dynamic", "mrope", "proportional"];

/// The rotary embedding of a model with heads of `head_dim`.
///
/// Newer configs keep base and scaling together in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`.
pub(super) fn rotary(fields: &Fields, head_dim: u64, theta: f64) -> Result<Position> {
    let nested = fields.object("rope_parameters")?;
    let theta = fields.positive_or("rope_theta", theta)?;
    let theta = match &nested {
        Some(nested) => nested.positive_or("rope_theta", theta)?,
        None => theta,
    };
    let scaling = match nested {
        Some(nested) => Some(nested),
        None => fields.object("rope_scaling")?,
    };
    Ok(Position::Rotary(Rotary {
        theta,
        dims: rotated(fields, head_dim)?,
        scaling: scaling.map_or(Ok(RotaryScaling::None), |s| read_scaling(&s))?,
    }))
}

/// Rotated dimensions of a head: all, or the share in `partial_rotary_factor`; an even number.
fn rotated(fields: &Fields, head_dim: u64) -> Result<u64> {
    let key = "partial_rotary_factor";
    let share = fields.positive_or(key, 1.0)?;
    if share > 1.0 {
        return Err(fields.unusable(key, share, "more than the whole head"));
    }
    let dims = (head_dim as f64 * share) as u64;
    match dims >= 2 && dims.is_multiple_of(2) {
        true => Ok(dims),
        false => {
            let why = "rotary embeddings turn pairs: the rotated part of a head must be even";
            Err(fields.unusable("head_dim", head_dim, why))
        }
    }
}

fn read_scaling(fields: &Fields) -> Result<RotaryScaling> {
    let kind = match fields.text("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.text("type")?,
    };
    match kind {
        None | Some("default") => Ok(RotaryScaling::None),
        Some("linear") => Ok(RotaryScaling::Linear {
            factor: fields.positive("factor")?,
        }),
        Some("llama3") => llama3(fields),
        Some(kind) if NOT_DONE.contains(&kind) => {
            let why = format!("rope scaling of kind {kind}; only linear and llama3 are");
            Err(fields.unsupported("rope_scaling", kind, &why))
        }
        Some(kind) => Err(crate::error::Error::unknown(
            "rope_scaling",
            kind,
            ["default", "linear", "llama3"],
            "correct it in the model's config",
        )),
    }
}

fn llama3(fields: &Fields) -> Result<RotaryScaling> {
    let low = fields.positive("low_freq_factor")?;
    let high = fields.positive("high_freq_factor")?;
    if high <= low {
        let why = format!("it must be above low_freq_factor, {low}");
        return Err(fields.unusable("high_freq_factor", high, &why));
    }
    Ok(RotaryScaling::Llama3 {
        factor: fields.positive("factor")?,
        low,
        high,
        original: fields.positive("original_max_position_embeddings")?,
    })
}
