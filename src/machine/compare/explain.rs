//! One case taken apart: what is alive at the predicted peak beside what was measured, class by class, and what a
//! middle layer keeps, tensor by tensor.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Case, Row, Target, row};
use crate::program::eager::{Class, EagerPhase, Live, Prediction, SavedItem};
use crate::spec::units::Bytes;

/// A figure, predicted and measured; what a record does not have is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Predicted.
    pub predicted: Bytes,
    /// Measured.
    pub measured: Option<Bytes>,
}

/// Tensors a middle layer keeps, by op, shape and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Op, shape and type.
    pub what: String,
    /// How many, predicted.
    pub predicted_count: u64,
    /// How many, measured.
    pub measured_count: Option<u64>,
    /// Their bytes.
    pub bytes: Pair,
}

/// A case taken apart.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Its name.
    pub id: String,
    /// The comparison, where a memory figure was measured.
    pub row: Option<Row>,
    /// Whether more than the peak was measured.
    pub detailed: bool,
    /// The op that makes the peak, predicted.
    pub op: String,
    /// The same, measured.
    pub measured_op: Option<String>,
    /// Bytes alive at the peak, by class.
    pub classes: BTreeMap<Class, Pair>,
    /// The peak of each phase.
    pub phases: BTreeMap<EagerPhase, Pair>,
    /// Bytes alive before the step, after it, at the end of the forward pass, and in a middle layer then.
    pub moments: BTreeMap<&'static str, Pair>,
    /// What a middle layer keeps.
    pub items: Vec<Item>,
    /// The largest tensors at the predicted peak.
    pub largest: Vec<Live>,
    /// The same, measured.
    pub measured_largest: Vec<Live>,
    /// What was taken for what the record leaves open.
    pub assumed: Vec<String>,
}

impl Explanation {
    /// Takes a case apart.
    pub fn new(case: &Case, prediction: &Prediction) -> Explanation {
        let nothing = super::Measured::default();
        let (measured, detailed) = match &case.target {
            Target::Exact(measured) => (measured.as_ref(), true),
            Target::Published { .. } => (&nothing, false),
        };
        let moments = [
            ("step start", prediction.step_start, measured.step_start),
            ("step end", prediction.step_end, measured.step_end),
            (
                "saved by the forward pass",
                prediction.saved,
                measured.saved,
            ),
            (
                "saved by a middle layer",
                prediction.saved_middle_layer,
                measured.saved_per_layer.map(|l| l.middle),
            ),
        ];
        let pair = |(name, predicted, measured)| {
            (
                name,
                Pair {
                    predicted,
                    measured,
                },
            )
        };
        Explanation {
            id: case.id.clone(),
            row: row(case, prediction),
            detailed,
            op: prediction.op.clone(),
            measured_op: measured.peak_op.clone(),
            classes: pairs(&prediction.breakdown, &measured.breakdown),
            phases: pairs(&prediction.phase_peak, &measured.phase_peak),
            moments: moments.map(pair).into(),
            items: items(&prediction.saved_items, &measured.saved_items, detailed),
            largest: prediction.largest.clone(),
            measured_largest: measured.largest.clone(),
            assumed: case.assumed.clone(),
        }
    }
}

/// Two accounts side by side. An account that has anything has a zero for what it does not name.
fn pairs<K: Ord + Copy>(
    predicted: &BTreeMap<K, Bytes>,
    measured: &BTreeMap<K, Bytes>,
) -> BTreeMap<K, Pair> {
    let of = |account: &BTreeMap<K, Bytes>, key: &K| account.get(key).copied().unwrap_or_default();
    let pair = |key: &K| Pair {
        predicted: of(predicted, key),
        measured: (!measured.is_empty()).then(|| of(measured, key)),
    };
    let keys = predicted.keys().chain(measured.keys());
    keys.map(|key| (*key, pair(key))).collect()
}

/// A number of tensors, and their bytes.
type Sum = (u64, u64);

/// Saved tensors side by side, the largest difference first, then the largest.
fn items(predicted: &[SavedItem], measured: &[SavedItem], detailed: bool) -> Vec<Item> {
    let mut all: BTreeMap<&str, (Sum, Sum)> = BTreeMap::new();
    let add = |to: &mut Sum, item: &SavedItem| {
        *to = (
            to.0.saturating_add(item.count),
            to.1.saturating_add(item.bytes.0),
        );
    };
    for item in predicted {
        add(&mut all.entry(&item.what).or_default().0, item);
    }
    for item in measured {
        add(&mut all.entry(&item.what).or_default().1, item);
    }
    let item = |(what, (ours, theirs)): (&str, (Sum, Sum))| Item {
        what: what.to_string(),
        predicted_count: ours.0,
        measured_count: detailed.then_some(theirs.0),
        bytes: Pair {
            predicted: Bytes(ours.1),
            measured: detailed.then_some(Bytes(theirs.1)),
        },
    };
    let mut items: Vec<Item> = all.into_iter().map(item).collect();
    let off = |i: &Item| {
        i.bytes
            .measured
            .map_or(0, |m| m.0.abs_diff(i.bytes.predicted.0))
    };
    items.sort_by_key(|i| std::cmp::Reverse((off(i), i.bytes.predicted)));
    items
}
