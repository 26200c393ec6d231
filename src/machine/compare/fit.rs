//! Fits the table of efficiencies to published speeds, and says by cross-validation how far to trust it.

use std::collections::{BTreeMap, BTreeSet};

use super::speed::Run;
use super::statistics;
use crate::machine::speed::{Accuracy, Efficiency, FITTED, Source, Table};

/// What a fit pays for moving an efficiency away from the prior: the square of the logarithm of how far, in runs of one source each.
const HOLD: f64 = 0.1;
/// First and last step of the search, as logarithms.
const STEPS: [f64; 2] = [0.5, 0.005];
/// Index of the first of the seconds among the fitted.
const SHARES: usize = FITTED - 2;

/// A fitted table, and each run's time predicted by it and without its source.
#[derive(Debug, Clone)]
pub struct Fit {
    /// The table.
    pub table: Table,
    /// Predicted seconds by run: in sample, held out.
    pub predicted: Vec<[f64; 2]>,
}

/// Fits all runs whose kernels were counted, then once more without each source in turn.
pub fn fit(runs: &[Run]) -> Fit {
    let efficiency = fitted(runs, None);
    let sources: BTreeSet<&str> = runs.iter().map(|run| run.source.as_str()).collect();
    let without: BTreeMap<&str, Efficiency> = sources
        .iter()
        .map(|source| (*source, fitted(runs, Some(source))))
        .collect();
    let predict = |run: &Run| {
        let held = without.get(run.source.as_str()).unwrap_or(&efficiency);
        [&efficiency, held].map(|e| run.rooflines.seconds(e).0)
    };
    let predicted: Vec<[f64; 2]> = runs.iter().map(predict).collect();
    let all: Vec<usize> = (0..runs.len()).collect();
    let source = |name: &&str| {
        let own: Vec<usize> = (0..runs.len())
            .filter(|&at| runs[at].source == **name)
            .collect();
        Source {
            name: name.to_string(),
            runs: own.len(),
            fitted: own.iter().any(|&at| runs[at].fitted),
            in_sample: accuracy(runs, &predicted, &own, 0),
            held_out: accuracy(runs, &predicted, &own, 1),
        }
    };
    Fit {
        table: Table {
            efficiency,
            in_sample: accuracy(runs, &predicted, &all, 0),
            held_out: accuracy(runs, &predicted, &all, 1),
            source: sources.iter().map(source).collect(),
        },
        predicted,
    }
}

fn accuracy(runs: &[Run], predicted: &[[f64; 2]], of: &[usize], which: usize) -> Accuracy {
    let error = |&at: &usize| (predicted[at][which] / runs[at].seconds - 1.0).abs();
    let errors = statistics::sorted(of.iter().map(error));
    let at = |share| statistics::quantile(&errors, share).map_or(0.0, rounded);
    Accuracy {
        median: at(0.5),
        p90: at(0.9),
    }
}

/// Four digits: more are not earned.
fn rounded(value: f64) -> f64 {
    let text = format!("{value:.3e}");
    text.parse().unwrap_or(value)
}

/// The efficiencies that fit best without `source`: a pattern search (Hooke and Jeeves 1961) over their logarithms.
fn fitted(runs: &[Run], without: Option<&str>) -> Efficiency {
    let used: Vec<&Run> = runs
        .iter()
        .filter(|run| run.fitted && Some(run.source.as_str()) != without)
        .collect();
    let mut weights: BTreeMap<&str, f64> = BTreeMap::new();
    for run in &used {
        *weights.entry(&run.source).or_default() += 1.0;
    }
    let prior = Efficiency::PRIOR;
    let cost = |at: &[f64; FITTED]| {
        let e = prior.with(*at);
        let miss = |run: &&Run| {
            let far = (run.rooflines.seconds(&e).0 / run.seconds).ln().abs();
            // Runs of one source err alike: a source counts by the root of its runs.
            far / weights[run.source.as_str()].sqrt()
        };
        let moved = at.iter().zip(prior.fitted());
        let held: f64 = moved.map(|(to, from)| (to / from).ln().powi(2)).sum();
        used.iter().map(miss).sum::<f64>() + HOLD * held * (used.len() as f64).sqrt()
    };
    let mut best = prior.fitted();
    let mut least = cost(&best);
    let [mut step, last] = STEPS;
    while step > last {
        let mut better = false;
        for index in 0..FITTED {
            for factor in [step.exp(), (-step).exp()] {
                let mut tried = best;
                tried[index] *= factor;
                let allowed = index >= SHARES || tried[index] <= 1.0;
                let found = if allowed { cost(&tried) } else { f64::INFINITY };
                if found < least - 1e-9 {
                    (best, least, better) = (tried, found, true);
                }
            }
        }
        step = if better { step } else { step / 2.0 };
    }
    prior.with(best.map(rounded))
}
