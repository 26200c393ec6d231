//! Predictions of PyTorch's peak a second on one core: models of 7B to 70B, folded, with their breakdown.

use std::hint::black_box;
use std::time::Instant;

use memfit::program::eager::predict;
use memfit::spec::catalog;
use memfit::spec::torch::TorchOptions;

const MODELS: [&str; 6] = [
    "llama-2-7b",
    "mistral-7b",
    "llama-3.1-8b",
    "llama-2-13b",
    "opt-30b",
    "llama-2-70b",
];

const OPTIONS: [&str; 5] = [
    "batch=1,seq=2048,param_dtype=bf16,checkpointing=full",
    "batch=4,seq=1024,autocast=bf16,checkpointing=none,optimizer_impl=foreach",
    "batch=2,seq=4096,param_dtype=bf16,checkpointing=sac_matmul",
    "batch=1,seq=2048,param_dtype=bf16,checkpointing=full,lora.r=16,lora.targets=q_proj+k_proj+v_proj+o_proj",
    "batch=1,seq=2048,param_dtype=bf16,autocast=bf16,checkpointing=full,lora.r=16,quant=nf4,optimizer=adamw_8bit",
];

fn main() {
    let smoke = std::env::args().any(|a| a == "--test" || a == "--smoke");
    let jobs: Vec<_> = MODELS
        .iter()
        .flat_map(|name| OPTIONS.iter().map(move |text| (*name, *text)))
        .filter_map(|(name, text)| {
            Some((
                catalog::find(name).ok()?,
                TorchOptions::parse_pairs(text).ok()?,
            ))
        })
        .collect();
    let rounds = if smoke { 1 } else { 40 };
    let begin = Instant::now();
    for _ in 0..rounds {
        for (model, options) in &jobs {
            let made = predict(black_box(model), black_box(options));
            assert!(made.is_ok_and(|p| p.peak.0 > 0));
        }
    }
    let count = rounds * jobs.len();
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{count} predictions in {seconds:.2} s: {:.0} a second on one core",
        count as f64 / seconds
    );
}
