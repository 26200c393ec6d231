//! Units as types, and the only place where they are parsed and printed.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A number of bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A duration in seconds.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

/// Binary units, largest first.
const BINARY: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl Bytes {
    /// Nothing.
    pub const ZERO: Bytes = Bytes(0);

    /// Rounded up to a multiple of `unit`.
    pub fn round_up(self, unit: u64) -> Bytes {
        Bytes(self.0.div_ceil(unit) * unit)
    }

    /// The difference, or zero where `other` is larger.
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    /// In GiB, for ratios and plots.
    pub fn gib(self) -> f64 {
        self.0 as f64 / (1u64 << 30) as f64
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = BINARY
            .iter()
            .find(|(_, size)| self.0 >= *size)
            .copied()
            .unwrap_or(("B", 1));
        let text = match size {
            1 => format!("{} B", self.0),
            _ => format!("{:.2} {unit}", self.0 as f64 / size as f64),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
            s if s >= 1.0 => format!("{s:.2} s"),
            s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
            s => format!("{:.1} µs", s * 1e6),
        };
        f.pad(&text)
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0 + other.0)
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        self.0 += other.0;
    }
}

impl Sub for Bytes {
    type Output = Bytes;
    fn sub(self, other: Bytes) -> Bytes {
        Bytes(self.0 - other.0)
    }
}

impl Mul<u64> for Bytes {
    type Output = Bytes;
    fn mul(self, times: u64) -> Bytes {
        Bytes(self.0 * times)
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes::ZERO, Add::add)
    }
}

impl Add for Seconds {
    type Output = Seconds;
    fn add(self, other: Seconds) -> Seconds {
        Seconds(self.0 + other.0)
    }
}

/// A size as written: its bytes, and whether it was written in decimal units as a card is sold (`24GB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The bytes: `GB` and `TB` are powers of ten here; what a *card* of that name holds is for the device to say.
    pub bytes: Bytes,
    /// Whether the unit was decimal.
    pub decimal: bool,
}

/// Reads `24GB`, `1.5GiB`, `512 MiB`, `2TB`, `100000`. A bare number is bytes.
///
/// # Errors
/// Where the number or the unit cannot be read, is negative, not finite, or does not fit 63 bits.
pub fn parse_size(what: &str, text: &str) -> Result<Size> {
    let next = "write a number and a unit, such as 24GB, 512MiB or 1.5GiB";
    let bad = |why: &str| Error::value(what, text, why, next);
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad("no number in front"))?;
    let (scale, decimal) = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => (1u64, false),
        "kib" => (1 << 10, false),
        "mib" => (1 << 20, false),
        "gib" => (1 << 30, false),
        "tib" => (1 << 40, false),
        "kb" | "k" => (1_000, true),
        "mb" | "m" => (1_000_000, true),
        "gb" | "g" => (1_000_000_000, true),
        "tb" | "t" => (1_000_000_000_000, true),
        _ => return Err(bad("unknown unit")),
    };
    let bytes = number * scale as f64;
    if !bytes.is_finite() || bytes >= 9.2e18 {
        return Err(bad("larger than 2^63 bytes"));
    }
    Ok(Size {
        bytes: Bytes(bytes.round() as u64),
        decimal,
    })
}

/// Reads a rate such as `12GB/s` or `800MB/s` into bytes per second; a bare number is bytes per second.
///
/// # Errors
/// As [`parse_size`], and where the rate is zero.
pub fn parse_rate(what: &str, text: &str) -> Result<f64> {
    let size = parse_size(
        what,
        text.trim().trim_end_matches("/s").trim_end_matches("ps"),
    )?;
    match size.bytes.0 {
        0 => Err(Error::value(
            what,
            text,
            "a rate of zero moves nothing",
            "give a rate such as 12GB/s",
        )),
        bytes => Ok(bytes as f64),
    }
}

/// Reads a count such as `1B`, `500M`, `2.5T`, `10k` or `1000000`.
///
/// # Errors
/// Where the number or the unit cannot be read, or the count is not from 1 to 2^63.
pub fn parse_count(what: &str, text: &str) -> Result<u64> {
    let next = "write a number and a unit, such as 500M, 1B or 2T";
    let bad = |why: &str| Error::value(what, text, why, next);
    let trimmed = text.trim();
    let unit = trimmed.chars().last().map(|c| c.to_ascii_lowercase());
    let (number, scale) = match unit {
        Some('k') => (&trimmed[..trimmed.len() - 1], 1e3),
        Some('m') => (&trimmed[..trimmed.len() - 1], 1e6),
        Some('b' | 'g') => (&trimmed[..trimmed.len() - 1], 1e9),
        Some('t') => (&trimmed[..trimmed.len() - 1], 1e12),
        _ => (trimmed, 1.0),
    };
    let number = number.trim().replace('_', "");
    let number: f64 = number.parse().map_err(|_| bad("not a count"))?;
    let count = (number * scale).round();
    match (1.0..9.2e18).contains(&count) {
        true => Ok(count as u64),
        false => Err(bad("not a count from 1 to 2^63")),
    }
}

/// Prints USD: cents below 10, whole dollars with separators above.
pub fn show_usd(usd: f64) -> String {
    if usd < 10.0 {
        return format!("${usd:.2}");
    }
    let digits = format!("{usd:.0}");
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|g| std::str::from_utf8(g).ok())
        .collect();
    format!("${}", groups.join(","))
}

/// Prints a count as people say it: 2T, 6.74B, 124M, 812K.
pub fn show_count(count: u64) -> String {
    let (scale, unit) = match count {
        n if n >= 1_000_000_000_000 => (1e12, "T"),
        n if n >= 1_000_000_000 => (1e9, "B"),
        n if n >= 1_000_000 => (1e6, "M"),
        n if n >= 1_000 => (1e3, "K"),
        _ => return count.to_string(),
    };
    let scaled = count as f64 / scale;
    match scaled {
        s if s >= 100.0 => format!("{s:.0}{unit}"),
        s if s >= 10.0 => format!("{s:.1}{unit}"),
        s => format!("{s:.2}{unit}"),
    }
}

/// Prints an arithmetic rate as a number of TFLOP/s.
pub fn show_flops(flops_per_second: f64) -> String {
    format!("{:.1}", flops_per_second / 1e12)
}

/// Prints a rate in GB/s.
pub fn show_rate(bytes_per_second: f64) -> String {
    format!("{:.1} GB/s", bytes_per_second / 1e9)
}
