//! What each place holds over the text of a program, by role: the numbers behind every picture of memory.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::graph::tensor::Role;
use crate::graph::{Phase, Stream};
use crate::machine::estimate;
use crate::machine::timeline::Timeline;
use crate::program::{Buffer, Instr, Program};
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// Bytes of a place by who holds them; what alignment takes is padding.
pub type Held = BTreeMap<Role, Bytes>;

/// What every place holds at a position of a text.
#[derive(Debug, Clone)]
pub struct Holding {
    /// All of it.
    pub total: PerPlace<Bytes>,
    /// By role.
    pub roles: PerPlace<Held>,
}

impl Holding {
    /// What is there before the first instruction of `program`: what outlives it.
    pub fn before(program: &Program) -> Holding {
        let mut holding = Holding {
            total: PerPlace::default(),
            roles: PerPlace::new(|_| Held::new()),
        };
        for buffer in program.buffers.iter().filter(|b| b.shared) {
            holding.add(buffer);
        }
        holding
    }

    /// What `instr` changes of it, and the place in which it does.
    pub fn pass(&mut self, program: &Program, instr: &Instr) -> Option<Place> {
        let buffer = match instr {
            Instr::Alloc(id) | Instr::Free(id) => program.buffer(*id),
            _ => return None,
        };
        match instr {
            Instr::Alloc(_) => self.add(buffer),
            _ => self.remove(buffer),
        }
        Some(buffer.place)
    }

    fn add(&mut self, buffer: &Buffer) {
        let roles = &mut self.roles[buffer.place];
        *roles.entry(buffer.role).or_default() += buffer.exact;
        *roles.entry(Role::Padding).or_default() += buffer.bytes - buffer.exact;
        self.total[buffer.place] += buffer.bytes;
    }

    fn remove(&mut self, buffer: &Buffer) {
        let roles = &mut self.roles[buffer.place];
        let less = |held: &mut Bytes, bytes: Bytes| *held = held.saturating_sub(bytes);
        less(roles.entry(buffer.role).or_default(), buffer.exact);
        let padding = buffer.bytes - buffer.exact;
        less(roles.entry(Role::Padding).or_default(), padding);
        less(&mut self.total[buffer.place], buffer.bytes);
    }
}

/// Bytes of one place alive after each instruction, and the phase the instruction is part of.
#[derive(Debug, Clone)]
pub struct Curve {
    /// One point for each instruction.
    pub points: Vec<(Bytes, Option<Phase>)>,
}

impl Curve {
    /// The curve of `place` over `program`.
    pub fn new(program: &Program, place: Place) -> Curve {
        let mut holding = Holding::before(program);
        let points = phases(program).into_iter().zip(&program.code);
        let points = points.map(|(phase, instr)| {
            holding.pass(program, instr);
            (holding.total[place], phase)
        });
        Curve {
            points: points.collect(),
        }
    }

    /// The largest load.
    pub fn peak(&self) -> Bytes {
        let loads = self.points.iter().map(|(bytes, _)| *bytes);
        loads.max().unwrap_or(Bytes::ZERO)
    }

    /// The curve in `columns` parts: the largest load of each, and its phase at that point.
    pub fn columns(&self, columns: usize) -> Vec<(Bytes, Option<Phase>)> {
        let count = self.points.len();
        let of = |column: usize| {
            let from = column * count / columns;
            let to = ((column + 1) * count / columns).max(from + 1).min(count);
            let part = self.points.get(from..to).unwrap_or_default();
            let largest = part
                .iter()
                .enumerate()
                .max_by_key(|(at, (b, _))| (*b, Reverse(*at)));
            largest.map_or((Bytes::ZERO, None), |(_, point)| *point)
        };
        (0..columns).map(of).collect()
    }
}

/// The phase of each instruction: that of its node, or of the node before it.
pub fn phases(program: &Program) -> Vec<Option<Phase>> {
    let mut phase = program.code.iter().find_map(|i| program.phase(i));
    let each = program.code.iter().map(|instr| {
        phase = program.phase(instr).or(phase);
        phase
    });
    each.collect()
}

/// The buffers of `place` alive after position `at`, the largest first, equal ones in the program's order.
pub fn alive(program: &Program, at: usize, place: Place) -> Vec<&Buffer> {
    let all = estimate::alive(program, at).filter(|b| b.place == place);
    let mut alive: Vec<&Buffer> = all.collect();
    alive.sort_by_key(|b| Reverse(b.exact));
    alive
}

/// The moment of each position of `program`'s text in `timeline`, in seconds since it began.
///
/// Memory is counted in the order of the text, never in time, so a position's moment is the one at which the device's
/// compute stream gets there: the end of its last launch above the position, or of what it has waited for above it.
/// Behind the last launch of all the streams that are still at work say when. Moments never fall along the text.
pub fn moments(program: &Program, timeline: &Timeline) -> Vec<f64> {
    let mut ends = vec![None; program.code.len()];
    for mark in &timeline.marks {
        if let Some(end) = ends.get_mut(mark.at) {
            *end = Some(mark.end);
        }
    }
    let of_device =
        |i: &Instr| matches!(i, Instr::Launch { stream, .. } if *stream == Stream::Compute);
    let last = program.code.iter().rposition(of_device);
    let mut reached = [0.0f64; Stream::ALL.len()];
    let mut happened = vec![0.0f64; program.events as usize];
    let (mut now, mut moments) = (0.0f64, Vec::with_capacity(program.code.len()));
    for (at, instr) in program.code.iter().enumerate() {
        let arrived = match last {
            Some(last) if at <= last => reached[Stream::Compute as usize],
            _ => reached.iter().copied().fold(0.0, f64::max),
        };
        now = now.max(arrived);
        moments.push(now);
        match *instr {
            Instr::Launch { stream, .. } | Instr::Copy { stream, .. } => {
                let end = ends[at].unwrap_or(reached[stream as usize]);
                reached[stream as usize] = end;
            }
            Instr::Signal(stream, event) => happened[event.0 as usize] = reached[stream as usize],
            Instr::Wait(stream, event) => {
                let since = &mut reached[stream as usize];
                *since = since.max(happened[event.0 as usize]);
            }
            Instr::Alloc(_) | Instr::Free(_) => {}
        }
    }
    moments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_keeps_the_largest_load_of_its_part() {
        let points = (0..1000).map(|n| (Bytes(n % 7), None)).collect();
        let curve = Curve { points };
        assert!(curve.columns(80).iter().all(|(b, _)| *b == Bytes(6)));
        let points = vec![(Bytes(3), None), (Bytes(9), None)];
        assert_eq!(Curve { points }.columns(4).len(), 4);
    }
}
