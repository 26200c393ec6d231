//! What the solver reads off shallow models, and how what it chooses by layer is made one plan.

use memfit::graph::op::transfer::MOVE;
use memfit::graph::{Phase, Stream, When};
use memfit::machine::estimate;
use memfit::machine::micro::{self, Size};
use memfit::plan::{Choice, Plan, Request};
use memfit::search::menu::Fate;
use memfit::search::problem::Problems;
use memfit::search::{Outcome, search};
use memfit::spec::device;
use memfit::spec::job::{Exactness, Host, Job, Optimizer, Precision, Target};
use memfit::spec::units::Bytes;

const SIZE: Size = Size {
    hidden: 256,
    layers: 12,
    vocab: 512,
};

fn request(gpu: &str) -> Request {
    let host = Host {
        ram: Bytes(1 << 40),
        link: Some(5e9),
        ..Host::default()
    };
    let target = Target::new(device::find(gpu).unwrap(), host);
    Request {
        job: Job {
            model: micro::model("llama", SIZE).unwrap(),
            seq: 512,
            batch: 8,
            precision: Precision::Bf16,
            optimizer: Optimizer("adamw".into()),
            target,
        },
        fixed: Vec::new(),
        allow: Exactness::Rounding,
    }
}

fn plan(choices: &[&str]) -> Plan {
    let choices = ["fused_update", "flash_attention", "chunked_loss"]
        .iter()
        .chain(choices);
    let choices = choices.map(|c| Choice::parse(c).unwrap()).collect();
    Plan::new(request("24GB").job, choices).unwrap()
}

/// Of a value that is computed again the device holds less between the passes than where it is kept.
#[test]
fn what_is_dropped_is_gone_between_the_passes_in_every_family() {
    for family in ["llama", "gpt2"] {
        let mut request = request("24GB");
        request.job.model = micro::model(family, SIZE).unwrap();
        let problems = Problems::of(&request).unwrap();
        for column in &problems.all[0].layers.columns {
            if column.takes.forward.0[Stream::ToHost as usize] == 0.0 {
                assert!(column.takes.peak.gpu < 0.0, "{family}: {column:?}");
            }
        }
    }
}

/// What comes back takes the link for as long as it took to go, whichever layer waits for it.
#[test]
fn a_value_sent_away_asks_the_link_for_its_own_bytes_in_both_halves() {
    let problems = Problems::of(&request("24GB")).unwrap();
    let columns = &problems.all[0].layers.columns;
    let mut sent = 0;
    for column in columns {
        let out = column.takes.forward.0[Stream::ToHost as usize];
        let back = column.takes.later.0[Stream::ToDevice as usize];
        assert!(out >= 0.0 && back >= 0.0, "{out} {back}");
        assert!((out - back).abs() <= 1e-9 * out, "{out} there, {back} back");
        sent += u32::from(out > 0.0);
    }
    assert!(sent > 4 && (sent as usize) < columns.len());
}

/// What is computed again reads what is computed again, whatever layers each is dropped in: values of several choices are dropped together.
#[test]
fn values_dropped_by_several_choices_are_dropped_together() {
    let all = ["q", "q_rope", "k", "k_rope", "v"].map(|leaf| format!("layers.*/attention/{leaf}"));
    let (some, most) = ("layers.0-5/attention/core", "layers.6-11/attention/core");
    let one = format!("recompute:site={}+{some}+{most}", all.join("+"));
    let split = [
        format!("recompute:site={}", all.join("+")),
        format!("recompute:site={some}"),
        format!("recompute:site={most}"),
    ];
    let (one, split) = (plan(&[&one]), plan(&split.each_ref().map(String::as_str)));
    let peak = |plan: &Plan| estimate::quick(plan).unwrap().peak;
    assert_eq!(peak(&one), peak(&split));
}

/// A site that is nowhere is refused, beside others as alone.
#[test]
fn a_site_that_is_nowhere_is_refused_beside_one_that_is_somewhere() {
    let both = plan(&["recompute:site=layers.0", "recompute:site=layers.99"]);
    let error = both.steps().unwrap_err().to_string();
    assert!(error.contains("layers.99"), "{error}");
}

/// Copies for a few layers have the time from one of them to the next.
#[test]
fn copies_for_a_few_layers_go_ahead_by_the_layers_between_them() {
    let plan = plan(&["offload:site=layers.0|4|8,what=parameters"]);
    let set = plan.steps().unwrap();
    let (_, step) = (set.steps.iter())
        .find(|(when, _)| *when == When::Steady)
        .unwrap();
    let layer = |path: &str| -> Option<u64> {
        let rest = path.strip_prefix("layers.")?;
        rest.split(['/', '.']).next()?.parse().ok()
    };
    let mut last = None;
    let mut fetched = 0;
    for (index, node) in step.nodes.iter().enumerate() {
        if node.phase != Phase::Forward {
            break;
        }
        if node.op.name() != MOVE {
            last = layer(&node.block);
            continue;
        }
        // Two halves of the layer before that has some: it is about to begin.
        let wanted = layer(&node.origin).unwrap();
        let before = wanted.checked_sub(4);
        let reached = before.and_then(|layer| layer.checked_sub(1));
        // The second half of it for what is wanted in the second.
        assert!(last == reached || last == before, "{index} {}", node.origin);
        fetched += 1;
    }
    assert!(fetched > 0);
}

/// What is sent away of the last of some layers has left at the turn, as that of the others has.
#[test]
fn the_last_of_some_layers_frees_what_the_others_do() {
    let peak = |last: u64| {
        let choice = format!("offload:site=layers.0-{last}");
        let estimate = estimate::quick(&plan(&[&choice])).unwrap();
        estimate.peak.gpu.0 as f64
    };
    let (two, three, four) = (peak(2), peak(3), peak(4));
    assert!(three - four > 0.9 * (two - three), "{two} {three} {four}");
    assert!(four < three && three < two);
}

/// Where lossy methods are allowed, plans that hold values in fewer bits are of the method of that name, and no others.
#[test]
fn plans_that_hold_values_in_fewer_bits_are_named_so() {
    let kept = estimate::quick(&plan(&[])).unwrap();
    let mut request = request("24GB");
    request.allow = Exactness::Lossy;
    let device = &mut request.job.target.device;
    device.memory = Bytes(kept.peak.gpu.0 * 7 / 10) + device.reserved;
    for candidate in &search(&request).unwrap().considered {
        let family = candidate.family.map(|family| family.name);
        let names = |c: &Choice| c.technique == "compress_activations";
        assert_eq!(
            family == Some("8-bit activations"),
            candidate.plan.choices.iter().any(names)
        );
    }
}

/// Each fate is a plan: its choices are taken at one value, and what it holds is less than where the value is kept.
#[test]
fn every_fate_takes_less_of_the_device_than_keeping_does() {
    let kept = estimate::quick(&plan(&[])).unwrap().peak.gpu;
    for fate in Fate::ALL {
        let site = "layers.*/mlp/act+layers.*/mlp/gate+layers.*/mlp/up";
        let choices = fate.choices(site, 2);
        let spelled: Vec<String> = choices.iter().map(Choice::to_string).collect();
        let spelled: Vec<&str> = spelled.iter().map(String::as_str).collect();
        let peak = estimate::quick(&plan(&spelled)).unwrap().peak.gpu;
        assert!(peak < kept, "{}: {peak} of {kept}", fate.name());
    }
}

/// What is held in fewer bits by a fixed choice is what the search asks about.
#[test]
fn a_fixed_compression_is_searched_beside() {
    let mut request = request("24GB");
    request.fixed = vec![Choice::parse("compress_activations").unwrap()];
    let Outcome::Fits(best) = search(&request).unwrap().outcome else {
        panic!("fits");
    };
    assert!(best.estimate.step.0 > 0.0);
}
