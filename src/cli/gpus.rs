//! `memfit gpus`: a job on every device of the catalogue, with speed, energy and cost.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use memfit::error::{Error, Result};
use memfit::search::market::{self, Key, Offer, Question};
use memfit::show::market::{Page, json, line, text};
use memfit::spec::device::Device;
use serde_json::{Value, json};

use super::cost::{CostArgs, amount};
use super::job::JobArgs;
use super::{Answer, DONE, MISFIT, complain, width};

/// Tokens that are reckoned with where none are given.
const TOKENS: u64 = 1_000_000_000;

/// The answer for programs.
const SHAPE: &str = "With --json: job; goal; tokens; kwh_price; carbon_g_per_kwh; devices [{id, name, vendor, memory, outcome: fits, misfit or refused; plan \
{name, choices, exactness, peak}, misfit {place, need, have, change, closest} and why, or null; step_seconds; tokens_per_second; hours; kwh; cost {watts, \
electricity, co2_kg, rent, purchase, break_even_runs, missing}, or null where no price is known; leads_by_price; leads_by_rent; executor; plan_only}]; \
left_out_without_price.";

/// Arguments of `gpus`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("gpu", |arg| arg.hide(true)))]
#[command(mut_arg("tokens", |arg| arg.help("Tokens to train, such as 500M, 1B or 2T: hours, energy and rent are of these [default: 1B]")))]
#[command(after_help = SHAPE)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    cost: CostArgs,
    /// Only devices that can be bought for so much: by the lowest price known of today, or else by the launch price
    #[arg(long, value_name = "USD")]
    max_price: Option<f64>,
    /// Only devices of this vendor: NVIDIA, AMD, Apple or Intel
    #[arg(long, value_name = "NAME")]
    vendor: Option<String>,
    /// What the devices are put in order by
    #[arg(long, value_enum, value_name = "KEY", default_value = "speed")]
    sort: Sort,
}

/// What devices are put in order by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Tokens a second, the most first.
    Speed,
    /// The price of the device, the least first.
    Price,
    /// The rent of the job, the least first.
    Rent,
    /// The energy of the job, the least first.
    Energy,
    /// The memory of the device, the least first.
    Memory,
    /// The device's name.
    Name,
}

impl From<Sort> for Key {
    fn from(sort: Sort) -> Key {
        match sort {
            Sort::Speed => Key::Speed,
            Sort::Price => Key::Price,
            Sort::Rent => Key::Rent,
            Sort::Energy => Key::Energy,
            Sort::Memory => Key::Memory,
            Sort::Name => Key::Name,
        }
    }
}

/// Plans the job for every device, with each row on the error stream as it is ready, and answers with all in order.
///
/// # Errors
/// Where the job is wrong for every device, or an argument cannot be read.
pub fn gpus(args: &Args, quiet: bool) -> Result<Answer> {
    if let Some(gpu) = &args.job.gpu {
        let next = format!(
            "ask about one with `memfit plan --gpu {gpu}`, or choose by --vendor and --max-price"
        );
        return Err(Error::value(
            "--gpu",
            gpu,
            "`gpus` asks about every device",
            next,
        ));
    }
    amount("--max-price", args.max_price, "2000")?;
    let (goal, mut tariff) = (args.cost.goal()?, args.cost.tariff()?);
    tariff.tokens = tariff.tokens.or(Some(TOKENS));
    let (devices, unpriced) = market::devices(args.vendor.as_deref(), args.max_price)?;
    let questions = devices.iter().map(|device| question(args, device));
    let questions = questions.collect::<Vec<Question>>();
    let ready = rows(devices.len(), quiet);
    let mut offers = market::survey(questions, goal, &tariff, &ready)?;
    market::sort(&mut offers, args.sort.into());
    let (words, job) = asked(args)?;
    let page = Page {
        job: &words,
        goal,
        tariff: &tariff,
        offers: &offers,
        unpriced: &unpriced,
    };
    let any = offers.iter().any(|offer| offer.plan().is_some());
    Ok(Answer {
        text: text(&page, width()),
        json: json(&page, job),
        status: if any { DONE } else { MISFIT },
    })
}

/// The job on a device, as `plan` would be asked.
fn question(args: &Args, device: &Device) -> Question {
    let mut job = args.job.clone();
    job.gpu = Some(device.id.clone());
    Question {
        device: device.clone(),
        request: job.request().map(|(request, _)| request),
    }
}

/// The job without a device, in words and for programs.
fn asked(args: &Args) -> Result<(String, Value)> {
    let job = &args.job;
    let model = job.model()?;
    let seq = job.positions(&model)?;
    let (batch, optimizer) = (
        job.batch.unwrap_or(1),
        job.optimizer.as_deref().unwrap_or("adamw"),
    );
    let precision = job.precision.as_deref();
    let format = precision.unwrap_or("the best format of the device");
    let words = format!("{model}: {batch} x {seq} tokens a step in {format}, {optimizer}");
    let job = json!({
        "model": model,
        "seq": seq,
        "batch": batch,
        "precision": precision,
        "optimizer": optimizer,
        "fix": job.fix,
        "allow": job.allow,
    });
    Ok((words, job))
}

/// Shows rows as they are ready, and on a terminal how many there are still to be.
fn rows(count: usize, quiet: bool) -> impl Fn(&Offer) + Sync {
    let terminal = std::io::stderr().is_terminal();
    let bar = match quiet || !terminal {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(count as u64),
    };
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} devices");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    move |offer: &Offer| {
        match terminal {
            true => bar.println(line(offer)),
            false if quiet => {}
            false => complain(&format!("{}\n", line(offer))),
        }
        bar.inc(1);
        if bar.position() >= count as u64 {
            bar.finish_and_clear();
        }
    }
}
