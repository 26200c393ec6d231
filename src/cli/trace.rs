//! `memfit trace`: the step of a plan for a trace viewer.

use std::path::PathBuf;

use memfit::error::Result;
use memfit::machine::calibrate;
use memfit::machine::train::session::Session;
use memfit::machine::validate::{self, Options};
use memfit::show::course::Course;
use memfit::show::memory::places_json;
use memfit::show::trace::{self, Process};
use memfit::spec::job::PerPlace;
use serde_json::{Value, json};

use super::{Answer, DONE, MISFIT, files, subject};

/// Steps that are run: the first warms caches up, the second is traced.
const STEPS: u64 = 2;

/// Arguments of `trace`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: subject::Which,
    /// Run a step on this machine's CPU too, as much of the plan as it can, and show it beside
    #[arg(long)]
    run: bool,
    /// Layers of the model that are run [default: all where this machine can, else 3]
    #[arg(long, value_name = "N", requires = "run")]
    layers: Option<u64>,
    /// Folder of what lies on disk between uses [default: the system's temporary folder]
    #[arg(long, value_name = "DIR", requires = "run")]
    offload_dir: Option<PathBuf>,
    /// Write to this file [default: print it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the trace.
///
/// # Errors
/// Where the plan cannot be read or applied, a step fails, or the file cannot be written.
pub fn trace(args: &Args, quiet: bool) -> Result<Answer> {
    let subject = args.subject.open()?;
    let course = Course::of_step(&subject.plan, &subject.programs)?;
    let outside = Course::outside(&subject.plan, &subject.programs)?;
    let device = &subject.plan.job.target.device.name;
    let simulated = Process {
        name: format!(
            "simulated: a step of {} on {device} by {}",
            subject.plan.job.model.name, subject.name
        ),
        course: &course,
        about: json!({"seconds": course.end()}),
    };
    let session = match args.run {
        true => Some(executed(args, &subject.plan)?),
        false => None,
    };
    let ran = session.as_ref().map(|(session, _)| timed(session));
    let mut processes = vec![simulated];
    if !outside.walks.is_empty() {
        processes.push(Process {
            name: "simulated: outside of a step, where a place has its peak".to_string(),
            course: &outside,
            about: json!({"seconds": outside.end()}),
        });
    }
    if let (Some((session, left_out)), Some(ran)) = (&session, &ran) {
        processes.push(Process {
            name: format!(
                "executed on this machine's CPU: {} layers",
                session.plan().job.model.layers
            ),
            course: ran,
            about: json!({
                "seconds": ran.end(),
                "left_out": left_out,
                "measured": places_json(&session.mark()),
            }),
        });
    }
    let text = trace::trace(&subject.plan, &subject.name, &subject.estimate, &processes);
    let json = summary(&subject, &processes);
    let status = if subject.fits() { DONE } else { MISFIT };
    let text = match &args.output {
        Some(path) => {
            files::write(path, &text)?;
            let path = path.display();
            let kib = text.len().div_ceil(1 << 10);
            format!(
                "{path}: {kib} KiB; open it at https://ui.perfetto.dev or in chrome://tracing\n"
            )
        }
        None if quiet => String::new(),
        None => text,
    };
    Ok(Answer { text, json, status })
}

/// Runs steps of the plan.
fn executed(args: &Args, plan: &memfit::plan::Plan) -> Result<(Session, Vec<String>)> {
    let folder = args.offload_dir.clone();
    let options = Options {
        layers: args.layers,
        steps: STEPS,
        cores: calibrate::cores(),
        gpu: None,
        folder: folder.unwrap_or_else(std::env::temp_dir),
        device: None,
    };
    validate::executed(plan, &options)
}

/// The course of the last step of a session.
fn timed(session: &Session) -> Course<'_> {
    let timed = session.timelines().iter().filter_map(|(when, timeline)| {
        let program = session.programs().iter().find(|p| p.when == *when)?;
        Some((program, timeline.clone()))
    });
    Course::new(timed.collect())
}

/// What was traced.
fn summary(subject: &subject::Subject, processes: &[Process]) -> Value {
    let process = |process: &Process| {
        let walks = || process.course.walks.iter().map(|w| w.program);
        let height = |place| walks().map(|p| p.height[place]).max().unwrap_or_default();
        json!({
            "name": process.name,
            "programs": walks().map(|p| p.when).collect::<Vec<_>>(),
            "peak": places_json(&PerPlace::new(height)),
            "about": process.about,
        })
    };
    json!({
        "plan": subject.name,
        "peak": places_json(&subject.estimate.peak),
        "step_seconds": subject.estimate.step,
        "processes": processes.iter().map(process).collect::<Vec<_>>(),
    })
}
