//! Axes: from values to pixels, with ticks at round numbers.

/// Decades an axis must span before it is worth a logarithmic scale.
const LOG_DECADES: f64 = 1.2;
/// Room beyond the outermost values, as a share of the axis.
const PADDING: f64 = 0.04;
/// Largest value shown, and the inverse of the smallest on a logarithmic axis.
const MOST: f64 = 1e30;

/// One axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub(super) logarithmic: bool,
    /// Least and greatest value shown.
    pub(super) range: (f64, f64),
    /// The pixels they are shown at.
    pub(super) pixels: (f64, f64),
}

/// A tick: where, and what stands there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

impl Scale {
    /// A linear axis over exactly `range`.
    pub(super) fn linear(range: (f64, f64), pixels: (f64, f64)) -> Self {
        let (low, high) = range;
        let high = if high > low { high } else { low + 1.0 };
        Self { logarithmic: false, range: (low, high), pixels }
    }

    /// An axis from 0 to a little above `high`.
    pub(super) fn from_zero(high: f64, pixels: (f64, f64)) -> Self {
        let high = if high.is_finite() && high > 0.0 { high } else { 1.0 };
        Self::linear((0.0, high * (1.0 + 2.0 * PADDING)), pixels)
    }

    /// An axis that fits values from `low` to `high`: logarithmic where they are positive and span more
    /// than a decade or so, otherwise linear and from 0 where 0 is near.
    pub(super) fn fitting(low: f64, high: f64, pixels: (f64, f64)) -> Self {
        // Values beyond these are no loss worth telling apart, and their ratios would overflow.
        let (low, high) = (low.clamp(-MOST, MOST), high.clamp(-MOST, MOST));
        if low > 0.0 && high.log10() - low.log10() >= LOG_DECADES {
            let low = low.max(1.0 / MOST);
            let room = 10_f64.powf((high.log10() - low.log10()) * PADDING);
            return Self { logarithmic: true, range: (low / room, high * room), pixels };
        }
        let low = if low >= 0.0 && low < high / 2.0 { 0.0 } else { low };
        let room = (high - low).max(high.abs() * 1e-3).max(f64::MIN_POSITIVE) * PADDING;
        let low = if low == 0.0 { 0.0 } else { low - room };
        Self::linear((low, high + room), pixels)
    }

    /// The pixel of `value`; beyond the range, that of its end.
    pub(super) fn pixel(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        let share = match self.logarithmic {
            true if value <= 0.0 => 0.0,
            true => (value / low).ln() / (high / low).ln(),
            false => (value - low) / (high - low),
        };
        self.pixels.0 + share.clamp(0.0, 1.0) * (self.pixels.1 - self.pixels.0)
    }

    /// About `wanted` ticks at round values within the range.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<Tick> {
        if self.logarithmic { self.log_ticks(wanted) } else { self.linear_ticks(wanted) }
    }

    fn linear_ticks(&self, wanted: usize) -> Vec<Tick> {
        let (low, high) = self.range;
        let rough = (high - low) / wanted.max(1) as f64;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(power);
        let first = (low / step - 1e-9).ceil();
        let count = ((high / step + 1e-9).floor() - first).max(-1.0) as usize + 1;
        let decimals = decimals_of(step);
        (0..count.min(50))
            .map(|index| (first + index as f64) * step)
            .map(|value| Tick { value, label: label(value, decimals) })
            .collect()
    }

    fn log_ticks(&self, wanted: usize) -> Vec<Tick> {
        let (low, high) = self.range;
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let in_range = |factors: &[f64], every: i32| -> Vec<f64> {
            (first..=last)
                .filter(|power| power % every == 0)
                .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)))
                .filter(|value| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(value))
                .collect()
        };
        let choices = [in_range(&[1.0, 2.0, 5.0], 1), in_range(&[1.0, 3.0], 1), in_range(&[1.0], 1)];
        let sparse = (2..100).map(|every| in_range(&[1.0], every));
        let chosen = choices.into_iter().chain(sparse).find(|values| values.len() <= wanted + wanted / 2);
        chosen.unwrap_or_default().into_iter().map(|value| Tick { value, label: log_label(value) }).collect()
    }
}

fn decimals_of(step: f64) -> usize {
    // 2.5 needs one more digit than 2.
    (0..12)
        .find(|decimals| {
            let scaled = step * 10_f64.powi(*decimals as i32);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
        })
        .unwrap_or(12)
}

/// A label of a linear axis.
fn label(value: f64, decimals: usize) -> String {
    let value = if value == 0.0 { 0.0 } else { value };
    match decimals {
        _ if value.abs() >= 1e7 || (decimals > 5 && value != 0.0) => format!("{value:.2e}"),
        0 if value >= 0.0 => super::super::human::count(value.round() as u64),
        _ => format!("{value:.decimals$}"),
    }
}

/// A label of a logarithmic axis.
fn log_label(value: f64) -> String {
    if !(1e-4..1e6).contains(&value) {
        return format!("{value:.0e}");
    }
    let decimals = if value < 0.999 { (-value.log10()).ceil() as usize } else { 0 };
    label(value, decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, wanted: usize) -> Vec<String> {
        scale.ticks(wanted).into_iter().map(|tick| tick.label).collect()
    }

    const PIXELS: (f64, f64) = (0.0, 100.0);

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(
            labels(Scale::linear((0.0, 4690.0), PIXELS), 8),
            ["0", "1,000", "2,000", "3,000", "4,000"]
        );
        assert_eq!(labels(Scale::linear((0.0, 60.0), PIXELS), 6), ["0", "10", "20", "30", "40", "50", "60"]);
        assert_eq!(
            labels(Scale::linear((0.0, 0.1), PIXELS), 4),
            ["0.000", "0.025", "0.050", "0.075", "0.100"]
        );
        assert_eq!(labels(Scale::linear((-1.0, 1.0), PIXELS), 4), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]);
        assert!(labels(Scale::linear((5.0, 5.0), PIXELS), 4).len() > 2);
    }

    #[test]
    fn log_ticks_are_round_and_few() {
        let scale = Scale::fitting(0.05, 2.3, PIXELS);
        assert!(scale.logarithmic);
        assert_eq!(labels(scale, 6), ["0.05", "0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(
            labels(Scale::fitting(2e-5, 2.3, PIXELS), 6),
            ["0.0001", "0.001", "0.01", "0.1", "1"].iter().map(|text| text.to_string()).collect::<Vec<_>>()
        );
        let wide = labels(Scale::fitting(1e-300, 1e300, PIXELS), 6);
        assert!((3..=9).contains(&wide.len()), "{wide:?}");
    }

    #[test]
    fn scales_are_chosen_by_the_values() {
        assert!(!Scale::fitting(0.5, 2.3, PIXELS).logarithmic);
        assert_eq!(Scale::fitting(0.5, 2.3, PIXELS).range.0, 0.0);
        assert!(!Scale::fitting(-1.0, 100.0, PIXELS).logarithmic);
        assert!(Scale::fitting(2.0, 2.3, PIXELS).range.0 > 1.9);
        let flat = Scale::fitting(0.0, 0.0, PIXELS);
        assert!(flat.range.1 > flat.range.0);
        assert!(Scale::from_zero(f64::NAN, PIXELS).pixel(0.5).is_finite());
    }

    #[test]
    fn pixels_stay_within_the_axis() {
        for scale in [Scale::fitting(0.01, 2.0, (80.0, 10.0)), Scale::linear((0.0, 2.0), (80.0, 10.0))] {
            assert_eq!(scale.pixel(1e9), 10.0);
            assert_eq!(scale.pixel(-1.0), 80.0);
            assert_eq!(scale.pixel(scale.range.0), 80.0);
            assert!((scale.pixel(scale.range.1) - 10.0).abs() < 1e-9);
            assert!(scale.pixel(1.0) < 80.0 && scale.pixel(1.0) > 10.0);
        }
    }
}
