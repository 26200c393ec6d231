//! The rows at the left: what each shows, and what becomes of the settings where it is turned, switched or typed over.

use std::collections::BTreeSet;

use super::dial;
use super::settings::{Engine, Settings, card};
use crate::error::{Error, Result};
use crate::plan::Choice;
use crate::show::choice::{class_name, sentence};
use crate::spec::job::Host;
use crate::spec::units::{Bytes, parse_size, show_rate};
use crate::technique::{Argument, Site, TECHNIQUES};

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// A title.
    Heading(&'static str),
    /// Who trains.
    Engine,
    /// The model.
    Model,
    /// The device.
    Device,
    /// The most of it that may be taken.
    Within,
    /// A value of the machine, by its name in plan files.
    Host(&'static str),
    /// Sequences of a step.
    Batch,
    /// Tokens of a sequence.
    Length,
    /// The number format.
    Precision,
    /// How far choices may change results.
    Allow,
    /// A technique that is not decided.
    Open(&'static str),
    /// A technique that is decided: its number among those.
    Fixed(usize),
    /// An argument of a decided technique.
    Argument(usize, &'static str),
    /// An option of PyTorch.
    Option(&'static str),
}

/// What a row shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown {
    /// A switch, or nothing.
    pub mark: &'static str,
    /// Its name.
    pub label: String,
    /// Its value.
    pub value: String,
}

/// The groups of techniques, by what of a step they change.
const GROUPS: [(Site, &str); 5] = [
    (Site::Gap, "bytes between uses"),
    (Site::Draft, "how a step is made up"),
    (Site::Forward, "forward pass, adapters"),
    (Site::Update, "update rule"),
    (Site::Step, "no backward pass"),
];

/// Options of PyTorch that have a row, with what they mean.
const OPTIONS: [(&str, &str); 11] = [
    (
        "checkpointing",
        "what of a layer is computed again in the backward pass",
    ),
    (
        "activation_offload",
        "saved activations in host memory (save_on_cpu)",
    ),
    (
        "grad_accum",
        "micro-batches of a step; batch is then what each takes",
    ),
    ("optimizer", "the update rule"),
    ("param_dtype", "the type weights are stored in"),
    (
        "autocast",
        "the type of torch.autocast around forward and loss",
    ),
    ("attn", "attn_implementation"),
    ("loss", "how the loss is computed"),
    ("lora", "rank of low-rank adapters on every linear layer"),
    ("quant", "a frozen base in 4 bits"),
    (
        "optimizer_in_backward",
        "each parameter is updated as soon as its gradient is there",
    ),
];

/// All rows of some settings.
pub fn rows(settings: &Settings) -> Vec<Row> {
    let mut rows = vec![
        Row::Heading("job"),
        Row::Engine,
        Row::Model,
        Row::Device,
        Row::Batch,
        Row::Length,
        Row::Precision,
        Row::Allow,
    ];
    if settings.engine == Engine::Torch {
        rows.push(Row::Heading("options of PyTorch"));
        rows.extend(OPTIONS.iter().map(|(key, _)| Row::Option(key)));
        return rows;
    }
    rows.push(Row::Heading("machine"));
    rows.push(Row::Within);
    rows.extend(["ram", "link", "disk"].map(Row::Host));
    for (site, title) in GROUPS {
        rows.push(Row::Heading(title));
        let cards = TECHNIQUES
            .iter()
            .map(|t| t.card())
            .filter(|c| c.site == site);
        for card in cards {
            let decided = settings.fixed.iter().enumerate();
            let mut decided = decided.filter(|(_, c)| c.technique == card.name).peekable();
            if decided.peek().is_none() {
                rows.push(Row::Open(card.name));
            }
            for (at, _) in decided {
                rows.push(Row::Fixed(at));
                rows.extend(card.arguments.iter().map(|a| Row::Argument(at, a.key)));
                rows.push(Row::Argument(at, SITE));
            }
        }
    }
    rows
}

/// The key that says where a technique is used.
const SITE: &str = "site";

impl Row {
    /// What it shows; `used` names what the plan that is known uses.
    pub fn shown(self, settings: &Settings, used: &BTreeSet<String>) -> Shown {
        let job = &settings.job;
        match self {
            Row::Heading(title) => plain(title, String::new()),
            Row::Engine => plain("engine", engine_name(settings.engine)),
            Row::Model => plain("model", job.model.clone()),
            Row::Device => plain("device", job.gpu.clone()),
            Row::Within => {
                let all = settings.device().map_or(Bytes::ZERO, |d| d.budget());
                let own = settings.within.map(|w| w.to_string());
                plain("within", own.unwrap_or_else(|| format!("({all})")))
            }
            Row::Host(name) => plain(host_label(name), host_value(settings, name)),
            Row::Batch => plain("batch", job.batch.to_string()),
            Row::Length => plain("length", job.seq.to_string()),
            Row::Precision => plain("precision", job.precision.name()),
            Row::Allow => plain("results", class_name(settings.allow)),
            Row::Open(name) => Shown {
                mark: if used.contains(name) { "[+]" } else { "[ ]" },
                label: name.to_string(),
                value: String::new(),
            },
            Row::Fixed(at) => Shown {
                mark: "[x]",
                label: settings.fixed[at].technique.clone(),
                value: String::new(),
            },
            Row::Argument(at, key) => plain(&format!("    {key}"), argument(settings, at, key)),
            Row::Option(key) => option(settings, key, used),
        }
    }

    /// What it means.
    pub fn detail(self, settings: &Settings) -> String {
        match self {
            Row::Heading(_) => String::new(),
            Row::Engine => {
                "who trains: memfit's own executor, or PyTorch with Hugging Face code".into()
            }
            Row::Model => "a name, or the path of a config.json or a .gguf; enter searches".into(),
            Row::Device => device_detail(settings),
            Row::Within => {
                "most of the device that a plan may take; f walks along the front".into()
            }
            Row::Host("ram") => "memory of the machine; in ( ) what is assumed".into(),
            Row::Host("link") => {
                "rate between host and device, each way; in ( ) the device's own".into()
            }
            Row::Host(_) => "free disk; in ( ) what is assumed".into(),
            Row::Batch => "sequences of a step".into(),
            Row::Length => "tokens of a sequence".into(),
            Row::Precision => "number format of weights in use and of activations".into(),
            Row::Allow => "how far the search may change results on its own".into(),
            Row::Open(name) => card(name).map_or(String::new(), |card| {
                format!("{} ({})", card.summary, class_name(card.exactness))
            }),
            Row::Fixed(at) => sentence(&settings.fixed[at]),
            Row::Argument(_, SITE) => {
                "where, as a pattern over paths such as layers.0-11/mlp; * is everywhere".into()
            }
            Row::Argument(at, key) => declared(settings, at, key).map_or(String::new(), |a| {
                format!("{} (default {})", a.meaning, a.default)
            }),
            Row::Option(key) => {
                let found = OPTIONS.iter().find(|(k, _)| *k == key);
                found.map_or(String::new(), |(_, meaning)| meaning.to_string())
            }
        }
    }

    /// Switches it on or off, or to its next value.
    ///
    /// # Errors
    /// Where there is no such value.
    pub fn switch(self, settings: &mut Settings) -> Result<()> {
        match self {
            Row::Open(name) => {
                settings.fix(Choice::new(name, "*", &[]));
                Ok(())
            }
            Row::Fixed(at) => {
                settings.fixed.remove(at);
                Ok(())
            }
            other => other.turn(settings, true),
        }
    }

    /// Puts it back to what it is where nobody says anything.
    pub fn reset(self, settings: &mut Settings) -> Result<()> {
        match self {
            Row::Fixed(_) => self.switch(settings),
            Row::Argument(at, SITE) => {
                settings.fixed[at].site = "*".to_string();
                Ok(())
            }
            Row::Argument(at, key) => {
                settings.fixed[at].args.0.remove(key);
                Ok(())
            }
            Row::Option(key) => {
                settings.open_option(key);
                Ok(())
            }
            Row::Within => {
                settings.within = None;
                Ok(())
            }
            Row::Host(name) => settings.set_host(name, None),
            _ => Ok(()),
        }
    }

    /// Whether a value can be typed over it.
    pub fn is_typed(self, settings: &Settings) -> bool {
        match self {
            Row::Device | Row::Within | Row::Host(_) | Row::Batch | Row::Length => true,
            Row::Argument(_, SITE) => true,
            Row::Argument(at, key) => {
                declared(settings, at, key).is_some_and(|a| dial::words(&a).is_empty())
            }
            Row::Option(key) => matches!(key, "lora" | "grad_accum"),
            _ => false,
        }
    }

    /// Takes a typed value.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn typed(self, settings: &mut Settings, text: &str) -> Result<()> {
        let text = text.trim();
        let number = |what| {
            let next = "write a whole number above zero";
            let read = text.parse::<u64>().ok().filter(|n| *n > 0);
            read.ok_or_else(|| Error::value(what, text, "not such a number", next))
        };
        match self {
            Row::Model => settings.set_model(text),
            Row::Device => settings.set_device(text),
            Row::Within => {
                settings.within = Some(parse_size("within", text)?.bytes);
                Ok(())
            }
            Row::Host(name) => settings.set_host(name, Some(text.to_string())),
            Row::Batch => number("batch").map(|n| settings.job.batch = n),
            Row::Length => number("length").map(|n| settings.job.seq = n),
            Row::Argument(at, SITE) => {
                crate::technique::Pattern::parse(text)?;
                settings.fixed[at].site = text.to_string();
                Ok(())
            }
            Row::Argument(at, key) => {
                let args = &mut settings.fixed[at].args.0;
                args.insert(key.to_string(), text.to_string());
                Ok(())
            }
            Row::Option(key) => {
                settings.decide_option(key, text);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn plain(label: &str, value: impl Into<String>) -> Shown {
    Shown {
        mark: "",
        label: label.to_string(),
        value: value.into(),
    }
}

fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Memfit => "memfit",
        Engine::Torch => "torch",
    }
}

fn host_label(name: &'static str) -> &'static str {
    match name {
        "ram" => "RAM",
        other => other,
    }
}

fn host_value(settings: &Settings, name: &str) -> String {
    let assumed = Host::default();
    let (given, assumed) = match name {
        "ram" => (&settings.host.ram, assumed.ram.to_string()),
        "disk" => (&settings.host.disk, assumed.disk.to_string()),
        _ => {
            let link = settings.device().map_or(0.0, |d| d.link);
            (&settings.host.link, show_rate(link))
        }
    };
    given.clone().unwrap_or_else(|| format!("({assumed})"))
}

fn device_detail(settings: &Settings) -> String {
    settings.device().map_or(String::new(), |device| {
        format!(
            "{}; a name, a size or a device file; enter searches",
            device.name
        )
    })
}

pub(super) fn declared(settings: &Settings, at: usize, key: &str) -> Option<Argument> {
    let card = card(&settings.fixed.get(at)?.technique).ok()?;
    card.arguments.iter().find(|a| a.key == key).copied()
}

pub(super) fn argument(settings: &Settings, at: usize, key: &str) -> String {
    let choice = &settings.fixed[at];
    if key == SITE {
        return choice.site.clone();
    }
    let own = choice.args.0.get(key).cloned();
    let default = || {
        declared(settings, at, key)
            .map_or("", |a| a.default)
            .to_string()
    };
    own.unwrap_or_else(default)
}

fn option(settings: &Settings, key: &str, used: &BTreeSet<String>) -> Shown {
    // An option inside another speaks for it: the rank for adapters, the type for a base in few bits.
    let own = |name: &str| {
        let member = name.strip_prefix(key);
        name == key || member.is_some_and(|rest| rest == ".r" || rest == ".type")
    };
    let chosen = settings.torch.iter().find(|(name, _)| own(name));
    let chosen = chosen.map(|(_, value)| value.clone());
    let of_plan = |pair: &String| {
        let (name, value) = pair.split_once('=')?;
        own(name).then(|| format!("({value})"))
    };
    let value = chosen.clone().or_else(|| used.iter().find_map(of_plan));
    Shown {
        mark: match (&chosen, &value) {
            (Some(_), _) => "[x]",
            (None, Some(_)) => "[+]",
            (None, None) => "[ ]",
        },
        label: key.to_string(),
        value: value.unwrap_or_default(),
    }
}
