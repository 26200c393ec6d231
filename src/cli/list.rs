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

/// The techniques, and which exclude each other.
///
/// # Errors
/// Where a technique cannot be tried.
pub fn techniques() -> Result<Answer> {
    let (techniques, refused) = (facts::techniques(), facts::refused()?);
    Ok(Answer {
        text: lists::techniques(&techniques) + "\n" + &lists::refused(&refused),
        json: json!({"techniques": techniques, "refused": refused}),
        status: DONE,
    })
}
