//! `memfit estimate`: what exactly this job takes with PyTorch.

use std::fs;
use std::path::{Path, PathBuf};

use memfit::error::{Error, Result};
use memfit::machine::pytorch::{self, Outcome};
use memfit::program::caching_allocator::AllocatorConfig;
use memfit::show::pytorch::{DEFAULT, Page, json, text};
use memfit::spec::model::{Head, ModelSpec};
use memfit::spec::torch::{OptimizerImpl, Task, TorchOptimizer, TorchOptions};
use memfit::spec::trainer::{self, Note, Trainer};
use memfit::spec::{catalog, device};
use serde_json::{Map, Value};

use super::{Answer, DONE, MISFIT};

/// Arguments of `estimate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a name, or the path of a config.json, its folder, or a .gguf file [default: the one of --trainer]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The device it has to fit: a name, a size such as 24GB or 512MiB, or a device file
    #[arg(long, value_name = "DEVICE")]
    gpu: Option<String>,
    /// Options of the step, such as batch=4,seq=2048,autocast=bf16,checkpointing=full,lora.r=16; may be repeated
    #[arg(long, value_name = "KEY=VALUE,…")]
    torch: Vec<String>,
    /// The job as a trainer has it: TrainingArguments (JSON), LLaMA-Factory or Axolotl (YAML); --torch wins over it
    #[arg(long, value_name = "FILE")]
    trainer: Option<PathBuf>,
    /// The allocator's settings, as in PYTORCH_CUDA_ALLOC_CONF, such as expandable_segments:True
    #[arg(long, value_name = "KEY:VALUE,…", default_value = "")]
    alloc_conf: String,
}

/// Predicts the job and says whether it fits.
///
/// # Errors
/// Where the model, the device, an option or the file cannot be read, or the job is none PyTorch could run.
pub fn estimate(args: &Args) -> Result<Answer> {
    let mut file = args.trainer.as_deref().map(open).transpose()?;
    let model = model(args, file.as_ref())?;
    let device = args.gpu.as_deref().map(device::find).transpose()?;
    let mut given = file
        .as_mut()
        .map(|f| std::mem::take(&mut f.options))
        .unwrap_or_default();
    merge(&mut given, TorchOptions::pairs(&args.torch.join(","))?);
    let (options, usual) = settled(&model, given)?;
    let config = AllocatorConfig::parse(&args.alloc_conf)?;
    let answer = pytorch::answer(&model, &options, device.as_ref(), &config)?;
    let largest = device
        .as_ref()
        .map(|device| pytorch::largest(&model, &options, device, &config));
    let file = file.as_ref();
    let assumed: Vec<Note> = file
        .into_iter()
        .flat_map(|f| f.assumed.clone())
        .chain(usual)
        .collect();
    let page = Page {
        model: &model,
        options: &options,
        device: device.as_ref(),
        trainer: file.map(|f| f.kind.name()),
        answer: &answer,
        largest: largest.transpose()?,
        assumed: &assumed,
        ignored: file.map_or(&[], |f| &f.ignored),
        cannot: file.map_or(&[], |f| &f.cannot),
    };
    Ok(Answer {
        text: text(&page),
        json: json(&page),
        status: match answer.outcome {
            Outcome::Fits | Outcome::Unknown => DONE,
            Outcome::Close | Outcome::Misfit => MISFIT,
        },
    })
}

fn open(path: &Path) -> Result<Trainer> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let next = "give TrainingArguments as JSON, or the YAML file of LLaMA-Factory or Axolotl";
    let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "not text", next))?;
    trainer::parse(&path.display().to_string(), &text)
}

fn model(args: &Args, file: Option<&Trainer>) -> Result<ModelSpec> {
    let named = args.model.as_ref().or_else(|| file?.model.as_ref());
    let named = named.ok_or_else(|| {
        let why = "neither it nor the trainer's file names a model";
        let next = "give it, such as --model llama-3.1-8b";
        Error::value("missing argument", "--model", why, next)
    })?;
    catalog::open(named)
}

/// Lays `over` above `under`; members of adapters and of the 4-bit base one by one. Another optimizer comes in its own implementation.
fn merge(under: &mut Map<String, Value>, over: Map<String, Value>) {
    if over.contains_key("optimizer") {
        under.remove("optimizer_impl");
    }
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => below.extend(above),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// The options, and what was taken for those nobody gave.
fn settled(model: &ModelSpec, mut given: Map<String, Value>) -> Result<(TorchOptions, Vec<Note>)> {
    let named: Vec<String> = given.keys().cloned().collect();
    if model.head == Head::MaskedLm && !named.iter().any(|key| key == "task") {
        given.insert("task".into(), Task::MaskedLm.name().into());
    }
    if !named.iter().any(|key| key == "seq") {
        let seq = TorchOptions::default().seq.min(model.max_positions);
        given.insert("seq".into(), seq.into());
    }
    let members = |map: &Map<String, Value>, key: &str| match map.get(key) {
        Some(Value::Object(inner)) => inner.keys().cloned().collect(),
        _ => Vec::new(),
    };
    let inner = ["lora", "quant"].map(|key| (key, members(&given, key)));
    let targets = inner[0].1.iter().any(|key| key == "targets");
    let mut options = TorchOptions::from_json(&Value::Object(given))?;
    pytorch::settle_targets(model, &mut options, targets)?;
    let all = serde_json::to_value(&options).unwrap_or_default();
    let mut assumed = unnamed("", &all, &named);
    for (key, named) in inner {
        assumed.extend(unnamed(&format!("{key}."), &all[key], &named));
    }
    assumed.extend(refused(&options));
    Ok((options, assumed))
}

/// What PyTorch would refuse on a GPU, and is predicted all the same.
fn refused(options: &TorchOptions) -> Option<Note> {
    let is_refused = (options.optimizer, options.optimizer_impl)
        == (TorchOptimizer::Adagrad, OptimizerImpl::Fused);
    is_refused.then(|| Note {
        field: "optimizer_impl".into(),
        value: options.optimizer_impl.name().into(),
        why: "PyTorch 2.10 refuses fused Adagrad on CUDA: predicted as if it ran".into(),
    })
}

/// The members of an object that nobody named.
fn unnamed(prefix: &str, all: &Value, named: &[String]) -> Vec<Note> {
    let members = all.as_object().into_iter().flatten();
    let open = members.filter(|(key, _)| !named.contains(key));
    let note = |(key, value): (&String, &Value)| Note {
        field: format!("{prefix}{key}"),
        value: value.clone(),
        why: DEFAULT.to_string(),
    };
    open.map(note).collect()
}
