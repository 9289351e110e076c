//! A number over the time that it was looked at, in as many points as a screen has columns.
//!
//! 1. However long it is looked at, no more than [`POINTS`] points are kept: when there are more, two and two become one, their mean,
//!    and each later point stands for as many numbers. So the curve is always of the whole time.
//! 2. What is not finite is a gap.

/// Points that are kept: more than the columns of most terminals.
const POINTS: usize = 256;

/// From an empty cell to a full one.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A number over time.
#[derive(Clone, Debug)]
pub struct Series {
    points: Vec<Option<f64>>,
    /// Numbers that a point stands for.
    stride: u32,
    /// Those of the point under way: how many, of them finite, their sum.
    begun: (u32, u32, f64),
}

impl Default for Series {
    fn default() -> Series {
        Series { points: Vec::new(), stride: 1, begun: (0, 0, 0.0) }
    }
}

impl Series {
    /// Adds the next number.
    pub fn push(&mut self, value: f64) {
        self.begun.0 += 1;
        if value.is_finite() {
            self.begun = (self.begun.0, self.begun.1 + 1, self.begun.2 + value);
        }
        if self.begun.0 < self.stride {
            return;
        }
        let (_, finite, sum) = std::mem::take(&mut self.begun);
        self.points.push((finite > 0).then(|| sum / f64::from(finite)));
        if self.points.len() >= POINTS {
            self.points = self.points.chunks(2).map(mean).collect();
            self.stride = self.stride.saturating_mul(2);
        }
    }

    /// The least and the greatest point, if there are any.
    #[must_use]
    pub fn range(&self) -> Option<(f64, f64)> {
        let known = || self.points.iter().flatten().copied();
        let least = known().reduce(f64::min)?;
        Some((least, known().reduce(f64::max)?))
    }

    /// The curve in `height` lines of `width` cells, from the bottom `low` to the top `high`; the newest point is at the right end once
    /// there are as many as cells.
    #[must_use]
    pub fn bars(&self, width: usize, height: usize, (low, high): (f64, f64)) -> Vec<String> {
        let columns = self.columns(width);
        let eighths = |value: &Option<f64>| match value {
            None => 0,
            // A point is seen, even if it is the least.
            Some(_) if high <= low => 4,
            Some(value) => {
                let share = ((value - low) / (high - low)).clamp(0.0, 1.0);
                1 + (share * (8.0 * height as f64 - 1.0)).round() as usize
            }
        };
        let filled: Vec<usize> = columns.iter().map(eighths).collect();
        let line = |row: usize| {
            let below = (height - 1 - row) * 8;
            let cell =
                |filled: &usize| LEVELS.get(filled.saturating_sub(below).min(8)).copied().unwrap_or(' ');
            let text: String = filled.iter().map(cell).collect();
            format!("{text}{}", " ".repeat(width.saturating_sub(filled.len())))
        };
        (0..height).map(line).collect()
    }

    /// Points for at most `width` cells, as many of them to a cell as that takes.
    fn columns(&self, width: usize) -> Vec<Option<f64>> {
        match width {
            0 => Vec::new(),
            width => {
                let each = self.points.len().div_ceil(width).max(1);
                self.points.chunks(each).map(mean).collect()
            }
        }
    }
}

fn mean(points: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = points.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: impl IntoIterator<Item = f64>) -> Series {
        let mut series = Series::default();
        values.into_iter().for_each(|value| series.push(value));
        series
    }

    #[test]
    fn a_curve_rises_from_the_least_to_the_greatest() {
        let rising = series((0..8).map(f64::from));
        assert_eq!(rising.range(), Some((0.0, 7.0)));
        assert_eq!(rising.bars(8, 1, (0.0, 7.0)), ["▁▂▃▄▅▆▇█"]);
        assert_eq!(rising.bars(10, 1, (0.0, 7.0)), ["▁▂▃▄▅▆▇█  "]);
        assert_eq!(rising.bars(4, 1, (0.0, 7.0)), ["▂▄▆█"]);
        let tall = rising.bars(8, 2, (0.0, 7.0));
        assert_eq!(tall, ["    ▂▄▆█", "▁▃▅▇████"]);
        assert_eq!(series([2.0, 2.0]).bars(2, 1, (2.0, 2.0)), ["▄▄"]);
        assert_eq!(Series::default().bars(3, 2, (0.0, 1.0)), ["   ", "   "]);
        assert_eq!(rising.bars(0, 1, (0.0, 7.0)), [""]);
    }

    /// Invariant 2.
    #[test]
    fn what_is_not_finite_is_a_gap() {
        let gap = series([1.0, f64::NAN, 2.0]);
        assert_eq!(gap.bars(3, 1, gap.range().unwrap()), ["▁ █"]);
        assert_eq!(series([f64::INFINITY]).range(), None);
    }

    /// Invariant 1.
    #[test]
    fn a_long_time_is_shown_whole_in_as_many_points() {
        let long = series((0..100_000).map(f64::from));
        assert!(long.points.len() < POINTS && long.points.len() >= POINTS / 2);
        let (least, greatest) = long.range().unwrap();
        assert!(least < 1_000.0 && greatest > 99_000.0, "{least} {greatest}");
        assert!(long.points.is_sorted_by(|a, b| a.unwrap() < b.unwrap()));
    }
}
