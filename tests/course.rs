//! Courses: what places hold over a step, against the estimate and against a plain walk over the text.

use std::collections::BTreeMap;

use memfit::graph::Stream;
use memfit::machine::estimate::{self, simulate};
use memfit::machine::sim::node_launches;
use memfit::machine::timeline::Timeline;
use memfit::plan::Plan;
use memfit::plan::library;
use memfit::program::{Instr, Program};
use memfit::show::course::{Course, Sample, in_step};
use memfit::show::curve::{Curve, moments};
use memfit::spec::device;
use memfit::spec::job::Place;
use memfit::spec::units::{Bytes, Seconds};

/// Plans that differ in what they hold where, and one of several programs.
fn plans() -> Vec<(String, Plan)> {
    let names = [
        "tiny-cpu",
        "small-cpu",
        "7b-24gb",
        "zero-offload-1.3b-4gb",
        "galore-7b-24gb",
    ];
    let mut plans: Vec<(String, Plan)> = names
        .iter()
        .map(|name| {
            (
                name.to_string(),
                library::find(name).unwrap().plan().unwrap(),
            )
        })
        .collect();
    let mut micro = library::find("tiny-cpu").unwrap();
    (micro.job.batch, micro.job.seq) = (8, 64);
    let choices = [
        "accumulate:micro=2",
        "recompute",
        "offload:what=activations,to=disk",
    ];
    let choices = choices.map(|c| memfit::plan::Choice::parse(c).unwrap());
    micro.choice.retain(|c| c.technique != "fused_update");
    micro.choice.extend(choices);
    plans.push(("micro-batches".into(), micro.plan().unwrap()));
    plans
}

#[test]
fn the_largest_sample_of_each_place_is_the_peak_of_the_plan() {
    for (name, plan) in plans() {
        let programs = estimate::all(&plan).unwrap();
        let estimate = estimate::summarize(&plan, &programs).unwrap();
        let courses = [
            Course::of_step(&plan, &programs).unwrap(),
            Course::outside(&plan, &programs).unwrap(),
        ];
        assert!(courses[1].walks.iter().all(|w| !in_step(w.program.when)));
        for place in Place::ALL {
            let peaks = courses.iter().filter_map(|c| c.peak(place));
            let peak = peaks.max_by_key(|s| s.total);
            let total = peak.map_or(Bytes::ZERO, |s| s.total);
            assert_eq!(total, estimate.peak[place], "{name}: {place}");
            // One program alone has the peak: its roles are the estimate's, to the byte.
            let reach = programs
                .iter()
                .filter(|p| p.height[place] == estimate.peak[place]);
            if let (Some(peak), 1) = (peak, reach.count()) {
                assert_eq!(peak.roles, estimate.roles[place], "{name}: {place}");
            }
        }
    }
}

/// What is alive behind a position, added up the plain way.
fn load(program: &Program, at: usize, place: Place) -> Bytes {
    let alive = estimate::alive(program, at).filter(|b| b.place == place);
    alive.map(|b| b.bytes).sum()
}

#[test]
fn samples_are_what_a_plain_walk_finds() {
    for (name, plan) in plans() {
        let programs = estimate::all(&plan).unwrap();
        let course = Course::of_step(&plan, &programs).unwrap();
        for place in Place::ALL {
            let samples = &course.samples[place];
            assert!(samples.is_sorted_by_key(|s| s.time), "{name}: {place}");
            let every = (samples.len() / 40).max(1);
            for sample in samples.iter().step_by(every) {
                let program = course.walks[sample.walk].program;
                let unused = program.height[place] - program.load[place];
                let plain = load(program, sample.at, place) + unused;
                assert_eq!(sample.total, plain, "{name}: {place} at {}", sample.at);
                let roles: Bytes = sample.roles.values().copied().sum();
                assert_eq!(roles, sample.total);
                let alive: Bytes = course.alive(sample, place).iter().map(|b| b.bytes).sum();
                assert_eq!(alive + unused, sample.total);
            }
        }
    }
}

#[test]
fn columns_keep_the_peak_and_cover_the_step() {
    for (name, plan) in plans() {
        let programs = estimate::all(&plan).unwrap();
        let course = Course::of_step(&plan, &programs).unwrap();
        let peak = course.peak(Place::Gpu).unwrap();
        for count in [1, 7, 200] {
            let columns: Vec<&Sample> = course.columns(Place::Gpu, count);
            assert_eq!(columns.len(), count, "{name}");
            let most = columns.iter().map(|s| s.total).max();
            assert_eq!(most, Some(peak.total), "{name}");
        }
    }
}

#[test]
fn moments_never_fall_and_allocations_precede_what_uses_them() {
    for (name, plan) in plans() {
        for program in &estimate::stepping(&plan).unwrap() {
            let timeline = simulate(program, &plan).unwrap();
            let moments = moments(program, &timeline);
            assert_eq!(moments.len(), program.code.len());
            assert!(moments.is_sorted(), "{name}");
            assert!(moments.iter().all(|m| *m <= timeline.total.0 + 1e-9));
            // A launch of the device starts no earlier than the device is said to reach it.
            for mark in timeline
                .marks
                .iter()
                .filter(|m| m.stream == Stream::Compute)
            {
                assert!(matches!(program.code[mark.at], Instr::Launch { .. }));
                assert!(moments[mark.at] <= mark.start + 1e-9, "{name}: {}", mark.at);
            }
            let curve = Curve::new(program, Place::Gpu);
            assert_eq!(curve.peak(), program.load.gpu, "{name}");
        }
    }
}

/// Instructions of the text by stream: how many, and how many bytes those that are copies move.
fn counted<'a>(
    program: &Program,
    at: impl Iterator<Item = usize> + 'a,
) -> BTreeMap<Stream, (u64, u64)> {
    let mut counts = BTreeMap::new();
    for at in at {
        let (stream, bytes) = match &program.code[at] {
            Instr::Launch { stream, .. } => (*stream, 0),
            Instr::Copy { from, stream, .. } => (*stream, from.bytes.0),
            _ => continue,
        };
        let count: &mut (u64, u64) = counts.entry(stream).or_default();
        *count = (count.0 + 1, count.1 + bytes);
    }
    counts
}

#[test]
fn a_simulated_7b_step_walks_every_launch_and_copy_of_its_programs_and_pays_for_each_launch() {
    for device in ["rtx4090", "h100-80gb"] {
        let device = device::find(device).unwrap();
        for name in ["7b-24gb", "zero-offload-6.7b-24gb"] {
            let mut plan = library::find(name).unwrap().plan().unwrap();
            plan.job.target.device = device.clone();
            let mut free = plan.clone();
            free.job.target.device.launch = Seconds(0.0);
            for program in &estimate::stepping(&plan).unwrap() {
                let walk = simulate(program, &plan).unwrap();
                let text = counted(program, 0..program.code.len());
                let walked = counted(program, walk.marks.iter().map(|m| m.at));
                assert_eq!(text, walked, "{name} on {}", device.id);
                assert!(text.values().any(|(_, bytes)| *bytes > 0), "{name}");
                // Alone, a kernel takes its launch longer than if launches were free; beside copies no less.
                let without = simulate(program, &free).unwrap();
                let seconds = |t: &Timeline| t.busy()[&Stream::Compute];
                let kernels = program.code.iter().map(|instr| match instr {
                    Instr::Launch { node, stream, .. } if *stream == Stream::Compute => {
                        node_launches(&program.step, *node)
                    }
                    _ => 0,
                });
                let kernels = kernels.sum::<u64>();
                // A loss by chunks is many launches, a sum over all tokens two.
                assert!(kernels > text[&Stream::Compute].0, "{name}");
                let launches = kernels as f64 * device.launch.0;
                let paid = seconds(&walk) - seconds(&without);
                assert!(device.launch.0 > 0.0 && launches > 0.0);
                assert!(
                    paid > 0.9 * launches && paid < 1.1 * launches,
                    "{name}: {paid} of {launches}"
                );
                let shortest = walk.marks.iter().filter(|m| m.stream == Stream::Compute);
                let shortest = shortest
                    .map(|m| m.end - m.start)
                    .fold(f64::INFINITY, f64::min);
                assert!(
                    shortest >= device.launch.0 * 0.999_999,
                    "{name}: {shortest}"
                );
            }
        }
    }
}
