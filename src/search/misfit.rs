//! Why nothing fits: who holds the memory at which instant, and what single change would do.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::problem::Problems;
use super::{Candidate, Outcome, families};
use crate::error::Result;
use crate::graph::Phase;
use crate::machine::estimate;
use crate::plan::{Plan, Request};
use crate::program::{Instr, Program};
use crate::spec::device;
use crate::spec::job::{Budget, Exactness, PerPlace, Place, Target};
use crate::spec::units::Bytes;

/// What does not fit, and the smallest changes that would.
#[derive(Debug, Clone)]
pub struct Misfit {
    /// The plan that passes its budget by least.
    pub closest: Candidate,
    /// The place it passes.
    pub place: Place,
    /// What it needs there.
    pub need: Bytes,
    /// What there is.
    pub have: Bytes,
    /// The instant at which it needs most there, in words.
    pub instant: String,
    /// Of what is alive then, the fewest that alone pass what there is, the largest first; layers alike are one.
    pub holders: Vec<(String, Bytes)>,
    /// What to change, in words.
    pub change: String,
    /// Single changes of the request that fit, each the smallest of its kind, as arguments.
    pub changes: Vec<String>,
}

/// The closest plan of those `considered`, who holds its memory, and what would make it fit; which single changes of the request would is searched
/// for where that is `wanted`.
///
/// # Errors
/// Where it cannot be planned.
pub fn explain(
    request: &Request,
    budget: &Budget,
    considered: &[Candidate],
    wanted: bool,
) -> Result<Outcome> {
    let closest = considered.iter().min_by_key(|c| c.excess(budget)).cloned();
    let mut closest = match closest {
        Some(closest) => closest,
        None => as_fixed(request)?,
    };
    let programs = estimate::all(&closest.plan)?;
    closest.estimate = estimate::prove(&closest.plan, &programs)?;
    let peak = closest.estimate.peak;
    let (places, over) = budget
        .passed(&peak)
        .map_or((&[Place::Gpu][..], Bytes::ZERO), |(p, over)| (p, over));
    let need: Bytes = places.iter().map(|&p| peak[p]).sum();
    let (place, have) = (places[0], need - over);
    let highest = programs.iter().rev().max_by_key(|p| p.height[place]);
    let at_peak = highest.map(|p| (instant(p, place), holders(p, place, have)));
    let (instant, holders) = at_peak.unwrap_or_default();
    Ok(Outcome::Misfit(Box::new(Misfit {
        closest,
        place,
        need,
        have,
        instant,
        holders,
        change: change(budget, &peak, place, over),
        changes: if wanted { changes(request) } else { Vec::new() },
    })))
}

/// The plan of what is fixed.
fn as_fixed(request: &Request) -> Result<Candidate> {
    let plan = Plan::new(request.job.clone(), request.fixed.clone())?;
    let estimate = estimate::quick(&plan)?;
    Ok(Candidate::whole("as fixed", plan, estimate))
}

/// Where in the text of `program` the load of `place` is largest, in words.
fn instant(program: &Program, place: Place) -> String {
    let at = estimate::peak_position(program, place);
    let node = |instr: &Instr| match instr {
        Instr::Launch { node, .. } | Instr::Copy { node, .. } => Some(*node as usize),
        _ => None,
    };
    let Some(node) = program.code[at..].iter().find_map(node) else {
        return "at the end of the step".to_string();
    };
    let node = &program.step.nodes[node];
    let part = match node.phase {
        Phase::Load => "loading",
        Phase::Forward => "the forward pass",
        Phase::Recompute => "recomputation",
        Phase::Backward => "the backward pass",
        Phase::Update => "the update",
        Phase::Save => "saving",
    };
    format!("{part} at {}, before {}", node.origin, node.op.name())
}

/// The fewest names that alone hold more than `have` of `place` when its load is largest; all of them where none do.
fn holders(program: &Program, place: Place, have: Bytes) -> Vec<(String, Bytes)> {
    let at = estimate::peak_position(program, place);
    let mut by_name: BTreeMap<String, Bytes> = BTreeMap::new();
    for buffer in estimate::alive(program, at).filter(|b| b.place == place) {
        *by_name.entry(any_layer(&buffer.name)).or_default() += buffer.bytes;
    }
    let mut all: Vec<(String, Bytes)> = by_name.into_iter().collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut sum = Bytes::ZERO;
    let enough = all.iter().position(|(_, bytes)| {
        sum += *bytes;
        sum > have
    });
    all.truncate(enough.map_or(all.len(), |last| last + 1));
    all
}

/// A path with `*` for its layer.
fn any_layer(path: &str) -> String {
    let layer = |rest: &str| {
        rest.split_once('/')
            .map(|(_, below)| format!("layers.*/{below}"))
    };
    path.strip_prefix("layers.")
        .and_then(layer)
        .unwrap_or_else(|| path.to_string())
}

/// The smallest change of what there is that fits the closest plan.
fn change(budget: &Budget, peak: &PerPlace<Bytes>, place: Place, over: Bytes) -> String {
    let rows = budget
        .rows
        .iter()
        .filter(|(places, most)| places.iter().map(|&p| peak[p]).sum::<Bytes>() > *most)
        .count();
    let what = match place {
        Place::Gpu => "on the device",
        Place::Pinned | Place::Host => "of host memory (--ram)",
        Place::Disk => "of disk (--disk)",
    };
    let also = if rows > 1 { ", and more elsewhere" } else { "" };
    format!("{over} more {what}{also} would fit it")
}

/// Single changes that fit: the largest smaller batch, the longest shorter sequence, the next larger device, lossy methods.
fn changes(request: &Request) -> Vec<String> {
    let kinds: [fn(&Request) -> Option<String>; 4] = [batch, sequence, larger_device, lossy];
    kinds.par_iter().filter_map(|kind| kind(request)).collect()
}

/// Whether the plan of `request` that takes least fits, lowered whole.
fn fits(request: &Request) -> bool {
    let budget = request.job.target.budget();
    let least = Problems::of(request).and_then(|problems| problems.least(request, &budget));
    least.is_ok_and(|least| least.is_some_and(|least| least.fits(&budget)))
}

fn batch(request: &Request) -> Option<String> {
    halved(request, request.job.batch, |request, batch| {
        request.job.batch = batch
    })
    .map(|batch| format!("--batch {batch}"))
}

fn sequence(request: &Request) -> Option<String> {
    halved(request, request.job.seq, |request, seq| {
        request.job.seq = seq
    })
    .map(|seq| format!("--seq {seq}"))
}

/// The first of `from`/2, `from`/4, … that fits: with less of it, less is taken.
fn halved(request: &Request, from: u64, set: impl Fn(&mut Request, u64)) -> Option<u64> {
    let halves = std::iter::successors(Some(from / 2), |&n| Some(n / 2));
    let halves: Vec<u64> = halves.take_while(|&n| n > 0).collect();
    let passes = |&n: &u64| {
        let mut smaller = request.clone();
        set(&mut smaller, n);
        !fits(&smaller)
    };
    halves.get(halves.partition_point(passes)).copied()
}

/// The smallest device of the catalogue, with more memory than the one asked for, that fits.
fn larger_device(request: &Request) -> Option<String> {
    let have = request.job.target.device.memory;
    let mut larger: Vec<_> = device::all()
        .filter(|d| d.memory > have && !d.generic && d.threads.is_none())
        .collect();
    larger.sort_by(|a, b| a.memory.cmp(&b.memory).then(a.id.cmp(&b.id)));
    larger.dedup_by_key(|d| d.memory);
    let passes = |device: &&device::Device| {
        let mut other = request.clone();
        other.job.target = Target::new((*device).clone(), request.job.target.host);
        !fits(&other)
    };
    let first = larger.get(larger.partition_point(passes))?;
    Some(format!("--gpu {}", first.id))
}

/// Lossy methods, where they were not asked for.
fn lossy(request: &Request) -> Option<String> {
    if request.allow == Exactness::Lossy {
        return None;
    }
    let mut open = request.clone();
    open.allow = Exactness::Lossy;
    let would = |family: &&families::Family| {
        families::request(family, &open).is_ok_and(|request| fits(&request))
    };
    let fitting = families::open(&open).par_iter().filter(would);
    let names: Vec<&str> = fitting.map(|family| family.name).collect();
    (!names.is_empty()).then(|| format!("--allow lossy ({})", names.join(", ")))
}
