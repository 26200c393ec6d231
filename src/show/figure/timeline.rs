//! What each stream does over the step, by phase; the gaps are waits.

use std::collections::BTreeMap;

use super::memory::{RIGHT, seams, time_axis};
use super::svg::{Anchor, Area, Axis, Canvas, key};
use crate::graph::{Phase, Stream};
use crate::show::course::Course;
use crate::show::memory::{phase_name, stream_name};

/// Space at the left.
const LEFT: f64 = 10.0;
/// Height of a stream's lane.
const LANE: f64 = 26.0;
/// Height of a lane with its name.
const ROW: f64 = 48.0;
/// Width of a bin.
const BIN: f64 = 2.0;
/// Levels of how busy a stream is in a bin.
const LEVELS: f64 = 13.0;

/// Seconds of work in a bin of time, by phase.
type Bin = BTreeMap<Phase, f64>;

/// The figure; `None` where nothing runs.
pub fn draw(course: &Course, width: f64) -> Option<Canvas> {
    let end = course.end();
    let count = ((width - LEFT - RIGHT) / BIN).max(1.0) as usize;
    let lanes = bins(course, count, end);
    if lanes.is_empty() || end <= 0.0 {
        return None;
    }
    let bottom = ROW * lanes.len() as f64;
    let mut canvas = Canvas::new(width, bottom + 64.0);
    let x = Axis {
        values: (0.0, end),
        places: (LEFT, width - RIGHT),
    };
    for (row, (stream, bins)) in lanes.iter().enumerate() {
        let top = ROW * row as f64 + ROW - LANE;
        let busy: f64 = bins.iter().flat_map(|bin| bin.values()).sum();
        let share = 100.0 * busy / end;
        let name = format!("{}, {share:.0} % of the time", stream_name(*stream));
        canvas.text("small", Anchor::Start, (LEFT, top - 5.0), &name);
        let lane = Area {
            x: LEFT,
            y: top,
            width: width - LEFT - RIGHT,
            height: LANE,
        };
        canvas.rect("track", lane, "");
        bars(&mut canvas, bins, lane, end / count as f64);
    }
    seams(&mut canvas, course, x, (0.0, bottom));
    time_axis(&mut canvas, x, bottom);
    let mut phases: Vec<Phase> = lanes
        .values()
        .flatten()
        .flat_map(|b| b.keys())
        .copied()
        .collect();
    phases.sort_unstable();
    phases.dedup();
    let entries = phases.iter().map(|p| (key(p), phase_name(*p).to_string()));
    let last = canvas.legend((LEFT, bottom + 44.0), &entries.collect::<Vec<_>>());
    canvas.height = last + 10.0;
    Some(canvas)
}

/// The work of each stream in `count` equal spans of time.
fn bins(course: &Course, count: usize, end: f64) -> BTreeMap<Stream, Vec<Bin>> {
    let mut lanes: BTreeMap<Stream, Vec<Bin>> = BTreeMap::new();
    let wide = end / count as f64;
    for walk in &course.walks {
        for mark in &walk.timeline.marks {
            let phase = walk.program.code.get(mark.at);
            let Some(phase) = phase.and_then(|i| walk.program.phase(i)) else {
                continue;
            };
            let lane = lanes.entry(mark.stream);
            let lane = lane.or_insert_with(|| vec![Bin::new(); count]);
            let (from, to) = (walk.begin + mark.start, walk.begin + mark.end);
            let first = ((from / wide) as usize).min(count - 1);
            let last = ((to / wide) as usize).min(count - 1);
            for (at, bin) in lane.iter_mut().enumerate().take(last + 1).skip(first) {
                let part = to.min(wide * (at + 1) as f64) - from.max(wide * at as f64);
                *bin.entry(phase).or_insert(0.0) += part.max(0.0);
            }
        }
    }
    lanes
}

/// The bars of a lane: as high as the stream is busy, in the color of the phase that takes most; equal neighbors are one.
fn bars(canvas: &mut Canvas, bins: &[Bin], lane: Area, wide: f64) {
    let look = |bin: &Bin| -> Option<(Phase, u32)> {
        let most = bin.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
        let share = bin.values().sum::<f64>() / wide;
        let level = (share.min(1.0) * LEVELS).ceil() as u32;
        (level > 0).then_some((*most.0, level))
    };
    let looks: Vec<Option<(Phase, u32)>> = bins.iter().map(look).collect();
    let width = lane.width / bins.len().max(1) as f64;
    let mut from = 0;
    for group in looks.chunk_by(|a, b| a == b) {
        if let Some((phase, level)) = group[0] {
            let height = lane.height * f64::from(level) / LEVELS;
            let area = Area {
                x: lane.x + width * from as f64,
                y: lane.y + lane.height - height,
                width: width * group.len() as f64,
                height,
            };
            canvas.rect(&key(phase), area, "");
        }
        from += group.len();
    }
}
