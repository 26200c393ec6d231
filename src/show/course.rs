//! A step's programs one after another: when each instruction runs, and what each place holds meanwhile.

use super::curve::{Held, Holding, alive, moments, phases};
use crate::error::Result;
use crate::graph::tensor::Role;
use crate::graph::{Phase, When};
use crate::machine::estimate::{per_step, simulate};
use crate::machine::timeline::Timeline;
use crate::plan::Plan;
use crate::program::{Buffer, Program};
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// One program of a course.
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    /// The program.
    pub program: &'a Program,
    /// When its instructions ran, since it began.
    pub timeline: Timeline,
    /// When it began, in seconds since the course did.
    pub begin: f64,
}

impl Walk<'_> {
    /// When it ended, in seconds since the course began.
    pub fn end(&self) -> f64 {
        self.begin + self.timeline.total.0
    }
}

/// What a place holds from one moment to that of the next sample: the most that it does at any position of the text that
/// falls between them.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Seconds since the course began.
    pub time: f64,
    /// The walk it is of, by number.
    pub walk: usize,
    /// The position of its program's text.
    pub at: usize,
    /// The phase there.
    pub phase: Option<Phase>,
    /// All bytes; at the place's peak, the height of its arena.
    pub total: Bytes,
    /// The same by role. What placement cannot use of the arena is padding, so the largest sample is what the estimate says.
    pub roles: Held,
}

/// Programs that run one after another.
#[derive(Debug, Clone)]
pub struct Course<'a> {
    /// The programs.
    pub walks: Vec<Walk<'a>>,
    /// What each place holds, in order of time.
    pub samples: PerPlace<Vec<Sample>>,
}

impl<'a> Course<'a> {
    /// The course of programs whose times are known.
    pub fn new(timed: Vec<(&'a Program, Timeline)>) -> Course<'a> {
        let mut walks: Vec<Walk> = Vec::new();
        let mut samples = PerPlace::new(|_| Vec::new());
        for (program, timeline) in timed {
            let begin = walks.last().map_or(0.0, Walk::end);
            let walk = Walk {
                program,
                timeline,
                begin,
            };
            sample(&walk, walks.len(), &mut samples);
            walks.push(walk);
        }
        Course { walks, samples }
    }

    /// The simulated course of a step of `plan`: each of its `programs` once, in the order in which they run.
    ///
    /// # Errors
    /// None of its own.
    pub fn of_step(plan: &Plan, programs: &'a [Program]) -> Result<Course<'a>> {
        Course::simulated(plan, stepping(programs))
    }

    /// The simulated course of a step of `plan`, and behind it of what runs outside of a step and alone reaches the peak of a place: the
    /// largest sample of each place is always the peak of the plan.
    ///
    /// # Errors
    /// None of its own.
    pub fn whole(plan: &Plan, programs: &'a [Program]) -> Result<Course<'a>> {
        let mut chosen = stepping(programs);
        chosen.extend(peaking(programs));
        Course::simulated(plan, chosen)
    }

    /// The simulated course of what runs outside of a step and alone reaches the peak of a place; most often there is none.
    ///
    /// # Errors
    /// None of its own.
    pub fn outside(plan: &Plan, programs: &'a [Program]) -> Result<Course<'a>> {
        Course::simulated(plan, peaking(programs))
    }

    fn simulated(plan: &Plan, programs: Vec<&'a Program>) -> Result<Course<'a>> {
        let timed = programs.into_iter();
        let timed = timed.map(|p| Ok((p, simulate(p, plan)?)));
        Ok(Course::new(timed.collect::<Result<_>>()?))
    }

    /// When the last program ends.
    pub fn end(&self) -> f64 {
        self.walks.last().map_or(0.0, Walk::end)
    }

    /// The largest sample of a place, the first of them.
    pub fn peak(&self, place: Place) -> Option<&Sample> {
        let all = self.samples[place].iter().rev();
        all.max_by_key(|sample| sample.total)
    }

    /// The samples of a place in `count` equal spans of time: the largest that is in force in each.
    pub fn columns(&self, place: Place, count: usize) -> Vec<&Sample> {
        let samples = &self.samples[place];
        let end = self.end();
        let mut columns = Vec::with_capacity(count);
        let mut from = 0;
        for column in 1..=count {
            let until = end * column as f64 / count as f64;
            let more = samples[from.min(samples.len())..].iter();
            let to = from
                + more
                    .take_while(|s| s.time < until || column == count)
                    .count();
            // What was in force when the span began is part of it.
            let part = &samples[from.saturating_sub(1)..to];
            columns.extend(part.iter().rev().max_by_key(|s| s.total));
            from = to;
        }
        columns
    }

    /// Who is alive at a sample of `place`, the largest first.
    pub fn alive(&self, sample: &Sample, place: Place) -> Vec<&'a Buffer> {
        let program = self.walks[sample.walk].program;
        alive(program, sample.at, place)
    }
}

/// Whether a program is part of a step, of some at least.
pub fn in_step(when: When) -> bool {
    per_step(when, None) > 0.0
}

/// The order in which the programs of a step run.
fn rank(when: When) -> u8 {
    match when {
        When::Renew(_) => 0,
        When::First => 1,
        When::Micro { .. } => 2,
        When::Steady => 3,
        When::Every(_) => 4,
        When::Start | When::Restart | When::Evaluate | When::Save => 5,
    }
}

/// Appends the samples of a walk.
fn sample(walk: &Walk, number: usize, samples: &mut PerPlace<Vec<Sample>>) {
    let program = walk.program;
    let taken = Place::ALL.into_iter();
    let taken: Vec<Place> = taken.filter(|p| program.height[*p].0 > 0).collect();
    let times = moments(program, &walk.timeline).into_iter();
    let mut holding = Holding::before(program);
    let mut moment = None;
    for (at, (time, phase)) in times.zip(phases(program)).enumerate() {
        let changed = holding.pass(program, &program.code[at]);
        let begins = moment != Some(time);
        moment = Some(time);
        for &place in &taken {
            let last = samples[place].last();
            let grew = changed == Some(place)
                && last.is_some_and(|s| holding.total[place] + unused(program, place) > s.total);
            if !begins && grew {
                samples[place].pop();
            }
            if begins || grew {
                samples[place].push(Sample {
                    time: walk.begin + time,
                    walk: number,
                    at,
                    phase,
                    ..held(&holding, program, place)
                });
            }
        }
    }
    for place in taken {
        let same = |b: &mut Sample, a: &mut Sample| a.walk == b.walk && a.roles == b.roles;
        samples[place].dedup_by(same);
    }
}

/// What placement cannot use of a program's arena.
fn unused(program: &Program, place: Place) -> Bytes {
    program.height[place].saturating_sub(program.load[place])
}

/// What a place holds, as a sample without a time.
fn held(holding: &Holding, program: &Program, place: Place) -> Sample {
    let mut roles = holding.roles[place].clone();
    *roles.entry(Role::Padding).or_default() += unused(program, place);
    roles.retain(|_, bytes| *bytes > Bytes::ZERO);
    Sample {
        time: 0.0,
        walk: 0,
        at: 0,
        phase: None,
        total: holding.total[place] + unused(program, place),
        roles,
    }
}

/// The programs of a step, in the order in which they run.
fn stepping(programs: &[Program]) -> Vec<&Program> {
    let mut chosen: Vec<&Program> = programs.iter().filter(|p| in_step(p.when)).collect();
    chosen.sort_by_key(|p| rank(p.when));
    chosen
}

/// The programs outside of a step that alone reach the peak of a place.
fn peaking(programs: &[Program]) -> Vec<&Program> {
    let peak = crate::program::height(programs);
    let reach = |place: Place| {
        programs
            .iter()
            .filter(move |p| p.height[place] == peak[place])
    };
    let mut chosen: Vec<&Program> = Vec::new();
    for place in Place::ALL {
        let known = |p: &&Program| in_step(p.when) || chosen.iter().any(|c| c.when == p.when);
        if !reach(place).any(|p| known(&p)) {
            chosen.extend(reach(place).next());
        }
    }
    chosen
}
