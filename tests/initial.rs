//! How parameters start without files.

use half::bf16;
use memfit::graph::tensor::{DType, First};
use memfit::machine::train::initial::initial;
use memfit::spec::catalog;
use memfit::spec::model::ModelSpec;

use crate::tiny;
use crate::weights::{elements, refusal};

fn first(model: &ModelSpec, storage: &str, dtype: DType, offset: u64, length: usize) -> Vec<u8> {
    let mut into = vec![1u8; length];
    initial(model, (storage, &First::Model), 7, offset, dtype, &mut into).unwrap();
    into
}

#[test]
fn parameters_start_as_the_rounding_of_their_masters() {
    let model = tiny::model("llama");
    let storage = "layers.1/attention/q.weight";
    let master: Vec<f32> = tiny::numbers(&first(
        &model,
        &format!("{storage}.master"),
        DType::F32,
        0,
        4 * 96,
    ));
    let rounded: Vec<bf16> = tiny::numbers(&first(&model, storage, DType::Bf16, 0, 2 * 96));
    assert!(master.iter().map(|x| bf16::from_f32(*x)).eq(rounded));
    assert_eq!(
        first(&model, storage, DType::Bf16, 20, 40),
        first(&model, storage, DType::Bf16, 0, 192)[20..60]
    );
    let mut state = vec![1; 63];
    initial(
        &model,
        ("any.codes", &First::Zero),
        7,
        1,
        DType::U8,
        &mut state,
    )
    .unwrap();
    assert!(state.iter().all(|b| *b == 0));
    assert!(
        first(&model, "layers.0/attention/q.bias", DType::F32, 0, 16)
            .iter()
            .all(|b| *b == 0)
    );
}

#[test]
fn weights_start_normal_and_norms_as_the_identity() {
    let spread = |storage: &str, model: &ModelSpec| {
        let count = elements(model, storage) as usize;
        let values: Vec<f32> = tiny::numbers(&first(model, storage, DType::F32, 0, 4 * count));
        (values.iter().map(|x| x * x).sum::<f32>() / count as f32).sqrt()
    };
    let model = catalog::find("tiny").unwrap();
    assert!((spread("embedding/token.weight", &model) - 0.02).abs() < 0.001);
    let ends = 0.02 / (2.0 * model.layers as f32).sqrt();
    assert!((spread("layers.1/mlp/down.weight", &model) - ends).abs() < 0.0005);
    assert_eq!(spread("layers.3/mlp/norm.weight", &model), 1.0);
    assert_eq!(spread("head/norm.weight", &tiny::model("gemma2")), 0.0);
    refusal(
        initial(
            &model,
            ("layers.0/mlp/up", &First::Model),
            0,
            0,
            DType::F32,
            &mut [],
        ),
        "unknown parameter",
    );
    refusal(
        initial(
            &model,
            ("head/norm.weight", &First::Model),
            0,
            0,
            DType::U32,
            &mut [],
        ),
        "floating-point",
    );
}
