//! The README: every command in it runs, and its table is what the program says.

use std::process::Command;

const README: &str = include_str!("../README.md");

/// The memfit commands of the README, in order, `cargo run --release --` read as `memfit`.
fn commands() -> Vec<Vec<&'static str>> {
    let lines = README
        .lines()
        .map(|l| l.trim_start_matches("cargo run --release -- ").trim());
    let mut inside = false;
    let mut found = Vec::new();
    for (raw, line) in README.lines().zip(lines) {
        if raw.starts_with("```") {
            inside = raw == "```sh";
        } else if inside && (raw.starts_with("memfit ") || raw.starts_with("cargo run ")) {
            found.push(
                line.trim_start_matches("memfit ")
                    .split_whitespace()
                    .collect(),
            );
        }
    }
    found
}

#[test]
fn every_command_of_the_readme_runs() {
    let folder = tempfile::tempdir().unwrap();
    // Evidence is read where the README stands; all that is written goes elsewhere.
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    std::os::unix::fs::symlink(tests, folder.path().join("tests")).unwrap();
    let commands = commands();
    assert!(commands.len() > 12, "{commands:?}");
    for arguments in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_memfit"))
            .args(&arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "memfit {}: {}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_table_of_techniques_is_what_the_program_says() {
    let techniques = memfit::technique::TECHNIQUES.iter().map(|t| t.card());
    for card in techniques {
        let class = format!("{:?}", card.exactness).to_lowercase();
        let row = format!("| `{}` | {} | {class} |", card.name, card.summary);
        assert!(README.contains(&row), "the README lacks: {row}");
    }
}
