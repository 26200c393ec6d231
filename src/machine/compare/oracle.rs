//! Records of steps followed tensor by tensor: `hf_config`, `options`, `measured`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::record::{Fields, Reason};
use super::{Case, Target};
use crate::program::eager::{Class, EagerPhase, Live, SavedItem};
use crate::spec::config;
use crate::spec::torch::TorchOptions;
use crate::spec::units::Bytes;

/// What was measured of a step. What a record leaves out is not compared.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// Most bytes alive at once.
    pub peak_bytes: Bytes,
    /// The phase of the peak.
    pub peak_phase: Option<EagerPhase>,
    /// The op that made it.
    pub peak_op: Option<String>,
    /// Bytes alive at the peak by class.
    pub breakdown: BTreeMap<Class, Bytes>,
    /// The peak of each phase.
    pub phase_peak: BTreeMap<EagerPhase, Bytes>,
    /// Bytes alive before the step.
    pub step_start: Option<Bytes>,
    /// Bytes alive after it.
    pub step_end: Option<Bytes>,
    /// Activations alive at the end of the forward pass.
    pub saved: Option<Bytes>,
    /// What layers keep of them.
    pub saved_per_layer: Option<PerLayer>,
    /// The same of a middle layer, tensor by tensor.
    pub saved_items: Vec<SavedItem>,
    /// The largest tensors at the peak that are not weights, gradients or state.
    pub largest: Vec<Live>,
}

/// Bytes layers keep for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PerLayer {
    /// A layer in the middle.
    pub middle: Bytes,
}

/// The case of a record.
pub(super) fn case(line: usize, id: &str, fields: &Fields) -> Result<Case, Reason> {
    let name: Option<String> = fields.opt("model")?;
    let config = Value::Object(fields.object("hf_config")?.0.clone());
    let model = config::parse(name.as_deref().unwrap_or(id), &config.to_string());
    let options = Value::Object(fields.object("options")?.0.clone());
    let options = TorchOptions::from_json(&options);
    Ok(Case {
        timed: None,
        line,
        id: id.to_string(),
        model: model.map_err(|e| e.to_string())?,
        options: options.map_err(|e| e.to_string())?,
        target: Target::Exact(Box::new(measured(&fields.object("measured")?)?)),
        assumed: Vec::new(),
    })
}

fn measured(fields: &Fields) -> Result<Measured, Reason> {
    let peak_bytes: Bytes = fields.need("peak_bytes")?;
    if peak_bytes == Bytes::ZERO {
        return Err("the field `peak_bytes` is 0: nothing was measured".into());
    }
    Ok(Measured {
        peak_bytes,
        peak_phase: fields.opt("peak_phase")?,
        peak_op: fields.opt("peak_op")?,
        breakdown: fields.opt("breakdown_at_peak")?.unwrap_or_default(),
        phase_peak: fields.opt("phase_peak_bytes")?.unwrap_or_default(),
        step_start: fields.opt("step_start_bytes")?,
        step_end: fields.opt("step_end_bytes")?,
        saved: fields.opt("saved_end_of_forward_bytes")?,
        saved_per_layer: fields.opt("saved_per_layer")?,
        saved_items: fields.opt("saved_middle_layer_items")?.unwrap_or_default(),
        largest: fields.opt("largest_at_peak")?.unwrap_or_default(),
    })
}
