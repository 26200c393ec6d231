//! `memfit trial`: candidates run, resume and are chosen.

use std::process::Command;

use memfit::machine::trial::{Outcome, Ran, Row, chosen};
use memfit::spec::units::{Bytes, Seconds};
use serde_json::Value;

/// A candidate that ended with `loss` and would take `step` seconds on the device.
fn ran(name: &str, loss: f32, step: f64) -> Row {
    let ran = Ran {
        choices: vec![],
        steps: 1,
        before: 5.0,
        loss,
        device_peak: Default::default(),
        device_step: Seconds(step),
        device_joules: None,
        predicted_peak: Default::default(),
        measured_peak: Default::default(),
        process_peak: Bytes(0),
        measured_step: Seconds(step),
    };
    Row {
        candidate: name.into(),
        rate: 1e-3,
        settings: String::new(),
        outcome: Outcome::Ran(Box::new(ran)),
    }
}

#[test]
fn the_cheapest_within_the_tolerance_of_the_least_loss_is_chosen() {
    let misfit = Row {
        outcome: Outcome::Misfit {
            why: "too large".into(),
        },
        ..ran("d", 0.1, 0.1)
    };
    let rows = [
        ran("a", 2.00, 3.0),
        ran("b", 2.03, 2.0),
        ran("c", 2.10, 1.0),
        ran("nan", f32::NAN, 0.1),
        misfit,
    ];
    assert_eq!(chosen(&rows, 0.02), Some(1));
    assert_eq!(chosen(&rows, 0.0), Some(0));
    assert_eq!(chosen(&rows, 0.5), Some(2));
    assert_eq!(chosen(&rows[3..], 0.5), None);
}

fn trial(folder: &std::path::Path, candidates: &str) -> Value {
    let line =
        "trial --model tiny --gpu 64MiB --seq 32 --batch 4 --steps 6 --lr 1e-3 --json --candidates";
    let output = Command::new(env!("CARGO_BIN_EXE_memfit"))
        .args(line.split(' '))
        .arg(candidates)
        .current_dir(folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn candidates_are_run_once_and_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let text = "adamw,sgd:momentum=0,lr=1e-2+fused_update,mezo:lr=1e-5,zo_sgd+clip";
    let first = trial(folder.path(), text);
    let all = first["candidates"].as_array().unwrap();
    assert_eq!(all.len(), 4);
    for candidate in &all[..3] {
        assert_eq!(candidate["outcome"], "ran", "{candidate}");
        assert_eq!(
            candidate["predicted"]["peak"],
            candidate["measured"]["peak"]
        );
        assert!(candidate["loss"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(all[1]["lr"], 1e-2);
    assert_eq!(all[3]["outcome"], "refused");
    assert!(all[3]["why"].as_str().unwrap().contains("clip"));
    assert_eq!(first["chosen"], "adamw");
    let rows = std::fs::read_to_string(folder.path().join("memfit-trial/trial.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 4);
    // A second trial finds every row, and runs only what is new.
    assert_eq!(trial(folder.path(), text), first);
    let more = trial(folder.path(), &format!("{text},zo_sign:lr=1e-5"));
    assert_eq!(more["candidates"].as_array().unwrap()[..4], all[..]);
    let rows = std::fs::read_to_string(folder.path().join("memfit-trial/trial.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 5);
}
