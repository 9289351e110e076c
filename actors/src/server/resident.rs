//! A server's slices on a device: weights and what the optimizer keeps of them live there from step to step.
//!
//! 1. The bits are the CPU's: sums in the reduction tree's order, medians and trimmed means, rules that weigh whole gradients, clipping, and
//!    every program of the optimizer language have twins there (`kernels/src/cuda/`). What has none stays on the CPU: running means, and a
//!    program's own rule, whose result is brought here for the update.
//! 2. When memory runs out, the error names the tensor by its parameter, and weights and the optimizer's tensors are as they were: room is made
//!    before they are touched. What was contributed to the step is lost, and where an update or its way back fails for another reason, so may
//!    the slice be: the server ends with the error.
//! 3. Memory is used again: what a step leaves is taken by the next, so there is never more of it than once was used at a time. Where whole
//!    gradients are weighed, memory for what is held meanwhile is taken with the slices ([`weighed`]).

mod weighed;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use testudo_kernels::cuda::{
    self, AnyDevice, AnyMemory, Buffer, Device, DeviceError, DeviceOptimizer, DeviceSlice, Votes,
};
use testudo_kernels::optimizer::StepInputs;
use testudo_kernels::{Aggregation, Optimizer};

use weighed::Weighed;

use crate::placement::{Slice, SliceId};

/// Numbers on the device.
pub(super) type Tensor = Buffer<AnyMemory, f32>;

/// A vector of a slice's length, where it is.
#[derive(Debug)]
pub(super) enum Vector {
    Host(Vec<f32>),
    Device(Tensor),
}

/// A slice with its weights and the optimizer's tensors.
type Lent<'a> = (Slice, &'a [f32], &'a [Vec<f32>]);

/// Slices that are updated together: one, or all of a tensor.
#[derive(Debug)]
struct Unit {
    slices: Vec<Slice>,
    weights: Tensor,
    state: Vec<Tensor>,
}

/// The slices of one server on its device.
#[derive(Debug)]
pub(super) struct Resident {
    /// Reading waits for the device, and changes nothing that is seen.
    device: RefCell<AnyDevice>,
    optimizers: Vec<DeviceOptimizer>,
    /// By first slice.
    units: BTreeMap<SliceId, Unit>,
    /// Of each slice, its unit and its first element there.
    places: HashMap<SliceId, (SliceId, usize)>,
    /// The rule for so many votes, once it was needed.
    rule: Option<(usize, Votes<AnyMemory>)>,
    /// What a step contributes until it is weighed, where whole gradients are.
    weighed: Option<Weighed>,
    /// Memory to be used again, by elements.
    spare: HashMap<usize, Vec<Tensor>>,
    /// Whether the CPU takes its place where it cannot take what it is given to keep.
    yields: bool,
}

impl Resident {
    /// With the programs of `optimizers`, which are compiled now.
    pub(super) fn new(mut device: AnyDevice, optimizers: &[Optimizer]) -> Result<Resident, DeviceError> {
        let compile = |(index, optimizer): (usize, &Optimizer)| {
            let optimizer = DeviceOptimizer::new(&format!("optimizer_{index}"), optimizer.clone())?;
            device.prepare(optimizer.kernels().source())?;
            Ok(optimizer)
        };
        let optimizers = optimizers.iter().enumerate().map(compile).collect::<Result<_, DeviceError>>()?;
        Ok(Resident {
            device: RefCell::new(device),
            optimizers,
            units: BTreeMap::new(),
            places: HashMap::new(),
            rule: None,
            weighed: None,
            spare: HashMap::new(),
            yields: false,
        })
    }

    /// Whose place the CPU takes where it cannot keep what it is given.
    pub(super) fn or_cpu(self) -> Resident {
        Resident { yields: true, ..self }
    }

    /// Whether the CPU takes its place then.
    pub(super) fn yields(&self) -> bool {
        self.yields
    }

    /// Takes slices that are updated together, in order, with the weights and the optimizer's tensors of each.
    pub(super) fn keep(&mut self, name: &str, slices: Vec<Lent<'_>>) -> Result<(), DeviceError> {
        let device = self.device.get_mut();
        let elements = slices.iter().map(|(slice, ..)| slice.elements).sum();
        let tensors = slices.first().map_or(0, |(_, _, state)| state.len());
        let mut weights = Tensor::zeros(device, name, elements)?;
        let mut state = Vec::with_capacity(tensors);
        for tensor in 0..tensors {
            let name = format!("optimizer state {} of {name}", tensor + 1);
            state.push(Tensor::zeros(device, &name, elements)?);
        }
        let mut first = 0;
        let Some(unit) = slices.first().map(|(slice, ..)| slice.id) else { return Ok(()) };
        for (slice, values, kept) in &slices {
            weights.write_at(device, first, values)?;
            for (tensor, kept) in state.iter_mut().zip(*kept) {
                tensor.write_at(device, first, kept)?;
            }
            self.places.insert(slice.id, (unit, first));
            first += slice.elements;
        }
        let slices = slices.into_iter().map(|(slice, ..)| slice).collect();
        self.units.insert(unit, Unit { slices, weights, state });
        Ok(())
    }

    /// Whether a slice is here.
    pub(super) fn holds(&self, id: SliceId) -> bool {
        self.places.contains_key(&id)
    }

    /// Brings a contribution to a slice here.
    pub(super) fn take(&mut self, id: SliceId, values: &[f32]) -> Result<Vector, DeviceError> {
        let mut tensor = self.room(values.len(), self.named("contribution to", id))?;
        tensor.write(self.device.get_mut(), values)?;
        Ok(Vector::Device(tensor))
    }

    /// The values of a vector that is here.
    pub(super) fn read(&self, tensor: &Tensor) -> Result<Vec<f32>, DeviceError> {
        let mut values = vec![0.0; tensor.elements()];
        tensor.read_at(&mut *self.device.borrow_mut(), 0, &mut values)?;
        Ok(values)
    }

    /// What a tensor for a slice is called in errors.
    fn named(&self, what: &str, id: SliceId) -> String {
        let unit = self.places.get(&id).and_then(|(unit, _)| self.units.get(unit));
        let name = unit.map_or("a parameter", |unit| unit.weights.name());
        format!("{what} {name}, slice {}", id.index)
    }

    /// Memory for a vector, by its name; what it holds is unsaid.
    fn room(&mut self, elements: usize, name: String) -> Result<Tensor, DeviceError> {
        match self.spare.get_mut(&elements).and_then(Vec::pop) {
            Some(mut tensor) => {
                tensor.rename(name);
                Ok(tensor)
            }
            None => Tensor::zeros(self.device.get_mut(), &name, elements),
        }
    }

    fn leave(&mut self, tensor: Tensor) {
        self.spare.entry(tensor.elements()).or_default().push(tensor);
    }

    /// The sum of two vectors, the left one first.
    pub(super) fn add(&mut self, left: Vector, right: Vector) -> Result<Vector, DeviceError> {
        let name = || "sum of contributions".to_owned();
        let (mut left, right) = (self.here(left, name)?, self.here(right, name)?);
        cuda::add(self.device.get_mut(), &mut left, &right)?;
        self.leave(right);
        Ok(Vector::Device(left))
    }

    /// A vector on the device, brought there under a name if need be.
    fn here(&mut self, vector: Vector, name: impl FnOnce() -> String) -> Result<Tensor, DeviceError> {
        match vector {
            Vector::Device(tensor) => Ok(tensor),
            Vector::Host(values) => {
                let mut tensor = self.room(values.len(), name())?;
                tensor.write(self.device.get_mut(), &values)?;
                Ok(tensor)
            }
        }
    }

    /// What a rule that looks at each number by itself makes of votes on a slice.
    pub(super) fn aggregate(
        &mut self,
        id: SliceId,
        rule: Aggregation,
        votes: &[Vec<f32>],
    ) -> Result<Vector, DeviceError> {
        let (count, elements) = (votes.len(), votes.first().map_or(0, Vec::len));
        if self.rule.as_ref().is_none_or(|(known, _)| *known != count) {
            self.rule = Some((count, Votes::new(self.device.get_mut(), rule, count)?));
        }
        let mut all = self.room(count.saturating_mul(elements), self.named("votes on", id))?;
        let mut result = self.room(elements, self.named("aggregate of votes on", id))?;
        let device = self.device.get_mut();
        for (vote, values) in votes.iter().enumerate() {
            all.write_at(device, vote * elements, values)?;
        }
        if let Some((_, rule)) = &self.rule {
            rule.aggregate(device, &all, &mut result)?;
        }
        self.leave(all);
        Ok(Vector::Device(result))
    }

    /// One step of one of the optimizers on the slices that are updated together and begin with `first`: `gradients` has one vector for each.
    /// Returns their new weights.
    pub(super) fn update(
        &mut self,
        first: SliceId,
        optimizer: usize,
        inputs: StepInputs,
        gradients: Vec<Vector>,
        scalars: &mut [f64],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        let unknown = || DeviceError::Length { tensor: first.to_string(), expected: 1, found: 0 };
        let mut gradient = self.join(first, gradients)?;
        let device = self.device.get_mut();
        let unit = self.units.get_mut(&first).ok_or_else(unknown)?;
        let optimizer = self.optimizers.get_mut(optimizer).ok_or_else(unknown)?;
        let slice = DeviceSlice {
            weights: &unit.weights,
            gradient_to_weights: &mut gradient,
            state: &mut unit.state,
        };
        optimizer.update_checked(device, inputs, slice, scalars)?;
        gradient.rename(unit.weights.name());
        let before = std::mem::replace(&mut unit.weights, gradient);
        let (mut new, mut at) = (Vec::with_capacity(unit.slices.len()), 0);
        for slice in &unit.slices {
            let mut values = vec![0.0; slice.elements];
            unit.weights.read_at(device, at, &mut values)?;
            at += slice.elements;
            new.push(values);
        }
        self.leave(before);
        Ok(new)
    }

    /// One tensor of the gradients of slices that follow each other, of which `first` is the first.
    fn join(&mut self, first: SliceId, mut vectors: Vec<Vector>) -> Result<Tensor, DeviceError> {
        let name = self.named("gradient of", first);
        if vectors.len() == 1
            && let Some(vector) = vectors.pop()
        {
            return self.here(vector, || name);
        }
        let length = |vector: &Vector| match vector {
            Vector::Host(values) => values.len(),
            Vector::Device(tensor) => tensor.elements(),
        };
        let mut whole = self.room(vectors.iter().map(length).sum(), name)?;
        let mut first = 0;
        for vector in vectors {
            let elements = length(&vector);
            match vector {
                Vector::Host(values) => whole.write_at(self.device.get_mut(), first, &values)?,
                Vector::Device(tensor) => {
                    cuda::copy_to(self.device.get_mut(), &tensor, first, &mut whole)?;
                    self.leave(tensor);
                }
            }
            first += elements;
        }
        Ok(whole)
    }

    /// The lowest index of a number that is NaN or infinite.
    pub(super) fn first_non_finite(&mut self, tensor: &Tensor) -> Result<Option<usize>, DeviceError> {
        cuda::first_non_finite(self.device.get_mut(), tensor)
    }

    /// The optimizer's tensors of a slice, and the aggregate of the step before, where that is kept here; `None` if the slice is not here.
    pub(super) fn state(&self, slice: &Slice) -> Result<Option<Vec<Vec<f32>>>, DeviceError> {
        let Some((unit, first)) = self.places.get(&slice.id) else { return Ok(None) };
        let Some(unit) = self.units.get(unit) else { return Ok(None) };
        let device = &mut *self.device.borrow_mut();
        let read = |tensor: &Tensor| {
            let mut values = vec![0.0; slice.elements];
            tensor.read_at(device, *first, &mut values).map(|()| values)
        };
        let mut tensors = unit.state.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if let Some(weighed) = &self.weighed {
            tensors.extend(weighed.aggregate(device, slice)?);
        }
        Ok(Some(tensors))
    }
}
