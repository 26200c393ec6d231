//! The caching allocator: published rules as vectors.

use memfit::program::caching_allocator::{
    AllocatorConfig, BlockView, CachingAllocator, Counters, Event, Handle, State, replay,
};
use memfit::spec::units::Bytes;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn fresh(config: &str) -> CachingAllocator {
    CachingAllocator::new(AllocatorConfig::parse(config).unwrap(), None)
}

/// Allocated and reserved after one request.
fn first(config: &str, bytes: u64) -> (u64, u64) {
    let mut device = fresh(config);
    device.allocate(bytes).unwrap().unwrap();
    let now = device.now();
    assert_eq!(now.requested.0, bytes);
    (now.allocated.0, now.reserved.0)
}

pub(crate) fn take(device: &mut CachingAllocator, bytes: u64) -> Handle {
    device.allocate(bytes).unwrap().unwrap()
}

#[test]
fn first_requests_take_the_published_blocks_and_segments() {
    assert_eq!(first("", 1), (512, 2 * MIB));
    assert_eq!(first("", 513), (1024, 2 * MIB));
    assert_eq!(first("", MIB), (MIB, 2 * MIB));
    assert_eq!(first("", MIB + 1), (1_049_088, 20 * MIB));
    assert_eq!(first("", 10 * MIB - 512), (10 * MIB - 512, 20 * MIB));
    assert_eq!(first("", 10 * MIB), (10 * MIB, 10 * MIB));
    assert_eq!(first("", 10 * MIB + 1), (10_486_272, 12 * MIB));
    assert_eq!(first("", 13_841_204), (14 * MIB, 14 * MIB));
    assert_eq!(
        first("large_segment_size_mb:12", MIB + 1),
        (1_049_088, 12 * MIB)
    );
}

#[test]
fn what_remains_of_a_segment_is_split_off_only_above_a_mebibyte() {
    let remainder = |bytes: u64| {
        let mut device = fresh("");
        take(&mut device, bytes);
        let free = device
            .blocks()
            .into_iter()
            .filter(|b| b.state == State::Free);
        free.map(|b| b.bytes.0).collect::<Vec<_>>()
    };
    assert_eq!(remainder(MIB + 1), [19_922_432]);
    assert_eq!(remainder(10 * MIB + 1), [2_096_640]);
    assert_eq!(remainder(13_841_204), Vec::<u64>::new());
    assert_eq!(remainder(15 * MIB), Vec::<u64>::new());
    assert_eq!(remainder(15 * MIB - 512), [MIB + 512]);
    assert_eq!(remainder(1), [2 * MIB - 512]);
}

#[test]
fn the_smallest_free_block_that_serves_is_taken() {
    let mut device = fresh("");
    let held = [40, 30, 20].map(|m| take(&mut device, m * MIB));
    held.into_iter().for_each(|h| device.free(h));
    take(&mut device, 25 * MIB);
    let used: Vec<BlockView> = device
        .blocks()
        .into_iter()
        .filter(|b| b.state == State::Used)
        .collect();
    assert_eq!((used.len(), used[0].bytes.0), (1, 25 * MIB));
    assert_eq!(device.now().reserved.0, 90 * MIB);
    // 30 MiB were split: 5 are left, and serve the next.
    take(&mut device, 5 * MIB);
    assert_eq!(
        device.now(),
        Counters {
            requested: Bytes(30 * MIB),
            allocated: Bytes(30 * MIB),
            active: Bytes(30 * MIB),
            reserved: Bytes(90 * MIB)
        }
    );
}

#[test]
fn freed_neighbours_become_one_block() {
    let mut device = fresh("");
    let held: Vec<Handle> = (0..4).map(|_| take(&mut device, 5 * MIB)).collect();
    assert_eq!(device.now().reserved.0, 20 * MIB);
    for at in [0, 2, 1, 3] {
        device.free(held[at]);
    }
    device.free(held[3]);
    assert_eq!(device.blocks().len(), 1);
    take(&mut device, 20 * MIB);
    assert_eq!(device.now().reserved.0, 20 * MIB);
}

#[test]
fn blocks_beyond_the_limit_of_splitting_serve_only_requests_nearly_as_large() {
    let mut device = fresh("max_split_size_mb:64");
    let big = take(&mut device, 100 * MIB);
    device.free(big);
    take(&mut device, 30 * MIB);
    assert_eq!(
        device.now().reserved.0,
        130 * MIB,
        "a large block is not given to a small request"
    );
    take(&mut device, 70 * MIB);
    assert_eq!(
        device.now().reserved.0,
        200 * MIB,
        "nor to one 20 MiB smaller"
    );
    take(&mut device, 90 * MIB);
    assert_eq!(device.now().reserved.0, 200 * MIB);
    assert_eq!(
        device.now().allocated.0,
        200 * MIB,
        "an unsplit block is charged whole"
    );
}

#[test]
fn requests_are_rounded_to_divisions_of_powers_of_two() {
    let config = "roundup_power2_divisions:4";
    assert_eq!(first(config, 1200 * MIB).0, 1280 * MIB);
    assert_eq!(first(config, 1024 * MIB).0, 1024 * MIB);
    assert_eq!(first(config, 2048).0, 2048);
    assert_eq!(first(config, 2049).0, 2560);
    let list = "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]";
    assert_eq!(first(list, 300 * MIB + 1).0, 300 * MIB + 512);
    assert_eq!(first(list, 600 * MIB).0, 768 * MIB);
    assert_eq!(first(list, 1100 * MIB).0, 1280 * MIB);
    assert_eq!(first(list, 2100 * MIB).0, 2304 * MIB);
    assert_eq!(
        first(list, 100 * MIB).0,
        100 * MIB,
        "below the first key its value holds"
    );
}

#[test]
fn cached_segments_are_given_back_before_memory_runs_out() {
    let mut device = CachingAllocator::new(AllocatorConfig::default(), Some(Bytes(100 * MIB)));
    let first = take(&mut device, 60 * MIB);
    let second = take(&mut device, 30 * MIB);
    assert!(device.allocate(20 * MIB).unwrap().is_none());
    device.free(first);
    // 60 MiB are cached; 70 fit only once they are given back.
    take(&mut device, 70 * MIB);
    assert_eq!(
        (device.now().reserved.0, device.peak().reserved.0),
        (100 * MIB, 100 * MIB)
    );
    assert_eq!(device.retries(), 2);
    device.free(second);
    device.empty_cache();
    assert_eq!(device.now().reserved.0, 70 * MIB);
}

#[test]
fn a_split_segment_cannot_be_given_back() {
    let mut device = CachingAllocator::new(AllocatorConfig::default(), Some(Bytes(100 * MIB)));
    let whole = take(&mut device, 60 * MIB);
    device.free(whole);
    take(&mut device, 2 * MIB);
    assert_eq!(device.now().reserved.0, 60 * MIB);
    assert!(device.allocate(70 * MIB).unwrap().is_none());
    assert_eq!(device.now().reserved.0, 60 * MIB);
}

#[test]
fn expandable_segments_reserve_whole_pages_up_to_the_highest_address() {
    let config = "expandable_segments:True";
    assert_eq!(first(config, 1), (512, 2 * MIB));
    assert_eq!(first(config, 21 * MIB), (21 * MIB, 40 * MIB));
    let mut device = fresh(config);
    let held: Vec<Handle> = (0..10).map(|_| take(&mut device, 13 * MIB)).collect();
    assert_eq!(device.now().reserved.0, 140 * MIB, "130 MiB in pages of 20");
    held.into_iter().for_each(|h| device.free(h));
    take(&mut device, 150 * MIB);
    assert_eq!(device.now().reserved.0, 160 * MIB, "the free tail grows");
    device.empty_cache();
    assert_eq!(
        device.now().reserved.0,
        160 * MIB,
        "the last page is in use"
    );
}

#[test]
fn expandable_segments_release_pages_and_use_their_addresses_again() {
    let config = AllocatorConfig::parse("expandable_segments:true").unwrap();
    let mut device = CachingAllocator::new(config, Some(Bytes(200 * MIB)));
    let held: Vec<Handle> = (0..4).map(|_| take(&mut device, 50 * MIB)).collect();
    assert_eq!(device.now().reserved.0, 200 * MIB);
    device.free(held[1]);
    // Pages wholly inside 50..100 MiB are 60..100; 10 MiB stay mapped and the small pool gets a page.
    take(&mut device, 512);
    assert_eq!((device.retries(), device.now().reserved.0), (1, 162 * MIB));
    take(&mut device, 25 * MIB);
    assert_eq!(
        device.now().reserved.0,
        182 * MIB,
        "the hole is mapped again"
    );
}

#[test]
fn settings_that_cannot_be_read_name_the_setting() {
    for (text, part) in [
        ("expandable_segments", "no `:`"),
        ("expandable_segments:maybe", "True or False"),
        ("max_split_size_mb:19", "from 20"),
        ("max_split_size_mb:lots", "no whole number"),
        ("max_split_size:64", "did you mean `max_split_size_mb`"),
        ("roundup_power2_divisions:3", "power of two"),
        ("roundup_power2_divisions:[256:1", "`]`"),
        ("roundup_power2_divisions:[300:1]", "powers of two"),
        ("roundup_power2_divisions:[256]", "no `:`"),
        ("garbage_collection_threshold:2", "between 0 and 1"),
        ("large_segment_size_mb:13", "multiples"),
        ("max_split_size_mb:64,max_split_size_mb:128", "twice"),
    ] {
        let error = AllocatorConfig::parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let quiet = AllocatorConfig::parse(" garbage_collection_threshold:0.8 , ").unwrap();
    assert_eq!(quiet, AllocatorConfig::default());
}

#[test]
fn a_replay_ends_at_the_request_that_finds_no_room() {
    let alloc = |id, bytes| Event::Alloc {
        id,
        bytes: Bytes(bytes),
    };
    let events = [
        alloc(0, 6 * MIB),
        alloc(1, 0),
        Event::Free { id: 0 },
        alloc(0, 30 * MIB),
        alloc(2, 40 * MIB),
    ];
    let config = AllocatorConfig::default();
    let whole = replay(&config, None, events).unwrap();
    assert_eq!(
        (whole.out_of_memory, whole.peak.allocated.0),
        (None, 70 * MIB)
    );
    let cut = replay(&config, Some(Bytes(64 * MIB)), events).unwrap();
    assert_eq!(
        cut.out_of_memory.map(|o| (o.event, o.bytes.0)),
        Some((4, 40 * MIB))
    );
    assert_eq!(cut.end.allocated.0, 30 * MIB);
    for wrong in [
        vec![Event::Free { id: 1 }],
        vec![alloc(1, 5), alloc(1, 5)],
        vec![alloc(1, u64::MAX)],
    ] {
        assert!(replay(&config, None, wrong).is_err());
    }
}
