//! Low-memory optimizers, each update for update: what the packages that publish them gave, and plain loops in f64.

use memfit::graph::Step;
use memfit::graph::op::Op;
use memfit::graph::random::Key;
use memfit::graph::tensor::{DType, TensorId, Type};

use crate::bench::{Bench, bytes_of, floats};
use crate::reference::Evaluator;

/// Updates that each test makes.
pub const STEPS: u64 = 20;

/// Values that are the same in any language: cubes of exact fractions.
pub fn cubes(seed: u64, count: u64) -> Vec<f32> {
    let cube = |i| {
        let x = f64::from(Key(seed).uniform(i)) - 0.5;
        (8.0 * x * x * x) as f32
    };
    (0..count).map(cube).collect()
}

/// The gradient of an update.
pub fn gradient_at(step: u64, count: u64) -> Vec<f32> {
    cubes(1000 + step, count)
}

/// One parameter under an optimizer.
pub struct Trial {
    pub bench: Bench,
    pub gradient: TensorId,
    pub parameter: TensorId,
    pub master: Option<TensorId>,
    pub states: Vec<TensorId>,
    pub guard: Option<TensorId>,
    /// Steps from one run of the first node to the next.
    pub period: u64,
}

/// Formats of gradient and parameter, and whether there are master and guard.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub gradient: DType,
    pub parameter: DType,
    pub master: bool,
    pub guard: bool,
}

pub const PLAIN: Kind = Kind {
    gradient: DType::F32,
    parameter: DType::F32,
    master: false,
    guard: false,
};

/// Every combination that is told apart.
pub const KINDS: [Kind; 5] = [
    PLAIN,
    Kind {
        guard: true,
        ..PLAIN
    },
    Kind {
        gradient: DType::Bf16,
        parameter: DType::Bf16,
        ..PLAIN
    },
    Kind {
        parameter: DType::Bf16,
        master: true,
        ..PLAIN
    },
    Kind {
        gradient: DType::F16,
        parameter: DType::F16,
        master: true,
        guard: true,
    },
];

/// What the guard says where there is one.
pub const GUARD: [f32; 3] = [0.25, 1.0, 1.0];

impl Trial {
    /// A parameter of a shape.
    pub fn new(shape: &[u64], kind: Kind) -> Trial {
        let mut bench = Bench::new();
        Trial {
            gradient: bench.input(shape, kind.gradient),
            parameter: bench.input(shape, kind.parameter),
            master: kind.master.then(|| bench.input(shape, DType::F32)),
            states: Vec::new(),
            guard: kind.guard.then(|| bench.input(&[3], DType::F32)),
            period: 1,
            bench,
        }
    }

    /// A state, zero before the first update.
    pub fn state(&mut self, at: &Type) -> TensorId {
        let id = self.bench.input(&at.shape, at.dtype);
        self.states.push(id);
        id
    }

    /// An optimizer of one node.
    pub fn apply(mut self, op: impl Op + 'static, states: &[Type]) -> Trial {
        let mut inputs = vec![self.gradient, self.parameter];
        inputs.extend(self.master);
        inputs.extend(states.iter().map(|at| self.state(at)).collect::<Vec<_>>());
        inputs.extend(self.guard);
        self.bench.emit(op, &inputs);
        self
    }

    fn elements(&self) -> u64 {
        self.bench.step.type_of(self.parameter).elements()
    }

    /// What parameter (or master) and states are after some updates, on 1, 2, 3 and 16 threads alike; `before` runs ahead of each.
    pub fn run_with(
        &self,
        steps: u64,
        rate: f32,
        guard: [f32; 3],
        before: impl Fn(u64, &mut Evaluator) + Sync,
    ) -> (Vec<f32>, Vec<Vec<u8>>) {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let mut e = Evaluator::new(self.bench.step.clone());
                self.start(&mut e, guard);
                for step in 0..steps {
                    let at = self.bench.step.type_of(self.gradient).dtype;
                    let gradient = bytes_of(&gradient_at(step, self.elements()), at);
                    e.raw(self.gradient).copy_from_slice(&gradient);
                    before(step, &mut e);
                    (e.scalars.step, e.scalars.rate) = (step + 1, rate);
                    let first = usize::from(step % self.period != 0);
                    e.run(first..self.bench.step.nodes.len()).unwrap();
                }
                let kept = self.master.unwrap_or(self.parameter);
                let dtype = self.bench.step.type_of(kept).dtype;
                let states = self.states.iter().map(|&s| e.raw(s).to_vec());
                let states: Vec<_> = states.collect();
                if self.master.is_some() {
                    let narrow = self.bench.step.type_of(self.parameter).dtype;
                    let master = floats(e.raw(kept), DType::F32);
                    assert_eq!(e.raw(self.parameter), bytes_of(&master, narrow));
                }
                (floats(e.raw(kept), dtype), states)
            })
        };
        let one = on(1);
        for threads in [2, 3, 16] {
            assert!(on(threads) == one, "{threads} threads differ");
        }
        one
    }

    /// As [`Trial::run_with`], for [`STEPS`] updates.
    pub fn run(&self, rate: f32) -> (Vec<f32>, Vec<Vec<u8>>) {
        self.run_with(STEPS, rate, GUARD, |_, _| {})
    }

    fn start(&self, e: &mut Evaluator, guard: [f32; 3]) {
        let values = cubes(7, self.elements());
        let dtype = self.bench.step.type_of(self.parameter).dtype;
        e.raw(self.parameter)
            .copy_from_slice(&bytes_of(&values, dtype));
        if let Some(master) = self.master {
            e.set(master, &values);
        }
        for &state in &self.states {
            e.raw(state).fill(0);
        }
        if let Some(id) = self.guard {
            e.set(id, &guard);
        }
    }
}

/// Gradients as an optimizer of this kind sees them, in f64.
pub fn seen(kind: Kind, step: u64, count: u64) -> Vec<f64> {
    let scale = if kind.guard { f64::from(GUARD[0]) } else { 1.0 };
    let rounded = crate::bench::rounded(&gradient_at(step, count), kind.gradient);
    rounded.iter().map(|g| f64::from(*g) * scale).collect()
}

/// The weights before the first update, in f64.
pub fn start(kind: Kind, count: u64) -> Vec<f64> {
    let format = if kind.master {
        DType::F32
    } else {
        kind.parameter
    };
    let values = crate::bench::rounded(&cubes(7, count), format);
    values.iter().map(|w| f64::from(*w)).collect()
}

/// A value rounded to a format.
pub fn to(dtype: DType, value: f64) -> f64 {
    f64::from(crate::bench::rounded(&[value as f32], dtype)[0])
}

/// Weights as they are kept after an update.
pub fn keep(kind: Kind, weights: &mut [f64]) {
    if !kind.master && kind.parameter != DType::F32 {
        for w in weights {
            *w = to(kind.parameter, *w);
        }
    }
}

/// Weights in f32.
pub fn narrow(weights: &[f64]) -> Vec<f32> {
    weights.iter().map(|w| *w as f32).collect()
}

/// How near weights of this kind must come to the reference.
pub fn near(kind: Kind) -> f64 {
    match kind.master || kind.parameter == DType::F32 {
        true => 1e-6,
        // Now and then a weight is rounded to the other neighbour.
        false => 1e-3,
    }
}

/// A golden of `tests/evidence/optimizers.json`.
pub struct Golden {
    pub shape: Vec<u64>,
    pub row: serde_json::Value,
}

fn evidence() -> serde_json::Value {
    let text = std::fs::read_to_string("tests/evidence/optimizers.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

/// All goldens of a name.
pub fn goldens(name: &str) -> Vec<Golden> {
    let all = evidence();
    let rows = all["rows"].as_array().unwrap().iter();
    let found: Vec<Golden> = rows
        .filter(|row| row["name"] == name)
        .map(|row| Golden {
            shape: numbers(&row["shape"]).iter().map(|n| *n as u64).collect(),
            row: row.clone(),
        })
        .collect();
    assert!(!found.is_empty(), "{name}");
    found
}

/// A map of the evidence.
pub fn map(name: &str) -> Vec<f32> {
    numbers(&evidence()["maps"][name])
        .iter()
        .map(|x| *x as f32)
        .collect()
}

pub fn numbers(value: &serde_json::Value) -> Vec<f64> {
    let all = value.as_array().unwrap().iter();
    all.map(|x| x.as_f64().unwrap()).collect()
}

impl Golden {
    /// Fails unless weights are the package's within 1e-6.
    pub fn assert_near(&self, weights: &[f32]) {
        let every = self.row["every"].as_u64().unwrap() as usize;
        let kept: Vec<f32> = weights.iter().copied().step_by(every).collect();
        let want: Vec<f32> = numbers(&self.row["weights"])
            .iter()
            .map(|x| *x as f32)
            .collect();
        let what = format!("{} {:?}", self.row["name"], self.shape);
        crate::bench::assert_near(&what, &kept, &want, 1e-6);
        let norm = weights
            .iter()
            .map(|w| f64::from(*w).powi(2))
            .sum::<f64>()
            .sqrt();
        let off = norm / self.row["norm"].as_f64().unwrap() - 1.0;
        assert!(off.abs() < 1e-6, "{what}: norm off by {off:e}");
    }
}

/// Bytes of some states.
pub fn bytes(step: &Step, states: &[TensorId]) -> u64 {
    states.iter().map(|&s| step.type_of(s).bytes().0).sum()
}
