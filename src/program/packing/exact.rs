//! Packing below a capacity by depth-first search over canonical packings, with the kind of rules of MiniMalloc (Moffitt 2023,
//! doi 10.1145/3623278.3624752).
//!
//! Of all packings below the capacity look for one whose offsets sum to least. In it every item rests on another or on the ground,
//! and none could lie lower. So an item that nothing to come can lie below either lies at the lowest offset that those placed
//! leave it, or rests on one that is still to come: it *hangs*. These are the two branches. A branch ends where what is left of
//! some section of time does not fit between the lowest offset it can start at and the capacity, or where an item that hangs
//! could be let down without meeting anything.
//!
//! Parts of what is left whose lives do not touch do not matter to each other: where one cannot be placed, the search goes back
//! to before they were parted. Sections in which branches ended weigh more when the next item is chosen, in later rounds too.

use super::problem::{PREFERENCES, Problem};

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

/// The section whose floor is decided about first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    /// The one with least room to spare.
    Tightest,
    /// The one with fewest items for its floor, by its weight.
    Heaviest,
    /// The one with fewest items for its floor.
    Fewest,
    /// The one with the lowest floor.
    Lowest,
}

/// All of them, in the order in which they are tried.
const SECTIONS: [Section; 4] = [
    Section::Heaviest,
    Section::Tightest,
    Section::Lowest,
    Section::Fewest,
];

/// Orders of a round: each choice of a section with each preference among its items.
pub(super) const ORDERS: u64 = SECTIONS.len() as u64 * PREFERENCES;

/// A decision that can be taken back.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// An item was placed.
    Placed(u32),
    /// An item was raised from this offset.
    Raised(u32, u64),
    /// An item hangs, where it did not or at this offset.
    Hung(u32, u64),
}

/// Items that are to be placed, which nothing else that is left meets.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Where they stand among the listed.
    from: usize,
    to: usize,
    /// How many choices there were before it; where it cannot be placed, the last of them was wrong.
    above: usize,
    /// The part to be placed after it.
    next: Option<u32>,
}

/// An item that was placed, and could hang instead.
#[derive(Debug, Clone, Copy)]
struct Choice {
    item: u32,
    part: Part,
    /// Nothing can come to lie below its top: placing it is as good as anything else.
    harmless: bool,
    /// What there was before it.
    changes: usize,
    parts: usize,
    listed: usize,
}

/// A search in one order, which later rounds continue with what was learned.
pub(super) struct Search<'a> {
    pub(super) problem: &'a Problem,
    pub(super) capacity: u64,
    pub(super) section: Section,
    preference: u64,
    round: u64,
    pub(super) rank: Vec<u32>,
    /// The lowest offset that what is placed leaves each item.
    pub(super) lowest: Vec<u64>,
    is_placed: Vec<bool>,
    /// The offset above which each item that hangs is to lie.
    hung: Vec<u64>,
    /// Bytes of each section that are not placed.
    pub(super) rest: Vec<u64>,
    /// The least offset each item can still have.
    pub(super) least: Vec<u64>,
    /// The least of them in each section.
    pub(super) low: Vec<u64>,
    /// Bytes that stand above an offset in each section.
    pub(super) above: Vec<u64>,
    /// Items that can lie at the floor of each section.
    pub(super) few: Vec<u32>,
    /// How much a section has to do with branches that ended.
    pub(super) weight: Vec<f64>,
    /// What the next branch that ends adds to one.
    pub(super) blame: f64,
    changes: Vec<Change>,
    choices: Vec<Choice>,
    parts: Vec<Part>,
    pub(super) listed: Vec<u32>,
    /// Items of the part looked at that hang, and all of it by least offset.
    pub(super) hanging: Vec<u32>,
    pub(super) order: Vec<u32>,
}

/// An item that does not hang.
const NOT: u64 = u64::MAX;

impl<'a> Search<'a> {
    /// A search below `capacity` in one of [`ORDERS`] orders.
    pub(super) fn new(problem: &'a Problem, capacity: u64, order: u64) -> Search<'a> {
        let (items, sections) = (problem.len(), problem.loads.len());
        Search {
            problem,
            capacity,
            section: SECTIONS[(order / PREFERENCES) as usize % SECTIONS.len()],
            preference: order % PREFERENCES,
            round: 0,
            rank: Vec::new(),
            lowest: vec![0; items],
            is_placed: vec![false; items],
            hung: vec![NOT; items],
            rest: problem.loads.clone(),
            least: vec![0; items],
            low: vec![0; sections],
            above: vec![0; sections],
            few: vec![0; sections],
            weight: vec![1.0; sections],
            blame: 1.0,
            changes: Vec::new(),
            choices: Vec::new(),
            parts: Vec::new(),
            listed: Vec::new(),
            hanging: Vec::new(),
            order: Vec::new(),
        }
    }

    /// Searches anew, visiting at most `nodes` nodes, in an order that is shaken after the first round.
    pub(super) fn run(&mut self, nodes: u64) -> Found {
        self.rank = self.problem.rank(self.preference, self.round);
        self.round += 1;
        self.undo(0);
        self.choices.clear();
        self.parts.clear();
        self.listed.clear();
        self.listed.extend(&self.problem.starts);
        let mut left = nodes;
        let mut now = match self.split(0, self.listed.len(), 0, None) {
            Some(first) => first,
            None => return Found::Impossible,
        };
        while let Some(index) = now {
            if left == 0 {
                return Found::Unknown;
            }
            left -= 1;
            let part = self.parts[index as usize];
            let next = match self.next(part.from, part.to) {
                Some(item) => self.place_or_hang(item, part),
                None => self.back(part.above),
            };
            now = match next {
                Some(next) => next,
                None => return Found::Impossible,
            };
        }
        Found::Offsets(self.lowest.clone())
    }

    /// Places `item`, or where that cannot be goes back; the part to go on with, or `None` where nothing is left to be tried.
    fn place_or_hang(&mut self, item: u32, part: Part) -> Option<Option<u32>> {
        let top = self.lowest[item as usize] + self.problem.bytes[item as usize];
        self.choices.push(Choice {
            item,
            part,
            harmless: self.is_free_below(item, top),
            changes: self.changes.len(),
            parts: self.parts.len(),
            listed: self.listed.len(),
        });
        self.place(item, top);
        let above = self.choices.len();
        match self.split(part.from, part.to, above, part.next) {
            Some(next) => Some(next),
            None => self.back(above),
        }
    }

    /// Takes the second branch of the last of `above` choices that has one.
    fn back(&mut self, mut above: usize) -> Option<Option<u32>> {
        loop {
            self.choices.truncate(above);
            let choice = self.choices.pop()?;
            let part = choice.part;
            self.undo(choice.changes);
            self.parts.truncate(choice.parts);
            self.listed.truncate(choice.listed);
            above = part.above;
            if choice.harmless {
                continue;
            }
            let i = choice.item as usize;
            self.changes.push(Change::Hung(choice.item, self.hung[i]));
            self.hung[i] = self.lowest[i];
            if let Some(next) = self.split(part.from, part.to, above, part.next) {
                return Some(next);
            }
        }
    }

    /// Lists what of a part is open, parted where no life crosses, the smallest first; the first of the parts, which `next`
    /// follows. `None` where there is no room for one.
    fn split(
        &mut self,
        from: usize,
        to: usize,
        above: usize,
        next: Option<u32>,
    ) -> Option<Option<u32>> {
        let first = self.parts.len();
        let (mut start, mut end) = (self.listed.len(), 0);
        for place in from..to {
            let i = self.listed[place];
            if self.is_placed[i as usize] {
                continue;
            }
            let span = self.problem.spans[i as usize];
            if span.0 >= end && self.listed.len() > start {
                self.part(start, above);
                start = self.listed.len();
            }
            self.listed.push(i);
            end = end.max(span.1);
        }
        if self.listed.len() > start {
            self.part(start, above);
        }
        for index in first..self.parts.len() {
            let part = self.parts[index];
            if let Some(section) = self.full(part.from, part.to) {
                self.blame(section);
                return None;
            }
        }
        // From the last to the first, so that each is followed by one that is as large or larger.
        let parts = &mut self.parts[first..];
        parts.sort_by_key(|p| std::cmp::Reverse(p.to - p.from));
        let mut head = next;
        for (index, part) in parts.iter_mut().enumerate() {
            part.next = head;
            head = Some((first + index) as u32);
        }
        Some(head)
    }

    fn part(&mut self, from: usize, above: usize) {
        self.parts.push(Part {
            from,
            to: self.listed.len(),
            above,
            next: None,
        });
    }

    pub(super) fn is_open(&self, i: u32) -> bool {
        !self.is_placed[i as usize]
    }

    pub(super) fn hangs(&self, i: u32) -> bool {
        self.hung[i as usize] == self.lowest[i as usize]
    }

    /// Whether no open item that meets `i` can still come to lie below `top`.
    pub(super) fn is_free_below(&self, i: u32, top: u64) -> bool {
        let stays = |&j: &u32| !self.is_open(j) || self.least[j as usize] >= top;
        self.problem.meets[i as usize].iter().all(stays)
    }

    /// Places an item at its lowest offset; open ones that meet it lie above `top` from now on.
    fn place(&mut self, i: u32, top: u64) {
        self.changes.push(Change::Placed(i));
        self.is_placed[i as usize] = true;
        for &j in &self.problem.meets[i as usize] {
            let low = &mut self.lowest[j as usize];
            if !self.is_placed[j as usize] && *low < top {
                self.changes.push(Change::Raised(j, *low));
                *low = top;
            }
        }
        let (from, to) = self.problem.spans[i as usize];
        let bytes = self.problem.bytes[i as usize];
        self.rest[from..to].iter_mut().for_each(|r| *r -= bytes);
    }

    /// Takes back all changes but the first `mark`.
    fn undo(&mut self, mark: usize) {
        while self.changes.len() > mark {
            match self.changes.pop() {
                Some(Change::Raised(i, low)) => self.lowest[i as usize] = low,
                Some(Change::Hung(i, before)) => self.hung[i as usize] = before,
                Some(Change::Placed(i)) => {
                    self.is_placed[i as usize] = false;
                    let (from, to) = self.problem.spans[i as usize];
                    let bytes = self.problem.bytes[i as usize];
                    self.rest[from..to].iter_mut().for_each(|r| *r += bytes);
                }
                None => return,
            }
        }
    }
}
