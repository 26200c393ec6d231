//! Weights: where Hugging Face files keep each parameter, how they are read, and how they start without files.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use memfit::error::Error;
use memfit::graph::tensor::DType;
use memfit::machine::train::names::{self, parameters, shape, sources};
use memfit::machine::train::weights::WeightFiles;
use memfit::spec::catalog;
use memfit::spec::model::ModelSpec;
use tempfile::TempDir;

use crate::tiny::{self, FAMILIES, Tensors};

/// Published counts, as in the models' own tests.
const COUNTS: [(&str, u64); 8] = [
    ("gpt2", 124_439_808),
    ("opt-1.3b", 1_315_758_080),
    ("llama-3.2-1b", 1_235_814_400),
    ("qwen3-8b", 8_190_735_360),
    ("gemma-2-2b", 2_614_341_888),
    ("phi-3-mini", 3_821_079_552),
    ("mixtral-8x7b", 46_702_792_704),
    ("bert-base", 109_514_298),
];

pub fn refusal<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
}

pub fn elements(model: &ModelSpec, parameter: &str) -> u64 {
    shape(model, parameter).unwrap().iter().product()
}

/// All of a parameter in singles.
pub fn singles(files: &WeightFiles, model: &ModelSpec, parameter: &str) -> Vec<f32> {
    let mut into = vec![0u8; 4 * elements(model, parameter) as usize];
    files.read(parameter, 0, DType::F32, &mut into).unwrap();
    tiny::numbers(&into)
}

/// A folder with the tiny model of a family, every element a number of its own.
pub fn folder(family: &str) -> (TempDir, ModelSpec, Tensors) {
    let (folder, model) = (TempDir::new().unwrap(), tiny::model(family));
    let tensors = tiny::filled(&model);
    tiny::write_singles(&folder.path().join("model.safetensors"), &tensors);
    (folder, model, tensors)
}

#[test]
fn the_parameters_of_published_models_count_what_their_cards_say() {
    for (name, count) in COUNTS {
        let model = catalog::find(name).unwrap();
        let own: u64 = parameters(&model).iter().map(|p| elements(&model, p)).sum();
        assert_eq!(own, count, "{name}");
    }
}

#[test]
fn every_element_of_every_tensor_is_one_element_of_one_parameter() {
    for family in FAMILIES {
        let (folder, model, tensors) = folder(family);
        let files = WeightFiles::open(folder.path(), &model).unwrap();
        let mut read: Vec<u32> = parameters(&model)
            .iter()
            .flat_map(|p| singles(&files, &model, p))
            .map(|x| x as u32)
            .collect();
        read.sort_unstable();
        let total: usize = tensors.values().map(|(_, values)| values.len()).sum();
        assert!(read.into_iter().eq(0..total as u32), "{family}");
    }
}

#[test]
fn fused_and_transposed_projections_come_apart() {
    let (folder, model, tensors) = folder("gpt2");
    let files = WeightFiles::open(folder.path(), &model).unwrap();
    let fused = &tensors["transformer.h.1.attn.c_attn.weight"]; // [8, 24]
    assert_eq!(fused.0, [8, 24]);
    for (n, name) in ["q", "k", "v"].iter().enumerate() {
        let weight = singles(&files, &model, &format!("layers.1/attention/{name}.weight"));
        let expected = |at: usize| fused.1[(at % 8) * 24 + 8 * n + at / 8];
        assert!((0..64).all(|at| weight[at] == expected(at)), "{name}");
        let bias = singles(&files, &model, &format!("layers.1/attention/{name}.bias"));
        let whole = &tensors["transformer.h.1.attn.c_attn.bias"].1;
        assert_eq!(bias, whole[8 * n..8 * n + 8]);
    }
}

#[test]
fn grouped_queries_and_experts_lie_where_their_families_put_them() {
    let (phi, model, tensors) = folder("phi3");
    let files = WeightFiles::open(phi.path(), &model).unwrap();
    let rows = |tensor: &str, from: usize, to: usize| tensors[tensor].1[from * 8..to * 8].to_vec();
    let read = |name: &str| singles(&files, &model, &format!("layers.0/{name}.weight"));
    let qkv = "model.layers.0.self_attn.qkv_proj.weight";
    assert_eq!(read("attention/q"), rows(qkv, 0, 12));
    assert_eq!(read("attention/k"), rows(qkv, 12, 18));
    assert_eq!(read("attention/v"), rows(qkv, 18, 24));
    assert_eq!(
        read("mlp/up"),
        rows("model.layers.0.mlp.gate_up_proj.weight", 12, 24)
    );
    let (mixtral, model, tensors) = folder("mixtral");
    let files = WeightFiles::open(mixtral.path(), &model).unwrap();
    let down = singles(&files, &model, "layers.1/mlp/experts.down.weight");
    let own = &tensors["model.layers.1.block_sparse_moe.experts.2.w2.weight"];
    assert_eq!(
        (own.0.as_slice(), &own.1[..]),
        (&[8, 12][..], &down[2 * 96..])
    );
}

#[test]
fn the_norms_of_each_family_have_the_names_of_its_class() {
    let tensor = |family: &str, parameter: &str| {
        let mapping = sources(&tiny::model(family), parameter).unwrap();
        mapping.pieces[0].tensor.clone()
    };
    for (family, parameter, expected) in [
        (
            "gemma2",
            "layers.1/attention/post_norm.weight",
            "model.layers.1.post_attention_layernorm.weight",
        ),
        (
            "gemma2",
            "layers.1/mlp/norm.weight",
            "model.layers.1.pre_feedforward_layernorm.weight",
        ),
        (
            "gemma2",
            "layers.0/mlp/post_norm.weight",
            "model.layers.0.post_feedforward_layernorm.weight",
        ),
        (
            "llama",
            "layers.1/mlp/norm.weight",
            "model.layers.1.post_attention_layernorm.weight",
        ),
        (
            "bert",
            "layers.1/attention/norm.bias",
            "bert.encoder.layer.1.attention.output.LayerNorm.bias",
        ),
        ("bert", "head/output.bias", "cls.predictions.bias"),
        (
            "opt",
            "layers.0/mlp/norm.weight",
            "model.decoder.layers.0.final_layer_norm.weight",
        ),
        (
            "qwen3",
            "layers.0/attention/q_norm.weight",
            "model.layers.0.self_attn.q_norm.weight",
        ),
        (
            "mixtral",
            "layers.0/mlp/router.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
        ),
    ] {
        assert_eq!(tensor(family, parameter), expected);
    }
}

#[test]
fn a_name_that_is_no_parameter_is_refused_with_the_nearest() {
    let model = tiny::model("llama");
    for name in [
        "",
        "layers.2/mlp/up.weight",
        "layers.01/mlp/up.weight",
        "head/output.bias",
        "layers.0/mlp/up.bias",
    ] {
        refusal(sources(&model, name), "unknown parameter");
    }
    refusal(
        shape(&model, "layers.1/mlp/upp.weight"),
        "did you mean `layers.1/mlp/up.weight`?",
    );
}

#[test]
fn base_models_and_old_spellings_are_found() {
    let bare = |name: &str| {
        let name = name
            .trim_start_matches("bert.")
            .trim_start_matches("transformer.");
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
    };
    for family in ["gpt2", "bert"] {
        let (folder, model, tensors) = folder(family);
        let renamed: Tensors = tensors
            .iter()
            .map(|(name, t)| (bare(name), t.clone()))
            .collect();
        tiny::write_singles(&folder.path().join("model.safetensors"), &renamed);
        let files = WeightFiles::open(folder.path(), &model).unwrap();
        let last = parameters(&model).pop().unwrap();
        assert!(singles(&files, &model, &last)[0] > 0.0);
    }
    assert!(
        names::spellings("model.decoder.layers.0.fc1.bias")
            .contains(&"decoder.layers.0.fc1.bias".into())
    );
}

#[test]
fn ranges_are_converted_as_the_whole_is() {
    let (folder, model, _) = folder("gpt2");
    let files = WeightFiles::open(folder.path(), &model).unwrap();
    for parameter in [
        "layers.1/attention/v.weight",
        "layers.0/mlp/down.weight",
        "head/norm.bias",
    ] {
        let whole = singles(&files, &model, parameter);
        for (from, to) in [(0, 1), (3, 8), (5, 8), (7, whole.len().min(61)), (8, 8)] {
            let mut narrow = vec![0u8; 2 * (to - from)];
            files
                .read(parameter, 2 * from as u64, DType::Bf16, &mut narrow)
                .unwrap();
            let expected = whole[from..to].iter().map(|x| bf16::from_f32(*x));
            assert!(tiny::numbers::<bf16>(&narrow).into_iter().eq(expected));
            files
                .read(parameter, 2 * from as u64, DType::F16, &mut narrow)
                .unwrap();
            let expected = whole[from..to].iter().map(|x| f16::from_f32(*x));
            assert!(tiny::numbers::<f16>(&narrow).into_iter().eq(expected));
        }
    }
    let name = "head/norm.bias";
    refusal(
        files.read(name, 2, DType::F32, &mut [0; 4]),
        "not whole elements",
    );
    refusal(
        files.read(name, 0, DType::F32, &mut [0; 36]),
        "not whole elements of its 8",
    );
    refusal(
        files.read(name, u64::MAX - 3, DType::F32, &mut [0; 4]),
        "not whole elements",
    );
    refusal(
        files.read("head/nrm.bias", 0, DType::F32, &mut [0; 4]),
        "did you mean `head/norm.bias`?",
    );
}

#[test]
fn shards_are_read_by_their_index_and_stay_in_the_folder() {
    let (folder, model, tensors) = folder("llama");
    let path = |name: &str| folder.path().join(name);
    std::fs::remove_file(path("model.safetensors")).unwrap();
    let (mut parts, mut map) = ([Tensors::new(), Tensors::new()], BTreeMap::new());
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        parts[i % 2].insert(name.clone(), tensor.clone());
        map.insert(name, format!("part-{}.safetensors", i % 2));
    }
    for (i, part) in parts.iter().enumerate() {
        tiny::write_singles(&path(&format!("part-{i}.safetensors")), part);
    }
    refusal(
        WeightFiles::open(folder.path(), &model),
        "holds 2 files of weights and no index",
    );
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
    let files = WeightFiles::open(folder.path(), &model).unwrap();
    assert_eq!(
        singles(&files, &model, "head/norm.weight"),
        tensors["model.norm.weight"].1
    );
    let outside = r#"{"weight_map": {"a": "../part-0.safetensors"}}"#;
    std::fs::write(path("model.safetensors.index.json"), outside).unwrap();
    refusal(
        WeightFiles::open(folder.path(), &model),
        "not a file of this folder",
    );
}

#[test]
fn files_that_are_not_the_models_are_refused_by_name() {
    let (folder, model, tensors) = folder("llama");
    let path = folder.path().join("model.safetensors");
    let with = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        tiny::write_singles(&path, &tensors);
        WeightFiles::open(folder.path(), &model)
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    refusal(
        with(&|t| drop(t.remove(name))),
        "no tensor `model.layers.1.mlp.up_proj.weight`",
    );
    refusal(
        with(&|t| t.get_mut(name).unwrap().0 = vec![8, 12]),
        "has shape [8, 12], the model's config says [12, 8]",
    );
    let bytes = vec![0u8; 96];
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::I8, vec![12, 8], &bytes).unwrap();
    let only = |model: &ModelSpec| WeightFiles::open(&path, model);
    safetensors::serialize_to_file([("model.embed_tokens.weight", view)], None, &path).unwrap();
    refusal(
        only(&ModelSpec {
            vocab: 12,
            ..model.clone()
        }),
        "is in I8",
    );
    std::fs::remove_file(&path).unwrap();
    let gguf = folder.path().join("model.gguf");
    std::fs::write(&gguf, "GGUF").unwrap();
    refusal(WeightFiles::open(&gguf, &model), "GGUF files are read for");
    refusal(
        WeightFiles::open(folder.path(), &model),
        "holds no model.safetensors",
    );
    refusal(
        WeightFiles::open(Path::new("/no/such/folder"), &model),
        "cannot read",
    );
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let (folder, model, _) = folder("llama");
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let with = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        WeightFiles::open(folder.path(), &model)
    };
    refusal(with(&whole[..whole.len() - 1]), "truncated");
    refusal(with(&[&whole[..], b"x"].concat()), "too long");
    refusal(with(&whole[..100]), "the header claims");
    refusal(with(&whole[..5]), "only 5 bytes");
    let header = |text: &str| {
        [
            &(text.len() as u64).to_le_bytes()[..],
            text.as_bytes(),
            &[0; 8],
        ]
        .concat()
    };
    let overlap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    refusal(with(&header(overlap)), "damaged safetensors header");
    refusal(
        with(&header(
            r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
        )),
        "damaged",
    );
    refusal(with(&header("{]")), "damaged safetensors header");
}

#[test]
fn strips_cover_a_range_once_and_are_never_longer_than_a_mebibyte() {
    let model = catalog::find("gpt2").unwrap();
    for name in ["embedding/token.weight", "layers.3/attention/k.weight"] {
        let mapping = sources(&model, name).unwrap();
        let (mut seen, mut longest) = (0, 0);
        let range = 1000..mapping.elements() - 1000;
        let mut each = |strip: names::Strip| {
            (seen, longest) = (seen + strip.count, longest.max(strip.count));
            assert!(strip.to + (strip.count - 1) * strip.stride < range.end - range.start);
            Ok(())
        };
        mapping.strips(range.clone(), &mut each).unwrap();
        assert_eq!(seen, range.end - range.start);
        assert!(longest <= 1 << 18);
    }
}
