//! Predictions against measured runs: records of both forms, bad lines, errors, shares, and one case taken apart.

use std::collections::BTreeMap;

use memfit::error::Result;
use memfit::machine::compare::explain::Explanation;
use memfit::machine::compare::{self, Case, Comparison, Counter, Line, Row};
use memfit::program::eager::{Class, EagerPhase, Prediction, SavedItem};
use memfit::show::comparison;
use memfit::spec::model::ModelSpec;
use memfit::spec::torch::TorchOptions;
use memfit::spec::units::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

pub(crate) const GIB: u64 = 1 << 30;

/// A step followed tensor by tensor.
pub(crate) fn followed(id: &str, peak: u64) -> Value {
    json!({
        "id": id, "model": "small",
        "hf_config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 128, "vocab_size": 100},
        "options": {"batch": 2, "seq": 16, "optimizer": "adamw", "clip_grad_norm": null},
        "measured": {"peak_bytes": peak, "peak_phase": "backward", "peak_op": "aten::mm",
            "breakdown_at_peak": {"params": 100, "grads": 20}, "phase_peak_bytes": {"forward": 50, "backward": peak},
            "step_start_bytes": 7, "saved_per_layer": {"first": 1, "middle": 64, "last": 1},
            "saved_middle_layer_items": [{"what": "mm [2, 16] float32", "count": 2, "bytes": 64}]}
    })
}

/// A published measurement.
pub(crate) fn published(id: &str) -> Value {
    json!({
        "id": id, "source": "QwenLM/Qwen README.md", "task": "lora", "model": "Llama-2-7B",
        "arch": {"family": "llama", "hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "head_dim": 128,
            "ffn": 11008, "gated": true, "vocab": 32000, "tied_embeddings": false, "qkv_bias": false,
            "params_computed": 6738415616u64},
        "gpu": "A100-SXM4-80GB", "n_gpus": 1, "precision": "bf16", "optimizer": "AdamW fused", "micro_batch": 1,
        "grad_accum": 8, "seq_len": 256, "checkpointing": "full", "attention": "SDPA",
        "adapter": {"type": "lora", "rank": 64, "targets": ["q_proj", "c_proj"]}, "quant": null, "offload": null,
        "compile": null, "loss": null, "metric": {"counter": "allocated"},
        "memory": {"value": 10, "unit": "GB", "gib_min": 9.0, "gib_max": 10.0}, "assumed": ["rank"]
    })
}

pub(crate) fn prediction(peak: u64) -> Prediction {
    Prediction {
        peak: Bytes(peak),
        phase: EagerPhase::Backward,
        op: "mm".into(),
        phase_peak: BTreeMap::from([(EagerPhase::Backward, Bytes(peak))]),
        breakdown: BTreeMap::from([
            (Class::Params, Bytes(100)),
            (Class::OptimizerState, Bytes(40)),
        ]),
        step_start: Bytes(7),
        step_end: Bytes(7),
        saved: Bytes(0),
        saved_middle_layer: Bytes(64),
        saved_items: vec![SavedItem {
            what: "mm [2, 16] float32".into(),
            count: 1,
            bytes: Bytes(32),
        }],
        work: BTreeMap::new(),
        largest: Vec::new(),
    }
}

pub(crate) fn lines(records: &[Value]) -> Vec<Line> {
    let texts: Vec<String> = records.iter().map(Value::to_string).collect();
    compare::read(texts.join("\n").as_bytes())
}

pub(crate) fn compared(
    lines: &[Line],
    predict: impl Fn(&ModelSpec, &TorchOptions) -> Result<Prediction>,
) -> Comparison {
    compare::compare(lines, predict, &mut |_, _| {})
}

pub(crate) fn against(records: &[Value], peak: u64) -> Comparison {
    compared(&lines(records), |_, _| Ok(prediction(peak)))
}

pub(crate) fn case(record: &Value) -> Case {
    let mut all = lines(std::slice::from_ref(record));
    all.remove(0).case.unwrap_or_else(|why| panic!("{why}"))
}

/// Why a record is not predicted.
pub(crate) fn reason(record: &Value) -> String {
    lines(std::slice::from_ref(record))
        .remove(0)
        .case
        .unwrap_err()
}

pub(crate) fn with(mut record: Value, path: &str, value: Value) -> Value {
    *record.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
    record
}

pub(crate) fn only(comparison: &Comparison) -> &Row {
    assert_eq!(
        (comparison.rows.len(), comparison.skipped.len()),
        (1, 0),
        "{:?}",
        comparison.skipped
    );
    &comparison.rows[0]
}

#[test]
fn errors_are_signed_shares_of_what_was_measured() {
    let row = |measured, predicted| only(&against(&[followed("a", measured)], predicted)).clone();
    assert_eq!(row(1000, 1004).error, 0.004);
    assert_eq!(row(1000, 900).error, -0.1);
    assert_eq!(row(1000, 1000).error, 0.0);
    let row = row(1000, 1004);
    assert_eq!(
        (row.measured.0, row.predicted.0, row.counter),
        (1000, 1004, Counter::Live)
    );
    assert_eq!(
        (row.measured_saved_layer, row.measured_phase),
        (Some(Bytes(64)), Some(EagerPhase::Backward))
    );
}

#[test]
fn a_summary_counts_errors_shares_and_cases() {
    let mut records: Vec<Value> = (1..=10)
        .map(|n| followed(&format!("r{n}"), 1000 - n * 10))
        .collect();
    records[0]["measured"]["peak_phase"] = json!("optimizer");
    records[1]["measured"]["saved_per_layer"]["middle"] = json!(65);
    records[2]["measured"]["saved_per_layer"] = json!(null);
    let all = against(&records, 990);
    assert_eq!((all.cases, all.rows.len(), all.skipped.len()), (10, 10, 0));
    let worst = (990.0 - 900.0) / 900.0;
    assert_eq!(all.max_abs_error, Some(worst));
    let between =
        |share: Option<f64>, low: f64, high: f64| share.is_some_and(|s| s >= low && s <= high);
    assert!(between(all.median_abs_error, 40.0 / 950.0, 50.0 / 940.0));
    assert!(
        between(all.p90_abs_error, 80.0 / 910.0, worst)
            && between(all.p95_abs_error, 80.0 / 910.0, worst)
    );
    assert_eq!(all.phase_right_share, Some(0.9));
    assert_eq!(all.saved_layer_exact_share, Some(8.0 / 9.0));
    let worst: Vec<&str> = all.worst(2).iter().map(|r| r.id.as_str()).collect();
    assert_eq!(worst, ["r10", "r9"]);
    let json = serde_json::to_value(&all).unwrap();
    for key in [
        "cases",
        "median_abs_error",
        "p90_abs_error",
        "p95_abs_error",
        "max_abs_error",
        "seconds",
    ] {
        assert!(json[key].is_number(), "{key}");
    }
    assert_eq!(json["rows"][3]["id"], "r4");
    assert!(json["rows"][3]["measured"].is_u64() && json["rows"][3]["predicted"].is_u64());
}

#[test]
fn bad_lines_are_reported_and_never_stop_the_rest() {
    let whole = followed("good", 1000).to_string();
    let cut = &whole[..whole.len() / 2];
    let mut text =
        format!("{whole}\n\n{cut}\n[1]\nnonsense\n{{}}\n{{\"id\": 5}}\n{{\"id\": \"odd\"}}\n")
            .into_bytes();
    text.extend_from_slice(b"\xff\xfe\n");
    text.extend_from_slice(published("two").to_string().as_bytes());
    let all = compared(&compare::read(&text), |_, _| Ok(prediction(1000)));
    assert_eq!((all.cases, all.rows.len()), (9, 2));
    let said: Vec<&str> = all.skipped.iter().map(|s| s.reason.as_str()).collect();
    for (at, (line, part)) in [
        (3, "ends within"),
        (4, "not a JSON object"),
        (5, "not valid JSON"),
        (6, "`id` is missing"),
        (7, "`id`: invalid type"),
        (8, "no measured run"),
        (9, "not text"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(
            said[at].starts_with(&format!("line {line}: ")) && said[at].contains(part),
            "{}",
            said[at]
        );
        assert_eq!(all.skipped[at].line, line);
    }
    assert_eq!(
        (all.skipped[0].id.as_str(), all.skipped[5].id.as_str()),
        ("line 3", "odd")
    );
    let text = comparison::text(&all, None);
    assert!(
        text.contains("good") && text.contains("line 3: the line ends within"),
        "{text}"
    );
    assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
}

#[test]
fn fields_that_cannot_be_used_are_named() {
    let good = || followed("a", 1000);
    for (record, part) in [
        (
            with(good(), "/hf_config", json!(null)),
            "`hf_config` is missing",
        ),
        (
            with(good(), "/hf_config", json!(3)),
            "`hf_config`: expected an object",
        ),
        (
            with(good(), "/hf_config/model_type", json!("lama")),
            "did you mean `llama`",
        ),
        (
            with(good(), "/hf_config/vocab_size", json!("many")),
            "vocab_size",
        ),
        (
            with(good(), "/options/optimizer", json!("adamww")),
            "did you mean `adamw`",
        ),
        (with(good(), "/options/batch", json!(-3)), "batch"),
        (
            with(good(), "/measured", json!([])),
            "`measured`: expected an object",
        ),
        (
            with(good(), "/measured/peak_bytes", json!("much")),
            "`peak_bytes`: invalid type",
        ),
        (
            with(good(), "/measured/peak_bytes", json!(null)),
            "`peak_bytes` is missing",
        ),
        (
            with(good(), "/measured/peak_bytes", json!(0)),
            "`peak_bytes` is 0",
        ),
        (
            with(good(), "/measured/peak_phase", json!("middle")),
            "`peak_phase`: unknown variant `middle`",
        ),
        (
            with(good(), "/measured/breakdown_at_peak", json!({"cats": 1})),
            "unknown variant `cats`",
        ),
        (
            with(published("p"), "/precision", json!("int3")),
            "`precision`: unknown value `int3`; known are bf16",
        ),
        (
            with(published("p"), "/optimizer", json!(null)),
            "`optimizer` is missing",
        ),
        (
            with(published("p"), "/adapter/targets", json!(["nose"])),
            "`targets`: unknown value `nose`",
        ),
        (
            with(published("p"), "/adapter/rank", json!("low")),
            "`rank`: invalid type",
        ),
        (
            with(published("p"), "/arch/hidden", json!(-1)),
            "`arch`: invalid value",
        ),
        (with(published("p"), "/arch/heads", json!(0)), "`arch`"),
        (
            with(published("p"), "/memory/gib_min", json!(11)),
            "no interval",
        ),
        (with(published("p"), "/seq_len", json!(0)), "seq"),
        (with(published("p"), "/n_gpus", json!(0)), "`n_gpus` is 0"),
    ] {
        let why = reason(&record);
        assert!(
            why.starts_with("line 1: ") && why.contains(part),
            "{why} lacks {part}"
        );
    }
}

#[test]
fn a_case_taken_apart_has_both_sides_of_every_account() {
    let read = case(&followed("a", 1000));
    let told = Explanation::new(&read, &prediction(990));
    let class = |c: Class| told.classes[&c];
    assert_eq!(
        (
            class(Class::Grads).predicted.0,
            class(Class::Grads).measured
        ),
        (0, Some(Bytes(20)))
    );
    let state = class(Class::OptimizerState);
    assert_eq!((state.predicted.0, state.measured), (40, Some(Bytes(0))));
    assert_eq!(
        (told.items[0].predicted_count, told.items[0].measured_count),
        (1, Some(2))
    );
    let text = comparison::explanation(&told);
    for part in [
        "-1.00 %",
        "parameters",
        "saved by a middle layer",
        "(2 measured, 1 predicted)",
        "aten::mm",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let told = Explanation::new(&case(&published("p")), &prediction(GIB));
    assert!(!told.detailed && told.classes.values().all(|pair| pair.measured.is_none()));
    assert!(comparison::explanation(&told).contains("assumed"));
    let all = lines(&[followed("first", 1), json!({"id": "broken"})]);
    assert!(compare::find(&all, "first").is_ok());
    let why = |id: &str| compare::find(&all, id).unwrap_err().to_string();
    assert!(
        why("firts").contains("did you mean `first`") && why("broken").contains("no measured run")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_reported(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        compare::read(&bytes);
    }

    #[test]
    fn any_field_may_be_anything(which in 0usize..30, form in any::<bool>(), kind in 0u8..6, number in any::<f64>()) {
        let mut record = if form { published("p") } else { followed("f", 1000) };
        let object = record.as_object_mut().unwrap();
        let key = object.keys().nth(which % object.len()).unwrap().clone();
        let value = match kind {
            0 => json!(null),
            1 => json!(number),
            2 => json!(number as u64),
            3 => json!({"hidden": number, "peak_bytes": u64::MAX, "counter": "reserved"}),
            4 => json!([number]),
            _ => json!("none"),
        };
        object.insert(key, value);
        let all = against(&[record], GIB);
        comparison::text(&all, Some(3));
    }
}
