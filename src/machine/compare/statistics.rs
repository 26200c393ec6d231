//! Quantiles and shares of the rows of a comparison.

/// The values in ascending order.
pub(super) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which a share of the sorted values lies, between neighbours in proportion (Hyndman and Fan 1996,
/// type 7, as numpy does).
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (at.floor(), at.ceil());
    let (below, above) = (sorted[low as usize], sorted[high as usize]);
    Some(below + (above - below) * (at - low))
}

/// The share that is true.
pub(super) fn share(all: impl Iterator<Item = bool>) -> Option<f64> {
    let (mut count, mut right) = (0u64, 0u64);
    for one in all {
        count += 1;
        right += u64::from(one);
    }
    (count > 0).then(|| right as f64 / count as f64)
}
