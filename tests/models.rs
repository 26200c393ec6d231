//! Published models: their names, and parameter counts by a formula of this file's own.

use std::collections::BTreeMap;

use memfit::error::Error;
use memfit::spec::catalog;
use memfit::spec::model::{
    Activation, Head, ModelSpec, NormKind, NormPlacement, Position, RotaryScaling, Windowed,
};
use serde_json::Value;

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
        "runs/gpt2",
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
