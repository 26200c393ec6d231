//! Packing below a capacity by depth-first search over canonical packings, with the kind of rules of MiniMalloc (Moffitt 2023,
//! doi 10.1145/3623278.3624752).
//!
//! Of all packings below the capacity look for one whose offsets sum to least. In it every item rests on another or on the ground,
//! and none could lie lower. So an item that nothing to come can lie below either lies at the lowest offset that those placed
//! leave it, or rests on one that is still to come: it *hangs*. These are the two branches. A branch ends where what is left of
//! some section of time does not fit between the lowest offset it can start at and the capacity, or where an item that hangs
//! could be let down without meeting anything.

use super::Item;
use crate::graph::random::Key;

/// What a search ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// An offset for every item.
    Offsets(Vec<u64>),
    /// There is no packing below the capacity.
    Impossible,
    /// The nodes ran out first.
    Unknown,
}

/// Items with what a search of any capacity and order needs of them.
pub(super) struct Problem<'a> {
    items: &'a [Item],
    /// The items that live together with each.
    meets: Vec<Vec<u32>>,
    /// The sections each lives in; a section is the time between two changes.
    spans: Vec<(usize, usize)>,
    /// The sum of sizes in each section.
    loads: Vec<u64>,
    /// All items by start of life.
    starts: Vec<u32>,
}

/// What is preferred among items that can lie equally low.
const PREFERENCES: u64 = 3;

/// Orders of a round: each preference with the next decision taken at the lowest item of all, or in the section with least room
/// to spare.
pub(super) const ORDERS: u64 = 2 * PREFERENCES;

impl<'a> Problem<'a> {
    pub(super) fn new(items: &'a [Item]) -> Problem<'a> {
        let mut times: Vec<u64> = items.iter().flat_map(|i| [i.from, i.to]).collect();
        times.sort_unstable();
        times.dedup();
        let at = |time: u64| times.partition_point(|&t| t < time);
        let spans: Vec<_> = items.iter().map(|i| (at(i.from), at(i.to))).collect();
        let mut loads = vec![0; times.len()];
        for (item, &(from, to)) in items.iter().zip(&spans) {
            loads[from..to].iter_mut().for_each(|l| *l += item.bytes);
        }
        let all = 0..items.len() as u32;
        let meeting = |i: u32| -> Vec<u32> {
            let item = &items[i as usize];
            let meets = |j: &u32| *j != i && items[*j as usize].meets(item);
            all.clone().filter(meets).collect()
        };
        let mut starts: Vec<u32> = all.clone().collect();
        starts.sort_by_key(|&i| (items[i as usize].from, i));
        Problem {
            items,
            meets: all.clone().map(meeting).collect(),
            spans,
            loads,
            starts,
        }
    }

    /// Looks for a packing below `capacity`, visiting at most `limit` nodes, in one of [`ORDERS`] orders, shaken after round 0.
    pub(super) fn search(&self, capacity: u64, order: u64, round: u64, limit: u64) -> Found {
        let count = self.items.len();
        let mut search = Search {
            problem: self,
            capacity,
            tightest: order >= PREFERENCES,
            rank: self.rank(order % PREFERENCES, round),
            lowest: vec![0; count],
            state: vec![State::Free; count],
            rest: self.loads.clone(),
            least: vec![0; count],
            low: vec![0; self.loads.len()],
            above: vec![0; self.loads.len()],
            changes: Vec::new(),
            raised: Vec::new(),
            nodes: limit,
        };
        match search.group(&self.starts) {
            Some(true) => Found::Offsets(search.lowest),
            Some(false) => Found::Impossible,
            None => Found::Unknown,
        }
    }

    /// The rank of each item: by load around it, by life, or by area, the largest first; shaken by up to a half in later rounds.
    fn rank(&self, preference: u64, round: u64) -> Vec<u32> {
        let key = |i: usize| {
            let (item, (from, to)) = (&self.items[i], self.spans[i]);
            let life = u128::from(item.to - item.from);
            let first = match preference {
                0 => self.loads[from..to]
                    .iter()
                    .copied()
                    .max()
                    .unwrap_or(0)
                    .into(),
                1 => life,
                _ => life * u128::from(item.bytes),
            };
            let shake = match round {
                0 => 0,
                _ => Key(round).bits(i as u64) % 512,
            };
            let second = match preference {
                0 => life,
                _ => life * u128::from(item.bytes),
            };
            (first * u128::from(1024 + shake), second)
        };
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(key(i)), i));
        let mut rank = vec![0; order.len()];
        for (place, i) in order.into_iter().enumerate() {
            rank[i] = place as u32;
        }
        rank
    }

    fn bytes(&self, i: u32) -> u64 {
        self.items[i as usize].bytes
    }
}

/// What has been decided about an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing.
    Free,
    /// Not to lie at this offset: it hangs until something raises it.
    Above(u64),
    /// It lies at its lowest offset.
    Placed,
}

/// A decision that can be taken back.
struct Change {
    item: u32,
    before: State,
    /// Items that were raised before it.
    raised: usize,
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    capacity: u64,
    tightest: bool,
    rank: Vec<u32>,
    /// The lowest offset that what is placed leaves each item.
    lowest: Vec<u64>,
    state: Vec<State>,
    /// Bytes of each section that are not placed.
    rest: Vec<u64>,
    /// The least offset each item can still have.
    least: Vec<u64>,
    /// The least of them in each section.
    low: Vec<u64>,
    /// Bytes that stand above an offset in each section.
    above: Vec<u64>,
    changes: Vec<Change>,
    /// Items that were raised, with where they were.
    raised: Vec<(u32, u64)>,
    /// Nodes left.
    nodes: u64,
}

impl Search<'_> {
    fn is_open(&self, i: u32) -> bool {
        self.state[i as usize] != State::Placed
    }

    fn hangs(&self, i: u32) -> bool {
        self.state[i as usize] == State::Above(self.lowest[i as usize])
    }

    /// Places all of `items` (by start of life) that are open; parts whose lives do not touch do not matter to each other.
    /// `None` where the nodes run out.
    fn group(&mut self, items: &[u32]) -> Option<bool> {
        let mut parts: Vec<Vec<u32>> = Vec::new();
        let mut end = 0;
        for &i in items.iter().filter(|&&i| self.is_open(i)) {
            let (from, to) = self.problem.spans[i as usize];
            match parts.last_mut() {
                Some(part) if from < end => part.push(i),
                _ => parts.push(vec![i]),
            }
            end = end.max(to);
        }
        if !parts.iter().all(|part| self.has_room(part)) {
            return Some(false);
        }
        parts.sort_by_key(Vec::len);
        let mark = self.changes.len();
        for part in parts {
            match self.part(&part) {
                Some(true) => {}
                Some(false) => {
                    self.undo(mark);
                    return Some(false);
                }
                None => return None,
            }
        }
        Some(true)
    }

    /// Places the items of one part for which there is room.
    fn part(&mut self, part: &[u32]) -> Option<bool> {
        let Some(i) = self.next(part) else {
            return Some(false);
        };
        self.nodes = self.nodes.checked_sub(1)?;
        let top = self.lowest[i as usize] + self.problem.bytes(i);
        let harmless = self.is_free_below(i, top);
        let mark = self.changes.len();
        for place in [true, false] {
            match place {
                true => self.place(i, top),
                // Where nothing can come to lie below its top, placing it is as good as anything else.
                false if harmless => return Some(false),
                false => self.change(i, State::Above(self.lowest[i as usize])),
            }
            match self.group(part) {
                Some(false) => self.undo(mark),
                other => return other,
            }
        }
        Some(false)
    }

    /// Whether no open item that meets `i` can still come to lie below `top`.
    fn is_free_below(&self, i: u32, top: u64) -> bool {
        let stays = |&j: &u32| !self.is_open(j) || self.least[j as usize] >= top;
        self.problem.meets[i as usize].iter().all(stays)
    }

    /// The item to decide about: one that does not hang, and below which nothing open fits.
    fn next(&self, part: &[u32]) -> Option<u32> {
        let free = || part.iter().copied().filter(|&i| !self.hangs(i));
        let low = |i: u32| (self.lowest[i as usize], self.rank[i as usize]);
        let mut chosen = match self.tightest {
            true => self.tightest(part)?,
            false => free().min_by_key(|&i| low(i))?,
        };
        loop {
            let offset = self.lowest[chosen as usize];
            let fits = |j: u32| self.lowest[j as usize] + self.problem.bytes(j) <= offset;
            let below = self.problem.meets[chosen as usize].iter().copied();
            let below = below.filter(|&j| self.is_open(j) && !self.hangs(j) && fits(j));
            match below.min_by_key(|&j| low(j)) {
                Some(next) => chosen = next,
                None => return Some(chosen),
            }
        }
    }

    /// The lowest item that does not hang in the section with least room to spare that has one.
    fn tightest(&self, part: &[u32]) -> Option<u32> {
        let room = |section: usize| {
            let low = self.low[section];
            (self.capacity - low - self.rest[section], low, section)
        };
        let free = part.iter().copied().filter(|&i| !self.hangs(i));
        let spared = free.map(|i| {
            let (from, to) = self.problem.spans[i as usize];
            let least = (from..to).map(room).min();
            (least, self.lowest[i as usize], self.rank[i as usize], i)
        });
        spared.min().map(|(_, _, _, i)| i)
    }

    fn change(&mut self, i: u32, state: State) {
        let before = std::mem::replace(&mut self.state[i as usize], state);
        self.changes.push(Change {
            item: i,
            before,
            raised: self.raised.len(),
        });
    }

    /// Places an item at its lowest offset; open ones that meet it lie above `top` from now on.
    fn place(&mut self, i: u32, top: u64) {
        self.change(i, State::Placed);
        for &j in &self.problem.meets[i as usize] {
            let low = &mut self.lowest[j as usize];
            if self.state[j as usize] != State::Placed && *low < top {
                self.raised.push((j, *low));
                *low = top;
            }
        }
        let (from, to) = self.problem.spans[i as usize];
        let bytes = self.problem.bytes(i);
        self.rest[from..to].iter_mut().for_each(|r| *r -= bytes);
    }

    /// Takes back all decisions but the first `mark`.
    fn undo(&mut self, mark: usize) {
        while self.changes.len() > mark {
            let Some(change) = self.changes.pop() else {
                return;
            };
            let i = change.item as usize;
            for (j, low) in self.raised.drain(change.raised..).rev() {
                self.lowest[j as usize] = low;
            }
            if self.state[i] == State::Placed {
                let (from, to) = self.problem.spans[i];
                let bytes = self.problem.items[i].bytes;
                self.rest[from..to].iter_mut().for_each(|r| *r += bytes);
            }
            self.state[i] = change.before;
        }
    }

    /// Whether what is left of each section fits above the least offset of its items, and no item hangs in vain.
    fn has_room(&mut self, part: &[u32]) -> bool {
        let hanging = self.bound(part);
        let in_vain = |&i: &u32| {
            let top = self.lowest[i as usize] + self.problem.bytes(i);
            self.is_free_below(i, top)
        };
        if hanging.iter().any(in_vain) {
            return false;
        }
        let spans = &self.problem.spans;
        let from = part.first().map_or(0, |&i| spans[i as usize].0);
        let to = part.iter().map(|&i| spans[i as usize].1).max().unwrap_or(0);
        self.above[from..to].fill(0);
        // From the highest down: what cannot start below an offset stands above it, one on the other.
        let mut order = part.to_vec();
        order.sort_unstable_by_key(|&i| (std::cmp::Reverse(self.least[i as usize]), i));
        for i in order {
            let (least, bytes) = (self.least[i as usize], self.problem.bytes(i));
            let (from, to) = spans[i as usize];
            for (above, low) in self.above[from..to].iter_mut().zip(&mut self.low[from..to]) {
                *above += bytes;
                *low = least;
                if least.saturating_add(*above) > self.capacity {
                    return false;
                }
            }
        }
        true
    }

    /// Finds the least offset that each item of `part` can still have; returns those that hang, which will rest on one to come.
    fn bound(&mut self, part: &[u32]) -> Vec<u32> {
        let mut hanging = Vec::new();
        for &i in part {
            let hangs = self.hangs(i);
            self.least[i as usize] = match hangs {
                true => u64::MAX,
                false => self.lowest[i as usize],
            };
            if hangs {
                hanging.push(i);
            }
        }
        let mut moves = true;
        while moves {
            moves = false;
            for &i in &hanging {
                let open = self.problem.meets[i as usize].iter();
                let tops = open
                    .filter(|&&j| self.is_open(j))
                    .map(|&j| self.least[j as usize].saturating_add(self.problem.bytes(j)));
                let least = tops.min().unwrap_or(u64::MAX);
                if least < self.least[i as usize] {
                    self.least[i as usize] = least;
                    moves = true;
                }
            }
        }
        hanging
    }
}
