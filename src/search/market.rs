//! A job on every device of a list: whether it fits, by which plan, how fast, what it costs, and which devices nobody beats.

use rayon::prelude::*;

use super::goal::{self, Goal};
use super::{Candidate, Misfit, Outcome};
use crate::error::{Error, Result};
use crate::machine::{executor, lowered};
use crate::plan::Request;
use crate::spec::cost::{self, Cost, Priced, Tariff};
use crate::spec::device::{self, Device};
use crate::spec::job::{Backend, Precision};

/// A device, with the job as it would be asked there.
#[derive(Debug)]
pub struct Question {
    /// The device.
    pub device: Device,
    /// The job on it; refused where the device cannot compute it.
    pub request: Result<Request>,
}

/// A device, and what the job would be on it.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The device.
    pub device: Device,
    /// What was found.
    pub found: Verdict,
    /// What it costs, where the job fits.
    pub cost: Option<Cost>,
    /// Whether no device that can be bought for as little or less is as fast.
    pub leads_by_price: bool,
    /// Whether no device that is rented for as little or less trains the tokens as fast.
    pub leads_by_rent: bool,
}

/// Whether a job fits a device.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// By this plan.
    Fits(Box<Candidate>),
    /// It does not.
    Misfit(Box<Misfit>),
    /// It cannot be asked.
    Refused(String),
}

/// What offers are put in order by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Tokens a second, the most first.
    Speed,
    /// What the device costs to buy, the least first.
    Price,
    /// What the job costs in rent, the least first.
    Rent,
    /// Energy of the job, the least first.
    Energy,
    /// Memory of the device, the least first.
    Memory,
    /// Its name.
    Name,
}

impl Offer {
    /// The plan, where the job fits.
    pub fn plan(&self) -> Option<&Candidate> {
        match &self.found {
            Verdict::Fits(candidate) => Some(candidate),
            _ => None,
        }
    }

    /// Whether a plan is all there is: no machine of ours executes on the device.
    pub fn plan_only(&self) -> bool {
        executor(&self.device).is_none()
    }

    /// Tokens a second, where the job fits.
    pub fn speed(&self) -> Option<f64> {
        self.plan().map(|plan| plan.estimate.tokens_per_second)
    }

    fn of(question: &Question, goal: Option<Goal>, tariff: &Tariff) -> Offer {
        let searched = |request: &Request| goal::answered(request, goal, false);
        let answered = question.request.as_ref().map(searched);
        let found = match answered {
            Ok(Ok((_, answer))) => match answer.outcome {
                Outcome::Fits(best) => Verdict::Fits(best),
                Outcome::Misfit(misfit) => Verdict::Misfit(misfit),
            },
            Ok(Err(refused)) => Verdict::Refused(refused.to_string()),
            Err(refused) => Verdict::Refused(refused.to_string()),
        };
        let device = question.device.clone();
        let mut offer = Offer {
            device,
            found,
            cost: None,
            leads_by_price: false,
            leads_by_rent: false,
        };
        let cost = |speed| Cost::of(&offer.device, speed, tariff);
        offer.cost = offer.speed().map(cost);
        offer
    }
}

impl Question {
    /// What decides which programs its plans have.
    fn programs(&self) -> Option<(Backend, Precision)> {
        let job = &self.request.as_ref().ok()?.job;
        Some((job.target.backend, job.precision))
    }
}

/// Asks every question; `each` hears of every offer as soon as it is there, in any order. The answer is the fastest first.
///
/// # Errors
/// Where every device refuses the job: what the first of them says.
pub fn survey(
    questions: Vec<Question>,
    goal: Option<Goal>,
    tariff: &Tariff,
    each: &(dyn Fn(&Offer) + Sync),
) -> Result<Vec<Offer>> {
    let _kept = lowered::keep();
    // Devices with equal programs come together, and the first is asked alone: what it lowers, the others need not.
    let mut order: Vec<&Question> = questions.iter().collect();
    order.sort_by_key(|question| (question.request.is_err(), question.programs()));
    let one = |question: &&Question| {
        let offer = Offer::of(question, goal, tariff);
        each(&offer);
        offer
    };
    let (first, others) = order.split_at(order.len().min(1));
    let mut offers: Vec<Offer> = first.iter().map(one).collect();
    offers.par_extend(others.iter().par_bridge().map(one));
    let refused = |offer: &Offer| matches!(offer.found, Verdict::Refused(_));
    if !offers.is_empty() && offers.iter().all(refused) {
        return Err(first_refusal(questions, goal));
    }
    lead(&mut offers);
    sort(&mut offers, Key::Speed);
    Ok(offers)
}

/// What the first question is refused with.
fn first_refusal(questions: Vec<Question>, goal: Option<Goal>) -> Error {
    let refused = questions
        .into_iter()
        .find_map(|question| match question.request {
            Ok(request) => goal::search(&request, goal).err(),
            Err(refused) => Some(refused),
        });
    refused.unwrap_or_else(|| panic!("a refused question has a reason"))
}

/// Marks the offers that no other beats in price and speed, and those in rent and speed.
fn lead(offers: &mut [Offer]) {
    let price = |o: &Offer| Some(o.cost.as_ref()?.purchase.as_ref()?.usd.low);
    let rent = |o: &Offer| Some(o.cost.as_ref()?.rent.as_ref()?.usd.low);
    let leads = |of: &dyn Fn(&Offer) -> Option<f64>| {
        let points: Vec<Option<(f64, f64)>> = offers.iter().map(|o| of(o).zip(o.speed())).collect();
        let beaten = |(usd, speed): (f64, f64)| {
            let others = points.iter().flatten();
            let mut better =
                others.filter(|o| o.0 <= usd && o.1 >= speed && (o.0 < usd || o.1 > speed));
            better.next().is_some()
        };
        let lead = points.iter().map(|p| p.is_some_and(|p| !beaten(p)));
        lead.collect::<Vec<bool>>()
    };
    let (by_price, by_rent) = (leads(&price), leads(&rent));
    for (at, offer) in offers.iter_mut().enumerate() {
        offer.leads_by_price = by_price[at];
        offer.leads_by_rent = by_rent[at];
    }
}

/// Puts `offers` in order; what does not fit comes last, and what the key is not known of behind the others.
pub fn sort(offers: &mut [Offer], key: Key) {
    let low = |priced: Option<&Priced>| priced.map(|p| p.usd.low);
    let value = |o: &Offer| {
        let cost = o.cost.as_ref();
        match key {
            Key::Speed => o.speed().map(|speed| -speed),
            Key::Price => low(cost.and_then(|c| c.purchase.as_ref())),
            Key::Rent => low(cost.and_then(|c| c.rent.as_ref())),
            Key::Energy => cost.and_then(|c| c.kwh),
            Key::Memory => Some(o.device.memory.0 as f64),
            Key::Name => Some(0.0),
        }
    };
    let rank = |o: &Offer| (o.plan().is_none(), value(o).is_none());
    offers.sort_by(|a, b| {
        let values = value(a).unwrap_or(0.0).total_cmp(&value(b).unwrap_or(0.0));
        let speeds = b
            .speed()
            .unwrap_or(0.0)
            .total_cmp(&a.speed().unwrap_or(0.0));
        let by = (rank(a).cmp(&rank(b))).then(values);
        let by = if key == Key::Name {
            by
        } else {
            by.then(speeds)
        };
        by.then(a.device.id.cmp(&b.device.id))
    });
}

/// The devices of the catalogue by `vendor`, that can be bought for at most `most` USD; also those left out as nobody knows their price.
///
/// # Errors
/// Where no device is of that vendor.
pub fn devices(
    vendor: Option<&str>,
    most: Option<f64>,
) -> Result<(Vec<&'static Device>, Vec<&'static Device>)> {
    let is_of =
        |device: &&Device| vendor.is_none_or(|v| v.trim().eq_ignore_ascii_case(&device.vendor));
    let all: Vec<&Device> = device::all().filter(is_of).collect();
    if let (Some(vendor), true) = (vendor, all.is_empty()) {
        let mut known: Vec<&str> = device::all().map(|d| d.vendor.as_str()).collect();
        known.sort_unstable();
        known.dedup();
        let next = format!("write one of {}", known.join(", "));
        return Err(Error::unknown("vendor", vendor, known, next));
    }
    let Some(most) = most else {
        return Ok((all, Vec::new()));
    };
    let (priced, unknown): (Vec<&Device>, Vec<&Device>) = all
        .into_iter()
        .partition(|device| cost::purchase(device).is_some());
    let within = |d: &&Device| cost::purchase(d).is_some_and(|p| p.usd.low <= most);
    Ok((priced.into_iter().filter(within).collect(), unknown))
}
