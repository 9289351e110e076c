//! Thousands of steps to a few hundred points, without losing what matters: extremes and trend.

/// Steps of smoothing as a share of the run: a fortieth.
const SMOOTHED_SHARE: usize = 40;
/// Fewest and most steps that are smoothed over.
const SMOOTHED: (usize, usize) = (5, 400);

/// What one column of pixels stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Column {
    /// Index of the column's last value.
    pub(super) index: usize,
    pub(super) least: f64,
    pub(super) greatest: f64,
    pub(super) mean: f64,
}

/// `values` in at most `most` columns of equal width; values that are not finite are left out, and columns
/// without any.
pub(super) fn columns(values: &[f64], most: usize) -> Vec<Column> {
    let most = most.max(1);
    let per_column = values.len().div_ceil(most).max(1);
    let column = |(number, chunk): (usize, &[f64])| {
        let finite = || chunk.iter().copied().filter(|value| value.is_finite());
        let count = finite().count();
        (count > 0).then(|| Column {
            index: number * per_column + chunk.len() - 1,
            least: finite().fold(f64::INFINITY, f64::min),
            greatest: finite().fold(f64::NEG_INFINITY, f64::max),
            mean: finite().sum::<f64>() / count as f64,
        })
    };
    values.chunks(per_column).enumerate().filter_map(column).collect()
}

/// The exponential moving average of `values`, over about a fortieth of them and without a bias to the
/// start (the weights of what was seen are made to sum to 1, as in Adam). Values that are not finite
/// leave it as it was.
pub(super) fn smoothed(values: &[f64]) -> Vec<f64> {
    let span = (values.len() / SMOOTHED_SHARE).clamp(SMOOTHED.0, SMOOTHED.1);
    let keep = 1.0 - 2.0 / (span as f64 + 1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut smooth = |value: &f64| {
        if value.is_finite() {
            sum = keep * sum + (1.0 - keep) * value;
            weight = keep * weight + (1.0 - keep);
        }
        if weight > 0.0 { sum / weight } else { f64::NAN }
    };
    values.iter().map(&mut smooth).collect()
}

/// The `share`-th (0 to 1) of the finite values in order; `None` if there are none.
pub(super) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    finite.sort_by(f64::total_cmp);
    let last = finite.len().checked_sub(1)?;
    finite.get((last as f64 * share.clamp(0.0, 1.0)).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_keep_extremes() {
        let mut values = vec![1.0; 10_000];
        values[7_777] = 50.0;
        values[3] = -2.0;
        values[4] = f64::NAN;
        let columns = columns(&values, 400);
        assert_eq!(columns.len(), 400);
        assert_eq!(columns[0].least, -2.0);
        assert_eq!(columns.iter().map(|column| column.greatest).fold(0.0, f64::max), 50.0);
        assert!(columns.iter().all(|column| column.mean.is_finite()));
        assert_eq!(columns.last().unwrap().index, 9_999);
    }

    #[test]
    fn few_values_are_columns_of_their_own() {
        let columns = columns(&[3.0, f64::NAN, 5.0], 400);
        assert_eq!(
            columns.iter().map(|column| (column.index, column.mean)).collect::<Vec<_>>(),
            [(0, 3.0), (2, 5.0)]
        );
        assert!(super::columns(&[], 10).is_empty());
        assert!(super::columns(&[f64::NAN; 5], 2).is_empty());
    }

    #[test]
    fn smoothing_has_no_bias_and_follows() {
        assert!(smoothed(&[2.0; 1000]).iter().all(|value| (value - 2.0).abs() < 1e-9));
        let step: Vec<f64> = (0..1000).map(|index| if index < 500 { 1.0 } else { 0.0 }).collect();
        let smooth = smoothed(&step);
        assert!(smooth[499] > 0.999 && smooth[510] < 0.7 && smooth[999] < 1e-6);
        let hole = smoothed(&[1.0, f64::NAN, 1.0]);
        assert!(hole.iter().all(|value| (value - 1.0).abs() < 1e-9), "{hole:?}");
        assert!(smoothed(&[f64::NAN])[0].is_nan());
    }

    #[test]
    fn quantiles() {
        let values: Vec<f64> = (0..=100).rev().map(f64::from).chain([f64::NAN]).collect();
        assert_eq!(quantile(&values, 0.5), Some(50.0));
        assert_eq!(quantile(&values, 1.0), Some(100.0));
        assert_eq!(quantile(&[f64::NAN], 0.5), None);
    }
}
