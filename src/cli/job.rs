//! Arguments about the job, the device and the machine, shared by the commands that take a job.

use std::collections::BTreeSet;

use memfit::error::{Error, Result};
use memfit::plan::file::{JobText, PlanFile};
use memfit::plan::{Choice, Request};
use memfit::show::choice::class_name;
use memfit::show::job::Asked;
use memfit::spec::job::{Exactness, Host, HostText, Precision};
use memfit::spec::{catalog, device};

/// Positions of a sequence where none are given and the model takes so many.
const SEQ: u64 = 2048;

/// The job, the device and the machine. What is not given comes from a plan, or is assumed.
#[derive(Debug, Clone, clap::Args)]
pub struct JobArgs {
    /// The device: a name, a size such as 24GB or 512MiB, or a device file
    #[arg(long, value_name = "DEVICE")]
    pub gpu: Option<String>,
    /// The model: a name, or the path of a config.json, its folder, or a .gguf file
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Tokens of a sequence [default: 2048, or the model's longest]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub seq: Option<u64>,
    /// Sequences of a step [default: 1]
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true)]
    pub batch: Option<u64>,
    /// Number format: f32, bf16 or fp16 [default: what the device has of bf16, fp16, f32]
    #[arg(long)]
    pub precision: Option<String>,
    /// Update rule, with its arguments [default: adamw]
    #[arg(long, value_name = "NAME[:KEY=VALUE,…]")]
    pub optimizer: Option<String>,
    /// A choice that is made already; may be repeated; the key `site` says where
    #[arg(long, value_name = "NAME[:KEY=VALUE,…]")]
    pub fix: Vec<String>,
    /// How far other choices may change results: bitwise, rounding or lossy
    #[arg(long, value_name = "CLASS", default_value = "rounding")]
    pub allow: String,
    /// Memory of the machine, such as 128GB
    #[arg(long, value_name = "SIZE")]
    pub ram: Option<String>,
    /// Most host memory that may be pinned
    #[arg(long, value_name = "SIZE")]
    pub pinned: Option<String>,
    /// Free disk
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// Rate of the disk, such as 3GB/s
    #[arg(long, value_name = "RATE")]
    pub disk_rate: Option<String>,
    /// Rate between host and device in each direction, such as 25GB/s; `run` on a CPU is held to it
    #[arg(long, value_name = "RATE")]
    pub link: Option<String>,
    /// Bandwidth of host memory, such as 40GB/s
    #[arg(long, value_name = "RATE")]
    pub dram: Option<String>,
}

impl JobArgs {
    /// The job in words: what is given, else what `base` says, else defaults.
    ///
    /// # Errors
    /// Where neither says the device or the model, or a name is unknown.
    pub fn text(&self, base: Option<&JobText>) -> Result<JobText> {
        let from = |of: fn(&JobText) -> &String| base.map(|b| of(b).clone());
        let gpu = self.gpu.clone().or_else(|| from(|b| &b.gpu));
        let gpu = gpu.ok_or_else(|| missing("--gpu", "such as --gpu 24GB or --gpu rtx-4090"))?;
        let model = from(|b| &b.model).filter(|_| self.model.is_none());
        let model = model.map_or_else(|| self.model(), Ok)?;
        let optimizer = self.optimizer.clone().or_else(|| from(|b| &b.optimizer));
        let seq = self.seq.or(base.map(|b| b.seq));
        let precision = match (&self.precision, base) {
            (Some(text), _) => text.parse()?,
            (None, Some(base)) => base.precision,
            (None, None) => Precision::default_for(&device::find(&gpu)?),
        };
        Ok(JobText {
            seq: seq.map_or_else(|| self.positions(&model), Ok)?,
            batch: self.batch.or(base.map(|b| b.batch)).unwrap_or(1),
            precision,
            optimizer: optimizer.unwrap_or_else(|| "adamw".into()),
            gpu,
            model,
        })
    }

    /// The model that is given.
    ///
    /// # Errors
    /// Where none is.
    pub fn model(&self) -> Result<String> {
        let model = self.model.clone();
        model.ok_or_else(|| missing("--model", "such as --model llama-3.1-8b"))
    }

    /// Tokens of a sequence: as given, or the usual ones, or the longest of `model` where that is shorter.
    ///
    /// # Errors
    /// Where the model is unknown.
    pub fn positions(&self, model: &str) -> Result<u64> {
        let usual = || Ok(SEQ.min(catalog::open(model)?.max_positions));
        self.seq.map_or_else(usual, Ok)
    }

    /// The machine: what is given, else what `base` says.
    ///
    /// # Errors
    /// Where a size or rate cannot be read.
    pub fn host(&self, base: Host) -> Result<Host> {
        self.machine().open(base)
    }

    /// The machine's values as given.
    pub fn machine(&self) -> HostText {
        HostText {
            ram: self.ram.clone(),
            pinned: self.pinned.clone(),
            disk: self.disk.clone(),
            disk_rate: self.disk_rate.clone(),
            link: self.link.clone(),
            dram: self.dram.clone(),
        }
    }

    /// Names of the machine's values that are given.
    pub fn given(&self) -> BTreeSet<&'static str> {
        self.machine().given()
    }

    /// The choices made already.
    ///
    /// # Errors
    /// Where a name, a key or a value is unknown.
    pub fn fixed(&self) -> Result<Vec<Choice>> {
        let parts = self.fix.iter().map(|text| Choice::parse_all(text));
        Ok(parts.collect::<Result<Vec<_>>>()?.concat())
    }

    /// `file` with what is given in place of what it says, and the choices that are given beside its own.
    ///
    /// # Errors
    /// As [`JobArgs::text`], [`JobArgs::host`] and [`JobArgs::fixed`].
    pub fn over(&self, file: &PlanFile) -> Result<PlanFile> {
        let mut changed = file.clone();
        changed.job = self.text(Some(&file.job))?;
        changed.host = self.host(file.host)?;
        changed.choice.extend(self.fixed()?);
        Ok(changed)
    }

    /// The question to the search, and the words it was asked in.
    ///
    /// # Errors
    /// As [`JobArgs::text`], [`JobArgs::host`] and [`JobArgs::fixed`], and where the job cannot be trained.
    pub fn request(&self) -> Result<(Request, Asked)> {
        let text = self.text(None)?;
        let request = Request {
            job: text.open(self.host(Host::default())?)?,
            fixed: self.fixed()?,
            allow: self.class()?,
        };
        let given = self.given();
        Ok((request, Asked { text, given }))
    }

    /// How far choices may change results.
    ///
    /// # Errors
    /// Where it is none of the classes.
    pub fn class(&self) -> Result<Exactness> {
        let classes = [Exactness::Bitwise, Exactness::Rounding, Exactness::Lossy];
        let found = classes.into_iter().find(|c| class_name(*c) == self.allow);
        found.ok_or_else(|| {
            let known = classes.map(class_name);
            Error::unknown(
                "class",
                &self.allow,
                known,
                "write bitwise, rounding or lossy",
            )
        })
    }
}

fn missing(flag: &str, example: &str) -> Error {
    let why = "there is no plan without it";
    Error::value("missing argument", flag, why, format!("give it, {example}"))
}
