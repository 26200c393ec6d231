//! The plan that a command shows: of a file, of a worked plan, or the best for a job.

use memfit::error::Result;
use memfit::machine::estimate::{self, Estimate};
use memfit::plan::{Plan, Request};
use memfit::program::Program;
use memfit::search::{self, Answer};
use memfit::show::alternatives::chosen;
use memfit::show::job::Asked;
use memfit::spec::job::Host;

use super::files;
use super::job::JobArgs;

/// Which plan.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// A plan file, or the name of a worked plan; without, the best for the job
    #[arg(required_unless_present = "model")]
    plan: Option<String>,
    #[command(flatten)]
    job: JobArgs,
}

/// A plan, lowered and proved.
#[derive(Debug)]
pub struct Subject {
    /// What it is called.
    pub name: String,
    /// The question it answers.
    pub request: Request,
    /// The same in words.
    pub asked: Asked,
    /// The plan.
    pub plan: Plan,
    /// Its programs.
    pub programs: Vec<Program>,
    /// What it takes.
    pub estimate: Estimate,
    /// Where its saved claim no longer holds; `None` where there is none, or the arguments change the plan.
    pub claim: Option<Vec<String>>,
    /// The answer of the search, where there was one.
    searched: Option<Answer>,
}

impl Which {
    /// The plan.
    ///
    /// # Errors
    /// Where it cannot be read, found or applied, or a program breaks a rule.
    pub fn open(&self) -> Result<Subject> {
        match &self.plan {
            Some(name) => self.named(name),
            None => self.searched(),
        }
    }

    fn named(&self, name: &str) -> Result<Subject> {
        let file = files::open(name)?;
        let changed = self.job.over(&file)?;
        let plan = changed.plan()?;
        let programs = estimate::all(&plan)?;
        let estimate = estimate::prove(&plan, &programs)?;
        let claim = file.claim.as_ref().filter(|_| changed == file);
        let mut given = self.job.given();
        given.extend(unlike_default(&changed.host));
        Ok(Subject {
            name: name.to_string(),
            request: Request {
                job: plan.job.clone(),
                fixed: Vec::new(),
                allow: self.job.class()?,
            },
            asked: Asked {
                text: changed.job,
                given,
            },
            claim: claim.map(|claim| claim.differences(&estimate.claim())),
            plan,
            programs,
            estimate,
            searched: None,
        })
    }

    fn searched(&self) -> Result<Subject> {
        let (request, asked) = self.job.request()?;
        let answer = search::search(&request)?;
        let best = chosen(&answer);
        Ok(Subject {
            name: best.name.clone(),
            plan: best.plan.clone(),
            programs: estimate::all(&best.plan)?,
            estimate: best.estimate.clone(),
            claim: None,
            request,
            asked,
            searched: Some(answer),
        })
    }
}

impl Subject {
    /// Whether the plan stays within its budget.
    pub fn fits(&self) -> bool {
        self.plan.job.target.budget().fits(&self.estimate.peak)
    }

    /// The plan as an answer: what was searched, or what stands beside a plan that is given.
    ///
    /// # Errors
    /// Where its job cannot be planned.
    pub fn answer(&mut self) -> Result<Answer> {
        match self.searched.take() {
            Some(answer) => Ok(answer),
            None => search::of_plan(&self.request, &self.plan, &self.name, self.estimate.clone()),
        }
    }
}

/// Names of the machine's values that are not the defaults: somebody gave them.
fn unlike_default(host: &Host) -> Vec<&'static str> {
    let default = Host::default();
    let values = [
        ("ram", host.ram != default.ram),
        ("pinned", host.pinned != default.pinned),
        ("disk", host.disk != default.disk),
        ("disk_rate", host.disk_rate != default.disk_rate),
        ("link", host.link != default.link),
        ("dram", host.dram != default.dram),
    ];
    let given = values.into_iter().filter(|(_, other)| *other);
    given.map(|(name, _)| name).collect()
}
