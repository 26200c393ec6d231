//! Patterns over stable paths: `*`, `layers.*`, `layers.0-11`, `layers.0-11|14/mlp/*`, several joined by `+`.

use std::fmt;

use crate::error::{Error, Result};
use crate::graph::Node;

/// A set of paths. Segments are compared one by one; a pattern that ends early matches everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    alternatives: Vec<Vec<Segment>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Any,
    Text(String),
    /// `stem.from-to|from-to`, inclusive.
    Ranges(String, Vec<(u64, u64)>),
    /// `stem.*`
    Each(String),
}

impl Pattern {
    /// Everything.
    pub fn all() -> Pattern {
        Pattern {
            text: "*".into(),
            alternatives: vec![vec![Segment::Any]],
        }
    }

    /// Reads a pattern.
    ///
    /// # Errors
    /// Where a range is no range.
    pub fn parse(text: &str) -> Result<Pattern> {
        let alternatives = text
            .split('+')
            .map(|part| part.trim().split('/').map(segment).collect())
            .collect::<Result<_>>()?;
        Ok(Pattern {
            text: text.to_string(),
            alternatives,
        })
    }

    /// Adds the paths of `more`.
    pub fn join(&mut self, more: Pattern) {
        self.text = format!("{}+{}", self.text, more.text);
        self.alternatives.extend(more.alternatives);
    }

    /// Whether a node is in the set, by itself or with its whole block.
    pub fn matches_node(&self, node: &Node) -> bool {
        self.matches(&node.block) || self.matches(&node.origin)
    }

    /// Whether `path` is in the set.
    pub fn matches(&self, path: &str) -> bool {
        self.alternatives.iter().any(|segments| {
            let mut parts = path.split('/');
            segments
                .iter()
                .all(|s| parts.next().is_some_and(|p| s.matches(p)))
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn segment(text: &str) -> Result<Segment> {
    let bad = |why: &str| {
        Error::value(
            "site",
            text,
            why,
            "write a path such as layers.0-11/mlp, layers.* or *",
        )
    };
    if text == "*" {
        return Ok(Segment::Any);
    }
    if text.is_empty() {
        return Err(bad("an empty part"));
    }
    let Some((stem, rest)) = text.split_once('.') else {
        return Ok(Segment::Text(text.to_string()));
    };
    if rest == "*" {
        return Ok(Segment::Each(stem.to_string()));
    }
    let ranges: Option<Vec<(u64, u64)>> = rest.split('|').map(range).collect();
    match ranges {
        Some(ranges) if ranges.iter().any(|(from, to)| from > to) => {
            Err(bad("a range that ends before it begins"))
        }
        Some(ranges) => Ok(Segment::Ranges(stem.to_string(), ranges)),
        None => Ok(Segment::Text(text.to_string())),
    }
}

/// `3` or `0-11`.
fn range(text: &str) -> Option<(u64, u64)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some((from.parse().ok()?, to.parse().ok()?))
}

impl Segment {
    fn matches(&self, part: &str) -> bool {
        let numbered = |stem: &str| {
            part.strip_prefix(stem)?
                .strip_prefix('.')?
                .parse::<u64>()
                .ok()
        };
        match self {
            Segment::Any => true,
            Segment::Text(text) => part == text,
            Segment::Each(stem) => numbered(stem).is_some(),
            Segment::Ranges(stem, ranges) => numbered(stem)
                .is_some_and(|n| ranges.iter().any(|&(from, to)| (from..=to).contains(&n))),
        }
    }
}
