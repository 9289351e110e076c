//! How gradients and parameters of a server's slices are spread, for whoever looks at the run. Pure.
//!
//! 1. Of every version that is due, each slice is counted once: its values, and the gradient that the optimizer was given for it.
//! 2. A version is told once every slice that is counted has reached it, in messages of at most [`MOST`] tensors.
//! 3. Only the model's first [`TENSORS`] tensors are counted: what is kept and told is bounded, whatever the model is.
//! 4. No more than [`OPEN`] versions are counted at a time, one is told, and messages of [`ON_THE_WAY`] are on their way: what comes
//!    on top is left out. It takes no more than [`histogram_bytes`].

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;

use crate::histogram::{TALLY, TENSORS, Tally, is_due, told_bytes};
use crate::message::{Histograms, TensorHistograms};
use crate::placement::Slice;

/// Tensors in a message: each has less than 22 KiB, so a message stays under 256 KiB.
pub(crate) const MOST: usize = 8;

/// Versions that are counted at a time: slices are a version apart at most.
const OPEN: usize = 2;

/// Versions whose messages may be on their way to the scheduler at a time.
const ON_THE_WAY: usize = 2;

/// Bytes that a server keeps of histograms at most, where it keeps values of tensors of so many elements.
pub fn histogram_bytes(tensors: impl IntoIterator<Item = u64>) -> u64 {
    // Besides those that are open and on their way, what is told.
    let each = |elements| {
        let counted = (2 * TALLY).saturating_mul(OPEN as u64 + 1);
        told_bytes(elements, 1).saturating_mul(ON_THE_WAY as u64 + 1).saturating_add(counted)
    };
    let counted = tensors.into_iter().take(TENSORS as usize);
    counted.fold(0, |sum: u64, elements| sum.saturating_add(each(elements)))
}

/// Messages on their way to the scheduler, through mailboxes and outboxes that are bounded by themselves and for all mail.
#[derive(Debug)]
pub(super) struct OnTheWay {
    /// Each message has a clone, until it was sent.
    sent: Arc<()>,
    most: usize,
}

impl OnTheWay {
    /// At most so many.
    pub(super) fn new(most: usize) -> OnTheWay {
        OnTheWay { sent: Arc::default(), most }
    }

    /// What a message has until it was sent; `None` if so many have it that it is left out.
    pub(super) fn begin(&self) -> Option<Arc<()>> {
        (Arc::strong_count(&self.sent) <= self.most).then(|| Arc::clone(&self.sent))
    }
}

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
    /// The version that is told, and of which tensors that is still to be done.
    ready: Option<(u64, btree_map::IntoIter<u32, Tensor>)>,
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
        if !self.open.contains_key(&version) && self.open.len() >= OPEN {
            self.open.pop_first();
        }
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
        self.ready = self.open.remove(&version).map(|open| (version, open.tensors.into_iter()));
    }

    /// The next message to the scheduler.
    pub(super) fn poll(&mut self) -> Option<Histograms> {
        let (version, tensors) = self.ready.as_mut()?;
        let told = tensors.by_ref().take(MOST).map(|(parameter, tensor)| TensorHistograms {
            parameter,
            gradient: tensor.gradient.map(|tally| tally.histogram()),
            values: tensor.values.histogram(),
        });
        let told = Histograms { version: *version, tensors: told.collect() };
        if told.tensors.is_empty() {
            self.ready = None;
            return None;
        }
        Some(told)
    }
}

/// How many messages of a server may be on their way that keeps values of so many tensors.
pub(super) fn most_on_the_way(tensors: usize) -> usize {
    tensors.min(TENSORS as usize).div_ceil(MOST) * ON_THE_WAY
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
        assert_eq!(told.len() * ON_THE_WAY, most_on_the_way(tensors));
    }

    /// Invariant 4: a slice that runs away from the others, in every version, and the next version that all of them reach.
    #[test]
    fn versions_that_are_never_whole_are_forgotten_and_hold_up_no_other() {
        let map = SliceMap::new(&[1, 1], 4, &[0]).unwrap();
        let mut spread = Spread::new(1, map.slices().iter());
        for version in 1..40 {
            spread.gradient(version, 0, &[2.0], 1.0);
            spread.values(version, 0, &[1.0]);
            assert!(spread.open.len() <= OPEN);
        }
        assert_eq!(told(&mut spread), []);
        for parameter in [0, 1] {
            spread.values(40, parameter, &[1.0]);
        }
        let told = told(&mut spread);
        assert_eq!(told.iter().map(|told| (told.version, told.tensors.len())).collect::<Vec<_>>(), [(40, 2)]);
    }

    /// Invariant 4.
    #[test]
    fn what_does_not_get_away_is_left_out() {
        let way = OnTheWay::new(2);
        let first = way.begin().unwrap();
        let second = way.begin().unwrap();
        assert_eq!(way.begin(), None);
        drop(first);
        let third = way.begin().unwrap();
        assert_eq!(way.begin(), None);
        drop((second, third));
        assert!(way.begin().is_some());
    }

    /// Invariant 4: every bucket of every tensor holds some, in as many versions as may be, and as many messages are on their way.
    #[test]
    fn the_fullest_counts_take_no_more_than_is_set_aside() {
        let elements = [30_000, 30_000, 700, 3];
        let map = SliceMap::new(&elements, 1 << 20, &[0]).unwrap();
        // Every bucket's values are an eighth of an octave apart.
        let values: Vec<f32> = (0..15_000).map(|at| 2_f32.powf(at as f32 / 250.0 - 42.0)).collect();
        let values: Vec<f32> = values.iter().flat_map(|value| [*value, -value]).collect();
        let slices = map.slices();
        let counted = allocation_counter::measure(|| {
            let mut spread = Spread::new(1, slices.iter());
            let mut on_the_way = Vec::new();
            for version in 1..4 {
                for slice in slices {
                    let values = values.get(..slice.elements).unwrap_or(&values);
                    spread.gradient(version, slice.id.parameter, values, 1.0);
                    spread.gradient(version + 1, slice.id.parameter, values, 1.0);
                    spread.values(version, slice.id.parameter, values);
                }
                on_the_way.extend(std::iter::from_fn(|| spread.poll()));
                on_the_way.truncate(ON_THE_WAY);
            }
            assert!(on_the_way[0].tensors[0].values.buckets.len() > 800);
        });
        let most = histogram_bytes(elements.map(|elements| elements as u64));
        assert!(counted.bytes_max <= most, "{counted:?}, of {most}");
        assert!(counted.bytes_max > most / 4, "{counted:?}, of {most}");
    }
}
