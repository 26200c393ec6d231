//! Jobs: budgets over places, precisions, and jobs that must be refused.

use memfit::spec::catalog;
use memfit::spec::device::{self, Device};
use memfit::spec::job::{
    Backend, Exactness, Host, Job, Optimizer, PerPlace, Place, Precision, Target, parse_ram,
};
use memfit::spec::units::Bytes;
use proptest::prelude::*;

fn job(model: &str, gpu: &str) -> Job {
    let device = device::find(gpu).unwrap();
    Job {
        model: catalog::find(model).unwrap(),
        seq: 1024,
        batch: 1,
        precision: Precision::default_for(&device),
        optimizer: Optimizer("adamw".into()),
        target: Target::new(device, Host::default()),
    }
}

#[test]
fn a_sound_job_passes_on_every_device() {
    for known in device::all() {
        job("gpt2", &known.id).check().unwrap();
    }
}

#[test]
fn the_budget_has_a_row_for_the_device_two_for_the_host_and_one_for_the_disk() {
    let mut target = job("gpt2", "rtx-4090").target;
    let gpu = target.device.memory - target.device.reserved;
    let host = Bytes(123_695_058_124); // nine tenths of 128 GiB, rounded down
    let rows = vec![
        (vec![Place::Gpu], gpu),
        (vec![Place::Pinned], host),
        (vec![Place::Pinned, Place::Host], host),
        (vec![Place::Disk], Bytes(1_000_000_000_000)),
    ];
    assert_eq!(target.budget().rows, rows);
    target.host.pinned = Some(Bytes(1 << 30));
    assert_eq!(target.budget().most(Place::Pinned), Bytes(1 << 30));
    target.host.pinned = Some(Bytes(1 << 50));
    assert_eq!(target.budget().most(Place::Pinned), host);
}

#[test]
fn unified_memory_is_one_row() {
    let target = job("gpt2", "m2 max").target;
    let budget = target.budget();
    let memory = vec![Place::Gpu, Place::Pinned, Place::Host];
    assert_eq!(budget.rows[0], (memory, target.device.budget()));
    assert_eq!(budget.rows.len(), 2);
    let half = Bytes(target.device.budget().0 / 2 + 1);
    let used = PerPlace {
        gpu: half,
        pinned: Bytes::ZERO,
        host: half,
        disk: Bytes::ZERO,
    };
    assert!(!budget.fits(&used));
    assert_eq!(budget.passed(&used).unwrap().1.0.div_ceil(2), 1);
}

#[test]
fn a_budget_says_which_row_is_passed_and_by_how_much() {
    let budget = job("gpt2", "0B").target.budget();
    let mut used = PerPlace::<Bytes>::default();
    assert!(budget.fits(&used));
    used[Place::Gpu] = Bytes(7);
    assert_eq!(budget.passed(&used), Some((&[Place::Gpu][..], Bytes(7))));
    let most = PerPlace::new(|_| Bytes(u64::MAX));
    assert!(!budget.fits(&most));
}

#[test]
fn places_are_named_and_indexed_alike() {
    let mut names = PerPlace::new(Place::name);
    assert!(names.iter().all(|(place, name)| place.name() == *name));
    names[Place::Disk] = "file";
    let text = serde_json::to_string(&names.map(str::len)).unwrap();
    assert_eq!(text, r#"{"gpu":3,"pinned":6,"host":4,"disk":4}"#);
    assert_eq!(
        serde_json::to_string(&Place::ALL).unwrap(),
        r#"["gpu","pinned","host","disk"]"#
    );
}

#[test]
fn the_precision_follows_the_device() {
    let default = |name: &str| Precision::default_for(&device::find(name).unwrap());
    assert_eq!(default("4090"), Precision::Bf16);
    assert_eq!(default("t4"), Precision::Fp16);
    let mut plain = device::find("t4").unwrap();
    plain.peak.fp16 = None;
    assert_eq!(Precision::default_for(&plain), Precision::F32);
    let message = Precision::Bf16
        .check(&device::find("v100").unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("V100") && message.contains("use fp16"),
        "{message}"
    );
    let message = "b16".parse::<Precision>().unwrap_err().to_string();
    assert!(message.contains("did you mean `bf16`"), "{message}");
}

#[test]
fn the_backend_follows_the_device() {
    let of = |name: &str| Backend::of(&device::find(name).unwrap());
    assert_eq!(of("4090"), Backend::Cuda { capability: 89 });
    assert_eq!(of("mi300x"), Backend::Cuda { capability: 80 });
    let cpu = Device {
        threads: Some(2),
        capability: None,
        ..device::find("m1").unwrap()
    };
    assert_eq!(Backend::of(&cpu), Backend::Cpu { threads: 2 });
}

#[test]
fn exactness_is_ordered_from_strict_to_loose() {
    assert!(Exactness::Bitwise < Exactness::Rounding && Exactness::Rounding < Exactness::Lossy);
}

#[test]
fn a_job_that_cannot_be_trained_is_refused_with_the_way_out() {
    let refused = |change: fn(&mut Job)| {
        let mut job = job("gpt2", "4090");
        change(&mut job);
        job.check().unwrap_err().to_string()
    };
    let long = refused(|j| j.seq = 1025);
    assert!(
        long.contains("sequence length `1025`") && long.contains("1 to 1024"),
        "{long}"
    );
    assert!(refused(|j| j.seq = 0).contains("sequence length `0`"));
    assert!(refused(|j| j.batch = 0).contains("batch `0`"));
    assert!(refused(|j| j.batch = u64::MAX).contains("2^56"));
    assert!(refused(|j| j.target.host.kept = 1.0).contains("kept `1`"));
    assert!(refused(|j| j.target.host.kept = f64::NAN).contains("kept `NaN`"));
    assert!(refused(|j| j.target.host.disk_rate = 0.0).contains("disk_rate `0`"));
    assert!(refused(|j| j.target.host.link = Some(f64::INFINITY)).contains("link `inf`"));
    assert!(refused(|j| j.target.host.ram = Bytes(u64::MAX)).contains("ram"));
}

#[test]
fn memory_of_a_machine_is_counted_in_powers_of_two() {
    assert_eq!(parse_ram("ram", "128GB").unwrap(), Bytes(128 << 30));
    assert_eq!(parse_ram("ram", "128GiB").unwrap(), Bytes(128 << 30));
    assert_eq!(parse_ram("ram", "512MiB").unwrap(), Bytes(512 << 20));
    assert_eq!(parse_ram("ram", "0").unwrap(), Bytes::ZERO);
    assert!(parse_ram("ram", "much").is_err());
}

proptest! {
    #[test]
    fn no_numbers_make_a_job_panic(
        seq in any::<u64>(), batch in any::<u64>(), ram in any::<u64>(), pinned in any::<u64>(), kept in any::<f64>(),
    ) {
        let mut job = job("mixtral-8x7b", "24GB");
        (job.seq, job.batch) = (seq, batch);
        job.target.host = Host { ram: Bytes(ram), pinned: Some(Bytes(pinned)), kept, ..Host::default() };
        let _ = job.check();
        let _ = job.target.budget();
    }

    #[test]
    fn no_text_makes_the_readers_of_a_job_panic(text in ".{0,40}") {
        let _ = text.parse::<Precision>();
        let _ = parse_ram("ram", &text);
    }
}
