//! When each instruction ran: the same record whether simulated or measured.

use std::collections::BTreeMap;

use crate::graph::{Phase, Stream};
use crate::program::Program;
use crate::spec::units::Seconds;

/// One instruction's time in its stream, in seconds since the program began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// Index into the program's text.
    pub at: usize,
    /// Its queue.
    pub stream: Stream,
    /// Start.
    pub start: f64,
    /// End.
    pub end: f64,
}

/// The record of one walk over a program.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// Launches and copies, in order of their start.
    pub marks: Vec<Mark>,
    /// From the first instruction to the end of the last.
    pub total: Seconds,
}

impl Timeline {
    /// Seconds in which each stream was at work.
    pub fn busy(&self) -> BTreeMap<Stream, f64> {
        let mut busy = BTreeMap::new();
        for mark in &self.marks {
            *busy.entry(mark.stream).or_insert(0.0) += mark.end - mark.start;
        }
        busy
    }

    /// Seconds of compute-stream work in each phase; what is left of the total is waiting.
    pub fn phases(&self, program: &Program) -> BTreeMap<Phase, f64> {
        let mut phases = BTreeMap::new();
        for mark in self.marks.iter().filter(|m| m.stream == Stream::Compute) {
            if let Some(phase) = program.phase(&program.code[mark.at]) {
                *phases.entry(phase).or_insert(0.0) += mark.end - mark.start;
            }
        }
        phases
    }

    /// Seconds in which the compute stream stood still while the step went on.
    pub fn exposed(&self) -> Seconds {
        let busy = self.busy().get(&Stream::Compute).copied().unwrap_or(0.0);
        Seconds((self.total.0 - busy).max(0.0))
    }
}
