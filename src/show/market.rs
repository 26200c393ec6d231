//! The answer to `gpus`: every device with the job's plan, speed and cost, in a table and for programs.

use serde_json::{Value, json};

use super::table::Column::{Left, Right, Shortened};
use super::table::{Table, labelled, shortened};
use super::{choice, money, page};
use crate::machine::executor;
use crate::search::goal::Goal;
use crate::search::market::{Offer, Verdict};
use crate::search::{Candidate, Misfit};
use crate::spec::cost::{Priced, Tariff, Usd};
use crate::spec::device::{Device, Price};
use crate::spec::units::show_count;

/// The question and its answer.
#[derive(Debug)]
pub struct Page<'a> {
    /// The job in words, without a device.
    pub job: &'a str,
    /// What is to be trained, where it was said.
    pub goal: Option<Goal>,
    /// What cost is reckoned with.
    pub tariff: &'a Tariff,
    /// The devices, in order.
    pub offers: &'a [Offer],
    /// Devices left out because nobody knows their price.
    pub unpriced: &'a [&'a Device],
}

/// The table and what its figures are, within `width` columns.
pub fn text(page: &Page, width: usize) -> String {
    let heads = [
        "device", "memory", "tokens/s", "hours", "kWh", "rent", "buy", "plan",
    ];
    let columns = [Left, Right, Right, Right, Right, Right, Right, Shortened];
    // What a narrow terminal does without, the first to go first: memory, energy, plans, hours.
    let mut table = Table::new(&columns)
        .within(width)
        .gives_way(&[1, 4, 7, 3])
        .heads(&heads);
    let mut prices: Vec<&Price> = Vec::new();
    for offer in page.offers {
        table.row(cells(offer, &mut prices));
    }
    let mut text = format!("{}\n\n{}\n", page.job, table.render());
    for (at, price) in prices.iter().enumerate() {
        text += &labelled(&format!("[{}]", at + 1), &money::source(price), 6);
    }
    text + &notes(page)
}

/// The cells of an offer; prices that come up for the first time get a number.
fn cells<'a>(offer: &'a Offer, prices: &mut Vec<&'a Price>) -> Vec<String> {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_string(), |v| format!("{v:.digits$}"))
    };
    let cost = offer.cost.as_ref();
    let mut amount = |priced: Option<&'a Priced>, leads: bool| match priced {
        Some(priced) => format!(
            "{}{}",
            range(&priced.usd, leads),
            reference(&priced.price, prices)
        ),
        None => "-".to_string(),
    };
    let rent = amount(cost.and_then(|c| c.rent.as_ref()), offer.leads_by_rent);
    let buy = amount(cost.and_then(|c| c.purchase.as_ref()), offer.leads_by_price);
    vec![
        offer.device.id.clone(),
        offer.device.memory.to_string(),
        number(offer.speed(), 0),
        number(cost.and_then(|c| c.hours), 0),
        number(cost.and_then(|c| c.kwh), 0),
        rent,
        buy,
        said(offer),
    ]
}

/// `$1,200-2,400`, with a star where nobody beats it.
fn range(usd: &Usd, leads: bool) -> String {
    let star = if leads { "*" } else { "" };
    format!("{star}{}", money::usd(usd).replace(" to $", "-"))
}

/// ` [2]`: where the price comes from. Prices of equal kind, date and grade share a number.
fn reference<'a>(price: &'a Price, prices: &mut Vec<&'a Price>) -> String {
    let same =
        |p: &&&Price| (&p.kind, &p.date, &p.grade) == (&price.kind, &price.date, &price.grade);
    let at = match prices.iter().position(|p| same(&p)) {
        Some(at) => at,
        None => {
            prices.push(price);
            prices.len() - 1
        }
    };
    format!(" [{}]", at + 1)
}

/// What is said of a device in a few words.
pub fn said(offer: &Offer) -> String {
    match &offer.found {
        Verdict::Fits(plan) => plan_name(plan),
        Verdict::Misfit(misfit) => format!(
            "MISFIT: needs {} of {}, has {}",
            misfit.need, misfit.place, misfit.have
        ),
        Verdict::Refused(why) => format!("refused: {why}"),
    }
}

/// A plan's method, where it is no usual one, and what it is called.
pub fn plan_name(plan: &Candidate) -> String {
    let has = |name: &str| plan.plan.choices.iter().any(|c| c.technique == name);
    let method = match (has("lora"), has("nf4_weights") || has("int8_weights")) {
        (true, true) => "QLoRA",
        (true, false) => "LoRA",
        _ => "",
    };
    let named = plan.family.is_some_and(|f| plan.name.starts_with(f.name));
    let parts = [if named { "" } else { method }, plan.name.as_str()];
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    match parts.is_empty() {
        true => "everything on the device".to_string(),
        false => parts.join(" + "),
    }
}

/// One row on its own, as it is ready.
pub fn line(offer: &Offer) -> String {
    let speed = offer.speed().map_or("-".to_string(), |s| format!("{s:.0}"));
    let (device, plan) = (&offer.device.id, said(offer));
    shortened(&format!("{device:<28} {speed:>9} tokens/s  {plan}"), page())
}

/// What the table does not say in its cells.
fn notes(page: &Page) -> String {
    let fits = page.offers.iter().filter(|o| o.plan().is_some()).count();
    let mut all = vec![format!(
        "{fits} of {} devices fit the job.",
        page.offers.len()
    )];
    let tokens = page.tariff.tokens.map_or(String::new(), show_count);
    all.push(format!("Hours, kWh and rent are for {tokens} tokens (--tokens); kWh at the board power (TDP), an assumption. Prices are in USD."));
    all.push("* nobody is as fast for less. - no price known. To buy: the device alone, without the machine around it.".to_string());
    let here = page
        .offers
        .iter()
        .filter(|o| !o.plan_only())
        .map(|o| o.device.id.as_str());
    let here: Vec<&str> = here.collect();
    all.push(match here.is_empty() {
        true => {
            "All are plan only: memfit has no kernels for them; speeds are simulated.".to_string()
        }
        false => format!(
            "memfit executes on {}; all others are plan only.",
            here.join(", ")
        ),
    });
    if !page.unpriced.is_empty() {
        all.push(format!(
            "Left out, as no price is known for buying them: {}.",
            ids(page.unpriced)
        ));
    }
    if page.tariff.kwh_price.is_none() {
        all.push("For electricity give --kwh-price, for CO2 --carbon.".to_string());
    }
    "\n".to_string()
        + &all
            .iter()
            .map(|note| labelled("", note, 0))
            .collect::<String>()
}

fn ids(devices: &[&Device]) -> String {
    let ids: Vec<&str> = devices.iter().map(|d| d.id.as_str()).collect();
    ids.join(", ")
}

/// The answer for programs.
pub fn json(page: &Page, job: Value) -> Value {
    json!({
        "job": job,
        "goal": page.goal.map(Goal::name),
        "tokens": page.tariff.tokens,
        "kwh_price": page.tariff.kwh_price,
        "carbon_g_per_kwh": page.tariff.carbon,
        "devices": page.offers.iter().map(|offer| row(offer, page.tariff)).collect::<Value>(),
        "left_out_without_price": page.unpriced.iter().map(|d| d.id.as_str()).collect::<Value>(),
    })
}

fn row(offer: &Offer, tariff: &Tariff) -> Value {
    let device = &offer.device;
    let cost = offer.cost.as_ref();
    let (outcome, misfit, why) = match &offer.found {
        Verdict::Fits(_) => ("fits", None, None),
        Verdict::Misfit(misfit) => ("misfit", Some(blame(misfit)), None),
        Verdict::Refused(why) => ("refused", None, Some(why)),
    };
    json!({
        "id": device.id,
        "name": device.name,
        "vendor": device.vendor,
        "memory": device.memory,
        "outcome": outcome,
        "plan": offer.plan().map(plan),
        "misfit": misfit,
        "why": why,
        "step_seconds": offer.plan().map(|p| p.estimate.step),
        "tokens_per_second": offer.speed(),
        "hours": cost.and_then(|c| c.hours),
        "kwh": cost.and_then(|c| c.kwh),
        "cost": cost.filter(|c| c.is_priced()).map(|c| money::json(c, device, tariff)),
        "leads_by_price": offer.leads_by_price,
        "leads_by_rent": offer.leads_by_rent,
        "executor": executor(device),
        "plan_only": offer.plan_only(),
    })
}

/// A plan, as far as a row has it.
pub fn plan(candidate: &Candidate) -> Value {
    json!({
        "name": candidate.name,
        "choices": candidate.plan.choices.iter().map(ToString::to_string).collect::<Value>(),
        "exactness": choice::class_name(choice::plan_class(&candidate.plan)),
        "peak": super::memory::places_json(&candidate.estimate.peak),
    })
}

fn blame(misfit: &Misfit) -> Value {
    json!({
        "place": misfit.place,
        "need": misfit.need,
        "have": misfit.have,
        "change": misfit.change,
        "closest": misfit.closest.name,
    })
}
