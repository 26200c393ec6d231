//! Published measurements: architecture, setting and counter in the words of their sources.

use serde_json::Value;

use super::arch::{self, Arch};
use super::figure::Figure;
use super::record::{Fields, Reason, Refusal};
use super::timed::timed;
use super::vocabulary::{self as words, Offload, Precision, Update, meaning};
use super::{Case, Target};
use crate::spec::model::{Head, ModelSpec};
use crate::spec::torch::{
    AdapterDtype, Checkpointing, Lora, Quant, QuantType, Task, TorchDtype, TorchLoss, TorchOptions,
};
use crate::spec::units::Bytes;

/// Taken where a record gives neither batch nor length: the recipe's defaults (torchtune, single device).
const RECIPE: (u64, u64) = (2, 512);
/// Taken for adapters whose rank is not stated.
const LEAST_RANK: u64 = 1;
/// More parameters than any model has.
const MOST_PARAMS: u64 = 1 << 50;
/// More memory than any machine has, GiB.
const MOST_GIB: f64 = 1e6;

/// The case of a record.
pub(super) fn case(line: usize, id: &str, fields: &Fields) -> Result<Case, Refusal> {
    let mut assumed: Vec<String> = fields.opt("assumed")?.unwrap_or_default();
    for a in &mut assumed {
        *a = format!("the record itself assumes: {a}");
    }
    let precision = word(fields, "precision", words::PRECISIONS, &mut assumed)?;
    in_scope(fields, &precision)?;
    let arch: Arch = fields.need("arch")?;
    let name: String = fields.need("model")?;
    let (batch, seq) = sizes(fields, &mut assumed)?;
    let source: String = fields.opt("source")?.unwrap_or_default();
    let practice = words::practice(&source, &mut assumed);
    let (model, notes) = arch::model(&name, &arch, seq, practice.joined_heads)?;
    assumed.extend(notes);
    let update = word(fields, "optimizer", words::OPTIMIZERS, &mut assumed)?;
    let offload =
        optional(fields, "offload", words::OFFLOADS, &mut assumed)?.unwrap_or(Offload::Nothing);
    let mut options = options(fields, &precision, &update, &mut assumed)?;
    (options.batch, options.seq, options.activation_offload) =
        (batch, seq, offload == Offload::Activations);
    options.task = match model.head {
        Head::MaskedLm => Task::MaskedLm,
        _ => options.task,
    };
    let quantized = options.quant.is_some();
    let mut figure = figure(fields, practice.unnamed, &mut assumed)?;
    elsewhere(&mut figure, &practice, &update, (offload, quantized));
    match adapter(fields, &model, &precision, practice.dropout, &mut assumed)? {
        Some((lora, trained)) => {
            options.lora = Some(lora);
            figure.beside += trained;
            // The roots of the second moments, a fourth of copy, gradient and moments (foreach AdamW).
            figure.in_update = Bytes(trained.0 / 4);
        }
        None => {
            let trained = params(fields, &arch)?;
            figure.beside += Bytes(trained.saturating_mul(update.beside));
            figure.in_update = Bytes(trained.saturating_mul(update.in_update));
        }
    }
    practised(&mut options, &practice, &update, &precision);
    let options = checked(&options)?;
    let on_host = update.on_host.then(|| params(fields, &arch));
    let on_host = on_host.transpose()?.unwrap_or(0);
    let timed = timed(fields, &options, &practice, on_host, &mut assumed)?;
    Ok(Case {
        timed,
        line,
        id: id.to_string(),
        model,
        options,
        target: Target::Published {
            interval: interval(fields)?,
            figure,
        },
        assumed,
    })
}

/// What the source's sharding and its update hold beside the step, or elsewhere.
fn elsewhere(
    figure: &mut Figure,
    practice: &words::Practice,
    update: &words::Update,
    (offload, quantized): (Offload, bool),
) {
    if practice.zero && quantized {
        figure.zero = true;
        figure.beside += words::ZERO_BUCKETS;
    }
    figure.gradients_die = update.in_backward;
    figure.state_elsewhere = update.elsewhere || offload == Offload::State;
}

/// The options as the source's own code sets them.
fn practised(
    options: &mut TorchOptions,
    practice: &words::Practice,
    update: &Update,
    precision: &Precision,
) {
    options.clip_grad_norm = practice.clip.filter(|_| !update.in_backward);
    options.set_to_none = practice.set_to_none;
    if practice.autocast_lora && options.lora.is_some() && precision.weights == TorchDtype::Bf16 {
        options.autocast = Some(TorchDtype::Bf16);
        options.convert_outputs_fp32 = true;
    }
    if practice.habits.shifted_logits {
        // Qwen's own class takes the cross entropy of the logits as they are.
        options.loss = TorchLoss::NoUpcast;
    }
    options.habits = practice.habits;
}

/// The same options, if no two of them exclude each other.
fn checked(options: &TorchOptions) -> Result<TorchOptions, Reason> {
    let written = serde_json::to_value(options).map_err(|e| e.to_string())?;
    let read = TorchOptions::from_json(&written).map_err(|e| e.to_string())?;
    Ok(TorchOptions {
        habits: options.habits,
        ..read
    })
}

/// Refuses what one GPU running PyTorch as it is cannot tell.
fn in_scope(fields: &Fields, precision: &Precision) -> Result<(), Refusal> {
    let gpus: u64 = fields.need("n_gpus")?;
    let compiled = optional(fields, "compile", words::COMPILES, &mut Vec::new())?;
    let no_arch = fields.opt::<Value>("arch")?.is_none();
    let why = match () {
        _ if gpus == 0 => return Err(Refusal::Bad("the field `n_gpus` is 0".into())),
        _ if gpus > 1 => format!("more than one GPU ({gpus})"),
        _ if compiled == Some(true) => "torch.compile".into(),
        _ if precision.float8 => "float8".into(),
        _ if no_arch => "no `arch`".into(),
        _ => return Ok(()),
    };
    Err(Refusal::Scope(why))
}

/// The meaning of a field that has to be there.
fn word<T: Copy>(
    fields: &Fields,
    key: &str,
    table: &[words::Word<T>],
    assumed: &mut Vec<String>,
) -> Result<T, Reason> {
    meaning(key, &fields.need::<String>(key)?, table, assumed)
}

/// The meaning of a field that may be missing.
fn optional<T: Copy>(
    fields: &Fields,
    key: &str,
    table: &[words::Word<T>],
    assumed: &mut Vec<String>,
) -> Result<Option<T>, Reason> {
    let text: Option<String> = fields.opt(key)?;
    text.map(|text| meaning(key, &text, table, assumed))
        .transpose()
}

fn sizes(fields: &Fields, assumed: &mut Vec<String>) -> Result<(u64, u64), Reason> {
    let mut size = |key: &str, usual: u64| {
        let given: Option<u64> = fields.opt(key)?;
        if given.is_none() {
            assumed.push(format!("{key} {usual}, the recipe's default"));
        }
        Ok::<u64, Reason>(given.unwrap_or(usual))
    };
    Ok((size("micro_batch", RECIPE.0)?, size("seq_len", RECIPE.1)?))
}

fn options(
    fields: &Fields,
    precision: &Precision,
    update: &Update,
    assumed: &mut Vec<String>,
) -> Result<TorchOptions, Reason> {
    let checkpointing = word(fields, "checkpointing", words::CHECKPOINTINGS, assumed)?;
    let forward_only = fields.opt::<String>("task")?.as_deref() == Some("zeroth_order");
    let attn = optional(fields, "attention", words::ATTENTIONS, assumed)?;
    if attn.is_none() {
        assumed.push("attention: SDPA".into());
    }
    let quant = optional(fields, "quant", words::QUANTS, assumed)?.flatten();
    let other = fields.opt::<Value>("other")?.unwrap_or_default();
    let double = other.get("double_quant").and_then(Value::as_bool);
    let plain = TorchOptions::default();
    Ok(TorchOptions {
        param_dtype: precision.weights,
        autocast: precision.autocast,
        attn: attn.unwrap_or(plain.attn),
        checkpointing: if forward_only {
            Checkpointing::Full
        } else {
            checkpointing
        },
        optimizer: update.optimizer,
        optimizer_impl: update.kind,
        optimizer_in_backward: update.in_backward,
        grad_accum: fields.opt("grad_accum")?.unwrap_or(1),
        loss: optional(fields, "loss", words::LOSSES, assumed)?.unwrap_or(TorchLoss::Hf),
        quant: quant.map(|usual| Quant {
            kind: QuantType::Nf4,
            double: double.unwrap_or(usual),
            prepare_kbit: precision.prepare_kbit,
        }),
        ..plain
    })
}

/// The adapters of a record, and the bytes of what is trained beside them.
fn adapter(
    fields: &Fields,
    model: &ModelSpec,
    precision: &Precision,
    dropout: f64,
    assumed: &mut Vec<String>,
) -> Result<Option<(Lora, Bytes)>, Reason> {
    let prefix = fields.opt::<String>("task")?.as_deref() == Some("prefix");
    let Some(given) = fields
        .opt_object("adapter")?
        .filter(|given| !given.0.is_empty())
    else {
        let none = || {
            lora(
                LEAST_RANK,
                &[arch::Part::Key, arch::Part::Value],
                model,
                precision,
                dropout,
            )
        };
        if prefix {
            assumed.push("prefixes: predicted as adapters of rank 1 on keys and values".into());
        }
        return Ok(prefix.then(|| (none(), Bytes::ZERO)));
    };
    if let Some(kind) = given.opt::<String>("type")?.filter(|kind| kind != "lora") {
        assumed.push(format!(
            "adapter `{kind}`: predicted as low-rank adapters on queries and values"
        ));
    }
    let rank: Option<u64> = given.opt("rank")?;
    if rank.is_none() {
        assumed.push(format!("adapters of rank {LEAST_RANK}"));
    }
    let parts = match given.opt::<Value>("targets")? {
        None => vec![arch::Part::Query, arch::Part::Value],
        Some(Value::String(text)) => meaning("targets", &text, words::TARGETS, assumed)?.to_vec(),
        Some(_) => {
            let mut parts = Vec::new();
            for name in given.need::<Vec<String>>("targets")? {
                parts.extend_from_slice(meaning("targets", &name, words::TARGETS, assumed)?);
            }
            parts
        }
    };
    let lora = lora(
        rank.unwrap_or(LEAST_RANK),
        &parts,
        model,
        precision,
        dropout,
    );
    Ok(Some((
        lora,
        whole_modules(&given, model, precision, assumed)?,
    )))
}

fn lora(
    rank: u64,
    parts: &[arch::Part],
    model: &ModelSpec,
    precision: &Precision,
    dropout: f64,
) -> Lora {
    let mut targets: Vec<String> = Vec::new();
    for name in parts.iter().filter_map(|part| part.name(model.family)) {
        if !targets.iter().any(|known| known == name) {
            targets.push(name.to_string());
        }
    }
    Lora {
        r: rank,
        alpha: rank.saturating_mul(2).max(1),
        dropout,
        targets,
        adapter_dtype: match precision.wide_adapters {
            true => AdapterDtype::Fp32,
            false => AdapterDtype::Base,
        },
    }
}

/// Modules trained whole beside adapters: a copy of each matrix, its gradient and two moments in the weights' type.
fn whole_modules(
    given: &Fields,
    model: &ModelSpec,
    precision: &Precision,
    assumed: &mut Vec<String>,
) -> Result<Bytes, Reason> {
    let modules: Vec<String> = given.opt("modules_to_save")?.unwrap_or_default();
    if modules.is_empty() {
        return Ok(Bytes::ZERO);
    }
    assumed.push(
        "modules trained whole: copy, gradient and two moments, beside the prediction".into(),
    );
    let matrix = model
        .vocab
        .saturating_mul(model.hidden)
        .saturating_mul(precision.weights.size());
    let all = matrix
        .saturating_mul(4)
        .saturating_mul(modules.len() as u64);
    Ok(Bytes(all.min(1 << 60)))
}

/// Parameters of a record's model.
fn params(fields: &Fields, arch: &Arch) -> Result<u64, Reason> {
    let billions: Option<f64> = fields.opt("params_b")?;
    let stated = billions.filter(|b| b.is_finite() && *b > 0.0 && *b < MOST_GIB);
    let stated = stated.map(|b| (b * 1e9) as u64);
    let computed = arch.params_computed.filter(|count| *count < MOST_PARAMS);
    Ok(computed.or(stated).unwrap_or(0))
}

fn figure(
    fields: &Fields,
    unnamed: super::Counter,
    assumed: &mut Vec<String>,
) -> Result<Figure, Reason> {
    let counter = match fields.opt_object("metric")? {
        Some(metric) => match metric.need::<String>("counter")?.as_str() {
            "unspecified" => {
                let name = unnamed.name();
                assumed.push(format!("the counter is not named: {name}"));
                (unnamed, true)
            }
            _ => word(&metric, "counter", words::COUNTERS, assumed)?,
        },
        None => (super::Counter::Allocated, true),
    };
    let context = match fields.opt_object("extra_memory")? {
        Some(extra) => extra_mib(&extra)?,
        None => None,
    };
    let gpu: String = fields.opt("gpu")?.unwrap_or_default();
    let mut figure = Figure::new(counter.0, &gpu, context);
    if !counter.1 {
        figure.beside = Bytes::ZERO;
        figure.parts = true;
    }
    if counter.0 == super::Counter::Process && context.is_none() {
        assumed.push(format!("the process's context: {}", figure.context));
    }
    Ok(figure)
}

/// The context as the record has it: a number of MiB, or the number's text.
fn extra_mib(extra: &Fields) -> Result<Option<Bytes>, Reason> {
    let mib = match extra.opt::<Value>("cuda_context_mib")? {
        Some(Value::String(text)) => text.parse().ok(),
        Some(value) => value.as_f64(),
        None => None,
    };
    let bytes = mib.filter(|mib: &f64| (0.0..MOST_GIB).contains(mib));
    Ok(bytes.map(|mib| Bytes((mib * f64::from(1 << 20)) as u64)))
}

/// The published figure in bytes, from the least to the most it can be.
fn interval(fields: &Fields) -> Result<Option<(Bytes, Bytes)>, Reason> {
    let Some(memory) = fields.opt_object("memory")? else {
        return Ok(None);
    };
    let (least, most): (f64, f64) = (memory.need("gib_min")?, memory.need("gib_max")?);
    if !(least > 0.0 && least <= most && most < MOST_GIB) {
        return Err(format!(
            "the field `memory`: {least} to {most} GiB is no interval"
        ));
    }
    let bytes = |gib: f64| Bytes((gib * f64::from(1 << 30)).round().max(1.0) as u64);
    Ok(Some((bytes(least), bytes(most))))
}
