//! Plans as text: the job by name, the choices, and what was claimed when the plan was made.

use serde::{Deserialize, Serialize};

use super::{Choice, Plan};
use crate::error::{Error, Result};
use crate::spec::job::{Host, Job, Optimizer, PerPlace, Precision, Target};
use crate::spec::units::{Bytes, Seconds};
use crate::spec::{catalog, device};

/// A plan file. It holds decisions and a claim; everything else is derived again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// The job.
    pub job: JobText,
    /// The machine around the device.
    #[serde(default)]
    pub host: Host,
    /// What was predicted when the plan was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// The choices.
    #[serde(default)]
    pub choice: Vec<Choice>,
}

/// A job as the command line states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobText {
    /// A model's name, or a path to its config.
    pub model: String,
    /// A device's name, a device file, or a size.
    pub gpu: String,
    /// Positions of a sequence.
    pub seq: u64,
    /// Sequences of a step.
    pub batch: u64,
    /// Number format.
    pub precision: Precision,
    /// Update rule.
    pub optimizer: String,
}

/// What a plan was predicted to take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Bytes of each place.
    pub peak: PerPlace<Bytes>,
    /// One step.
    pub step_seconds: Seconds,
}

impl PlanFile {
    /// Reads a plan; `origin` names it in errors.
    ///
    /// # Errors
    /// Where the text is no plan.
    pub fn parse(origin: &str, text: &str) -> Result<PlanFile> {
        toml::from_str(text).map_err(|e| {
            Error::file(
                origin,
                e.to_string().trim().replace('\n', " "),
                "correct the plan, or write a new one with `memfit plan -o FILE`",
            )
        })
    }

    /// The file's text.
    ///
    /// # Errors
    /// Where a value has no TOML form.
    pub fn text(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::file("plan", e.to_string(), "report the plan's values"))
    }

    /// The plan, with model and device looked up.
    ///
    /// # Errors
    /// Where a name is unknown, or a value or choice is wrong.
    pub fn plan(&self) -> Result<Plan> {
        Plan::new(self.job.open(self.host)?, self.choice.clone())
    }

    /// The file of a plan for the job of `text`.
    pub fn of(plan: &Plan, text: JobText, claim: Option<Claim>) -> PlanFile {
        PlanFile {
            job: text,
            host: plan.job.target.host,
            claim,
            choice: plan.choices.clone(),
        }
    }
}

/// Steps may differ by this share between machines whose math libraries round differently.
const STEP_TOLERANCE: f64 = 1e-9;

impl Claim {
    /// What `now`, derived again, says otherwise: a sentence each; none where the claim holds.
    pub fn differences(&self, now: &Claim) -> Vec<String> {
        let mut found = Vec::new();
        for (place, &claimed) in self.peak.iter().filter(|(p, b)| now.peak[*p] != **b) {
            let derived = now.peak[place];
            found.push(format!(
                "{place} peak: claimed {claimed} ({} bytes), now {derived} ({} bytes)",
                claimed.0, derived.0
            ));
        }
        let (claimed, derived) = (self.step_seconds, now.step_seconds);
        let holds = (claimed.0 - derived.0).abs() <= STEP_TOLERANCE * derived.0.abs();
        if !holds {
            found.push(format!("step: claimed {claimed}, now {derived}"));
        }
        found
    }
}

impl JobText {
    /// The job, with model and device looked up.
    ///
    /// # Errors
    /// Where a name is unknown or a value is wrong.
    pub fn open(&self, host: Host) -> Result<Job> {
        let job = Job {
            model: catalog::open(&self.model)?,
            seq: self.seq,
            batch: self.batch,
            precision: self.precision,
            optimizer: Optimizer(self.optimizer.clone()),
            target: Target::new(device::find(&self.gpu)?, host),
        };
        job.check()?;
        Ok(job)
    }
}
