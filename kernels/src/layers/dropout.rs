//! Dropout (Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 2014), inverted:
//! what is kept is divided by the share that is kept, so that evaluation does nothing.
//!
//! Invariants:
//! 1. Whether an element is dropped is a function of (seed, step, position of its example in the step's global batch,
//!    site, position in the sequence, feature), drawn by Philox with [`Purpose::Dropout`]: of nobody who computes it.
//! 2. An element is dropped when a number uniform in [0, 1) is below the rate; one that is kept is multiplied by
//!    `1 / (1 - rate)`, rounded to f32. The gradient passes through the same function.
//!
//! The counter of an example's stream holds (site, position, block of four features).

use super::Panels;
use crate::model::Place;
use crate::random::{Philox, Purpose};

/// A network's dropout: where its sites lie in the streams of random numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    rate: f32,
    /// Positions of an example.
    positions: usize,
}

impl Dropout {
    /// Drops `rate` of all elements of sequences of `positions`.
    pub(crate) fn new(rate: f32, positions: usize) -> Dropout {
        Dropout { rate, positions }
    }

    /// Whether `sites` sites of `features` features have counters enough in one stream.
    pub(crate) fn fits(self, sites: usize, features: usize) -> bool {
        let blocks = sites.checked_mul(self.positions).and_then(|n| n.checked_mul(features.div_ceil(4)));
        blocks.is_some_and(|blocks| u32::try_from(blocks).is_ok())
    }

    /// Drops elements of activations, or of their gradient, of `features` features. The panels' examples are positions:
    /// `positions` of each of the batch's examples, which stand at `place`.
    pub(crate) fn apply(
        self,
        panels: Panels,
        features: usize,
        place: Place,
        site: usize,
        values: &mut [f32],
    ) {
        if self.rate <= 0.0 || self.positions == 0 {
            return;
        }
        let (scale, blocks) = (1.0 / (1.0 - self.rate), features.div_ceil(4));
        let stream = |example: usize| {
            let example = place.first.wrapping_add(example as u64);
            Philox::new(place.seed, Purpose::Dropout, place.step, example)
        };
        let mut current = (0, stream(0));
        for panel in panels.iter() {
            let range = panel.start * features..(panel.start + panel.width) * features;
            let Some(values) = values.get_mut(range) else { return };
            for lane in 0..panel.used {
                let token = panel.start + lane;
                let (example, position) = (token / self.positions, token % self.positions);
                if current.0 != example {
                    current = (example, stream(example));
                }
                let first = (site * self.positions + position) * blocks;
                for (block, rows) in values.chunks_mut(4 * panel.width).enumerate() {
                    let draws = current.1.uniform((first + block) as u32);
                    for (row, draw) in rows.chunks_exact_mut(panel.width).zip(draws) {
                        if let Some(value) = row.get_mut(lane) {
                            *value = if draw < self.rate { 0.0 } else { *value * scale };
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    fn mask(examples: usize, positions: usize, features: usize, place: Place, site: usize) -> Vec<f32> {
        let panels = Panels::new(examples * positions);
        let mut values = vec![1.0; panels.elements(features)];
        Dropout::new(0.25, positions).apply(panels, features, place, site, &mut values);
        let mut rows = vec![0.0; examples * positions * features];
        panels.empty(&values, features, &mut rows);
        rows
    }

    /// Invariant 1: an example's mask is its own wherever it is computed, and every coordinate counts.
    #[test]
    fn a_mask_belongs_to_its_example() {
        let place = Place { seed: 3, step: 7, first: 20 };
        let (positions, features) = (5, 7);
        let whole = mask(6, positions, features, place, 1);
        for example in 0..6 {
            let alone =
                mask(1, positions, features, Place { first: place.first + example as u64, ..place }, 1);
            assert_eq!(alone, whole[example * 35..(example + 1) * 35]);
        }
        for other in [
            mask(6, positions, features, Place { seed: 4, ..place }, 1),
            mask(6, positions, features, Place { step: 8, ..place }, 1),
            mask(6, positions, features, Place { first: 26, ..place }, 1),
            mask(6, positions, features, place, 2),
        ] {
            assert_ne!(other, whole);
        }
        let first: Vec<&[f32]> = whole.chunks(features).collect();
        assert!(first.iter().any(|row| *row != first[0]), "positions differ");
    }

    /// Invariant 2: the share that is dropped, and the scale of what is kept.
    #[test]
    fn a_quarter_is_dropped_and_the_mean_stays() {
        let rows = mask(64, 16, 33, Place { seed: 1, step: 0, first: 0 }, 0);
        let dropped = rows.iter().filter(|value| **value == 0.0).count() as f64 / rows.len() as f64;
        assert!((dropped - 0.25).abs() < 0.01, "{dropped}");
        assert!(rows.iter().all(|value| *value == 0.0 || *value == 1.0 / 0.75));
    }

    #[test]
    fn width_does_not_matter() {
        forced::assert_same(|| mask(9, 5, 6, Place { seed: 2, step: 1, first: 3 }, 4));
    }

    #[test]
    fn streams_do_not_wrap() {
        assert!(Dropout::new(0.1, 1024).fits(97, 1600));
        assert!(!Dropout::new(0.1, 1 << 20).fits(97, 1 << 20));
        assert!(!Dropout::new(0.1, usize::MAX).fits(2, 4));
    }
}
