//! The multilayer perceptron: the twin of `model/mlp.rs`.
//!
//! Forward: each layer's product, then ReLU, but for the last. Backward from the last layer: the weights' gradient, then the bias's, are
//! handed over before the layer's input's is computed.

use super::super::device::{Device, DeviceError};
use super::super::layers::{relu, relu_gradient, sum_examples};
use super::super::linear::DeviceLinear;
use super::{Network, Numbers, Out, Rows};
use crate::model::Place;

/// A perceptron.
pub(super) struct Mlp<M> {
    layers: Vec<DeviceLinear>,
    examples: usize,
    features: usize,
    /// What goes into the first layer, then what comes out of each; of the last, the logits and then their gradient.
    activations: Vec<Rows<M>>,
    /// The gradient of what goes into a layer, by layer; none for the first.
    deltas: Vec<Rows<M>>,
}

impl<M: Send + 'static> Mlp<M> {
    pub(super) fn new<D: Device<Memory = M>>(
        device: &mut D,
        features: usize,
        hidden: &[usize],
        classes: usize,
        max_examples: usize,
    ) -> Result<Self, DeviceError> {
        let widths: Vec<usize> =
            [features].into_iter().chain(hidden.iter().copied()).chain([classes]).collect();
        let pair = |(inputs, outputs): (&usize, &usize)| DeviceLinear { inputs: *inputs, outputs: *outputs };
        let layers: Vec<DeviceLinear> = widths.iter().zip(widths.iter().skip(1)).map(pair).collect();
        let mut rows = |name: &str, width: usize| Rows::new(device, name, max_examples, width);
        let name = |layer: usize| if layer == 0 { "inputs".into() } else { format!("output of fc{layer}") };
        let activation = |(index, width): (usize, &usize)| rows(&name(index), *width);
        let activations = widths.iter().enumerate().map(activation).collect::<Result<_, _>>()?;
        let width = |(index, layer): (usize, &DeviceLinear)| if index == 0 { 0 } else { layer.inputs };
        let deltas = layers.iter().enumerate().map(width).enumerate();
        let delta = |(index, width)| rows(&format!("gradient of {}", name(index)), width);
        let deltas = deltas.map(delta).collect::<Result<_, _>>()?;
        Ok(Self { layers, examples: 0, features, activations, deltas })
    }
}

impl<D: Device> Network<D> for Mlp<D::Memory> {
    fn forward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        inputs: &[f32],
        _: Option<Place>,
    ) -> Result<(), DeviceError> {
        self.examples = inputs.len() / self.features.max(1);
        for rows in self.activations.iter_mut().chain(&mut self.deltas) {
            rows.set(self.examples)?;
        }
        if let Some(first) = self.activations.first_mut() {
            first.write(device, inputs)?;
        }
        let last = self.layers.len().saturating_sub(1);
        let (parameters, _) = parameters.as_chunks::<2>();
        for (index, (layer, [weights, bias])) in self.layers.iter().zip(parameters).enumerate() {
            if let [x, y] = &mut self.activations[index..=index + 1] {
                layer.forward(device, self.examples, (weights, bias), x, y)?;
                if index < last {
                    relu(device, y)?;
                }
            }
        }
        Ok(())
    }

    fn logits(&mut self) -> &mut Numbers<D> {
        let last = self.layers.len();
        &mut self.activations[last]
    }

    fn backward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        _: Place,
        out: &mut Out<'_, D>,
    ) -> Result<(), DeviceError> {
        let (last, examples) = (self.layers.len(), self.examples);
        let (parameters, _) = parameters.as_chunks::<2>();
        for (index, (layer, [weights, _])) in self.layers.iter().zip(parameters).enumerate().rev() {
            let (before, from_here) = self.deltas.split_at_mut(index + 1);
            // The last layer's is where the logits were.
            let dy = from_here.first().unwrap_or(&self.activations[last]);
            let x = &self.activations[index];
            layer.weights(device, examples, dy, x, out.gradient(2 * index)?)?;
            out.ready(device, 2 * index)?;
            sum_examples(device, dy, examples, out.gradient(2 * index + 1)?)?;
            out.ready(device, 2 * index + 1)?;
            if let (true, Some(dx)) = (index > 0, before.last_mut()) {
                layer.backward(device, examples, weights, dy, dx)?;
                relu_gradient(device, dx, x)?;
            }
        }
        Ok(())
    }
}
