//! A training run: losses, and what was predicted beside what was measured.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::memory::{phase_name, places_json};
use super::table::{Column, Table};
use crate::graph::Phase;
use crate::machine::train::session::Session;
use crate::spec::job::Place;
use crate::spec::units::{Bytes, Seconds};

/// What a run has shown.
pub struct Report<'a> {
    /// The run.
    pub session: &'a Session,
    /// Whether the simulated times are of this machine: they are if its device was calibrated.
    pub calibrated: bool,
}

impl Report<'_> {
    fn tokens_per_second(&self) -> f64 {
        let job = &self.session.plan().job;
        match self.session.step_seconds().0 {
            seconds if seconds > 0.0 => (job.batch * job.seq) as f64 / seconds,
            _ => 0.0,
        }
    }

    /// Seconds of each phase on the compute stream, in the last step.
    fn phases(&self) -> BTreeMap<Phase, f64> {
        let mut phases = BTreeMap::new();
        for (when, timeline) in self.session.timelines() {
            let program = self.session.programs().iter().find(|p| p.when == *when);
            for (phase, seconds) in program.map(|p| timeline.phases(p)).unwrap_or_default() {
                *phases.entry(phase).or_insert(0.0) += seconds;
            }
        }
        phases
    }

    /// Bytes of memory the programs take in all: what the process should hold beside itself.
    fn predicted_memory(&self) -> Bytes {
        let peak = self.session.predicted().peak;
        match self.session.executor().cuda() {
            Some(_) => peak.pinned + peak.host,
            None => peak.gpu + peak.pinned + peak.host,
        }
    }

    /// What ran the programs; the CPU needs no words.
    fn device(&self) -> Value {
        match self.session.executor().cuda() {
            Some(cuda) => json!({ "name": cuda.gpu().name, "notes": cuda.notes() }),
            None => json!({ "name": "cpu", "notes": [] }),
        }
    }

    /// The run for programs: integers are bytes, durations seconds.
    pub fn json(&self) -> Value {
        let (session, predicted) = (self.session, self.session.predicted());
        let progress = session.progress();
        json!({
            "predicted": {
                "peak": places_json(&predicted.peak),
                "process_peak": self.predicted_memory(),
                "step_seconds": predicted.step,
                "phases": predicted.phases,
            },
            "measured": {
                "peak": places_json(&session.mark()),
                "process_peak": session.process_peak(),
                "step_seconds": session.step_seconds(),
                "phases": self.phases(),
            },
            "calibrated": self.calibrated,
            "device": self.device(),
            "losses": progress.losses,
            "eval_losses": progress.evaluations.iter().map(|(step, loss)| json!({"step": step, "loss": loss})).collect::<Value>(),
            "tokens_per_second": self.tokens_per_second(),
            "tokens_seen": progress.tokens_seen,
            "steps": progress.step,
            "skipped_steps": progress.skipped_steps,
        })
    }

    /// The run for people.
    pub fn text(&self) -> String {
        let progress = self.session.progress();
        let last = progress
            .losses
            .last()
            .map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        let held_out = progress
            .evaluations
            .last()
            .map_or(String::new(), |(_, loss)| format!(", held-out {loss:.4}"));
        let speed = format!("{:.0} tokens/s", self.tokens_per_second());
        let head = format!("{} steps{last}{held_out}, {speed}\n", progress.step);
        let device = self.session.executor().cuda().map(|cuda| {
            let notes = cuda.notes().join("\n");
            format!("on {}\n{notes}\n\n", cuda.gpu().name)
        });
        let device = device.unwrap_or_default();
        format!("{head}\n{device}{}\n{}", self.memory(), self.time())
    }

    fn memory(&self) -> String {
        let (predicted, measured) = (self.session.predicted().peak, self.session.mark());
        let mut table = Table::new(&[Column::Left, Column::Right, Column::Right, Column::Left]);
        table = table.heads(&["peak memory", "predicted", "measured", ""]);
        for place in Place::ALL
            .into_iter()
            .filter(|&p| predicted[p].0 + measured[p].0 > 0)
        {
            let verdict = if predicted[place] == measured[place] {
                "equal to the byte"
            } else {
                "DIFFERENT"
            };
            table.row(vec![
                place.name().to_string(),
                predicted[place].to_string(),
                measured[place].to_string(),
                verdict.to_string(),
            ]);
        }
        let process = (self.predicted_memory(), self.session.process_peak());
        let share = 100.0 * (process.1.0 as f64 / process.0.0.max(1) as f64 - 1.0);
        let note = format!("{share:+.1} %, by the operating system");
        table.row(vec![
            "process".to_string(),
            process.0.to_string(),
            process.1.to_string(),
            note,
        ]);
        table.render()
    }

    fn time(&self) -> String {
        let predicted = self.session.predicted();
        let head = if self.calibrated {
            "predicted"
        } else {
            "of the device"
        };
        let mut table = Table::new(&[Column::Left, Column::Right, Column::Right]);
        table = table.heads(&["time of a step", head, "measured"]);
        let mut row = |name: &str, a: f64, b: f64| {
            table.row(vec![
                name.to_string(),
                Seconds(a).to_string(),
                Seconds(b).to_string(),
            ]);
        };
        let measured = self.phases();
        for (phase, seconds) in &predicted.phases {
            row(
                phase_name(*phase),
                *seconds,
                measured.get(phase).copied().unwrap_or(0.0),
            );
        }
        let wait = self.session.step_seconds().0 - measured.values().sum::<f64>();
        row("waiting", predicted.exposed.0, wait.max(0.0));
        row("step", predicted.step.0, self.session.step_seconds().0);
        let note = match self.calibrated {
            true => String::new(),
            false => "The plan's device is not this machine: `memfit calibrate -o here.toml`, then --gpu ./here.toml, predicts times here.\n"
                .to_string(),
        };
        format!("{}{note}", table.render())
    }
}
