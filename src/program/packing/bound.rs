//! Where a branch of the exact search ends: no room in a section, or an item that hangs in vain.

use super::exact::Search;

/// What a branch that ends adds to the weight of its section grows by this each time, so that what is old counts less.
const GROWTH: f64 = 1.001;

/// A weight from which all are scaled down.
const HEAVY: f64 = 1e100;

impl Search<'_> {
    /// A section in which what is left does not fit above the least offsets of its items, or one of an item that hangs in vain.
    pub(super) fn full(&mut self, from: usize, to: usize) -> Option<usize> {
        self.find_least(from, to);
        let in_vain = |&&i: &&u32| {
            let top = self.lowest[i as usize] + self.problem.bytes[i as usize];
            self.is_free_below(i, top)
        };
        if let Some(&i) = self.hanging.iter().find(in_vain) {
            let (from, to) = self.problem.spans[i as usize];
            return (from..to).max_by_key(|&s| self.rest[s]);
        }
        let part = &self.listed[from..to];
        let problem = self.problem;
        let spans = &problem.spans;
        let start = part.first().map_or(0, |&i| spans[i as usize].0);
        let end = part.iter().map(|&i| spans[i as usize].1).max();
        self.above[start..end.unwrap_or(start)].fill(0);
        // From the highest down: what cannot start below an offset stands above it, one on the other.
        let (order, least) = (&mut self.order, &self.least);
        order.clear();
        order.extend_from_slice(part);
        order.sort_unstable_by_key(|&i| (std::cmp::Reverse(least[i as usize]), i));
        for &i in self.order.iter() {
            let (least, bytes) = (self.least[i as usize], problem.bytes[i as usize]);
            let (from, to) = spans[i as usize];
            let sections = self.above[from..to].iter_mut().zip(&mut self.low[from..to]);
            for (place, (above, low)) in sections.enumerate() {
                *above += bytes;
                *low = least;
                if least.saturating_add(*above) > self.capacity {
                    return Some(from + place);
                }
            }
        }
        None
    }

    /// Finds the least offset that each item of a part can still have, and those that hang, which will rest on one to come.
    fn find_least(&mut self, from: usize, to: usize) {
        self.hanging.clear();
        for place in from..to {
            let i = self.listed[place];
            self.least[i as usize] = match self.hangs(i) {
                true => {
                    self.hanging.push(i);
                    u64::MAX
                }
                false => self.lowest[i as usize],
            };
        }
        let mut moves = !self.hanging.is_empty();
        while moves {
            moves = false;
            for &i in &self.hanging {
                let open = self.problem.meets[i as usize].iter();
                let tops = open.filter(|&&j| self.is_open(j)).map(|&j| {
                    let bytes = self.problem.bytes[j as usize];
                    self.least[j as usize].saturating_add(bytes)
                });
                let least = tops.min().unwrap_or(u64::MAX);
                if least < self.least[i as usize] {
                    self.least[i as usize] = least;
                    moves = true;
                }
            }
        }
    }

    /// Remembers that a branch ended in `section`.
    pub(super) fn blame(&mut self, section: usize) {
        self.weight[section] += self.blame;
        self.blame *= GROWTH;
        if self.blame > HEAVY {
            self.weight.iter_mut().for_each(|w| *w /= HEAVY);
            self.blame /= HEAVY;
        }
    }
}
