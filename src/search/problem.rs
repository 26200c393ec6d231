//! From a request to what is solved: a menu, coefficients, one problem for each home of the states.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::layers::{Column, Kind, Layers};
use super::may_choose;
use super::menu::{self, Fate, Home, Saved};
use super::price::{decides, depth, names_layers};
use super::sample::{self, Change, DEPTHS, Taken};
use crate::error::Result;
use crate::graph::{Step, Stream};
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::Place;

/// A home of the states with what may be chosen beside it.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Where the states live.
    pub home: Home,
    /// Whether those of the blocks beside the layers stay on the device all the same.
    pub beside_at_home: bool,
    /// What may be chosen in how many layers, and what that takes.
    pub layers: Layers,
}

/// All problems of a request, and what they share.
#[derive(Debug, Clone)]
pub struct Problems {
    /// One for each home.
    pub all: Vec<Problem>,
    /// What a layer saves.
    pub(super) saved: Vec<Saved>,
    /// What may become of it.
    pub(super) changes: Vec<Change>,
    /// Choices that all plans have: kernels that need less and are no slower.
    pub(super) kernels: Vec<Choice>,
    /// The blocks beside the layers that hold parameters.
    pub(super) others: Vec<String>,
}

impl Problems {
    /// Reads the coefficients off shallow models.
    ///
    /// # Errors
    /// Where no home can be planned.
    pub fn of(request: &Request) -> Result<Problems> {
        let kernels = menu::kernels(request);
        let shallow = at_depth(request, DEPTHS.0);
        let fused = [Choice::new("fused_update", "*", &[])];
        let fuses = may_choose(request, "fused_update")
            && planned(&shallow, &fused, &[]).is_ok_and(|plan| plan.steps().is_ok());
        let homes = menu::homes(request, fuses);
        let device = homes.iter().rev().find(|h| h.by_layer.is_empty());
        let device = device.cloned().unwrap_or_else(|| homes[0].clone());
        let step = sample::steady(&planned(
            &shallow,
            &device.choices("*", device.pace),
            &kernels,
        )?)?;
        let saved = (step.as_ref()).map_or(Vec::new(), |step| menu::saved(step, 1));
        let others = step.as_ref().map_or(Vec::new(), blocks_beside);
        let mut problems = Problems {
            all: Vec::new(),
            saved,
            changes: Vec::new(),
            kernels,
            others,
        };
        let (on_disk, homes): (Vec<Home>, Vec<Home>) = homes.into_iter().partition(Home::uses_disk);
        let taken = problems.add(request, homes, (&device, None), false)?;
        if !on_disk.is_empty() && !problems.held(request) {
            problems.add(request, on_disk, (&device, taken), true)?;
        }
        Ok(problems)
    }

    /// Adds the problems of `homes`, and lets saved values go to `disk` or not; returns what the home at the `device` takes, which is `known`
    /// where it was added before.
    ///
    /// # Errors
    /// Where no home can be planned.
    fn add(
        &mut self,
        request: &Request,
        homes: Vec<Home>,
        (device, known): (&Home, Option<Measured>),
        disk: bool,
    ) -> Result<Option<Measured>> {
        let (changes, all) = rayon::join(
            || changes(request, device, &self.kernels, &self.saved, disk),
            || -> Vec<Result<(Measured, Option<Measured>)>> {
                let taken = homes.par_iter().map(|home| self.taken(request, home));
                taken.collect()
            },
        );
        self.changes = changes?;
        for at in 0..self.all.len() {
            let Problem { home, layers, .. } = &self.all[at];
            self.all[at].layers.columns = self.columns(home, layers.count);
        }
        let mut own = homes.iter().zip(&all).filter(|(home, _)| *home == device);
        let own = own.find_map(|(_, measured)| measured.as_ref().ok());
        let known = known.or(own.map(|(device, _)| *device));
        for (home, measured) in homes.into_iter().zip(&all) {
            if let Ok(measured) = measured {
                let more = self.problems(request, home, measured, known.as_ref());
                self.all.extend(more);
            }
        }
        match all.into_iter().find_map(Result::err) {
            Some(error) if self.all.is_empty() => Err(error),
            _ => Ok(known),
        }
    }

    /// Whether the host has room for all that any of the problems may send there, so that a disk, which is slower and frees no more of the
    /// device, gives nothing.
    fn held(&self, request: &Request) -> bool {
        let budget = request.job.target.budget();
        let saved: f64 = self.saved.iter().map(|s| s.bytes.0 as f64).sum();
        let holds = |problem: &Problem| {
            let layers = &problem.layers;
            let taken = layers.rows(&layers.plain(), &budget);
            let mut rows = budget.rows.iter().zip(taken);
            rows.all(|((places, most), taken)| match places[..] {
                [Place::Gpu] | [Place::Disk] => true,
                // Where the device has the same memory, what it holds is not known yet.
                _ if places.contains(&Place::Gpu) => false,
                _ => taken + saved * layers.count as f64 <= most.0 as f64,
            })
        };
        self.all.iter().all(holds)
    }

    /// What a home takes of a model of the request's depth, and for each of its layers; and the same with the blocks beside the layers
    /// at home, where they may be.
    fn taken(&self, request: &Request, home: &Home) -> Result<(Measured, Option<Measured>)> {
        let at = |site: &str, layers: u64, more: &[Choice]| {
            let all: Vec<Choice> = home
                .choices(site, home.pace)
                .into_iter()
                .chain(more.iter().cloned())
                .collect();
            Taken::by(&planned(&at_depth(request, layers), &all, &self.kernels)?)
        };
        let parts = !(home.by_layer.is_empty() || self.others.is_empty() || names_layers(request));
        let lines = |more: &[Choice]| -> Result<(Line, Option<Line>)> {
            let (near, far) = (at("*", DEPTHS.0, more)?, at("*", DEPTHS.1, more)?);
            let beside = parts.then(|| at("layers.*", DEPTHS.0, more)).transpose()?;
            // A layer takes the same, wherever what lies beside it is.
            let beside = beside.map(|own| Line::new(own, own - (near - far)));
            Ok((Line::new(near, far), beside))
        };
        let kept = lines(&[])?;
        let drops = is_open(request, Fate::Recompute) && self.saved.iter().any(|s| s.droppable);
        let floor = match drops {
            true => lines(&[Choice::new("recompute", "layers.*", &[])])?,
            false => kept,
        };
        let measured = |(kept, floor)| Measured { kept, floor };
        let beside = kept.1.zip(floor.1).map(measured);
        Ok((measured((kept.0, floor.0)), beside))
    }

    /// What may become of saved values in the `count` layers of a home.
    fn columns(&self, home: &Home, count: u64) -> Vec<Column> {
        let column = |change: &Change| Column {
            flight: -change.held.gpu.min(0.0) * under_way(change.fate, home.pace) / count as f64,
            takes: Taken {
                peak: change.held,
                forward: change.forward,
                later: change.later,
                ..Taken::default()
            },
            most: match change.fate.leaves() {
                // What the last layers send away comes back at once.
                true => count.saturating_sub(2),
                false => count,
            },
            subject: change.saved,
        };
        self.changes.iter().map(column).collect()
    }

    /// The problem of a home, and the one with the blocks beside the layers at home: what they hold comes and goes where nothing hides it,
    /// at the turn and at the end of the step.
    fn problems(
        &self,
        request: &Request,
        home: Home,
        (measured, beside): &(Measured, Option<Measured>),
        device: Option<&Measured>,
    ) -> Vec<Problem> {
        let count = request.job.model.layers;
        let kind = |m: &Measured| Kind {
            takes: m.kept.layer,
            floor: m.floor.layer.peak.gpu,
            strain: m.strain(),
        };
        let device = device.filter(|_| !home.by_layer.is_empty() && !names_layers(request));
        let kinds = [measured].into_iter().chain(device).map(kind);
        let (kinds, columns): (Vec<Kind>, Vec<Column>) =
            (kinds.collect(), self.columns(&home, count));
        let with = |rest: &Measured, beside_at_home: bool| Problem {
            home: home.clone(),
            beside_at_home,
            layers: Layers {
                count,
                rest: rest.kept.rest,
                floor: rest.floor.rest.peak.gpu,
                kinds: kinds.clone(),
                columns: columns.clone(),
            },
        };
        let at_home = beside.as_ref().map(|beside| with(beside, true));
        [with(measured, false)].into_iter().chain(at_home).collect()
    }
}

/// What was read off a home.
#[derive(Clone, Copy)]
struct Measured {
    /// Where everything is kept.
    kept: Line,
    /// Where all saved values are dropped.
    floor: Line,
}

impl Measured {
    /// Seconds that a second of recomputation adds.
    fn strain(&self) -> [f64; 2] {
        let more = self.floor.layer - self.kept.layer;
        let compute = Stream::Compute as usize;
        let of = |spent: f64, work: f64| {
            if work > 0.0 {
                (spent / work).max(0.0)
            } else {
                1.0
            }
        };
        [
            of(more.spent[0], more.forward.0[compute]),
            of(more.spent[1], more.later.0[compute]),
        ]
    }
}

/// Layers whose values of one fate are on the device at the highest instant, on average.
fn under_way(fate: Fate, pace: u64) -> f64 {
    match fate {
        _ if fate.leaves() => 1.0 + pace as f64 / 2.0,
        _ => 1.0,
    }
}

/// What a layer takes, and what the step takes beside its layers.
#[derive(Debug, Clone, Copy)]
struct Line {
    layer: Taken,
    rest: Taken,
}

impl Line {
    /// Through what models of [`DEPTHS`] take.
    fn new(near: Taken, far: Taken) -> Line {
        let mut rest = Taken::continued(&near, &far, 0);
        // Where layers wait for each other the line ends too low: the kernels beside them take their time in any case.
        for half in [0, 1] {
            let compute = rest.half(half).0[Stream::Compute as usize];
            rest.spent[half] = rest.spent[half].max(compute);
        }
        Line {
            layer: Taken::continued(&near, &far, DEPTHS.1 + 1) - far,
            rest,
        }
    }
}

/// The blocks beside the layers that hold something as long as training.
fn blocks_beside(step: &Step) -> Vec<String> {
    let shared = step.storages.iter().filter(|s| s.shared);
    let first = shared.filter_map(|s| s.name.split('/').next());
    let beside: BTreeSet<&str> = first.filter(|f| !f.starts_with("layers.")).collect();
    beside.into_iter().map(String::from).collect()
}

/// The request for a model of `layers` layers; of no fewer than its own where a fixed choice names layers by number.
fn at_depth(request: &Request, layers: u64) -> Request {
    let least = if names_layers(request) {
        request.job.model.layers
    } else {
        0
    };
    depth(request, layers.max(least))
}

/// The plan of what is fixed, and of `choices` and `kernels` about anything else.
fn planned(request: &Request, choices: &[Choice], kernels: &[Choice]) -> Result<Plan> {
    let own = choices
        .iter()
        .chain(kernels)
        .filter(|c| !decides(request, c));
    let all = request.fixed.iter().chain(own).cloned().collect();
    Plan::new(request.job.clone(), all)
}

/// Whether `request` leaves it to the search which values have `fate`.
fn is_open(request: &Request, fate: Fate) -> bool {
    let mut choices = fate.choices("layers.*", 0).into_iter();
    choices.all(|c| may_choose(request, &c.technique) && !decides(request, &c))
}

/// What the fates change that `request` leaves open for saved values, those on `disk` among them or not.
fn changes(
    request: &Request,
    home: &Home,
    kernels: &[Choice],
    saved: &[Saved],
    disk: bool,
) -> Result<Vec<Change>> {
    let all = Fate::ALL.into_iter();
    let all = all.filter(|&fate| disk || fate != Fate::Disk);
    let open: Vec<Fate> = all.filter(|&fate| is_open(request, fate)).collect();
    let fates = sample::each_fate(saved, &open);
    if fates.is_empty() {
        return Ok(Vec::new());
    }
    let request = at_depth(request, sample::depth(&fates));
    let chosen = fates.iter().enumerate().flat_map(|(index, (value, fate))| {
        // Each at the layer of the sample that is for it.
        let layer = format!("layers.{}", index + 1);
        fate.choices(&menu::site(&[&saved[*value]], &layer), home.pace)
    });
    let choices: Vec<Choice> = home
        .choices("*", home.pace)
        .into_iter()
        .chain(chosen)
        .collect();
    sample::changes(&planned(&request, &choices, kernels)?, &fates)
}
