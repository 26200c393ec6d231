//! Recomputation alone, beside the optimum of a general formulation: the mixed-integer program of Checkmate (Jain et al. 2020,
//! arXiv:1910.02653, equations 1 to 9), which may compute any value again at any stage.
//!
//! Its optima lie in `tests/evidence/checkmate.jsonl`; `cargo test --release --features highs checkmate` solves for them again.

use memfit::graph::Stream;
use memfit::machine::sim::demand::Demand;
use memfit::search::layers::{Column, Kind, Layers, Room};
use memfit::search::sample::Taken;
use memfit::spec::job::{Budget, PerPlace, Place};
use memfit::spec::units::Bytes;
use serde::{Deserialize, Serialize};

const GIB: f64 = (1u64 << 30) as f64;

/// A chain of equal layers within a budget, and the optimum of Checkmate's program.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    layers: usize,
    /// Seconds of a layer's forward pass up to what it saves, from there to its output, and of its backward pass.
    seconds: [f64; 3],
    /// GiB that a layer saves, and of its output.
    saved: f64,
    output: f64,
    /// GiB.
    budget: f64,
    /// Whole layers fit exactly, with nothing to spare.
    aligned: bool,
    /// Seconds of the step.
    optimum: f64,
}

impl Row {
    /// Bytes beside the saved values: what enters each layer but the first, the loss's gradient and the one made of it.
    fn beside(&self) -> f64 {
        (self.layers + 1) as f64 * self.output
    }

    /// As the search counts such layers: the forward pass of one whose saved values are dropped runs again.
    fn counted(&self) -> Layers {
        let [first, last, backward] = self.seconds;
        let demand = |seconds: f64| {
            let mut demand = Demand::default();
            demand.0[Stream::Compute as usize] = seconds;
            demand
        };
        let on_device = |gib: f64| PerPlace {
            gpu: gib * GIB,
            ..PerPlace::default()
        };
        let layer = Taken {
            peak: on_device(self.saved),
            forward: demand(first + last),
            later: demand(backward),
            spent: [first + last, backward],
        };
        let dropped = Taken {
            peak: on_device(-self.saved),
            later: demand(first),
            ..Taken::default()
        };
        Layers {
            count: self.layers as u64,
            rest: Taken {
                peak: on_device(self.beside()),
                ..Taken::default()
            },
            // One layer's values are there again while it goes back.
            floor: (self.beside() + self.saved) * GIB,
            kinds: vec![Kind {
                takes: layer,
                floor: 0.0,
                strain: [1.0, 1.0],
            }],
            columns: vec![Column {
                takes: dropped,
                flight: 0.0,
                most: self.layers as u64 - 1,
                subject: 0,
            }],
        }
    }

    fn found(&self) -> Option<f64> {
        let budget = Budget {
            rows: vec![(vec![Place::Gpu], Bytes((self.budget * GIB).round() as u64))],
        };
        let counts = self.counted().fastest(&Room::all(&budget))?;
        Some(counts.seconds)
    }
}

fn rows() -> Vec<Row> {
    let lines = include_str!("evidence/checkmate.jsonl").lines();
    lines.map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The class is plans that compute a saved value again within its layer. Where whole layers fit exactly it holds an optimum of all; where
/// part of a layer's bytes are to spare, Checkmate drops an output of a layer whose saved values stay, and gains less than a layer's time.
#[test]
fn recomputation_alone_is_as_fast_as_the_general_optimum() {
    let rows = rows();
    assert!(rows.iter().filter(|row| row.aligned).count() >= 10);
    assert!(rows.iter().any(|row| 3 * row.layers + 1 > 30));
    for row in rows {
        let found = row.found().unwrap();
        let off = found - row.optimum;
        let explained = if row.aligned { 1e-6 } else { row.seconds[0] };
        assert!((-1e-6..=explained).contains(&off), "{found}: {row:?}");
    }
}

#[cfg(feature = "highs")]
mod milp {
    use good_lp::{
        Expression, ProblemVariables, Solution, SolverModel, Variable, constraint, highs, variable,
    };

    use super::{Row, rows};

    /// A value: what it takes to make, and what of.
    struct Node {
        seconds: f64,
        gib: f64,
        of: Vec<usize>,
    }

    /// For each layer what it saves and its output, then the loss's gradient, then the gradient that each layer makes.
    fn nodes(row: &Row) -> Vec<Node> {
        let [first, last, backward] = row.seconds;
        let mut nodes = Vec::new();
        let output = |layer: usize| layer.checked_sub(1).map(|before| 2 * before + 1);
        for layer in 0..row.layers {
            let saves = 2 * layer;
            let enters: Vec<usize> = output(layer).into_iter().collect();
            nodes.push(Node {
                seconds: first,
                gib: row.saved,
                of: enters.clone(),
            });
            let of = [saves].into_iter().chain(enters).collect();
            nodes.push(Node {
                seconds: last,
                gib: row.output,
                of,
            });
        }
        nodes.push(Node {
            seconds: 0.0,
            gib: row.output,
            of: vec![2 * row.layers - 1],
        });
        for layer in (0..row.layers).rev() {
            let mut of = vec![2 * layer, nodes.len() - 1];
            of.extend(output(layer));
            nodes.push(Node {
                seconds: backward,
                gib: row.output,
                of,
            });
        }
        nodes
    }

    /// The program's variables: `run[t][i]` computes value `i` in stage `t`, `held[t][i]` has it in memory when the stage begins.
    struct Stages {
        run: Vec<Vec<Variable>>,
        held: Vec<Vec<Variable>>,
    }

    impl Stages {
        fn new(all: &mut ProblemVariables, count: usize) -> Stages {
            let mut binary = |most: usize| all.add(variable().integer().min(0.0).max(most as f64));
            let mut stage = |t: usize, last: bool| -> Vec<Variable> {
                (0..count)
                    .map(|i| binary(usize::from(i < t || last && i == t)))
                    .collect()
            };
            Stages {
                run: (0..count).map(|t| stage(t, true)).collect(),
                held: (0..count).map(|t| stage(t, false)).collect(),
            }
        }
    }

    /// Seconds of the fastest schedule within the row's budget.
    fn optimum(row: &Row) -> f64 {
        let nodes = nodes(row);
        let count = nodes.len();
        let mut all = ProblemVariables::new();
        let v = Stages::new(&mut all, count);
        let mut free = Vec::new();
        let mut memory = Vec::new();
        for _ in 0..count {
            let mut of = |node: &Node| -> Vec<Variable> {
                (0..=node.of.len())
                    .map(|_| all.add(variable().binary()))
                    .collect()
            };
            free.push(nodes.iter().map(&mut of).collect::<Vec<_>>());
            let mut used = || all.add(variable().min(0.0).max(row.budget * (1.0 + 1e-9)));
            memory.push((0..count).map(|_| used()).collect::<Vec<_>>());
        }
        let seconds = |t: usize| (0..count).map(move |i| (t, i));
        let total: Expression = (0..count)
            .flat_map(seconds)
            .map(|(t, i)| nodes[i].seconds * v.run[t][i])
            .sum();
        let mut model = all.minimise(total.clone()).using(highs);
        model = model.set_mip_rel_gap(0.0).unwrap().set_time_limit(600.0);
        for t in 0..count {
            model.add_constraint(constraint!(v.run[t][t] == 1.0));
            for i in 0..count {
                for &of in &nodes[i].of {
                    model.add_constraint(constraint!(v.run[t][i] <= v.run[t][of] + v.held[t][of]));
                }
                if t + 1 < count {
                    model.add_constraint(constraint!(
                        v.held[t + 1][i] <= v.held[t][i] + v.run[t][i]
                    ));
                }
            }
            // A value may go behind node `k` where nothing later needs it: neither in this stage nor in the next.
            for k in 0..count {
                let gone = nodes[k].of.iter().copied().chain([k]).zip(&free[t][k]);
                for (i, &free) in gone {
                    let later = (k + 1..count).filter(|&j| nodes[j].of.contains(&i));
                    let later: Vec<Variable> = later.map(|j| v.run[t][j]).collect();
                    let most = later.len() as f64 + 2.0;
                    let next = (t + 1 < count).then(|| v.held[t + 1][i]);
                    let hazards: Expression = later.into_iter().chain(next).sum::<Expression>();
                    let hazards = hazards + (1.0 - v.run[t][k]);
                    model.add_constraint(constraint!(1.0 - free <= hazards.clone()));
                    model.add_constraint(constraint!(most * (1.0 - free) >= hazards));
                }
                let before: Expression = match k {
                    0 => (0..count).map(|i| nodes[i].gib * v.held[t][i]).sum(),
                    _ => {
                        let gone = nodes[k - 1].of.iter().copied().chain([k - 1]);
                        let gone = gone.zip(&free[t][k - 1]);
                        let gone: Expression = gone.map(|(i, &free)| nodes[i].gib * free).sum();
                        memory[t][k - 1] - gone
                    }
                };
                let own = nodes[k].gib * v.run[t][k];
                model.add_constraint(constraint!(memory[t][k] == before + own));
            }
        }
        model.solve().unwrap().eval(&total)
    }

    #[test]
    fn the_optima_are_those_of_the_program() {
        for row in &rows() {
            let found = optimum(row);
            assert!((found - row.optimum).abs() < 1e-6, "{found}: {row:?}");
        }
    }

    /// Prints the rows anew, for the file.
    #[test]
    #[ignore = "prints what the other test holds"]
    fn all_optima() {
        for mut row in chains() {
            row.optimum = (optimum(&row) * 1e9).round() / 1e9;
            println!("{}", serde_json::to_string(&row).unwrap());
        }
    }

    /// Chains of unit costs, and of layers whose first part is longer, at budgets of some whole layers and of one output less than
    /// another layer.
    fn chains() -> Vec<Row> {
        let mut chains = Vec::new();
        for (seconds, saved, output) in [([1.0, 1.0, 4.0], 8.0, 1.0), ([2.0, 1.0, 6.0], 16.0, 1.0)]
        {
            for layers in [4, 6, 8, 10] {
                for kept in [1, layers / 2, layers - 1, layers] {
                    for part in [0.0, 1.0 - output / saved] {
                        let mut row = Row {
                            layers,
                            seconds,
                            saved,
                            output,
                            budget: 0.0,
                            aligned: part == 0.0,
                            optimum: 0.0,
                        };
                        row.budget = row.beside() + (kept as f64 + part) * saved;
                        chains.push(row);
                    }
                }
            }
        }
        chains
    }
}
