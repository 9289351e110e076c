//! From a step's whole gradient to the next version of slices.

use std::sync::Arc;

use testudo_kernels::OptimizerError;
use testudo_kernels::optimizer::{self, StepInputs};

use super::{MathError, SliceMath, SliceState, Updated};
use crate::checkpoint::SliceSnapshot;
use crate::placement::{Slice, SliceId};
use crate::server::contribution::SumOrder;
use crate::server::resident::Vector;

impl SliceMath {
    /// A slice's gradient is whole: updates it, or all of its tensor if that was the last one it waited for.
    pub(super) fn complete(
        &mut self,
        id: SliceId,
        step: u64,
        mut gradient: Vector,
    ) -> Result<Option<Updated>, MathError> {
        if self.order == (SumOrder::Wrong { step })
            && let Vector::Host(gradient) = &mut gradient
            && let Some(first) = gradient.first_mut()
        {
            *first += 1.0;
        }
        let (_, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
        state.complete = Some(gradient);
        let alone = [id];
        let slices = self.whole.get(&id.parameter).map_or(&alone[..], Vec::as_slice).to_vec();
        let is_complete =
            |id: &SliceId| self.slices.get(id).is_some_and(|(_, state)| state.complete.is_some());
        if slices.iter().all(is_complete) { self.update(slices, step).map(Some) } else { Ok(None) }
    }

    /// Turns the complete gradient of a step, a sum or a rule's result, into the next version of `slices`, which are of one
    /// parameter.
    fn update(&mut self, slices: Vec<SliceId>, step: u64) -> Result<Updated, MathError> {
        let Some(first) = slices.first().copied() else { return Ok(Updated { version: step, slices }) };
        let divisor = self.job.divisor(step);
        let learning_rate =
            self.job.learning_rate * self.job.schedule.factor(step, self.plan.planned_steps());
        let inputs = StepInputs { step: step + 1, learning_rate, divisor };
        if self.resident.as_ref().is_some_and(|resident| resident.holds(first)) {
            return self.update_on_device(slices, step, inputs);
        }
        // Out of their places, so that several can be lent at a time.
        let mut taken = Vec::with_capacity(slices.len());
        for id in &slices {
            let (_, state) = self.slices.get_mut(id).ok_or(MathError::Unknown(*id))?;
            let (version, weights) = self.store.current(*id).ok_or(MathError::Unknown(*id))?;
            let sum = state.complete.take().ok_or(MathError::Unknown(*id))?;
            self.count_gradient(version + 1, *id, &sum, divisor)?;
            let sum = sum.on_host().ok_or(MathError::Unknown(*id))?;
            let (_, state) = self.slices.get_mut(id).ok_or(MathError::Unknown(*id))?;
            taken.push((version, weights, sum, std::mem::take(&mut state.optimizer)));
        }
        let mut scalars = self.slices.get(&first).map_or(Vec::new(), |(_, s)| s.scalars.clone());
        let mut lent: Vec<optimizer::Slice<'_>> = taken
            .iter_mut()
            .map(|(_, weights, sum, state)| optimizer::Slice { weights, gradient_to_weights: sum, state })
            .collect();
        let updated = self.rules.update(first.parameter, inputs, &mut lent, &mut scalars);
        updated.map_err(|error| self.diverged(first, step, error))?;
        let mut version = step;
        for (id, (before, weights, values, optimizer)) in slices.iter().zip(taken) {
            drop(weights);
            version = before + 1;
            self.put(*id, version, values, optimizer, &scalars)?;
        }
        Ok(Updated { version, slices })
    }

    /// What an error of the update of `first` and the slices after it is to people.
    pub(super) fn diverged(&self, first: SliceId, step: u64, error: OptimizerError) -> MathError {
        let OptimizerError::NotFinite { element, line, name } = error else { return error.into() };
        let parameter = self.parameters.get(first.parameter as usize).map(|p| p.name.clone());
        let begin = self.slices.get(&first).map_or(0, |(slice, _)| slice.first);
        let what =
            element.map_or("one of the optimizer's numbers".into(), |at| format!("element {}", begin + at));
        let text = (line as usize).checked_sub(1).and_then(|at| self.job.optimizer.program.lines().nth(at));
        let place = match text {
            Some(text) => format!("{what}; line {line} of the optimizer: `{}`", text.trim()),
            None => format!("{what} of {name}"),
        };
        MathError::Diverged { parameter: parameter.unwrap_or_else(|| first.to_string()), step, place }
    }

    /// Puts a slice's next version in its place, and gives it to whoever is to have it.
    pub(super) fn put(
        &mut self,
        id: SliceId,
        version: u64,
        values: Vec<f32>,
        optimizer: Vec<Vec<f32>>,
        scalars: &[f64],
    ) -> Result<(), MathError> {
        let (slice, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
        state.optimizer = optimizer;
        state.scalars.clear();
        state.scalars.extend_from_slice(scalars);
        self.store.put(id, values)?;
        let Some((_, weights)) = self.store.current(id) else { return Ok(()) };
        if self.pieces.wants(version) {
            self.pieces.hash(version, slice, &weights);
        }
        if self.spread.wants(version, id.parameter) {
            self.spread.values(version, id.parameter, &weights);
        }
        if self.snapshots.wants(version)
            && let Some((slice, state)) = self.slices.get(&id)
        {
            self.snapshots.keep(self.snapshot(slice, state, weights)?);
        }
        Ok(())
    }

    /// A slice as it is now.
    pub(super) fn snapshot(
        &self,
        slice: &Slice,
        state: &SliceState,
        weights: Arc<Vec<f32>>,
    ) -> Result<SliceSnapshot, MathError> {
        let resident = self.resident.as_ref().map(|resident| resident.state(slice)).transpose()?.flatten();
        let mut tensors = resident.unwrap_or_else(|| state.optimizer.clone());
        tensors.extend(state.aggregate.clone());
        Ok(SliceSnapshot { slice: *slice, weights, state: tensors, scalars: state.scalars.clone() })
    }
}
