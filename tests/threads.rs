//! Whole training steps on one, two and three threads: the same bits.

use memfit::spec::job::Precision;

use crate::programs::{job, plan, train};

/// Wide enough that kernels cut it into pieces for several threads.
const WIDE: &str = r#"{"model_type":"llama","vocab_size":700,"hidden_size":160,"intermediate_size":400,
"num_hidden_layers":2,"num_attention_heads":5,"num_key_value_heads":5,"rms_norm_eps":1e-5,"hidden_act":"silu",
"tie_word_embeddings":false,"max_position_embeddings":128}"#;

const STACKS: [&[&str]; 4] = [
    &[],
    &["flash_attention", "chunked_loss:rows=16", "clip"],
    &["recompute", "fused_update", "accumulate:micro=2"],
    &[
        "flash_attention",
        "offload:what=activations",
        "offload:what=optimizer,update=host",
    ],
];

#[test]
fn losses_do_not_depend_on_the_number_of_threads() {
    for precision in [Precision::F32, Precision::Bf16] {
        for choices in STACKS {
            let losses = |threads| {
                let job = job(WIDE, 4, 64, precision, threads);
                train(&plan(job, choices), 2).0
            };
            let one: Vec<f32> = losses(1);
            assert!(one.iter().all(|l| l.is_finite() && *l > 0.0), "{one:?}");
            for threads in [2, 3] {
                let bits = |losses: &[f32]| losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
                let many = losses(threads);
                assert_eq!(
                    bits(&one),
                    bits(&many),
                    "{choices:?} in {precision:?} on {threads} threads: {many:?}, not {one:?}"
                );
            }
        }
    }
}
