//! What it costs to train some tokens on a device: hours, energy, money and CO2, from its prices and its board power.

use serde::Serialize;

use super::device::{Device, Price};

/// What a reckoning starts from. What is not given is not guessed: what depends on it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tariff {
    /// Tokens to train.
    pub tokens: Option<u64>,
    /// USD for a kWh.
    pub kwh_price: Option<f64>,
    /// Grams of CO2 for a kWh.
    pub carbon: Option<f64>,
}

/// An amount between its lowest and its highest, USD.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Usd {
    /// By the lowest price seen.
    pub low: f64,
    /// By the highest.
    pub high: f64,
}

/// An amount with the price that it comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Priced {
    /// What is paid.
    #[serde(flatten)]
    pub usd: Usd,
    /// The price, with its kind, date and grade.
    pub price: Price,
}

/// From which run on a bought device has cost less than a rented one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BreakEven {
    /// Bought at the lowest price, else rented at the highest; `None`: never.
    pub fewest: Option<u64>,
    /// Bought at the highest price, else rented at the lowest; `None`: never.
    pub most: Option<u64>,
}

/// What training on a device costs. What needs tokens, or a price that nobody knows, is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Hours of training.
    pub hours: Option<f64>,
    /// Energy at the device's board power.
    pub kwh: Option<f64>,
    /// That energy, USD.
    pub electricity: Option<f64>,
    /// That energy, kg of CO2.
    pub carbon_kg: Option<f64>,
    /// The device, rented for these hours.
    pub rent: Option<Priced>,
    /// The device, bought: the card alone.
    pub purchase: Option<Priced>,
    /// When buying beats renting.
    pub break_even: Option<BreakEven>,
}

impl Cost {
    /// The cost of a job that trains `tokens_per_second` on `device`.
    pub fn of(device: &Device, tokens_per_second: f64, tariff: &Tariff) -> Cost {
        let hours = |tokens: u64| tokens as f64 / tokens_per_second / 3600.0;
        let hours = tariff.tokens.map(hours).filter(|h| h.is_finite());
        let kwh = (device.tdp_watts.zip(hours)).map(|(watts, hours)| watts * hours / 1000.0);
        let rent =
            (device.price_of(&[CLOUD]).zip(hours)).map(|(price, hours)| Priced::new(price, hours));
        let purchase = purchase(device);
        let electricity = (kwh.zip(tariff.kwh_price)).map(|(kwh, price)| kwh * price);
        let break_even = (purchase.as_ref().zip(rent.as_ref())).map(|(bought, rented)| BreakEven {
            fewest: runs(bought.usd.low, rented.usd.high, electricity),
            most: runs(bought.usd.high, rented.usd.low, electricity),
        });
        Cost {
            hours,
            kwh,
            electricity,
            carbon_kg: kwh
                .zip(tariff.carbon)
                .map(|(kwh, grams)| kwh * grams / 1000.0),
            rent,
            purchase,
            break_even,
        }
    }

    /// Whether anything about money is known.
    pub fn is_priced(&self) -> bool {
        self.rent.is_some() || self.purchase.is_some() || self.electricity.is_some()
    }
}

/// The device, bought as today, or else as it was first sold; `None` where no such price is known.
pub fn purchase(device: &Device) -> Option<Priced> {
    let price = device.price_of(&[STREET, LAUNCH])?;
    Some(Priced::new(price, 1.0))
}

/// The kind of a price by the hour.
pub const CLOUD: &str = "cloud_usd_per_hour";
/// The kind of a price at which a device is sold today.
pub const STREET: &str = "street_usd";
/// The kind of the price at which a device was first sold.
pub const LAUNCH: &str = "launch_msrp_usd";

impl Priced {
    fn new(price: &Price, times: f64) -> Priced {
        let usd = Usd {
            low: price.low * times,
            high: price.high * times,
        };
        let price = price.clone();
        Priced { usd, price }
    }
}

/// The first run after which `purchase` and the electricity of all runs are less than the `rent` of all runs.
///
/// ```
/// use memfit::spec::cost::runs;
/// // 1000 USD and 10 USD of electricity a run, or 60 USD a run: 20 runs cost 1200 either way.
/// assert_eq!(runs(1000.0, 60.0, Some(10.0)), Some(21));
/// assert_eq!(runs(1000.0, 10.0, Some(10.0)), None);
/// ```
pub fn runs(purchase: f64, rent: f64, electricity: Option<f64>) -> Option<u64> {
    let saved = rent - electricity.unwrap_or(0.0);
    let runs = (purchase / saved).floor() + 1.0;
    (saved > 0.0 && runs < u64::MAX as f64).then_some(runs as u64)
}
