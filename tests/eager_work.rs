//! The work counted for PyTorch, against closed forms: FLOPs of products and attention, bytes of updates, what crosses the link.

use memfit::program::eager::{EagerPhase, Prediction, Unit, Work, explain, predict};
use memfit::spec::catalog;
use memfit::spec::model::ModelSpec;
use memfit::spec::torch::TorchOptions;

fn model() -> ModelSpec {
    catalog::find("llama-3.2-1b").unwrap()
}

fn run(options: &str) -> Prediction {
    let text = format!("batch=2,seq=128,param_dtype=bf16,{options}");
    predict(&model(), &TorchOptions::parse_pairs(&text).unwrap()).unwrap()
}

fn part(of: &Prediction, phase: EagerPhase) -> Work {
    of.work.get(&phase).copied().unwrap_or_default()
}

fn products(of: &Prediction, phase: EagerPhase) -> u128 {
    part(of, phase).half.iter().map(|p| p.flops).sum()
}

/// Elements of the matrices of a layer: all of them, and the MLP's last.
fn layer() -> [u128; 2] {
    let m = model();
    let [hidden, ffn, heads, kv] = [
        m.hidden,
        m.ffn,
        m.heads * m.head_dim,
        m.kv_heads * m.head_dim,
    ]
    .map(u128::from);
    [
        2 * hidden * heads + 2 * hidden * kv + 3 * hidden * ffn,
        hidden * ffn,
    ]
}

fn head() -> u128 {
    u128::from(model().hidden) * u128::from(model().vocab)
}

const TOKENS: u128 = 256;

#[test]
fn a_product_is_two_flops_an_element_forward_and_four_backward() {
    let made = run("optimizer=sgd");
    let weights = u128::from(model().layers) * layer()[0] + head();
    assert_eq!(products(&made, EagerPhase::Forward), 2 * TOKENS * weights);
    assert_eq!(products(&made, EagerPhase::Backward), 4 * TOKENS * weights);
}

#[test]
fn a_checkpoint_repeats_a_layer_up_to_the_last_tensor_it_needs() {
    let [all, last] = layer();
    let layers = u128::from(model().layers);
    let made = run("optimizer=sgd,checkpointing=full");
    let again = 2 * TOKENS * layers * (all - last);
    let first = 4 * TOKENS * (layers * all + head());
    assert_eq!(products(&made, EagerPhase::Backward), first + again);
    // A reentrant one runs the whole layer; a selective one that keeps products runs none of them.
    let reentrant = run("optimizer=sgd,checkpointing=full_reentrant");
    let whole = first + 2 * TOKENS * layers * all;
    assert_eq!(products(&reentrant, EagerPhase::Backward), whole);
    let kept = run("optimizer=sgd,checkpointing=sac_matmul");
    assert_eq!(products(&kept, EagerPhase::Backward), first);
}

#[test]
fn frozen_weights_have_no_gradient_to_compute() {
    let made = run("optimizer=sgd,lora.r=8,lora.targets=q_proj");
    let m = model();
    let adapters = u128::from(m.layers * 8 * (m.hidden + m.heads * m.head_dim));
    let weights = u128::from(m.layers) * layer()[0] + head();
    let forward = products(&made, EagerPhase::Forward);
    // The adapters' own products are of fp32 operands.
    assert_eq!(forward, 2 * TOKENS * weights);
    let single: u128 = part(&made, EagerPhase::Forward)
        .single
        .iter()
        .map(|p| p.flops)
        .sum();
    assert!(single >= 2 * TOKENS * adapters && single < 3 * TOKENS * adapters);
    // Below the first adapter nothing asks for a gradient.
    let backward = products(&made, EagerPhase::Backward);
    assert!(
        backward <= 2 * TOKENS * weights && backward > 19 * TOKENS * weights / 10,
        "{backward}"
    );
}

#[test]
fn causal_attention_is_half_of_two_products_forward_and_of_five_backward() {
    let made = run("optimizer=sgd");
    let m = model();
    let product = 2 * u128::from(2 * m.heads * m.head_dim * 128 * 128 * m.layers);
    let attention = |phase| part(&made, phase).of(Unit::Attention);
    assert_eq!(attention(EagerPhase::Forward), product);
    assert_eq!(attention(EagerPhase::Backward), 5 * product / 2);
    let eager = run("optimizer=sgd,attn=eager");
    assert_eq!(part(&eager, EagerPhase::Forward).of(Unit::Attention), 0);
    let more = products(&eager, EagerPhase::Forward) - products(&made, EagerPhase::Forward);
    assert_eq!(more, 2 * product);
}

#[test]
fn an_update_moves_its_tensors_as_often_as_its_kernels_read_and_write_them() {
    let moved = |options: &str| {
        let made = run(&format!("clip_grad_norm=none,{options}"));
        part(&made, EagerPhase::Optimizer).of(Unit::Moved)
    };
    let fused = moved("optimizer=adamw,optimizer_impl=fused");
    let weights = fused / 7;
    assert_eq!(moved("optimizer=sgd,optimizer_impl=fused"), 3 * weights);
    assert_eq!(
        moved("optimizer=adamw,optimizer_impl=foreach"),
        20 * weights
    );
    let eight = moved("optimizer=adamw_8bit");
    assert!(
        eight > 5 * weights - weights / 100 && eight < 5 * weights + weights / 50,
        "{eight}"
    );
    let kernels = |options: &str| {
        let made = run(&format!("clip_grad_norm=none,{options}"));
        part(&made, EagerPhase::Optimizer).of(Unit::Kernels)
    };
    assert!(kernels("optimizer_impl=forloop") > 4 * kernels("optimizer_impl=fused"));
}

#[test]
fn micro_batches_add_their_work() {
    let (one, two, three) = (
        run("grad_accum=1"),
        run("grad_accum=2"),
        run("grad_accum=3"),
    );
    for phase in [EagerPhase::Forward, EagerPhase::Backward] {
        let flops = |of: &Prediction| part(of, phase).flops();
        assert_eq!(
            (flops(&two), flops(&three)),
            (2 * flops(&one), 3 * flops(&one))
        );
    }
    // From the second on, a gradient is added to the first.
    let moved = |of: &Prediction| part(of, EagerPhase::Backward).of(Unit::Moved);
    assert!(moved(&two) > 2 * moved(&one));
    assert_eq!(moved(&three) - moved(&two), moved(&two) - moved(&one));
}

#[test]
fn what_is_saved_on_the_host_crosses_the_link_twice() {
    let made = run("activation_offload=true");
    let crossed = |phase| part(&made, phase).of(Unit::Link);
    assert!(crossed(EagerPhase::Forward) > 0);
    assert_eq!(crossed(EagerPhase::Forward), crossed(EagerPhase::Backward));
    assert_eq!(
        part(&run("grad_accum=1"), EagerPhase::Forward).of(Unit::Link),
        0
    );
}

#[test]
fn four_bit_weights_are_unpacked_once_a_product() {
    let made = run("checkpointing=none,lora.r=8,lora.targets=q_proj,quant=nf4");
    let weights = u128::from(model().layers) * layer()[0];
    let unpacked = part(&made, EagerPhase::Forward).of(Unit::Unpacked);
    assert_eq!(unpacked, weights / 2 + 2 * weights);
}

#[test]
fn the_work_of_folded_layers_is_that_of_all() {
    for options in [
        "checkpointing=every_2,grad_accum=2",
        "attn=eager,activation_offload=true",
    ] {
        let text = format!("batch=1,seq=64,{options}");
        let options = TorchOptions::parse_pairs(&text).unwrap();
        let whole = explain(&model(), &options).unwrap();
        let folded = predict(&model(), &options).unwrap();
        assert!(whole.work[&EagerPhase::Forward].flops() > 0);
        assert_eq!(folded.work, whole.work);
    }
}
