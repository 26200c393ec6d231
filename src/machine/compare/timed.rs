//! The speed a published record gives, as seconds of one step, and the step that was timed.

use super::record::{Fields, Reason};
use super::vocabulary::Practice;
use crate::spec::torch::TorchOptions;

/// Longer than any step takes, in seconds.
const LONGEST: f64 = 1e6;

/// A step that was timed.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// Who published it.
    pub source: String,
    /// The device, in the source's words.
    pub gpu: String,
    /// What ran while the clock did: the record's options, at the mean length where the memory is that of the longest sample.
    pub options: TorchOptions,
    /// Seconds of a step with all its micro-batches.
    pub seconds: f64,
    /// Whether what it launches is what is counted: Hugging Face's kernels, or the like.
    pub counted: bool,
    /// Trained parameters that the host updates: their gradients go there and their weights come back.
    pub on_host: u64,
}

/// The speed of a record, where it gives one.
pub(super) fn timed(
    fields: &Fields,
    options: &TorchOptions,
    practice: &Practice,
    on_host: u64,
    assumed: &mut Vec<String>,
) -> Result<Option<Timed>, Reason> {
    let mut options = options.clone();
    let notes: String = fields.opt("notes")?.unwrap_or_default();
    if let Some(mean) = practice
        .mean_length
        .filter(|_| is_unpacked(&notes, practice))
    {
        options.seq = options.seq.min(mean);
        assumed.push(format!("speed at the mean length, {mean} tokens"));
    }
    let Some(seconds) = seconds(fields, &options, practice)? else {
        return Ok(None);
    };
    if !(seconds > 0.0 && seconds < LONGEST) {
        return Err(format!("its speed: {seconds} seconds of a step"));
    }
    Ok(Some(Timed {
        source: fields.opt("source")?.unwrap_or_default(),
        gpu: fields.opt("gpu")?.unwrap_or_default(),
        options,
        seconds,
        counted: !practice.own_kernels,
        on_host,
    }))
}

/// Whether samples were as long as they are: where the source packs some runs, the record says which it does not.
fn is_unpacked(notes: &str, practice: &Practice) -> bool {
    !practice.packs || notes.contains("unpacked")
}

/// Seconds of a step, from its time or its rate.
fn seconds(
    fields: &Fields,
    options: &TorchOptions,
    practice: &Practice,
) -> Result<Option<f64>, Reason> {
    let micro_batches = options.grad_accum as f64;
    if let Some(seconds) = fields.opt::<f64>("step_time_s")? {
        let times = if practice.times_micro_batches {
            micro_batches
        } else {
            1.0
        };
        return Ok(Some(seconds * times));
    }
    let Some(rate) = fields.opt_object("throughput")? else {
        return Ok(None);
    };
    let (value, unit): (f64, String) = (rate.need("value")?, rate.need("unit")?);
    let sequences = options.batch as f64 * micro_batches;
    match unit.as_str() {
        "tokens/s" => Ok(Some(sequences * options.seq as f64 / value)),
        "samples/s" => Ok(Some(sequences / value)),
        other => Err(format!(
            "the field `throughput`: unknown unit `{other}`; known are tokens/s, samples/s"
        )),
    }
}
