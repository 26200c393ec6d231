//! Configs and GGUF files: what is read from them, and what must be refused.

use candle_core::quantized::gguf_file::{Content, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use memfit::error::Error;
use memfit::spec::model::{Family, ModelSpec, Position};
use memfit::spec::{catalog, config};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A small Llama config, with some fields set or (by null) removed.
fn llama(changes: Value) -> Result<ModelSpec, Error> {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 128,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config::parse("mine", &config.to_string())
}

#[test]
fn absent_fields_take_the_defaults_of_the_family() {
    let model = llama(json!({})).unwrap();
    assert_eq!(
        (model.kv_heads, model.head_dim, model.max_positions),
        (4, 16, 2048)
    );
    assert!(!model.tied && !model.attention.qkv_bias);
    let nested = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}});
    match llama(nested).unwrap().position {
        Position::Rotary(rotary) => assert_eq!((rotary.theta, rotary.dims), (5e5, 16)),
        Position::Learned { .. } => panic!("llama has learned positions"),
    }
}

/// Changes to the small config, and what the refusal must say.
fn unusable() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"hidden_size": 0}), "hidden_size `0`"),
        (json!({"num_attention_heads": 0}), "num_attention_heads `0`"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers `0`"),
        (json!({"vocab_size": 0}), "vocab_size `0`"),
        (json!({"vocab_size": null}), "vocab_size `(missing)`"),
        (json!({"model_type": null}), "model_type `(missing)`"),
        (
            json!({"num_hidden_layers": 1e30}),
            "num_hidden_layers `1e+30`",
        ),
        (json!({"num_hidden_layers": 20_000}), "layers `20000`"),
        (json!({"hidden_size": -64}), "hidden_size `-64`"),
        (json!({"hidden_size": 64.5}), "hidden_size `64.5`"),
        (json!({"hidden_size": "64"}), "hidden_size `\"64\"`"),
        (json!({"num_attention_heads": 5}), "num_attention_heads `5`"),
        (json!({"num_attention_heads": 64}), "head_dim `1`"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads `3`"),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps `-0.00001`"),
        (json!({"attention_dropout": 1.5}), "attention_dropout `1.5`"),
        (json!({"rope_theta": 0}), "rope_theta `0`"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings `1`"),
        (
            json!({"hidden_act": "gelu_knew"}),
            "did you mean `gelu_new`",
        ),
        (json!({"model_type": "lama"}), "did you mean `llama`"),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "factor `(missing)`",
        ),
        (
            json!({"rope_scaling": "linear"}),
            "rope_scaling `\"linear\"`",
        ),
        (
            json!({"hidden_size": 1u64 << 31, "intermediate_size": 1u64 << 31, "num_hidden_layers": 9999}),
            "more than 2^60 elements",
        ),
    ]
}

#[test]
fn a_field_that_cannot_be_used_is_named_with_its_value() {
    for (changes, expected) in unusable() {
        let message = llama(changes.clone()).unwrap_err().to_string();
        assert!(message.contains(expected), "{changes}: {message}");
    }
}

#[test]
fn architectures_that_are_not_done_are_refused_by_name() {
    for kind in ["yarn", "longrope", "dynamic"] {
        let message = llama(json!({"rope_scaling": {"rope_type": kind, "factor": 2.0}}))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("not supported") && message.contains(kind),
            "{message}"
        );
    }
    let opt = |key: &str, value: Value| {
        let mut config: Value =
            serde_json::from_str(catalog::config_text("opt-125m").unwrap()).unwrap();
        config[key] = value;
        config::parse("mine", &config.to_string())
            .unwrap_err()
            .to_string()
    };
    let narrow = opt("word_embed_proj_dim", json!(512));
    assert!(
        narrow.contains("word_embed_proj_dim `512`: not supported"),
        "{narrow}"
    );
    let post = opt("do_layer_norm_before", json!(false));
    assert!(
        post.contains("do_layer_norm_before `false`: not supported"),
        "{post}"
    );
}

#[test]
fn text_that_is_no_config_is_refused() {
    for text in ["", "[]", "3", "{", "null", "{\"model_type\": 3}", "\u{0}"] {
        assert!(config::parse("mine", text).is_err(), "{text}");
    }
    assert!(config::parse("mine", &"[".repeat(100_000)).is_err());
}

#[test]
fn a_config_is_read_from_its_file_and_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my-model");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(
        path.join("config.json"),
        catalog::config_text("tiny").unwrap(),
    )
    .unwrap();
    for text in [path.clone(), path.join("config.json")] {
        let model = catalog::open(text.to_str().unwrap()).unwrap();
        assert_eq!((model.name.as_str(), model.hidden), ("my-model", 128));
    }
    let empty = folder.path().to_str().unwrap().to_string();
    assert!(matches!(catalog::open(&empty), Err(Error::Io { .. })));
}

/// A GGUF file in memory with these keys and one small embedding.
fn gguf(keys: &[(&str, Gguf)]) -> Vec<u8> {
    let rows = Tensor::zeros((256, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
    let rows = QTensor::quantize(&rows, GgmlDType::F32).unwrap();
    let metadata: Vec<(&str, &Gguf)> = keys.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    let tensors = [("token_embd.weight", &rows)];
    candle_core::quantized::gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    file.into_inner()
}

fn llama_keys() -> Vec<(&'static str, Gguf)> {
    vec![
        ("general.architecture", Gguf::String("llama".into())),
        ("llama.block_count", Gguf::U32(2)),
        ("llama.embedding_length", Gguf::U32(64)),
        ("llama.feed_forward_length", Gguf::U32(128)),
        ("llama.attention.head_count", Gguf::U32(4)),
        ("llama.attention.head_count_kv", Gguf::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Gguf::F32(1e-5)),
        ("llama.rope.freq_base", Gguf::F32(5e5)),
        ("llama.context_length", Gguf::U32(512)),
    ]
}

fn read_gguf(keys: &[(&str, Gguf)]) -> Result<ModelSpec, Error> {
    let content = Content::read(&mut std::io::Cursor::new(gguf(keys))).unwrap();
    config::from_gguf_metadata("mine", &content)
}

#[test]
fn a_gguf_file_says_the_same_as_the_config() {
    let model = read_gguf(&llama_keys()).unwrap();
    assert_eq!(
        (model.family, model.vocab, model.hidden),
        (Family::Llama, 256, 64)
    );
    assert_eq!(
        (model.kv_heads, model.ffn, model.max_positions),
        (2, 128, 512)
    );
    assert_eq!((model.norm.eps, model.tied), (1e-5, true));
    let mut experts = llama_keys();
    experts.push(("llama.expert_count", Gguf::U32(4)));
    experts.push(("llama.expert_used_count", Gguf::U32(2)));
    let mixtral = read_gguf(&experts).unwrap();
    assert_eq!(
        (mixtral.family, mixtral.experts.unwrap().count),
        (Family::Mixtral, 4)
    );
}

#[test]
fn a_gguf_file_without_a_key_is_refused_by_the_key() {
    let mut keys = llama_keys();
    keys.remove(1);
    let message = read_gguf(&keys).unwrap_err().to_string();
    assert!(message.contains("llama.block_count"), "{message}");
    keys[0].1 = Gguf::String("lama".into());
    let message = read_gguf(&keys).unwrap_err().to_string();
    assert!(message.contains("did you mean `llama`"), "{message}");
}

#[test]
fn a_gguf_file_with_a_window_is_mistral() {
    let mut keys = llama_keys();
    keys.push(("llama.attention.sliding_window", Gguf::U32(64)));
    let model = read_gguf(&keys).unwrap();
    assert_eq!(
        (model.family, model.attention.window),
        (Family::Mistral, Some(64))
    );
}

#[test]
fn a_gguf_file_aligned_to_zero_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zero.gguf");
    let mut keys = llama_keys();
    keys.push(("general.alignment", Gguf::U32(0)));
    std::fs::write(&path, gguf(&keys)).unwrap();
    let error = config::from_gguf_path(&path).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
}

#[test]
fn a_gguf_file_is_opened_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.gguf");
    std::fs::write(&path, gguf(&llama_keys())).unwrap();
    assert_eq!(catalog::open(path.to_str().unwrap()).unwrap().name, "mine");
    std::fs::write(&path, b"GGUF and then nothing").unwrap();
    let error = catalog::open(path.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
}

/// A JSON value of any kind, numbers at the edges included.
fn any_json() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..5).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!([1, "full_attention"])),
        Just(json!({"rope_type": "llama3", "factor": 1e300})),
    ]
}

proptest! {
    #[test]
    fn no_config_makes_the_reader_panic(
        name in proptest::sample::select(catalog::names().collect::<Vec<_>>()),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any_json()), 0..4),
    ) {
        let mut config: Value = serde_json::from_str(catalog::config_text(name).unwrap()).unwrap();
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        for (index, value) in changes {
            config[index.get(&keys)] = value;
        }
        if let Err(error) = config::parse(name, &config.to_string()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_text_makes_the_readers_panic(text in ".{0,200}") {
        let _ = config::parse("mine", &text);
        let _ = catalog::find(&text);
    }

    #[test]
    fn no_damage_to_a_gguf_file_makes_the_reader_panic(at in 0usize..400, byte in any::<u8>()) {
        let mut file = gguf(&llama_keys());
        let at = at.min(file.len() - 1);
        file[at] = byte;
        if let Ok(content) = Content::read(&mut std::io::Cursor::new(file)) {
            let _ = config::from_gguf_metadata("mine", &content);
        }
    }
}
