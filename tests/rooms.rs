//! Laws of the source itself: which room may use which, how long files and functions are, what names say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use memfit::plan::Choice;
use memfit::technique::{self, TECHNIQUES};

/// The rooms, the highest first: each may use those below it, and `error`.
const ROOMS: [&str; 8] = [
    "show",
    "search",
    "machine",
    "program",
    "plan",
    "technique",
    "graph",
    "spec",
];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "helpers", "common", "manager", "misc"];

/// A source file: its path below `src`, and its lines.
struct Source {
    path: PathBuf,
    lines: Vec<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source {
                    path: path.strip_prefix(&root).unwrap().to_path_buf(),
                    lines: text.lines().map(str::to_string).collect(),
                });
            }
        }
    }
    assert!(found.len() > 50, "{} files are not all", found.len());
    found
}

impl Source {
    /// The modules it stands in, its own last.
    fn modules(&self) -> Vec<String> {
        let plain = self.path.with_extension("");
        let parts = plain.iter().map(|p| p.to_string_lossy().into_owned());
        parts.filter(|p| p != "mod").collect()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Lines of code, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &String)> {
        let lines = (1..).zip(&self.lines);
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// What follows each `crate::` of a line.
fn arrows(line: &str) -> Vec<&str> {
    let word = |rest: &'_ str| {
        rest.find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len())
    };
    let parts = line.split("crate::").skip(1);
    parts.map(|rest| &rest[..word(rest)]).collect()
}

/// Whether code in `from` may name `to`.
fn may_use(from: &str, to: &str) -> bool {
    let rank = |room: &str| ROOMS.iter().position(|r| *r == room);
    // The macro that picks an element type belongs to the graph.
    let to = if to == "with_float" { "graph" } else { to };
    match (rank(from), rank(to)) {
        _ if to == "error" || from == to => true,
        (Some(from), Some(to)) => from < to,
        // What is no room is at the top: the command line.
        (None, _) => ["cli", "main", "lib"].contains(&from),
        (Some(_), None) => false,
    }
}

#[test]
fn rooms_use_only_what_lies_below_them() {
    assert!(may_use("show", "spec") && !may_use("spec", "show") && !may_use("technique", "plan"));
    assert_eq!(arrows("use crate::graph::Step; crate::{x}"), ["graph", ""]);
    for source in sources() {
        let modules = source.modules();
        for (number, line) in source.code() {
            for to in arrows(line) {
                assert!(
                    may_use(&modules[0], to),
                    "{}:{number}: {} may not use `{to}`",
                    source.name(),
                    modules[0]
                );
            }
            let ups = line.matches("super::").count();
            let inside = line.contains("super::super") && ups >= modules.len();
            assert!(!inside, "{}:{number} leaves its room", source.name());
        }
    }
}

#[test]
fn files_open_with_their_job_and_stay_short() {
    for source in sources() {
        let (name, count) = (source.name(), source.lines.len());
        assert!(
            source.lines[0].starts_with("//! "),
            "{name} does not say what it is for"
        );
        let limit = if name.starts_with("graph/op/") {
            500
        } else {
            400
        };
        assert!(count <= limit, "{name} has {count} lines");
    }
}

/// Lines from each `fn` to the brace that closes it, as rustfmt sets them.
fn functions(source: &Source) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (number, line) in source.code() {
        let start = line.trim_start();
        let words = start.split(' ').take_while(|w| *w != "fn");
        let prefix = words.collect::<Vec<_>>().join(" ");
        let begins = start.starts_with(&format!("{prefix} fn ").trim_start().to_string());
        let known =
            |w: &str| w.starts_with("pub") || ["", "const", "unsafe", "extern"].contains(&w);
        if !begins || !prefix.split(' ').all(known) {
            continue;
        }
        let indent = &line[..line.len() - start.len()];
        let closing = format!("{indent}}}");
        let rest = source.lines[number - 1..].iter();
        let body = rest.take_while(|l| {
            **l != closing
                && !(l.ends_with(';')
                    && l.starts_with(indent)
                    && !l[indent.len()..].starts_with(' '))
        });
        found.push((number, body.count() + 1));
    }
    found
}

#[test]
fn functions_stay_short() {
    let mut lengths = Vec::new();
    for source in sources() {
        for (number, length) in functions(&source) {
            assert!(
                length <= 60,
                "{}:{number} is {length} lines long",
                source.name()
            );
            lengths.push(length);
        }
    }
    lengths.sort_unstable();
    println!("the longest has {:?} lines", lengths.last());
    let median = lengths[lengths.len() / 2];
    assert!(
        lengths.len() > 1000,
        "{} functions are not all",
        lengths.len()
    );
    assert!(
        median <= 10,
        "half of the functions are longer than {median} lines"
    );
}

#[test]
fn names_say_something() {
    for source in sources() {
        for module in source.modules() {
            assert!(!EMPTY_NAMES.contains(&module.as_str()), "{}", source.name());
        }
    }
}

#[test]
fn every_technique_has_a_complete_card_and_names_of_its_own() {
    let mut names = BTreeSet::new();
    for technique in TECHNIQUES {
        let card = technique.card();
        for name in [card.name].iter().chain(card.aliases) {
            assert!(names.insert(*name), "two techniques answer to {name}");
            assert_eq!(technique::find(name).unwrap().card().name, card.name);
            assert!(
                !name.is_empty()
                    && name
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            );
        }
        let complete = |text: &str| text.len() > 5 && text.trim() == text && !text.contains('\n');
        assert!(
            complete(card.summary) && !card.summary.ends_with('.'),
            "{}",
            card.name
        );
        let year = card
            .source
            .split(|c: char| !c.is_ascii_digit())
            .any(|w| w.len() == 4);
        assert!(
            complete(card.source) && year,
            "{} has no source with a year",
            card.name
        );
        let keys: BTreeSet<&str> = card.arguments.iter().map(|a| a.key).collect();
        assert_eq!(
            keys.len(),
            card.arguments.len(),
            "{} has a key twice",
            card.name
        );
        for argument in card.arguments {
            let stated = !argument.key.is_empty() && !argument.default.is_empty();
            assert!(
                stated && complete(argument.meaning),
                "{}: {}",
                card.name,
                argument.key
            );
            let spelled = format!("{}:{}={}", card.name, argument.key, argument.default);
            assert_eq!(Choice::parse(&spelled).unwrap().technique, card.name);
        }
    }
}
