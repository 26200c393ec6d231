//! Settings of the allocator, as `PYTORCH_ALLOC_CONF` spells them, and the rounding of requests.

use super::GRAIN;
use crate::error::{Error, Result};
use crate::spec::units::Bytes;

/// Slots of the division table: 1 MiB, 2 MiB, … 32 GiB and more.
const SLOTS: usize = 16;
/// log2 of the first slot's size.
const FIRST_SLOT: u32 = 20;
/// The smallest limit of splitting, MiB.
const LEAST_SPLIT_MB: u64 = 20;
/// The largest size that can be set, MiB.
const MOST_MB: u64 = 1 << 24;

/// The settings that are replayed.
const KEYS: [&str; 6] = [
    "expandable_segments",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "roundup_power2_divisions",
    "large_segment_size_mb",
    "garbage_collection_threshold",
];

/// Settings of the allocator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocatorConfig {
    /// Segments grow page by page.
    pub expandable_segments: bool,
    /// Blocks of this size and more are not split.
    pub max_split_size: Option<Bytes>,
    /// How much larger than the request an unsplit block may be.
    pub max_non_split_rounding: Bytes,
    /// Size of a segment that serves blocks of 1 to 10 MiB, and page of large expandable segments.
    pub large_segment: Bytes,
    /// Steps between two powers of two by size, from 1 MiB on in doublings; 0 and 1 round to 512 bytes.
    pub divisions: [u64; SLOTS],
}

impl Default for AllocatorConfig {
    fn default() -> AllocatorConfig {
        AllocatorConfig {
            expandable_segments: false,
            max_split_size: None,
            max_non_split_rounding: Bytes(20 << 20),
            large_segment: Bytes(20 << 20),
            divisions: [0; SLOTS],
        }
    }
}

impl AllocatorConfig {
    /// Reads `key:value,key:value`, as in `PYTORCH_ALLOC_CONF`; an empty text changes nothing. A threshold of garbage
    /// collection is read and has no effect, as without a memory fraction.
    ///
    /// # Errors
    /// Where a key is unknown or given twice, or a value cannot be used.
    ///
    /// ```
    /// use memfit::program::caching_allocator::AllocatorConfig;
    /// let config = AllocatorConfig::parse("expandable_segments:True,roundup_power2_divisions:[256:1,>:4]")?;
    /// assert!(config.expandable_segments);
    /// # Ok::<(), memfit::error::Error>(())
    /// ```
    pub fn parse(text: &str) -> Result<AllocatorConfig> {
        let mut config = AllocatorConfig::default();
        let mut seen = Vec::new();
        for pair in pairs(text) {
            let Some((key, value)) = pair.split_once(':') else {
                let next = "write key:value pairs with commas between them";
                return Err(Error::value(
                    "allocator setting",
                    pair,
                    "no `:` in it",
                    next,
                ));
            };
            let (key, value) = (key.trim(), value.trim());
            if seen.contains(&key) {
                return Err(Error::value(
                    "allocator setting",
                    key,
                    "it is given twice",
                    "give it once",
                ));
            }
            seen.push(key);
            config.set(key, value)?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "expandable_segments" => self.expandable_segments = truth(key, value)?,
            "max_split_size_mb" => {
                self.max_split_size = Some(mebibytes(key, value, LEAST_SPLIT_MB)?);
            }
            "max_non_split_rounding_mb" => {
                self.max_non_split_rounding = mebibytes(key, value, LEAST_SPLIT_MB)?;
            }
            "large_segment_size_mb" => {
                let size = mebibytes(key, value, 2)?;
                if size.0 % (2 << 20) != 0 {
                    let why = "segments are multiples of 2 MiB";
                    return Err(Error::value(key, value, why, "give an even number"));
                }
                self.large_segment = size;
            }
            "roundup_power2_divisions" => self.divisions = divisions(key, value)?,
            "garbage_collection_threshold" => threshold(key, value)?,
            _ => {
                let next = format!("the settings replayed are {}", KEYS.join(", "));
                return Err(Error::unknown("allocator setting", key, KEYS, next));
            }
        }
        Ok(())
    }

    /// A request's bytes as a block has them.
    pub(super) fn round(&self, bytes: u64) -> u64 {
        if bytes < GRAIN {
            return GRAIN;
        }
        let slot = bytes.ilog2().saturating_sub(FIRST_SLOT) as usize;
        let divisions = self.divisions[slot.min(SLOTS - 1)];
        if divisions <= 1 || bytes <= GRAIN * divisions {
            return bytes.next_multiple_of(GRAIN);
        }
        if bytes.is_power_of_two() {
            return bytes;
        }
        let floor = 1u64 << bytes.ilog2();
        match floor / divisions {
            0 => floor << 1,
            step => bytes.next_multiple_of(step),
        }
    }
}

/// The pairs of a text, split at commas outside brackets.
fn pairs(text: &str) -> Vec<&str> {
    let mut depth = 0i64;
    let outside = |c: char| {
        depth += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        c == ',' && depth <= 0
    };
    let all = text.split(outside).map(str::trim);
    all.filter(|pair| !pair.is_empty()).collect()
}

fn truth(key: &str, value: &str) -> Result<bool> {
    match value {
        "True" | "true" => Ok(true),
        "False" | "false" => Ok(false),
        _ => Err(Error::value(
            key,
            value,
            "no truth value",
            "give True or False",
        )),
    }
}

fn mebibytes(key: &str, value: &str, least: u64) -> Result<Bytes> {
    let bad = |why: String| Error::value(key, value, why, "give a whole number of MiB");
    let number: u64 = value.parse().map_err(|_| bad("no whole number".into()))?;
    match (least..=MOST_MB).contains(&number) {
        true => Ok(Bytes(number << 20)),
        false => Err(bad(format!("it must be from {least} to {MOST_MB}"))),
    }
}

fn threshold(key: &str, value: &str) -> Result<()> {
    match value.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(()),
        _ => Err(Error::value(
            key,
            value,
            "it must be between 0 and 1",
            "give a number such as 0.8",
        )),
    }
}

/// `8`, or `[256:1,512:2,>:4]` with sizes in MiB: slots below the first take its value, `>` fills the rest.
fn divisions(key: &str, value: &str) -> Result<[u64; SLOTS]> {
    let Some(list) = value.strip_prefix('[') else {
        return Ok([division(key, value)?; SLOTS]);
    };
    let bad = |why: &str| Error::value(key, value, why, "write it as [256:1,512:2,>:4]");
    let list = list
        .strip_suffix(']')
        .ok_or_else(|| bad("no `]` at the end"))?;
    let mut table = [0; SLOTS];
    let mut last = None;
    for entry in list.split(',') {
        let (size, count) = entry
            .split_once(':')
            .ok_or_else(|| bad("no `:` in an entry"))?;
        let count = division(key, count.trim())?;
        let slot = match size.trim() {
            ">" => {
                let from = last.map_or(0, |slot: usize| slot + 1);
                table[from..].fill(count);
                SLOTS - 1
            }
            size => {
                let size =
                    power_of_two(size).ok_or_else(|| bad("sizes are powers of two, in MiB"))?;
                let slot = (size.ilog2() as usize).min(SLOTS - 1);
                if last.is_none() {
                    table[..slot].fill(count);
                }
                table[slot] = count;
                slot
            }
        };
        last = Some(slot);
    }
    Ok(table)
}

fn division(key: &str, value: &str) -> Result<u64> {
    let bad = || {
        let why = "the number of divisions is a power of two";
        Error::value(key, value, why, "give 1, 2, 4, 8, …")
    };
    match value {
        "0" => Ok(0),
        _ => power_of_two(value).ok_or_else(bad),
    }
}

fn power_of_two(text: &str) -> Option<u64> {
    text.parse()
        .ok()
        .filter(|n: &u64| n.is_power_of_two() && *n <= 1 << 40)
}
