//! Counting how gradients and parameters are spread, beside updates.

use std::collections::BTreeSet;

use super::{MathError, SliceMath};
use crate::message::Histograms;
use crate::placement::SliceId;
use crate::server::histograms::{OnTheWay, Spread, most_on_the_way};
use crate::server::resident::Vector;

impl SliceMath {
    /// Counts how gradients and parameters are spread, of every `every`-th version and the first; 0 for none.
    #[must_use]
    pub fn with_histograms(mut self, every: u64) -> SliceMath {
        self.spread = Spread::new(every, self.slices.values().map(|(slice, _)| slice));
        self
    }

    /// How many messages of [`poll_histograms`](Self::poll_histograms) may be on their way at a time.
    pub(in crate::server) fn histograms_on_the_way(&self) -> OnTheWay {
        let tensors: BTreeSet<u32> = self.slices.keys().map(|slice| slice.parameter).collect();
        OnTheWay::new(most_on_the_way(tensors.len()))
    }

    /// What the scheduler is to be told of how values are spread.
    pub fn poll_histograms(&mut self) -> Option<Histograms> {
        self.spread.poll()
    }

    /// Counts a gradient, sums over `divisor`, that is to bring `slice` to `version`, if that is due.
    pub(super) fn count_gradient(
        &mut self,
        version: u64,
        slice: SliceId,
        gradient: &Vector,
        divisor: f32,
    ) -> Result<(), MathError> {
        if !self.spread.wants(version, slice.parameter) || !self.learns(slice.parameter) {
            return Ok(());
        }
        match (gradient, &self.resident) {
            (Vector::Host(values), _) => self.spread.gradient(version, slice.parameter, values, divisor),
            (Vector::Device(tensor), Some(resident)) => {
                let values = resident.read(tensor)?;
                self.spread.gradient(version, slice.parameter, &values, divisor);
            }
            // What is on a device is with whoever has the device.
            (Vector::Device(_), None) => {}
        }
        Ok(())
    }
}
