//! Runs with a frozen model: they learn, continue bit by bit, and leave and read folders in PEFT's format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memfit::machine::cpu::Settings;
use memfit::machine::micro::{self, FAMILIES, Size};
use memfit::machine::train::adapter::{Adapter, described};
use memfit::machine::train::names::{Kind, listed, place};
use memfit::machine::train::session::{Options, Schedule, Session};
use memfit::machine::train::tensors::TensorFile;
use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source};
use memfit::plan::{Choice, Plan};
use memfit::spec::job::{Backend, Host, Job, Optimizer, Precision, Target};
use memfit::spec::model::ModelSpec;
use memfit::spec::{catalog, device};

/// The size of micro models here.
const SIZE: Size = Size {
    hidden: 64,
    layers: 2,
    vocab: 256,
};

fn plan_of(model: ModelSpec, precision: Precision, choices: &[&str]) -> Plan {
    let backend = Backend::Cpu { threads: 2 };
    let target = Target {
        backend,
        ..Target::new(device::find("1GiB").unwrap(), Host::default())
    };
    let job = Job {
        model,
        seq: 32,
        batch: 4,
        precision,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    let choices = choices.iter().map(|c| Choice::parse(c).unwrap());
    Plan::new(job, choices.collect()).unwrap()
}

fn options(config: String) -> Options {
    Options {
        steps: 1000,
        rate: 1e-2,
        schedule: Schedule::Constant,
        warmup: 0,
        seed: 1,
        machine: Settings {
            poison: true,
            ..Settings::default()
        },
        folder: std::env::temp_dir(),
        weights: None,
        adapter: None,
        resume: None,
        config,
        evaluation_rows: 8,
        settings: serde_json::Value::Null,
    }
}

fn open(plan: Plan, options: Options) -> Session {
    let (vocab, head) = (plan.job.model.vocab, plan.job.model.head);
    let (source, coding) = (Source::default(), Coding::Bytes);
    let corpus = Corpus::open(&source, &coding, &HeldOut::Fraction(0.1), vocab, head).unwrap();
    Session::open(plan, corpus, options).unwrap()
}

fn losses(session: &mut Session, steps: u64) -> Vec<f32> {
    (0..steps).map(|_| session.step().unwrap().loss).collect()
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A micro model trained for some steps and saved.
fn base(family: &str, dir: &Path, steps: u64) -> PathBuf {
    let model = micro::model(family, SIZE).unwrap();
    let config = micro::config_text(family, SIZE).unwrap();
    let mut session = open(plan_of(model, Precision::F32, &[]), options(config));
    losses(&mut session, steps);
    let base = dir.join("base");
    session.save(&base).unwrap();
    base
}

#[test]
fn every_adapter_learns_on_a_frozen_tiny() {
    for (choices, falls) in [
        (&["lora:targets=all-linear,rank=8,alpha=16"][..], 0.3),
        (
            &["lora:targets=all-linear,rank=8,alpha=16", "nf4_weights"],
            0.3,
        ),
        (
            &["lora:targets=all-linear,rank=8,alpha=16", "int8_weights"],
            0.3,
        ),
        (&["adapter:width=16"], 0.3),
        (&["prefix_tuning:tokens=8,spread=0.2"], 0.003),
        (&["prompt_tuning:tokens=8,spread=0.2"], 0.003),
    ] {
        let model = catalog::find("tiny").unwrap();
        let config = catalog::config_text("tiny").unwrap().to_string();
        let mut session = open(plan_of(model, Precision::F32, choices), options(config));
        let before = session.evaluate().unwrap().unwrap();
        losses(&mut session, 60);
        let after = session.evaluate().unwrap().unwrap();
        println!("{choices:?}: {before} -> {after}");
        assert!(after < before - falls, "{choices:?}: {before} -> {after}");
        assert_eq!(session.mark(), session.predicted().peak);
    }
}

#[test]
fn a_resumed_adapter_continues_bit_by_bit_and_its_save_has_no_base() {
    let folder = tempfile::tempdir().unwrap();
    let weights = base("llama", folder.path(), 2);
    for (precision, choices) in [
        (Precision::F32, &["lora:rank=4,dropout=0.1"][..]),
        (
            Precision::Bf16,
            &[
                "lora:targets=all-linear",
                "nf4_weights",
                "accumulate:micro=2",
            ],
        ),
        (
            Precision::F32,
            &["lora", "int8_weights", "offload:what=parameters"],
        ),
        (Precision::Fp16, &["adapter:width=8", "clip"]),
        (
            Precision::F32,
            &["prefix_tuning:tokens=4", "flash_attention"],
        ),
        (Precision::F32, &["prompt_tuning:tokens=4", "recompute"]),
    ] {
        for from in [None, Some(weights.clone())] {
            let dir = folder.path().join("save");
            let model = micro::model("llama", SIZE).unwrap();
            let start = Options {
                weights: from.clone(),
                ..options(micro::config_text("llama", SIZE).unwrap())
            };
            let plan = || plan_of(model.clone(), precision, choices);
            let mut whole = open(plan(), start.clone());
            let first = losses(&mut whole, 3);
            whole.save(&dir).unwrap();
            let rest = losses(&mut whole, 3);
            assert_eq!(
                files(&dir),
                [
                    "adapter_config.json",
                    "adapter_model.safetensors",
                    "config.json",
                    "memfit.json",
                    "state.safetensors"
                ]
            );
            let named: serde_json::Value = serde_json::from_str(
                &std::fs::read_to_string(dir.join("adapter_config.json")).unwrap(),
            )
            .unwrap();
            let named = named["base_model_name_or_path"].as_str().unwrap();
            assert_eq!(
                named,
                from.as_ref()
                    .map_or("llama".into(), |p| p.display().to_string())
            );
            let resume = Options {
                resume: Some(dir.clone()),
                weights: None,
                ..start.clone()
            };
            let mut second = open(plan(), resume);
            assert_eq!(second.progress().losses, first);
            assert_eq!(losses(&mut second, 3), rest, "{precision} {choices:?}");
            assert!(rest.iter().all(|l| l.is_finite()));
            // From the folder alone the adapter is the same, without the state of its optimizer.
            let mut saved = open(
                plan(),
                Options {
                    resume: Some(dir.clone()),
                    ..start.clone()
                },
            );
            let mut again = open(
                plan(),
                Options {
                    adapter: Some(dir.clone()),
                    ..start
                },
            );
            let wanted = saved.evaluate().unwrap().unwrap();
            let got = again.evaluate().unwrap().unwrap();
            assert_eq!(got.to_bits(), wanted.to_bits(), "{precision} {choices:?}");
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}

/// Every family's adapters of every kind come back from a folder with their own choice, each tensor as it was.
#[test]
fn folders_of_every_family_say_what_made_them() {
    let folder = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        for choice in [
            "lora:targets=all-linear,rank=3,alpha=6",
            "lora:rank=2,site=layers.1",
            "adapter:width=5",
            "prefix_tuning:tokens=3",
            "prompt_tuning:tokens=3",
        ] {
            let model = micro::model(family, SIZE).unwrap();
            let config = micro::config_text(family, SIZE).unwrap();
            let plan = plan_of(model.clone(), Precision::F32, &[choice]);
            let mut session = open(plan.clone(), options(config.clone()));
            losses(&mut session, 1);
            let dir = folder.path().join("save");
            session.save(&dir).unwrap();
            let (_, said) = described(&dir).unwrap();
            let again = plan_of(model.clone(), Precision::F32, &[&said.to_string()]);
            let shapes = |plan: &Plan| -> BTreeMap<String, u64> {
                let step = plan.steps().unwrap().steps.remove(0).1;
                let trained = step
                    .storages
                    .iter()
                    .filter(|s| s.shared && !s.first.is_frozen());
                trained.map(|s| (s.name.to_string(), s.bytes.0)).collect()
            };
            assert_eq!(shapes(&again), shapes(&plan), "{family} {choice}: {said}");
            let adapter = Adapter::open(&dir, &model).unwrap();
            let wanted = session.evaluate().unwrap().unwrap();
            let names: Vec<&str> = adapter.weights().names().collect();
            assert!(!names.is_empty() && names.iter().all(|n| shapes(&plan).contains_key(*n)));
            let start = Options {
                adapter: Some(dir.clone()),
                ..options(config)
            };
            let got = open(again, start).evaluate().unwrap().unwrap();
            assert_eq!(got.to_bits(), wanted.to_bits(), "{family} {choice}");
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}

/// The names and shapes that PEFT 0.21 gave the same adapters of these classes, printed by `get_peft_model_state_dict`.
#[test]
fn tensors_have_the_names_and_shapes_of_peft() {
    let gpt2 = r#"{"model_type":"gpt2","vocab_size":64,"n_embd":32,"n_layer":1,"n_head":4,"n_positions":64}"#;
    let llama = r#"{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":88,"num_hidden_layers":1,
        "num_attention_heads":4,"num_key_value_heads":2}"#;
    let layer = |rest: &str| format!("base_model.model.model.layers.0.{rest}");
    let block = |rest: &str| format!("base_model.model.transformer.h.0.{rest}");
    let pair = |name: String, o: u64, i: u64| {
        [
            (format!("{name}.lora_A.weight"), vec![8, i]),
            (format!("{name}.lora_B.weight"), vec![o, 8]),
        ]
    };
    let all = |modules: &[(String, u64, u64)]| {
        modules
            .iter()
            .flat_map(|(n, o, i)| pair(n.clone(), *o, *i))
            .collect::<BTreeMap<_, _>>()
    };
    let embeddings =
        |columns: u64| BTreeMap::from([("prompt_embeddings".to_string(), vec![3, columns])]);
    for (config, choice, wanted) in [
        (gpt2, "lora", all(&[(block("attn.c_attn"), 96, 32)])),
        (
            gpt2,
            "lora:targets=all-linear",
            all(&[
                (block("attn.c_attn"), 96, 32),
                (block("attn.c_proj"), 32, 32),
                (block("mlp.c_fc"), 128, 32),
                (block("mlp.c_proj"), 32, 128),
            ]),
        ),
        (gpt2, "prefix_tuning:tokens=3", embeddings(64)),
        (gpt2, "prompt_tuning:tokens=3", embeddings(32)),
        (
            llama,
            "lora",
            all(&[
                (layer("self_attn.q_proj"), 32, 32),
                (layer("self_attn.v_proj"), 16, 32),
            ]),
        ),
        (
            llama,
            "lora:targets=gate_proj+mlp.down_proj",
            all(&[
                (layer("mlp.gate_proj"), 88, 32),
                (layer("mlp.down_proj"), 32, 88),
            ]),
        ),
        (llama, "prefix_tuning:tokens=3", embeddings(32)),
        (llama, "prompt_tuning:tokens=3", embeddings(32)),
    ] {
        let model = memfit::spec::config::parse("micro", config).unwrap();
        let step = plan_of(model.clone(), Precision::F32, &[choice])
            .steps()
            .unwrap()
            .steps
            .remove(0)
            .1;
        let mut got = BTreeMap::new();
        for tensor in step.tensors.iter().filter(|t| t.version == 0) {
            let storage = step.storage(tensor.storage);
            let mapping = place(&model, &storage.name, &tensor.at.shape).filter(|_| storage.shared);
            for piece in mapping.into_iter().flat_map(|m| m.pieces) {
                got.insert(piece.tensor, piece.shape);
            }
        }
        assert_eq!(got, wanted, "{choice}");
        let kind = if choice.starts_with("lora") {
            Kind::Lora
        } else if choice.starts_with("prefix") {
            Kind::PrefixTuning
        } else {
            Kind::PromptTuning
        };
        let found = listed(&model, kind, &|tensor| wanted.get(tensor).cloned());
        assert!(
            found
                .iter()
                .all(|(name, shape)| place(&model, name, shape).is_some())
                && !found.is_empty()
        );
    }
}

#[test]
fn folders_that_cannot_be_used_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = micro::model("llama", SIZE).unwrap();
    let config =
        |text: &str| std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
    let refusal = |expected: &str| {
        let message = Adapter::open(folder.path(), &model)
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
    };
    refusal("adapter_config.json");
    config("{");
    refusal("not valid JSON");
    config(r#"{"peft_type":"IA3"}"#);
    refusal("IA3");
    config(r#"{"peft_type":"LORA","use_dora":true}"#);
    refusal("use_dora = true");
    config(r#"{"peft_type":"LORA","r":8,"lora_alpha":8,"target_modules":["q_proj"]}"#);
    refusal("adapter_model.safetensors");
    let stray = BTreeMap::from([(
        "base_model.model.lm_head.lora_A.weight".to_string(),
        memfit::graph::tensor::Type::new(&[8, 64], memfit::graph::tensor::DType::F32),
    )]);
    TensorFile::create(&folder.path().join("adapter_model.safetensors"), &stray).unwrap();
    refusal("is of no linear layer");
}
