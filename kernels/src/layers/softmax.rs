//! Softmax and cross-entropy, forward and backward in one pass, on logits in panels; and softmax alone.
//!
//! Invariants:
//! 1. Each example's loss and gradient is its own: `loss = ln(sum) - (logit of the label - greatest logit)`, with `sum`
//!    the sum over classes, ascending, of `exp(logit - greatest)`; `gradient = exp(...) / sum - [class is the label]`.
//! 2. Losses are added in `f64` in the order of the examples.
//! 3. Padding receives a gradient of zero.
//! 4. With label smoothing s > 0 (Szegedy et al., "Rethinking the Inception architecture", 2016), where the label's logit
//!    stands above, `fma(1 - s, logit of the label, s mean)` takes its place, with the mean of the C logits summed in
//!    ascending order; and the gradient is `exp(...) / sum - s / C`, less `1 - s` if the class is the label.

use super::Panels;
use crate::math::{exp, ln};
use crate::model::Loss;
use crate::simd::vectorized;

/// Turns logits, in panels of `classes` features, into their gradients in place and adds up the loss. Every label is
/// below `classes`. `scratch` is room for [`scratch_elements`].
pub(crate) fn cross_entropy(
    panels: Panels,
    classes: usize,
    logits: &mut [f32],
    labels: &[u32],
    scratch: &mut [f32],
) -> Loss {
    smoothed_cross_entropy(0.0, panels, classes, logits, labels, scratch)
}

/// The same with label smoothing: the part `smoothing`, from 0 to below 1, of what is asked for is all classes alike.
pub(crate) fn smoothed_cross_entropy(
    smoothing: f32,
    panels: Panels,
    classes: usize,
    logits: &mut [f32],
    labels: &[u32],
    scratch: &mut [f32],
) -> Loss {
    let smooth = smoothing > 0.0;
    let mut loss = Loss { loss_sum: 0.0, correct: 0, examples: 0 };
    for panel in panels.iter() {
        let range = panel.start * classes..(panel.start + panel.width) * classes;
        let (Some(logits), Some(labels), Some((greatest, rest))) = (
            logits.get_mut(range),
            labels.get(panel.start..panel.start + panel.used),
            scratch.split_at_mut_checked(panel.width),
        ) else {
            return loss;
        };
        let Some((sum, of_label)) = rest.split_at_mut_checked(panel.width) else { return loss };
        for (example, &label) in labels.iter().enumerate() {
            let at = |class: usize| logits.get(class * panel.width + example).copied().unwrap_or(f32::NAN);
            let (value, mut best) = (at(label as usize), (0, at(0)));
            for class in 1..classes {
                if at(class) > best.1 {
                    best = (class, at(class));
                }
            }
            // The first of equal logits wins; a NaN among them is never right.
            loss.correct += u32::from(best.0 == label as usize && !value.is_nan());
            if let Some(of_label) = of_label.get_mut(example) {
                let mean = || (0..classes).fold(0.0, |sum, class| sum + at(class)) / classes as f32;
                *of_label = if smooth { (1.0 - smoothing).mul_add(value, smoothing * mean()) } else { value };
            }
        }
        exponentials(panel.width, logits, greatest, sum);
        if smooth {
            lower(smoothing / classes as f32, logits);
        }
        for (example, &label) in labels.iter().enumerate() {
            if let (Some(gradient), Some(&sum), Some(&greatest), Some(&of_label)) = (
                logits.get_mut(label as usize * panel.width + example),
                sum.get(example),
                greatest.get(example),
                of_label.get(example),
            ) {
                *gradient -= 1.0 - smoothing;
                loss.loss_sum += f64::from(ln(sum) - (of_label - greatest));
                loss.examples += 1;
            }
        }
        for row in logits.chunks_exact_mut(panel.width) {
            row.get_mut(panel.used..).unwrap_or_default().fill(0.0);
        }
    }
    loss
}

/// Turns logits, in panels of `classes` features, into probabilities in place: those whose gradient [`cross_entropy`]
/// computes, bit for bit. `scratch` is room for [`scratch_elements`].
pub(crate) fn probabilities(panels: Panels, classes: usize, logits: &mut [f32], scratch: &mut [f32]) {
    for panel in panels.iter() {
        let range = panel.start * classes..(panel.start + panel.width) * classes;
        let (Some(logits), Some((greatest, rest))) =
            (logits.get_mut(range), scratch.split_at_mut_checked(panel.width))
        else {
            return;
        };
        let Some(sum) = rest.get_mut(..panel.width) else { return };
        exponentials(panel.width, logits, greatest, sum);
    }
}

/// Room that [`cross_entropy`] and [`probabilities`] need.
pub(crate) fn scratch_elements(panels: Panels) -> usize {
    3 * panels.iter().map(|panel| panel.width).max().unwrap_or(0)
}

vectorized! {
    fn lower<'a>(by: f32, values: &'a mut [f32]) {
        for value in values {
            *value -= by;
        }
    }

    /// Softmax down the columns of rows of `width`; leaves each column's greatest logit and sum of exponentials.
    fn exponentials<'a>(width: usize, logits: &'a mut [f32], greatest: &'a mut [f32], sum: &'a mut [f32]) {
        greatest.fill(f32::NEG_INFINITY);
        for row in logits.chunks_exact(width) {
            for (greatest, logit) in greatest.iter_mut().zip(row) {
                *greatest = if *logit > *greatest { *logit } else { *greatest };
            }
        }
        sum.fill(0.0);
        for row in logits.chunks_exact_mut(width) {
            for ((logit, greatest), sum) in row.iter_mut().zip(greatest.iter()).zip(sum.iter_mut()) {
                *logit = exp(*logit - *greatest);
                *sum += *logit;
            }
        }
        for row in logits.chunks_exact_mut(width) {
            for (logit, sum) in row.iter_mut().zip(sum.iter()) {
                *logit /= *sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    /// Logits of `examples` examples by `classes`, row-major; what comes back is in the same order.
    fn run(classes: usize, rows: &[f32], labels: &[u32]) -> (Loss, Vec<f32>, f32) {
        smoothed(0.0, classes, rows, labels)
    }

    fn smoothed(smoothing: f32, classes: usize, rows: &[f32], labels: &[u32]) -> (Loss, Vec<f32>, f32) {
        let panels = Panels::new(labels.len());
        let mut logits = vec![f32::NAN; panels.elements(classes)];
        panels.fill(rows, classes, &mut logits);
        let loss = smoothed_cross_entropy(
            smoothing,
            panels,
            classes,
            &mut logits,
            labels,
            &mut vec![f32::NAN; scratch_elements(panels)],
        );
        let (mut gradients, mut padding) = (Vec::new(), 0.0);
        for panel in panels.iter() {
            let at = |class: usize, e: usize| logits[panel.start * classes + class * panel.width + e];
            gradients.extend((0..panel.used).flat_map(|e| (0..classes).map(move |class| at(class, e))));
            padding += (panel.used..panel.width)
                .flat_map(|e| (0..classes).map(move |class| at(class, e).abs()))
                .sum::<f32>();
        }
        (loss, gradients, padding)
    }

    /// Invariants 1 to 3, with logits too large for a softmax that does not subtract the greatest.
    #[test]
    fn losses_and_gradients_are_as_defined() {
        let (loss, gradients, padding) = run(3, &[0.0, 0.0, 0.0, 1000.0, 999.0, -1000.0], &[2, 0]);
        let second = (1.0 + (-1f64).exp()).ln();
        assert!((loss.loss_sum - (3f64.ln() + second)).abs() < 1e-6, "{loss:?}");
        assert_eq!((loss.correct, loss.examples, padding), (1, 2, 0.0));
        let (third, p) = (1.0 / 3.0, 1.0 / (1.0 + (-1f32).exp()));
        for (found, expected) in gradients.iter().zip([third, third, third - 1.0, p - 1.0, 1.0 - p, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{gradients:?}");
        }
    }

    /// Invariant 4: against finite differences of the definition in `f64`.
    #[test]
    fn smoothed_gradients_are_the_slope() {
        let (rows, labels, s) = ([0.5f32, -1.0, 2.0, 0.0, 3.0, 1.0], [2, 0], 0.3f32);
        let loss = |rows: &[f64]| -> f64 {
            let one = |(row, &label): (&[f64], &u32)| {
                let sum = row.iter().map(|z| z.exp()).sum::<f64>().ln();
                let s = f64::from(s);
                let asked = |c: usize| s / 3.0 + if c == label as usize { 1.0 - s } else { 0.0 };
                row.iter().enumerate().map(|(c, z)| asked(c) * (sum - z)).sum::<f64>()
            };
            rows.chunks(3).zip(&labels).map(one).sum()
        };
        let (found, gradients, _) = smoothed(s, 3, &rows, &labels);
        let mut exact: Vec<f64> = rows.iter().copied().map(f64::from).collect();
        assert!((found.loss_sum / loss(&exact) - 1.0).abs() < 1e-6, "{found:?}");
        for (index, found) in gradients.iter().enumerate() {
            let mut at = |by: f64| {
                exact[index] += by;
                let loss = loss(&exact);
                exact[index] -= by;
                loss
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((f64::from(*found) - slope).abs() < 1e-6, "{index}: {found} against {slope}");
        }
    }

    /// The first of equal logits is the one chosen; a NaN is never right.
    #[test]
    fn ties_and_nan() {
        assert_eq!(run(3, &[1.0, 1.0, 0.0, 1.0, 1.0, 0.0], &[0, 1]).0.correct, 1);
        let (loss, ..) = run(2, &[f32::NAN, 0.0], &[0]);
        assert!(loss.correct == 0 && loss.loss_sum.is_nan());
    }

    #[test]
    fn width_does_not_matter() {
        let rows: Vec<f32> = (0..37 * 11).map(|i| ((i * 53) % 97) as f32 * 0.2 - 9.0).collect();
        let labels: Vec<u32> = (0..37).map(|e| e % 11).collect();
        forced::assert_same(|| {
            let (loss, gradients, padding) = smoothed(0.1, 11, &rows, &labels);
            assert_eq!(padding, 0.0);
            (loss, gradients.iter().map(|value| value.to_bits()).collect::<Vec<_>>())
        });
    }
}
