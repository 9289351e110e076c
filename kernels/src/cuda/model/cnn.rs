//! The small convolutional network: the twin of `model/cnn.rs`. Activations are images by pixels, a pixel's channels side by side, up to
//! the first fully connected layer, which takes them by channels.

use super::super::batch_norm::sum_pixels;
use super::super::device::{Device, DeviceError};
use super::super::image::{DeviceConvolution, DevicePool, ImageSize};
use super::super::layers::{relu, relu_gradient, sum_examples};
use super::super::linear::DeviceLinear;
use super::super::network::permute;
use super::{Network, Numbers, Out, Rows};
use crate::model::cnn::{CHANNELS, HIDDEN, KERNEL, LEAST, POOL};
use crate::model::{ModelError, Place};

pub(super) struct Cnn<M> {
    image: ImageSize,
    convolutions: [DeviceConvolution; 2],
    pool: DevicePool,
    linear: [DeviceLinear; 2],
    examples: usize,
    /// The image by channels and by pixels, what each convolution made, what was pooled, by pixels and by channels, the hidden layer and the
    /// logits.
    activations: [Rows<M>; 8],
    /// Gradients of what each convolution made, of what was pooled, and of the hidden layer.
    deltas: [Rows<M>; 5],
}

impl<M: Send + 'static> Cnn<M> {
    pub(super) fn new<D: Device<Memory = M>>(
        device: &mut D,
        image: [usize; 3],
        classes: usize,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let refused = || ModelError::Image { image, least: LEAST };
        let [channels, height, width] = image;
        let image = ImageSize { channels, height, width };
        let convolution = |input, outputs| DeviceConvolution::new(input, outputs, KERNEL, 1, 0);
        let first = convolution(image, CHANNELS[0]).ok_or_else(refused)?;
        let second = convolution(first.output(), CHANNELS[1]).ok_or_else(refused)?;
        let pool = DevicePool::new(second.output(), POOL, POOL).ok_or_else(refused)?;
        let flat = pool.output().features();
        let linear = [
            DeviceLinear { inputs: flat, outputs: HIDDEN },
            DeviceLinear { inputs: HIDDEN, outputs: classes },
        ];
        let mut rows = |name: &str, features| Rows::new(device, name, max_examples, features);
        let [y1, y2] = [first.output().features(), second.output().features()];
        Ok(Self {
            activations: [
                rows("inputs", image.features())?,
                rows("inputs by pixels", image.features())?,
                rows("output of conv1", y1)?,
                rows("output of conv2", y2)?,
                rows("output of the pool", flat)?,
                rows("input of fc1", flat)?,
                rows("output of fc1", HIDDEN)?,
                rows("output of fc2", classes)?,
            ],
            deltas: [
                rows("gradient of output of conv1", y1)?,
                rows("gradient of output of conv2", y2)?,
                rows("gradient of output of the pool", flat)?,
                rows("gradient of input of fc1", flat)?,
                rows("gradient of output of fc1", HIDDEN)?,
            ],
            image,
            convolutions: [first, second],
            pool,
            linear,
            examples: 0,
        })
    }
}

impl<D: Device> Network<D> for Cnn<D::Memory> {
    fn forward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        inputs: &[f32],
        _: Option<Place>,
    ) -> Result<(), DeviceError> {
        let n = inputs.len() / self.image.features().max(1);
        self.examples = n;
        for rows in self.activations.iter_mut().chain(&mut self.deltas) {
            rows.set(n)?;
        }
        let [w1, b1, w2, b2, w3, b3, w4, b4] = parameters else { return Err(DeviceError::parameters()) };
        let [channels, x, y1, y2, pooled, flat, hidden, logits] = &mut self.activations;
        let [first, second] = self.convolutions;
        channels.write(device, inputs)?;
        permute(device, (self.image.channels, self.image.height * self.image.width), channels, x)?;
        first.forward(device, n, (w1, Some(b1), true), x, y1)?;
        second.forward(device, n, (w2, Some(b2), true), y1, y2)?;
        self.pool.greatest(device, n, y2, pooled)?;
        let small = self.pool.output();
        permute(device, (small.height * small.width, small.channels), pooled, flat)?;
        self.linear[0].forward(device, n, (w3, b3), flat, hidden)?;
        relu(device, hidden)?;
        self.linear[1].forward(device, n, (w4, b4), hidden, logits)
    }

    fn logits(&mut self) -> &mut Numbers<D> {
        &mut self.activations[7]
    }

    fn backward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        _: Place,
        out: &mut Out<'_, D>,
    ) -> Result<(), DeviceError> {
        let n = self.examples;
        let [_, _, w2, _, w3, _, w4, _] = parameters else { return Err(DeviceError::parameters()) };
        let [_, x, y1, y2, _, flat, hidden, dlogits] = &self.activations;
        let [dy1, dy2, dpooled, dflat, dhidden] = &mut self.deltas;
        let ([first, second], [widen, last]) = (self.convolutions, self.linear);

        last.weights(device, n, dlogits, hidden, out.gradient(6)?)?;
        out.ready(device, 6)?;
        sum_examples(device, dlogits, n, out.gradient(7)?)?;
        out.ready(device, 7)?;
        last.backward(device, n, w4, dlogits, dhidden)?;
        relu_gradient(device, dhidden, hidden)?;

        widen.weights(device, n, dhidden, flat, out.gradient(4)?)?;
        out.ready(device, 4)?;
        sum_examples(device, dhidden, n, out.gradient(5)?)?;
        out.ready(device, 5)?;
        widen.backward(device, n, w3, dhidden, dflat)?;
        let small = self.pool.output();
        permute(device, (small.channels, small.height * small.width), dflat, dpooled)?;
        self.pool.greatest_gradient(device, n, true, (y2, dpooled), dy2)?;

        second.weights(device, n, dy2, y1, out.gradient(2)?)?;
        out.ready(device, 2)?;
        let pixels = |layer: DeviceConvolution| layer.output().height * layer.output().width;
        sum_pixels(device, (n, pixels(second)), dy2, out.gradient(3)?)?;
        out.ready(device, 3)?;
        second.backward(device, n, w2, dy2, dy1)?;
        relu_gradient(device, dy1, y1)?;

        first.weights(device, n, dy1, x, out.gradient(0)?)?;
        out.ready(device, 0)?;
        sum_pixels(device, (n, pixels(first)), dy1, out.gradient(1)?)?;
        out.ready(device, 1)
    }
}
