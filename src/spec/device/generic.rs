//! Devices given by a size alone.

use super::check::MEMORY_LIMIT;
use super::{Device, RESERVED, spelling};
use crate::error::{Error, Result};
use crate::spec::units::{Bytes, parse_size};

/// Units that make a text a size; a bare number is a device's name.
const UNITS: [&str; 13] = [
    "b", "k", "kb", "kib", "m", "mb", "mib", "g", "gb", "gib", "t", "tb", "tib",
];

/// Up to so many GiB, a card is as fast as this one of the catalogue.
const TYPICAL: [(u64, &str); 7] = [
    (8, "rtx-4060"),
    (12, "rtx-4070"),
    (16, "rtx-4080"),
    (24, "rtx-4090"),
    (48, "rtx-6000-ada"),
    (80, "a100-sxm4-80gb"),
    (u64::MAX, "h200-sxm"),
];

/// Whether a text is a size: a number and a unit, or plain zero.
pub(super) fn is_size(text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || ".-+ ".contains(c));
    let unit = unit.to_ascii_lowercase();
    text == "0" || (unit.len() < text.len() && UNITS.contains(&unit.as_str()))
}

/// Any device of a size.
///
/// A decimal size of at least 1 GB is a card as sold: "24GB" holds 24 GiB, of which programs see
/// 0.982 (between the 0.980 of an RTX 4090 and the 0.987 of an RTX 3090), less what is reserved.
/// Other sizes are exact.
pub(super) fn of_size(text: &str) -> Result<Device> {
    let size = parse_size("size", text)?;
    let sold = size.decimal && size.bytes.0 >= 1_000_000_000;
    let (memory, reserved) = match sold {
        true => (as_sold(size.bytes), RESERVED),
        false => (size.bytes, Bytes::ZERO),
    };
    if memory.0 > MEMORY_LIMIT {
        let next = "give the memory of one device, such as 24GB";
        return Err(Error::value("size", text, "no device has that much", next));
    }
    let like = typical(memory)?;
    let name = format!("any device of {text}");
    Ok(Device {
        id: text.to_lowercase().replace(' ', ""),
        generic: true,
        memory,
        reserved,
        price: Vec::new(),
        tdp_watts: None,
        notes: format!("as fast as the {}", like.name),
        source: format!("size as given; rates of {}: {}", like.id, like.source),
        name,
        ..like.clone()
    })
}

/// What programs see of a card sold with `nominal` decimal bytes.
fn as_sold(nominal: Bytes) -> Bytes {
    let seen = u128::from(nominal.0) * (1 << 30) * 982 / 1_000 / 1_000_000_000;
    Bytes(u64::try_from(seen).unwrap_or(u64::MAX))
}

/// The catalogue's device that stands for a memory size.
fn typical(memory: Bytes) -> Result<&'static Device> {
    let class = TYPICAL
        .iter()
        .find(|(gib, _)| memory.0.div_ceil(1 << 30) <= *gib);
    spelling::find(class.map_or("h200-sxm", |(_, id)| id))
}
