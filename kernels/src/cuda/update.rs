//! An optimizer on a device: scalars on the host, everything that has an element for each weight in generated kernels.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry, SCALARS, Scalars};
use super::generate::Generated;
use super::operations::{NONE, found};
use crate::optimizer::{Optimizer, OptimizerError, StepInputs};

/// A program with its constants, made ready for a device: the twin of [`Optimizer`].
#[derive(Clone, Debug)]
pub struct DeviceOptimizer {
    host: Optimizer,
    kernels: Generated,
}

/// A slice of a tensor, or a whole one.
#[derive(Debug)]
pub struct DeviceSlice<'a, M> {
    /// The weights.
    pub weights: &'a Buffer<M, f32>,
    /// On entry the gradient sum, on return the new weights.
    pub gradient_to_weights: &'a mut Buffer<M, f32>,
    /// The state tensors, each as long as the weights.
    pub state: &'a mut [Buffer<M, f32>],
}

/// Threads of a block that adds blocks' sums, as optimizer.cu has them.
const TOTAL_THREADS: u32 = 256;
/// Elements of a reduction's block, and its lanes, as optimizer.cu has them.
const REDUCTION_BLOCK: usize = 4096;
const REDUCTION_LANES: u32 = 16;

impl DeviceOptimizer {
    /// The kernels of an optimizer's program. Their names begin with `name`, letters, digits and underscores.
    ///
    /// # Errors
    /// As [`Generated::new`].
    pub fn new(name: &str, optimizer: Optimizer) -> Result<Self, DeviceError> {
        let kernels = Generated::new(name, &optimizer)?;
        Ok(Self { host: optimizer, kernels })
    }

    /// The kernels' text.
    pub fn kernels(&self) -> &Generated {
        &self.kernels
    }

    /// One step on a slice of a tensor, or on a whole one: as [`Optimizer::update`].
    ///
    /// # Errors
    /// As [`Optimizer::update`], and what a launch may meet.
    pub fn update<D: Device>(
        &mut self,
        device: &mut D,
        inputs: StepInputs,
        slice: DeviceSlice<'_, D::Memory>,
        scalars: &mut [f64],
    ) -> Result<(), DeviceError> {
        if self.host.program().needs_whole_tensor() {
            return Err(OptimizerError::WholeTensor.into());
        }
        self.update_tensor(device, inputs, slice, scalars)
    }

    /// One step on a whole tensor, in one piece: as [`Optimizer::update_tensor`].
    ///
    /// # Errors
    /// As [`DeviceOptimizer::update`], but for programs that need whole tensors. When memory for the sums is missing, nothing has changed.
    pub fn update_tensor<D: Device>(
        &mut self,
        device: &mut D,
        inputs: StepInputs,
        mut slice: DeviceSlice<'_, D::Memory>,
        scalars: &mut [f64],
    ) -> Result<(), DeviceError> {
        self.launch(device, inputs, &mut slice, scalars, false)?;
        self.host.store_scalars(scalars);
        Ok(())
    }

    /// The same, and looks at every new value: as [`Optimizer::update_checked`].
    ///
    /// # Errors
    /// As [`DeviceOptimizer::update_tensor`], and [`OptimizerError::NotFinite`] as there.
    pub fn update_checked<D: Device>(
        &mut self,
        device: &mut D,
        inputs: StepInputs,
        mut slice: DeviceSlice<'_, D::Memory>,
        scalars: &mut [f64],
    ) -> Result<(), DeviceError> {
        let first = self.launch(device, inputs, &mut slice, scalars, true)?;
        if let Some(at) = found(device, &first)? {
            let mut element = |tensor: &Buffer<D::Memory, f32>| {
                let mut value = [0.0];
                tensor.read_at(device, at, &mut value).map(|()| value[0])
            };
            let weights = (element(slice.weights)?, element(slice.gradient_to_weights)?);
            let state = slice.state.iter().map(element).collect::<Result<Vec<f32>, _>>()?;
            return Err(self.host.not_finite_at(at, weights, &state).into());
        }
        self.host.store_scalars(scalars);
        Ok(())
    }

    /// All passes of a step; before the last, new scalars are looked at if they are to be. The index of what is not finite is on its way.
    fn launch<D: Device>(
        &mut self,
        device: &mut D,
        inputs: StepInputs,
        slice: &mut DeviceSlice<'_, D::Memory>,
        scalars: &[f64],
        looks: bool,
    ) -> Result<Buffer<D::Memory, u64>, DeviceError> {
        self.host.check(inputs, scalars)?;
        let elements = slice.weights.elements();
        slice.gradient_to_weights.check(elements)?;
        let (expected, found) = (self.host.program().state_tensors().len(), slice.state.len());
        if found != expected {
            return Err(OptimizerError::StateCount { expected, found }.into());
        }
        slice.state.iter().try_for_each(|state| state.check(elements))?;
        let mut first = Buffer::of(device, "first", &[NONE])?;
        let last = self.kernels.reductions.len();
        for level in 0..last {
            self.reduce(device, level, inputs, slice, scalars)?;
        }
        let values = self.scalars_at(last, inputs, elements, scalars);
        if looks {
            self.host.check_scalars()?;
        }
        let mut arguments = vec![slice.weights.input(), slice.gradient_to_weights.output()];
        arguments.extend(slice.state.iter_mut().map(Buffer::output));
        arguments.extend([
            Argument::Scalars(&values),
            Argument::F32(inputs.divisor),
            first.output(),
            Argument::U64(elements as u64),
        ]);
        let kernel = format!("{}_update", self.kernels.name);
        let geometry = Geometry::each(elements, device.blocks());
        device.launch(&self.kernels.source, &kernel, geometry, &mut arguments)?;
        Ok(first)
    }

    /// A pass that sums. What it finds comes back to the host, which the scalars of the next pass follow from.
    fn reduce<D: Device>(
        &mut self,
        device: &mut D,
        level: usize,
        inputs: StepInputs,
        slice: &DeviceSlice<'_, D::Memory>,
        scalars: &[f64],
    ) -> Result<(), DeviceError> {
        let elements = slice.weights.elements();
        let (blocks, count) = (elements.div_ceil(REDUCTION_BLOCK), self.kernels.reductions[level].len());
        let mut sums = Buffer::<_, f64>::zeros(device, "sums of blocks", blocks.saturating_mul(count))?;
        let mut totals = Buffer::<_, f64>::zeros(device, "totals", count)?;
        let values = self.scalars_at(level, inputs, elements, scalars);
        let mut arguments = vec![slice.weights.input(), slice.gradient_to_weights.input()];
        arguments.extend(slice.state.iter().map(Buffer::input));
        arguments.extend([
            Argument::Scalars(&values),
            Argument::F32(inputs.divisor),
            sums.output(),
            Argument::U64(elements as u64),
        ]);
        let kernel = format!("{}_reduce_{level}", self.kernels.name);
        let a_block = Geometry::THREADS / REDUCTION_LANES;
        let geometry = Geometry::new(blocks, a_block, Geometry::THREADS, device.blocks());
        device.launch(&self.kernels.source, &kernel, geometry, &mut arguments)?;
        let geometry = Geometry { blocks: count as u32, threads: TOTAL_THREADS, shared_bytes: 0 };
        let arguments = &mut [sums.input(), totals.output(), Argument::U64(blocks as u64)];
        device.launch(&self.kernels.source, "total_of_blocks", geometry, arguments)?;
        let totals = totals.to_vec(device)?;
        for (node, total) in self.kernels.reductions[level].iter().zip(totals) {
            self.host.set_reduction(*node, total);
        }
        Ok(())
    }

    /// The scalars that a pass takes, in its order.
    fn scalars_at(&mut self, level: usize, inputs: StepInputs, elements: usize, scalars: &[f64]) -> Scalars {
        let rounded = self.host.scalars_at(level, inputs, elements, scalars);
        let mut values = [0.0; SCALARS];
        for (value, node) in values.iter_mut().zip(&self.kernels.scalars) {
            *value = rounded.get(node.index()).copied().unwrap_or_default();
        }
        Scalars(values)
    }
}
