//! A step as a trace that Perfetto and Chrome show: a track for each stream, memory as counters, copies as arrows.

use serde::Serialize;
use serde_json::{Value, json};

use super::course::{Course, Walk};
use super::curve::Held;
use super::memory::{phase_name, places_json, stream_name, when_name};
use crate::graph::Stream;
use crate::machine::estimate::{Estimate, per_step};
use crate::machine::sim::node_work;
use crate::machine::timeline::Mark;
use crate::plan::Plan;
use crate::program::{Instr, Program};
use crate::spec::job::Place;
use crate::spec::units::Bytes;

/// How a position of the text becomes a time of a counter.
const CLOCK: &str = "memory is counted in the order of the program's text, never in time; a position of the text stands at the time at which \
the device's compute stream reaches it, and a counter shows the most that is alive at any position that falls on its time";

/// What was left of a peak by placement, in words.
const PADDING: &str = "padding: alignment, and what placement cannot use of the place's arena";

/// A course with what its tracks are called.
#[derive(Debug)]
pub struct Process<'a> {
    /// The name of its group of tracks.
    pub name: String,
    /// What runs.
    pub course: &'a Course<'a>,
    /// What else is to be told of it.
    pub about: Value,
}

/// One event in the form of the trace format; durations and times are microseconds.
#[derive(Debug, Serialize)]
struct Event<'a> {
    name: &'a str,
    ph: char,
    pid: u32,
    tid: u32,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bp: Option<char>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Args<'a>>,
}

/// What is told of an event.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Args<'a> {
    Work {
        phase: &'a str,
        origin: &'a str,
        bytes: Bytes,
    },
    Copy {
        phase: &'a str,
        origin: &'a str,
        bytes: Bytes,
        from: &'a str,
        to: &'a str,
        buffer: &'a str,
    },
    Roles(Held),
    Total {
        bytes: Bytes,
    },
    Value(Value),
}

/// The trace of `plan`, one process for each of `processes`.
pub fn trace(plan: &Plan, name: &str, estimate: &Estimate, processes: &[Process]) -> String {
    let mut writer = Writer::default();
    for (number, process) in (1..).zip(processes) {
        writer.process(number, process, estimate);
    }
    let about: Vec<Value> = processes
        .iter()
        .map(|p| json!({"name": p.name, "about": p.about}))
        .collect();
    let other = json!({
        "tool": format!("memfit {}", env!("CARGO_PKG_VERSION")),
        "plan": name,
        "model": plan.job.model.name,
        "device": plan.job.target.device.name,
        "choices": plan.choices.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "peak": places_json(&estimate.peak),
        "step_seconds": estimate.step,
        "clock": CLOCK,
        "padding": PADDING,
        "processes": about,
    });
    format!(
        "{{\"displayTimeUnit\":\"ms\",\"otherData\":{other},\"traceEvents\":[\n{}\n]}}\n",
        writer.lines.join(",\n")
    )
}

/// Events under way.
#[derive(Debug, Default)]
struct Writer {
    lines: Vec<String>,
    flows: u32,
}

/// A time in the format's unit, to the nanosecond, so that what touches still touches.
fn micros(seconds: f64) -> f64 {
    (seconds * 1e9).round() / 1e3
}

/// The track of a stream; the first is that of the programs.
fn track(stream: Stream) -> u32 {
    stream as u32 + 1
}

impl Writer {
    fn push(&mut self, event: &Event) {
        let line = serde_json::to_string(event);
        self.lines.extend(line);
    }

    fn process(&mut self, pid: u32, process: &Process, estimate: &Estimate) {
        self.named("process_name", pid, 0, json!({"name": process.name}));
        self.named("process_sort_index", pid, 0, json!({"sort_index": pid}));
        self.named("thread_name", pid, 0, json!({"name": "programs"}));
        self.named("thread_sort_index", pid, 0, json!({"sort_index": 0}));
        let walks = &process.course.walks;
        let marks = || walks.iter().flat_map(|w| &w.timeline.marks);
        let used = |stream: &Stream| marks().any(|m| m.stream == *stream);
        for stream in Stream::ALL.into_iter().filter(used) {
            let tid = track(stream);
            self.named(
                "thread_name",
                pid,
                tid,
                json!({"name": stream_name(stream)}),
            );
            self.named("thread_sort_index", pid, tid, json!({"sort_index": tid}));
        }
        for walk in walks {
            self.walk(pid, walk);
        }
        for place in Place::ALL {
            self.memory(pid, process.course, place, estimate);
        }
    }

    /// Metadata of a process or a track.
    fn named(&mut self, name: &str, pid: u32, tid: u32, args: Value) {
        self.push(&Event {
            args: Some(Args::Value(args)),
            ..event(name, 'M', pid, tid)
        });
    }

    /// The slices of a program, and the arrows between them.
    fn walk(&mut self, pid: u32, walk: &Walk) {
        let program = walk.program;
        let (begin, end) = (micros(walk.begin), micros(walk.end()));
        let about = json!({
            "runs per step": per_step(program.when, None),
            "instructions": program.code.len(),
            "bytes": places_json(&program.height),
        });
        self.push(&Event {
            ts: begin,
            dur: Some(round(end - begin)),
            args: Some(Args::Value(about)),
            ..event(&when_name(program.when), 'X', pid, 0)
        });
        for mark in &walk.timeline.marks {
            self.slice(pid, walk, mark);
        }
        self.arrows(pid, walk);
    }

    fn slice(&mut self, pid: u32, walk: &Walk, mark: &Mark) {
        let program = walk.program;
        let Some(instr) = program.code.get(mark.at) else {
            return;
        };
        let phase = program.phase(instr).map_or("", phase_name);
        let (name, args) = match *instr {
            Instr::Launch { node, .. } => {
                let (_, work, _) = node_work(&program.step, node);
                let node = &program.step.nodes[node as usize];
                let args = Args::Work {
                    phase,
                    origin: &node.origin,
                    bytes: Bytes(work.bytes),
                };
                (node.op.name(), args)
            }
            Instr::Copy { from, to, node, .. } => {
                let args = Args::Copy {
                    phase,
                    origin: &program.step.nodes[node as usize].origin,
                    bytes: from.bytes,
                    from: program.buffer(from.buffer).place.name(),
                    to: program.buffer(to.buffer).place.name(),
                    buffer: &program.buffer(to.buffer).name,
                };
                ("copy", args)
            }
            _ => return,
        };
        let (ts, end) = (start(walk, mark), micros(walk.begin + mark.end));
        self.push(&Event {
            ts,
            dur: Some(round(end - ts)),
            cat: Some(phase),
            args: Some(args),
            ..event(name, 'X', pid, track(mark.stream))
        });
    }

    /// An arrow from each copy to the first that uses what it brought, where that is in the same program.
    fn arrows(&mut self, pid: u32, walk: &Walk) {
        let uses = first_uses(walk.program);
        let mut marks: Vec<Option<&Mark>> = vec![None; walk.program.code.len()];
        for mark in &walk.timeline.marks {
            marks[mark.at] = Some(mark);
        }
        for (copy, used) in uses {
            let (Some(from), Some(to)) = (marks[copy], marks[used]) else {
                continue;
            };
            self.flows += 1;
            for (ph, bp, mark) in [('s', None, from), ('f', Some('e'), to)] {
                self.push(&Event {
                    ts: start(walk, mark),
                    cat: Some("copy"),
                    id: Some(self.flows),
                    bp,
                    ..event("copied", ph, pid, track(mark.stream))
                });
            }
        }
    }

    /// The counters of a place: all of it, and by role.
    fn memory(&mut self, pid: u32, course: &Course, place: Place, estimate: &Estimate) {
        if estimate.peak[place] == Bytes::ZERO {
            return;
        }
        let (total, roles) = (format!("memory {place}"), format!("memory {place} by role"));
        let samples = &course.samples[place];
        // A role that is not told of would keep its last value, so each is told of always.
        let used = samples.iter().flat_map(|s| s.roles.keys());
        let none: Held = used.map(|role| (*role, Bytes::ZERO)).collect();
        // A counter has one value at a time: the largest of those that fall on one nanosecond.
        for same in samples.chunk_by(|a, b| micros(a.time) == micros(b.time)) {
            let Some(sample) = same.iter().rev().max_by_key(|s| s.total) else {
                continue;
            };
            let bytes = sample.total;
            let mut held = none.clone();
            held.extend(&sample.roles);
            for (name, args) in [(&total, Args::Total { bytes }), (&roles, Args::Roles(held))] {
                self.push(&Event {
                    ts: micros(sample.time),
                    args: Some(args),
                    ..event(name, 'C', pid, 0)
                });
            }
        }
    }
}

/// An event that is yet to be told of.
fn event(name: &str, ph: char, pid: u32, tid: u32) -> Event<'_> {
    Event {
        name,
        ph,
        pid,
        tid,
        ts: 0.0,
        dur: None,
        cat: None,
        id: None,
        bp: None,
        args: None,
    }
}

/// A difference of times, to the nanosecond.
fn round(micros: f64) -> f64 {
    ((micros * 1e3).round() / 1e3).max(0.0)
}

fn start(walk: &Walk, mark: &Mark) -> f64 {
    micros(walk.begin + mark.start)
}

/// Each copy of a program with the first instruction behind it that reads the buffer it wrote to.
fn first_uses(program: &Program) -> Vec<(usize, usize)> {
    let mut of_storage = vec![None; program.step.storages.len()];
    for (number, buffer) in program.buffers.iter().enumerate() {
        if let Some(storage) = buffer.storage {
            of_storage[storage.0 as usize] = Some(number);
        }
    }
    let mut next: Vec<Option<usize>> = vec![None; program.buffers.len()];
    let mut uses = Vec::new();
    for (at, instr) in program.code.iter().enumerate().rev() {
        match instr {
            Instr::Launch { node, .. } => {
                for &input in &program.step.nodes[*node as usize].inputs {
                    let storage = program.step.tensor(input).storage;
                    if let Some(buffer) = of_storage[storage.0 as usize] {
                        next[buffer] = Some(at);
                    }
                }
            }
            Instr::Copy { from, to, .. } => {
                uses.extend(next[to.buffer.0 as usize].map(|used| (at, used)));
                next[from.buffer.0 as usize] = Some(at);
            }
            Instr::Alloc(id) => next[id.0 as usize] = None,
            _ => {}
        }
    }
    uses.reverse();
    uses
}
