//! Published models: parameter counts by a formula of this file's own, fields, and configs that must be refused.

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::{Content, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use memfit::error::Error;
use memfit::spec::model::{
    Activation, Family, Head, ModelSpec, NormKind, NormPlacement, Position, RotaryScaling, Windowed,
};
use memfit::spec::{catalog, config};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Parameter counts of the published models: model cards, and `num_parameters()` of the Hugging Face classes.
const PARAMETERS: [(&str, u64); 33] = [
    ("tiny", 803_968),
    ("small", 25_960_960),
    ("gpt2", 124_439_808),
    ("gpt2-medium", 354_823_168),
    ("gpt2-large", 774_030_080),
    ("gpt2-xl", 1_557_611_200),
    ("opt-125m", 125_239_296),
    ("opt-1.3b", 1_315_758_080),
    ("opt-6.7b", 6_658_473_984),
    ("opt-13b", 12_853_473_280),
    ("opt-30b", 29_974_540_288),
    ("llama-2-7b", 6_738_415_616),
    ("llama-2-13b", 13_015_864_320),
    ("llama-2-70b", 68_976_648_192),
    ("llama-3.1-8b", 8_030_261_248),
    ("llama-3.1-70b", 70_553_706_496),
    ("llama-3.2-1b", 1_235_814_400),
    ("llama-3.2-3b", 3_212_749_824),
    ("tinyllama-1.1b", 1_100_048_384),
    ("mistral-7b", 7_241_732_096),
    ("qwen2.5-0.5b", 494_032_768),
    ("qwen2.5-1.5b", 1_543_714_304),
    ("qwen2.5-7b", 7_615_616_512),
    ("qwen2.5-14b", 14_770_033_664),
    ("qwen3-0.6b", 596_049_920),
    ("qwen3-8b", 8_190_735_360),
    ("gemma-2-2b", 2_614_341_888),
    ("gemma-2-9b", 9_241_705_984),
    ("phi-3-mini", 3_821_079_552),
    ("mixtral-8x7b", 46_702_792_704),
    ("deepseek-coder-1.3b", 1_346_471_936),
    ("deepseek-coder-6.7b", 6_740_512_768),
    ("bert-base", 109_514_298),
];

fn parameters(m: &ModelSpec) -> u64 {
    let bias = |has: bool, width: u64| if has { width } else { 0 };
    let norm = match m.norm.kind {
        NormKind::LayerNorm => 2 * m.hidden,
        NormKind::RmsNorm => m.hidden,
    };
    let (q, kv) = (m.heads * m.head_dim, m.kv_heads * m.head_dim);
    let attention = m.hidden * (2 * q + 2 * kv)
        + bias(m.attention.qkv_bias, q + 2 * kv)
        + bias(m.attention.out_bias, m.hidden)
        + bias(m.attention.qk_norm, 2 * m.head_dim);
    let ins = if m.mlp.gated { 2 } else { 1 };
    let mlp = m.hidden * m.ffn * (ins + 1) + bias(m.mlp.bias, ins * m.ffn + m.hidden);
    let mlp = m.experts.map_or(mlp, |e| e.count * (mlp + m.hidden));
    let norms = if m.norm_placement == NormPlacement::Sandwich {
        4
    } else {
        2
    };
    let positions = match m.position {
        Position::Learned { rows, .. } => rows * m.hidden,
        Position::Rotary(_) => 0,
    };
    let embedding = m.hidden * (m.vocab + m.token_types) + positions + bias(m.embedding_norm, norm);
    let head = match m.head {
        Head::Causal => 0,
        Head::MaskedLm => m.hidden * (m.hidden + 1) + norm + m.vocab,
    };
    m.layers * (attention + mlp + norms * norm)
        + embedding
        + bias(m.final_norm, norm)
        + bias(!m.tied, m.vocab * m.hidden)
        + head
}

#[test]
fn every_model_has_its_published_number_of_parameters() {
    let names: Vec<&str> = catalog::names().collect();
    assert_eq!(names, PARAMETERS.map(|(name, _)| name));
    for (name, published) in PARAMETERS {
        let model = catalog::find(name).unwrap();
        assert_eq!(parameters(&model), published, "{name}");
        assert_eq!(model.name, name);
    }
}

#[test]
fn no_two_models_share_a_spelling() {
    let mut seen = BTreeMap::new();
    for (alias, model) in catalog::aliases() {
        let other = seen.insert(alias.to_lowercase().replace(['-', '_'], ""), model);
        assert!(other.is_none(), "{alias} names {model} and {other:?}");
        assert_eq!(catalog::find(alias).unwrap().name, model);
    }
}

#[test]
fn every_model_is_found_by_the_repository_its_config_names() {
    for name in catalog::names() {
        let config: Value = serde_json::from_str(catalog::config_text(name).unwrap()).unwrap();
        let source = config["_source"].as_str().unwrap();
        let repository = source
            .strip_prefix("config.json of ")
            .and_then(|rest| rest.strip_suffix(" on Hugging Face"));
        match repository {
            Some(repository) => assert_eq!(catalog::find(repository).unwrap().name, name),
            None => assert!(name == "tiny" || name == "small", "{name}: {source}"),
        }
    }
}

#[test]
fn short_names_and_other_spellings_find_the_model() {
    let same = [
        ("1b", "llama-3.2-1b"),
        ("3b", "llama-3.2-3b"),
        ("7b", "llama-2-7b"),
        ("8b", "llama-3.1-8b"),
        ("13b", "llama-2-13b"),
        ("70B", "llama-2-70b"),
        ("Llama_2 7B", "llama-2-7b"),
        ("llama3-1-8b", "llama-3.1-8b"),
        ("opt13b", "opt-13b"),
        ("opt-1-3b", "opt-1.3b"),
        ("Qwen/Qwen2_5-0.5B", "qwen2.5-0.5b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
        ("phi3 mini 4k", "phi-3-mini"),
        ("BERT-base-uncased", "bert-base"),
        ("Llama-3.1-8B-Instruct", "llama-3.1-8b"),
    ];
    for (text, name) in same {
        assert_eq!(catalog::open(text).unwrap().name, name, "{text}");
    }
}

#[test]
fn a_mistyped_model_is_answered_with_the_nearest_name() {
    for text in [
        "lama-2-7b",
        "gpt2-extra-large",
        "",
        "./gpt2",
        "/no/such/gpt2",
    ] {
        let error = catalog::open(text).unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }), "{error}");
    }
    let message = catalog::open("lama-2-7b").unwrap_err().to_string();
    assert!(message.contains("did you mean `llama-2-7b`"), "{message}");
}

#[test]
fn families_differ_where_their_papers_differ() {
    let gpt2 = catalog::find("gpt2").unwrap();
    assert_eq!(gpt2.mlp.activation, Activation::GeluTanh);
    assert_eq!((gpt2.dropout, gpt2.attention.dropout), (0.1, 0.1));
    let opt = catalog::find("opt-125m").unwrap();
    let learned = Position::Learned {
        rows: 2050,
        offset: 2,
    };
    assert_eq!(
        (opt.position, opt.mlp.activation),
        (learned, Activation::Relu)
    );
    assert_eq!((opt.dropout, opt.attention.dropout), (0.1, 0.0));
    let bert = catalog::find("bert-base").unwrap();
    assert!(!bert.attention.causal && bert.embedding_norm && !bert.final_norm);
    assert_eq!(
        (bert.norm_placement, bert.norm.eps),
        (NormPlacement::Post, 1e-12)
    );
    assert_eq!(
        (bert.mlp.activation, bert.token_types),
        (Activation::Gelu, 2)
    );
    let mistral = catalog::find("mistral-7b").unwrap();
    assert_eq!(mistral.attention.window, Some(4096));
    assert_eq!(mistral.attention.windowed, Windowed::All);
    let qwen2 = catalog::find("qwen2.5-7b").unwrap();
    assert!(qwen2.attention.qkv_bias && !qwen2.attention.out_bias);
    assert_eq!(qwen2.attention.window, None);
    let qwen3 = catalog::find("qwen3-0.6b").unwrap();
    assert!(qwen3.attention.qk_norm && qwen3.head_dim * qwen3.heads != qwen3.hidden);
    assert_eq!(
        catalog::find("phi-3-mini").unwrap().attention.window,
        Some(2047)
    );
    let mixtral = catalog::find("mixtral-8x7b").unwrap().experts.unwrap();
    assert_eq!((mixtral.count, mixtral.top_k), (8, 2));
}

#[test]
fn gemma_2_keeps_its_scales_and_caps() {
    let gemma = catalog::find("gemma-2-9b").unwrap();
    assert_eq!(gemma.attention.scale, 1.0 / 16.0);
    assert_eq!(
        (gemma.attention.softcap, gemma.final_softcap),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(gemma.attention.window, Some(4096));
    assert_eq!(gemma.attention.windowed, Windowed::Even);
    assert_eq!(gemma.embedding_scale, 3584f64.sqrt());
    assert!(gemma.norm.unit_offset && gemma.tied && gemma.mlp.gated);
    assert_eq!(gemma.mlp.activation, Activation::GeluTanh);
}

fn scaling(model: &ModelSpec) -> RotaryScaling {
    match &model.position {
        Position::Rotary(rotary) => rotary.scaling.clone(),
        Position::Learned { .. } => panic!("{} has learned positions", model.name),
    }
}

#[test]
fn rotary_frequencies_are_scaled_as_published() {
    let linear = scaling(&catalog::find("deepseek-coder-1.3b").unwrap());
    assert_eq!(linear, RotaryScaling::Linear { factor: 4.0 });
    let llama3 = scaling(&catalog::find("llama-3.2-1b").unwrap());
    let published = RotaryScaling::Llama3 {
        factor: 32.0,
        low: 1.0,
        high: 4.0,
        original: 8192.0,
    };
    assert_eq!(llama3, published);
}

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

#[test]
fn a_field_that_cannot_be_used_is_named_with_its_value() {
    let cases = [
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
    ];
    for (changes, expected) in cases {
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
