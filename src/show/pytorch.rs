//! What a PyTorch job takes, for people and for programs.

use serde_json::{Value, json};

use super::comparison::{class_name, phase_name};
use super::table::{Column, Table, labelled};
use crate::machine::pytorch::{Answer, Largest, Outcome, StepTime};
use crate::spec::device::Device;
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
use crate::spec::trainer::Note;

/// Columns of a label.
const LABEL: usize = 11;

/// What was asked, and everything that is said about it.
#[derive(Debug)]
pub struct Page<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// The step.
    pub options: &'a TorchOptions,
    /// The device, where one was named.
    pub device: Option<&'a Device>,
    /// Whose file described the job.
    pub trainer: Option<&'static str>,
    /// The prediction.
    pub answer: &'a Answer,
    /// The largest of its kind that fits, where a device was named.
    pub largest: Option<Largest>,
    /// What was taken for what nobody said.
    pub assumed: &'a [Note],
    /// Fields that were passed over.
    pub ignored: &'a [Note],
    /// Fields that matter and could not be honoured.
    pub cannot: &'a [Note],
}

/// The page.
pub fn text(page: &Page) -> String {
    let mut text = header(page);
    text += &format!("\n{}", verdict(page));
    if let Some(speed) = &page.answer.speed {
        text += &labelled("step", &step(speed), LABEL);
    }
    text += &format!("\n{}", holders(page.answer));
    text += &format!("\n{}", counters(page.answer));
    let noted = notes(page);
    if !noted.is_empty() {
        text += &format!("\n{noted}");
    }
    text
}

fn header(page: &Page) -> String {
    let o = page.options;
    let types = match o.autocast {
        Some(to) => format!("{} with autocast to {}", o.param_dtype.name(), to.name()),
        None => o.param_dtype.name().to_string(),
    };
    let job = format!(
        "{}, PyTorch with Hugging Face code; {} x {} tokens, {types}, {} ({})",
        page.model.name,
        o.batch,
        o.seq,
        o.optimizer.name(),
        o.optimizer_impl.name(),
    );
    let mut text = labelled("model", &job, LABEL);
    if let Some(device) = page.device {
        let memory = format!("{}, {} in all", device.name, device.memory);
        text += &labelled("device", &memory, LABEL);
    }
    if let Some(trainer) = page.trainer {
        text += &labelled("job", &format!("from a file of {trainer}"), LABEL);
    }
    text
}

/// Whether it fits, and the band that decides.
fn verdict(page: &Page) -> String {
    let (answer, band) = (page.answer, &page.answer.band);
    let error = 100.0 * band.error;
    let between = format!("the process takes {} to {}", band.least, band.most);
    let earned = format!(
        "(±{error} %, earned on traced jobs, published ones are further off; nothing to all cached by the allocator; the span of contexts)"
    );
    let has = answer.budget.map(|b| format!("; the device has {b}"));
    let said = format!("{between}{} {earned}", has.unwrap_or_default());
    let head = match answer.outcome {
        Outcome::Misfit => "MISFIT",
        Outcome::Unknown => "takes",
        other => other.name(),
    };
    let mut text = labelled(head, &said, LABEL);
    if let Some(largest) = page.largest {
        text += &labelled("largest", &limits(page.options, largest), LABEL);
    }
    text
}

/// How long a step takes, and how far that was off elsewhere.
pub fn step(speed: &StepTime) -> String {
    let parts = speed
        .phases
        .iter()
        .map(|(phase, seconds)| format!("{} {seconds}", phase_name(*phase)));
    let parts: Vec<String> = parts.collect();
    let waits = match speed.launch_bound {
        share if share >= 0.1 => format!(
            "; {:.0} % of it waits for kernels to be launched",
            100.0 * share
        ),
        _ => String::new(),
    };
    format!(
        "{}, {:.0} tokens/s ({}){waits}; times of published runs it had not seen were off by {:.0} % in the median, by up to {:.0} % in nine of ten",
        speed.step_seconds,
        speed.tokens_per_second,
        parts.join(", "),
        100.0 * speed.error.median,
        100.0 * speed.error.p90,
    )
}

fn limits(options: &TorchOptions, largest: Largest) -> String {
    let (batch, seq) = (options.batch, options.seq);
    let batches = match largest.batch {
        Some(most) => format!("batch {most} at {seq} tokens"),
        None => format!("no batch at {seq} tokens"),
    };
    let lengths = match largest.seq {
        Some(most) => format!("{most} tokens at batch {batch}"),
        None => format!("no length at batch {batch}"),
    };
    format!("{batches}; {lengths}")
}

/// Who holds the peak, and the peaks of the phases.
fn holders(answer: &Answer) -> String {
    let prediction = &answer.prediction;
    let columns = [Column::Left, Column::Right];
    let mut table = Table::new(&columns).heads(&["alive at the peak", "bytes"]);
    let mut held: Vec<_> = prediction.breakdown.iter().collect();
    held.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    for (class, bytes) in held {
        table.row(vec![class_name(*class).to_string(), bytes.to_string()]);
    }
    table.row(vec!["together".into(), prediction.peak.to_string()]);
    for (phase, bytes) in &prediction.phase_peak {
        let name = format!("peak of {}", phase_name(*phase));
        table.row(vec![name, bytes.to_string()]);
    }
    let op = match prediction.op.as_str() {
        "" => "its start",
        op => op,
    };
    let at = format!("in {}, at {op}", phase_name(prediction.phase));
    format!("{}{}", labelled("peak", &at, LABEL), table.render())
}

/// The three counters, by the names a user can read them under.
fn counters(answer: &Answer) -> String {
    let shown = &answer.counters;
    let columns = [Column::Left, Column::Right, Column::Wrapped];
    let mut table = Table::new(&columns).heads(&["counter", "shows", "with"]);
    let live = answer.prediction.peak;
    let rows = [
        (
            "max_memory_allocated",
            shown.allocated,
            format!(
                "workspaces of cuBLAS: {}",
                shown.allocated.saturating_sub(live)
            ),
        ),
        (
            "max_memory_reserved",
            shown.reserved,
            format!(
                "rounded and cached by the allocator: {}",
                shown.reserved.saturating_sub(shown.allocated)
            ),
        ),
        (
            "nvidia-smi",
            shown.process,
            format!(
                "the process's context: {}",
                shown.process.saturating_sub(shown.reserved)
            ),
        ),
    ];
    for (name, bytes, with) in rows {
        table.row(vec![name.into(), bytes.to_string(), with]);
    }
    table.render()
}

fn notes(page: &Page) -> String {
    let short = |note: &Note| format!("{} {}", note.field, plain(&note.value));
    let mut text = String::new();
    let usual: Vec<String> = page
        .assumed
        .iter()
        .filter(|n| n.why == DEFAULT)
        .map(short)
        .collect();
    if !usual.is_empty() {
        text += &labelled(
            "assumed",
            &format!("{DEFAULT}: {}", usual.join(", ")),
            LABEL,
        );
    }
    for note in page.assumed.iter().filter(|note| note.why != DEFAULT) {
        text += &labelled("assumed", &format!("{}: {}", short(note), note.why), LABEL);
    }
    for note in page.cannot {
        text += &labelled("CANNOT", &format!("{}: {}", short(note), note.why), LABEL);
    }
    let passed: Vec<&str> = page
        .ignored
        .iter()
        .map(|note| note.field.as_str())
        .collect();
    if !passed.is_empty() {
        text += &labelled("ignored", &passed.join(", "), LABEL);
    }
    text
}

/// Why an option has its value where nobody gave one.
pub const DEFAULT: &str = "the Trainer's default";

/// A value as one would type it, cut where it is long.
fn plain(value: &Value) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_string);
    match text.chars().count() {
        0..=60 => text,
        _ => format!("{}…", text.chars().take(60).collect::<String>()),
    }
}

/// The same for programs; integers are bytes.
pub fn json(page: &Page) -> Value {
    let note = |n: &Note, honoured: bool| json!({"field": n.field, "value": n.value, "why": n.why, "matters": !honoured});
    let passed = page.ignored.iter().map(|n| note(n, true));
    let cannot = page.cannot.iter().map(|n| note(n, false));
    let mut all = summary(page.answer);
    all["model"] = json!(page.model.name);
    all["device"] = json!(page.device.map(|device| &device.name));
    all["trainer"] = json!(page.trainer);
    all["options"] = json!(page.options);
    all["assumed"] = json!(page.assumed);
    all["ignored"] = cannot.chain(passed).collect();
    all["largest"] = json!(page.largest);
    all
}

/// The prediction alone.
pub fn summary(answer: &Answer) -> Value {
    let p = &answer.prediction;
    json!({
        "outcome": answer.outcome,
        "prediction": {
            "peak": p.peak,
            "phase": p.phase,
            "op": p.op,
            "phase_peak": p.phase_peak,
            "breakdown": p.breakdown,
            "work": p.work,
        },
        "counters": answer.counters,
        "step_seconds": answer.speed.as_ref().map(|speed| speed.step_seconds),
        "tokens_per_second": answer.speed.as_ref().map(|speed| speed.tokens_per_second),
        "speed": answer.speed,
        "band": answer.band,
        "budget": answer.budget,
    })
}

/// The line of `plan` about the other engine.
pub fn line(answer: &Answer) -> String {
    let shown = &answer.counters;
    let fits = match answer.outcome {
        Outcome::Fits => "fits",
        Outcome::Close => "close",
        Outcome::Misfit => "does not fit",
        Outcome::Unknown => "no device",
    };
    let step = answer.speed.as_ref().map_or(String::new(), |speed| {
        format!(", {} a step", speed.step_seconds)
    });
    let said = format!(
        "with PyTorch: {} allocated, {} the process{step}, with the Trainer's defaults; {fits} (memfit estimate)",
        shown.allocated, shown.process
    );
    labelled("", &said, 0)
}
