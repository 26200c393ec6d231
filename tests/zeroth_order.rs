//! Zeroth-order methods and forward gradients: against a plain reference in f64, and what they promise of memory and of themselves.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use memfit::graph::op::direction::normals;
use memfit::graph::random::Key;
use memfit::graph::tensor::{DType, Role, TensorId};
use memfit::graph::{Step, When};
use memfit::plan::Plan;
use memfit::spec::job::{Place, Precision};

use crate::bench::{bytes_of, floats};
use crate::families::{BATCH, Built, Fed, LLAMA, LOSS_SCALE, SEQ, Values, batch, built};
use crate::programs::{MICRO, job, plan, train};
use crate::published::Published;
use crate::reference::Evaluator;

const EPS: f64 = 3e-3;
const RATE: f64 = 1e-3;
const STEPS: u64 = 20;

/// All forms with the arguments a reference must understand.
const FORMS: [&str; 12] = [
    "zo_sgd:eps=3e-3",
    "zo_sgd:eps=3e-3,q=3",
    "zo_sgd:eps=3e-3,sides=1",
    "zo_sgd:eps=3e-3,blockwise=yes",
    "zo_sgd:eps=3e-3,sparse=0.5",
    "zo_sgd:eps=3e-3,in_place=yes,decay=0.5",
    "zo_sign:eps=3e-3",
    "zo_momentum:eps=3e-3",
    "zo_conservative:eps=3e-3",
    "zo_conservative:eps=3e-3,in_place=yes,q=2",
    "zo_adam:eps=3e-3",
    "zo_adam:eps=3e-3,blockwise=yes,q=2",
];

/// The training step of a plan under the reference interpreter.
pub struct Ours {
    evaluator: Evaluator,
    parameters: Vec<(String, TensorId)>,
}

pub fn steady(plan: &Plan) -> Step {
    let steps = plan.steps().unwrap().steps;
    let found = steps.into_iter().find(|(when, _)| *when == When::Steady);
    found.unwrap().1
}

impl Ours {
    pub fn new(choice: &str, precision: Precision, values: &Values) -> Ours {
        let step = steady(&plan(job(LLAMA, BATCH, SEQ, precision, 2), &[choice]));
        let mut evaluator = Evaluator::new(step);
        let mut parameters = Vec::new();
        for id in (0..evaluator.step.tensors.len() as u32).map(TensorId) {
            let (tensor, storage) = (
                evaluator.step.tensor(id).clone(),
                evaluator.step.storage_of(id).clone(),
            );
            if !storage.shared || tensor.version > 0 {
                continue;
            }
            evaluator.raw(id).fill(0);
            if storage.role == Role::Parameter {
                let bytes = bytes_of(&values[&*storage.name], tensor.at.dtype);
                evaluator.raw(id).copy_from_slice(&bytes);
                parameters.push((storage.name.to_string(), id));
            }
        }
        evaluator.port = Box::new(Fed {
            batch: batch(),
            loss: Default::default(),
        });
        Ours {
            evaluator,
            parameters,
        }
    }

    pub fn step(&mut self, number: u64, rate: f64) {
        self.evaluator.scalars.step = number;
        self.evaluator.scalars.rate = rate as f32;
        let nodes = self.evaluator.step.nodes.len();
        self.evaluator.run(0..nodes).unwrap();
    }

    pub fn values(&mut self) -> Values {
        let read = |(name, id): &(String, TensorId)| {
            let dtype = self.evaluator.step.type_of(*id).dtype;
            (name.clone(), floats(self.evaluator.raw(*id), dtype))
        };
        self.parameters.clone().iter().map(read).collect()
    }
}

/// Parameters in f64.
pub type Point = BTreeMap<String, Vec<f64>>;

/// What systems.md says of the methods, in f64, one element after the other.
pub struct Reference<'a> {
    built: &'a Built,
    text: &'a str,
    pub at: Point,
    first: BTreeMap<String, Vec<f64>>,
    second: BTreeMap<String, Vec<f64>>,
    step: u64,
}

/// Arguments of a form.
pub struct Form {
    name: String,
    args: BTreeMap<String, String>,
}

impl Form {
    pub fn of(text: &str) -> Form {
        let (name, rest) = text.split_once(':').unwrap();
        let pair = |p: &str| {
            p.split_once('=')
                .map(|(k, v)| (k.to_string(), v.to_string()))
        };
        Form {
            name: name.to_string(),
            args: rest.split(',').filter_map(pair).collect(),
        }
    }
    fn is(&self, key: &str) -> bool {
        self.args.get(key).is_some_and(|v| v == "yes")
    }
    fn number(&self, key: &str, default: f64) -> f64 {
        self.args.get(key).map_or(default, |v| v.parse().unwrap())
    }
}

/// A standard normal direction: Box and Muller's formula on the counter's bits, 64 cosines before 64 sines.
pub fn direction(step: u64, name: &str, draw: u64, len: usize, sparse: f64) -> Vec<f64> {
    let key = Key::new(1, step, &format!("{name}.direction")).part(draw);
    let mask = key.part(u64::MAX);
    let element = |i: usize| {
        let (block, lane) = (i / 128, i % 128);
        let bits = key.bits((block * 64 + lane % 64) as u64);
        let u = ((bits >> 40) as f64 + 1.0) / f64::from(1 << 24);
        let v = (
            (bits as u32 >> 8) as f64 / f64::from(1 << 24),
            (bits >> 8) as u32 >> 8,
        );
        let angle = std::f64::consts::TAU * f64::from(v.1) / f64::from(1 << 24);
        let turned = if lane < 64 { angle.cos() } else { angle.sin() };
        let zero = f64::from(mask.uniform(i as u64)) < sparse;
        if zero {
            0.0
        } else {
            (-2.0 * u.ln()).sqrt() * turned
        }
    };
    (0..len).map(element).collect()
}

impl<'a> Reference<'a> {
    pub fn new(built: &'a Built, start: &Values) -> Reference<'a> {
        Reference {
            built,
            text: LLAMA,
            at: wide(start),
            first: BTreeMap::new(),
            second: BTreeMap::new(),
            step: 0,
        }
    }
}

impl Reference<'_> {
    fn tensor(&self, at: &Point, (name, id, _): &(String, TensorId, TensorId)) -> Tensor {
        let shape = &self.built.step.type_of(*id).shape;
        let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        Tensor::from_slice(&at[name], shape, &Device::Cpu).unwrap()
    }

    fn loss_of(&self, parameters: &BTreeMap<String, Tensor>) -> Tensor {
        let published = Published {
            config: serde_json::from_str(self.text).unwrap(),
            parameters,
            batch: batch(),
        };
        published.loss().unwrap()
    }

    fn loss(&self, at: &Point) -> f64 {
        let all = self.built.parameters.iter();
        let parameters = all.map(|p| (p.0.clone(), self.tensor(at, p))).collect();
        self.loss_of(&parameters).to_scalar().unwrap()
    }

    /// Gradients of `group` by candle's backward pass.
    pub fn exact(&self, group: &[String]) -> Point {
        let all = self.built.parameters.iter();
        let variables: BTreeMap<String, Var> = all
            .map(|p| {
                (
                    p.0.clone(),
                    Var::from_tensor(&self.tensor(&self.at, p)).unwrap(),
                )
            })
            .collect();
        let parameters = variables.iter();
        let parameters = parameters
            .map(|(n, v)| (n.clone(), v.as_tensor().clone()))
            .collect();
        let gradients = self.loss_of(&parameters).backward().unwrap();
        let of = |name: &String| {
            let gradient = gradients.get(variables[name].as_tensor()).unwrap();
            let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            // The tests' outside feeds a loss scale that nothing takes away again.
            let scaled = gradient.iter().map(|g| g * f64::from(LOSS_SCALE));
            (name.clone(), scaled.collect())
        };
        group.iter().map(of).collect()
    }

    fn moved(&self, along: &Point, by: f64) -> Point {
        let mut at = self.at.clone();
        for (name, z) in along {
            for (v, z) in at.get_mut(name).unwrap().iter_mut().zip(z) {
                *v += by * z;
            }
        }
        at
    }

    pub fn update(&mut self, form: &Form) {
        self.step += 1;
        if form.number("hybrid", 0.0) > 0.0 {
            return self.update_hybrid(form);
        }
        let block = |name: &str| name.split('/').next().unwrap().to_string();
        let mut groups: BTreeMap<(usize, String), Vec<String>> = BTreeMap::new();
        for (index, (name, ..)) in self.built.parameters.iter().enumerate() {
            let known = groups
                .keys()
                .find(|(_, b)| form.is("blockwise") && *b == block(name));
            let key = match (known, form.is("blockwise")) {
                (Some(key), _) => key.clone(),
                (None, true) => (index, block(name)),
                (None, false) => (0, String::new()),
            };
            groups.entry(key).or_default().push(name.clone());
        }
        for group in groups.into_values() {
            self.update_group(form, &group);
        }
    }

    /// The mean over draws of slope times direction, with `sign` of the slope.
    fn gradient(&self, form: &Form, group: &[String], sign: bool) -> Point {
        let q = form.number("q", 1.0) as u64;
        let mut gradient: Point = group
            .iter()
            .map(|n| (n.clone(), vec![0.0; self.at[n].len()]))
            .collect();
        for draw in 0..q {
            let z: Point = (group.iter())
                .map(|n| {
                    (
                        n.clone(),
                        direction(
                            self.step,
                            n,
                            draw,
                            self.at[n].len(),
                            form.number("sparse", 0.0),
                        ),
                    )
                })
                .collect();
            let plus = self.loss(&self.moved(&z, EPS));
            let mut slope = match form.number("sides", 2.0) == 1.0 {
                true => (plus - self.loss(&self.at)) / EPS,
                false => (plus - self.loss(&self.moved(&z, -EPS))) / (2.0 * EPS),
            };
            if sign {
                slope = slope.signum();
            }
            for (name, z) in &z {
                for (g, z) in gradient.get_mut(name).unwrap().iter_mut().zip(z) {
                    *g += slope * z / q as f64;
                }
            }
        }
        gradient
    }

    fn update_group(&mut self, form: &Form, group: &[String]) {
        let gradient = self.gradient(form, group, form.name == "zo_sign");
        let way = match form.name.as_str() {
            "zo_conservative" => {
                let here = self.loss(&self.at);
                let (down, up) = (
                    self.loss(&self.moved(&gradient, -RATE)),
                    self.loss(&self.moved(&gradient, RATE)),
                );
                if down < here && down <= up {
                    -RATE
                } else if up < here {
                    RATE
                } else {
                    0.0
                }
            }
            _ => -RATE,
        };
        self.apply(form, &form.name, &gradient, (way, RATE));
    }

    /// The last layers and the head by their gradients, the others by an estimate, all from the same point.
    fn update_hybrid(&mut self, form: &Form) {
        let names = self.built.parameters.iter().map(|(n, ..)| n.clone());
        let (high, low): (Vec<String>, Vec<String>) = names.partition(|n| {
            let layer = n.strip_prefix("layers.").and_then(|n| n.split('/').next());
            layer.map_or(n.starts_with("head"), |l| {
                l.parse::<f64>().unwrap() >= 2.0 - form.number("hybrid", 0.0)
            })
        });
        let exact = self.exact(&high);
        self.update_group(form, &low);
        let name = match form.name.as_str() {
            "zo_sign" | "zo_conservative" => "zo_sgd",
            other => other,
        };
        let rate = RATE * form.number("first_rate", 1.0);
        self.apply(form, name, &exact, (-rate, rate));
    }

    /// A step along `gradient` by the rule of the form `rule`.
    fn apply(&mut self, form: &Form, rule: &str, gradient: &Point, (way, rate): (f64, f64)) {
        let shapes: BTreeMap<&String, usize> = self
            .built
            .parameters
            .iter()
            .map(|(n, id, _)| (n, self.built.step.type_of(*id).shape.len()))
            .collect();
        for (name, gradient) in gradient {
            let decay = if shapes[name] < 2 {
                0.0
            } else {
                form.number("decay", 0.0)
            };
            let states = [&mut self.first, &mut self.second].map(|s| {
                s.entry(name.clone())
                    .or_insert_with(|| vec![0.0; gradient.len()])
            });
            let [m, v] = states;
            for (i, w) in self.at.get_mut(name).unwrap().iter_mut().enumerate() {
                let g = gradient[i] + decay * *w;
                *w += match rule {
                    "zo_momentum" => {
                        m[i] = 0.9 * m[i] + g;
                        -rate * m[i]
                    }
                    "zo_adam" => {
                        m[i] = 0.9 * m[i] + 0.1 * g;
                        v[i] = 0.999 * v[i] + 0.001 * g * g;
                        let t = self.step as i32;
                        let (m, v) = (
                            m[i] / (1.0 - 0.9f64.powi(t)),
                            v[i] / (1.0 - 0.999f64.powi(t)),
                        );
                        -rate * m / (v.sqrt() + 1e-8)
                    }
                    _ => way * g,
                };
            }
        }
    }
}

pub fn wide(values: &Values) -> Point {
    values
        .iter()
        .map(|(n, v)| (n.clone(), v.iter().map(|x| f64::from(*x)).collect()))
        .collect()
}

pub fn distance(a: &Point, b: &Point) -> f64 {
    let squares = a
        .iter()
        .flat_map(|(n, a)| a.iter().zip(&b[n]))
        .map(|(a, b)| (a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

#[test]
fn twenty_updates_of_every_form_agree_with_a_plain_reference() {
    let base = built(LLAMA, DType::F32);
    let start = base.values();
    for text in FORMS {
        let mut reference = Reference::new(&base, &start);
        let mut ours = Ours::new(text, Precision::F32, &start);
        let form = Form::of(text);
        for step in 1..=STEPS {
            reference.update(&form);
            ours.step(step, RATE);
        }
        let way = distance(&reference.at, &wide(&start));
        let error = distance(&wide(&ours.values()), &reference.at) / way;
        println!("{text}: off by {error:.1e} of a way of {way:.3}");
        // Adam divides by slopes, and that of a single block may be small beside what f32 knows of a loss.
        let bound = match text.contains("zo_adam") && text.contains("blockwise") {
            true => 5e-3,
            false => 5e-5,
        };
        assert!(
            way > 1e-3 && error < bound,
            "{text} is off by {error:e} of its way"
        );
    }
}

#[test]
fn normal_numbers_are_normal_and_do_not_depend_on_where_a_range_starts() {
    let key = Key::new(5, 6, "direction");
    let mut all = vec![0.0f32; 1 << 18];
    normals(key, 0, &mut all);
    let mut part = vec![0.0f32; 300];
    normals(key, 1 << 12, &mut part);
    assert_eq!(part, all[1 << 12..(1 << 12) + 300]);
    let moment = |p: i32| all.iter().map(|z| f64::from(*z).powi(p)).sum::<f64>() / all.len() as f64;
    // Five standard errors of each moment.
    for (power, wanted, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]
    {
        let bound = 5.0 * (variance / all.len() as f64).sqrt();
        assert!(
            (moment(power) - wanted).abs() < bound,
            "moment {power} is {}",
            moment(power)
        );
    }
    let neighbours = all.windows(2).map(|w| f64::from(w[0] * w[1])).sum::<f64>() / all.len() as f64;
    let pairs: f64 = all
        .chunks(128)
        .map(|c| (0..64).map(|i| f64::from(c[i] * c[i + 64])).sum::<f64>())
        .sum();
    assert!(neighbours.abs() < 0.01 && (pairs / all.len() as f64).abs() < 0.01);
    let wanted = direction(9, "w", 2, 4096, 0.0);
    let mut made = vec![0.0f32; 4096];
    normals(Key::new(1, 9, "w.direction").part(2), 0, &mut made);
    for (made, wanted) in made.iter().zip(wanted) {
        assert!((f64::from(*made) - wanted).abs() < 2e-6 * wanted.abs().max(1.0));
    }
}

/// How often a step runs the forward pass.
pub fn passes(choice: &str) -> usize {
    let step = steady(&plan(job(MICRO, 2, 16, Precision::F32, 1), &[choice]));
    step.nodes
        .iter()
        .filter(|n| n.op.name() == "cross_entropy")
        .count()
}

#[test]
fn forms_run_as_many_forward_passes_as_published() {
    assert_eq!(passes("zo_sgd"), 2);
    assert_eq!(passes("zo_sign:q=4"), 8);
    assert_eq!(passes("zo_sgd:sides=1,q=4"), 5);
    assert_eq!(passes("zo_conservative"), 5);
    assert_eq!(passes("zo_adam:blockwise=yes"), 2 * 4); // embedding, two layers, head
    assert_eq!(passes("forward_gradient"), 1);
}

#[test]
fn a_step_of_rate_zero_leaves_every_bit_of_the_parameters_unless_they_are_moved_in_place() {
    let base = built(LLAMA, DType::F32);
    for precision in [Precision::F32, Precision::Bf16] {
        let start = base.values();
        for form in [
            "zo_sgd",
            "zo_conservative",
            "zo_adam:q=2",
            "forward_gradient",
        ] {
            let mut ours = Ours::new(form, precision, &start);
            let before = ours.values();
            ours.step(1, 0.0);
            assert_eq!(ours.values(), before, "{form}");
        }
        let mut ours = Ours::new("zo_sgd:in_place=yes", precision, &start);
        let before = ours.values();
        ours.step(1, 0.0);
        let moved = ours.values();
        let drift = (before.iter().flat_map(|(n, b)| b.iter().zip(&moved[n])))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        println!("{precision:?} in place: the largest drift of a parameter is {drift:e}");
        let bound = if precision == Precision::F32 {
            1e-6
        } else {
            2e-2
        };
        assert!(drift > 0.0 && drift < bound, "{precision:?}: {drift:e}");
    }
}

#[test]
fn the_share_of_zeros_in_a_sparse_direction_is_the_one_asked_for() {
    for share in [0.1, 0.5, 0.9] {
        let zeros = direction(3, "w", 0, 1 << 16, share)
            .iter()
            .filter(|z| **z == 0.0)
            .count();
        let got = zeros as f64 / f64::from(1 << 16);
        assert!((got - share).abs() < 0.01, "{got} of {share}");
    }
    // The reference above holds our op to the same mask.
}

/// ZO-Adam divides by what fp16 cannot hold: its second moments vanish where gradients are small.
#[test]
fn second_moments_of_zo_adam_vanish_in_sixteen_bits_where_gradients_are_small() {
    let start = built(LLAMA, DType::F32).values();
    let mut ours = Ours::new("zo_adam", Precision::Fp16, &start);
    ours.step(1, 1e-6);
    let states: Vec<TensorId> = (0..ours.evaluator.step.tensors.len() as u32)
        .map(TensorId)
        .filter(|id| ours.evaluator.step.storage_of(*id).name.ends_with(".v"))
        .collect();
    let vanished = |v: &f32| *v == 0.0;
    let zeros = states
        .iter()
        .flat_map(|id| floats(ours.evaluator.raw(*id), DType::F16))
        .filter(vanished)
        .count();
    assert!(zeros > 0, "every second moment was large enough for fp16");
    assert!(ours.values().values().flatten().all(|v| v.is_finite()));
}

/// Bytes of optimizer state a plan keeps.
fn state(choice: &str, precision: Precision) -> u64 {
    let set = plan(job(MICRO, 2, 16, precision, 1), &[choice])
        .steps()
        .unwrap();
    let kept = set.shared();
    kept.iter()
        .filter(|s| s.role == Role::OptimizerState)
        .map(|s| s.bytes.0)
        .sum()
}

#[test]
fn states_take_the_published_multiples_of_the_parameters_bytes() {
    let elements = built(MICRO, DType::F32).values();
    let parameters: u64 = elements.values().map(|v| v.len() as u64).sum();
    for (precision, width) in [(Precision::F32, 4), (Precision::Bf16, 2)] {
        for form in ["zo_sgd", "zo_sign", "zo_conservative", "forward_gradient"] {
            assert_eq!(state(form, precision), 0, "{form}");
        }
        assert_eq!(state("zo_momentum", precision), width * parameters);
        assert_eq!(state("zo_adam", precision), 2 * width * parameters);
    }
    assert_eq!(state("zo_sgd:master=yes", Precision::Bf16), 4 * parameters);
}

#[test]
fn every_form_takes_the_bytes_predicted_and_keeps_nothing_of_a_layer() {
    let plain = train(&plan(job(MICRO, 4, 16, Precision::F32, 2), &[]), 2).1;
    for form in FORMS
        .iter()
        .chain(&["forward_gradient", "forward_gradient:decay=0.1"])
    {
        for more in [
            None,
            Some("flash_attention"),
            Some("offload:what=parameters"),
            Some("chunked_loss:rows=8"),
        ] {
            let mut choices = vec![*form];
            choices.extend(more);
            let (losses, peak) = train(&plan(job(MICRO, 4, 16, Precision::F32, 2), &choices), 2);
            assert!(losses.iter().all(|l| l.is_finite()), "{choices:?}");
            assert!(peak[Place::Gpu] < plain[Place::Gpu], "{choices:?}");
        }
    }
}

#[test]
fn what_needs_gradients_is_refused_by_name() {
    for other in [
        "accumulate:micro=1",
        "clip",
        "fused_update",
        "adamw",
        "recompute",
        "offload:what=activations",
    ] {
        let choices = ["zo_sgd", other].map(|c| memfit::plan::Choice::parse(c).unwrap());
        let plan = Plan::new(job(MICRO, 4, 16, Precision::F32, 1), choices.to_vec());
        let error = plan
            .and_then(|p| p.steps().map(|_| ()))
            .unwrap_err()
            .to_string();
        let name = other.split(':').next().unwrap();
        assert!(error.contains(name), "{error}");
    }
}

/// The loss of one batch falls when a method steps on it again and again.
#[test]
fn every_form_lowers_the_loss_of_a_batch() {
    let base = built(LLAMA, DType::F32);
    let start = base.values();
    let reference = |at: &Values| {
        let reference = Reference::new(&base, at);
        reference.loss(&reference.at)
    };
    let before = reference(&start);
    for (form, rate) in [
        ("zo_sgd", 2e-4),
        ("zo_sign", 3e-4),
        ("zo_momentum", 2e-5),
        ("zo_conservative", 2e-4),
        ("zo_adam", 1e-3),
        ("forward_gradient", 2e-4),
    ] {
        let mut ours = Ours::new(form, Precision::F32, &start);
        for step in 1..=150 {
            ours.step(step, rate);
        }
        let after = reference(&ours.values());
        println!("{form}: {before:.4} -> {after:.4}");
        assert!(after < before - 0.02, "{form}: {before} -> {after}");
    }
}
