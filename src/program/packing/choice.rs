//! Which item the exact search decides about next: one of a section that leaves little choice.

use super::exact::{Search, Section};

impl Search<'_> {
    /// The item to decide about: one that does not hang, and below which nothing open fits.
    pub(super) fn next(&mut self, from: usize, to: usize) -> Option<u32> {
        let mut chosen = match self.at_a_floor(from, to) {
            Some(item) => item,
            // Whatever can lie at that floor hangs.
            None => {
                let part = self.listed[from..to].iter().copied();
                part.filter(|&i| !self.hangs(i))
                    .min_by_key(|&i| self.preferred(i))?
            }
        };
        loop {
            let offset = self.lowest[chosen as usize];
            let fits = |j: u32| {
                let top = self.lowest[j as usize] + self.problem.bytes[j as usize];
                top <= offset
            };
            let below = self.problem.meets[chosen as usize].iter().copied();
            let below = below.filter(|&j| self.is_open(j) && !self.hangs(j) && fits(j));
            match below.min_by_key(|&j| self.preferred(j)) {
                Some(next) => chosen = next,
                None => return Some(chosen),
            }
        }
    }

    /// The lower an item can lie the better, then by rank.
    fn preferred(&self, i: u32) -> (u64, u32) {
        (self.lowest[i as usize], self.rank[i as usize])
    }

    /// Whether `i` at its least offset leaves room above it for all that is left of `section`.
    fn is_candidate(&self, i: u32, section: usize) -> bool {
        self.least[i as usize].saturating_add(self.rest[section]) <= self.capacity
    }

    /// The preferred item for the floor of the section chosen.
    fn at_a_floor(&mut self, from: usize, to: usize) -> Option<u32> {
        let section = self.section(from, to)?;
        let free = |&i: &u32| self.is_open(i) && !self.hangs(i) && self.is_candidate(i, section);
        let items = self.problem.sections[section].iter().copied().filter(free);
        items.min_by_key(|&i| self.preferred(i))
    }

    /// The section whose floor is decided about.
    fn section(&mut self, from: usize, to: usize) -> Option<usize> {
        let (problem, part) = (self.problem, from..to);
        let spans = |place: usize| problem.spans[self.listed[place] as usize];
        let start = spans(from).0;
        let end = part.clone().map(|p| spans(p).1).max()?;
        self.few[start..end].fill(0);
        for place in part {
            let i = self.listed[place];
            let (from, to) = problem.spans[i as usize];
            for section in from..to {
                let counts = self.is_candidate(i, section);
                self.few[section] += u32::from(counts);
            }
        }
        let open = (start..end).filter(|&s| self.rest[s] > 0);
        open.min_by(|&a, &b| {
            self.precedence(a)
                .partial_cmp(&self.precedence(b))
                .unwrap_or(std::cmp::Ordering::Equal)
        })
    }

    /// The smaller, the sooner a section is decided about.
    fn precedence(&self, section: usize) -> (f64, u64, u64) {
        let few = self.few[section];
        let low = self.low[section];
        let room = self.capacity - low - self.rest[section];
        match self.section {
            Section::Tightest => (0.0, room, low),
            Section::Heaviest => (f64::from(few) / self.weight[section], room, low),
            Section::Fewest => (f64::from(few), low, room),
            Section::Lowest => (0.0, low, few.into()),
        }
    }
}
