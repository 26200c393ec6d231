//! How the result of a product is cut into blocks, such that no cut changes a bit of it.

use std::ops::Range;

/// Rows and columns whose multiples begin a block.
const UNIT: (usize, usize) = (16, 64);

/// Units of rows and of columns in the smallest block of a product that is cut, and the least rows and columns of one that may be. The crate
/// takes other paths, with other sums, for one row, one column, 256 elements, or 64 by 64; no block of a cut product is so small.
const LEAST_UNITS: (usize, usize) = (6, 2);
const LEAST: usize = 16;

/// How a result is cut into blocks: one for each thread where it is large enough, as nearly square as that allows, since each packs its operands
/// again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    down: Pieces,
    across: Pieces,
}

/// One block of a result: first row, first column, rows, columns.
pub(super) type Block = (usize, usize, usize, usize);

impl Grid {
    /// The cut of an (m, n) result for `threads` threads, each block of `most` rows and columns at most.
    pub(super) fn new(m: usize, n: usize, threads: usize, most: (usize, usize)) -> Grid {
        let wanted = match m.min(n) >= LEAST {
            true => threads.max(1),
            false => 1,
        };
        let cut = |down, across| Grid {
            down: Pieces::new(m, down, UNIT.0, LEAST_UNITS.0, most.0),
            across: Pieces::new(n, across, UNIT.1, LEAST_UNITS.1, most.1),
        };
        let cost = |grid: &Grid| {
            let idle = wanted - grid.blocks().min(wanted);
            (idle, grid.down.longest() + grid.across.longest())
        };
        (1..=wanted)
            .map(|down| cut(down, wanted.div_ceil(down)))
            .min_by_key(cost)
            .unwrap_or_else(|| cut(1, 1))
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> usize {
        self.down.count * self.across.count
    }

    /// Block `index`.
    pub(super) fn block(&self, index: usize) -> Block {
        let (rows, columns) = (
            self.down.piece(index % self.down.count),
            self.across.piece(index / self.down.count),
        );
        (rows.start, columns.start, rows.len(), columns.len())
    }
}

/// A length in nearly equal pieces that begin at multiples of `unit`.
#[derive(Debug, Clone, Copy)]
struct Pieces {
    length: usize,
    unit: usize,
    count: usize,
}

impl Pieces {
    /// About `wanted` pieces of at least `least` units, and as many as it takes for none to be longer than `most`.
    fn new(length: usize, wanted: usize, unit: usize, least: usize, most: usize) -> Pieces {
        let units = length.div_ceil(unit);
        let count = wanted.min(units / least).max(units.div_ceil(most / unit));
        Pieces {
            length,
            unit,
            count: count.max(1),
        }
    }

    fn start(&self, index: usize) -> usize {
        let units = self.length.div_ceil(self.unit);
        (index * units / self.count * self.unit).min(self.length)
    }

    fn piece(&self, index: usize) -> Range<usize> {
        self.start(index)..self.start(index + 1)
    }

    fn longest(&self) -> usize {
        self.length.div_ceil(self.count)
    }
}
