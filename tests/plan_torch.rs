//! `memfit plan --engine torch`: what it may choose, and that its flags read back to the same prediction.

use std::process::Output;

use serde_json::Value;

fn memfit(words: &[&str]) -> Output {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
    command.args(words).output().unwrap()
}

fn plan(line: &str, status: i32) -> Value {
    let mut words = vec!["plan", "--engine", "torch", "--json"];
    words.extend(line.split_whitespace());
    let output = memfit(&words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{line}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_flags_read_back_to_the_same_prediction() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        "--gpu 24GB --model llama-2-7b --allow lossy",
        "--gpu 8GB --model llama-2-7b --allow lossy --seq 1024",
        "--gpu 24GB --model gpt2 --batch 8 --seq 512",
        "--gpu 24GB --model gpt2 --batch 8 --seq 512 --optimizer adafactor --precision f32",
        "--gpu 16GB --model llama-3.2-1b --allow lossy --batch 4",
        "--gpu 24GB --model bert-base --batch 16 --seq 512 --precision fp16",
        "--gpu rtx-4090 --model gpt2 --torch checkpointing=full_reentrant,optimizer_impl=foreach,clip_grad_norm=none",
    ] {
        let path = folder.path().join("trainer.json");
        let path = path.to_str().unwrap();
        let answer = plan(&format!("{line} -o {path}"), 0);
        let mut words = vec!["estimate", "--json", "--trainer", path];
        let gpu = line.split_whitespace().nth(1).unwrap();
        words.extend(["--gpu", gpu]);
        let more = answer["trainer"]["torch"].as_str().unwrap();
        if !more.is_empty() {
            words.extend(["--torch", more]);
        }
        let set = answer["trainer"]["environment"]["PYTORCH_CUDA_ALLOC_CONF"].as_str();
        words.extend(set.into_iter().flat_map(|conf| ["--alloc-conf", conf]));
        let output = memfit(&words);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{line}: {words:?} {output:?}"
        );
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(read["options"], answer["plan"]["options"], "{line}");
        for key in ["counters", "band", "step_seconds", "tokens_per_second"] {
            assert_eq!(read[key], answer["estimate"][key], "{line}: {key}");
        }
        assert!(
            read["ignored"].as_array().unwrap().is_empty(),
            "{}",
            read["ignored"]
        );
    }
}

#[test]
fn nothing_is_chosen_that_is_not_allowed() {
    let classes = |line: &str| -> Vec<String> {
        let answer = plan(line, 0);
        let all = answer["alternatives"].as_array().unwrap().iter();
        let mut classes: Vec<String> = all
            .map(|c| c["exactness"].as_str().unwrap().to_string())
            .collect();
        classes.sort();
        classes.dedup();
        classes
    };
    let job = "--gpu 24GB --model gpt2 --batch 4 --seq 256 --allow";
    assert_eq!(classes(&format!("{job} bitwise")), ["bitwise"]);
    assert_eq!(classes(&format!("{job} rounding")), ["bitwise", "rounding"]);
    assert_eq!(
        classes(&format!("{job} lossy")),
        ["bitwise", "lossy", "rounding"]
    );
}

#[test]
fn what_is_decided_is_kept() {
    let answer = plan(
        "--gpu 24GB --model gpt2 --batch 4 --seq 256 --allow lossy --torch checkpointing=full,batch=2,grad_accum=2",
        0,
    );
    for one in answer["alternatives"].as_array().unwrap() {
        let options = one["torch"].as_str().unwrap();
        for pair in ["checkpointing=full", "batch=2", "grad_accum=2"] {
            assert!(options.split(',').any(|p| p == pair), "{options}");
        }
    }
    assert_eq!(answer["plan"]["batch"], 4);
    assert!(
        !answer["name"]
            .as_str()
            .unwrap()
            .contains("nothing recomputed")
    );
}

#[test]
fn more_memory_is_never_slower_and_what_fits_says_so() {
    let mut last = f64::INFINITY;
    for size in [6u64, 8, 10, 12, 16, 24, 40, 80] {
        let line =
            format!("--gpu {size}GiB --model llama-3.2-1b --batch 8 --seq 512 --allow lossy");
        let answer = plan(&line, 0);
        let step = answer["estimate"]["step_seconds"].as_f64().unwrap();
        assert_eq!(answer["outcome"], "fits");
        let most = answer["estimate"]["band"]["most"].as_u64().unwrap();
        assert!(most <= answer["budget"]["gpu"].as_u64().unwrap(), "{line}");
        assert!(step <= last * 1.000_001, "{line}: {step} after {last}");
        last = step;
    }
}

#[test]
fn a_misfit_says_by_how_much_and_what_to_change() {
    let answer = plan("--gpu 24GB --model llama-2-7b", 1);
    assert_eq!(answer["outcome"], "misfit");
    let misfit = &answer["misfit"];
    let number = |key: &str| misfit[key].as_u64().unwrap();
    assert_eq!(number("over"), number("need") - number("have"));
    assert!(
        misfit["change"]
            .as_str()
            .unwrap()
            .contains("--allow lossy would: ")
    );
    let answer = plan("--gpu 1GB --model llama-2-7b --allow lossy", 1);
    assert!(
        answer["misfit"]["change"]
            .as_str()
            .unwrap()
            .contains("more on the device")
    );
}

#[test]
fn equal_questions_have_equal_answers_within_a_second() {
    let ask = || {
        let mut answer = plan("--gpu 24GB --model llama-2-7b --allow lossy", 0);
        let seconds = answer["search"]["seconds"].take();
        (answer, seconds.as_f64().unwrap())
    };
    let ((first, a), (second, b)) = (ask(), ask());
    assert_eq!(first, second);
    assert!(a.min(b) < 1.0, "{a} {b}");
}

#[test]
fn the_page_has_the_flags_and_the_table() {
    let words = "plan --engine torch --gpu 24GB --model llama-2-7b --allow lossy";
    let words: Vec<&str> = words.split_whitespace().collect();
    let page = String::from_utf8(memfit(&words).stdout).unwrap();
    for part in [
        "fits ",
        "tokens/s",
        "--per_device_train_batch_size 1",
        "LoraConfig(r=16",
        "QLoRA",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let chosen = page.lines().filter(|line| line.starts_with('>')).count();
    assert_eq!(chosen, 1, "{page}");
}

#[test]
fn options_of_one_engine_are_refused_by_the_other() {
    for (line, said) in [
        ("--engine torch --fix recompute", "--torch"),
        ("--torch attn=eager", "--engine torch"),
        ("--engine torch --optimizer adamwx", "adamw"),
        ("--engine torch --torch atn=eager", "atn"),
    ] {
        let mut words = vec!["plan", "--gpu", "24GB", "--model", "gpt2"];
        words.extend(line.split_whitespace());
        let output = memfit(&words);
        assert_eq!(output.status.code(), Some(2), "{line}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(said), "{line}: {error}");
    }
}
