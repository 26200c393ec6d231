//! What is chosen: a job, a machine, an engine and techniques; and the command line that says the same.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::plan::file::JobText;
use crate::plan::{Choice, Request};
use crate::search::torch::TorchRequest;
use crate::show::choice::class_name;
use crate::show::torch_plan;
use crate::spec::device::{self, Device};
use crate::spec::job::{Exactness, Host, HostText, Precision};
use crate::spec::torch::TorchOptions;
use crate::spec::units::Bytes;
use crate::spec::{catalog, job};
use crate::technique::{Card, TECHNIQUES};

/// Who trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// memfit's own executor.
    Memfit,
    /// PyTorch's eager mode with Hugging Face code.
    Torch,
}

/// Everything that is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The job.
    pub job: JobText,
    /// The machine around the device.
    pub host: HostText,
    /// Who trains.
    pub engine: Engine,
    /// Techniques that are decided, in the order of [`TECHNIQUES`].
    pub fixed: Vec<Choice>,
    /// Options of PyTorch that are decided.
    pub torch: BTreeMap<String, String>,
    /// How far other choices may change results.
    pub allow: Exactness,
    /// The most a plan may take of the device, where that is less than all.
    pub within: Option<Bytes>,
}

/// What is asked of a search.
#[derive(Debug, Clone)]
pub enum Question {
    /// Of memfit's own.
    Memfit(Box<Request>),
    /// Of the one over PyTorch's options.
    Torch(Box<TorchRequest>),
}

impl Settings {
    /// The settings that a job in words begins with.
    pub fn new(job: JobText, host: HostText) -> Settings {
        Settings {
            job,
            host,
            engine: Engine::Memfit,
            fixed: Vec::new(),
            torch: BTreeMap::new(),
            allow: Exactness::Rounding,
            within: None,
        }
    }

    /// The question.
    ///
    /// # Errors
    /// Where a name is unknown, or a value or choice is wrong.
    pub fn question(&self) -> Result<Question> {
        match self.engine {
            Engine::Memfit => self.request().map(|r| Question::Memfit(Box::new(r))),
            Engine::Torch => {
                let pairs = TorchOptions::pairs(&self.pairs())?;
                let request = torch_plan::request(&self.job, pairs, self.allow)?;
                Ok(Question::Torch(Box::new(request)))
            }
        }
    }

    fn request(&self) -> Result<Request> {
        let mut job = self.job.open(self.host.open(Host::default())?)?;
        if let Some(most) = self.within {
            job.target.device = job.target.device.within(most);
        }
        Ok(Request {
            job,
            fixed: self.fixed.clone(),
            allow: self.allow,
        })
    }

    /// The options of PyTorch as `--torch` takes them.
    pub fn pairs(&self) -> String {
        let each = self
            .torch
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        each.collect::<Vec<_>>().join(",")
    }

    /// The arguments of the job and the machine alone, as every command takes them.
    pub fn arguments(&self) -> Vec<String> {
        let job = &self.job;
        let mut all = vec![
            ("--model", job.model.clone()),
            ("--gpu", job.gpu.clone()),
            ("--seq", job.seq.to_string()),
            ("--batch", job.batch.to_string()),
            ("--precision", job.precision.name().to_string()),
        ];
        if job.optimizer != "adamw" {
            all.push(("--optimizer", job.optimizer.clone()));
        }
        let host = self.host.values();
        all.extend(host.map(|(_, flag, text)| (flag, text.to_string())));
        if self.allow != Exactness::Rounding {
            all.push(("--allow", class_name(self.allow).to_string()));
        }
        if self.engine == Engine::Memfit {
            all.extend(self.fixed.iter().map(|c| ("--fix", c.to_string())));
        }
        let words = all.into_iter();
        words
            .flat_map(|(flag, value)| [flag.to_string(), value])
            .collect()
    }

    /// The arguments of `plan` that ask the same.
    pub fn plan_arguments(&self) -> Vec<String> {
        let mut all = vec!["plan".to_string()];
        all.extend(self.arguments());
        let mut push = |flag: &str, value: String| all.extend([flag.to_string(), value]);
        match (self.engine, self.within) {
            (Engine::Memfit, Some(most)) => push("--within", format!("{}B", most.0)),
            (Engine::Memfit, None) => {}
            (Engine::Torch, _) => {
                push("--engine", "torch".to_string());
                if !self.torch.is_empty() {
                    push("--torch", self.pairs());
                }
            }
        }
        all
    }

    /// The command line that asks the same.
    pub fn command(&self) -> String {
        let words = self.plan_arguments().into_iter().map(|word| quoted(&word));
        format!("memfit {}", words.collect::<Vec<_>>().join(" "))
    }

    /// The device, as it is.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn device(&self) -> Result<Device> {
        device::find(&self.job.gpu)
    }

    /// Sets the model; sequences are cut to what it takes.
    ///
    /// # Errors
    /// Where there is no such model.
    pub fn set_model(&mut self, model: &str) -> Result<()> {
        let longest = catalog::open(model)?.max_positions;
        self.job.model = model.to_string();
        self.job.seq = self.job.seq.min(longest);
        Ok(())
    }

    /// Sets the device; a format it has no arithmetic for becomes its usual one.
    ///
    /// # Errors
    /// Where there is no such device.
    pub fn set_device(&mut self, gpu: &str) -> Result<()> {
        let device = device::find(gpu)?;
        self.job.gpu = gpu.to_string();
        self.within = None;
        if self.job.precision.check(&device).is_err() {
            self.job.precision = Precision::default_for(&device);
        }
        Ok(())
    }

    /// Sets a value of the machine, or leaves it to what is assumed.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn set_host(&mut self, name: &str, text: Option<String>) -> Result<()> {
        let before = self.host.clone();
        let field = match name {
            "ram" => &mut self.host.ram,
            "link" => &mut self.host.link,
            _ => &mut self.host.disk,
        };
        *field = text;
        let read = self.host.open(job::Host::default());
        let read = read.and_then(|host| host.check());
        if read.is_err() {
            self.host = before;
        }
        read
    }

    /// Decides a technique; where it is one of those of which a plan has one, the other goes.
    pub fn fix(&mut self, choice: Choice) {
        if choice.is_rule() {
            self.fixed.retain(|c| !c.is_rule());
        }
        self.fixed.push(choice);
        self.fixed.sort_by_key(|c| rank(&c.technique));
    }

    /// Leaves an option of PyTorch to the search, with what is inside of it.
    pub fn open_option(&mut self, key: &str) {
        let inside = |name: &str| {
            name.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        self.torch.retain(|name, _| name != key && !inside(name));
    }

    /// Decides an option of PyTorch.
    pub fn decide_option(&mut self, key: &str, value: &str) {
        self.open_option(key);
        self.torch.insert(key.to_string(), value.to_string());
    }

    /// Names of the techniques that are decided.
    pub fn decided(&self) -> BTreeSet<&str> {
        self.fixed.iter().map(|c| c.technique.as_str()).collect()
    }

    /// Refuses settings that no search could start from.
    ///
    /// # Errors
    /// Where a value or a choice is wrong, or two exclude each other.
    pub fn check(&self) -> Result<()> {
        match self.question()? {
            Question::Memfit(request) => {
                crate::plan::Plan::new(request.job, request.fixed).map(|_| ())
            }
            Question::Torch(_) => Ok(()),
        }
    }
}

/// Where a technique stands among all of them.
fn rank(name: &str) -> usize {
    let found = TECHNIQUES.iter().position(|t| t.card().name == name);
    found.unwrap_or(TECHNIQUES.len())
}

/// The card of a technique.
///
/// # Errors
/// Where there is none of that name.
pub fn card(name: &str) -> Result<Card> {
    crate::technique::find(name).map(|t| t.card())
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%^".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// An error in one line.
pub fn line(error: &Error) -> String {
    error.to_string().replace('\n', " ")
}
