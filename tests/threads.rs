//! Whole training steps on one, two and three threads: the same bits.

use half::bf16;
use memfit::graph::op::Element;
use memfit::graph::op::gemm::{Mat, matmul, matmul_scratch};
use memfit::spec::job::{Backend, Precision};

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

/// The product of an (m, k) by a (k, n) matrix on `threads` threads, each operand stored by columns where `turned` says so.
fn product<T: Element>(
    (m, n, k): (usize, usize, usize),
    turned: [bool; 2],
    threads: u32,
) -> Vec<T> {
    let values = |count: usize, seed: usize| -> Vec<T> {
        let value = |i: usize| ((i * 7919 + seed) % 1013) as f32 / 331.0 - 1.5;
        (0..count).map(|i| T::narrow(value(i))).collect()
    };
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let a = if turned[0] {
        Mat::new(&a, k, m).t()
    } else {
        Mat::new(&a, m, k)
    };
    let b = if turned[1] {
        Mat::new(&b, n, k).t()
    } else {
        Mat::new(&b, k, n)
    };
    let bytes = matmul_scratch(T::DTYPE, T::DTYPE, Backend::Cpu { threads });
    let mut scratch = vec![0f32; bytes.0 as usize / 4];
    let mut made = vec![T::narrow(0.0); m * n];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads as usize);
    pool.build().unwrap().install(|| {
        matmul(
            &mut made,
            n,
            a,
            b,
            false,
            bytemuck::cast_slice_mut(&mut scratch),
        );
    });
    made
}

#[test]
fn products_do_not_depend_on_the_number_of_threads() {
    let sizes = [1, 2, 15, 16, 17, 63, 65, 97, 130, 193, 385, 700];
    for (turn, &m) in sizes.iter().enumerate() {
        for &n in &sizes {
            for k in [1, 64, 513, 1100] {
                let turned = [turn % 2 == 0, (turn / 2 + n) % 2 == 0];
                let wide: Vec<f32> = product((m, n, k), turned, 1);
                let half: Vec<bf16> = product((m, n, k), turned, 1);
                for threads in [2, 3, 16] {
                    let shape = (m, n, k);
                    assert!(
                        wide == product::<f32>(shape, turned, threads),
                        "{shape:?} on {threads}"
                    );
                    assert!(
                        half == product::<bf16>(shape, turned, threads),
                        "{shape:?} on {threads}, bf16"
                    );
                }
            }
        }
    }
}
