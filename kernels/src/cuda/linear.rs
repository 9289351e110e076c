//! Fully connected layers on a device: the twins of `linear.rs` one level up, on values row by row.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry, Product};
use super::network::add_bias;
use super::source::Source;

/// A fully connected layer: its weights are [outputs, inputs] row-major.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceLinear {
    /// Features of what goes in.
    pub inputs: usize,
    /// Features of what comes out.
    pub outputs: usize,
}

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

impl DeviceLinear {
    /// y = x Wᵀ + b, of `examples` rows.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn forward<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        (weights, bias): (&Numbers<D>, &Numbers<D>),
        x: &Numbers<D>,
        y: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.check(examples, [weights, x, y])?;
        bias.check(self.outputs)?;
        let Self { inputs, outputs } = self;
        // The columns that BLAS sees are the rows here: yᵀ = W xᵀ.
        let product = Product {
            transposed: [true, false],
            sizes: [outputs, examples, inputs],
            distances: [inputs, inputs, outputs],
        };
        if device.multiply(product, weights.memory(), x.memory(), y.memory_mut())? {
            return add_bias(device, bias, y);
        }
        let arguments = vec![x.input(), weights.input(), bias.input(), y.output()];
        self.launch(device, "linear_forward", examples, (examples, self.outputs), arguments)
    }

    /// dx = dy W.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn backward<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        weights: &Numbers<D>,
        dy: &Numbers<D>,
        dx: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.check(examples, [weights, dx, dy])?;
        let Self { inputs, outputs } = self;
        let product = Product {
            transposed: [false, false],
            sizes: [inputs, examples, outputs],
            distances: [inputs, outputs, inputs],
        };
        if device.multiply(product, weights.memory(), dy.memory(), dx.memory_mut())? {
            return Ok(());
        }
        let arguments = vec![dy.input(), weights.input(), dx.output()];
        self.launch(device, "linear_backward", examples, (examples, self.inputs), arguments)
    }

    /// dW = dyᵀ x, a sum over examples.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn weights<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        dy: &Numbers<D>,
        x: &Numbers<D>,
        dw: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.check(examples, [dw, x, dy])?;
        let Self { inputs, outputs } = self;
        let product = Product {
            transposed: [false, true],
            sizes: [inputs, outputs, examples],
            distances: [inputs, outputs, inputs],
        };
        if device.multiply(product, x.memory(), dy.memory(), dw.memory_mut())? {
            return Ok(());
        }
        let arguments = vec![dy.input(), x.input(), dw.output()];
        self.launch(device, "linear_weights", examples, (self.outputs, self.inputs), arguments)
    }

    fn check<M>(self, examples: usize, [weights, x, y]: [&Buffer<M, f32>; 3]) -> Result<(), DeviceError> {
        weights.check(self.inputs.saturating_mul(self.outputs))?;
        x.check(examples.saturating_mul(self.inputs))?;
        y.check(examples.saturating_mul(self.outputs))
    }

    fn launch<D: Device>(
        self,
        device: &mut D,
        kernel: &str,
        examples: usize,
        (rows, columns): (usize, usize),
        mut arguments: Vec<Argument<'_, D::Memory>>,
    ) -> Result<(), DeviceError> {
        arguments.extend([examples, self.inputs, self.outputs].map(|count| Argument::U64(count as u64)));
        let tiles = rows.div_ceil(TILE).saturating_mul(columns.div_ceil(TILE));
        let geometry = Geometry::new(tiles, 1, TILE_THREADS, device.blocks());
        device.launch(&Source::linear(), kernel, geometry, &mut arguments)
    }
}

/// A tile's side, and the threads that share it, as linear.cu has them.
const TILE: usize = 64;
const TILE_THREADS: u32 = 256;
