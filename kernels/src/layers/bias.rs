//! A bias's gradient: each feature's sum over the examples, in ascending order within sixteen interleaved sums (example
//! e in sum e mod 16), which are then added pairwise.

use super::Panels;
use crate::simd::vectorized;

/// Interleaved sums of a bias's gradient.
const SUMS: usize = 16;

vectorized! {
    /// The bias's gradient: each feature's sum over examples.
    pub(crate) fn sum_examples<'a>(panels: Panels, dy: &'a [f32], out: &'a mut [f32]) {
        let features = out.len();
        for (feature, out) in out.iter_mut().enumerate() {
            let mut sums = [0.0f32; SUMS];
            for panel in panels.iter() {
                let start = panel.start * features + feature * panel.width;
                let row = dy.get(start..start + panel.used).unwrap_or_default();
                // Few panels start elsewhere than at a multiple: the last ones, on narrow vectors.
                let aligned = if panel.start % SUMS == 0 { row.len() / SUMS * SUMS } else { 0 };
                let (aligned, rest) = row.split_at(aligned);
                for values in aligned.as_chunks::<SUMS>().0 {
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += value;
                    }
                }
                for (example, value) in rest.iter().enumerate() {
                    sums[(panel.start + aligned.len() + example) % SUMS] += value;
                }
            }
            let mut width = SUMS / 2;
            while width > 0 {
                for lane in 0..width {
                    sums[lane] += sums[lane + width];
                }
                width /= 2;
            }
            *out = sums[0];
        }
    }
}
