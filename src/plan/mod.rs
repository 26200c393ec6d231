//! What is chosen: a job and the techniques applied to it.

pub mod file;
pub mod library;
pub mod steps;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::job::{Exactness, Job, Precision};
use crate::technique::{self, Args, Card, Derivative, Draft, Pattern, TECHNIQUES, Technique};

/// One technique at some sites, with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The technique's name.
    pub technique: String,
    /// Where, as a pattern over stable paths.
    #[serde(default = "everywhere", skip_serializing_if = "is_everywhere")]
    pub site: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Args::is_empty")]
    pub args: Args,
}

fn everywhere() -> String {
    "*".to_string()
}

fn is_everywhere(site: &String) -> bool {
    site == "*"
}

impl Choice {
    /// A choice at `site`.
    pub fn new(technique: &str, site: &str, args: &[(&str, &str)]) -> Choice {
        Choice {
            technique: technique.to_string(),
            site: site.to_string(),
            args: Args::new(args),
        }
    }

    /// Reads `NAME[:key=value,…]`, as `--fix` takes it; the key `site` says where.
    ///
    /// # Errors
    /// Where the name, a key or a value is unknown.
    pub fn parse(text: &str) -> Result<Choice> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let technique = technique::find(name.trim())?;
        let mut args = Args::default();
        for pair in rest.split(',').filter(|p| !p.trim().is_empty()) {
            let next = "write NAME:key=value,key=value";
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Error::value("argument", pair, "no `=` in it", next))?;
            args.0
                .insert(key.trim().to_string(), value.trim().to_string());
        }
        let site = args.0.remove("site").unwrap_or_else(everywhere);
        let choice = Choice {
            technique: technique.card().name.to_string(),
            site,
            args,
        };
        choice.check()?;
        Ok(choice)
    }

    /// Reads what [`Choice::parse`] reads, or `RECIPE[:key=value,…]`, whose arguments go to the choices that take them.
    ///
    /// # Errors
    /// As [`Choice::parse`], and where no choice of a recipe takes an argument.
    pub fn parse_all(text: &str) -> Result<Vec<Choice>> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let Some(recipe) = technique::recipe(name.trim()) else {
            return Ok(vec![Choice::parse(text)?]);
        };
        let parts = recipe.composed_of.iter().map(|part| Choice::parse(part));
        let mut parts = parts.collect::<Result<Vec<Choice>>>()?;
        for pair in rest.split(',').filter(|p| !p.trim().is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (key.trim(), value.trim());
            let takes = |c: &Choice| {
                let card = c.behind().map(|t| t.card());
                card.is_ok_and(|card| card.arguments.iter().any(|a| a.key == key))
            };
            let mut found = false;
            for part in parts.iter_mut().filter(|c| takes(c)) {
                part.args.0.insert(key.to_string(), value.to_string());
                found = true;
            }
            if !found {
                let next = format!("`{name}` is: {}", recipe.composed_of.join(" + "));
                return Err(Error::value(
                    "argument",
                    key,
                    "no part of it takes it",
                    next,
                ));
            }
        }
        parts.iter().try_for_each(Choice::check)?;
        Ok(parts)
    }

    /// The technique behind the name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn behind(&self) -> Result<&'static dyn Technique> {
        technique::find(&self.technique)
    }

    /// The sites.
    ///
    /// # Errors
    /// Where the pattern cannot be read.
    pub fn sites(&self) -> Result<Pattern> {
        Pattern::parse(&self.site)
    }

    /// Whether it says how parameters are updated: a plan has exactly one that does.
    pub fn is_rule(&self) -> bool {
        self.behind().is_ok_and(|t| t.card().is_rule())
    }

    fn check(&self) -> Result<()> {
        self.args.check(&self.behind()?.card())?;
        self.sites().map(|_| ())
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.technique)?;
        let mut parts = Vec::new();
        if self.site != "*" {
            parts.push(format!("site={}", self.site));
        }
        if !self.args.0.is_empty() {
            parts.push(self.args.to_string());
        }
        if parts.is_empty() {
            Ok(())
        } else {
            write!(f, ":{}", parts.join(","))
        }
    }
}

/// What is asked: a job, what is fixed, and how far the rest may change results.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The job.
    pub job: Job,
    /// Choices that are made already.
    pub fixed: Vec<Choice>,
    /// The laxest class the search may choose from.
    pub allow: Exactness,
}

/// A job and choices: decisions only, nothing derived.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The job.
    pub job: Job,
    /// The choices, in the order of [`TECHNIQUES`].
    pub choices: Vec<Choice>,
}

impl Plan {
    /// A plan of `choices`, put in order, with the job's own optimizer and precision added where none is chosen.
    ///
    /// # Errors
    /// Where the job or a choice is wrong, or two exclude each other.
    pub fn new(job: Job, choices: Vec<Choice>) -> Result<Plan> {
        job.check()?;
        let mut choices = choices;
        if job.precision != Precision::F32
            && !choices.iter().any(|c| c.technique == "mixed_precision")
        {
            choices.push(Choice::new(
                "mixed_precision",
                "*",
                &[("dtype", job.precision.name())],
            ));
        }
        if !choices.iter().any(Choice::is_rule) {
            choices.push(optimizer(&job.optimizer.0)?);
        }
        choices.iter().try_for_each(Choice::check)?;
        one_optimizer(&choices)?;
        let rank = |c: &Choice| TECHNIQUES.iter().position(|t| t.card().name == c.technique);
        choices.sort_by_key(rank);
        let plan = Plan { job, choices };
        plan.draft()?;
        Ok(plan)
    }

    /// What is decided before anything is built.
    ///
    /// # Errors
    /// Where two choices exclude each other.
    pub fn draft(&self) -> Result<Draft> {
        let mut draft = Draft {
            family: self.job.model.family,
            batch: self.job.batch,
            precision: Precision::F32,
            micro_batches: 1,
            gradient_format: None,
            master: false,
            loss_scale: false,
            max_norm: None,
            fused_update: false,
            adapter: None,
            derivative: Derivative::Reverse,
        };
        for choice in &self.choices {
            choice.behind()?.draft(&mut draft, &choice.args)?;
        }
        draft.precision.check(&self.job.target.device)?;
        Ok(draft)
    }
}

/// The update rule a job names, as `NAME[:key=value,…]`.
fn optimizer(text: &str) -> Result<Choice> {
    let name = text.split(':').next().unwrap_or(text).trim();
    if technique::find(name).is_ok_and(|t| t.card().is_rule()) {
        return Choice::parse(text);
    }
    let rules = TECHNIQUES.iter().map(|t| t.card()).filter(Card::is_rule);
    let names: Vec<&str> = rules.map(|card| card.name).collect();
    let next = format!("choose from: {}", names.join(", "));
    Err(Error::unknown("optimizer", name, names, next))
}

/// Refuses a second update rule.
fn one_optimizer(choices: &[Choice]) -> Result<()> {
    let rules: Vec<&Choice> = choices.iter().filter(|c| c.is_rule()).collect();
    match rules[..] {
        [one, other, ..] => Err(Error::Conflict {
            one: one.to_string(),
            other: other.to_string(),
            why: "a parameter has one update rule".into(),
            next: "keep one of them".into(),
        }),
        _ => Ok(()),
    }
}
