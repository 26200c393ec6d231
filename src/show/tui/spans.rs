//! A step in equal spans of time: what the device holds in each, who is alive, and what each queue does.

use std::collections::BTreeMap;

use super::found::Part;
use crate::graph::tensor::Role;
use crate::graph::{Phase, Stream};
use crate::machine::estimate::Estimate;
use crate::show::course::{Course, Sample, Walk, in_step};
use crate::show::memory::phase_name;
use crate::spec::job::Place;
use crate::spec::units::{Bytes, Seconds};

/// Equal spans of time that a step is shown in at most.
pub const SPANS: usize = 240;
/// Most names of what is alive.
const NAMES: usize = 12;

/// Bytes by name.
pub type Alive = Vec<(String, Bytes)>;

/// What the device holds in a span of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// Seconds since the step began.
    pub time: f64,
    /// The most that is held.
    pub total: Bytes,
    /// The phase it is in.
    pub phase: &'static str,
    /// By part, from the bottom of the picture; none where only the total is known.
    pub parts: Vec<(Part, Bytes)>,
    /// Who is alive, layers alike as one, the largest first.
    pub alive: Alive,
}

/// What a queue does over the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Lane {
    /// The queue.
    pub name: &'static str,
    /// Seconds of work.
    pub busy: Seconds,
    /// Share of each span in which it works, and what it mostly works on.
    pub spans: Vec<(f64, &'static str)>,
}

/// What the device holds in each span.
pub fn moments(course: &Course) -> Vec<Moment> {
    let span = course.end() / SPANS as f64;
    let columns = course.columns(Place::Gpu, SPANS).into_iter();
    let mut last: Option<(usize, usize, Alive)> = None;
    let moment = |(at, sample): (usize, &Sample)| {
        let same = last
            .take()
            .filter(|l| (l.0, l.1) == (sample.walk, sample.at));
        let alive = same.map_or_else(
            || {
                let alive = course.alive(sample, Place::Gpu).into_iter();
                by_name(alive.map(|b| (&*b.name, b.bytes)))
            },
            |(_, _, alive)| alive,
        );
        last = Some((sample.walk, sample.at, alive.clone()));
        Moment {
            time: span * at as f64,
            total: sample.total,
            phase: sample.phase.map_or("", phase_name),
            parts: stacked(&sample.roles),
            alive,
        }
    };
    columns.enumerate().map(moment).collect()
}

/// What is held from the longest-lived to the shortest-lived.
fn stacked(roles: &BTreeMap<Role, Bytes>) -> Vec<(Part, Bytes)> {
    let order = [
        Role::Parameter,
        Role::OptimizerState,
        Role::Gradient,
        Role::Activation,
        Role::Temporary,
        Role::Input,
        Role::Padding,
    ];
    let held = |role: Role| roles.get(&role).map(|bytes| (Part::Held(role), *bytes));
    order.into_iter().filter_map(held).collect()
}

/// Bytes by name, layers alike as one, the largest first.
fn by_name<'a>(held: impl Iterator<Item = (&'a str, Bytes)>) -> Alive {
    let mut names: BTreeMap<String, Bytes> = BTreeMap::new();
    for (name, bytes) in held {
        *names.entry(any_layer(name)).or_default() += bytes;
    }
    let mut all: Vec<(String, Bytes)> = names.into_iter().collect();
    all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    all.truncate(NAMES);
    all
}

/// A path with `*` for its layer.
fn any_layer(path: &str) -> String {
    let rest = path.strip_prefix("layers.").and_then(|r| r.split_once('/'));
    rest.map_or_else(
        || path.to_string(),
        |(_, below)| format!("layers.*/{below}"),
    )
}

/// A queue in a word or two.
fn queue_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Compute => "device",
        Stream::HostCompute => "host",
        Stream::ToDevice => "to device",
        Stream::ToHost => "to host",
        Stream::DiskRead => "disk read",
        Stream::DiskWrite => "disk write",
    }
}

/// What each queue does in each span of the programs of a step; how long in a step, `estimate` says.
pub fn lanes(course: &Course, estimate: &Estimate) -> Vec<Lane> {
    let walks = || course.walks.iter().filter(|w| in_step(w.program.when));
    let end = walks().map(Walk::end).fold(0.0, f64::max);
    let lane = |(&stream, &busy): (&Stream, &f64)| {
        let marks = walks().flat_map(|walk| marks(walk, stream));
        lane(queue_name(stream), Seconds(busy), marks, end)
    };
    estimate.busy.iter().map(lane).collect()
}

/// When a walk's instructions of one stream run, and their phases.
fn marks<'a>(
    walk: &'a Walk<'a>,
    stream: Stream,
) -> impl Iterator<Item = (f64, f64, &'static str)> + 'a {
    let marks = walk
        .timeline
        .marks
        .iter()
        .filter(move |m| m.stream == stream);
    marks.map(|mark| {
        let phase: Option<Phase> = walk.program.phase(&walk.program.code[mark.at]);
        let name = phase.map_or("", phase_name);
        (walk.begin + mark.start, walk.begin + mark.end, name)
    })
}

/// A queue that is `busy` for so long in a step, its work at `marks` in equal spans of `end` seconds.
pub(super) fn lane(
    name: &'static str,
    busy: Seconds,
    marks: impl Iterator<Item = (f64, f64, &'static str)>,
    end: f64,
) -> Lane {
    let span = end / SPANS as f64;
    let mut shares: Vec<BTreeMap<&'static str, f64>> = vec![BTreeMap::new(); SPANS];
    for (start, stop, phase) in marks.filter(|_| span > 0.0) {
        let (first, last) = ((start / span) as usize, (stop / span) as usize);
        for (at, share) in shares.iter_mut().enumerate().take(last + 1).skip(first) {
            let (from, to) = (span * at as f64, span * (at + 1) as f64);
            let inside = (stop.min(to) - start.max(from)).max(0.0) / span;
            *share.entry(phase).or_default() += inside;
        }
    }
    let spans = shares.into_iter().map(|by_phase| {
        let all: f64 = by_phase.values().sum();
        let most = by_phase.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        (all.min(1.0), most.map_or("", |(phase, _)| phase))
    });
    Lane {
        name,
        busy,
        spans: spans.collect(),
    }
}
