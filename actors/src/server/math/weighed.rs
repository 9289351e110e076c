//! Slices that wait for the scheduler's weights (invariant 4): on the CPU, or on the device that they are updated on.

use testudo_kernels::cuda::DeviceError;
use testudo_kernels::robust::products::Products;
use testudo_kernels::robust::weigh::{Weights, clip};
use testudo_kernels::{OptimizerError, first_non_finite};

use super::{MathError, SliceMath, Updated};
use crate::placement::SliceId;
use crate::server::held::Contributed;
use crate::server::resident::Vector;

impl SliceMath {
    /// A slice has all that `step` contributes to it: holds that until it is weighed.
    pub(super) fn hold(&mut self, id: SliceId, step: u64, contributed: Contributed) -> Result<(), MathError> {
        // A sum of finite values may be none. Votes are means of what was looked at when it came.
        let element = match (&contributed, &mut self.resident) {
            (Contributed::Host(vectors), _) => vectors.iter().find_map(|vector| first_non_finite(vector)),
            (Contributed::Made(tensor), Some(resident)) => resident.first_non_finite(tensor)?,
            (Contributed::Made(_), None) | (Contributed::Cast, _) => None,
        };
        if element.is_some() {
            let error = OptimizerError::NotFinite { element, line: 0, name: "the gradients' sum".into() };
            return Err(self.diverged(id, step, error));
        }
        let learns = self.learns(id.parameter);
        let (slice, state) = self.slices.get(&id).ok_or(MathError::Unknown(id))?;
        let held = self.held.as_mut().ok_or(MathError::Unknown(id))?;
        match (contributed, &mut self.resident) {
            (Contributed::Host(vectors), _) if learns => {
                held.hold(step, slice, vectors, state.aggregate.as_deref())?;
            }
            (Contributed::Host(vectors), _) => held.hold_statistics(step, slice, vectors),
            (contributed, Some(resident)) => held.hold_on_device(step, slice, contributed, resident)?,
            (_, None) => return Err(DeviceError::Foreign.into()),
        }
        Ok(())
    }

    /// The inner products over this server's slices, once all have what a step contributes, and the step: to be posted to the
    /// scheduler.
    pub fn poll_products(&mut self) -> Option<(u64, Products)> {
        self.held.as_mut()?.poll()
    }

    /// Combines what `step` contributed by the scheduler's weights, and updates. Returns what has gone to its next version.
    ///
    /// # Errors
    /// [`MathError`]; after [`MathError::Weights`] everything is as it was before.
    pub fn combine(&mut self, step: u64, weights: &Weights) -> Result<Vec<Updated>, MathError> {
        let held = self.held.as_mut().and_then(|held| held.release(step, weights));
        let mut updated = Vec::new();
        for (id, contributed) in held.ok_or(MathError::Weights(step))? {
            let gradient = match self.learns(id.parameter) {
                true => self.combined(id, contributed, weights)?,
                false => contributed.alone().ok_or(MathError::Unknown(id))?,
            };
            updated.extend(self.complete(id, step, gradient)?);
        }
        Ok(updated)
    }

    /// A slice's part of the whole gradient.
    fn combined(
        &mut self,
        id: SliceId,
        contributed: Contributed,
        weights: &Weights,
    ) -> Result<Vector, MathError> {
        match (contributed, &mut self.resident) {
            (Contributed::Host(mut vectors), _) => {
                let (_, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
                let keeps = state.aggregate.is_some();
                vectors.extend(state.aggregate.take());
                let mut gradient = weights.combine(vectors)?;
                state.aggregate = keeps.then(|| gradient.clone());
                clip(&mut gradient, weights.clip);
                Ok(Vector::Host(gradient))
            }
            (contributed, Some(resident)) => Ok(resident.combine(id, contributed, weights)?),
            (_, None) => Err(DeviceError::Foreign.into()),
        }
    }
}
