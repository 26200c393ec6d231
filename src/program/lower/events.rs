//! Points in streams, and the events that stand for those somebody waits for.

use crate::graph::Stream;
use crate::program::{Buffer, EventId, Instr};

/// A point in a stream's queue: `done` instructions of it have finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub stream: Stream,
    pub done: u32,
}

/// For each stream, how much of it is known to be finished.
pub(super) type Clock = [u32; Stream::ALL.len()];

/// An instruction before events have numbers.
pub(super) enum Draft {
    Plain(Instr),
    Wait(Stream, Point),
}

/// Gives each awaited point an event, signalled right after the instruction it waits for.
pub(super) fn number_events(draft: Vec<Draft>, buffers: &[Buffer]) -> (Vec<Instr>, u32) {
    let mut events: [Vec<Option<EventId>>; Stream::ALL.len()] = Default::default();
    let mut count = 0;
    for item in &draft {
        if let Draft::Wait(_, point) = item {
            let list = &mut events[point.stream as usize];
            list.resize(list.len().max(point.done as usize + 1), None);
            list[point.done as usize].get_or_insert_with(|| {
                count += 1;
                EventId(count - 1)
            });
        }
    }
    let event = |stream: Stream, done: u32| {
        events[stream as usize]
            .get(done as usize)
            .copied()
            .flatten()
    };
    let mut done = Clock::default();
    let mut code = Vec::with_capacity(draft.len() + count as usize);
    for item in draft {
        let instr = match item {
            Draft::Wait(stream, point) => {
                code.extend(
                    event(point.stream, point.done).map(|event| Instr::Wait(stream, event)),
                );
                continue;
            }
            Draft::Plain(instr) => instr,
        };
        code.push(instr);
        let stream = match instr {
            Instr::Launch { stream, .. } | Instr::Copy { stream, .. } => stream,
            Instr::Alloc(id) => buffers[id.0 as usize].home,
            _ => continue,
        };
        done[stream as usize] += 1;
        code.extend(event(stream, done[stream as usize]).map(|event| Instr::Signal(stream, event)));
    }
    (code, count)
}
