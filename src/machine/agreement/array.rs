//! A pairwise covering array: every value of every factor meets every value of every other, where nothing forbids it.

/// A row: the value of each factor.
pub(super) type Row = Vec<usize>;

/// Rows over factors with `sizes` values that cover all pairs `allowed` permits; the same rows for the same input.
///
/// Greedy, as AETG (Cohen et al. 1997): each row starts from the first pair not yet covered, and each further factor
/// takes the value that covers most new pairs.
pub(super) fn rows(
    sizes: &[usize],
    allowed: impl Fn((usize, usize), (usize, usize)) -> bool,
) -> Vec<Row> {
    let mut open = Vec::new();
    for (f, &size) in sizes.iter().enumerate() {
        for (g, &other) in sizes.iter().enumerate().skip(f + 1) {
            let pairs = (0..size).flat_map(|v| (0..other).map(move |w| ((f, v), (g, w))));
            open.extend(pairs.filter(|&(a, b)| allowed(a, b)));
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    while let Some(&(first, second)) = open.first() {
        let chosen = complete(sizes, vec![first, second], &open, rows.len(), &allowed);
        // A pair that no row can hold is given up.
        open.remove(0);
        if let Some(chosen) = chosen {
            open.retain(|(a, b)| !(chosen.contains(a) && chosen.contains(b)));
            let mut row = vec![0; sizes.len()];
            chosen.iter().for_each(|&(f, v)| row[f] = v);
            rows.push(row);
        }
    }
    rows
}

type Cell = (usize, usize);

/// Fills the other factors of a row that has two; ties go round with the row's number.
fn complete(
    sizes: &[usize],
    mut chosen: Vec<Cell>,
    open: &[(Cell, Cell)],
    number: usize,
    allowed: &impl Fn(Cell, Cell) -> bool,
) -> Option<Vec<Cell>> {
    for (f, &size) in sizes.iter().enumerate() {
        if chosen.iter().any(|c| c.0 == f) {
            continue;
        }
        let fits = |cell: Cell| chosen.iter().all(|&c| allowed(c.min(cell), c.max(cell)));
        let new = |cell: Cell| {
            let covers = |&(a, b): &(Cell, Cell)| {
                (a == cell && chosen.contains(&b)) || (b == cell && chosen.contains(&a))
            };
            open.iter().filter(|pair| covers(pair)).count()
        };
        let turned = (0..size).map(|v| (f, (v + number) % size));
        let best = turned.filter(|&c| fits(c)).rev().max_by_key(|&c| new(c))?;
        chosen.push(best);
    }
    Some(chosen)
}
