//! The command line: answers, exit statuses, and inputs that must be refused.

use std::fs;
use std::process::Output;

use serde_json::Value;

/// Runs memfit on words separated by spaces.
fn memfit(line: &str) -> Output {
    let words = line.split(' ').filter(|w| !w.is_empty());
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
    command.args(words).output().unwrap()
}

fn text(line: &str, status: i32) -> String {
    let output = memfit(line);
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{line}: {text}{said}");
    text
}

fn json(line: &str, status: i32) -> Value {
    let text = text(&format!("{line} --json"), status);
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{line}: {why}: {text}"))
}

/// The error of a line that is refused: the same on both streams.
fn refusal(line: &str) -> String {
    let output = memfit(&format!("{line} --json"));
    assert_eq!(output.status.code(), Some(2), "{line}");
    let said = String::from_utf8(output.stderr).unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = answer["error"].as_str().unwrap();
    assert!(
        said.contains(error.lines().next().unwrap()),
        "{said} / {error}"
    );
    assert!(!said.contains("panicked"), "{said}");
    error.to_string()
}

fn integer(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no integer"))
}

#[test]
fn a_plan_that_fits_states_what_it_takes() {
    let answer = json("plan --gpu 64MiB --model tiny", 0);
    assert_eq!(answer["outcome"], "fits");
    let estimate = &answer["estimate"];
    for place in ["gpu", "host", "pinned", "disk"] {
        let (used, most) = (&estimate["peak"][place], &answer["budget"][place]);
        assert!(integer(used) <= integer(most), "{place}");
    }
    assert_eq!(integer(&answer["budget"]["gpu"]), 64 << 20);
    assert!(integer(&estimate["peak"]["pinned"]) <= integer(&estimate["peak"]["host"]));
    let roles = estimate["peak_by_role"].as_object().unwrap();
    let held: u64 = roles.values().map(integer).sum();
    assert_eq!(held, integer(&estimate["peak"]["gpu"]));
    assert!(estimate["step_seconds"].as_f64().unwrap() > 0.0);
    assert!(estimate["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(answer["search"]["seconds"].as_f64().unwrap() > 0.0);
    assert!(answer.get("misfit").is_none());
}

#[test]
fn a_plan_names_its_choices_and_the_alternatives() {
    let answer = json("plan --gpu 64MiB --model tiny --ram 64GB", 0);
    let choices = answer["plan"]["choices"].as_array().unwrap();
    assert!(choices.iter().any(|c| c["technique"] == "adamw"));
    for choice in choices {
        assert!(choice["site"].is_string() && choice["args"].is_object());
    }
    assert_eq!(answer["plan"]["job"]["model"], "tiny");
    let alternatives = answer["alternatives"].as_array().unwrap();
    assert_eq!(alternatives[0]["name"], "keep all");
    assert_eq!(alternatives[0]["fits"], false);
    assert!(
        alternatives
            .iter()
            .any(|a| a["chosen"] == true && a["name"] == answer["name"])
    );
    let assumed = answer["assumptions"].as_array().unwrap();
    let is_assumed = |name: &str| assumed.iter().any(|a| a["name"] == name);
    assert!(is_assumed("device") && is_assumed("disk") && !is_assumed("ram"));
}

#[test]
fn a_misfit_says_who_holds_the_memory_and_what_would_fit() {
    for gpu in ["0", "0B", "1KiB"] {
        let answer = json(&format!("plan --gpu {gpu} --model tiny"), 1);
        assert_eq!(answer["outcome"], "misfit");
        let misfit = &answer["misfit"];
        assert_eq!(misfit["place"], "gpu");
        assert!(integer(&misfit["need"]) > integer(&misfit["have"]));
        assert!(!misfit["blame"].as_object().unwrap().is_empty());
        assert!(misfit["change"].as_str().unwrap().contains("more"));
    }
    let page = text("plan --gpu 0B --model tiny", 1);
    assert!(
        page.contains("MISFIT") && page.contains("closest"),
        "{page}"
    );
}

#[test]
fn equal_questions_have_equal_answers() {
    let ask = || {
        let mut answer = json("plan --gpu 1GB --model gpt2", 0);
        answer["search"]["seconds"] = Value::Null;
        answer
    };
    assert_eq!(ask(), ask());
}

#[test]
fn fixed_choices_and_the_allowed_class_are_kept() {
    let answer = json(
        "plan --gpu 24GB --model tiny --fix clip:norm=0.5 --allow bitwise",
        0,
    );
    let choices = answer["plan"]["choices"].as_array().unwrap();
    assert!(choices.iter().any(|c| c["text"] == "clip:norm=0.5"));
    assert!(choices.iter().all(|c| c["exactness"] != "rounding"));
    let answer = json(
        "plan --gpu 24GB --model tiny --batch 4 --fix accumulate:micro=2",
        0,
    );
    let programs = answer["estimate"]["programs"].as_array().unwrap();
    assert!(programs.iter().any(|p| p["when"] == "first"));
}

#[test]
fn a_saved_plan_is_explained_and_its_claim_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    let path = path.to_str().unwrap();
    text(&format!("plan --gpu 64MiB --model tiny -o {path}"), 0);
    let answer = json(&format!("explain {path}"), 0);
    assert_eq!(answer["claim"]["holds"], true);
    assert_eq!(answer["outcome"], "fits");
    let largest = answer["peak"]["largest"].as_array().unwrap();
    assert!(
        largest
            .iter()
            .all(|b| b["name"].is_string() && integer(&b["bytes"]) > 0)
    );
    assert!(largest.len() <= 20);
    let page = text(&format!("explain {path}"), 0);
    assert!(page.contains("F forward") && page.contains("alive at the peak"));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn a_claim_that_does_not_hold_is_reported_and_can_be_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    let name = path.to_str().unwrap();
    text(&format!("plan --gpu 64MiB --model tiny -o {name}"), 0);
    let damaged = fs::read_to_string(&path)
        .unwrap()
        .replacen("\ngpu = ", "\ngpu = 1", 2);
    let damaged = damaged.replacen("gpu = 1\"64MiB\"", "gpu = \"64MiB\"", 1);
    fs::write(&path, damaged).unwrap();
    let answer = json(&format!("explain {name}"), 1);
    assert_eq!(answer["claim"]["holds"], false);
    assert!(
        answer["claim"]["differences"][0]
            .as_str()
            .unwrap()
            .contains("gpu peak")
    );
    assert!(text(&format!("explain {name}"), 1).contains("DOES NOT HOLD"));
    text(&format!("explain {name} -o {name}"), 0);
    assert_eq!(json(&format!("explain {name}"), 0)["claim"]["holds"], true);
}

#[test]
fn every_worked_plan_fits_and_its_claim_is_derived_again() {
    for name in memfit::plan::library::names() {
        let file = memfit::plan::library::find(name).unwrap();
        let plan = file.plan().unwrap();
        let now = memfit::machine::estimate::proved(&plan).unwrap();
        let differences = file.claim.unwrap().differences(&now.claim());
        assert!(
            differences.is_empty(),
            "{name}: {differences:?}; see plans/README.md"
        );
        assert!(plan.job.target.budget().fits(&now.peak), "{name}");
    }
}

#[test]
fn the_lists_state_facts() {
    let models = json("models", 0);
    let models = models["models"].as_array().unwrap();
    let parameters = |name: &str| {
        let model = models.iter().find(|m| m["name"] == name).unwrap();
        integer(&model["parameters"])
    };
    // As counted by their publishers' code.
    assert_eq!(parameters("gpt2"), 124_439_808);
    assert_eq!(parameters("llama-2-7b"), 6_738_415_616);
    assert_eq!(parameters("llama-3.2-1b"), 1_235_814_400);
    let devices = json("devices", 0);
    let devices = devices["devices"].as_array().unwrap();
    assert!(
        devices
            .iter()
            .any(|d| d["id"] == "rtx-4090" && d["name"].is_string())
    );
    let techniques = json("techniques", 0);
    let techniques = techniques["techniques"].as_array().unwrap();
    let (single, sets) = (
        memfit::technique::TECHNIQUES.len(),
        memfit::technique::RECIPES.len(),
    );
    assert_eq!(techniques.len(), single + sets);
    assert!(
        techniques
            .iter()
            .all(|t| t["name"].is_string() && t["summary"].is_string())
    );
    for list in ["models", "devices", "techniques"] {
        let page = text(list, 0);
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    }
}

#[test]
fn unknown_names_are_refused_with_a_suggestion() {
    let known = [
        (
            "plan --gpu 24GB --model lama-2-7b",
            "did you mean `llama-2-7b`",
        ),
        ("plan --gpu rtx-4009 --model tiny", "did you mean"),
        ("plan --gpu 24 --model tiny", "did you mean `24GB`"),
        (
            "plan --gpu 24GB --model tiny --fix recompote",
            "did you mean `recompute`",
        ),
        (
            "plan --gpu 24GB --model tiny --fix recompute:wat=all",
            "did you mean `what`",
        ),
        (
            "plan --gpu 24GB --model tiny --optimizer adamv",
            "did you mean `adamw`",
        ),
        (
            "plan --gpu 24GB --model tiny --optimizer adamw:beta3=1",
            "did you mean `beta",
        ),
        (
            "plan --gpu 24GB --model tiny --precision bf61",
            "did you mean `bf16`",
        ),
        (
            "plan --gpu 24GB --model tiny --allow rouding",
            "did you mean `rounding`",
        ),
        ("explain 7b-25gb", "did you mean `7b-24gb`"),
    ];
    for (line, hint) in known {
        let error = refusal(line);
        assert!(error.contains(hint), "{line}: {error}");
    }
}

#[test]
fn values_that_cannot_be_used_are_refused() {
    let lines = [
        "plan --gpu 24GB",
        "plan --model tiny",
        "plan --gpu 24GB --model tiny --seq 0",
        "plan --gpu 24GB --model tiny --seq 18446744073709551615",
        "plan --gpu 24GB --model tiny --seq 18446744073709551616",
        "plan --gpu 24GB --model tiny --batch 0",
        "plan --gpu 24GB --model tiny --batch 18446744073709551615",
        "plan --gpu 99999999999TB --model tiny",
        "plan --gpu -1GB --model tiny",
        "plan --gpu 24GB --model tiny --ram 9000000000GB",
        "plan --gpu 24GB --model tiny --ram 24XB",
        "plan --gpu 24GB --model tiny --disk-rate 0",
        "plan --gpu 24GB --model tiny --link fast",
        "plan --gpu 24GB --model tiny --optimizer recompute",
        "plan --gpu 24GB --model tiny --fix adamw --fix sgd",
        "plan --gpu 24GB --model tiny --fix recompute:site=",
        "plan --gpu 24GB --model tiny --fix recompute:what",
        "plan --gpu 24GB --model tiny --batch 4 --fix accumulate:micro=3",
        "plan --gpu 24GB --model tiny -o /no/such/folder/plan.toml",
        "plan --gpu 24GB --model tiny --speed 3",
        "explain /no/such/plan.toml",
        "explain",
        "bench speed",
        "fly",
    ];
    for line in lines {
        assert!(!refusal(line).is_empty(), "{line}");
    }
    let error = refusal("plan --gpu 24GB --model tiny --fix fused_update --fix clip");
    assert!(
        error.contains("fused_update") && error.contains("clip"),
        "{error}"
    );
}

#[test]
fn nonsense_in_place_of_a_plan_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    let job = "[job]\nmodel = \"tiny\"\ngpu = \"24GB\"\nseq = 64\nbatch = 1\nprecision = \"bf16\"\noptimizer = \"adamw\"\n";
    let texts = [
        String::new(),
        "\u{0}\u{1}".to_string(),
        "job = 3".to_string(),
        job.replace("64", "-1"),
        job.replace("64", "99999999999999999999"),
        job.replace("batch = 1", "batch = 4611686018427387904"),
        job.replace("bf16", "int3"),
        job.replace("24GB", "abacus"),
        job.replace("adamw", "adamw:beta1=7"),
        format!("{job}speed = 3\n"),
        format!("{job}[host]\nkept = nan\n"),
        format!("{job}[host]\nram = -5\n"),
        format!("{job}[host]\ndisk_rate = 0.0\n"),
        format!("{job}[claim]\nstep_seconds = \"soon\"\n"),
        format!("{job}[[choice]]\ntechnique = \"teleport\"\n"),
        format!("{job}[[choice]]\ntechnique = \"recompute\"\nsite = \"moon\"\n"),
        format!("{job}[[choice]]\ntechnique = \"recompute\"\nsite = \"layers.5-2\"\n"),
        format!("{job}[[choice]]\ntechnique = \"recompute\"\nargs = {{ segment = \"0\" }}\n"),
        format!("{job}[[choice]]\ntechnique = \"offload\"\nargs = {{ what = \"hopes\" }}\n"),
    ];
    for text in texts {
        fs::write(&path, &text).unwrap();
        let error = refusal(&format!("explain {}", path.display()));
        assert!(!error.is_empty(), "{text}");
    }
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(refusal(&format!("explain {}", path.display())).contains("not text"));
    assert!(refusal(&format!("explain {}", folder.path().display())).contains("cannot read"));
}

#[test]
fn every_command_is_known_and_explains_itself() {
    let commands = [
        "plan",
        "run",
        "validate",
        "explain",
        "report",
        "trace",
        "models",
        "devices",
        "techniques",
        "calibrate",
        "bench",
    ];
    let help = text("--help", 0);
    for command in commands {
        assert!(help.contains(command), "{command}");
        assert!(
            text(&format!("{command} --help"), 0).contains("--json"),
            "{command}"
        );
    }
    assert!(text("--version", 0).starts_with("memfit "));
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_is_no_panic() {
    use std::process::{Command, Stdio};
    let program = assert_cmd::cargo::cargo_bin!("memfit");
    let mut child = Command::new(program)
        .args(["devices", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}

#[test]
fn the_pages_are_as_they_were() {
    let page = text("plan --gpu 24GB --model tiny", 0);
    assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    insta::assert_snapshot!("plan_tiny", page);
    insta::assert_snapshot!("techniques", text("techniques", 0));
}

/// A job file holds the words of the command line; those given win.
#[test]
fn a_job_file_says_what_is_not_given() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
        command
            .current_dir(folder.path())
            .args(words)
            .output()
            .unwrap()
    };
    let plan = |words: &[&str]| -> serde_json::Value {
        let output = run(&[&["plan", "--json"], words].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let text = "model = \"tiny\"\ngpu = \"64MiB\"\nseq = 128\nbatch = 2\nfix = [\"recompute\"]\n";
    std::fs::write(folder.path().join("memfit.toml"), text).unwrap();
    let job = plan(&[]);
    assert_eq!(
        (&job["plan"]["job"]["seq"], &job["plan"]["job"]["batch"]),
        (&128.into(), &2.into())
    );
    let said = "--model tiny --gpu 64MiB --seq 128 --batch 2 --fix recompute";
    let said: Vec<&str> = said.split(' ').collect();
    assert_eq!(job["plan"], plan(&said)["plan"]);
    assert_eq!(plan(&["--batch", "3"])["plan"]["job"]["batch"], 3);
    // A command takes of a file what it knows; a model that is given leaves the usual file alone.
    assert_eq!(
        run(&["fit", "--job", "memfit.toml", "--goal", "lora"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        plan(&["--model", "gpt2", "--gpu", "8GB"])["plan"]["job"]["seq"],
        1024
    );
    std::fs::write(folder.path().join("other.toml"), "modle = \"tiny\"\n").unwrap();
    let refused = run(&["plan", "--job", "other.toml"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        error.contains("modle") && error.contains("did you mean `model`"),
        "{error}"
    );
    let missing = run(&["plan", "--job", "none.toml"]);
    assert_eq!(missing.status.code(), Some(2));
}

/// Shells and `man` hear of every command.
#[test]
fn completions_and_pages_name_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
        let output = command
            .current_dir(folder.path())
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]);
        assert!(
            script.contains("gpus") && script.contains("validate"),
            "{shell}"
        );
    }
    assert!(run(&["man"]).contains("memfit"));
    run(&["man", "-o", "pages"]);
    let page = std::fs::read_to_string(folder.path().join("pages/memfit-plan.1")).unwrap();
    assert!(page.contains("\\-\\-gpu"), "{page}");
}
