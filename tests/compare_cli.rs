//! `memfit compare` on files that cannot be compared: exit statuses and what is said.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::compare::{followed, with};

fn compare(file: &Path, more: &[&str]) -> Output {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
    command
        .arg("compare")
        .arg(file)
        .args(more)
        .output()
        .unwrap()
}

fn written(folder: &TempDir, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_file_without_records_is_an_error() {
    let folder = TempDir::new().unwrap();
    let empty = written(&folder, "empty.jsonl", "\n \n");
    for (file, said) in [
        (empty, "no records"),
        (folder.path().join("absent.jsonl"), "cannot read"),
        (folder.path().to_path_buf(), "cannot read"),
    ] {
        let output = compare(&file, &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(said),
            "{output:?}"
        );
    }
}

#[test]
fn a_table_is_fitted_to_the_speeds_of_a_file() {
    let folder = TempDir::new().unwrap();
    let mut fast = crate::compare::published("fast");
    fast["step_time_s"] = Value::from(2.0);
    let file = written(&folder, "runs.jsonl", &format!("{fast}\n"));
    let table = folder.path().join("table.toml");
    let output = compare(&file, &["--fit", table.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = std::fs::read_to_string(&table).unwrap();
    let read = memfit::machine::speed::Table::from_toml("table", &text).unwrap();
    assert_eq!(read.source.len(), 1);
    let rows = std::fs::read_to_string(table.with_extension("csv")).unwrap();
    assert!(rows.lines().nth(1).unwrap().starts_with("fast,"), "{rows}");
    let none = written(
        &folder,
        "none.jsonl",
        &format!("{}\n", crate::compare::published("p")),
    );
    let output = compare(&none, &["--fit", table.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // Without --fit the speeds stand beside the memory.
    let output = compare(&file, &["--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["speed"]["cases"], 1);
    assert!(answer["speed"]["by_source"][0]["median_abs_error"].is_number());
    let page = String::from_utf8(compare(&file, &[]).stdout).unwrap();
    assert!(
        page.contains("speed ") && page.contains("a step on"),
        "{page}"
    );
}

#[test]
fn a_file_of_bad_records_lists_them_and_compares_nothing() {
    let folder = TempDir::new().unwrap();
    let broken = with(followed("broken", 1), "/options/batch", Value::from(0));
    let file = written(&folder, "bad.jsonl", &format!("{broken}\nnonsense\n"));
    let output = compare(&file, &["--json", "--worst", "3"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            answer["cases"].as_u64(),
            answer["rows"].as_array().map(Vec::len)
        ),
        (Some(2), Some(0))
    );
    assert_eq!(answer["skipped"][0]["id"], "broken");
    let reason = answer["skipped"][1]["reason"].as_str().unwrap();
    assert!(reason.starts_with("line 2: not valid JSON"), "{reason}");
    assert!(answer["median_abs_error"].is_null());
    let output = compare(&file, &["--explain", "brokn"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `broken`"));
}
