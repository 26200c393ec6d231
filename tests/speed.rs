//! Step times for PyTorch: rooflines, the fitted table, and the speeds that records give.

use memfit::machine::compare::{self, Timed};
use memfit::machine::pytorch::step_time;
use memfit::machine::speed::{Efficiency, Rooflines, Table};
use memfit::program::eager::{EagerPhase, predict};
use memfit::spec::device::{self, Device};
use memfit::spec::torch::TorchOptions;
use memfit::spec::units::Seconds;
use memfit::spec::{catalog, torch};
use serde_json::{Value, json};

use crate::compare::{against, case, published, with};

fn seconds(model: &str, options: &str, device: &Device) -> f64 {
    let options = TorchOptions::parse_pairs(options).unwrap();
    let prediction = predict(&catalog::find(model).unwrap(), &options).unwrap();
    step_time(&options, &prediction, device).step_seconds.0
}

#[test]
fn a_faster_device_is_never_slower() {
    let options = "batch=4,seq=1024,param_dtype=bf16";
    let slow = device::find("a100-sxm4-80gb").unwrap();
    let base = seconds("llama-3.2-1b", options, &slow);
    let better: [fn(&mut Device); 3] = [
        |d| d.bandwidth *= 2.0,
        |d| d.peak.bf16 = d.peak.bf16.map(|rate| 2.0 * rate),
        |d| d.peak.fp32 *= 2.0,
    ];
    for change in better {
        let mut fast = slow.clone();
        change(&mut fast);
        let changed = seconds("llama-3.2-1b", options, &fast);
        assert!(changed <= base && changed > base / 2.0, "{changed} {base}");
    }
}

#[test]
fn a_small_step_is_as_long_as_its_launches() {
    let device = device::find("h100-sxm5-80gb").unwrap();
    let at = |batch: u64| {
        let text = format!("batch={batch},seq=64,param_dtype=bf16");
        let options = TorchOptions::parse_pairs(&text).unwrap();
        let prediction = predict(&catalog::find("gpt2").unwrap(), &options).unwrap();
        step_time(&options, &prediction, &device)
    };
    let (small, large) = (at(1), at(256));
    assert!(small.launch_bound > 0.5, "{small:?}");
    assert!(large.launch_bound < 0.1, "{large:?}");
    assert!(at(2).step_seconds.0 < 1.1 * small.step_seconds.0);
}

#[test]
fn what_runs_beside_the_backward_pass_counts_only_where_it_is_longer() {
    let device = device::find("rtx-4090").unwrap();
    let options = TorchOptions::parse_pairs("batch=1,seq=512").unwrap();
    let prediction = predict(&catalog::find("gpt2").unwrap(), &options).unwrap();
    let e = Efficiency::PRIOR;
    let with = |beside| Rooflines::new(&prediction.work, &device, Seconds(beside));
    let (none, short, long) = (with(0.0), with(1e-6), with(100.0));
    assert_eq!(none.seconds(&e).0, short.seconds(&e).0);
    assert_eq!(long.phases(&e)[&EagerPhase::Backward].0, 100.0);
}

#[test]
fn no_efficiency_passes_its_peak_and_each_is_refused_that_would() {
    let table = Table::built_in();
    let fitted = table.efficiency.fitted();
    assert!(fitted.iter().all(|e| *e > 0.0 && *e <= 1.0), "{fitted:?}");
    let text = include_str!("../models/speed/torch.toml");
    let above = text.replacen(
        &format!("half = {}", table.efficiency.half),
        "half = 1.5",
        1,
    );
    assert_ne!(above, text);
    assert!(Table::from_toml("above", &above).is_err());
    assert!(Table::from_toml("as it is", text).is_ok());
}

#[test]
fn the_table_is_what_its_runs_say() {
    let text = std::fs::read("tests/evidence/published_runs.jsonl").unwrap();
    let lines = compare::read(&text);
    let runs = compare::runs(&lines, memfit::program::eager::predict, &mut |_, _| {});
    let fit = compare::fit(&runs);
    assert_eq!(
        &fit.table,
        Table::built_in(),
        "write it again: memfit compare FILE --fit"
    );
    let kept = std::fs::read_to_string("models/speed/torch.csv").unwrap();
    assert_eq!(kept, memfit::show::speeds::runs(&runs, &fit));
}

fn timed(record: &Value) -> Timed {
    case(record).timed.unwrap()
}

#[test]
fn times_and_rates_become_seconds_of_a_step() {
    let mut record = published("p");
    record["step_time_s"] = json!(2.5);
    assert_eq!(timed(&record).seconds, 2.5);
    record["step_time_s"] = json!(null);
    record["throughput"] = json!({"value": 4.0, "unit": "samples/s"});
    // 8 micro-batches of one sequence.
    assert_eq!(timed(&record).seconds, 2.0);
    record["throughput"] = json!({"value": 1024.0, "unit": "tokens/s"});
    assert_eq!(timed(&record).seconds, 2.0);
    assert_eq!(timed(&record).options, case(&record).options);
    record["throughput"] = json!({"value": 1024.0, "unit": "parsecs"});
    assert!(crate::compare::reason(&record).contains("unknown unit `parsecs`"));
    record["throughput"] = json!({"value": 0.0, "unit": "tokens/s"});
    assert!(crate::compare::reason(&record).contains("seconds of a step"));
    // One micro-batch of mean length is timed there, and nothing is fitted on it.
    let mut own = with(
        published("p"),
        "/source",
        json!("Lightning-AI/litgpt tutorials"),
    );
    own["step_time_s"] = json!(0.1);
    let own = timed(&own);
    assert!((own.seconds - 0.8).abs() < 1e-12 && !own.counted);
    assert_eq!((own.options.seq, own.options.grad_accum), (110, 8));
    assert!(
        own.options.habits
            == torch::Habits {
                packed_saves_input: true,
                kernel_scratch: true,
                ..torch::Habits::default()
            }
    );
}

#[test]
fn a_record_with_a_speed_alone_is_compared() {
    let mut record = published("s");
    record["memory"] = json!(null);
    record["step_time_s"] = json!(1.0);
    let all = against(&[record.clone()], crate::compare::GIB);
    assert_eq!(
        (all.rows.len(), all.unmeasured.len(), all.speed.cases),
        (0, 0, 1)
    );
    assert_eq!(all.speed.rows[0].device, "a100-sxm4-80gb");
    record["gpu"] = json!("no such device");
    let all = against(&[record], crate::compare::GIB);
    assert_eq!((all.skipped.len(), all.speed.cases), (1, 0));
}
