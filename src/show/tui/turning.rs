//! Dials of rows: what a step up or down makes of the settings.

use super::dial;
use super::rows::{Row, argument, declared};
use super::settings::{Engine, Settings};
use crate::error::Result;
use crate::show::choice::class_name;
use crate::spec::catalog;
use crate::spec::device;
use crate::spec::job::{Exactness, Precision};
use crate::spec::torch::{Attn, Checkpointing, TorchDtype, TorchLoss, TorchOptimizer};
use crate::spec::units::{Bytes, parse_size};

impl Row {
    /// Turns a dial by a step.
    ///
    /// # Errors
    /// Where there is no such value.
    pub fn turn(self, settings: &mut Settings, up: bool) -> Result<()> {
        match self {
            Row::Heading(_) | Row::Model => Ok(()),
            Row::Engine => switch_engine(settings),
            Row::Device => turn_device(settings, up),
            Row::Within => turn_within(settings, up),
            Row::Host(name) => turn_host(settings, name, up),
            Row::Batch => {
                let next = dial::whole(settings.job.batch, up);
                settings.job.batch = next.unwrap_or(1).max(1);
                Ok(())
            }
            Row::Length => {
                let longest = catalog::open(&settings.job.model)?.max_positions;
                let next = dial::whole(settings.job.seq, up).unwrap_or(1);
                settings.job.seq = next.clamp(1, longest);
                Ok(())
            }
            Row::Precision => turn_precision(settings, up),
            Row::Allow => {
                let all = [Exactness::Bitwise, Exactness::Rounding, Exactness::Lossy];
                let names = all.map(class_name);
                let next = dial::turned(&names, class_name(settings.allow), up);
                let found = all.into_iter().find(|c| class_name(*c) == next);
                settings.allow = found.unwrap_or(settings.allow);
                Ok(())
            }
            Row::Open(_) if !up => Ok(()),
            Row::Open(_) => self.switch(settings),
            Row::Fixed(_) if up => Ok(()),
            Row::Fixed(_) => self.switch(settings),
            Row::Argument(at, key) => turn_argument(settings, at, key, up),
            Row::Option(key) => turn_option(settings, key, up),
        }
    }
}

fn switch_engine(settings: &mut Settings) -> Result<()> {
    settings.engine = match settings.engine {
        Engine::Memfit => Engine::Torch,
        Engine::Torch => Engine::Memfit,
    };
    Ok(())
}

fn turn_device(settings: &mut Settings, up: bool) -> Result<()> {
    let now = settings.job.gpu.clone();
    if parse_size("device", &now).is_ok() {
        let next = dial::along(dial::CARDS, &now, up);
        return next.map_or(Ok(()), |next| settings.set_device(next));
    }
    let ids: Vec<&str> = device::all().map(|d| d.id.as_str()).collect();
    let id = settings.device()?.id;
    settings.set_device(dial::turned(&ids, &id, up))
}

fn turn_within(settings: &mut Settings, up: bool) -> Result<()> {
    let all = settings.device()?.budget();
    let now = settings.within.unwrap_or(all).0;
    let unit = if all.0 > 4 << 30 { 1u64 << 30 } else { 1 << 20 };
    let next = match up {
        true => now / unit + 1,
        false => now.div_ceil(unit).saturating_sub(1).max(1),
    };
    settings.within = Some(Bytes(next * unit)).filter(|next| *next < all);
    Ok(())
}

fn turn_host(settings: &mut Settings, name: &str, up: bool) -> Result<()> {
    let (list, given, assumed) = match name {
        "ram" => (dial::RAMS, &settings.host.ram, "128GB".to_string()),
        "disk" => (dial::DISKS, &settings.host.disk, "1TB".to_string()),
        _ => {
            let own = settings.device()?.link;
            (dial::LINKS, &settings.host.link, format!("{own:.0}B/s"))
        }
    };
    let now = given.clone().unwrap_or(assumed);
    let next = dial::along(list, &now, up).map(str::to_string);
    next.map_or(Ok(()), |next| settings.set_host(name, Some(next)))
}

fn turn_precision(settings: &mut Settings, up: bool) -> Result<()> {
    let device = settings.device()?;
    let has = Precision::ALL
        .into_iter()
        .filter(|p| p.check(&device).is_ok());
    let has: Vec<&str> = has.map(Precision::name).collect();
    let next = dial::turned(&has, settings.job.precision.name(), up);
    settings.job.precision = next.parse()?;
    Ok(())
}

fn turn_argument(settings: &mut Settings, at: usize, key: &str, up: bool) -> Result<()> {
    let Some(declared) = declared(settings, at, key) else {
        return Ok(());
    };
    let now = argument(settings, at, key);
    if let Some(next) = dial::next(&declared, &now, up) {
        let args = &mut settings.fixed[at].args.0;
        match next == declared.default {
            true => args.remove(key),
            false => args.insert(key.to_string(), next),
        };
    }
    Ok(())
}

/// The values an option goes through; it is open before the first.
fn option_values(key: &str) -> Vec<&'static str> {
    let names = |first: &[&'static str], rest: Vec<&'static str>| [first, &rest].concat();
    match key {
        "checkpointing" => Checkpointing::ALL.iter().map(|v| v.name()).collect(),
        "optimizer" => TorchOptimizer::ALL.iter().map(|v| v.name()).collect(),
        "param_dtype" => TorchDtype::ALL.iter().map(|v| v.name()).collect(),
        "autocast" => names(
            &["none"],
            TorchDtype::ALL.iter().skip(1).map(|v| v.name()).collect(),
        ),
        "attn" => Attn::ALL.iter().map(|v| v.name()).collect(),
        "loss" => TorchLoss::ALL.iter().map(|v| v.name()).collect(),
        "lora" => vec!["none", "4", "8", "16", "32", "64", "128"],
        "quant" => vec!["none", "nf4"],
        "grad_accum" => vec!["1", "2", "4", "8", "16", "32"],
        _ => vec!["false", "true"],
    }
}

fn turn_option(settings: &mut Settings, key: &str, up: bool) -> Result<()> {
    let values = option_values(key);
    let mut round = vec![""];
    round.extend(&values);
    let now = settings.torch.get(key).map_or("", String::as_str);
    match dial::turned(&round, now, up) {
        "" => settings.open_option(key),
        next => settings.decide_option(key, next),
    }
    Ok(())
}
