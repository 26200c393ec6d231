//! What methods learn, as a table of means over seeds, and what must hold.

use super::table::Column::{Left, Right, Wrapped};
use super::table::Table;
use crate::machine::learning::{Cell, Row, Verdict};
use crate::spec::units::{Bytes, Seconds};

/// Heads of the columns, here and in the documentation.
const HEADS: [&str; 7] = [
    "method",
    "rate",
    "held-out loss",
    "memory",
    "measured",
    "step",
    "measured",
];

/// The runs by part, and the demands.
pub fn text(rows: &[Row], verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for (part, lines) in parts(rows) {
        let columns = [Wrapped, Left, Right, Right, Right, Right, Right];
        let mut table = Table::new(&columns).heads(&HEADS);
        lines.into_iter().for_each(|line| table.row(line));
        text += &format!("{part}\n{}\n", table.render());
    }
    for verdict in verdicts {
        text += &format!("{}\n", sentence(verdict));
    }
    text
}

/// The same as tables and a list of Markdown.
pub fn markdown(rows: &[Row], verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for (part, lines) in parts(rows) {
        let rule = "|---|--:|--:|--:|--:|--:|--:|";
        text += &format!("## {part}\n\n| {} |\n{rule}\n", HEADS.join(" | "));
        for mut line in lines {
            line[0] = format!("`{}`", line[0]);
            text += &format!("| {} |\n", line.join(" | "));
        }
        text += "\n";
    }
    text += "## What is held\n\n";
    for verdict in verdicts {
        text += &format!("- {}\n", sentence(verdict));
    }
    text
}

fn sentence(verdict: &Verdict) -> String {
    let Verdict {
        name,
        demand,
        found,
        bound,
        holds,
    } = verdict;
    let holds = if *holds { "holds" } else { "MISSED" };
    format!("{name}: {demand}: {found:.3}, bound {bound}: {holds}")
}

/// The lines of each part, seeds of a method together, in order of first appearance.
fn parts(rows: &[Row]) -> Vec<(&str, Vec<Vec<String>>)> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let name = Cell::parts(&row.name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut found: Vec<(&str, Vec<Vec<String>>)> = Vec::new();
    for (part, method) in names {
        let own = rows
            .iter()
            .filter(|r| Cell::parts(&r.name) == (part, method));
        let line = line(method, &own.collect::<Vec<_>>());
        match found.iter_mut().find(|(p, _)| *p == part) {
            Some((_, lines)) => lines.push(line),
            None => found.push((part, vec![line])),
        }
    }
    found
}

/// One method: means over its seeds, memory and time of the first.
fn line(method: &str, rows: &[&Row]) -> Vec<String> {
    let mean = |of: fn(&Row) -> f64| rows.iter().map(|r| of(r)).sum::<f64>() / rows.len() as f64;
    let spread = match rows.len() {
        0 | 1 => String::new(),
        count => {
            let middle = mean(|r| r.after);
            let square: f64 = rows.iter().map(|r| (r.after - middle).powi(2)).sum();
            format!(" ± {:.3}", (square / (count - 1) as f64).sqrt())
        }
    };
    let total = |p: crate::spec::job::PerPlace<Bytes>| (p.gpu + p.pinned + p.host).to_string();
    let first = rows.first();
    let step = |s: Option<Seconds>| s.map_or("-".to_string(), |s| s.to_string());
    vec![
        method.to_string(),
        first.map_or(String::new(), |r| format!("{:e}", r.rate)),
        format!(
            "{:.3} -> {:.3}{spread}",
            mean(|r| r.before),
            mean(|r| r.after)
        ),
        first.map_or(String::new(), |r| total(r.predicted)),
        first.map_or(String::new(), |r| total(r.measured)),
        step(first.and_then(|r| r.predicted_step)),
        step(first.map(|r| r.measured_step)),
    ]
}
