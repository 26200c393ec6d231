//! The events of a walk: those that order queues and threads, and those that tell when instructions ran.

use super::driver::{Gpu, Mark as Point, Queue};
use crate::error::{Error, Result};
use crate::graph::Stream;
use crate::machine::cpu::stream::{Board, Events};
use crate::machine::timeline::Mark;

/// The events of one walk, of the device's queues and of the host's threads.
pub struct Meeting<'a> {
    /// What has happened; for an event of the device: that it is recorded.
    pub board: &'a Board,
    /// The device's events.
    pub points: &'a [Point],
    /// Which events are the device's.
    pub by_device: &'a [bool],
    /// The device.
    pub gpu: &'a Gpu,
}

impl Events for Meeting<'_> {
    fn signal(&self, event: usize) {
        self.board.signal(event);
    }

    fn wait(&self, event: usize) -> Result<bool> {
        if !self.board.wait(event) {
            return Ok(false);
        }
        if self.by_device[event] {
            self.gpu.bind()?;
            self.points[event].settle()?;
        }
        Ok(true)
    }

    fn fail(&self, error: Error) {
        self.board.fail(error);
    }
}

/// How far times along a queue have come.
#[derive(Debug, Clone, Copy)]
pub struct Noted {
    used: usize,
    spans: usize,
    waited: bool,
}

/// What a graph records of times along its queue.
#[derive(Debug)]
pub struct Recorded {
    used: usize,
    spans: Vec<(usize, usize, usize)>,
}

/// Times along a queue: `Mark`s are made of them once everything is done.
#[derive(Debug)]
pub struct Times {
    points: Vec<Point>,
    used: usize,
    /// For each instruction the points it lies between.
    spans: Vec<(usize, usize, usize)>,
    waited: bool,
}

impl Times {
    /// Room for `count` points.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn new(count: usize) -> Result<Times> {
        let points = (0..=count).map(|_| Point::new(true));
        Ok(Times {
            points: points.collect::<Result<_>>()?,
            used: 0,
            spans: Vec::with_capacity(count),
            waited: false,
        })
    }

    fn point(&mut self, queue: &Queue) -> Result<usize> {
        self.points[self.used].record(queue)?;
        self.used += 1;
        Ok(self.used - 1)
    }

    /// The point at which what comes next begins.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn begin(&mut self, queue: &Queue) -> Result<usize> {
        match std::mem::take(&mut self.waited) || self.used == 0 {
            true => self.point(queue),
            false => Ok(self.used - 1),
        }
    }

    /// A walk begins.
    pub fn restart(&mut self) {
        (self.used, self.waited) = (0, false);
        self.spans.clear();
    }

    /// What comes next begins behind a wait.
    pub fn wait(&mut self) {
        self.waited = true;
    }

    /// Instruction `at` began at point `begin` and ends here.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn end(&mut self, queue: &Queue, at: usize, begin: usize) -> Result<()> {
        let end = self.point(queue)?;
        self.spans.push((at, begin, end));
        Ok(())
    }

    /// When each instruction ran, counted from `epoch`; all must be done.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn marks(&self, stream: Stream, epoch: &Point) -> Result<Vec<Mark>> {
        let time = |point: usize| self.points[point].since(epoch);
        let marks = self.spans.iter().map(|&(at, begin, end)| {
            Ok(Mark {
                at,
                stream,
                start: time(begin)?,
                end: time(end)?,
            })
        });
        marks.collect()
    }

    /// What has been noted of the walk so far.
    pub fn noted(&self) -> Noted {
        Noted {
            used: self.used,
            spans: self.spans.len(),
            waited: self.waited,
        }
    }

    /// Goes back to what was noted at `then`.
    pub fn back(&mut self, then: Noted) {
        (self.used, self.waited) = (then.used, then.waited);
        self.spans.truncate(then.spans);
    }

    /// What was noted since `then`: a graph records the same points each time.
    pub fn since(&self, then: Noted) -> Recorded {
        Recorded {
            used: self.used,
            spans: self.spans[then.spans..].to_vec(),
        }
    }

    /// A graph records what was `recorded` when it was captured.
    pub fn again(&mut self, recorded: &Recorded) {
        (self.used, self.waited) = (recorded.used, false);
        self.spans.extend_from_slice(&recorded.spans);
    }

    /// How many it has room for.
    pub fn room(&self) -> usize {
        self.points.len() - 1
    }
}
