//! `memfit estimate`: exactly this job with PyTorch, its verdict, its limits, and what must be refused.

use std::process::Output;

use serde_json::Value;

fn memfit(words: &[&str]) -> Output {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
    command.arg("estimate").args(words).output().unwrap()
}

fn json(line: &str, status: i32) -> Value {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    words.push("--json");
    let output = memfit(&words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{line}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn bytes(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no integer"))
}

fn trainer(name: &str) -> String {
    format!("{}/tests/trainers/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn an_estimate_without_a_device_states_what_the_job_takes() {
    let answer = json("--model gpt2 --torch batch=2,seq=256", 0);
    assert_eq!(answer["outcome"], "unknown");
    assert!(answer["budget"].is_null() && answer["largest"].is_null());
    assert!(answer["step_seconds"].is_null() && answer["speed"].is_null());
    let prediction = &answer["prediction"];
    let held: u64 = prediction["breakdown"]
        .as_object()
        .unwrap()
        .values()
        .map(bytes)
        .sum();
    assert_eq!(held, bytes(&prediction["peak"]));
    let phases = prediction["phase_peak"].as_object().unwrap();
    assert_eq!(phases.values().map(bytes).max(), Some(held));
    assert!(prediction["phase"].is_string() && prediction["op"].is_string());
    let counter = |name: &str| bytes(&answer["counters"][name]);
    assert!(held < counter("allocated") && counter("allocated") <= counter("reserved"));
    assert!(counter("reserved") < counter("process"));
    let assumed = answer["assumed"].as_array().unwrap();
    let named = |key: &str| assumed.iter().any(|note| note["field"] == key);
    assert!(named("optimizer") && named("checkpointing") && !named("batch") && !named("seq"));
}

#[test]
fn the_verdict_is_an_exit_status() {
    for (gpu, outcome, status) in [
        ("24GB", "fits", 0),
        ("1GiB", "misfit", 1),
        ("0B", "misfit", 1),
    ] {
        let answer = json(
            &format!("--model gpt2 --gpu {gpu} --torch batch=1,seq=128"),
            status,
        );
        assert_eq!(answer["outcome"], outcome, "{gpu}");
    }
    let whole = json("--model gpt2 --gpu 24GiB --torch batch=1,seq=128", 0);
    let (least, most) = (
        bytes(&whole["band"]["least"]),
        bytes(&whole["band"]["most"]),
    );
    assert!(least < most);
    for (gpu, outcome, status) in [
        (most, "fits", 0),
        (most - 1, "close", 1),
        (least, "close", 1),
        (least - 1, "misfit", 1),
    ] {
        let answer = json(
            &format!("--model gpt2 --gpu {gpu}B --torch batch=1,seq=128"),
            status,
        );
        assert_eq!(answer["outcome"], outcome, "{gpu}");
        assert_eq!(bytes(&answer["budget"]), gpu);
    }
}

#[test]
fn the_largest_batch_and_length_fit_and_the_next_do_not() {
    let answer = json("--model gpt2 --gpu 6GiB --torch batch=3,seq=320", 0);
    let (batch, seq) = (
        bytes(&answer["largest"]["batch"]),
        bytes(&answer["largest"]["seq"]),
    );
    assert!(batch >= 3 && (320..=1024).contains(&seq), "{batch} {seq}");
    for (batch, seq, status) in [(batch, 320, 0), (batch + 1, 320, 1), (3, seq, 0)] {
        json(
            &format!("--model gpt2 --gpu 6GiB --torch batch={batch},seq={seq}"),
            status,
        );
    }
    if seq < 1024 {
        json(
            &format!(
                "--model gpt2 --gpu 6GiB --torch batch=3,seq={}",
                (seq + 64).min(1024)
            ),
            1,
        );
    }
    let none = json("--model gpt2 --gpu 1MiB", 1);
    assert!(none["largest"]["batch"].is_null() && none["largest"]["seq"].is_null());
}

#[test]
fn a_trainers_file_is_the_job_and_pairs_win_over_it() {
    let arguments = trainer("training_arguments.json");
    let answer = json(
        &format!("--model tiny --trainer {arguments} --torch seq=64,optimizer=sgd"),
        0,
    );
    let options = &answer["options"];
    assert_eq!((bytes(&options["batch"]), bytes(&options["seq"])), (2, 64));
    assert_eq!(
        (&options["optimizer"], &options["optimizer_impl"]),
        (&"sgd".into(), &"foreach".into())
    );
    let ignored = answer["ignored"].as_array().unwrap();
    assert!(
        ignored
            .iter()
            .any(|n| n["field"] == "deepspeed" && n["matters"] == true)
    );
    assert!(
        ignored
            .iter()
            .any(|n| n["field"] == "logging_steps" && n["matters"] == false)
    );
    let (factory, axolotl) = (trainer("llama_factory.yaml"), trainer("axolotl.yml"));
    let answer = json(&format!("--trainer {factory} --gpu 24GB"), 0);
    assert_eq!(
        answer["options"]["lora"]["targets"]
            .as_array()
            .map(Vec::len),
        Some(7)
    );
    assert_eq!(answer["trainer"], "LLaMA-Factory");
    let answer = json(&format!("--trainer {axolotl} --torch quant=none"), 0);
    assert!(answer["options"]["quant"].is_null());
    let page = memfit(&["--trainer", &axolotl, "--gpu", "24GB"]);
    let page = String::from_utf8(page.stdout).unwrap();
    for word in [
        "fits",
        "largest",
        "max_memory_reserved",
        "saved activations",
        "assumed",
        "ignored",
    ] {
        assert!(page.contains(word), "no {word} in {page}");
    }
    assert!(
        page.lines().all(|line| line.chars().count() <= 100),
        "{page}"
    );
}

#[test]
fn adapters_go_where_the_family_has_modules() {
    let answer = json("--model gpt2 --torch lora.r=4,batch=1,seq=64", 0);
    assert_eq!(
        answer["options"]["lora"]["targets"],
        serde_json::json!(["c_attn"])
    );
    let answer = json(
        "--model gpt2 --torch lora.targets=all-linear,batch=1,seq=64",
        0,
    );
    assert_eq!(
        answer["options"]["lora"]["targets"],
        serde_json::json!(["c_attn", "c_proj", "c_fc"])
    );
    let error = json("--model gpt2 --torch lora.targets=q_proj", 2);
    assert!(
        error["error"].as_str().unwrap().contains("c_attn"),
        "{error}"
    );
}

#[test]
fn bad_questions_are_refused_with_a_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.yml");
    std::fs::write(&broken, [0xff, 0xfe, 0x00]).unwrap();
    let broken = broken.to_str().unwrap();
    for (line, said) in [
        ("", "--model"),
        ("--model lama-2-7b", "did you mean"),
        ("--model tiny --gpu rtx-4009", "did you mean"),
        ("--model tiny --torch batch", "no `=`"),
        ("--model tiny --torch bach=4", "did you mean"),
        ("--model tiny --torch batch=0", "at least 1"),
        (
            "--model tiny --torch batch=1 --torch batch=2",
            "given twice",
        ),
        ("--model gpt2 --torch seq=4096", "1024"),
        (
            "--model gpt2 --torch batch=18446744073709551615",
            "smaller number",
        ),
        ("--model tiny --torch quant=nf4", "adapters"),
        (
            "--model tiny --torch optimizer=adamw_8bit,optimizer_impl=fused",
            "bnb",
        ),
        ("--model tiny --trainer /nowhere/args.json", "cannot read"),
    ] {
        let error = json(line, 2);
        assert!(
            error["error"].as_str().unwrap().contains(said),
            "{line}: {error}"
        );
    }
    let error = json(&format!("--model tiny --trainer {broken}"), 2);
    assert!(
        error["error"].as_str().unwrap().contains("not text"),
        "{error}"
    );
}

#[test]
fn a_step_takes_time_on_a_device() {
    let words = "--model gpt2 --gpu 24GB --torch batch=4,seq=256,grad_accum=2";
    let answer = json(words, 0);
    let number = |key: &str| answer[key].as_f64().unwrap();
    let tokens = number("step_seconds") * number("tokens_per_second");
    assert!((tokens - 2048.0).abs() < 1e-6, "{tokens}");
    let phases = answer["speed"]["phases"].as_object().unwrap();
    let sum: f64 = phases.values().map(|s| s.as_f64().unwrap()).sum();
    assert!((sum - number("step_seconds")).abs() < 1e-9);
    assert!(answer["speed"]["error"]["median"].as_f64().unwrap() > 0.0);
    let words: Vec<&str> = words.split_whitespace().collect();
    let page = String::from_utf8(memfit(&words).stdout).unwrap();
    let said = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        said.contains("tokens/s (forward") && said.contains("% in the median"),
        "{page}"
    );
}

#[test]
fn the_allocator_is_the_one_that_is_set() {
    let job = "--model gpt2 --gpu 24GB --torch batch=3,seq=333";
    let reserved = |more: &str| bytes(&json(&format!("{job} {more}"), 0)["counters"]["reserved"]);
    assert!(reserved("--alloc-conf expandable_segments:True") < reserved(""));
    json(&format!("{job} --alloc-conf expandible:1"), 2);
}

#[test]
fn fused_adagrad_is_said_to_be_refused_on_a_gpu() {
    let answer = json(
        "--model gpt2 --gpu 24GB --torch batch=1,optimizer=adagrad,optimizer_impl=fused",
        0,
    );
    let notes = answer["assumed"].as_array().unwrap();
    let said = notes
        .iter()
        .find(|n| n["field"] == "optimizer_impl")
        .unwrap();
    assert!(said["why"].as_str().unwrap().contains("refuses"), "{said}");
}

#[test]
fn the_largest_jobs_are_answered() {
    for line in [
        "--model gpt2 --gpu 24GB --torch batch=262144,seq=1024,attn=eager",
        "--model bert-base-uncased --gpu 2GB",
        "--model llama-3.1-70b --gpu 24GB --torch batch=1,seq=131072,attn=eager",
    ] {
        let answer = json(line, 1);
        assert!(
            ["close", "misfit"].contains(&answer["outcome"].as_str().unwrap()),
            "{line}"
        );
    }
}

#[test]
fn a_plan_says_what_pytorch_would_take() {
    let plan = |more: &[&str]| {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
        let words = ["plan", "--gpu", "24GB", "--model", "gpt2", "--seq", "256"];
        let output = command.args(words).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let page = plan(&[]);
    assert_eq!(page.matches("with PyTorch: ").count(), 1, "{page}");
    let answer: Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    assert_eq!(answer["pytorch"]["outcome"], "fits");
    let same = json(
        "--model gpt2 --gpu 24GB --torch batch=1,seq=256,autocast=bf16",
        0,
    );
    assert_eq!(answer["pytorch"]["prediction"], same["prediction"]);
}
