//! What a dial goes through: words where a card lists them, else numbers, sizes and rates.

use std::cmp::Ordering;

use crate::spec::units::parse_size;
use crate::technique::Argument;

/// Cards as they are sold, by memory.
pub const CARDS: &[&str] = &[
    "4GB", "6GB", "8GB", "10GB", "11GB", "12GB", "16GB", "20GB", "24GB", "32GB", "40GB", "48GB",
    "64GB", "80GB", "96GB", "128GB", "141GB", "192GB", "288GB",
];
/// Memories of machines.
pub const RAMS: &[&str] = &[
    "8GB", "16GB", "32GB", "48GB", "64GB", "96GB", "128GB", "192GB", "256GB", "384GB", "512GB",
    "768GB", "1TB", "2TB", "4TB",
];
/// Free disks.
pub const DISKS: &[&str] = &[
    "0GB", "100GB", "250GB", "500GB", "1TB", "2TB", "4TB", "8TB", "16TB",
];
/// Links, each way.
pub const LINKS: &[&str] = &[
    "1GB/s", "2GB/s", "4GB/s", "8GB/s", "12GB/s", "16GB/s", "25GB/s", "32GB/s", "50GB/s", "64GB/s",
    "128GB/s", "450GB/s",
];

/// The words an argument may be, its default among them; none where it is a number or free text.
pub fn words(argument: &Argument) -> Vec<&'static str> {
    let mut words: Vec<&'static str> = Vec::new();
    for part in argument.meaning.split(" | ") {
        // `with rule=paper: yes: …` names the word behind the condition, `format of the momentum: f32` behind the subject.
        let heads = part.split(": ").map(str::trim);
        words.extend(heads.filter(|head| is_word(head)));
    }
    if let Some((one, other)) = argument.meaning.split_once(" or ") {
        let other = other.split(' ').next().unwrap_or(other);
        if one == argument.default && is_word(one) {
            words = vec![one, other];
        }
        let bits = |t: &str| t.parse::<u32>().is_ok();
        if one == argument.default && bits(one) && bits(other) {
            words = vec![one, other];
        }
    }
    if matches!(argument.default, "yes" | "no") {
        return vec!["yes", "no"];
    }
    if words.is_empty() || (words.len() == 1 && words[0] == argument.default) {
        return Vec::new();
    }
    if !words.contains(&argument.default) {
        match is_word(argument.default) {
            true => words.insert(0, argument.default),
            false => return Vec::new(),
        }
    }
    words.dedup();
    words
}

/// Whether a text is one word, or a number that stands for a kind.
fn is_word(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !text.is_empty() && text.len() <= 12 && text.chars().all(inside)
}

/// The value of an argument after a step up or down; `None` where it has no next.
pub fn next(argument: &Argument, now: &str, up: bool) -> Option<String> {
    let words = words(argument);
    if !words.is_empty() {
        return Some(turned(&words, now, up).to_string());
    }
    if let Ok(number) = now.parse::<u64>() {
        return whole(number, up).map(|n| n.to_string());
    }
    let number: f64 = now.parse().ok()?;
    Some(decimal(number, up))
}

/// The next of a round of words.
pub fn turned<'a>(words: &[&'a str], now: &str, up: bool) -> &'a str {
    let at = words.iter().position(|w| *w == now).unwrap_or(0);
    let count = words.len();
    words[(at + if up { 1 } else { count - 1 }) % count]
}

/// The next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, …; `None` below the first.
pub fn whole(number: u64, up: bool) -> Option<u64> {
    let mut ladder = vec![0, 1, 2, 3];
    ladder.extend((2..40).flat_map(|power| [1u64 << power, 3u64 << (power - 1)]));
    match up {
        true => ladder.into_iter().find(|&n| n > number),
        false => ladder.into_iter().rev().find(|&n| n < number),
    }
}

/// The next of …, 0.1, 0.2, 0.5, 1, 2, 5, …, on the number's own side of zero.
fn decimal(number: f64, up: bool) -> String {
    if number == 0.0 {
        return if up { "0.01" } else { "0" }.to_string();
    }
    let larger = up == (number > 0.0);
    let size = number.abs();
    let mut ladder = (-12..6).flat_map(|p| [1.0, 2.0, 5.0].map(|d| d * 10f64.powi(p)));
    let next = match larger {
        true => ladder.find(|&n| n > size * 1.000_001),
        false => ladder.rev().find(|&n| n < size * 0.999_999),
    };
    let next = next.unwrap_or(size).copysign(number);
    match next.abs() < 1e-3 {
        true => format!("{next:.0e}"),
        false => format!("{}", (next * 1e6).round() / 1e6),
    }
}

/// The next of a list of sizes or rates; `None` below the first.
pub fn along(list: &[&'static str], now: &str, up: bool) -> Option<&'static str> {
    let bytes = |text: &str| parse_size("size", text.trim_end_matches("/s")).ok();
    let now = bytes(now)?.bytes;
    let compared = |text: &&&str| bytes(text).map(|size| size.bytes.cmp(&now));
    match up {
        true => list.iter().find(|t| compared(t) == Some(Ordering::Greater)),
        false => list
            .iter()
            .rev()
            .find(|t| compared(t) == Some(Ordering::Less)),
    }
    .copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test a panic is the report
mod tests {
    use super::*;

    #[test]
    fn numbers_go_along_their_ladders_and_back() {
        assert_eq!(whole(3, true), Some(4));
        assert_eq!(whole(2048, true), Some(3072));
        assert_eq!(whole(2048, false), Some(1536));
        assert_eq!(whole(0, false), None);
        assert_eq!(decimal(0.2, true), "0.5");
        assert_eq!(decimal(1e-8, false), "5e-9");
        assert_eq!(decimal(-0.8, true), "-0.5");
        assert_eq!(along(CARDS, "24GB", true), Some("32GB"));
        assert_eq!(along(CARDS, "4GB", false), None);
        assert_eq!(along(LINKS, "10GB/s", false), Some("8GB/s"));
    }
}
