//! A small convolutional network: convolution 3x3 to 32 channels, ReLU, convolution 3x3 to 64, ReLU, max pooling 2x2, a
//! fully connected layer of 128, ReLU, a fully connected layer to the classes, softmax and cross-entropy.
//!
//! Convolutions are without padding. Parameters have the shapes, the order of elements and the first values' law that
//! PyTorch's `nn.Conv2d` and `nn.Linear` give them. What is pooled goes into the first fully connected layer in the
//! order (channel, y, x), as `nn.Flatten` makes it.

use super::check::{check_batch, check_inputs};
use super::parameter::uniform_layer;
use super::{Batch, Loss, Model, ModelError, ParameterSpec};
use crate::layers::{
    Convolution, Ends, Image, Linear, Panels, Pool, Rows, buffer, probabilities, relu, relu_gradient,
    scratch_elements, smoothed_cross_entropy, sum_examples, sum_positions, take, take_mut,
};

/// Side of the convolutions' kernels.
const KERNEL: usize = 3;
/// Channels of the convolutions.
const CHANNELS: [usize; 2] = [32, 64];
/// Side of the pooled windows.
const POOL: usize = 2;
/// Width of the first fully connected layer.
const HIDDEN: usize = 128;

/// The layers for images of one size.
struct Layers {
    image: Image,
    convolutions: [Convolution; 2],
    pool: Pool,
    linear: [Linear; 2],
}

impl Layers {
    fn new(image: [usize; 3], classes: usize) -> Result<Self, ModelError> {
        let refused = || ModelError::Image { image, least: LEAST };
        let image = super::image(image, LEAST)?;
        let first = Convolution::new(image, CHANNELS[0], KERNEL, 1, 0).ok_or_else(refused)?;
        let second = Convolution::new(first.output(), CHANNELS[1], KERNEL, 1, 0).ok_or_else(refused)?;
        let pool = Pool::new(second.output(), POOL, POOL).ok_or_else(refused)?;
        if classes == 0 {
            return Err(ModelError::EmptyLayer { layer: 2, inputs: HIDDEN, outputs: 0 });
        }
        let linear = [
            Linear { inputs: pool.output().features(), outputs: HIDDEN },
            Linear { inputs: HIDDEN, outputs: classes },
        ];
        Ok(Self { image, convolutions: [first, second], pool, linear })
    }

    fn parameters(&self) -> Result<Vec<ParameterSpec>, ModelError> {
        let mut specs = Vec::new();
        let inputs = [self.image.channels, CHANNELS[0]];
        for (index, (inputs, outputs)) in inputs.into_iter().zip(CHANNELS).enumerate() {
            let dims = [outputs, inputs, KERNEL, KERNEL];
            specs.extend(uniform_layer(&format!("conv{}", index + 1), &dims)?);
        }
        for (index, layer) in self.linear.iter().enumerate() {
            specs.extend(uniform_layer(&format!("fc{}", index + 1), &[layer.outputs, layer.inputs])?);
        }
        Ok(specs)
    }

    /// Features of what is kept for the backward pass: the image, what each layer made of it, the logits last.
    fn widths(&self) -> [usize; 6] {
        let [first, second] = &self.convolutions;
        let [hidden, last] = self.linear;
        [
            self.image.features(),
            first.output().features(),
            second.output().features(),
            hidden.inputs,
            hidden.outputs,
            last.outputs,
        ]
    }

    /// Room for the weights of a convolution in another order, and for what is packed.
    fn scratch(&self, examples: usize) -> [usize; 2] {
        let convolutions = self.convolutions.iter();
        let packed = (convolutions.clone().map(|layer| layer.packed_elements(examples)))
            .chain(self.linear.iter().map(|layer| layer.packed_elements(examples)));
        let ordered = convolutions.map(Convolution::weight_elements);
        [ordered.max().unwrap_or(0), packed.max().unwrap_or(0)]
    }

    /// Features of the widest activation.
    fn widest(&self) -> usize {
        self.widths().into_iter().max().unwrap_or(0)
    }
}

/// Least side of an image.
const LEAST: usize = 2 * (KERNEL - 1) + POOL;

pub(super) fn parameters(image: [usize; 3], classes: usize) -> Result<Vec<ParameterSpec>, ModelError> {
    Layers::new(image, classes)?.parameters()
}

/// Numbers that a model holds, its parameters' gradients aside.
pub(super) fn buffer_elements(
    image: [usize; 3],
    classes: usize,
    examples: usize,
) -> Result<usize, ModelError> {
    let layers = Layers::new(image, classes)?;
    let kept = layers.widths().into_iter().fold(layers.widest().saturating_mul(2), usize::saturating_add);
    let [ordered, packed] = layers.scratch(examples);
    Ok(kept.saturating_mul(examples).saturating_add(ordered).saturating_add(packed))
}

pub(super) struct Cnn {
    specs: Vec<ParameterSpec>,
    layers: Layers,
    smoothing: f32,
    max_examples: usize,
    /// As [`Layers::widths`], in panels.
    activations: [Vec<f32>; 6],
    deltas: [Vec<f32>; 2],
    /// Gradient of the parameter at work.
    gradient: Vec<f32>,
    /// The weights at work in another order.
    ordered: Vec<f32>,
    packed: Vec<f32>,
    scratch: Vec<f32>,
}

impl Cnn {
    pub(super) fn new(
        image: [usize; 3],
        classes: usize,
        smoothing: f32,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let layers = Layers::new(image, classes)?;
        let specs = layers.parameters()?;
        let panels = Panels::new(max_examples);
        let buffer = |elements: usize| buffer(elements, max_examples);
        let [a, b, c, d, e, f] = layers.widths().map(|width| buffer(panels.elements(width)));
        let widest = layers.widest();
        let weights = specs.iter().map(|spec| spec.shape.elements()).max().unwrap_or(0);
        let [ordered, packed] = layers.scratch(max_examples);
        Ok(Self {
            activations: [a?, b?, c?, d?, e?, f?],
            deltas: [buffer(panels.elements(widest))?, buffer(panels.elements(widest))?],
            gradient: buffer(weights)?,
            ordered: buffer(ordered)?,
            packed: buffer(packed)?,
            scratch: buffer(scratch_elements(panels))?,
            specs,
            layers,
            smoothing,
            max_examples,
        })
    }

    /// Fills the activations; the last are the logits. Parameters are as many as the model's.
    fn logits(&mut self, parameters: &[&[f32]], inputs: &[f32], panels: Panels) {
        let [w1, b1, w2, b2, w3, b3, w4, b4] = parameters else { return };
        let Layers { image, convolutions: [first, second], pool, linear } = &self.layers;
        let widths = self.layers.widths();
        let [x, y1, y2, flat, hidden, logits] = &mut self.activations;
        let [delta, _] = &mut self.deltas;
        let x = take_mut(x, panels, widths[0]);
        if image.channels == 1 {
            panels.fill(inputs, widths[0], x);
        } else {
            let channels = take_mut(delta, panels, widths[0]);
            panels.fill(inputs, widths[0], channels);
            image.to_pixels(panels, channels, x);
        }
        let y1 = take_mut(y1, panels, widths[1]);
        first.forward(w1, Ends { bias: Some(b1), rectify: true }, panels, x, y1, &mut self.ordered);
        let y2 = take_mut(y2, panels, widths[2]);
        second.forward(w2, Ends { bias: Some(b2), rectify: true }, panels, y1, y2, &mut self.ordered);
        let pooled = take_mut(delta, panels, widths[3]);
        pool.greatest(panels, y2, pooled);
        let flat = take_mut(flat, panels, widths[3]);
        pool.output().to_channels(panels, pooled, flat);
        let hidden = take_mut(hidden, panels, widths[4]);
        linear[0].forward(w3, b3, panels, flat, hidden);
        relu(hidden);
        linear[1].forward(w4, b4, panels, hidden, take_mut(logits, panels, widths[5]));
    }

    /// As [`Cnn::logits`]; the logits become their own gradients.
    fn forward(&mut self, parameters: &[&[f32]], batch: Batch<'_>, smoothing: f32) -> Loss {
        let panels = Panels::new(batch.labels.len());
        self.logits(parameters, batch.inputs, panels);
        let classes = self.classes();
        let logits = take_mut(&mut self.activations[5], panels, classes);
        smoothed_cross_entropy(smoothing, panels, classes, logits, batch.labels, &mut self.scratch)
    }
}

impl Model for Cnn {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn input_elements(&self) -> usize {
        self.layers.image.features()
    }

    fn classes(&self) -> usize {
        self.layers.linear[1].outputs
    }

    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        let loss = self.forward(parameters, batch, self.smoothing);
        let panels = Panels::new(batch.labels.len());
        let Layers { convolutions: [first, second], pool, linear, .. } = &self.layers;
        let widths = self.layers.widths();
        let [x, y1, y2, flat, hidden, logits] = &self.activations;
        let [x, y1, y2, flat, hidden] = [(x, 0), (y1, 1), (y2, 2), (flat, 3), (hidden, 4)]
            .map(|(buffer, i)| take(buffer, panels, widths[i]));
        let [delta, next] = &mut self.deltas;
        let (gradient, ordered, packed) = (&mut self.gradient, &mut self.ordered, &mut self.packed);
        let mut hand_over = |index: usize, elements: usize, compute: &mut dyn FnMut(&mut [f32])| {
            let gradient = gradient.get_mut(..elements).unwrap_or_default();
            compute(gradient);
            ready(index, gradient);
        };
        let elements = |index: usize| self.specs.get(index).map_or(0, |spec| spec.shape.elements());
        let weights = |index: usize| parameters.get(index).copied().unwrap_or_default();

        let dy = take(logits, panels, widths[5]);
        hand_over(6, elements(6), &mut |dw| linear[1].weights(panels, dy, Rows::Panels(hidden), dw, packed));
        hand_over(7, elements(7), &mut |db| sum_examples(panels, dy, db));
        let dx = take_mut(delta, panels, widths[4]);
        linear[1].backward(weights(6), panels, dy, dx);
        relu_gradient(dx, hidden);

        let dy = &*dx;
        hand_over(4, elements(4), &mut |dw| linear[0].weights(panels, dy, Rows::Panels(flat), dw, packed));
        hand_over(5, elements(5), &mut |db| sum_examples(panels, dy, db));
        let dx = take_mut(next, panels, widths[3]);
        linear[0].backward(weights(4), panels, dy, dx);
        let pooled = take_mut(delta, panels, widths[3]);
        pool.output().to_pixels(panels, dx, pooled);
        let dx = take_mut(next, panels, widths[2]);
        pool.greatest_gradient(true, panels, y2, pooled, dx);

        let dy = &*dx;
        hand_over(2, elements(2), &mut |dw| second.weights(panels, dy, y1, dw, ordered, packed));
        hand_over(3, elements(3), &mut |db| sum_positions(panels, second.output().pixels(), dy, db));
        let dx = take_mut(delta, panels, widths[1]);
        second.backward(weights(2), panels, dy, dx, ordered);
        relu_gradient(dx, y1);

        let dy = &*dx;
        hand_over(0, elements(0), &mut |dw| first.weights(panels, dy, x, dw, ordered, packed));
        hand_over(1, elements(1), &mut |db| sum_positions(panels, first.output().pixels(), dy, db));
        Ok(loss)
    }

    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        Ok(self.forward(parameters, batch, 0.0))
    }

    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let examples = check_inputs(self, self.max_examples, parameters, inputs, out)?;
        let (panels, classes) = (Panels::new(examples), self.classes());
        self.logits(parameters, inputs, panels);
        let logits = take_mut(&mut self.activations[5], panels, classes);
        probabilities(panels, classes, logits, &mut self.scratch);
        panels.empty(logits, classes, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    /// Invariant 1 of the crate for a whole model: loss and gradients are the same at every SIMD width.
    #[test]
    fn width_does_not_matter() {
        let values: Vec<Vec<f32>> = parameters([2, 9, 8], 10)
            .unwrap()
            .iter()
            .map(|spec| {
                let mut values = vec![0.0; spec.shape.elements()];
                spec.initialize(2, 0, &mut values);
                values
            })
            .collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        for examples in [1, 16, 31, 70] {
            let inputs: Vec<f32> = (0..examples * 144).map(|i| ((i * 29) % 83) as f32 / 40.0 - 1.0).collect();
            let labels: Vec<u32> = (0..examples as u32).map(|e| e % 10).collect();
            forced::assert_same(|| {
                let mut model = Cnn::new([2, 9, 8], 10, 0.1, examples + 3).unwrap();
                let mut bits = Vec::new();
                let batch = Batch::new(&inputs, &labels);
                let loss = model.gradients(&values, batch, &mut |index, gradient| {
                    bits.push((index, gradient.iter().map(|value| value.to_bits()).collect::<Vec<_>>()));
                });
                (loss, bits)
            });
        }
    }
}
