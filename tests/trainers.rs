//! Trainers' files, read as options: real-looking ones of each kind, and ones that must be refused.

use memfit::spec::trainer::{self, Kind, Note, Trainer};
use serde_json::{Value, json};

fn file(name: &str) -> Trainer {
    let path = format!("{}/tests/trainers/{name}", env!("CARGO_MANIFEST_DIR"));
    trainer::parse(name, &std::fs::read_to_string(path).unwrap()).unwrap()
}

fn names(notes: &[Note]) -> Vec<&str> {
    notes.iter().map(|note| note.field.as_str()).collect()
}

#[test]
fn training_arguments_are_read() {
    let file = file("training_arguments.json");
    assert_eq!(
        (file.kind, file.model.clone()),
        (Kind::TrainingArguments, None)
    );
    let expected = json!({
        "batch": 2, "grad_accum": 8, "seq": 512, "autocast": "bf16", "checkpointing": "full",
        "optimizer": "adamw", "optimizer_impl": "fused", "clip_grad_norm": 1.0,
    });
    assert_eq!(Value::Object(file.options), expected);
    assert_eq!(names(&file.cannot), ["deepspeed"]);
    let ignored = names(&file.ignored);
    assert!(
        ignored.contains(&"learning_rate")
            && ignored.contains(&"torch_compile")
            && ignored.contains(&"fsdp")
    );
}

#[test]
fn a_file_of_llama_factory_is_read_with_its_own_defaults() {
    let file = file("llama_factory.yaml");
    assert_eq!(file.kind, Kind::LlamaFactory);
    assert_eq!(file.model.as_deref(), Some("meta-llama/Llama-2-7b-hf"));
    let expected = json!({
        "batch": 1, "grad_accum": 8, "seq": 2048, "autocast": "bf16", "param_dtype": "bf16",
        "checkpointing": "full_reentrant", "attn": "sdpa", "quant": {"type": "nf4", "double": true},
        "lora": {"r": 8, "alpha": 16, "targets": ["all-linear"]},
    });
    assert_eq!(Value::Object(file.options), expected);
    assert_eq!(names(&file.cannot), ["enable_liger_kernel"]);
    let assumed = names(&file.assumed);
    assert!(
        assumed.contains(&"disable_gradient_checkpointing") && assumed.contains(&"flash_attn"),
        "{assumed:?}"
    );
    let full = trainer::parse(
        "full",
        "finetuning_type: full\nstage: sft\nbf16: true\ndisable_gradient_checkpointing: true",
    )
    .unwrap();
    let option = |key: &str| full.options.get(key).cloned().unwrap_or_default();
    assert_eq!(
        (option("param_dtype"), option("checkpointing")),
        (json!("fp32"), json!("none"))
    );
    assert!(!full.options.contains_key("lora") && names(&full.assumed) == ["cutoff_len"]);
}

#[test]
fn a_file_of_axolotl_is_read() {
    let file = file("axolotl.yml");
    assert_eq!(file.kind, Kind::Axolotl);
    let expected = json!({
        "batch": 2, "grad_accum": 4, "seq": 4096, "autocast": "bf16", "param_dtype": "bf16",
        "checkpointing": "full_reentrant", "attn": "sdpa", "optimizer": "adamw_8bit",
        "quant": {"type": "nf4", "double": true},
        "lora": {"r": 32, "alpha": 16, "dropout": 0.05, "targets": ["all-linear"]},
    });
    assert_eq!(Value::Object(file.options), expected);
    assert!(file.cannot.is_empty(), "{:?}", file.cannot);
    for field in ["optimizer", "bf16", "flash_attention", "sample_packing"] {
        assert!(
            names(&file.assumed).contains(&field),
            "{field}: {:?}",
            file.assumed
        );
    }
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let text = "micro_batch_size: 1\ndeepspeed: z3.json\nfsdp: [full_shard]\ntorch_compile: true\noptimizer: muon\nload_in_8bit: true\nadapter: lora";
    let file = trainer::parse("a.yml", text).unwrap();
    let mut cannot = names(&file.cannot);
    cannot.sort_unstable();
    assert_eq!(
        cannot,
        [
            "deepspeed",
            "fsdp",
            "load_in_8bit",
            "optimizer",
            "torch_compile"
        ]
    );
}

#[test]
fn what_is_switched_off_is_only_passed_over() {
    let text = r#"{"bf16": true, "deepspeed": null, "fsdp": "", "fsdp_config": {"min_num_params": 0, "xla": false}, "n_gpu": 1}"#;
    let file = trainer::parse("a.json", text).unwrap();
    assert!(file.cannot.is_empty(), "{:?}", file.cannot);
    assert_eq!(file.ignored.len(), 4);
    let text = r#"{"bf16": true, "deepspeed": {"zero_optimization": {"stage": 1}}, "n_gpu": 2}"#;
    let file = trainer::parse("a.json", text).unwrap();
    assert_eq!(names(&file.cannot), ["deepspeed", "n_gpu"]);
}

#[test]
fn bad_files_are_refused_by_name_and_field() {
    let nested = format!("a: {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let bomb = "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]";
    for text in [
        "",
        "[1, 2]",
        "hello",
        "{",
        "a: b: c",
        "{\"a\": 1}",
        "\u{0}",
        "? [1]\n: 2",
        &nested,
        bomb,
    ] {
        let error = trainer::parse("file.yml", text).unwrap_err().to_string();
        assert!(error.starts_with("file.yml: "), "{error}");
    }
    for (field, value) in [
        ("per_device_train_batch_size", "two"),
        ("per_device_train_batch_size", "-1"),
        ("bf16", "maybe"),
        ("optim", "[adamw]"),
        ("max_grad_norm", "{}"),
        ("gradient_checkpointing_kwargs", "7"),
    ] {
        let error = trainer::parse("f", &format!("{field}: {value}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{error}");
    }
}
