//! Agreement: every combination of techniques predicted, run and compared; and the ways in which that must fail.

use memfit::graph::When;
use memfit::graph::op::Scalars;
use memfit::machine::agreement::{self, Bases, cases, hashes, lowered, run_case};
use memfit::machine::calibrate::{Options, calibrate};
use memfit::machine::cpu::{Cpu, Settings};
use memfit::machine::estimate::{self, threads_for};
use memfit::machine::validate::{self, validate};
use memfit::program::{BufferId, Instr, Program, alignment, check::check, height};
use memfit::spec::device::Device;
use memfit::spec::job::{Place, Precision};
use memfit::spec::units::Bytes;

use crate::programs::{Desk, MICRO, job, lower, plan};

#[test]
fn the_combinations_cover_what_they_must() {
    let all = cases();
    let count = |f: &dyn Fn(&&agreement::Case) -> bool| all.iter().filter(|c| f(c)).count();
    let uses = |c: &agreement::Case, name: &str| c.choices.iter().any(|x| x.contains(name));
    assert!(all.len() >= 60, "{}", all.len());
    assert!(count(&|c| c.choices.len() >= 3) >= 15);
    assert!(count(&|c| uses(c, "to=disk")) >= 10);
    assert!(count(&|c| c.link.is_some()) >= 10);
    assert!(count(&|c| c.big) >= 5);
    for technique in memfit::technique::TECHNIQUES {
        let name = technique.card().name;
        let implied =
            name == "mixed_precision" && all.iter().any(|c| c.precision != Precision::F32);
        assert!(implied || all.iter().any(|c| uses(c, name)), "{name}");
    }
    for family in memfit::machine::micro::FAMILIES {
        assert!(all.iter().any(|c| c.model == family), "{family}");
    }
    let names: std::collections::BTreeSet<_> = all.iter().map(|c| &c.name).collect();
    assert_eq!(names.len(), all.len());
}

#[test]
fn every_combination_takes_the_bytes_and_gives_the_losses_that_were_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let mut bases = Bases::default();
    let mut failures = Vec::new();
    // Of the later tables every eighth: the committed rows hold the rest, and their programs are held to those rows.
    let here = |(index, case): &(usize, &agreement::Case)| {
        !case.big && (case.name.starts_with(|c: char| c.is_ascii_digit()) || index % 8 == 0)
    };
    for (_, case) in cases().iter().enumerate().filter(here) {
        if let Err(error) = run_case(case, None, folder.path(), &mut bases) {
            failures.push(format!("{} {:?}: {error}", case.name, case.choices));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_row_of_the_committed_result_is_about_programs_as_they_are_lowered_now() {
    let rows = agreement::read(std::path::Path::new("docs/agreement.jsonl")).unwrap();
    for case in cases() {
        let row = rows.iter().find(|r| r.name == case.name);
        let row = row.unwrap_or_else(|| panic!("no row for {}: run the bench", case.name));
        assert_eq!(
            row.programs,
            lowered(&case).unwrap(),
            "{} is stale",
            case.name
        );
        assert_eq!(row.predicted, row.measured, "{}", case.name);
    }
}

/// Programs with copies, and room for one step of them.
/// The largest took what was predicted within 2 GiB of the device and 8 GiB of the host, the rest on disk.
#[test]
fn a_model_of_a_billion_parameters_trained_within_two_gibibytes() {
    let rows = agreement::read(std::path::Path::new("docs/agreement.jsonl")).unwrap();
    let row = rows.iter().find(|r| r.name == "big-llama-3.2-1b-bf16");
    let row = row.unwrap();
    assert_eq!(row.measured, row.predicted);
    let [gpu, pinned, host] = [Place::Gpu, Place::Pinned, Place::Host].map(|p| row.measured[p].0);
    assert!(gpu <= 2 << 30 && pinned + host <= 8 << 30, "{row:?}");
    assert!(row.losses.len() >= 2);
}

fn programs() -> Vec<Program> {
    lower(&plan(
        job(MICRO, 8, 32, Precision::F32, 1),
        &[
            "recompute:site=layers.0",
            "offload:what=optimizer",
            "offload:what=activations",
        ],
    ))
}

/// Runs the start and a step in arenas that are `more` larger than planned, or smaller; the machine if both succeed.
fn step(programs: &[Program], more: i64) -> memfit::error::Result<(Cpu, Vec<f32>)> {
    let mut room = height(programs);
    room.gpu = Bytes((room.gpu.0 as i64 + more) as u64);
    let job = job(MICRO, 8, 32, Precision::F32, 1);
    let (desk, folder) = (Desk::new(&job), tempfile::tempdir().unwrap());
    let settings = Settings {
        poison: true,
        ..Settings::default()
    };
    let mut cpu = Cpu::new(room, job.target.backend, folder.path(), settings)?;
    for when in [When::Start, When::Steady, When::Steady] {
        let program = programs.iter().find(|p| p.when == when).unwrap();
        let scalars = Scalars {
            step: 1,
            micro: 0,
            rate: 1e-2,
        };
        cpu.run(program, &desk, scalars)?;
    }
    let losses = desk.losses.lock().unwrap().clone();
    Ok((cpu, losses))
}

#[test]
fn bytes_above_the_mark_stay_untouched_and_one_unit_less_is_too_little() {
    let programs = programs();
    let (cpu, losses) = step(&programs, 1 << 20).unwrap();
    assert!(losses.iter().all(|l| l.is_finite()));
    assert!(cpu.mark().gpu <= height(&programs).gpu);
    assert!(cpu.is_untouched_above_mark());
    assert_eq!(step(&programs, 0).unwrap().1, losses);
    let unit = alignment(Place::Gpu) as i64;
    assert!(
        step(&programs, -unit).is_err(),
        "an arena one unit too small went unnoticed"
    );
}

#[test]
fn a_buffer_freed_early_is_found_by_the_checker_and_by_poison() {
    let mut programs = programs();
    let (_, losses) = step(&programs, 0).unwrap();
    let steady = programs
        .iter_mut()
        .find(|p| p.when == When::Steady)
        .unwrap();
    let (free, id) = freed(steady);
    let reader = last_launch_of(steady, id, free);
    let instr = steady.code.remove(free);
    steady.code.insert(reader, instr);
    assert!(check(steady).is_err(), "the checker let an early free pass");
    let ran = step(&programs, 0);
    assert!(
        ran.is_err() || ran.is_ok_and(|(_, l)| l[1..] != losses[1..]),
        "poison did not show"
    );
}

/// A free of a device buffer whose last use is a launch of the backward pass right before it.
fn freed(program: &Program) -> (usize, BufferId) {
    let found = program
        .code
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, instr)| match instr {
            Instr::Free(id)
                if program.buffer(*id).place == Place::Gpu
                    && program.buffer(*id).name.contains("gradient") =>
            {
                Some((at, *id))
            }
            _ => None,
        });
    found.unwrap()
}

fn last_launch_of(program: &Program, id: BufferId, before: usize) -> usize {
    let storage = program.buffer(id).storage.unwrap();
    let reads = |instr: &Instr| match instr {
        Instr::Launch { node, .. } => program.step.nodes[*node as usize]
            .inputs
            .iter()
            .any(|&i| program.step.tensor(i).storage == storage),
        _ => false,
    };
    program.code[..before].iter().rposition(reads).unwrap()
}

#[test]
fn a_quick_calibration_gives_a_device_that_is_read_back_and_times_plans() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        quick: true,
        folder: folder.path().into(),
        ..Options::default()
    };
    let device = calibrate(&options, &mut |_, _| {}).unwrap();
    let file = folder.path().join("this.toml");
    std::fs::write(&file, device.to_toml().unwrap()).unwrap();
    let read = Device::from_path(&file).unwrap();
    assert_eq!(read.curve, device.curve);
    assert!(device.efficiency.values().all(|e| *e > 0.0 && *e <= 1.0));
    assert!(device.curve.len() > 100);
    let mut plan = plan(
        job(MICRO, 8, 32, Precision::F32, 1),
        &["offload:what=activations"],
    );
    plan.job.target.device = read;
    let estimate = estimate::proved(&plan).unwrap();
    assert!(
        estimate.step.0 > 1e-5 && estimate.step.0 < 10.0,
        "{}",
        estimate.step
    );
}

#[test]
fn a_plan_with_copies_leaves_a_core_to_them() {
    let of = |choices: &[&str]| plan(job(MICRO, 8, 32, Precision::F32, 1), choices);
    assert_eq!(threads_for(&of(&["recompute"]), 4), 4);
    assert_eq!(threads_for(&of(&["offload:what=activations"]), 4), 3);
    assert_eq!(
        threads_for(&of(&["offload:what=optimizer,update=host"]), 1),
        1
    );
}

#[test]
fn a_validation_runs_a_plan_whole_or_cut_and_every_byte_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let choices = ["recompute:site=layers.0-1", "offload:what=optimizer"];
    let bytes = MICRO.replace("\"vocab_size\":64", "\"vocab_size\":256");
    let plan = plan(job(&bytes, 2, 32, Precision::F32, 2), &choices);
    let mut options = validate::Options {
        layers: None,
        steps: 2,
        cores: 2,
        gpu: None,
        folder: folder.path().into(),
        device: None,
    };
    let whole = validate(&plan, &options, &mut |_, _| {}).unwrap();
    assert!(
        whole.whole && whole.agrees(),
        "{:?}",
        validate::differences(&whole)
    );
    options.layers = Some(1);
    let cut = validate(&plan, &options, &mut |_, _| {}).unwrap();
    assert!(!cut.whole && cut.layers == 1 && cut.agrees());
    assert_eq!(cut.left_out.len(), 2);
    for place in Place::ALL {
        for (role, bytes) in &cut.measured_roles[place] {
            let predicted = cut.predicted_roles[place]
                .get(role)
                .copied()
                .unwrap_or_default();
            assert!(
                *bytes <= predicted + Bytes(1 << 16),
                "{role:?} in {place}: {bytes} of {predicted}"
            );
        }
    }
}

#[test]
fn a_hash_tells_two_programs_apart() {
    let of =
        |choices: &[&str]| hashes(&lower(&plan(job(MICRO, 8, 32, Precision::F32, 1), choices)));
    assert_eq!(of(&["recompute"]), of(&["recompute"]));
    assert_ne!(of(&["recompute"]), of(&[]));
}
