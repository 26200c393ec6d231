//! The caching allocator: laws over random requests, and a slow allocator beside it.

use std::collections::BTreeMap;

use memfit::program::caching_allocator::{AllocatorConfig, CachingAllocator, Handle, State};
use memfit::spec::units::Bytes;
use proptest::prelude::*;

use crate::caching_allocator::{MIB, fresh, take};

/// What holds of any allocator at any time.
fn check(device: &CachingAllocator) {
    let (now, peak, blocks) = (device.now(), device.peak(), device.blocks());
    let sum = |state: State| {
        blocks
            .iter()
            .filter(|b| b.state == state)
            .map(|b| b.bytes)
            .sum::<Bytes>()
    };
    assert_eq!(now.allocated, sum(State::Used));
    assert_eq!(now.reserved, sum(State::Used) + sum(State::Free));
    assert!(
        now.requested <= now.allocated && now.allocated <= now.active && now.active <= now.reserved
    );
    assert!(
        peak.requested >= now.requested
            && peak.allocated >= now.allocated
            && peak.reserved >= now.reserved
    );
    for pair in blocks.windows(2) {
        let end = pair[0].address + pair[0].bytes.0;
        if pair[0].segment == pair[1].segment {
            assert_eq!(end, pair[1].address, "no gap, no overlap");
            assert!(
                pair[0].state == State::Used || pair[0].state != pair[1].state,
                "neighbours are joined"
            );
        } else {
            assert!(end <= pair[1].segment);
        }
    }
}

/// A size out of all classes.
fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        1u64..4096,
        1u64..2 * MIB,
        MIB..12 * MIB,
        8 * MIB..64 * MIB,
        60 * MIB..300 * MIB
    ]
}

/// Requests, each with what is freed before it: a position among the living.
fn requests() -> impl Strategy<Value = Vec<(u64, Option<prop::sample::Index>)>> {
    prop::collection::vec((sizes(), any::<Option<prop::sample::Index>>()), 1..120)
}

const CONFIGS: [&str; 6] = [
    "",
    "expandable_segments:True",
    "max_split_size_mb:32",
    "roundup_power2_divisions:8",
    "max_split_size_mb:20,max_non_split_rounding_mb:40,large_segment_size_mb:2",
    "expandable_segments:True,roundup_power2_divisions:4,large_segment_size_mb:12",
];

/// A block: its size, and who has it.
type Piece = (u64, Option<usize>);

/// The default rules once more, slowly: segments as lists of (size, used), searched from the first.
#[derive(Default)]
struct Slow {
    segments: Vec<(bool, Vec<Piece>)>,
}

impl Slow {
    fn allocate(&mut self, id: usize, bytes: u64) {
        let size = bytes.max(512).div_ceil(512) * 512;
        let small = size <= MIB;
        let mut best: Option<(u64, usize, usize)> = None;
        for (s, (kind, blocks)) in self.segments.iter().enumerate() {
            for (b, (have, owner)) in blocks.iter().enumerate() {
                let serves = *kind == small && owner.is_none() && *have >= size;
                if serves && best.is_none_or(|(least, ..)| *have < least) {
                    best = Some((*have, s, b));
                }
            }
        }
        let (have, s, b) = best.unwrap_or_else(|| {
            let segment = match size {
                _ if small => 2 * MIB,
                _ if size < 10 * MIB => 20 * MIB,
                _ => size.div_ceil(2 * MIB) * 2 * MIB,
            };
            self.segments.push((small, vec![(segment, None)]));
            (segment, self.segments.len() - 1, 0)
        });
        let blocks = &mut self.segments[s].1;
        let rest = have - size;
        if (small && rest >= 512) || rest > MIB {
            blocks[b] = (size, Some(id));
            blocks.insert(b + 1, (rest, None));
        } else {
            blocks[b].1 = Some(id);
        }
    }

    fn free(&mut self, id: usize) {
        for (_, blocks) in &mut self.segments {
            blocks
                .iter_mut()
                .filter(|b| b.1 == Some(id))
                .for_each(|b| b.1 = None);
            while let Some(at) = blocks
                .windows(2)
                .position(|p| p[0].1.is_none() && p[1].1.is_none())
            {
                blocks[at].0 += blocks.remove(at + 1).0;
            }
        }
    }

    fn counters(&self) -> (u64, u64) {
        let blocks = || self.segments.iter().flat_map(|(_, blocks)| blocks);
        let allocated = blocks().filter(|b| b.1.is_some()).map(|b| b.0).sum();
        (allocated, blocks().map(|b| b.0).sum())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn blocks_never_overlap_and_nothing_is_lost(
        requests in requests(),
        config in prop::sample::select(&CONFIGS[..]),
        capacity in prop::option::of((1u64..1000).prop_map(|m| Bytes(m * MIB))),
    ) {
        let mut device = CachingAllocator::new(AllocatorConfig::parse(config).unwrap(), capacity);
        let mut alive = Vec::new();
        let mut peak = device.peak();
        for (bytes, freed) in requests {
            if let (Some(index), false) = (freed, alive.is_empty()) {
                device.free(alive.swap_remove(index.index(alive.len())));
                check(&device);
            }
            alive.extend(device.allocate(bytes).unwrap());
            check(&device);
            prop_assert!(device.now().reserved.0 <= capacity.map_or(u64::MAX, |c| c.0));
            let next = device.peak();
            prop_assert!(next.allocated >= peak.allocated && next.reserved >= peak.reserved);
            peak = next;
        }
        alive.into_iter().for_each(|h| device.free(h));
        check(&device);
        prop_assert_eq!((device.now().allocated, device.now().requested), (Bytes(0), Bytes(0)));
        if !config.contains("expandable") {
            let mut segments: BTreeMap<u64, usize> = BTreeMap::new();
            device.blocks().iter().for_each(|b| *segments.entry(b.segment).or_default() += 1);
            prop_assert!(segments.values().all(|count| *count == 1));
        }
        device.empty_cache();
        prop_assert_eq!(device.now().reserved, Bytes(0));
    }

    #[test]
    fn the_slow_allocator_has_the_same_counters(requests in requests()) {
        let mut device = fresh("");
        let mut slow = Slow::default();
        let mut alive: Vec<(usize, Handle)> = Vec::new();
        for (id, (bytes, freed)) in requests.into_iter().enumerate() {
            if let (Some(index), false) = (freed, alive.is_empty()) {
                let (id, handle) = alive.swap_remove(index.index(alive.len()));
                device.free(handle);
                slow.free(id);
            }
            alive.push((id, take(&mut device, bytes)));
            slow.allocate(id, bytes);
            let now = device.now();
            prop_assert_eq!((now.allocated.0, now.reserved.0), slow.counters());
        }
    }

    #[test]
    fn any_setting_is_read_or_refused(text in "[a-z_0-9:,\\[\\]> ]{0,40}") {
        let _ = AllocatorConfig::parse(&text);
        let _ = AllocatorConfig::parse(&format!("roundup_power2_divisions:{text}"));
    }
}
