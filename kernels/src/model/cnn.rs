//! A small convolutional network: convolution 3x3 to 32 channels, ReLU, convolution 3x3 to 64, ReLU, max pooling 2x2, a
//! fully connected layer of 128, ReLU, a fully connected layer to the classes, softmax and cross-entropy.
//!
//! Convolutions are without padding. Parameters have the shapes, the order of elements and the first values' law that
//! PyTorch's `nn.Conv2d` and `nn.Linear` give them. What is pooled goes into the first fully connected layer in the
//! order (channel, y, x), as `nn.Flatten` makes it.

use super::check::{check_batch, check_inputs};
use super::output::Output;
use super::parameter::uniform_layer;
use super::working::Working;
use super::{Batch, Loss, Model, ModelError, ParameterSpec};
use crate::layers::{
    Convolution, Ends, Image, Kept, Linear, Panels, Pool, Rows, buffer, relu, relu_gradient, sum_examples,
    sum_positions, take_mut,
};
use crate::precision::Precision;

/// Side of the convolutions' kernels.
pub(crate) const KERNEL: usize = 3;
/// Channels of the convolutions.
pub(crate) const CHANNELS: [usize; 2] = [32, 64];
/// Side of the pooled windows.
pub(crate) const POOL: usize = 2;
/// Width of the first fully connected layer.
pub(crate) const HIDDEN: usize = 128;

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

    /// Features of what is kept for the backward pass: the image, and what each layer but the last made of it.
    fn widths(&self) -> [usize; 5] {
        let [first, second] = &self.convolutions;
        let [hidden, _] = self.linear;
        [
            self.image.features(),
            first.output().features(),
            second.output().features(),
            hidden.inputs,
            hidden.outputs,
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

    /// The same, if activations are kept otherwise than they are read.
    fn read(&self, precision: Precision) -> usize {
        if precision == Precision::F32 { 0 } else { self.widest() }
    }
}

/// Least side of an image.
pub(crate) const LEAST: usize = 2 * (KERNEL - 1) + POOL;

pub(super) fn parameters(image: [usize; 3], classes: usize) -> Result<Vec<ParameterSpec>, ModelError> {
    Layers::new(image, classes)?.parameters()
}

/// Numbers that a model holds, its parameters' gradients aside.
pub(super) fn buffer_elements(
    image: [usize; 3],
    classes: usize,
    precision: Precision,
    examples: usize,
) -> Result<usize, ModelError> {
    let layers = Layers::new(image, classes)?;
    let beside = layers.widest().saturating_mul(2).saturating_add(classes);
    let beside = beside.saturating_add(layers.read(precision)).saturating_mul(examples);
    let widths = layers.widths().into_iter().fold(0, usize::saturating_add);
    let kept = Kept::size(precision, widths.saturating_mul(examples));
    let [ordered, packed] = layers.scratch(examples);
    Ok(kept.saturating_add(beside).saturating_add(ordered).saturating_add(packed))
}

pub(super) struct Cnn {
    specs: Vec<ParameterSpec>,
    layers: Layers,
    smoothing: f32,
    precision: Precision,
    weights: Working,
    max_examples: usize,
    /// As [`Layers::widths`], in panels.
    activations: [Kept; 5],
    output: Output,
    /// Where activations are read that are kept otherwise.
    read: Vec<f32>,
    deltas: [Vec<f32>; 2],
    /// Gradient of the parameter at work.
    gradient: Vec<f32>,
    /// The weights at work in another order.
    ordered: Vec<f32>,
    packed: Vec<f32>,
}

impl Cnn {
    pub(super) fn new(
        image: [usize; 3],
        classes: usize,
        smoothing: f32,
        precision: Precision,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let layers = Layers::new(image, classes)?;
        let specs = layers.parameters()?;
        let panels = Panels::new(max_examples);
        let buffer = |elements: usize| buffer(elements, max_examples);
        let [a, b, c, d, e] =
            layers.widths().map(|width| Kept::new(precision, panels.elements(width), max_examples));
        let widest = layers.widest();
        let weights = specs.iter().map(|spec| spec.shape.elements()).max().unwrap_or(0);
        let [ordered, packed] = layers.scratch(max_examples);
        Ok(Self {
            activations: [a?, b?, c?, d?, e?],
            output: Output::new(classes, precision, panels, max_examples)?,
            read: buffer(panels.elements(layers.read(precision)))?,
            deltas: [buffer(panels.elements(widest))?, buffer(panels.elements(widest))?],
            gradient: buffer(weights)?,
            ordered: buffer(ordered)?,
            packed: buffer(packed)?,
            weights: Working::new(precision, &specs, max_examples)?,
            specs,
            layers,
            smoothing,
            precision,
            max_examples,
        })
    }

    /// Leaves activations and logits.
    fn logits(&mut self, parameters: &[&[f32]], inputs: &[f32], panels: Panels) {
        self.weights.take(parameters);
        let at = |index: usize| self.weights.at(parameters, index);
        let Layers { image, convolutions: [first, second], pool, linear } = &self.layers;
        let widths = self.layers.widths();
        let sizes = widths.map(|width| panels.elements(width));
        let [x, y1, y2, flat, hidden] = &mut self.activations;
        let ([room, other], read) = (&mut self.deltas, &mut self.read);
        x.keep(sizes[0], room, |x| {
            if image.channels == 1 {
                panels.fill(inputs, widths[0], x);
            } else {
                let channels = take_mut(other, panels, widths[0]);
                panels.fill(inputs, widths[0], channels);
                image.to_pixels(panels, channels, x);
            }
        });
        let ends = |bias| Ends { bias: Some(bias), rectify: true };
        let from = x.read(sizes[0], read);
        y1.keep(sizes[1], room, |y| first.forward(at(0), ends(at(1)), panels, from, y, &mut self.ordered));
        let from = y1.read(sizes[1], read);
        y2.keep(sizes[2], room, |y| second.forward(at(2), ends(at(3)), panels, from, y, &mut self.ordered));
        let pooled = take_mut(other, panels, widths[3]);
        pool.greatest(panels, y2.read(sizes[2], read), pooled);
        flat.keep(sizes[3], room, |flat| pool.output().to_channels(panels, pooled, flat));
        let from = flat.read(sizes[3], read);
        hidden.keep(sizes[4], room, |hidden| {
            linear[0].forward(at(4), at(5), panels, from, hidden);
            relu(hidden);
        });
        linear[1].forward(at(6), at(7), panels, hidden.read(sizes[4], read), self.output.logits(panels));
    }

    /// As [`Cnn::logits`]; the logits become their own gradients.
    fn forward(&mut self, parameters: &[&[f32]], batch: Batch<'_>, smoothing: f32) -> Loss {
        let panels = Panels::new(batch.labels.len());
        self.logits(parameters, batch.inputs, panels);
        self.output.loss(panels, smoothing, batch.labels)
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
        crate::stage::first_is_over();
        let panels = Panels::new(batch.labels.len());
        let Layers { convolutions: [first, second], pool, linear, .. } = &self.layers;
        let widths = self.layers.widths();
        let sizes = widths.map(|width| panels.elements(width));
        let [x, y1, y2, flat, hidden] = &self.activations;
        let ([delta, next], read, precision) = (&mut self.deltas, &mut self.read, self.precision);
        let (gradient, ordered, packed) = (&mut self.gradient, &mut self.ordered, &mut self.packed);
        let mut hand_over = |index: usize, elements: usize, compute: &mut dyn FnMut(&mut [f32])| {
            let gradient = gradient.get_mut(..elements).unwrap_or_default();
            compute(gradient);
            ready(index, gradient);
        };
        let elements = |index: usize| self.specs.get(index).map_or(0, |spec| spec.shape.elements());
        let weights = |index: usize| self.weights.at(parameters, index);

        let (dy, hidden) = (self.output.gradients(panels), hidden.read(sizes[4], read));
        hand_over(6, elements(6), &mut |dw| linear[1].weights(panels, dy, Rows::Panels(hidden), dw, packed));
        hand_over(7, elements(7), &mut |db| sum_examples(panels, dy, db));
        let dx = take_mut(delta, panels, widths[4]);
        linear[1].backward(weights(6), panels, dy, dx);
        relu_gradient(dx, hidden);
        precision.round(dx);

        let (dy, flat) = (&*dx, flat.read(sizes[3], read));
        hand_over(4, elements(4), &mut |dw| linear[0].weights(panels, dy, Rows::Panels(flat), dw, packed));
        hand_over(5, elements(5), &mut |db| sum_examples(panels, dy, db));
        let dx = take_mut(next, panels, widths[3]);
        linear[0].backward(weights(4), panels, dy, dx);
        let pooled = take_mut(delta, panels, widths[3]);
        pool.output().to_pixels(panels, dx, pooled);
        let dx = take_mut(next, panels, widths[2]);
        pool.greatest_gradient(true, panels, y2.read(sizes[2], read), pooled, dx);
        precision.round(dx);

        let (dy, y1) = (&*dx, y1.read(sizes[1], read));
        hand_over(2, elements(2), &mut |dw| second.weights(panels, dy, y1, dw, ordered, packed));
        hand_over(3, elements(3), &mut |db| sum_positions(panels, second.output().pixels(), dy, db));
        let dx = take_mut(delta, panels, widths[1]);
        second.backward(weights(2), panels, dy, dx, ordered);
        relu_gradient(dx, y1);
        precision.round(dx);

        let (dy, x) = (&*dx, x.read(sizes[0], read));
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
        let panels = Panels::new(examples);
        self.logits(parameters, inputs, panels);
        self.output.probabilities(panels, out);
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
                let mut bits = Vec::new();
                let batch = Batch::new(&inputs, &labels);
                let losses = [Precision::F32, Precision::Bf16].map(|precision| {
                    let mut model = Cnn::new([2, 9, 8], 10, 0.1, precision, examples + 3).unwrap();
                    model.gradients(&values, batch, &mut |index, gradient| {
                        bits.push((index, gradient.iter().map(|value| value.to_bits()).collect::<Vec<_>>()));
                    })
                });
                assert_ne!(losses[0], losses[1]);
                (losses, bits)
            });
        }
    }
}
