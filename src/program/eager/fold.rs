//! Folding: layers of one class repeat, so a job of many layers is read off two short runs of it.
//!
//! A step is a list of segments, each in one part and one place. In a sweep over the layers the first period, the last period and one in
//! between are taken from the shorter run, the rest are copies of the one in between; what lies outside sweeps (lists of all parameters, what
//! dies at the end) changes by the same amount with each further period, which the second run tells. Where the two runs do not have the
//! same form, the job is run whole.

use super::tape::{ByClass, CLASSES, EagerPhase, Origin, Record, Segment};
use super::work::Work;
use crate::error::Result;
use crate::spec::model::{ModelSpec, Windowed};
use crate::spec::torch::{Checkpointing, TorchOptions};

/// What two runs of a job tell about one with more layers.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Alive before the step, and its stretches.
    pub record: Record,
    /// Activations alive when the last forward pass has returned.
    pub saved: i64,
    /// Of them, those each layer made.
    pub saved_layers: Vec<i64>,
}

/// Layers after which a model repeats itself: windows or checkpoints on every second layer.
pub fn period(spec: &ModelSpec, options: &TorchOptions) -> u64 {
    let windows = spec.attention.window.is_some() && spec.attention.windowed == Windowed::Even;
    match windows || options.checkpointing == Checkpointing::Every2 {
        true => 2,
        false => 1,
    }
}

/// The outline of `spec` from runs of fewer layers; of all its layers, where they are few or do not repeat.
///
/// # Errors
/// Where a run fails.
pub fn outline(
    spec: &ModelSpec,
    options: &TorchOptions,
    run: impl Fn(&ModelSpec) -> Result<Outline>,
) -> Result<Outline> {
    let period = period(spec, options);
    let few = 3 * period + spec.layers % period;
    if spec.layers <= few + period {
        return run(spec);
    }
    let layers = |layers| ModelSpec {
        layers,
        ..spec.clone()
    };
    let short = run(&layers(few))?;
    let long = run(&layers(few + period))?;
    match grown(&short, &long, few, period, spec.layers) {
        Some(outline) => Ok(outline),
        None => run(spec),
    }
}

/// A sweep over all layers, or one segment outside of one.
enum Part<'a> {
    One(&'a Segment),
    Sweep(&'a [Segment]),
}

/// The segments as sweeps over `layers` layers, up or down, and what lies between.
fn parts(segments: &[Segment], layers: u64) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = segments;
    while let Some(first) = rest.first() {
        let length = layers as usize;
        let is_sweep = rest.len() >= length && {
            let up = rest[..length]
                .iter()
                .enumerate()
                .all(|(i, s)| s.origin == Origin::Layer(i as u32));
            let down = rest[..length]
                .iter()
                .rev()
                .enumerate()
                .all(|(i, s)| s.origin == Origin::Layer(i as u32));
            (up || down) && rest[..length].iter().all(|s| s.phase == first.phase)
        };
        match is_sweep {
            true => {
                parts.push(Part::Sweep(&rest[..length]));
                rest = &rest[length..];
            }
            false => {
                parts.push(Part::One(first));
                rest = &rest[1..];
            }
        }
    }
    parts
}

fn grown(short: &Outline, long: &Outline, few: u64, period: u64, layers: u64) -> Option<Outline> {
    let (a, b) = (
        parts(&short.record.segments, few),
        parts(&long.record.segments, few + period),
    );
    if a.len() != b.len() {
        return None;
    }
    let steps = ((layers - few) / period) as i64;
    let mut segments = Vec::with_capacity(a.len() + layers as usize * 4);
    for parts in a.iter().zip(&b) {
        match parts {
            (Part::One(a), Part::One(b)) => segments.push(line(a, b, steps)?),
            (Part::Sweep(a), Part::Sweep(b)) => {
                sweep(&mut segments, a, b, period as usize, layers as usize)?
            }
            _ => return None,
        }
    }
    let mut start: ByClass = [0; CLASSES];
    for (at, start) in start.iter_mut().enumerate() {
        *start = along(short.record.start[at], long.record.start[at], steps);
    }
    Some(Outline {
        record: Record { start, segments },
        saved: along(short.saved, long.saved, steps),
        saved_layers: (0..layers as usize)
            .map(|layer| {
                short.saved_layers[source(layer, layers as usize, few as usize, period as usize)]
            })
            .collect(),
    })
}

/// A quantity after `steps` further periods.
fn along(short: i64, long: i64, steps: i64) -> i64 {
    short + (long - short) * steps
}

fn line(a: &Segment, b: &Segment, steps: i64) -> Option<Segment> {
    if (a.phase, a.op) != (b.phase, b.op) {
        return None;
    }
    let mut made = a.clone();
    for at in 0..CLASSES {
        made.net[at] = along(a.net[at], b.net[at], steps);
        made.at_high[at] = along(a.at_high[at], b.at_high[at], steps);
    }
    made.high = along(a.high, b.high, steps);
    made.work = a.work.along(&b.work, steps.unsigned_abs().into());
    Some(made)
}

/// Appends a sweep over `layers` layers: its ends as in the short run, one period in between repeated. The long run must agree.
fn sweep(
    into: &mut Vec<Segment>,
    a: &[Segment],
    b: &[Segment],
    period: usize,
    layers: usize,
) -> Option<()> {
    let upward = a[0].origin == Origin::Layer(0);
    let of = |segments: &[Segment], layer: usize| match upward {
        true => segments[layer].clone(),
        false => segments[segments.len() - 1 - layer].clone(),
    };
    let source = |layer, length| source(layer, length, a.len(), period);
    let alike = |x: &Segment, y: &Segment| {
        (x.phase, x.op, x.high, x.net, x.at_high, x.work)
            == (y.phase, y.op, y.high, y.net, y.at_high, y.work)
    };
    for layer in 0..b.len() {
        if !alike(&of(a, source(layer, b.len())), &of(b, layer)) {
            return None;
        }
    }
    let order: Box<dyn Iterator<Item = usize>> = match upward {
        true => Box::new(0..layers),
        false => Box::new((0..layers).rev()),
    };
    for layer in order {
        let mut segment = of(a, source(layer, layers));
        segment.origin = Origin::Layer(layer as u32);
        into.push(segment);
    }
    Some(())
}

/// Which of `few` layers stands for a layer of `length`: those at the ends for themselves, the period after the first for all between.
fn source(layer: usize, length: usize, few: usize, period: usize) -> usize {
    match layer {
        _ if layer < period => layer,
        _ if layer + period >= length => few - (length - layer),
        _ => period + (layer - period) % period,
    }
}

/// The highest moment of a step.
#[derive(Debug, Clone)]
pub struct Highest {
    /// Live bytes.
    pub bytes: i64,
    /// The same by class.
    pub by_class: ByClass,
    /// The part.
    pub phase: EagerPhase,
    /// The op.
    pub op: &'static str,
}

impl Record {
    /// The highest moment, and that of each part.
    pub fn highest(&self) -> (Highest, std::collections::BTreeMap<EagerPhase, i64>) {
        let mut level = self.start;
        let mut sum: i64 = level.iter().sum();
        let mut top = Highest {
            bytes: sum,
            by_class: level,
            phase: EagerPhase::Start,
            op: "",
        };
        let mut parts = std::collections::BTreeMap::new();
        for segment in &self.segments {
            let high = sum + segment.high;
            let part = parts.entry(segment.phase).or_insert(high);
            *part = high.max(*part);
            if high > top.bytes {
                let mut by_class = level;
                by_class
                    .iter_mut()
                    .zip(segment.at_high)
                    .for_each(|(to, more)| *to += more);
                top = Highest {
                    bytes: high,
                    by_class,
                    phase: segment.phase,
                    op: segment.op,
                };
            }
            level
                .iter_mut()
                .zip(segment.net)
                .for_each(|(to, more)| *to += more);
            sum += segment.net.iter().sum::<i64>();
        }
        (top, parts)
    }

    /// What is done in each part.
    pub fn work(&self) -> std::collections::BTreeMap<EagerPhase, Work> {
        let mut parts = std::collections::BTreeMap::new();
        for segment in &self.segments {
            let part: &mut Work = parts.entry(segment.phase).or_default();
            *part = part.plus(&segment.work);
        }
        parts
    }

    /// Alive after the step.
    pub fn end(&self) -> i64 {
        let nets = self.segments.iter().flat_map(|s| s.net);
        self.start.iter().copied().chain(nets).sum()
    }
}
