//! `memfit models`, `devices` and `techniques`: what is known by name.

use memfit::error::Result;
use memfit::show::{facts, lists};
use serde_json::json;

use super::{Answer, DONE};

/// The models.
///
/// # Errors
/// Where an embedded config is broken.
pub fn models() -> Result<Answer> {
    let models = facts::models()?;
    Ok(Answer {
        text: lists::models(&models),
        json: json!({"models": models}),
        status: DONE,
    })
}

/// The devices.
///
/// # Errors
/// None.
pub fn devices() -> Result<Answer> {
    let devices = facts::devices();
    Ok(Answer {
        text: lists::devices(&devices),
        json: json!({"devices": devices}),
        status: DONE,
    })
}

/// The techniques.
///
/// # Errors
/// None.
pub fn techniques() -> Result<Answer> {
    let techniques = facts::techniques();
    Ok(Answer {
        text: lists::techniques(&techniques),
        json: json!({"techniques": techniques}),
        status: DONE,
    })
}
