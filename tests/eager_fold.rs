//! The interpreter of PyTorch: folded layers against layers run one by one.

use memfit::program::eager::{explain, predict};
use memfit::spec::catalog;
use memfit::spec::model::ModelSpec;
use memfit::spec::torch::TorchOptions;

/// One model of each family.
const MODELS: [&str; 10] = [
    "gpt2",
    "opt-125m",
    "bert-base",
    "llama-3.2-1b",
    "mistral-7b",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "gemma-2-2b",
    "phi-3-mini",
    "mixtral-8x7b",
];

/// Options that change what a layer keeps, or what runs after the layers.
const VARIANTS: [&str; 8] = [
    "param_dtype=bf16",
    "autocast=bf16,checkpointing=full",
    "param_dtype=bf16,checkpointing=full_reentrant,attn=eager",
    "param_dtype=bf16,checkpointing=every_2,optimizer_impl=foreach",
    "param_dtype=bf16,checkpointing=sac_matmul,grad_accum=2",
    "autocast=bf16,checkpointing=sac_attn,optimizer_impl=forloop,set_to_none=false",
    "param_dtype=bf16,lora.r=8,lora.targets=q_proj+v_proj+c_attn+query,checkpointing=full",
    "param_dtype=bf16,attention_mask=false,optimizer_in_backward=true,clip_grad_norm=none",
];

#[test]
fn folded_layers_are_the_layers_one_by_one() {
    for name in MODELS {
        let model = catalog::find(name).unwrap();
        for variant in VARIANTS {
            let task = if name == "bert-base" {
                "task=masked_lm,"
            } else {
                ""
            };
            let text = format!("{task}batch=2,seq=64,{variant}");
            let options = TorchOptions::parse_pairs(&text).unwrap();
            for layers in 1..=12 {
                let spec = ModelSpec {
                    layers,
                    ..model.clone()
                };
                let folded = predict(&spec, &options).unwrap();
                let mut whole = explain(&spec, &options).unwrap();
                whole.saved_items.clear();
                whole.largest.clear();
                assert_eq!(folded, whole, "{name}, {layers} layers, {text}");
            }
        }
    }
}
