//! Published measurements: what is out of scope, what their words stand for, and which figure a counter shows.

use memfit::error::Error;
use memfit::machine::compare::{Counter, Target};
use memfit::spec::model::{Family, Head};
use memfit::spec::torch::{AdapterDtype, Checkpointing, TorchOptimizer};
use memfit::spec::units::Bytes;
use serde_json::json;

use crate::compare::{
    GIB, against, case, compared, followed, lines, only, prediction, published, reason, with,
};

#[test]
fn only_what_one_plain_gpu_cannot_tell_is_out_of_scope() {
    assert_eq!(
        reason(&with(published("p"), "/n_gpus", json!(8))),
        "more than one GPU (8)"
    );
    assert_eq!(
        reason(&with(published("p"), "/compile", json!("yes"))),
        "torch.compile"
    );
    assert_eq!(
        reason(&with(published("p"), "/precision", json!("float8 rowwise"))),
        "float8"
    );
    assert_eq!(
        reason(&with(published("p"), "/arch", json!(null))),
        "no `arch`"
    );
    let failed = compared(
        &lines(&[followed("a", 1), followed("b", 1)]),
        |_, options| match options.batch {
            2 => Err(Error::value("model", "small", "too small", "take another")),
            _ => Ok(prediction(1)),
        },
    );
    assert_eq!(
        (
            failed.rows.len(),
            failed.median_abs_error,
            failed.phase_right_share
        ),
        (0, None, None)
    );
    assert!(
        failed.skipped[1]
            .reason
            .starts_with("cannot be predicted: model `small`")
    );
}

#[test]
fn a_published_interval_is_missed_only_from_outside() {
    let workspaces = 2 * 8_519_680;
    let row = |peak: u64| only(&against(&[published("p")], peak - workspaces)).clone();
    assert_eq!(row(9 * GIB + 512).error, 0.0);
    assert_eq!(row(9 * GIB + 512).measured.0, 9 * GIB + GIB / 2);
    assert_eq!(
        (row(11 * GIB).error, row(11 * GIB).measured.0),
        (0.1, 10 * GIB)
    );
    assert!((row(8 * GIB).error + 1.0 / 9.0).abs() < 1e-12);
    assert_eq!(
        row(8 * GIB).interval,
        Some((Bytes(9 * GIB), Bytes(10 * GIB)))
    );
    let mut speed = published("s");
    speed["memory"] = json!(null);
    let all = against(&[speed], GIB);
    assert_eq!(
        (
            all.cases,
            all.rows.len(),
            all.skipped.len(),
            all.unmeasured.len()
        ),
        (1, 0, 0, 1)
    );
}

#[test]
fn each_counter_gets_its_own_figure() {
    let predicted = |counter: &str, gpu: &str| {
        let mut record = with(published("p"), "/metric/counter", json!(counter));
        record["gpu"] = json!(gpu);
        record["extra_memory"] = json!({"cuda_context_mib": 141.0});
        let row = only(&against(&[record], GIB)).clone();
        (row.counter, row.predicted.0)
    };
    assert_eq!(
        predicted("allocated", "Tesla T4"),
        (Counter::Allocated, GIB + 17_039_360)
    );
    assert_eq!(
        predicted("active", "H100-SXM 80GB"),
        (Counter::Active, GIB + (64 << 20))
    );
    // What the allocator holds is replayed, whatever was predicted to be in use: at least the weights of 7B parameters.
    let (counter, held) = predicted("reserved", "Tesla T4");
    assert_eq!((counter, held % (2 << 20)), (Counter::Reserved, 0));
    assert!(held > 2 * 6_738_415_616, "{held}");
    assert_eq!(
        predicted("nvidia-smi", "Tesla T4"),
        (Counter::Process, held + (141 << 20))
    );
    // Weights and state at the start, and a gradient for each weight.
    assert_eq!(
        predicted("sum of profiled parts", "Tesla T4"),
        (Counter::Allocated, 7 + 100)
    );
}

#[test]
fn the_words_of_sources_become_options_and_assumptions() {
    let read = case(&published("p"));
    let lora = read.options.lora.clone().unwrap();
    assert_eq!(
        (lora.r, lora.dropout, lora.adapter_dtype),
        (64, 0.05, AdapterDtype::Base)
    );
    assert_eq!(lora.targets, ["q_proj", "o_proj", "down_proj"]);
    assert_eq!(
        (read.options.grad_accum, read.options.clip_grad_norm),
        (8, Some(1.0))
    );
    assert_eq!((read.model.family, read.model.layers), (Family::Llama, 32));
    assert!(
        read.assumed
            .iter()
            .any(|a| a.contains("the record itself assumes: rank"))
    );
    assert!(
        read.assumed.iter().any(|a| a.contains("finetune script")),
        "{:?}",
        read.assumed
    );
    let mut paged = published("p");
    paged["optimizer"] = json!("bnb PagedAdamW");
    paged["quant"] = json!("bnb-nf4-dq");
    paged["source"] = json!("a plain loop");
    let read = case(&paged);
    assert_eq!(read.options.optimizer, TorchOptimizer::AdamwBnb32bit);
    assert!(
        read.options
            .quant
            .is_some_and(|q| q.double && !q.prepare_kbit)
    );
    let Target::Published { figure, .. } = &read.target else {
        panic!()
    };
    assert!(figure.state_elsewhere);
    assert_eq!(figure.of(&prediction(1000), None).0, 1000 - 40 + 17_039_360);
    let mut zeroth = published("p");
    (zeroth["task"], zeroth["optimizer"]) = (json!("zeroth_order"), json!("MeZO SGD in place"));
    (zeroth["adapter"], zeroth["checkpointing"]) = (json!({}), json!("none"));
    let read = case(&zeroth);
    assert!(read.options.optimizer_in_backward && read.options.lora.is_none());
    assert_eq!(read.options.checkpointing, Checkpointing::Full);
}

#[test]
fn families_are_known_by_name_or_taken_as_generic_decoders() {
    let family = |name: &str, gated: bool, bias: bool| {
        let mut record = with(published("p"), "/model", json!(name));
        record["arch"]["gated"] = json!(gated);
        record["arch"]["qkv_bias"] = json!(bias);
        let read = case(&record);
        let guessed = read.assumed.iter().any(|a| a.starts_with("unknown family"));
        (read.model.family, read.model.head, guessed)
    };
    assert_eq!(
        family("LLaMA-7B", true, false),
        (Family::Llama, Head::Causal, false)
    );
    assert_eq!(
        family("Qwen/Qwen2.5-1.5B-Instruct", true, true),
        (Family::Qwen2, Head::Causal, false)
    );
    assert_eq!(
        family("OPT-1.3B", false, false),
        (Family::Opt, Head::Causal, false)
    );
    assert_eq!(
        family("gpt2-large", false, false),
        (Family::Gpt2, Head::Causal, false)
    );
    assert_eq!(
        family("bert-large-uncased", false, false),
        (Family::Bert, Head::MaskedLm, false)
    );
    assert_eq!(
        family("Zebra-3B", true, false),
        (Family::Llama, Head::Causal, true)
    );
    assert_eq!(
        family("Zebra-3B", true, true),
        (Family::Qwen2, Head::Causal, true)
    );
    assert_eq!(
        family("MPT-3b", false, false),
        (Family::Opt, Head::Causal, true)
    );
}
