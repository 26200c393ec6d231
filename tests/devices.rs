//! Devices: the catalogue's laws, every spelling of a name, sizes, and files.

use memfit::error::Error;
use memfit::spec::device::{self, Device, RESERVED};
use memfit::spec::units::Bytes;
use proptest::prelude::*;

fn id(text: &str) -> String {
    device::find(text).unwrap_or_else(|e| panic!("{e}")).id
}

#[test]
fn the_catalogue_holds_every_device_once() {
    let ids: std::collections::BTreeSet<&str> = device::all().map(|d| d.id.as_str()).collect();
    assert_eq!((device::all().count(), ids.len()), (102, 102));
    let of = |vendor: &str| device::all().filter(|d| d.vendor == vendor).count();
    let makers = ["NVIDIA", "AMD", "Apple", "Intel"].map(of);
    assert_eq!(makers, [78, 11, 9, 4]);
}

#[test]
fn every_device_is_found_by_its_id_and_its_name_and_survives_its_own_file() {
    for known in device::all() {
        assert_eq!(&device::find(&known.id).unwrap(), known);
        assert_eq!(&device::find(&known.name).unwrap(), known);
        let text = known.to_toml().unwrap();
        assert_eq!(&Device::from_toml("file", &text).unwrap(), known, "{text}");
    }
}

#[test]
fn the_numbers_of_every_device_are_plausible() {
    for d in device::all() {
        assert!(d.budget() < d.memory && d.budget().gib() > 3.0, "{}", d.id);
        assert_eq!(d.reserved, RESERVED);
        assert!((5e10..1e13).contains(&d.bandwidth), "{}", d.id);
        assert!((1e9..1e12).contains(&d.link), "{}", d.id);
        assert!((1e12..3e14).contains(&d.peak.fp32), "{}", d.id);
        assert!(d.peak.bf16.is_none_or(|p| p >= d.peak.fp32), "{}", d.id);
        assert_eq!(d.vendor == "NVIDIA", d.capability.is_some(), "{}", d.id);
        assert!(!d.unified || d.link == d.bandwidth, "{}", d.id);
        assert!(!d.source.is_empty() && !d.generic);
    }
    let rtx = device::find("4090").unwrap();
    assert_eq!(
        (rtx.capability, rtx.memory.gib().mul_add(100.0, 0.5) as u64),
        (Some(89), 2352)
    );
    assert_eq!(rtx.link, 25.5e9);
}

#[test]
fn names_are_found_in_any_usual_spelling() {
    let same = [
        ("4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("rtx-4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("4090 laptop", "rtx-4090-laptop-16gb"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "rtx-4070-laptop-8gb"),
        ("a100-80gb", "a100-sxm4-80gb"),
        ("A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("a100", "a100-sxm4-40gb"),
        ("h100-80gb", "h100-sxm5-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm5-80gb"),
        ("h100", "h100-sxm5-80gb"),
        ("4060", "rtx-4060"),
        ("4060ti", "rtx-4060-ti-16gb"),
        ("4060 ti 16gb", "rtx-4060-ti-16gb"),
        ("m2 max", "apple-m2-max-96gb"),
        ("M1", "apple-m1-16gb"),
        ("mi300x", "mi300x"),
        ("3090ti", "rtx-3090-ti"),
        ("Tesla T4", "t4"),
        ("v100", "v100-sxm2-16gb"),
        ("V100 32GB", "v100-sxm2-32gb"),
        ("l40s", "l40s"),
        ("A6000", "rtx-a6000"),
        ("7900 xtx", "rx-7900-xtx"),
        ("dgx spark", "gb10-spark"),
    ];
    for (text, wanted) in same {
        assert_eq!(id(text), wanted, "{text}");
    }
}

#[test]
fn near_misses_get_a_suggestion_and_ambiguous_names_a_list() {
    for (text, near) in [
        ("rtx-4099", "rtx-409"),
        ("2080", "rtx-2080-ti"),
        ("4080ti", "2080ti"),
        ("p100", "a100"),
        ("rtx-a600", "rtx-a6000"),
    ] {
        match device::find(text) {
            Err(Error::Unknown {
                suggestion: Some(s),
                ..
            }) => assert!(s.starts_with(near), "{s}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    let message = device::find("7900").unwrap_err().to_string();
    assert!(message.contains("rx-7900-xtx, rx-7900-xt"), "{message}");
    for text in [
        "",
        "   ",
        "rtx",
        "toaster",
        "4090 4090",
        "24 XB",
        "-",
        "nan",
    ] {
        assert!(device::find(text).is_err(), "{text}");
    }
}

#[test]
fn a_decimal_size_is_any_card_sold_with_it() {
    let card = device::find("24GB").unwrap();
    assert_eq!(card.memory, Bytes(24 * (1 << 30) * 982 / 1000));
    assert_eq!((card.reserved, card.generic), (RESERVED, true));
    assert_eq!(card.bandwidth, device::find("rtx-4090").unwrap().bandwidth);
    let similar = device::find("24 gb").unwrap();
    assert_eq!(similar.memory, card.memory);
    assert_eq!(
        device::find("8GB").unwrap().peak,
        device::find("4060").unwrap().peak
    );
    assert_eq!(
        device::find("141GB").unwrap().peak,
        device::find("h200").unwrap().peak
    );
}

#[test]
fn other_sizes_are_exact_and_zero_is_one_of_them() {
    for (text, bytes) in [
        ("24GiB", 24u64 << 30),
        ("512MiB", 512 << 20),
        ("500MB", 500_000_000),
        ("1.5GiB", 3 << 29),
        ("0B", 0),
        ("0", 0),
        ("0GB", 0),
    ] {
        let device = device::find(text).unwrap();
        assert_eq!(
            (device.memory, device.reserved),
            (Bytes(bytes), Bytes::ZERO),
            "{text}"
        );
        assert!(device.generic && device.budget() == Bytes(bytes));
    }
    for text in ["-5GB", "1e9GB", "99999999999999TB", "9000000TB", "..GB"] {
        assert!(device::find(text).is_err(), "{text}");
    }
}

const MINE: &str = r#"
name = "My card"
memory = "24GiB"
bandwidth = 1e12
link = 25e9
peak = { fp32 = 8e13, bf16 = 1.6e14 }
"#;

#[test]
fn a_device_file_may_leave_out_what_has_a_default() {
    let mine = Device::from_toml("mine.toml", MINE).unwrap();
    assert_eq!((mine.memory, mine.reserved), (Bytes(24 << 30), RESERVED));
    assert_eq!((mine.id.as_str(), mine.launch), ("my-card", device::LAUNCH));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, MINE).unwrap();
    assert_eq!(device::find(path.to_str().unwrap()).unwrap(), mine);
    let missing = device::find("no/such/file.toml");
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn a_calibrated_machine_keeps_its_figures() {
    let mut mine = Device::from_toml("mine.toml", MINE).unwrap();
    (mine.threads, mine.slab) = (Some(4), Bytes(1 << 20));
    mine.efficiency.insert("matmul".into(), 0.8);
    (mine.copy_rate, mine.disk_rate) = (Some(1e10), Some(2e9));
    let again = Device::from_toml("again.toml", &mine.to_toml().unwrap()).unwrap();
    assert_eq!(again, mine);
    let kept = RESERVED + Bytes(4 << 20);
    assert_eq!(mine.budget(), mine.memory - kept);
}

#[test]
fn a_device_file_that_cannot_be_used_is_refused_by_its_field() {
    let cases = [
        ("bandwidth = 1e12", "bandwidth = 0.0", "bandwidth `0`"),
        ("bandwidth = 1e12", "bandwidth = nan", "bandwidth `NaN`"),
        ("link = 25e9", "link = -1.0", "link `-1`"),
        ("link = 25e9", "", "missing field `link`"),
        ("link = 25e9", "link = 1\nlinc = 1", "unknown field `linc`"),
        ("memory = \"24GiB\"", "memory = -1", "memory"),
        ("memory = \"24GiB\"", "memory = \"24 apples\"", "24 apples"),
        (
            "memory = \"24GiB\"",
            "memory = 9000000000000000000",
            "memory `9000000000000000000`",
        ),
        ("name = \"My card\"", "name = \"\"", "name"),
        ("fp32 = 8e13", "fp32 = inf", "peak.fp32 `inf`"),
        (
            "bf16 = 1.6e14 }",
            "bf16 = 1.6e14 }\nefficiency = { matmul = -0.5 }",
            "efficiency.matmul `-0.5`",
        ),
        ("link = 25e9", "link = 25e9\nthreads = 0", "threads `0`"),
        ("link = 25e9", "link = ", "mine.toml"),
    ];
    for (from, to, expected) in cases {
        let text = MINE.replace(from, to);
        let message = Device::from_toml("mine.toml", &text)
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{to}: {message}");
    }
}

#[test]
fn a_package_of_two_dies_is_planned_as_one_of_them() {
    let die = device::find("mi250x").unwrap();
    assert!((63.0..64.1).contains(&die.memory.gib()));
    assert!(die.name.contains("one of 2 dies"));
}

proptest! {
    #[test]
    fn no_text_makes_the_search_panic(text in ".{0,100}") {
        let _ = device::find(&text.replace(['/', '\\'], ""));
    }

    #[test]
    fn no_words_of_names_make_the_search_panic(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "rtx", "40", "90", "ti", "super", "80gb", "sxm", "sxm4", "max", "24", "GB", "GiB", ".", "-", "0", " ",
        ]), 0..12),
    ) {
        let _ = device::find(&words.concat());
    }

    #[test]
    fn no_text_makes_the_file_reader_panic(text in ".{0,200}", line in 0usize..6) {
        let _ = Device::from_toml("any", &text);
        let lines: Vec<&str> = MINE.trim().lines().collect();
        let mut damaged = lines.clone();
        damaged[line.min(lines.len() - 1)] = &text;
        let _ = Device::from_toml("any", &damaged.join("\n"));
    }
}
