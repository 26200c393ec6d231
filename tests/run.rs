//! `memfit run` as its users meet it: contracts, interruptions, bad input.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// `memfit run` on `tiny`, with more arguments.
fn command(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memfit"));
    command.args([
        "run", "--model", "tiny", "--gpu", "64MiB", "--seq", "32", "--batch", "2",
    ]);
    command.args(["--precision", "f32"]).args(more);
    command
}

/// The JSON of a run that must succeed.
fn json(more: &[&str]) -> Value {
    let output = command(more).arg("--json").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The error text of a run that must fail with status 2.
fn refused(more: &[&str]) -> String {
    let output = command(more).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(2),
        "{more:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn a_run_keeps_its_json_contract_and_its_peaks() {
    let run = json(&["--steps", "3", "--eval", "10%"]);
    assert_eq!(run["predicted"]["peak"], run["measured"]["peak"]);
    assert_eq!(run["losses"].as_array().unwrap().len(), 3);
    assert_eq!(run["eval_losses"].as_array().unwrap().len(), 1);
    for key in [
        "/measured/process_peak",
        "/predicted/step_seconds",
        "/measured/step_seconds",
        "/tokens_per_second",
    ] {
        assert!(run.pointer(key).unwrap().as_f64().unwrap() > 0.0, "{key}");
    }
}

#[test]
fn runs_repeat_bit_by_bit_and_depend_on_the_seed() {
    let losses = |seed: &str| json(&["--steps", "4", "--seed", seed])["losses"].clone();
    assert_eq!(losses("1"), losses("1"));
    assert_ne!(losses("1"), losses("2"));
}

/// Starts a long run that saves every few steps and waits for its first save.
fn started(save: &Path) -> Child {
    let save_text = save.to_str().unwrap();
    let child = command(&[
        "--steps",
        "100000",
        "--save",
        save_text,
        "--save-every",
        "2",
    ])
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let begin = Instant::now();
    while !save.join("memfit.json").exists() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "nothing was saved in a minute"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &pid])
            .status()
            .unwrap()
            .success()
    );
}

/// Losses as they were computed: JSON may print more digits than an f32 has.
fn floats(values: &Value) -> Vec<f32> {
    values
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_f64().unwrap() as f32)
        .collect()
}

/// Steps and losses of a save.
fn saved(save: &Path) -> (u64, Vec<f32>) {
    let text = std::fs::read_to_string(save.join("memfit.json")).unwrap();
    let progress: Value = serde_json::from_str(&text).unwrap();
    let losses = floats(&progress["losses"]);
    (progress["step"].as_u64().unwrap(), losses)
}

#[test]
fn an_interrupted_or_killed_run_resumes_from_its_last_save_and_leaves_nothing_behind() {
    for kill in ["-INT", "-KILL"] {
        let folder = tempfile::tempdir().unwrap();
        let save = folder.path().join("save");
        let mut child = started(&save);
        signal(&child, kill);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), if kill == "-INT" { Some(2) } else { None });
        // A kill in the middle of a save leaves the old folder aside until the next start puts it back.
        memfit::machine::train::save::recover(&save).unwrap();
        let (step, losses) = saved(&save);
        let target = (step + 3).to_string();
        let resumed = json(&[
            "--steps",
            &target,
            "--resume",
            save.to_str().unwrap(),
            "--save",
            save.to_str().unwrap(),
        ]);
        let all = floats(&resumed["losses"]);
        assert_eq!(all[..losses.len()], losses[..], "{kill}");
        let whole = json(&["--steps", &target]);
        assert_eq!(
            whole["losses"], resumed["losses"],
            "{kill}: a resumed run differs from an uninterrupted one"
        );
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["save"], "{kill}: stray files");
    }
}

#[test]
fn a_save_alone_is_enough_to_continue() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("save");
    let first = json(&["--steps", "2", "--save", save.to_str().unwrap()]);
    let output = Command::new(env!("CARGO_BIN_EXE_memfit"))
        .args([
            "run",
            "--resume",
            save.to_str().unwrap(),
            "--steps",
            "3",
            "--json",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let second: Value = serde_json::from_slice(&output.stdout).unwrap();
    let both = second["losses"].as_array().unwrap();
    assert_eq!(both[..2], first["losses"].as_array().unwrap()[..]);
    assert_eq!(both.len(), 3);
}

#[test]
fn a_misfit_is_an_answer_with_status_one() {
    let output = Command::new(env!("CARGO_BIN_EXE_memfit"))
        .args(["run", "--model", "tiny", "--gpu", "10KiB", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["outcome"], "misfit");
}

#[test]
fn bad_input_is_named_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "too short").unwrap();
    let short = short.to_str().unwrap();
    for (arguments, wanted) in [
        (&["--data", short][..], "short"),
        (&["--data", "/nowhere/text.txt"], "/nowhere/text.txt"),
        (&["--lr", "NaN"], "--lr"),
        (&["--threads", "0"], "--threads"),
        (&["--link", "900000GB/s"], "copies"),
        (&["--eval", "200%"], "--eval"),
        (&["--save", "/proc/save"], "/proc"),
        (&["--resume", "/nowhere/save"], "/nowhere/save"),
        (&["--weights", "/nowhere/weights"], "/nowhere/weights"),
        (
            &[
                "--fix",
                "offload:what=optimizer,to=disk",
                "--offload-dir",
                "/proc",
            ],
            "/proc",
        ),
    ] {
        let text = refused(&[arguments, &["--steps", "1"]].concat());
        assert!(text.contains(wanted), "{arguments:?}: {text}");
    }
}

/// The error text of a run that may write files of at most `blocks` times 512 bytes, as on a disk that is full.
fn refused_on_a_full_disk(blocks: &str, more: &[&str]) -> String {
    let run = command(more);
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", blocks])
        .arg(run.get_program())
        .args(run.get_args())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn a_full_disk_during_offload_or_save_is_an_error_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let fix = "offload:what=optimizer,to=disk";
    let offload = ["--fix", fix, "--offload-dir", path, "--steps", "1"];
    let text = refused_on_a_full_disk("1000", &offload);
    assert!(text.contains(path), "{text}");

    let save = folder.path().join("save");
    let saving = |steps: &'static str| ["--steps", steps, "--save", save.to_str().unwrap()];
    json(&saving("1"));
    let before = saved(&save);
    let text = refused_on_a_full_disk("1000", &saving("2"));
    assert!(text.contains(path), "{text}");
    assert_eq!(saved(&save), before, "the save before is whole");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}
