//! Slices that are updated on a device.

use std::collections::BTreeMap;

use testudo_kernels::cuda::{AnyDevice, DeviceError};
use testudo_kernels::optimizer::StepInputs;
use testudo_kernels::{ParameterSpec, add};

use super::{MathError, SliceMath, Updated};
use crate::placement::{Slice, SliceId};
use crate::server::resident::{Resident, Vector};
use crate::server::rules::Rules;

impl SliceMath {
    /// Updates on `device` what an optimizer updates, from the first version on; sums contributions to it there, applies every rule that
    /// ships, and clips.
    ///
    /// # Errors
    /// [`MathError::Device`] when the optimizer has no kernels.
    pub fn with_device(mut self, device: AnyDevice) -> Result<SliceMath, MathError> {
        self.resident = Some(Resident::new(device, self.rules.optimizers())?);
        Ok(self)
    }

    /// The same, and on the CPU if the device has no kernels for the optimizer, or no memory for the first version and for what a rule that
    /// weighs whole gradients holds: a line of the log says so.
    #[must_use]
    pub fn with_device_or_cpu(mut self, device: AnyDevice) -> SliceMath {
        match Resident::new(device, self.rules.optimizers()) {
            Ok(resident) => self.resident = Some(resident.or_cpu()),
            Err(error) => says_so(&error),
        }
        self
    }

    /// Brings every slice to the device, once all are at their first version.
    pub(super) fn settle(&mut self) -> Result<(), MathError> {
        match self.hand_over() {
            Err(MathError::Device(error)) if self.resident.as_ref().is_some_and(Resident::yields) => {
                says_so(&error);
                self.resident = None;
                Ok(())
            }
            handed => handed,
        }
    }

    /// When that fails, what is here is as it was.
    fn hand_over(&mut self) -> Result<(), MathError> {
        let on_device = self.aggregates_on_device();
        let Some(resident) = &mut self.resident else { return Ok(()) };
        let mut units: BTreeMap<SliceId, Vec<SliceId>> = BTreeMap::new();
        for id in self.slices.keys().filter(|id| self.rules.optimizer_of(id.parameter).is_some()) {
            let unit = self.whole.get(&id.parameter).cloned().unwrap_or_else(|| vec![*id]);
            if let Some(first) = unit.first() {
                units.insert(*first, unit);
            }
        }
        for (first, unit) in units {
            let mut kept = Vec::with_capacity(unit.len());
            for id in &unit {
                let (slice, state) = self.slices.get(id).ok_or(MathError::Unknown(*id))?;
                let (_, weights) = self.store.current(*id).ok_or(MathError::Unknown(*id))?;
                kept.push((*slice, weights, state.optimizer.as_slice()));
            }
            let name = self.parameters.get(first.parameter as usize).map_or("", |p| p.name.as_str());
            let lent = kept.iter().map(|(slice, weights, state)| (*slice, weights.as_slice(), *state));
            resident.keep(name, lent.collect())?;
        }
        if let Some(weighing) = self.job.weighing().filter(|_| on_device) {
            let before = |id| self.slices.get(&id).and_then(|(_, state)| state.aggregate.as_deref());
            resident.reserve(&weighing, self.job.aggregation.weighs(), before)?;
        }
        for (id, (_, state)) in &mut self.slices {
            if resident.holds(*id) {
                state.optimizer = Vec::new();
                state.aggregate.take_if(|_| resident.keeps_aggregates());
            }
        }
        Ok(())
    }

    /// As [`update`](SliceMath::update), of slices that are on the device.
    pub(super) fn update_on_device(
        &mut self,
        slices: Vec<SliceId>,
        step: u64,
        inputs: StepInputs,
    ) -> Result<Updated, MathError> {
        let Some(first) = slices.first().copied() else { return Ok(Updated { version: step, slices }) };
        let mut gradients = Vec::with_capacity(slices.len());
        for id in &slices {
            let (_, state) = self.slices.get_mut(id).ok_or(MathError::Unknown(*id))?;
            let gradient = state.complete.take().ok_or(MathError::Unknown(*id))?;
            let (before, _) = self.store.current(*id).ok_or(MathError::Unknown(*id))?;
            self.count_gradient(before + 1, *id, &gradient, inputs.divisor)?;
            gradients.push(gradient);
        }
        let mut scalars = self.slices.get(&first).map_or(Vec::new(), |(_, s)| s.scalars.clone());
        let optimizer = self.rules.optimizer_of(first.parameter);
        let (Some(optimizer), Some(resident)) = (optimizer, &mut self.resident) else {
            return Err(MathError::Unknown(first));
        };
        let updated = resident.update(first, optimizer, inputs, gradients, &mut scalars);
        let updated = updated.map_err(|error| match error {
            DeviceError::Optimizer(error) => self.diverged(first, step, error),
            other => other.into(),
        })?;
        let mut version = step;
        for (id, values) in slices.iter().zip(updated) {
            let (before, weights) = self.store.current(*id).ok_or(MathError::Unknown(*id))?;
            drop(weights);
            version = before + 1;
            self.put(*id, version, values, Vec::new(), &scalars)?;
        }
        Ok(Updated { version, slices })
    }
}

fn says_so(error: &DeviceError) {
    tracing::info!("this server sums and updates on the CPU, for its device cannot: {error}");
}

impl Vector {
    /// A contribution to a slice, brought to `resident` if there is one.
    pub(super) fn new(
        id: SliceId,
        values: Vec<f32>,
        resident: Option<&mut Resident>,
    ) -> Result<Vector, DeviceError> {
        match resident {
            Some(resident) => resident.take(id, &values),
            None => Ok(Vector::Host(values)),
        }
    }

    /// The sum of two, this one first.
    pub(super) fn plus(self, right: Vector, resident: Option<&mut Resident>) -> Result<Vector, DeviceError> {
        match (self, right, resident) {
            (left, right, Some(resident)) => resident.add(left, right),
            (Vector::Host(mut left), Vector::Host(right), None) => {
                add(&mut left, &right);
                Ok(Vector::Host(left))
            }
            _ => Err(DeviceError::Foreign),
        }
    }

    /// Its values, if they are not on a device.
    pub(super) fn on_host(self) -> Option<Vec<f32>> {
        match self {
            Vector::Host(values) => Some(values),
            Vector::Device(_) => None,
        }
    }
}

/// The slices of each parameter that is updated as a whole, all of which must be among `slices`.
pub(super) fn whole(
    rules: &Rules,
    parameters: &[ParameterSpec],
    slices: impl Iterator<Item = Slice>,
) -> Result<BTreeMap<u32, Vec<SliceId>>, MathError> {
    let mut held: BTreeMap<u32, (usize, Vec<SliceId>)> = BTreeMap::new();
    for slice in slices.filter(|slice| rules.is_whole(slice.id.parameter)) {
        let (elements, ids) = held.entry(slice.id.parameter).or_default();
        *elements += slice.elements;
        ids.push(slice.id);
    }
    for (parameter, (elements, ids)) in &mut held {
        let all = parameters.get(*parameter as usize).map(|p| p.shape.elements());
        if all != Some(*elements) {
            return Err(MathError::Incomplete(*parameter));
        }
        ids.sort();
    }
    Ok(held.into_iter().map(|(parameter, (_, ids))| (parameter, ids)).collect())
}
