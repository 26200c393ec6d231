//! The search: what it chooses among, what it proves, and what it says where nothing fits.

use std::path::Path;
use std::time::Instant;

use memfit::machine::micro::{self, Size};
use memfit::machine::{estimate, rows};
use memfit::plan::{Choice, Plan, Request};
use memfit::search::front::Front;
use memfit::search::grid::Row;
use memfit::search::problem::Problems;
use memfit::search::{Answer, Outcome, search, solve};
use memfit::show;
use memfit::spec::catalog;
use memfit::spec::device;
use memfit::spec::job::{Exactness, Host, Job, Optimizer, Precision, Target};
use memfit::spec::model::ModelSpec;
use memfit::spec::units::Bytes;

fn request(model: ModelSpec, seq: u64, gpu: &str) -> Request {
    let host = Host {
        ram: Bytes(1 << 40),
        ..Host::default()
    };
    let target = Target::new(device::find(gpu).unwrap(), host);
    Request {
        job: Job {
            model,
            seq,
            batch: 1,
            precision: Precision::Bf16,
            optimizer: Optimizer("adamw".into()),
            target,
        },
        fixed: Vec::new(),
        allow: Exactness::Rounding,
    }
}

fn within(request: &Request, memory: u64) -> Answer {
    let mut request = request.clone();
    request.job.target.device.memory = Bytes(memory) + request.job.target.device.reserved;
    search(&request).unwrap()
}

fn step(answer: &Answer) -> Option<f64> {
    match &answer.outcome {
        Outcome::Fits(best) => Some(best.estimate.step.0),
        Outcome::Misfit(_) => None,
    }
}

/// Budgets from a fixed seed between a twentieth and a third more than what keeping all takes.
fn budgets(whole: u64, count: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut all: Vec<u64> = (0..count)
        .map(|_| (whole as f64 * (0.05 + 1.28 * draw())) as u64)
        .collect();
    all.sort_unstable();
    all
}

/// The part of a step by which a larger budget's may be longer: none, but for the arithmetic.
const SLOWER: f64 = 1e-9;

#[test]
fn a_larger_budget_is_no_slower_and_no_peak_passes_its_budget() {
    for (name, seq) in [("llama-3.2-1b", 2048), ("gpt2-large", 1024)] {
        let request = request(catalog::find(name).unwrap(), seq, "80GB");
        let plain = Plan::new(request.job.clone(), vec![]).unwrap();
        let whole = estimate::quick(&plain).unwrap().peak.gpu.0;
        let mut last = f64::INFINITY;
        for memory in budgets(whole, 8) {
            let answer = within(&request, memory);
            if let Outcome::Fits(best) = &answer.outcome {
                assert!(best.estimate.peak.gpu.0 <= memory, "{name} within {memory}");
                let proof = answer.certificate.as_ref().unwrap();
                let (bound, simulated) = (proof.bound.0, proof.simulated.0);
                assert!(bound <= simulated * (1.0 + 1e-9), "{name}: {proof:?}");
                assert_eq!(simulated, best.estimate.step.0);
            }
            let now = step(&answer).unwrap_or(f64::INFINITY);
            assert!(
                now <= last * (1.0 + SLOWER),
                "{name} within {memory}: {now} after {last}"
            );
            last = last.min(now);
        }
        assert!(last.is_finite());
    }
}

/// Of the ways to keep, drop or send away four values of two layers, each lowered whole and simulated, none is faster by a twentieth:
/// times of so few layers are off by as much, since they are continued from deeper models.
#[test]
fn no_choice_of_values_that_fits_is_faster_than_the_answer() {
    let size = Size {
        hidden: 256,
        layers: 2,
        vocab: 256,
    };
    let request = request(micro::model("llama", size).unwrap(), 256, "24GB");
    let values = ["attention/norm", "mlp/gate", "mlp/up", "mlp/act"];
    let plan = |choices: Vec<Choice>| Plan::new(request.job.clone(), choices).unwrap();
    let fates = |code: u32| {
        let fate = |index: u32| {
            let (layer, value) = (index / 4, values[index as usize % 4]);
            let site = format!("layers.{layer}/{value}");
            match code / 3u32.pow(index) % 3 {
                0 => None,
                1 => Some(Choice::new("recompute", &site, &[])),
                _ => Some(Choice::new("offload", &site, &[])),
            }
        };
        let own = (0..8).filter_map(fate);
        own.chain(
            ["fused_update", "flash_attention", "chunked_loss"].map(|t| Choice::new(t, "*", &[])),
        )
        .collect::<Vec<Choice>>()
    };
    let all: Vec<(u64, f64)> = (0..3u32.pow(8))
        .step_by(31)
        .map(|code| {
            let of = estimate::quick(&plan(fates(code))).unwrap();
            (of.peak.gpu.0, of.step.0)
        })
        .collect();
    let (least, most) = (
        all.iter().map(|a| a.0).min().unwrap(),
        all.iter().map(|a| a.0).max().unwrap(),
    );
    for part in 0..5 {
        let memory = least + (most - least) * part / 4;
        let best = all.iter().filter(|a| a.0 <= memory).map(|a| a.1);
        let best = best.fold(f64::INFINITY, f64::min);
        let ours = step(&within(&request, memory)).unwrap();
        assert!(ours <= best * 1.05, "within {memory}: {ours} beside {best}");
    }
}

/// Coefficients are read once and bounds pass from memory to memory: twenty of them take no more than half a solve beside.
#[test]
fn a_sweep_of_twenty_memories_takes_half_as_long_again_as_a_solve() {
    let request = request(catalog::find("llama-2-7b").unwrap(), 4096, "24GB");
    let budget = request.job.target.budget();
    let least = |work: &dyn Fn() -> usize| {
        let timed = |_| {
            let begin = Instant::now();
            assert!(work() > 0);
            begin.elapsed().as_secs_f64()
        };
        (0..3).map(timed).fold(f64::INFINITY, f64::min)
    };
    let solve = least(&|| {
        solve::solve(&request, &budget, None)
            .unwrap()
            .candidates
            .len()
    });
    let sweep = least(&|| {
        let front = Front::from(Problems::of(&request).unwrap());
        front.points(&budget, 20).len()
    });
    assert!(sweep <= 1.5 * solve, "{sweep} s beside {solve} s");
}

#[test]
fn the_same_request_gives_the_same_plan_on_any_number_of_threads() {
    let request = request(catalog::find("llama-3.2-1b").unwrap(), 1024, "8GB");
    let answer = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let answer = pool.build().unwrap().install(|| search(&request).unwrap());
        let Outcome::Fits(best) = answer.outcome else {
            panic!("1 B fits 8 GB");
        };
        (best.plan.choices, best.estimate, answer.front)
    };
    assert!(answer(1) == answer(2));
}

#[test]
fn what_is_said_to_fit_instead_fits() {
    let mut request = request(catalog::find("llama-3.2-1b").unwrap(), 8192, "2GB");
    request.job.batch = 16;
    request.fixed = ["lora", "flash_attention"]
        .map(|t| Choice::new(t, "*", &[]))
        .to_vec();
    request.job.target.host.ram = Bytes(4 << 30);
    request.allow = Exactness::Bitwise;
    let Outcome::Misfit(misfit) = search(&request).unwrap().outcome else {
        panic!("logits of 16 x 8192 tokens do not fit 2 GB");
    };
    assert!(!misfit.instant.is_empty() && !misfit.holders.is_empty());
    let held: Bytes = misfit.holders.iter().map(|(_, bytes)| *bytes).sum();
    assert!(held > misfit.have || misfit.need <= misfit.have + held);
    let device = misfit.changes.iter().find_map(|c| c.strip_prefix("--gpu "));
    let mut larger = request.clone();
    let device = device::find(device.unwrap()).unwrap();
    larger.job.target = Target::new(device, request.job.target.host);
    assert!(matches!(search(&larger).unwrap().outcome, Outcome::Fits(_)));
    for change in &misfit.changes {
        let Some(batch) = change.strip_prefix("--batch ") else {
            continue;
        };
        let mut smaller = request.clone();
        smaller.job.batch = batch.parse().unwrap();
        assert!(
            matches!(search(&smaller).unwrap().outcome, Outcome::Fits(_)),
            "{change}"
        );
    }
}

/// A value that is sent away and read again in the forward pass does not stop the kernels until its copy is done.
#[test]
fn copies_out_pass_beside_later_reads() {
    let plan = |offload: &[&str]| {
        let request = request(catalog::find("gpt2-xl").unwrap(), 1024, "rtx-4090");
        let choices = ["fused_update", "chunked_loss", "flash_attention"]
            .iter()
            .chain(offload);
        let choices = choices.map(|c| Choice::parse(c).unwrap()).collect();
        Plan::new(request.job, choices).unwrap()
    };
    let step = |plan: &Plan| estimate::quick(plan).unwrap().step.0;
    let without = step(&plan(&[]));
    let with = step(&plan(&["offload:site=layers.1|5|9|13/mlp/up"]));
    assert!(with <= without * 1.001, "{with} beside {without}");
}

const PAGE: &str = include_str!("../docs/policies.md");

#[test]
fn the_page_of_policies_says_what_the_rows_say() {
    let rows: Vec<Row> = rows::latest(Path::new("docs/policies.jsonl")).unwrap();
    assert_eq!(rows.len(), 405);
    for row in &rows {
        let (bound, seconds) = (row.bound.unwrap(), row.seconds.unwrap());
        assert!(
            bound <= seconds * (1.0 + 1e-9),
            "{} is faster than its bound",
            row.name
        );
    }
    let text = show::grid::text(&rows);
    assert!(PAGE.contains(&text), "renew the page with:\n{text}");
}

/// The rows are about the search as it is now: one job is solved again.
#[test]
fn a_sweep_of_the_grid_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let only = Some("gpt2-xl/2048/25");
    let now = memfit::search::grid::bench(&path, only, &mut |_, _| {}).unwrap();
    let kept: Vec<Row> = rows::latest(Path::new("docs/policies.jsonl")).unwrap();
    assert!(!now.is_empty());
    for row in &now {
        let before = kept.iter().find(|r| r.name == row.name).unwrap();
        assert_eq!(before.plan, row.plan, "{} is stale", row.name);
        let same = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a / b - 1.0).abs() < 1e-9,
            (a, b) => a == b,
        };
        assert!(same(before.seconds, row.seconds), "{} is stale", row.name);
    }
}
