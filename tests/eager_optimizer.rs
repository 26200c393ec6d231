//! Optimizers of the abstract PyTorch against PyTorch itself: state, temporaries and their lifetimes, to the byte.
//!
//! The figures were measured with PyTorch 2.10.0, transformers 4.57.6 and bitsandbytes 0.50.2 by following the storages of a second step on
//! fake tensors: bytes alive before the step, and the peak of one phase.

use memfit::program::eager::{EagerPhase, Prediction, predict};
use memfit::spec::config;
use memfit::spec::torch::TorchOptions;

/// Two layers with odd sizes, so that blocks of 256 values are not full and norms stay below bitsandbytes' least size.
const TINY: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":96,"intermediate_size":200,
"num_hidden_layers":2,"num_attention_heads":6,"num_key_value_heads":2,"vocab_size":1001,"max_position_embeddings":256,
"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false,"hidden_act":"silu"}"#;

/// One layer: its queries have 4096 values, the least that bitsandbytes quantizes, its feed-forward matrices 4032.
const LIMIT: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,"intermediate_size":63,
"num_hidden_layers":1,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":97,"max_position_embeddings":256,
"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false,"hidden_act":"silu"}"#;

fn predicted(model: &str, dtype: &str, optimizer: &str, more: &str) -> Prediction {
    let spec = config::parse("tiny", model).unwrap();
    let (name, how) = optimizer.split_once(' ').unwrap();
    let mut pairs =
        format!("batch=1,seq=8,param_dtype={dtype},optimizer={name},optimizer_impl={how}");
    if !more.contains("clip_grad_norm") {
        pairs += ",clip_grad_norm=none";
    }
    if !more.is_empty() {
        pairs = format!("{pairs},{more}");
    }
    predict(&spec, &TorchOptions::parse_pairs(&pairs).unwrap()).unwrap()
}

fn phase(of: &Prediction, phase: EagerPhase) -> u64 {
    of.phase_peak[&phase].0
}

/// Sizes of the trained weights of [`TINY`], as matrices or vectors.
fn weights() -> Vec<Vec<u64>> {
    let layer: [&[u64]; 9] = [
        &[96, 96],
        &[32, 96],
        &[32, 96],
        &[96, 96],
        &[200, 96],
        &[200, 96],
        &[96, 200],
        &[96],
        &[96],
    ];
    let outer: [&[u64]; 3] = [&[1001, 96], &[96], &[1001, 96]];
    layer
        .iter()
        .chain(&layer)
        .chain(&outer)
        .map(|sizes| sizes.to_vec())
        .collect()
}

/// State bytes: what is alive before a step beyond what SGD without state has.
fn state(dtype: &str, optimizer: &str, more: &str) -> u64 {
    let without = predicted(TINY, dtype, "sgd foreach", more).step_start.0;
    predicted(TINY, dtype, optimizer, more).step_start.0 - without
}

fn total(bytes: impl Fn(&[u64]) -> u64) -> u64 {
    weights().iter().map(|sizes| bytes(sizes)).sum()
}

/// bitsandbytes with `count` states: f32 below 4096 values, else a byte a value and an f32 scale for each 256.
fn blockwise(sizes: &[u64], count: u64) -> u64 {
    let values: u64 = sizes.iter().product();
    count
        * if values < 4096 {
            4 * values
        } else {
            values + 4 * values.div_ceil(256)
        }
}

#[test]
fn state_has_the_bytes_of_its_closed_form() {
    let values = |sizes: &[u64]| sizes.iter().product::<u64>();
    let factored = |sizes: &[u64]| sizes.iter().sum::<u64>();
    for (dtype, size) in [("fp32", 4), ("bf16", 2), ("fp16", 2)] {
        let is = |optimizer: &str, bytes: u64| {
            assert_eq!(state(dtype, optimizer, ""), bytes, "{dtype} {optimizer}")
        };
        is("adamw foreach", total(|w| 2 * size * values(w)));
        is("adamw forloop", total(|w| 2 * size * values(w)));
        is("adamw fused", total(|w| 2 * size * values(w) + 4));
        is("sgd_momentum foreach", total(|w| size * values(w)));
        is("rmsprop foreach", total(|w| size * values(w)));
        is("adagrad foreach", total(|w| size * values(w)));
        is("adafactor forloop", total(|w| 4 * factored(w) + 4));
        is("adafactor_torch forloop", total(|w| size * factored(w)));
        is("adamw_bnb_32bit bnb", total(|w| 8 * values(w)));
        is("adamw_8bit bnb", total(|w| blockwise(w, 2)) + 2048);
        is("lion_8bit bnb", total(|w| blockwise(w, 1)) + 1024);
        is("sgd_momentum_8bit bnb", total(|w| blockwise(w, 1)) + 1024);
    }
}

#[test]
fn an_optimizer_for_each_parameter_has_quantization_maps_of_its_own() {
    let quantized = |sizes: &[u64]| sizes.iter().product::<u64>() >= 4096;
    let each = total(|w| blockwise(w, 2) + if quantized(w) { 2048 } else { 0 });
    assert_eq!(
        state("bf16", "adamw_8bit bnb", "optimizer_in_backward=true"),
        each
    );
}

#[test]
fn bitsandbytes_quantizes_from_4096_values_on() {
    let measured = [
        ("sgd foreach", 74_016, 148_000),
        ("adamw_8bit bnb", 249_008, 322_992),
        ("lion_8bit bnb", 161_512, 235_496),
        ("adafactor forloop", 79_436, 253_392),
    ];
    for (optimizer, start, peak) in measured {
        let p = predicted(LIMIT, "bf16", optimizer, "");
        assert_eq!(
            (p.step_start.0, phase(&p, EagerPhase::Optimizer)),
            (start, peak),
            "{optimizer}"
        );
    }
}

/// One measured step a line: type of the weights, optimizer, implementation, further options; bytes before the step, peak of the
/// optimizer's phase, peak of the backward pass.
fn agree(measured: &str) {
    for line in measured.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [dtype, name, how, more, start, update, backward] = fields[..] else {
            panic!("{line}: not seven fields");
        };
        let more = if more == "-" { "" } else { more };
        let p = predicted(TINY, dtype, &format!("{name} {how}"), more);
        assert_eq!(p.step_start.0.to_string(), start, "{line}");
        assert_eq!(
            phase(&p, EagerPhase::Backward).to_string(),
            backward,
            "{line}"
        );
        if update != "-" {
            assert_eq!(
                phase(&p, EagerPhase::Optimizer).to_string(),
                update,
                "{line}"
            );
        }
    }
}

const UPDATES: &str = "\
bf16 adamw foreach - 2142176 3570272 2857832
bf16 adamw fused - 2142260 2856308 2857916
bf16 adamw forloop - 2142176 3240800 2857832
bf16 sgd_momentum foreach - 1428128 2142176 2143784
bf16 rmsprop foreach - 1428128 2856224 2143784
bf16 rmsprop forloop - 1428128 2352800 2143784
bf16 adagrad foreach - 1428128 3570272 2143784
bf16 adagrad forloop - 1428128 2352800 2143784
bf16 adafactor forloop - 737084 2993056 1452740
bf16 adafactor_torch forloop - 725540 1650598 1441196
bf16 adafactor_torch foreach - 725540 2153636 1441196
bf16 adamw_8bit bnb - 1517552 2231600 2233208
bf16 lion_8bit bnb - 1115816 1829864 1831472
bf16 sgd_momentum_8bit bnb - 1115816 1829864 1831472
bf16 adamw_bnb_32bit bnb - 3570272 4284320 4285928
fp32 adamw foreach - 4284320 7140512 5715560
fp32 adamw fused - 4284404 5712500 5715644
fp32 adamw forloop - 4284320 6481568 5715560
fp32 sgd_momentum foreach - 2856224 4284320 4287464
fp32 rmsprop foreach - 2856224 5712416 4287464
fp32 rmsprop forloop - 2856224 4705568 4287464
fp32 adagrad foreach - 2856224 7140512 4287464
fp32 adagrad forloop - 2856224 4705568 4287464
fp32 adafactor forloop - 1451132 3652384 2882372
fp32 adafactor_torch forloop - 1451048 3301164 2882288
fp32 adafactor_torch foreach - 1451048 4307240 2882288
fp32 adamw_8bit bnb - 2231600 3659696 3662840
fp32 lion_8bit bnb - 1829864 3257960 3261104
fp32 sgd_momentum_8bit bnb - 1829864 3257960 3261104
fp32 adamw_bnb_32bit bnb - 4284320 5712416 5715560
fp16 adafactor forloop - 737084 2993056 1452740
fp16 adafactor_torch forloop - 725540 1650598 1441196
fp16 adafactor_torch foreach - 725540 2153636 1441196
fp16 adamw_8bit bnb - 1517552 2231600 2233208
bf16 sgd foreach - 714080 1428128 1429736
bf16 sgd forloop - 714080 1428128 1429736
bf16 sgd fused - 714080 1428128 1429736
bf16 sgd_momentum forloop - 1428128 2142176 2143784
bf16 sgd_momentum fused - 1428128 2142176 2143784";

#[test]
fn updates_peak_as_pytorch_does() {
    agree(UPDATES);
}

/// With clipping, gradients kept and zeroed, several micro-batches, adapters.
const AROUND: &str = "\
bf16 adamw fused clip_grad_norm=1 2142260 2856394 2857916
bf16 adamw fused set_to_none=false 2856308 2856308 3131740
bf16 adamw fused grad_accum=3 2142260 2856308 3131740
bf16 adamw fused lora.r=3,lora.adapter_dtype=fp32 737152 744832 886680
bf16 adamw fused clip_grad_norm=1,set_to_none=false,grad_accum=2,lora.r=64,lora.adapter_dtype=base 1041792 1041826 1185816
bf16 adamw_8bit bnb clip_grad_norm=1 1517552 2231686 2233208
bf16 adamw_8bit bnb set_to_none=false 2231600 2231600 2507032
bf16 adamw_8bit bnb grad_accum=3 1517552 2231600 2507032
bf16 adamw_8bit bnb lora.r=3,lora.adapter_dtype=fp32 737120 744800 886648
bf16 adamw_8bit bnb clip_grad_norm=1,set_to_none=false,grad_accum=2,lora.r=64,lora.adapter_dtype=base 987616 987650 1131640
bf16 adafactor forloop clip_grad_norm=1 737084 2993056 1452740
bf16 adafactor forloop set_to_none=false 1451132 2993056 1726564
bf16 adafactor forloop grad_accum=3 737084 2993056 1726564
bf16 adafactor forloop lora.r=3,lora.adapter_dtype=fp32 724448 735584 873976
bf16 adafactor forloop clip_grad_norm=1,set_to_none=false,grad_accum=2,lora.r=64,lora.adapter_dtype=base 882560 1005440 1026584
bf16 sgd foreach clip_grad_norm=1 714080 1428214 1429736
bf16 sgd foreach set_to_none=false 1428128 1428128 1703560
bf16 sgd foreach grad_accum=3 714080 1428128 1703560
bf16 sgd foreach lora.r=3,lora.adapter_dtype=fp32 721760 729440 871288
bf16 sgd foreach clip_grad_norm=1,set_to_none=false,grad_accum=2,lora.r=64,lora.adapter_dtype=base 877920 877954 1021944
bf16 adagrad foreach clip_grad_norm=1 1428128 3570272 2143784
bf16 adagrad foreach set_to_none=false 2142176 3570272 2417608
bf16 adagrad foreach grad_accum=3 1428128 3570272 2417608
bf16 adagrad foreach lora.r=3,lora.adapter_dtype=fp32 729440 752480 878968
bf16 adagrad foreach clip_grad_norm=1,set_to_none=false,grad_accum=2,lora.r=64,lora.adapter_dtype=base 959840 1123680 1103864
bf16 adamw forloop clip_grad_norm=1 2142176 3240800 2857832
bf16 adamw forloop set_to_none=false 2856224 3240800 3131656
bf16 adamw forloop grad_accum=3 2142176 3240800 3131656
bf16 adamw forloop lora.r=3,lora.adapter_dtype=fp32 737120 748256 886648
bf16 adamw forloop clip_grad_norm=1,set_to_none=false,grad_accum=2,lora.r=64,lora.adapter_dtype=base 1041760 1078624 1185784";

#[test]
fn clipping_zeroing_accumulation_and_adapters_peak_as_pytorch_does() {
    agree(AROUND);
}

/// Each parameter is stepped as its gradient comes.
const IN_BACKWARD: &str = "\
bf16 adamw fused optimizer_in_backward=true 2142260 - 2417692
bf16 adamw fused optimizer_in_backward=true,grad_accum=2 2142260 - 2417692
bf16 adamw_8bit bnb optimizer_in_backward=true 1540080 - 1815512
bf16 adamw_8bit bnb optimizer_in_backward=true,grad_accum=2 1540080 - 1815512
bf16 adafactor forloop optimizer_in_backward=true 737084 - 2536888
bf16 adafactor forloop optimizer_in_backward=true,grad_accum=2 737084 - 2536888
bf16 sgd foreach optimizer_in_backward=true 714080 - 989512
bf16 sgd foreach optimizer_in_backward=true,grad_accum=2 714080 - 989512
bf16 adagrad foreach optimizer_in_backward=true 1428128 - 2070392
bf16 adagrad foreach optimizer_in_backward=true,grad_accum=2 1428128 - 2070392
bf16 adamw forloop optimizer_in_backward=true 2142176 - 2784440
bf16 adamw forloop optimizer_in_backward=true,grad_accum=2 2142176 - 2784440";

#[test]
fn updates_in_the_backward_pass_peak_as_pytorch_does() {
    agree(IN_BACKWARD);
}
