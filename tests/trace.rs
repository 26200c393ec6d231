//! Traces: the rules of the format, counters that reach the reported peaks, and arrows from copies to what uses them.

use std::collections::{BTreeMap, BTreeSet};

use memfit::machine::estimate;
use memfit::plan::library;
use memfit::program::{BufferId, Instr, Program};
use memfit::show::course::Course;
use serde_json::Value;

fn trace(line: &str) -> Value {
    let words = format!("trace {line}");
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
    let output = command.args(words.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{line}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A slice in nanoseconds.
#[derive(Debug, Clone)]
struct Slice {
    from: i64,
    to: i64,
    name: String,
}

/// A track: its process and its thread.
type Track = (u64, u64);

fn nanos(event: &Value, key: &str) -> i64 {
    let micros = event[key].as_f64().unwrap_or_else(|| panic!("{event}"));
    assert!(micros.is_finite() && micros >= 0.0, "{event}");
    (micros * 1e3).round() as i64
}

fn track(event: &Value) -> Track {
    (
        event["pid"].as_u64().unwrap(),
        event["tid"].as_u64().unwrap(),
    )
}

fn events(trace: &Value) -> &Vec<Value> {
    trace["traceEvents"].as_array().unwrap()
}

fn of_kind<'a>(trace: &'a Value, ph: &'static str) -> impl Iterator<Item = &'a Value> {
    events(trace).iter().filter(move |e| e["ph"] == ph)
}

fn slices(trace: &Value) -> BTreeMap<Track, Vec<Slice>> {
    let mut tracks: BTreeMap<Track, Vec<Slice>> = BTreeMap::new();
    for event in of_kind(trace, "X") {
        let from = nanos(event, "ts");
        let to = from + nanos(event, "dur");
        let name = event["name"].as_str().unwrap().to_string();
        tracks
            .entry(track(event))
            .or_default()
            .push(Slice { from, to, name });
    }
    tracks
}

/// Holds a trace against the rules of the format.
fn assert_lawful(trace: &Value) {
    let known = ["X", "M", "C", "s", "f"];
    assert!(
        events(trace)
            .iter()
            .all(|e| known.contains(&e["ph"].as_str().unwrap()))
    );
    let named = |what: &str| -> BTreeSet<Track> {
        let all = of_kind(trace, "M").filter(|e| e["name"] == what);
        all.inspect(|e| assert!(!e["args"]["name"].as_str().unwrap().is_empty()))
            .map(track)
            .collect()
    };
    let (processes, threads) = (named("process_name"), named("thread_name"));
    let mut tracks = slices(trace);
    for (track, slices) in &mut tracks {
        assert!(threads.contains(track), "{track:?} has no name");
        assert!(processes.contains(&(track.0, 0)));
        slices.sort_by_key(|s| (s.from, s.to));
        for pair in slices.windows(2) {
            assert!(pair[0].to <= pair[1].from, "{track:?}: {pair:?} overlap");
        }
    }
    for event in of_kind(trace, "X").filter(|e| e["tid"] != 0) {
        let args = &event["args"];
        assert!(args["bytes"].is_u64() && args["phase"].is_string() && args["origin"].is_string());
    }
    flows(trace, &tracks);
    let mut series: BTreeMap<(u64, &str), Vec<&String>> = BTreeMap::new();
    for event in of_kind(trace, "C") {
        nanos(event, "ts");
        // A series that an event leaves out would keep its last value.
        let name = event["name"].as_str().unwrap();
        let told: Vec<&String> = event["args"].as_object().unwrap().keys().collect();
        let first = series
            .entry((track(event).0, name))
            .or_insert_with(|| told.clone());
        assert_eq!(*first, told, "{name}");
        let values = event["args"].as_object().unwrap();
        assert!(
            !values.is_empty() && values.values().all(Value::is_u64),
            "{event}"
        );
    }
}

/// Every arrow has both its ends, each within a slice of its track, in the order of time; how many there are.
fn flows(trace: &Value, tracks: &BTreeMap<Track, Vec<Slice>>) -> usize {
    let ends = |ph| -> BTreeMap<u64, &Value> {
        let all: Vec<&Value> = of_kind(trace, ph).collect();
        let by_id: BTreeMap<u64, &Value> = all
            .iter()
            .map(|e| (e["id"].as_u64().unwrap(), *e))
            .collect();
        assert_eq!(by_id.len(), all.len(), "an id is used twice");
        by_id
    };
    let (from, to) = (ends("s"), ends("f"));
    assert!(from.keys().eq(to.keys()));
    for (id, begin) in &from {
        let end = to[id];
        assert_eq!(end["bp"], "e");
        assert_eq!((&begin["name"], &begin["cat"]), (&end["name"], &end["cat"]));
        assert!(nanos(begin, "ts") <= nanos(end, "ts"), "{begin} {end}");
        for (event, is_copy) in [(begin, true), (&end, false)] {
            let at = nanos(event, "ts");
            let bound = tracks[&track(event)].iter().find(|s| s.from == at);
            let bound = bound.unwrap_or_else(|| panic!("{event} binds to nothing"));
            assert!(!is_copy || bound.name == "copy", "{bound:?}");
        }
    }
    from.len()
}

/// The largest value of each counter of all memory, by process and place.
fn most(trace: &Value) -> BTreeMap<(u64, String), u64> {
    let mut most = BTreeMap::new();
    let mut at: BTreeMap<(u64, String), i64> = BTreeMap::new();
    for event in of_kind(trace, "C") {
        let key = (
            event["pid"].as_u64().unwrap(),
            event["name"].as_str().unwrap().to_string(),
        );
        let now = nanos(event, "ts");
        let before = at.insert(key.clone(), now).unwrap_or(-1);
        assert!(before < now, "{key:?} has two values at {now}");
        let values = event["args"].as_object().unwrap().values();
        let total: u64 = values.map(|v| v.as_u64().unwrap()).sum();
        let largest = most.entry(key).or_insert(0);
        *largest = total.max(*largest);
    }
    most
}

/// Peaks as the answers say them, the host's pageable memory apart.
fn peaks(json: &Value) -> BTreeMap<&'static str, u64> {
    let of = |key: &str| json[key].as_u64().unwrap();
    let all = [
        ("gpu", of("gpu")),
        ("pinned", of("pinned")),
        ("host", of("host") - of("pinned")),
        ("disk", of("disk")),
    ];
    all.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

/// Asserts that the counters of `pids` reach these peaks to the byte, by role too.
fn assert_peaks(trace: &Value, pids: &[u64], json: &Value) {
    let most = most(trace);
    for (place, peak) in peaks(json) {
        for name in [format!("memory {place}"), format!("memory {place} by role")] {
            let reached = pids
                .iter()
                .filter_map(|pid| most.get(&(*pid, name.clone())));
            assert_eq!(reached.max(), Some(&peak), "{name}");
        }
    }
}

/// The number of the process whose name begins so.
fn pids(trace: &Value, begins: &str) -> Vec<u64> {
    let named = of_kind(trace, "M").filter(|e| e["name"] == "process_name");
    let named = named.filter(|e| e["args"]["name"].as_str().unwrap().starts_with(begins));
    named.map(|e| e["pid"].as_u64().unwrap()).collect()
}

#[test]
fn simulated_steps_are_lawful_and_reach_their_peaks() {
    let lines = [
        "7b-24gb",
        "zero-offload-1.3b-4gb",
        "galore-7b-24gb",
        "--model tiny --gpu 12MiB --seq 64 --batch 4 --fix accumulate:micro=1 --fix recompute --fix offload:what=optimizer,to=disk",
    ];
    for line in lines {
        let trace = trace(line);
        assert_lawful(&trace);
        let about = &trace["otherData"];
        assert_peaks(&trace, &pids(&trace, "simulated"), &about["peak"]);
        assert!(
            about["clock"]
                .as_str()
                .unwrap()
                .contains("order of the program's text")
        );
        assert!(about["step_seconds"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn the_programs_of_a_step_follow_one_another() {
    let trace = trace("--model tiny --gpu 64MiB --seq 64 --batch 4 --fix accumulate:micro=1");
    let programs = &slices(&trace)[&(1, 0)];
    let names: Vec<&str> = programs.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        names,
        ["first micro-batch", "middle micro-batch (x2)", "step"]
    );
    assert!(programs.windows(2).all(|p| p[0].to == p[1].from));
    // Each of them as often as it runs is the step.
    let seconds = |n: usize| (programs[n].to - programs[n].from) as f64 * 1e-9;
    let step = seconds(0) + 2.0 * seconds(1) + seconds(2);
    let said = trace["otherData"]["step_seconds"].as_f64().unwrap();
    assert!((step / said - 1.0).abs() < 1e-3, "{step} {said}");
}

#[test]
fn an_executed_step_stands_beside_the_simulated_one() {
    let trace = trace("tiny-cpu --seq 64 --run");
    assert_lawful(&trace);
    assert_peaks(
        &trace,
        &pids(&trace, "simulated"),
        &trace["otherData"]["peak"],
    );
    let executed = pids(&trace, "executed");
    assert_eq!(executed.len(), 1);
    let processes = trace["otherData"]["processes"].as_array().unwrap();
    let about = &processes.last().unwrap()["about"];
    assert_eq!(about["left_out"], Value::Array(Vec::new()));
    // The machine's own marks: what it handed out, not what was predicted.
    assert_peaks(&trace, &executed, &about["measured"]);
}

/// The first instruction behind `copy` that reads what it wrote to, found the plain way.
fn first_use(program: &Program, copy: usize, to: BufferId) -> Option<usize> {
    let storage = program.buffer(to).storage;
    let reads = |instr: &Instr| match instr {
        Instr::Launch { node, .. } => {
            let inputs = &program.step.nodes[*node as usize].inputs;
            storage.is_some_and(|s| inputs.iter().any(|i| program.step.tensor(*i).storage == s))
        }
        Instr::Copy { from, .. } => from.buffer == to,
        _ => false,
    };
    let behind = program.code.iter().enumerate().skip(copy + 1);
    behind.filter(|(_, i)| reads(i)).map(|(at, _)| at).next()
}

#[test]
fn arrows_are_from_each_copy_to_its_first_use() {
    let plan = library::find("zero-offload-1.3b-4gb")
        .unwrap()
        .plan()
        .unwrap();
    let programs = estimate::all(&plan).unwrap();
    let course = Course::of_step(&plan, &programs).unwrap();
    let mut expected = Vec::new();
    for walk in &course.walks {
        let start = |at: usize| {
            let mark = walk.timeline.marks.iter().find(|m| m.at == at).unwrap();
            ((walk.begin + mark.start) * 1e9).round() as i64
        };
        for (at, instr) in walk.program.code.iter().enumerate() {
            if let Instr::Copy { to, .. } = instr
                && let Some(used) = first_use(walk.program, at, to.buffer)
            {
                expected.push((start(at), start(used)));
            }
        }
    }
    let trace = trace("zero-offload-1.3b-4gb");
    let of = |ph| {
        of_kind(&trace, ph)
            .filter(|e| e["pid"] == 1)
            .map(|e| nanos(e, "ts"))
    };
    let mut found: Vec<(i64, i64)> = of("s").zip(of("f")).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert!(expected.len() > 50);
    assert_eq!(found, expected);
}
