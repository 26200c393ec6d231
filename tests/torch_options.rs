//! Options of a PyTorch step: every key, every value, and what must be refused.

use memfit::error::Error;
use memfit::spec::torch::{
    AdapterDtype, Attn, Checkpointing, Lora, OptimizerImpl, Quant, QuantType, Task, TorchDtype,
    TorchLoss, TorchOptimizer, TorchOptions,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A record's options with no key left out.
fn whole() -> Value {
    json!({
        "task": "causal_lm", "batch": 2, "seq": 2048, "param_dtype": "bf16", "autocast": null, "attn": "sdpa",
        "checkpointing": "full", "optimizer": "adamw", "optimizer_impl": "fused", "optimizer_in_backward": false,
        "grad_accum": 1, "set_to_none": true, "clip_grad_norm": null, "loss": "hf",
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05, "targets": ["q_proj", "v_proj"], "adapter_dtype": "base"},
        "quant": {"type": "nf4", "double": true, "prepare_kbit": true},
        "attention_mask": true, "use_cache": false, "keep_outputs": false, "convert_outputs_fp32": false,
        "activation_offload": false
    })
}

fn refusal(result: Result<TorchOptions, Error>, parts: &[&str]) {
    let message = result.unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message} lacks {part}");
    }
}

fn with(key: &str, value: Value) -> Result<TorchOptions, Error> {
    let mut options = whole();
    options[key] = value;
    TorchOptions::from_json(&options)
}

#[test]
fn options_are_written_as_they_were_read() {
    let mut read = TorchOptions::from_json(&whole()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), whole());
    assert_eq!(
        read.lora.as_ref().unwrap().adapter_dtype,
        AdapterDtype::Base
    );
    (read.lora, read.quant) = (None, None);
    for (key, other) in [
        ("task", json!("masked_lm")),
        ("batch", json!(3)),
        ("seq", json!(7)),
        ("param_dtype", json!("fp16")),
        ("autocast", json!("bf16")),
        ("attn", json!("eager")),
        ("optimizer_in_backward", json!(true)),
        ("grad_accum", json!(4)),
        ("set_to_none", json!(false)),
        ("clip_grad_norm", json!(0.5)),
        ("attention_mask", json!(false)),
        ("use_cache", json!(true)),
        ("keep_outputs", json!(true)),
        ("convert_outputs_fp32", json!(true)),
        ("activation_offload", json!(true)),
    ] {
        let mut options = serde_json::to_value(&read).unwrap();
        options[key] = other.clone();
        let changed: TorchOptions = serde_json::from_value(options.clone()).unwrap();
        assert_ne!(changed, read, "{key}");
        assert_eq!(serde_json::to_value(&changed).unwrap(), options, "{key}");
    }
}

#[test]
fn every_name_of_every_choice_is_read_and_written() {
    let named = |key: &str, name: &str| {
        let mut options = json!({"optimizer": "adamw"});
        options[key] = json!(name);
        let read = TorchOptions::from_json(&options).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap()[key], json!(name));
    };
    Task::ALL.iter().for_each(|v| named("task", v.name()));
    TorchDtype::ALL
        .iter()
        .for_each(|v| named("param_dtype", v.name()));
    Attn::ALL.iter().for_each(|v| named("attn", v.name()));
    Checkpointing::ALL
        .iter()
        .for_each(|v| named("checkpointing", v.name()));
    TorchOptimizer::ALL
        .iter()
        .for_each(|v| named("optimizer", v.name()));
    TorchLoss::ALL.iter().for_each(|v| named("loss", v.name()));
    assert_eq!(Checkpointing::ALL.len() + TorchOptimizer::ALL.len(), 17);
}

#[test]
fn missing_keys_are_as_a_plain_trainer_has_them() {
    let plain = TorchOptions::from_json(&json!({})).unwrap();
    assert_eq!(plain, TorchOptions::default());
    assert_eq!(plain, TorchOptions::parse_pairs("").unwrap());
    assert_eq!((plain.batch, plain.clip_grad_norm), (8, Some(1.0)));
    let mixed = TorchOptions::parse_pairs("autocast=bf16").unwrap();
    assert!(mixed.convert_outputs_fp32);
    let released = TorchOptions::parse_pairs("optimizer_in_backward=true").unwrap();
    assert_eq!(released.clip_grad_norm, None);
    for optimizer in TorchOptimizer::ALL {
        let text = format!("optimizer={}", optimizer.name());
        let read = TorchOptions::parse_pairs(&text).unwrap();
        assert_eq!(read.optimizer_impl, optimizer.implementations()[0]);
    }
}

#[test]
fn pairs_say_what_an_object_says() {
    let text = "task=causal_lm, batch=2, seq=2048, param_dtype=bf16, autocast=none, checkpointing=full, \
                clip_grad_norm=none, lora.r=16, lora.alpha=32, lora.dropout=0.05, lora.targets=q_proj+v_proj, \
                lora.adapter_dtype=base, quant.type=nf4, quant.double=true, quant.prepare_kbit=true";
    let expected = TorchOptions::from_json(&whole()).unwrap();
    assert_eq!(TorchOptions::parse_pairs(text).unwrap(), expected);
    let short =
        TorchOptions::parse_pairs("lora=16,lora.alpha=32,quant=nf4,clip_grad_norm=1").unwrap();
    let lora = Lora {
        r: 16,
        alpha: 32,
        ..Lora::default()
    };
    assert_eq!(
        (short.lora, short.quant),
        (Some(lora), Some(Quant::default()))
    );
    assert_eq!(Quant::default().kind, QuantType::Nf4);
    let none = TorchOptions::parse_pairs("lora=none,quant=null,checkpointing=none").unwrap();
    assert_eq!(
        (none.lora, none.quant, none.checkpointing),
        (None, None, Checkpointing::None)
    );
}

#[test]
fn unknown_keys_and_values_name_what_is_allowed() {
    let read = |text: &str| TorchOptions::parse_pairs(text);
    refusal(read("bach=2"), &["bach", "did you mean `batch`"]);
    refusal(read("zzz=2"), &["zzz", "activation_offload", "grad_accum"]);
    refusal(
        read("checkpointing=ful"),
        &["checkpointing", "ful", "`full`", "sac_matmul"],
    );
    refusal(
        read("param_dtype=int3"),
        &["param_dtype", "int3", "fp32, bf16, fp16"],
    );
    refusal(read("autocast=fp32"), &["autocast", "bf16, fp16, or null"]);
    refusal(read("lora.rank=8"), &["lora.rank", "lora.r"]);
    refusal(read("model.r=8"), &["model.r"]);
    refusal(read("quant=int8"), &["quant.type", "int8", "nf4"]);
    refusal(read("batch"), &["batch", "no `=`"]);
    refusal(read("batch=2,,seq=3"), &["no `=`"]);
    refusal(read("batch=2,batch=3"), &["batch", "twice"]);
    refusal(read("lora=none,lora.r=3"), &["lora.r", "twice"]);
    refusal(
        with("lora", json!({"rank": 3})),
        &["lora.rank", "did you mean"],
    );
    refusal(TorchOptions::from_json(&json!([])), &["object"]);
}

#[test]
fn values_of_the_wrong_type_name_their_key() {
    for key in ["batch", "seq", "grad_accum"] {
        for wrong in [json!("8"), json!(-1), json!(1.5), json!(null), json!([1])] {
            refusal(with(key, wrong), &[key, "whole number"]);
        }
    }
    for key in ["set_to_none", "use_cache", "attention_mask", "keep_outputs"] {
        refusal(with(key, json!(1)), &[key, "true or false"]);
    }
    refusal(with("task", json!(null)), &["task", "causal_lm, masked_lm"]);
    refusal(
        with("clip_grad_norm", json!("much")),
        &["clip_grad_norm", "number"],
    );
    refusal(with("lora", json!(5)), &["lora", "object"]);
    refusal(
        with("lora", json!({"targets": "q_proj"})),
        &["lora.targets", "list"],
    );
    refusal(
        with("lora", json!({"targets": [1]})),
        &["lora.targets", "list"],
    );
    let unread = serde_json::from_value::<TorchOptions>(json!({"batch": "x"}));
    assert!(unread.unwrap_err().to_string().contains("batch"));
}

#[test]
fn options_no_step_could_have_are_refused() {
    refusal(with("batch", json!(0)), &["batch", "at least 1"]);
    refusal(with("seq", json!(1u64 << 40)), &["seq"]);
    refusal(
        TorchOptions::parse_pairs("batch=65536,seq=65536"),
        &["batch * seq"],
    );
    refusal(
        with("clip_grad_norm", json!(0)),
        &["clip_grad_norm", "above zero"],
    );
    refusal(with("lora", json!({"r": 0})), &["lora.r"]);
    refusal(with("lora", json!({"dropout": 1.0})), &["lora.dropout"]);
    refusal(with("lora", json!({"targets": []})), &["lora.targets"]);
    refusal(with("lora", json!(null)), &["quant", "adapters"]);
    let pairs = |text: &str| TorchOptions::parse_pairs(text);
    refusal(
        pairs("optimizer=adamw_8bit,optimizer_impl=fused"),
        &["adamw_8bit", "fused", "bnb"],
    );
    refusal(
        pairs("optimizer=rmsprop,optimizer_impl=fused"),
        &["rmsprop", "foreach, forloop"],
    );
    refusal(
        pairs("optimizer=adamw,optimizer_impl=bnb"),
        &["adamw", "bnb"],
    );
    refusal(
        pairs("task=masked_lm,loss=chunked"),
        &["masked_lm", "chunked"],
    );
    assert_eq!(
        pairs("optimizer=adagrad,optimizer_impl=fused")
            .unwrap()
            .optimizer_impl,
        OptimizerImpl::Fused
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z_.=,+0-9 -]{0,40}") {
        let _ = TorchOptions::parse_pairs(&text);
    }

    #[test]
    fn any_value_at_any_key_is_read_or_refused(key in 0usize..21, kind in 0u8..6, number in any::<f64>()) {
        let mut options = whole();
        let name = options.as_object().unwrap().keys().nth(key).unwrap().clone();
        options[&name] = match kind {
            0 => json!(null),
            1 => json!(number),
            2 => json!(number as u64),
            3 => json!({"r": number}),
            4 => json!([number]),
            _ => json!("fused"),
        };
        let _ = TorchOptions::from_json(&options);
    }
}
