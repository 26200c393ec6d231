//! Items as text: the CSV of MiniMalloc's and idealloc's benchmarks, with columns `id`, `lower`, `upper` and `size` in any order.

use super::Item;
use crate::error::{Error, Result};

/// The columns.
const COLUMNS: [&str; 4] = ["id", "lower", "upper", "size"];

/// Most bytes that items may have together, so that every sum of sizes is a number.
const MOST: u64 = i64::MAX as u64;

/// Items and what they are called. A life is `lower..upper`, or with `closed` `lower..=upper`.
///
/// # Errors
/// Where a column is missing or unknown, a value is no number, a life ends before it begins, or sizes overflow; naming the line.
pub fn parse(origin: &str, text: &str, closed: bool) -> Result<Vec<(String, Item)>> {
    let mut lines = text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty());
    let next = "give a line `id,lower,upper,size` and then one line for each buffer";
    let (_, head) = lines
        .next()
        .ok_or_else(|| Error::file(origin, "is empty", next))?;
    let heads: Vec<&str> = head.split(',').map(str::trim).collect();
    let unknown = heads.iter().find(|h| !COLUMNS.contains(h));
    if let Some(unknown) = unknown {
        let why = format!("has a column `{unknown}`, which is not known");
        return Err(Error::file(origin, why, next));
    }
    let at = |name: &str| {
        let missing = || Error::file(origin, format!("has no column `{name}`"), next);
        heads.iter().position(|h| *h == name).ok_or_else(missing)
    };
    let [id, lower, upper, size] = [at("id")?, at("lower")?, at("upper")?, at("size")?];
    let mut items = Vec::new();
    let mut total = 0u64;
    for (number, line) in lines {
        let bad = |why: String| Error::file(origin, format!("line {}: {why}", number + 1), next);
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        if cells.len() != heads.len() {
            return Err(bad(format!(
                "{} values under {} columns",
                cells.len(),
                heads.len()
            )));
        }
        let whole = |column: usize| {
            let (name, cell) = (heads[column], cells[column]);
            let wrong = |_| bad(format!("`{name}` is `{cell}`, not a whole number"));
            cell.parse::<u64>().map_err(wrong)
        };
        let (from, to, bytes) = (whole(lower)?, whole(upper)?, whole(size)?);
        let to = to.saturating_add(u64::from(closed));
        if to <= from {
            return Err(bad(format!(
                "lives from {from} to {}, which is no time",
                cells[upper]
            )));
        }
        total = total
            .checked_add(bytes)
            .filter(|t| *t <= MOST)
            .ok_or_else(|| bad("sizes add up to more than can be counted".to_string()))?;
        items.push((cells[id].to_string(), Item { bytes, from, to }));
    }
    Ok(items)
}

/// The text of items with their offsets, as the benchmarks write solutions.
pub fn solution(items: &[(String, Item)], offsets: &[u64], closed: bool) -> String {
    let mut text = format!("{},offset\n", COLUMNS.join(","));
    for ((id, item), offset) in items.iter().zip(offsets) {
        let to = item.to - u64::from(closed);
        text += &format!("{id},{},{to},{},{offset}\n", item.from, item.bytes);
    }
    text
}
