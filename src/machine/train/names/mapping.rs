//! A parameter as rectangles of tensors in files, and the walk over them that reading and saving share.

use std::ops::Range;

use crate::error::Result;

/// Elements of the longest strip: 1 MiB of singles.
const STRIP: u64 = 1 << 18;

/// Where a parameter lies in files: pieces that cover its rows from first to last. A vector has one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Elements of one row of the parameter.
    pub columns: u64,
    /// The pieces, in the order of the rows.
    pub pieces: Vec<Piece>,
}

/// Rows of a parameter that lie in one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's Hugging Face name.
    pub tensor: String,
    /// The tensor's shape in the file.
    pub shape: Vec<u64>,
    /// Rows of the parameter.
    pub rows: Range<u64>,
    /// The first of them in the tensor: a row, or where transposed a column.
    pub first: u64,
    /// Whether the tensor has the parameter's rows as columns.
    pub transposed: bool,
}

/// Elements that follow each other in a tensor and lie `stride` apart in the parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strip {
    /// Index of the piece.
    pub piece: usize,
    /// First element in the tensor.
    pub from: u64,
    /// First element in the asked range of the parameter.
    pub to: u64,
    /// Number of elements.
    pub count: u64,
    /// Distance of neighbors in the parameter, in elements.
    pub stride: u64,
}

impl Mapping {
    /// A tensor that is the parameter.
    pub fn whole(tensor: String, shape: &[u64]) -> Mapping {
        let rows = shape.first().copied().unwrap_or(1);
        Mapping::part(tensor, shape, 0, rows, false)
    }

    /// Rows `first..` of a tensor with `total` of them.
    pub(super) fn part(
        tensor: String,
        shape: &[u64],
        first: u64,
        total: u64,
        transposed: bool,
    ) -> Mapping {
        let rows = shape.first().copied().unwrap_or(1);
        let mut outer = shape.to_vec();
        if let Some(length) = outer.first_mut() {
            *length = total;
        }
        if transposed {
            outer.reverse();
        }
        let piece = Piece {
            tensor,
            shape: outer,
            rows: 0..rows,
            first,
            transposed,
        };
        Mapping {
            columns: shape.iter().skip(1).product(),
            pieces: vec![piece],
        }
    }

    /// Elements of the parameter.
    pub fn elements(&self) -> u64 {
        self.pieces.last().map_or(0, |p| p.rows.end) * self.columns
    }

    /// Calls `each` on strips that cover elements `range` of the parameter, each once, none longer than 1 MiB of singles.
    ///
    /// # Errors
    /// The first of `each`.
    pub fn strips(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Strip) -> Result<()>,
    ) -> Result<()> {
        for (index, piece) in self.pieces.iter().enumerate() {
            let start = range.start.max(piece.rows.start * self.columns);
            let end = range.end.min(piece.rows.end * self.columns);
            if start >= end {
                continue;
            }
            let walk = Walk {
                piece,
                index,
                columns: self.columns,
                base: range.start,
            };
            match piece.transposed {
                true => walk.turned(start..end, each)?,
                false => walk.straight(start..end, each)?,
            }
        }
        Ok(())
    }
}

/// A walk over one piece.
struct Walk<'a> {
    piece: &'a Piece,
    index: usize,
    columns: u64,
    /// First element of the asked range.
    base: u64,
}

impl Walk<'_> {
    /// Strips of elements `part`, which lie in the same order in the tensor.
    fn straight(&self, part: Range<u64>, each: &mut dyn FnMut(Strip) -> Result<()>) -> Result<()> {
        let shift = self.piece.rows.start * self.columns;
        let whole = Strip {
            piece: self.index,
            from: self.piece.first * self.columns + (part.start - shift),
            to: part.start - self.base,
            count: part.end - part.start,
            stride: 1,
        };
        whole.cut(each)
    }

    /// Strips of elements `part`, whose rows are columns of the tensor.
    fn turned(&self, part: Range<u64>, each: &mut dyn FnMut(Strip) -> Result<()>) -> Result<()> {
        for (rows, columns) in rectangles(part, self.columns) {
            for column in columns {
                let width = self.piece.shape.last().copied().unwrap_or(1);
                let row = self.piece.first + (rows.start - self.piece.rows.start);
                let strip = Strip {
                    piece: self.index,
                    from: column * width + row,
                    to: rows.start * self.columns + column - self.base,
                    count: rows.end - rows.start,
                    stride: self.columns,
                };
                strip.cut(each)?;
            }
        }
        Ok(())
    }
}

impl Strip {
    /// The strip in pieces that are not too long.
    fn cut(self, each: &mut dyn FnMut(Strip) -> Result<()>) -> Result<()> {
        let mut done = 0;
        while done < self.count {
            let count = (self.count - done).min(STRIP);
            each(Strip {
                from: self.from + done,
                to: self.to + done * self.stride,
                count,
                ..self
            })?;
            done += count;
        }
        Ok(())
    }
}

/// Elements `part` of a matrix as rows and columns: the rest of a row, full rows, the start of a row.
fn rectangles(part: Range<u64>, columns: u64) -> Vec<(Range<u64>, Range<u64>)> {
    let (mut at, mut all) = (part.start, Vec::with_capacity(3));
    while at < part.end {
        let (row, column) = (at / columns, at % columns);
        let full = (part.end - at) / columns;
        let (rows, until) = match column == 0 && full > 0 {
            true => (full, columns),
            false => (1, columns.min(column + part.end - at)),
        };
        all.push((row..row + rows, column..until));
        at += rows * (until - column);
    }
    all
}
