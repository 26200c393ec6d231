//! From counts back to a plan: which layers, and the choices that say so.

use std::collections::{BTreeMap, BTreeSet};

use super::Proposal;
use super::layers::Counts;
use super::menu::{self, Fate, Home, Saved};
use super::problem::{Problem, Problems};
use crate::plan::Choice;

impl Problems {
    /// The plan of `counts`.
    pub fn proposal(&self, problem: &Problem, counts: &Counts) -> Proposal {
        let layers = problem.layers.count;
        let at_home = counts.kinds.get(1).map_or(0, |&n| n as u64);
        let kept: BTreeSet<u64> = kept(at_home, layers);
        let mut sites: BTreeMap<(Fate, BTreeSet<u64>), Vec<usize>> = BTreeMap::new();
        for saved in 0..self.saved.len() {
            for (fate, set) in self.fates(saved, counts, &kept, layers) {
                if !set.is_empty() {
                    sites.entry((fate, set)).or_default().push(saved);
                }
            }
        }
        let home = &problem.home;
        let mut choices = home.choices(&self.away(problem, &kept), home.pace);
        choices.extend(self.kernels.iter().cloned());
        for ((fate, set), saved) in &sites {
            choices.extend(self.choices(&problem.home, *fate, set, saved, layers));
        }
        let part = |n: usize, what: &str| format!("{what} in {n} of {layers} layers");
        let mut names: Vec<String> =
            Vec::from_iter((!problem.home.name.is_empty()).then(|| problem.home.name.clone()));
        if problem.beside_at_home {
            names.push(format!("{} at home", self.others.join(" and ")));
        }
        if !kept.is_empty() {
            names.push(part(kept.len(), "at home"));
        }
        for fate in Fate::ALL {
            let sets = sites.iter().filter(|((f, _), _)| *f == fate);
            let any: BTreeSet<u64> = sets.flat_map(|((_, set), _)| set.iter().copied()).collect();
            if !any.is_empty() {
                names.push(part(any.len(), fate.name()));
            }
        }
        Proposal {
            name: names.join(" + "),
            choices,
        }
    }

    /// The layers in which `saved` has each fate: evenly where it is sent away, the earliest of the rest where it is not.
    fn fates(
        &self,
        saved: usize,
        counts: &Counts,
        kept: &BTreeSet<u64>,
        layers: u64,
    ) -> BTreeMap<Fate, BTreeSet<u64>> {
        let mut sets: BTreeMap<Fate, BTreeSet<u64>> = BTreeMap::new();
        for (kind, counts) in counts.columns.iter().enumerate() {
            let mut left: Vec<u64> = (0..layers)
                .filter(|l| kept.contains(l) == (kind == 1))
                .collect();
            let columns = self.changes.iter().zip(counts);
            let mut own: Vec<(Fate, u64)> = columns
                .filter(|(change, _)| change.saved == saved)
                .map(|(change, &count)| (change.fate, count as u64))
                .collect();
            // What leaves goes first: it may not be of the last layers.
            own.sort_by_key(|(fate, _)| !fate.leaves());
            for (fate, count) in own {
                let at = match fate.leaves() {
                    true => spread(
                        count,
                        left.iter().filter(|&&l| l + 2 < layers).count() as u64,
                    ),
                    false => (0..count.min(left.len() as u64)).collect(),
                };
                let taken: BTreeSet<u64> = at.into_iter().map(|at| left[at as usize]).collect();
                left.retain(|l| !taken.contains(l));
                sets.entry(fate).or_default().extend(taken);
            }
        }
        sets
    }

    /// The site of what is not kept on the device, where all of `kept` layers is.
    fn away(&self, problem: &Problem, kept: &BTreeSet<u64>) -> String {
        if kept.is_empty() && !problem.beside_at_home {
            return "*".to_string();
        }
        let rest: BTreeSet<u64> = (0..problem.layers.count)
            .filter(|l| !kept.contains(l))
            .collect();
        let layers = match kept.is_empty() {
            true => "layers.*".to_string(),
            false => menu::layers(&rest),
        };
        let beside = self.others.iter().filter(|_| !problem.beside_at_home);
        let parts: Vec<String> = [layers].into_iter().chain(beside.cloned()).collect();
        parts.join("+")
    }

    /// The choices for all `saved` values with one fate in the same layers.
    fn choices(
        &self,
        home: &Home,
        fate: Fate,
        set: &BTreeSet<u64>,
        saved: &[usize],
        layers: u64,
    ) -> Vec<Choice> {
        let sites = match set.len() as u64 == layers {
            true => "layers.*".to_string(),
            false => menu::layers(set),
        };
        let suited = self.saved.iter().filter(|s| fate.suits(s)).count();
        let site = match saved.len() == suited {
            true => sites,
            false => {
                let of: Vec<&Saved> = saved.iter().map(|&s| &self.saved[s]).collect();
                menu::site(&of, &sites)
            }
        };
        fate.choices(&site, home.pace)
    }
}

/// The `at_home` of `layers` layers whose parameters and states stay. The others lie evenly among them, each as late as it may: what
/// belongs to the earliest of them is brought and sent last, when the less of the backward pass is left to hide it.
fn kept(at_home: u64, layers: u64) -> BTreeSet<u64> {
    let away = layers - at_home.min(layers);
    let away: BTreeSet<u64> = (1..=away).map(|i| i * layers / away - 1).collect();
    (0..layers).filter(|layer| !away.contains(layer)).collect()
}

/// `count` of `layers` layers, evenly.
fn spread(count: u64, layers: u64) -> BTreeSet<u64> {
    (0..count.min(layers))
        .map(|i| (i * layers + layers / 2) / count.min(layers))
        .collect()
}
