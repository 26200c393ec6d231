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

/// `INSTA_UPDATE=always` draws them anew.
#[test]
fn the_figures_are_what_report_draws() {
    for figure in ["memory", "front"] {
        let output = Command::new(env!("CARGO_BIN_EXE_memfit"))
            .args(["report", "7b-24gb", "--svg", figure])
            .output()
            .unwrap();
        assert!(output.status.success());
        let drawn = String::from_utf8(output.stdout).unwrap();
        let file = format!("docs/{figure}.svg");
        assert!(README.contains(&format!("({file})")), "{file}");
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
        if std::env::var("INSTA_UPDATE").as_deref() == Ok("always") {
            std::fs::write(&path, drawn).unwrap();
            continue;
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(
            kept == drawn,
            "{file}: run this test with INSTA_UPDATE=always"
        );
    }
}

#[test]
fn the_help_of_every_command_ends_with_examples_that_work() {
    let memfit = |words: &[&str], folder: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memfit"));
        command.args(words).current_dir(folder).output().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let evidence = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/evidence");
    let give = |from: &str, to: &str, lines: usize| {
        let text = std::fs::read_to_string(format!("{evidence}/{from}")).unwrap();
        let text: Vec<&str> = text.lines().take(lines).collect();
        std::fs::write(folder.path().join(to), text.join("\n") + "\n").unwrap();
    };
    give("minimalloc/example.12.csv", "buffers.csv", usize::MAX);
    give("torch_cases.jsonl", "runs.jsonl", 5);
    let help = String::from_utf8(memfit(&["--help"], folder.path()).stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let names = commands.lines().map_while(|l| l.split_whitespace().next());
    let names: Vec<&str> = names.filter(|name| *name != "help").collect();
    assert!(names.len() >= 20, "{names:?}");
    for name in names {
        let page = memfit(&[name, "--help"], folder.path()).stdout;
        let page = String::from_utf8(page).unwrap();
        let (_, examples) = page.split_once("\nExamples:\n").unwrap();
        let start = format!("memfit {name}");
        for line in examples.lines() {
            assert!(line.trim().starts_with(&start), "{name}: {line}");
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            if name == "calibrate" {
                continue; // A minute, and the suite has its own.
            }
            let output = memfit(&words, folder.path());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match name {
                // Nobody watches a test.
                "tui" => assert!(said.contains("no terminal"), "{line}: {said}"),
                // Where there is no GPU, one sentence says what is missing.
                "selftest" if output.status.code() == Some(2) => {
                    assert!(said.contains("no NVIDIA driver"), "{line}: {said}")
                }
                _ => assert_eq!(output.status.code(), Some(0), "{line}: {said}"),
            }
        }
    }
}
