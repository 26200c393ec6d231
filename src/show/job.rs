//! What was asked: the job, the device, and the machine around it with what was assumed of it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::table::labelled;
pub use crate::graph::build::parameters;
use crate::plan::Plan;
use crate::plan::file::JobText;
use crate::spec::device::Device;
use crate::spec::job::{Host, Target};
use crate::spec::units::{show_count, show_rate};

/// Columns of the labels in front of the lines about a job.
const LABEL: usize = 8;

/// What the user asked for, in his words.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The job as written.
    pub text: JobText,
    /// Names of the host's values that were given; the others were assumed.
    pub given: BTreeSet<&'static str>,
}

/// One value of the machine that nobody gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Assumption {
    /// Its name in plan files.
    pub name: &'static str,
    /// The argument that sets it.
    pub flag: &'static str,
    /// Its value; integers are bytes.
    pub value: Value,
    /// The value in words.
    pub text: String,
}

/// The values of the machine beside those given.
pub fn assumptions(target: &Target, given: &BTreeSet<&'static str>) -> Vec<Assumption> {
    let mut all = host_values(&target.host, &target.device);
    all.retain(|a| !given.contains(a.name));
    all
}

pub(super) fn host_values(host: &Host, device: &Device) -> Vec<Assumption> {
    let value = |name, flag, value: Value, text| Assumption {
        name,
        flag,
        value,
        text,
    };
    let kept = 100.0 * host.kept;
    let ram = format!(
        "{} of RAM, {kept:.0}% of it kept for other programs",
        host.ram
    );
    let pinned = match host.pinned {
        Some(bytes) => format!("at most {bytes} of it pinned"),
        None => "all the rest may be pinned".to_string(),
    };
    let link = host.link.unwrap_or(device.link);
    let dram = format!("memory bandwidth {}", show_rate(host.dram));
    let disk = format!("{} of free disk", host.disk);
    let disk_rate = format!("disk rate {}", show_rate(host.disk_rate));
    vec![
        value("ram", "--ram", json!(host.ram), ram),
        value("pinned", "--pinned", json!(host.pinned), pinned),
        value("dram", "--dram", json!(host.dram), dram),
        value(
            "link",
            "--link",
            json!(link),
            format!("link {} each way", show_rate(link)),
        ),
        value("disk", "--disk", json!(host.disk), disk),
        value("disk_rate", "--disk-rate", json!(host.disk_rate), disk_rate),
    ]
}

/// The lines at the top: model, device, host.
pub fn header(plan: &Plan, asked: &Asked) -> String {
    let mut text = labelled("model", &model_line(plan, asked), LABEL);
    text += &labelled("device", &device_line(&plan.job.target.device), LABEL);
    text + &host_lines(&plan.job.target, &asked.given)
}

pub(super) fn model_line(plan: &Plan, asked: &Asked) -> String {
    let job = &plan.job;
    let sequences = if job.batch == 1 {
        "sequence"
    } else {
        "sequences"
    };
    format!(
        "{}, {} parameters; {} {sequences} of {} tokens in {}, {}",
        job.model.name,
        show_count(parameters(&job.model)),
        job.batch,
        job.seq,
        job.precision,
        asked.text.optimizer,
    )
}

pub(super) fn device_line(device: &Device) -> String {
    let speeds = match device.generic {
        true => format!(" (generic card: speeds are those {})", speeds_of(device)),
        false => String::new(),
    };
    let reserved = match device.reserved.0 {
        0 => String::new(),
        _ => format!(", less {} for context and libraries", device.reserved),
    };
    let budget = device.budget();
    format!("{}{speeds}; {budget} for the plan{reserved}", device.name)
}

/// Whose speeds a generic card has.
fn speeds_of(device: &Device) -> String {
    let like = device.notes.strip_prefix("as fast as ");
    like.map_or_else(|| device.notes.clone(), |like| format!("of {like}"))
}

fn host_lines(target: &Target, given: &BTreeSet<&'static str>) -> String {
    let (known, assumed): (Vec<_>, Vec<_>) = host_values(&target.host, &target.device)
        .into_iter()
        .partition(|v| given.contains(v.name));
    let known: Vec<String> = known.into_iter().map(|v| v.text).collect();
    let assumed: Vec<String> = assumed
        .into_iter()
        .map(|v| format!("{} ({})", v.text, v.flag))
        .collect();
    let mut text = String::new();
    if !known.is_empty() {
        text += &labelled("host", &known.join(", "), LABEL);
    }
    if !assumed.is_empty() {
        let label = if known.is_empty() { "host" } else { "" };
        text += &labelled(label, &format!("assumed: {}", assumed.join(", ")), LABEL);
    }
    text
}

/// The assumptions, and whether the device is a stand-in.
pub fn assumptions_json(plan: &Plan, asked: &Asked) -> Value {
    let target = &plan.job.target;
    let mut all: Vec<Value> = assumptions(target, &asked.given)
        .into_iter()
        .map(|a| json!({"name": a.name, "flag": a.flag, "value": a.value, "text": a.text}))
        .collect();
    if target.device.generic {
        let text = format!("speeds {}", speeds_of(&target.device));
        all.insert(
            0,
            json!({"name": "device", "flag": "--gpu", "value": target.device.id, "text": text}),
        );
    }
    Value::Array(all)
}

/// The job and its model, device and host.
pub fn json(plan: &Plan, asked: &Asked) -> Value {
    let device = &plan.job.target.device;
    json!({
        "job": asked.text,
        "host": plan.job.target.host,
        "model": {
            "name": plan.job.model.name,
            "parameters": parameters(&plan.job.model),
        },
        "device": {
            "name": device.name,
            "id": device.id,
            "generic": device.generic,
            "memory": device.memory,
            "reserved": device.reserved,
        },
    })
}
