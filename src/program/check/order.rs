//! Who has seen what: for each stream, how far it knows each stream to be done (Mattern 1989, vector time).

use crate::graph::Stream;

const STREAMS: usize = Stream::ALL.len();

/// For each stream, the position behind its last action: all its actions before that. Time is the position in the text.
type Clock = [u32; STREAMS];

/// What every stream knows of every stream, and what the events carry.
pub(super) struct Clocks {
    of: [Clock; STREAMS],
    events: Vec<Option<Clock>>,
}

impl Clocks {
    /// Nobody has acted; no event has happened.
    pub fn new(events: u32) -> Clocks {
        Clocks {
            of: Default::default(),
            events: vec![None; events as usize],
        }
    }

    /// A stream of which `stream` has not seen everything.
    pub fn behind(&self, stream: Stream) -> Option<Stream> {
        let seen = self.of[stream as usize];
        let unseen = |s: &Stream| self.of[*s as usize][*s as usize] > seen[*s as usize];
        Stream::ALL.into_iter().find(unseen)
    }

    /// The event carries what `stream` knows; false where there is no such event or it has happened.
    pub fn signal(&mut self, stream: Stream, event: usize) -> bool {
        let Some(event @ None) = self.events.get_mut(event) else {
            return false;
        };
        *event = Some(self.of[stream as usize]);
        true
    }

    /// `stream` learns what the event carries; false where it has not happened.
    pub fn wait(&mut self, stream: Stream, event: usize) -> bool {
        let Some(Some(carried)) = self.events.get(event) else {
            return false;
        };
        let own = &mut self.of[stream as usize];
        own.iter_mut()
            .zip(carried)
            .for_each(|(own, carried)| *own = (*own).max(*carried));
        true
    }
}

/// The last uses of a buffer by each stream since it was handed out. Being handed out counts as a write by its home.
#[derive(Debug, Clone, Default)]
pub(super) struct Uses {
    writes: Clock,
    reads: Clock,
}

impl Uses {
    /// `stream` acts on the buffer at position `at`.
    pub fn add(&mut self, clocks: &mut Clocks, stream: Stream, at: usize, writes: bool) {
        let time = at as u32 + 1;
        clocks.of[stream as usize][stream as usize] = time;
        match writes {
            true => self.writes[stream as usize] = time,
            false => self.reads[stream as usize] = time,
        }
    }

    /// A use that must come before one by `stream` and that it has not seen: writes, and before a write also reads.
    pub fn unseen(&self, clocks: &Clocks, stream: Stream, writes: bool) -> Option<(Stream, usize)> {
        let seen = clocks.of[stream as usize];
        let unseen = |list: &Clock| {
            Stream::ALL
                .into_iter()
                .find(|&s| list[s as usize] > seen[s as usize])
        };
        let found = |list: &Clock| unseen(list).map(|s| (s, list[s as usize] as usize - 1));
        found(&self.writes).or_else(|| found(&self.reads).filter(|_| writes))
    }
}
