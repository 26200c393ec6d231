//! Counts of layers, on instances small enough that every plan of the formulation can be looked at.

use memfit::graph::Stream;
use memfit::machine::sim::demand::Demand;
use memfit::search::layers::{Column, Counts, Kind, Layers, Room};
use memfit::search::sample::Taken;
use memfit::spec::job::{Budget, PerPlace, Place};
use memfit::spec::units::Bytes;
use proptest::prelude::*;

const GIB: f64 = (1u64 << 30) as f64;

fn demand(compute: f64, copies: f64) -> Demand {
    let mut demand = Demand::default();
    demand.0[Stream::Compute as usize] = compute;
    demand.0[Stream::ToHost as usize] = copies;
    demand
}

fn on_device(gib: f64) -> PerPlace<f64> {
    PerPlace {
        gpu: gib * GIB,
        ..PerPlace::default()
    }
}

/// A kind whose layers hold `gib`, compute for `seconds` in each half and move for as long as `copies`.
fn kind(gib: f64, seconds: f64, copies: f64, strain: f64) -> Kind {
    Kind {
        takes: Taken {
            peak: on_device(gib),
            forward: demand(seconds, copies),
            later: demand(2.0 * seconds, copies),
            spent: [seconds.max(copies), (2.0 * seconds).max(copies)],
        },
        floor: 0.25 * gib * GIB,
        strain: [strain, strain],
    }
}

/// What becomes of a value of `gib`: dropped for `seconds` of work, or sent away for `copies` each way.
fn fates(subject: usize, layers: u64, (gib, seconds, copies): (f64, f64, f64)) -> [Column; 2] {
    let column = |forward: Demand, later: Demand, flight: f64| Column {
        takes: Taken {
            peak: on_device(-gib),
            forward,
            later,
            ..Taken::default()
        },
        flight: flight * gib * GIB / layers as f64,
        most: layers,
        subject,
    };
    [
        column(Demand::default(), demand(seconds, 0.0), 1.0),
        column(demand(0.0, copies), demand(0.0, copies), 2.0),
    ]
}

type Values = Vec<(f64, f64, f64)>;

fn instance() -> impl Strategy<Value = (Layers, f64)> {
    let value = (0.1..2.0f64, 0.01..1.0f64, 0.01..1.0f64);
    let values = prop::collection::vec(value, 1..=3);
    (2..=3u64, values, any::<bool>(), 0.2..1.2f64, 0.3..1.0f64).prop_map(
        |(count, values, away, share, strain): (u64, Values, bool, f64, f64)| {
            let held: f64 = values.iter().map(|v| v.0).sum();
            let mut kinds = vec![kind(held, 1.0, if away { 1.5 } else { 0.0 }, strain)];
            kinds.extend(away.then(|| kind(held + 3.0, 1.0, 0.0, 1.0)));
            let columns = values.iter().enumerate();
            let columns = columns.flat_map(|(subject, &value)| fates(subject, count, value));
            let layers = Layers {
                count,
                rest: Taken {
                    peak: on_device(0.5),
                    ..Taken::default()
                },
                floor: 0.5 * GIB,
                kinds,
                columns: columns.collect(),
            };
            let most = (0.5 + count as f64 * (held + if away { 3.0 } else { 0.0 })) * GIB;
            (layers, most * share)
        },
    )
}

/// Every way to give values of `layers` layers their fates: for each value, how many are dropped and how many sent away.
fn ways(values: usize, layers: u64) -> Vec<Vec<f64>> {
    let mut all = vec![Vec::new()];
    for _ in 0..values {
        let mut longer = Vec::new();
        for so_far in &all {
            for dropped in 0..=layers {
                for sent in 0..=layers - dropped {
                    let mut next: Vec<f64> = so_far.clone();
                    next.extend([dropped as f64, sent as f64]);
                    longer.push(next);
                }
            }
        }
        all = longer;
    }
    all
}

/// Seconds of the fastest of all plans within `budget`.
fn brute_force(layers: &Layers, budget: &Budget) -> Option<f64> {
    let values = layers.columns.len() / 2;
    let mut best: Option<f64> = None;
    for second in 0..layers.count.min(if layers.kinds.len() > 1 { 3 } else { 1 }) {
        let firsts = ways(values, layers.count - second);
        let seconds = ways(values, second);
        for (first, other) in firsts
            .iter()
            .flat_map(|f| seconds.iter().map(move |s| (f, s)))
        {
            let mut kinds = vec![(layers.count - second) as f64];
            let mut columns = vec![first.clone()];
            if layers.kinds.len() > 1 {
                kinds.push(second as f64);
                columns.push(other.clone());
            }
            let counts = layers.timed(Counts {
                kinds,
                columns,
                seconds: 0.0,
            });
            let sent = |column: usize| -> f64 { counts.columns.iter().map(|c| c[column]).sum() };
            let most = (0..layers.columns.len()).all(|c| sent(c) <= layers.columns[c].most as f64);
            if most && layers.excess(&counts, budget) <= 0.0 {
                best = Some(best.map_or(counts.seconds, |b: f64| b.min(counts.seconds)));
            }
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What is solved for is what looking at every plan finds, but for the gap at which the search stops.
    #[test]
    fn the_solved_counts_are_the_fastest_of_all((layers, most) in instance()) {
        let budget = Budget { rows: vec![(vec![Place::Gpu], Bytes(most as u64))] };
        let found = layers.fastest(&Room::all(&budget)).map(|counts| counts.seconds);
        let best = brute_force(&layers, &budget);
        prop_assert_eq!(found.is_some(), best.is_some(), "{:?} beside {:?}", found, best);
        if let (Some(found), Some(best)) = (found, best) {
            prop_assert!(found <= best * (1.0 + 2e-4), "{} beside {}", found, best);
            prop_assert!(found >= best * (1.0 - 1e-9), "{} below {}", found, best);
        }
    }

    /// The relaxed optimum is below every plan's, and more room never takes longer.
    #[test]
    fn relaxed_counts_bound_whole_ones((layers, most) in instance()) {
        let budget = |most: f64| Budget { rows: vec![(vec![Place::Gpu], Bytes(most as u64))] };
        let (tight, wide) = (budget(most), budget(most * 1.3));
        let seconds = |room: &Room| layers.least(room).map(|least| least.seconds);
            let least = seconds(&Room::all(&tight));
        if let Some(best) = brute_force(&layers, &tight) {
            prop_assert!(least.unwrap() <= best * (1.0 + 1e-9));
            let wider = seconds(&Room::all(&wide)).unwrap();
            prop_assert!(wider <= least.unwrap() * (1.0 + 1e-9));
        }
    }
}
