//! Coefficients: what shallow models of the job's layers take, read off their lowered programs.

use super::menu::{Fate, Saved};
use crate::error::Result;
use crate::graph::{Phase, Stream, When};
use crate::machine::estimate::{per_step, stepping, walks};
use crate::machine::sim::demand::{Demand, demand};
use crate::machine::timeline::{Mark, Timeline};
use crate::plan::Plan;
use crate::program::{Instr, Program, height};
use crate::spec::job::PerPlace;

/// Depths whose difference is one layer's part, as often as it is.
pub const DEPTHS: (u64, u64) = (4, 8);

/// What the steps of a plan take of each place, and ask of each server in their forward passes and after them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Taken {
    /// Bytes.
    pub peak: PerPlace<f64>,
    /// Forward passes.
    pub forward: Demand,
    /// Backward passes and updates.
    pub later: Demand,
    /// Seconds until the first kernel after the forward pass starts, and from there on, as simulated.
    pub spent: [f64; 2],
}

impl Taken {
    /// What `plan` takes.
    ///
    /// # Errors
    /// Where a choice cannot be applied.
    pub fn by(plan: &Plan) -> Result<Taken> {
        let programs = stepping(plan)?;
        let mut taken = Taken {
            peak: height(&programs).map(|bytes| bytes.0 as f64),
            ..Taken::default()
        };
        for program in &programs {
            let times = per_step(program.when, None);
            for ((_, later), demand) in demand(program, &plan.job.target) {
                let half = if later {
                    &mut taken.later
                } else {
                    &mut taken.forward
                };
                *half = *half + demand * times;
            }
        }
        taken.spent = spent(&programs, &walks(plan, &programs)?);
        Ok(taken)
    }

    /// The line through what models of [`DEPTHS`] take, at `layers`: layers of one kind take the same each.
    pub fn continued(near: &Taken, far: &Taken, layers: u64) -> Taken {
        let steps = (layers as f64 - DEPTHS.1 as f64) / (DEPTHS.1 - DEPTHS.0) as f64;
        let demand = |a: Demand, b: Demand| b + (b - a) * steps;
        Taken {
            peak: PerPlace::new(|p| far.peak[p] + (far.peak[p] - near.peak[p]) * steps),
            forward: demand(near.forward, far.forward),
            later: demand(near.later, far.later),
            spent: [0, 1].map(|h| far.spent[h] + (far.spent[h] - near.spent[h]) * steps),
        }
    }
}

impl std::ops::Sub for Taken {
    type Output = Taken;
    fn sub(self, other: Taken) -> Taken {
        Taken {
            peak: PerPlace::new(|p| self.peak[p] - other.peak[p]),
            forward: self.forward - other.forward,
            later: self.later - other.later,
            spent: [0, 1].map(|half| self.spent[half] - other.spent[half]),
        }
    }
}

/// Seconds of a step until the first kernel after the forward pass starts, and from there on, in `walks` over its `programs`.
pub fn spent(programs: &[Program], walks: &[Timeline]) -> [f64; 2] {
    let mut spent = [0.0; 2];
    for (program, timeline) in programs.iter().zip(walks) {
        let times = per_step(program.when, None);
        let turn = turn(program, timeline).min(timeline.total.0);
        spent[0] += turn * times;
        spent[1] += (timeline.total.0 - turn) * times;
    }
    spent
}

/// When the first kernel after the forward pass starts.
fn turn(program: &Program, timeline: &Timeline) -> f64 {
    let later = |mark: &&Mark| {
        let phase = program.phase(&program.code[mark.at]);
        mark.stream == Stream::Compute && phase.is_some_and(Phase::is_later)
    };
    let starts = timeline.marks.iter().filter(later).map(|mark| mark.start);
    starts.fold(f64::INFINITY, f64::min)
}

/// What a fate of a saved value changes, for each layer that it is chosen in.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Index of the saved value.
    pub saved: usize,
    /// What becomes of it.
    pub fate: Fate,
    /// Bytes between forward and backward pass, more (or less) than where it is kept.
    pub held: PerPlace<f64>,
    /// Work of the forward pass, more than where it is kept.
    pub forward: Demand,
    /// Work after it.
    pub later: Demand,
}

/// The fates that `all` saved values can have, each at a layer of its own of one model: layer 1 is for the first of them; the first
/// layer and the last two keep everything. What leaves comes first, so that it has left when the forward pass ends.
pub fn each_fate(all: &[Saved], open: &[Fate]) -> Vec<(usize, Fate)> {
    let fates = |saved: usize| {
        let suits = move |fate: &&Fate| fate.suits(&all[saved]);
        open.iter().filter(suits).map(move |&fate| (saved, fate))
    };
    let mut fates: Vec<(usize, Fate)> = (0..all.len()).flat_map(fates).collect();
    fates.sort_by_key(|(_, fate)| !fate.leaves());
    fates
}

/// Layers of the model in which each of `fates` has one.
pub fn depth(fates: &[(usize, Fate)]) -> u64 {
    fates.len() as u64 + 3
}

/// Reads what each of `fates` changes off `plan`, in which fate `i` is chosen at layer `i + 1`.
///
/// # Errors
/// Where a choice cannot be applied.
pub fn changes(plan: &Plan, fates: &[(usize, Fate)]) -> Result<Vec<Change>> {
    let programs = stepping(plan)?;
    let layers = plan.job.model.layers as usize;
    let (mut held, mut asked) = (
        vec![PerPlace::<f64>::default(); layers],
        vec![[Demand::default(); 2]; layers],
    );
    for program in &programs {
        for ((block, later), demand) in demand(program, &plan.job.target) {
            if let Some(layer) = layer_of(&block) {
                let sum = &mut asked[layer][usize::from(later)];
                *sum = *sum + demand * per_step(program.when, None);
            }
        }
        for (into, own) in held.iter_mut().zip(at_turn(program, layers)) {
            *into = PerPlace::new(|p| into[p].max(own[p]));
        }
    }
    let kept = layers - 2;
    let change = |(index, &(saved, fate)): (usize, &(usize, Fate))| {
        let layer = index + 1;
        Change {
            saved,
            fate,
            held: PerPlace::new(|p| held[layer][p] - held[kept][p]),
            forward: asked[layer][0] - asked[kept][0],
            later: asked[layer][1] - asked[kept][1],
        }
    };
    Ok(fates.iter().enumerate().map(change).collect())
}

/// The layer a path lies in.
fn layer_of(path: &str) -> Option<usize> {
    let rest = path.strip_prefix("layers.")?;
    rest.split(['/', '.']).next()?.parse().ok()
}

/// Passing bytes alive at the turn from the forward to the backward pass, by the layer in whose path they lie.
fn at_turn(program: &Program, layers: usize) -> Vec<PerPlace<f64>> {
    let later = |instr: &Instr| match instr {
        Instr::Launch { node, .. } => {
            let node = &program.step.nodes[*node as usize];
            node.stream == Stream::Compute && node.phase.is_later()
        }
        _ => false,
    };
    let turn = program.code.iter().position(later);
    let end = turn.unwrap_or(program.code.len());
    let mut alive = vec![PerPlace::default(); layers];
    for instr in &program.code[..end] {
        let (id, sign) = match instr {
            Instr::Alloc(id) => (id, 1.0),
            Instr::Free(id) => (id, -1.0),
            _ => continue,
        };
        let buffer = program.buffer(*id);
        if let Some(layer) = layer_of(&buffer.name) {
            alive[layer][buffer.place] += sign * buffer.bytes.0 as f64;
        }
    }
    alive
}

/// The step of `plan` that ends with a backward pass, for reading what it saves.
///
/// # Errors
/// Where a choice cannot be applied.
pub fn steady(plan: &Plan) -> Result<Option<crate::graph::Step>> {
    let set = plan.steps()?;
    let steady = set
        .steps
        .into_iter()
        .find(|(when, _)| *when == When::Steady);
    Ok(steady.map(|(_, step)| step))
}
