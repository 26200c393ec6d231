//! Saves: read back bit for bit, swapped in whole, and safe from crashes.

use std::fs;
use std::path::{Path, PathBuf};

use memfit::error::Error;
use memfit::graph::random::Key;
use memfit::graph::tensor::{DType, Type};
use memfit::machine::train::names::{parameters, shape};
use memfit::machine::train::save::{Progress, Save, Saved};
use memfit::machine::train::weights::WeightFiles;
use memfit::spec::model::ModelSpec;
use tempfile::TempDir;

use crate::tiny::{self, FAMILIES};

/// Parameters in `dtype` with a master copy and two moments each.
fn storages(model: &ModelSpec, dtype: DType) -> Vec<(String, Type)> {
    let of = |name: String| {
        let shape = shape(model, &name).unwrap();
        let state =
            [".master", ".m", ".v"].map(|e| (format!("{name}{e}"), Type::new(&shape, DType::F32)));
        [(name, Type::new(&shape, dtype))].into_iter().chain(state)
    };
    parameters(model).into_iter().flat_map(of).collect()
}

/// Any bits at all: not even a NaN may change.
fn bits(name: &str, seed: u64, length: u64) -> Vec<u8> {
    let key = Key::new(seed, 0, name);
    (0..length).map(|i| key.bits(i) as u8).collect()
}

fn write(save: &Save, storages: &[(String, Type)], seed: u64, chunk: usize) {
    for (name, at) in storages {
        let bytes = bits(name, seed, at.bytes().0);
        for (i, part) in bytes.chunks(chunk).enumerate() {
            save.write(name, (i * chunk) as u64, part).unwrap();
        }
    }
}

fn progress(step: u64) -> Progress {
    Progress {
        step,
        ..Progress::new(7, 65536.0)
    }
}

/// Saves a tiny GPT-2 with the bits of `seed`, and its step the same.
fn saved(dir: &Path, seed: u64) -> Result<(), Error> {
    let model = tiny::model("gpt2");
    let storages = storages(&model, DType::F32);
    let save = Save::begin(dir, &model, &storages)?;
    write(&save, &storages, seed, 1 << 20);
    save.finish(&tiny::config_text("gpt2"), &progress(seed))
}

fn is_whole(dir: &Path, seed: u64) {
    let saved = Saved::open(dir).unwrap();
    assert_eq!(saved.progress().step, seed);
    for (name, at) in storages(saved.model(), DType::F32) {
        let mut into = vec![0; at.bytes().0 as usize];
        saved.read(&name, 0, &mut into).unwrap();
        assert!(into == bits(&name, seed, at.bytes().0), "{name}");
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A folder with a save of seed 1 in `run`.
fn with_save() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("run");
    saved(&dir, 1).unwrap();
    (folder, dir)
}

#[test]
fn every_family_comes_back_bit_for_bit_in_any_format() {
    for (family, dtype) in FAMILIES
        .iter()
        .zip([DType::F32, DType::Bf16, DType::F16].iter().cycle())
    {
        let (folder, model) = (TempDir::new().unwrap(), tiny::model(family));
        let dir = folder.path().join("a/b/save");
        let storages = storages(&model, *dtype);
        let save = Save::begin(&dir, &model, &storages).unwrap();
        write(&save, &storages, 3, 100);
        save.finish(&tiny::config_text(family), &progress(3))
            .unwrap();
        let saved = Saved::open(&dir).unwrap();
        for (name, at) in &storages {
            let mut into = vec![0; at.bytes().0 as usize];
            for (i, part) in into.chunks_mut(36).enumerate() {
                saved.read(name, 36 * i as u64, part).unwrap();
            }
            assert!(into == bits(name, 3, at.bytes().0), "{family} {name}");
            assert_eq!(saved.dtype(name), Some(at.dtype));
        }
        assert_eq!(
            (saved.model().family, saved.config()),
            (model.family, tiny::config_text(family).as_str())
        );
        WeightFiles::open(&dir, &model).unwrap();
    }
}

#[test]
fn tied_heads_are_saved_once_as_hugging_face_does() {
    let (_folder, dir) = with_save();
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.tensor("lm_head.weight").is_err());
    assert_eq!(
        file.tensor("transformer.h.0.attn.c_attn.weight")
            .unwrap()
            .shape(),
        [8, 24]
    );
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(
        entries(&dir),
        [
            "config.json",
            "memfit.json",
            "model.safetensors",
            "state.safetensors"
        ]
    );
}

#[test]
fn a_save_that_is_not_finished_leaves_the_one_before() {
    let (folder, dir) = with_save();
    let model = tiny::model("gpt2");
    let storages = storages(&model, DType::F32);
    let save = Save::begin(&dir, &model, &storages).unwrap();
    write(&save, &storages[1..], 2, 1 << 20);
    assert_eq!(entries(folder.path()).len(), 2);
    refusal(save.finish("{}", &progress(2)), "write every storage once");
    assert_eq!(entries(folder.path()), ["run"]);
    is_whole(&dir, 1);
    saved(&dir, 2).unwrap();
    assert_eq!(entries(folder.path()), ["run"]);
    is_whole(&dir, 2);
}

#[test]
fn a_crash_between_the_renames_is_undone() {
    let (folder, dir) = with_save();
    fs::rename(&dir, folder.path().join(".run.previous")).unwrap();
    is_whole(&dir, 1);
    fs::rename(&dir, folder.path().join(".run.previous")).unwrap();
    saved(&dir, 2).unwrap();
    is_whole(&dir, 2);
    assert_eq!(entries(folder.path()), ["run"]);
}

#[test]
fn what_crashed_processes_left_is_cleared() {
    let (folder, dir) = with_save();
    let path = |name: &str| folder.path().join(name);
    saved(&path("other"), 1).unwrap();
    fs::rename(path("other"), path(".run.previous")).unwrap();
    fs::create_dir(path(".run.partial-4294967295")).unwrap();
    fs::create_dir(path(".run.partial-1")).unwrap();
    fs::create_dir(path(".run.partial-x")).unwrap();
    is_whole(&dir, 1);
    saved(&dir, 2).unwrap();
    is_whole(&dir, 2);
    assert_eq!(
        entries(folder.path()),
        [".run.partial-1", ".run.partial-x", "run"]
    );
}

#[test]
fn files_that_are_not_ours_are_never_removed() {
    let (folder, dir) = with_save();
    fs::write(dir.join("tokenizer.json"), "mine").unwrap();
    saved(&dir, 2).unwrap();
    assert_eq!(
        fs::read_to_string(dir.join("tokenizer.json")).unwrap(),
        "mine"
    );
    let photos = folder.path().join("photos");
    fs::create_dir(&photos).unwrap();
    saved(&photos, 1).unwrap();
    fs::remove_file(photos.join("memfit.json")).unwrap();
    refusal(saved(&photos, 2), "holds other files than a save");
    refusal(
        saved(&dir.join("config.json"), 1),
        "is a file, not a folder",
    );
    refusal(saved(&dir.join("config.json/below"), 1), "cannot create");
    refusal(saved(Path::new("/"), 1), "folder");
}

#[test]
fn storages_must_be_those_of_the_model_and_written_within_their_bounds() {
    let (folder, model) = (TempDir::new().unwrap(), tiny::model("phi3"));
    let dir = folder.path().join("run");
    let mut storages = storages(&model, DType::Bf16);
    let save = Save::begin(&dir, &model, &storages).unwrap();
    refusal(
        save.write("head/norm.weight", 15, &[0; 2]),
        "not whole elements",
    );
    refusal(
        save.write("head/norm.weight", 16, &[0; 2]),
        "not whole elements of its 8",
    );
    refusal(
        save.write("head/norm.wait", 0, &[0; 2]),
        "did you mean `head/norm.weight`?",
    );
    let at = storages
        .iter()
        .position(|(name, _)| name == "layers.0/mlp/up.weight")
        .unwrap();
    storages[at].1.dtype = DType::F32;
    refusal(Save::begin(&dir, &model, &storages), "in one format");
    storages[at].1.shape = vec![8];
    refusal(
        Save::begin(&dir, &model, &storages),
        "the model has 96 elements",
    );
    storages.remove(at);
    refusal(
        Save::begin(&dir, &model, &storages),
        "a save has every parameter",
    );
}

#[test]
fn damaged_saves_are_refused_by_file() {
    for (file, expected) in [
        ("memfit.json", "not valid JSON"),
        ("config.json", "not valid JSON"),
        ("model.safetensors", "truncated"),
        ("state.safetensors", "truncated"),
    ] {
        let (_folder, dir) = with_save();
        let bytes = fs::read(dir.join(file)).unwrap();
        fs::write(dir.join(file), &bytes[..bytes.len() - 2]).unwrap();
        refusal(Saved::open(&dir), expected);
        fs::remove_file(dir.join(file)).unwrap();
        refusal(Saved::open(&dir), file);
    }
    let (_folder, dir) = with_save();
    refusal(
        Saved::open(&dir)
            .unwrap()
            .read("head/norm.weight.momentum", 0, &mut []),
        "other settings",
    );
    refusal(
        Saved::open(&dir)
            .unwrap()
            .read("head/norm.weight.m", 8, &mut [0; 32]),
        "not within",
    );
    fs::write(dir.join("memfit.json"), r#"{"version": 9}"#).unwrap();
    refusal(Saved::open(&dir), "its version is 9");
    fs::write(dir.join("memfit.json"), r#"{"version": 1}"#).unwrap();
    refusal(Saved::open(&dir), "not the progress of a run");
}

#[test]
fn progress_comes_back_even_where_a_loss_was_not_finite() {
    let folder = TempDir::new().unwrap();
    let (dir, model) = (folder.path().join("run"), tiny::model("llama"));
    let storages = storages(&model, DType::F32);
    let save = Save::begin(&dir, &model, &storages).unwrap();
    write(&save, &storages, 1, 1 << 20);
    let mut progress = progress(3);
    progress.seed = u64::MAX;
    progress.losses = vec![0.1 + 0.2, f32::NAN, f32::MIN_POSITIVE];
    progress.evaluations = vec![(2, f32::INFINITY)];
    progress.settings = serde_json::json!({"rate": 3e-4});
    save.finish(&tiny::config_text("llama"), &progress).unwrap();
    let back = Saved::open(&dir).unwrap().progress().clone();
    assert_eq!(
        (back.seed, back.losses[0], back.losses[2]),
        (u64::MAX, 0.1 + 0.2, f32::MIN_POSITIVE)
    );
    assert!(back.losses[1].is_nan() && back.evaluations[0].1.is_nan());
    assert_eq!(
        (back.settings, back.loss_scale),
        (progress.settings, 65536.0)
    );
}
