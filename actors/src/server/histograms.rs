//! How gradients and parameters of a server's slices are spread, for whoever looks at the run. Pure.
//!
//! 1. Of every version that is due, each slice is counted once: its values, and the gradient that the optimizer was given for it.
//! 2. A version is told once every slice that is counted has reached it, in messages of at most [`MOST`] tensors.
//! 3. Only the model's first [`TENSORS`] tensors are counted: what is kept and told is bounded, whatever the model is.

use std::collections::{BTreeMap, VecDeque};

use crate::histogram::{TENSORS, Tally, is_due};
use crate::message::{Histograms, TensorHistograms};
use crate::placement::Slice;

/// Tensors in a message: each has less than 22 KiB, so a message stays under 256 KiB.
pub(crate) const MOST: usize = 8;

/// One version.
#[derive(Debug)]
struct Open {
    tensors: BTreeMap<u32, Tensor>,
    /// Slices that have not reached it.
    missing: usize,
}

#[derive(Debug, Default)]
struct Tensor {
    gradient: Option<Tally>,
    values: Tally,
}

/// The histograms of one server.
#[derive(Debug, Default)]
pub(super) struct Spread {
    every: u64,
    /// Slices that are counted.
    slices: usize,
    open: BTreeMap<u64, Open>,
    ready: VecDeque<Histograms>,
}

impl Spread {
    /// For a server that keeps `slices`, of which every `every`-th version is counted; 0 for none.
    pub(super) fn new<'a>(every: u64, slices: impl Iterator<Item = &'a Slice>) -> Spread {
        Spread { every, slices: slices.filter(|s| s.id.parameter < TENSORS).count(), ..Spread::default() }
    }

    /// Whether slices of `parameter` are counted when they reach `version`.
    pub(super) fn wants(&self, version: u64, parameter: u32) -> bool {
        is_due(self.every, version) && parameter < TENSORS
    }

    fn tensor(&mut self, version: u64, parameter: u32) -> &mut Tensor {
        let missing = self.slices;
        let open = self.open.entry(version).or_insert_with(|| Open { tensors: BTreeMap::new(), missing });
        open.tensors.entry(parameter).or_default()
    }

    /// Counts the gradient that brings a slice to `version`: `sum` over `divisor`.
    pub(super) fn gradient(&mut self, version: u64, parameter: u32, sum: &[f32], divisor: f32) {
        let tally = self.tensor(version, parameter).gradient.get_or_insert_default();
        tally.count(sum.iter().map(|value| value / divisor));
    }

    /// Counts the values of a slice that has reached `version`.
    pub(super) fn values(&mut self, version: u64, parameter: u32, values: &[f32]) {
        self.tensor(version, parameter).values.count(values.iter().copied());
        let Some(open) = self.open.get_mut(&version) else { return };
        open.missing = open.missing.saturating_sub(1);
        if open.missing > 0 {
            return;
        }
        let Some(open) = self.open.remove(&version) else { return };
        let mut told = open.tensors.into_iter().map(|(parameter, tensor)| TensorHistograms {
            parameter,
            gradient: tensor.gradient.map(|tally| tally.histogram()),
            values: tensor.values.histogram(),
        });
        loop {
            let tensors: Vec<TensorHistograms> = told.by_ref().take(MOST).collect();
            if tensors.is_empty() {
                return;
            }
            self.ready.push_back(Histograms { version, tensors });
        }
    }

    /// The next message to the scheduler.
    pub(super) fn poll(&mut self) -> Option<Histograms> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::SliceMap;

    fn told(spread: &mut Spread) -> Vec<Histograms> {
        std::iter::from_fn(|| spread.poll()).collect()
    }

    /// Invariants 1 and 2.
    #[test]
    fn a_version_is_told_when_all_slices_have_reached_it() {
        let map = SliceMap::new(&[3, 2], 8, &[0]).unwrap();
        let mut spread = Spread::new(10, map.slices().iter());
        assert!(spread.wants(1, 0) && spread.wants(10, 1) && !spread.wants(9, 0));
        for (parameter, sum, values) in [(0, [2.0, 4.0], [0.5, 0.25]), (1, [0.0, 6.0], [8.0, 8.0])] {
            spread.gradient(10, parameter, &sum, 2.0);
            spread.values(10, parameter, &values);
        }
        assert_eq!(told(&mut spread), [], "a slice is missing");
        spread.gradient(10, 0, &[-2.0], 2.0);
        spread.values(10, 0, &[-1.0]);
        let told = told(&mut spread);
        let [Histograms { version: 10, tensors }] = told.as_slice() else { panic!("{told:?}") };
        let [first, second] = tensors.as_slice() else { panic!("{tensors:?}") };
        let gradient = first.gradient.as_ref().unwrap();
        assert_eq!((gradient.count, gradient.min, gradient.max, gradient.sum), (3, -1.0, 2.0, 2.0));
        assert_eq!((first.values.count, first.values.min, first.values.max), (3, -1.0, 0.5));
        assert_eq!((second.parameter, second.values.buckets.len()), (1, 1));
        assert!(spread.open.is_empty());
    }

    /// Invariants 2 and 3.
    #[test]
    fn many_tensors_go_in_several_messages_and_the_last_are_left_out() {
        let tensors = TENSORS as usize + 5;
        let map = SliceMap::new(&vec![1; tensors], 4, &[0]).unwrap();
        let mut spread = Spread::new(1, map.slices().iter());
        for slice in map
            .slices()
            .iter()
            .filter(|slice| spread.wants(1, slice.id.parameter))
            .copied()
            .collect::<Vec<_>>()
        {
            spread.values(1, slice.id.parameter, &[1.0]);
        }
        let told = told(&mut spread);
        assert!(told.iter().all(|told| told.tensors.len() <= MOST));
        assert_eq!(told.iter().map(|told| told.tensors.len()).sum::<usize>(), TENSORS as usize);
    }
}
