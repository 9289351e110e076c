//! A bias's gradient: each channel's sum over positions (an image's pixels) and examples.
//!
//! Sixteen interleaved sums, example e in sum e mod 16, each over positions ascending, then examples; then the sixteen
//! are added pairwise.

use super::Panels;
use crate::simd::vectorized;

/// Interleaved sums of a bias's gradient.
const SUMS: usize = 16;
/// Channels whose sums are kept at a time.
const CHANNELS: usize = 16;

/// The bias's gradient of a fully connected layer: each feature's sum over examples.
pub(crate) fn sum_examples(panels: Panels, dy: &[f32], out: &mut [f32]) {
    sum_positions(panels, 1, dy, out);
}

vectorized! {
    /// The same where each example has `positions` positions, each of as many channels as `out` is long.
    pub(crate) fn sum_positions<'a>(panels: Panels, positions: usize, dy: &'a [f32], out: &'a mut [f32]) {
        interleaved(panels, positions, dy, dy, out, |_| |sum, dy, _| sum + dy);
    }
}

/// Sums of each channel in the order of this module's definition: a sum becomes `add(channel)(sum, a, b)` for each element
/// of `a` and `b`, buffers of one form.
#[inline(always)]
pub(super) fn interleaved<A: Fn(f32, f32, f32) -> f32>(
    panels: Panels,
    positions: usize,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    add: impl Fn(usize) -> A,
) {
    let channels = out.len();
    let features = positions * channels;
    for (block, out) in out.chunks_mut(CHANNELS).enumerate() {
        let mut sums = [[0.0f32; SUMS]; CHANNELS];
        for position in 0..positions {
            for panel in panels.iter() {
                let first = position * channels + block * CHANNELS;
                let start = panel.start * features + first * panel.width;
                let (a, b) = (a.get(start..).unwrap_or_default(), b.get(start..).unwrap_or_default());
                let rows = a.chunks_exact(panel.width).zip(b.chunks_exact(panel.width));
                for (channel, (sums, (a, b))) in sums.iter_mut().zip(rows.take(out.len())).enumerate() {
                    let add = add(block * CHANNELS + channel);
                    let (a, b) =
                        (a.get(..panel.used).unwrap_or_default(), b.get(..panel.used).unwrap_or_default());
                    // Few panels start elsewhere than at a multiple: the last ones, on narrow vectors.
                    let aligned = if panel.start % SUMS == 0 { a.len() / SUMS * SUMS } else { 0 };
                    let ((a, a_rest), (b, b_rest)) = (a.split_at(aligned), b.split_at(aligned));
                    for (a, b) in a.as_chunks::<SUMS>().0.iter().zip(b.as_chunks::<SUMS>().0) {
                        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                            *sum = add(*sum, *a, *b);
                        }
                    }
                    for (example, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
                        let sum = &mut sums[(panel.start + aligned + example) % SUMS];
                        *sum = add(*sum, *a, *b);
                    }
                }
            }
        }
        for (sums, out) in sums.iter_mut().zip(out) {
            *out = pairwise(sums);
        }
    }
}

/// The sum of sixteen, halves added first.
#[inline(always)]
fn pairwise(sums: &mut [f32; SUMS]) -> f32 {
    let mut width = SUMS / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    /// The definition, at every SIMD width.
    #[test]
    fn sums_are_their_definition() {
        for (examples, positions, channels) in [(1, 1, 1), (7, 5, 3), (33, 2, 17), (70, 1, 40), (16, 9, 16)] {
            let features = positions * channels;
            let rows: Vec<f32> =
                (0..examples * features).map(|i| ((i * 37) % 101) as f32 * 0.37 - 9.0).collect();
            let mut expected = Vec::new();
            for channel in 0..channels {
                let mut sums = [0f32; 16];
                for position in 0..positions {
                    for example in 0..examples {
                        sums[example % 16] += rows[example * features + position * channels + channel];
                    }
                }
                for width in [8, 4, 2, 1] {
                    for lane in 0..width {
                        sums[lane] += sums[lane + width];
                    }
                }
                expected.push(sums[0].to_bits());
            }
            for (name, found) in forced::each(|| {
                let panels = Panels::new(examples);
                let mut dy = vec![f32::NAN; panels.elements(features)];
                panels.fill(&rows, features, &mut dy);
                let mut out = vec![f32::NAN; channels];
                sum_positions(panels, positions, &dy, &mut out);
                out.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            }) {
                assert_eq!(found, expected, "{name} {examples} {positions} {channels}");
            }
        }
    }
}
