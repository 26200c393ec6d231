//! Arguments about what is to be trained and what it may cost, shared by the commands that say so.

use memfit::error::{Error, Result};
use memfit::search::goal::Goal;
use memfit::spec::cost::Tariff;
use memfit::spec::units::parse_count;

/// The goal, and what cost is reckoned with.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CostArgs {
    /// What is to be trained: full (all parameters: what freezes the model is refused), lora (LoRA or QLoRA, the faster that fits) or any
    /// (all parameters where that fits, exactly if possible; else LoRA or QLoRA) [default: what --allow and --fix say]
    #[arg(long, value_name = "GOAL")]
    goal: Option<String>,
    /// Tokens to train, such as 500M, 1B or 2T: hours, energy and cost are of these
    #[arg(long, value_name = "COUNT")]
    tokens: Option<String>,
    /// Price of electricity, USD a kWh
    #[arg(long, value_name = "USD")]
    kwh_price: Option<f64>,
    /// Grams of CO2 a kWh
    #[arg(long, value_name = "GRAMS")]
    carbon: Option<f64>,
}

impl CostArgs {
    /// The goal, where there is one.
    ///
    /// # Errors
    /// Where it is unknown.
    pub fn goal(&self) -> Result<Option<Goal>> {
        self.goal.as_deref().map(str::parse).transpose()
    }

    /// What is given about cost.
    ///
    /// # Errors
    /// Where a number cannot be used.
    pub fn tariff(&self) -> Result<Tariff> {
        let tokens = self
            .tokens
            .as_deref()
            .map(|text| parse_count("--tokens", text));
        amount("--kwh-price", self.kwh_price, "0.30")?;
        amount("--carbon", self.carbon, "350")?;
        Ok(Tariff {
            tokens: tokens.transpose()?,
            kwh_price: self.kwh_price,
            carbon: self.carbon,
        })
    }
}

/// Refuses an amount that cannot be reckoned with.
///
/// # Errors
/// Where it is below zero or not finite.
pub fn amount(flag: &str, value: Option<f64>, example: &str) -> Result<()> {
    match value {
        Some(x) if !(x.is_finite() && x >= 0.0) => {
            let next = format!("give a number from 0 on, such as {example}");
            Err(Error::value(flag, x, "not an amount", next))
        }
        _ => Ok(()),
    }
}
