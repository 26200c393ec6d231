//! Quantized weights bit for bit as bitsandbytes makes them, and the linear layers that read them.

use memfit::graph::op::dynamic;
use memfit::graph::op::matmul::{Linear, LinearInputGradient};
use memfit::graph::op::quantized::{Format, Part, QuantizedGroupedLinear, QuantizedLinear, Weight};
use memfit::graph::op::{Op, View};
use memfit::graph::tensor::{DType, Derivation, TensorId, Type};
use memfit::machine::train::quantize::derive;
use memfit::spec::job::Backend;
use serde_json::Value;

use crate::bench::{Bench, assert_near, bytes_of, floats, rounded, values};
use crate::reference::Evaluator;

/// What bitsandbytes made of [`weight`].
const GOLDEN: &str = include_str!("evidence/bitsandbytes.json");

fn golden(name: &str) -> Value {
    serde_json::from_str::<Value>(GOLDEN).unwrap()[name].clone()
}

fn bits(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|n| n.as_i64().unwrap() as u32).collect()
}

/// Singles that the script makes too, all of them exact.
fn weight(count: usize) -> Vec<f32> {
    let value = |i: i64| match i {
        64..128 => 0.0,
        _ => (((i * 7919 + 13) % 2003 - 1001) * (1 + (i / 64) % 7)) as f32 / 4096.0,
    };
    (0..count as i64).map(value).collect()
}

/// All parts of a weight, as the desk makes them, `step` bytes at a time.
fn parts(
    format: Format,
    shape: &[u64],
    source: DType,
    weight: &[f32],
    step: usize,
) -> Vec<Vec<u8>> {
    let source = rounded(weight, source);
    let mut known = None;
    let made = |(part, at): (Part, Type)| {
        let how = Derivation {
            format,
            part,
            shape: shape.to_vec(),
            source: DType::F32,
        };
        let mut bytes = vec![0u8; at.bytes().0 as usize];
        let step = (step as u64 * at.dtype.bytes()) as usize;
        for (index, piece) in bytes.chunks_mut(step).enumerate() {
            let at = (index * step) as u64;
            derive(&how, at, piece, &mut known, &mut |first, into| {
                into.copy_from_slice(&source[first as usize..][..into.len()]);
                Ok(())
            })
            .unwrap();
        }
        bytes
    };
    format.parts(shape).into_iter().map(made).collect()
}

/// Aligned copies of parts.
fn words(parts: &[Vec<u8>]) -> Vec<Vec<u64>> {
    let word = |bytes: &Vec<u8>| {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        words
    };
    parts.iter().map(word).collect()
}

/// The weight that parts stand for, in `dtype`.
fn widened(format: Format, shape: &[u64], parts: &[Vec<u8>], dtype: DType) -> Vec<u8> {
    let (types, words) = (format.parts(shape), words(parts));
    let view = |(i, words): (usize, &'_ Vec<u64>)| {
        let bytes = &bytemuck::cast_slice::<u64, u8>(words)[..parts[i].len()];
        (types[i].1.clone(), bytes.to_vec())
    };
    let held: Vec<(Type, Vec<u8>)> = words.iter().enumerate().map(view).collect();
    let views: Vec<View> = held
        .iter()
        .zip(&words)
        .map(|((at, bytes), words)| View {
            at,
            bytes: &bytemuck::cast_slice::<u64, u8>(words)[..bytes.len()],
        })
        .collect();
    let columns = *shape.last().unwrap() as usize;
    let weight = Weight::new(format, columns, &views);
    let count = shape.iter().product::<u64>() as usize;
    match dtype {
        DType::F32 => {
            let mut into = vec![0f32; count];
            weight.dequantize(0, &mut into);
            bytemuck::cast_slice(&into).to_vec()
        }
        _ => {
            let mut into = vec![half::bf16::ZERO; count];
            weight.dequantize(0, &mut into);
            bytemuck::cast_slice(&into).to_vec()
        }
    }
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.chunks_exact(4);
    words
        .map(|b| u32::from_ne_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn the_dynamic_code_is_that_of_bitsandbytes() {
    let wanted = bits(&golden("dynamic_code"));
    let got: Vec<u32> = dynamic::SIGNED.values.iter().map(|c| c.to_bits()).collect();
    assert_eq!(got, wanted);
}

#[test]
fn nf4_codes_absmaxes_and_values_are_those_of_bitsandbytes() {
    let (format, shape) = (Format::Nf4 { double: false }, [212]);
    for (name, dtype) in [("nf4_f32", DType::F32), ("nf4_bf16", DType::Bf16)] {
        let wanted = golden(name);
        for step in [1, 7, 1000] {
            let made = parts(format, &shape, dtype, &weight(212), step);
            let codes: Vec<u32> = made[0].iter().map(|&c| u32::from(c)).collect();
            assert_eq!(codes, bits(&wanted["codes"]), "{name}");
            assert_eq!(u32s(&made[1]), bits(&wanted["absmax"]), "{name}");
            let back = widened(format, &shape, &made, dtype);
            let back = match dtype {
                DType::F32 => u32s(&back),
                _ => back
                    .chunks_exact(2)
                    .map(|b| i32::from(i16::from_ne_bytes([b[0], b[1]])) as u32)
                    .collect(),
            };
            assert_eq!(back, bits(&wanted["back"]), "{name}");
        }
    }
}

#[test]
fn doubly_quantized_absmaxes_are_those_of_bitsandbytes() {
    let (format, count) = (Format::Nf4 { double: true }, 64 * 300 + 10);
    let wanted = golden("nf4_double");
    for step in [13, 1 << 20] {
        let made = parts(format, &[count], DType::F32, &weight(count as usize), step);
        let codes: Vec<u32> = made[1].iter().map(|&c| u32::from(c)).collect();
        assert_eq!(codes, bits(&wanted["absmax"]));
        assert_eq!(u32s(&made[2]), bits(&wanted["nested"]));
        assert_eq!(u32s(&made[3]), bits(&wanted["offset"]));
        let back = widened(format, &[count], &made, DType::F32);
        let fnv = back.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &b| {
            (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        assert_eq!(format!("{fnv:016x}"), wanted["back_fnv"].as_str().unwrap());
    }
}

#[test]
fn int8_codes_absmaxes_and_values_are_those_of_bitsandbytes() {
    let (format, shape) = (Format::Int8 { block: None }, [6, 40]);
    let wanted = golden("int8");
    let made = parts(format, &shape, DType::F16, &weight(240), 3);
    let codes: Vec<u32> = made[0].iter().map(|&c| u32::from(c)).collect();
    assert_eq!(codes, bits(&wanted["codes"]));
    assert_eq!(u32s(&made[1]), bits(&wanted["absmax"]));
    let back = widened(format, &shape, &made, DType::F32);
    assert_eq!(u32s(&back), bits(&wanted["back"]));
}

/// Formats with a block that rows do not end with.
const FORMATS: [Format; 4] = [
    Format::Nf4 { double: false },
    Format::Nf4 { double: true },
    Format::Int8 { block: None },
    Format::Int8 { block: Some(48) },
];

#[test]
fn parts_take_the_bytes_of_the_closed_forms() {
    let bytes = |format: Format, shape: &[u64]| -> u64 {
        format.parts(shape).iter().map(|(_, at)| at.bytes().0).sum()
    };
    for (rows, columns) in [(4096u64, 4096u64), (11_008, 4096), (33, 7)] {
        let (n, shape) = (rows * columns, [rows, columns]);
        let blocks = n.div_ceil(64);
        assert_eq!(bytes(FORMATS[0], &shape), n.div_ceil(2) + 4 * blocks);
        let double = n.div_ceil(2) + blocks + 4 * blocks.div_ceil(256) + 4;
        assert_eq!(bytes(FORMATS[1], &shape), double);
        assert_eq!(bytes(FORMATS[2], &shape), n + 4 * rows);
        assert_eq!(bytes(FORMATS[3], &shape), n + 4 * n.div_ceil(48));
    }
    // Dettmers et al. 2023, section 3: double quantization saves 0.373 bits per parameter.
    let n = 4096 * 4096;
    let saved = bytes(FORMATS[0], &[4096, 4096]) - bytes(FORMATS[1], &[4096, 4096]);
    assert!((8.0 * saved as f64 / n as f64 - 0.373).abs() < 1e-3);
}

/// A layer whose weight is held in `format`: its step, the values of its inputs, and the same with the widened weight.
struct Layer {
    bench: Bench,
    y: TensorId,
    dx: TensorId,
    plain: (TensorId, TensorId),
    fill: Vec<(TensorId, Vec<u8>)>,
}

fn layer(format: Format, dtype: DType, (n, o, i): (u64, u64, u64)) -> Layer {
    let mut bench = Bench::new();
    let x = bench.input(&[n, i], dtype);
    let made = parts(
        format,
        &[o, i],
        dtype,
        &values(1, (o * i) as usize, 0.1),
        1 << 20,
    );
    let types = format.parts(&[o, i]);
    let ids: Vec<TensorId> = types
        .iter()
        .map(|(_, at)| bench.input(&at.shape, at.dtype))
        .collect();
    let bias = bench.input(&[o], dtype);
    let weight = bench.input(&[o, i], dtype);
    let seed = bench.input(&[n, o], dtype);
    let op = QuantizedLinear {
        format,
        outputs: o,
        bias: true,
    };
    let inputs: Vec<TensorId> = [x].into_iter().chain(ids.clone()).chain([bias]).collect();
    let y = bench.emit(op, &inputs)[0];
    let plain = bench.emit(Linear { bias: true }, &[x, weight, bias])[0];
    let plain_dx = bench.emit(LinearInputGradient, &[seed, weight])[0];
    let dx = bench.differentiate(&[x], None, &[(y, seed)])[0];
    let mut fill = vec![
        (x, bytes_of(&values(2, (n * i) as usize, 1.0), dtype)),
        (bias, bytes_of(&values(3, o as usize, 1.0), dtype)),
        (seed, bytes_of(&values(4, (n * o) as usize, 1.0), dtype)),
        (weight, widened(format, &[o, i], &made, dtype)),
    ];
    fill.extend(ids.into_iter().zip(made));
    Layer {
        bench,
        y,
        dx,
        plain: (plain, plain_dx),
        fill,
    }
}

impl Layer {
    fn fill(&self) -> impl Fn(&mut Evaluator) + Send + Sync {
        |evaluator: &mut Evaluator| {
            for (id, bytes) in &self.fill {
                evaluator.raw(*id).copy_from_slice(bytes);
            }
        }
    }
}

#[test]
fn a_quantized_layer_is_the_layer_of_its_widened_weight_on_any_threads() {
    for format in FORMATS {
        for (dtype, bound) in [(DType::F32, 1e-6), (DType::Bf16, 4e-3)] {
            for shape in [(5, 48, 96), (33, 130, 70), (3, 1100, 600), (40, 600, 1100)] {
                let layer = layer(format, dtype, shape);
                let wanted = [layer.y, layer.dx, layer.plain.0, layer.plain.1];
                let got = layer.bench.run_alike(&wanted, layer.fill());
                let wide = |index: usize| floats(&got[index], dtype);
                let what = format!("{format:?} {dtype:?} {shape:?}");
                assert_near(&format!("{what} y"), &wide(0), &wide(2), bound);
                assert_near(&format!("{what} dx"), &wide(1), &wide(3), bound);
            }
        }
    }
}

#[test]
fn rows_of_a_quantized_layer_do_not_depend_on_how_many_there_are() {
    // Fewer elements than 256, or than 64 by 64, take other paths of the crate, whatever the weight.
    for shape in [(80u64, 130u64, 70u64), (90, 1100, 100), (70, 100, 600)] {
        let few = layer(FORMATS[1], DType::F32, (20, shape.1, shape.2));
        let many = layer(FORMATS[1], DType::F32, shape);
        let head = |layer: &Layer| {
            let got = layer.bench.run(2, &[layer.y, layer.dx], layer.fill());
            [(0, shape.1), (1, shape.2)]
                .map(|(i, columns)| got[i][..(20 * 4 * columns) as usize].to_vec())
        };
        assert!(head(&few) == head(&many), "{shape:?}");
    }
}

#[test]
fn experts_with_quantized_weights_are_layers_one_by_one() {
    let (format, experts, o, i) = (FORMATS[1], 3u64, 40u64, 48u64);
    let all = values(9, (experts * o * i) as usize, 0.1);
    let made = parts(format, &[experts, o, i], DType::F32, &all, 1 << 20);
    let wide = floats(
        &widened(format, &[experts, o, i], &made, DType::F32),
        DType::F32,
    );
    let mut bench = Bench::new();
    let rows = bench.input(&[9, i], DType::F32);
    let offsets = bench.input(&[experts + 1], DType::U32);
    let types = format.parts(&[experts, o, i]);
    let ids: Vec<TensorId> = types
        .iter()
        .map(|(_, at)| bench.input(&at.shape, at.dtype))
        .collect();
    let weight = bench.input(&[experts, o, i], DType::F32);
    let seed = bench.input(&[9, o], DType::F32);
    let op = QuantizedGroupedLinear { format, outputs: o };
    let inputs: Vec<TensorId> = [rows, offsets].into_iter().chain(ids.clone()).collect();
    let y = bench.emit(op, &inputs)[0];
    let plain = bench.emit(
        memfit::graph::op::moe::GroupedLinear,
        &[rows, weight, offsets],
    )[0];
    let op = memfit::graph::op::moe::GroupedLinearInputGradient;
    let plain_dx = bench.emit(op, &[seed, weight, offsets])[0];
    let dx = bench.differentiate(&[rows], None, &[(y, seed)])[0];
    let got = bench.run_alike(&[y, dx, plain, plain_dx], |evaluator| {
        evaluator.set(rows, &values(2, (9 * i) as usize, 1.0));
        evaluator.set(offsets, &[0u32, 4, 4, 9]);
        evaluator.set(weight, &wide);
        evaluator.set(seed, &values(3, (9 * o) as usize, 1.0));
        for (id, bytes) in ids.iter().zip(&made) {
            evaluator.raw(*id).copy_from_slice(bytes);
        }
    });
    assert!(got[0] == got[2] && got[1] == got[3]);
}

#[test]
fn scratch_is_panels_and_never_the_whole_weight() {
    let backend = Backend::Cpu { threads: 2 };
    let (o, i) = (11_008u64, 4096u64);
    let op = QuantizedLinear {
        format: FORMATS[1],
        outputs: o,
        bias: false,
    };
    let parts = FORMATS[1].parts(&[o, i]).into_iter().map(|(_, at)| at);
    let types: Vec<Type> = [Type::new(&[64, i], DType::F32)]
        .into_iter()
        .chain(parts)
        .collect();
    let scratch = op.scratch(&types, backend).0;
    assert!(scratch <= 2 * 512 * i * 4, "{scratch}");
}
