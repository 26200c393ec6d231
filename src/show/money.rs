//! Cost in words and for programs: hours, energy, electricity, rent, purchase, and when buying beats renting.

use serde_json::{Value, json};

use super::table::labelled;
use crate::spec::cost::{BreakEven, CLOUD, Cost, LAUNCH, Priced, Tariff, Usd};
use crate::spec::device::{Device, Price};
use crate::spec::units::{show_count, show_usd};

/// Columns of the label of a line.
const LABEL: usize = 8;

/// What the energy is reckoned with.
const POWER: &str = "board power (TDP), all the time: an assumption";

/// A range of USD.
pub fn usd(range: &Usd) -> String {
    match range.low == range.high {
        true => show_usd(range.low),
        false => format!("{} to {}", show_usd(range.low), show_usd(range.high)),
    }
}

/// What a price is, and how good: `street price, 2025..2026, grade C`.
pub fn source(price: &Price) -> String {
    let kind = match price.kind.as_str() {
        CLOUD => "cloud price by the hour",
        LAUNCH => "launch price",
        _ => "street price",
    };
    format!("{kind}, {}, grade {}", price.date, price.grade)
}

/// What is not known, in words.
fn missing(cost: &Cost, device: &Device, tariff: &Tariff) -> Vec<String> {
    let name = &device.name;
    let no_rent = device.price_of(&[CLOUD]).is_none();
    let all = [
        (
            tariff.tokens.is_none(),
            "give --tokens for hours, energy and what they cost".to_string(),
        ),
        (
            device.tdp_watts.is_none(),
            format!("no power known for {name}"),
        ),
        (no_rent, format!("no price known for renting {name}")),
        (
            cost.purchase.is_none(),
            format!("no price known for buying {name}"),
        ),
        (
            tariff.kwh_price.is_none(),
            "electricity: give --kwh-price".to_string(),
        ),
        (tariff.carbon.is_none(), "CO2: give --carbon".to_string()),
    ];
    all.into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, text)| text)
        .collect()
}

/// The lines about cost; none where nothing was asked about it.
pub fn section(cost: &Cost, device: &Device, speed: f64, tariff: &Tariff) -> String {
    if *tariff == Tariff::default() {
        return String::new();
    }
    let mut text = String::new();
    let mut line = |label: &str, said: Option<String>| {
        text += &said.map_or(String::new(), |said| labelled(label, &said, LABEL));
    };
    let tokens = tariff.tokens.map_or(String::new(), show_count);
    let time = |hours: f64| {
        format!(
            "{tokens} tokens at {speed:.0} a second take {}",
            hours_of(hours)
        )
    };
    line("cost", cost.hours.map(time));
    line("energy", cost.kwh.map(|kwh| energy(kwh, device)));
    line(
        "",
        cost.electricity
            .zip(tariff.kwh_price)
            .map(|(usd, price)| electricity(usd, price)),
    );
    line(
        "",
        cost.carbon_kg
            .zip(tariff.carbon)
            .map(|(kg, grams)| carbon(kg, grams)),
    );
    line("rent", cost.rent.as_ref().map(rent));
    line(
        "buy",
        cost.purchase
            .as_ref()
            .map(|p| format!("{} ({}), the device alone", usd(&p.usd), source(&p.price))),
    );
    line(
        "",
        cost.break_even
            .map(|b| break_even(b, cost.electricity.is_some())),
    );
    let missing = missing(cost, device, tariff);
    line("missing", (!missing.is_empty()).then(|| missing.join("; ")));
    text
}

/// Hours with days where they are many.
pub fn hours_of(hours: f64) -> String {
    match hours {
        h if h >= 48.0 => format!("{h:.0} h ({:.1} days)", h / 24.0),
        h => format!("{h:.2} h"),
    }
}

fn energy(kwh: f64, device: &Device) -> String {
    let watts = device.tdp_watts.unwrap_or_default();
    format!("{kwh:.1} kWh at {watts:.0} W, its {POWER}")
}

fn electricity(usd: f64, price: f64) -> String {
    format!("electricity {} at ${price} a kWh", show_usd(usd))
}

fn carbon(kg: f64, grams: f64) -> String {
    format!("{kg:.1} kg of CO2 at {grams} g a kWh")
}

fn rent(rent: &Priced) -> String {
    let price = Usd {
        low: rent.price.low,
        high: rent.price.high,
    };
    format!(
        "{} at {} an hour ({})",
        usd(&rent.usd),
        usd(&price),
        source(&rent.price)
    )
}

fn break_even(at: BreakEven, electricity: bool) -> String {
    let without = if electricity {
        ""
    } else {
        "; electricity is not counted"
    };
    match (at.fewest, at.most) {
        (Some(fewest), Some(most)) if fewest == most => {
            format!("buying beats renting from run {fewest} of this job on{without}")
        }
        (Some(fewest), Some(most)) => {
            format!(
                "buying beats renting from run {fewest} to {most} of this job on, as prices are{without}"
            )
        }
        (Some(fewest), None) => {
            format!(
                "buying beats renting from run {fewest} of this job on, or never, as prices are{without}"
            )
        }
        (None, _) => {
            format!("buying never beats renting: its electricity costs more than the rent{without}")
        }
    }
}

/// The cost, for programs.
pub fn json(cost: &Cost, device: &Device, tariff: &Tariff) -> Value {
    let electricity = cost
        .electricity
        .map(|usd| json!({"usd": usd, "kwh_price": tariff.kwh_price}));
    json!({
        "tokens": tariff.tokens,
        "hours": cost.hours,
        "kwh": cost.kwh,
        "watts": device.tdp_watts,
        "watts_are": POWER,
        "electricity": electricity,
        "co2_kg": cost.carbon_kg,
        "rent": cost.rent,
        "purchase": cost.purchase,
        "break_even_runs": cost.break_even,
        "missing": missing(cost, device, tariff),
    })
}
