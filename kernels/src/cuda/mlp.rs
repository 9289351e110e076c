//! The multilayer perceptron on a device: the twin of [`ModelSpec::Mlp`](crate::ModelSpec), with its gradients' bits.
//!
//! Forward: each layer's product, then ReLU, but for the last. Backward from the last layer: the weights' gradient, then the bias's, are
//! handed over before the layer's input's is computed.

use super::buffer::Buffer;
use super::device::{Device, DeviceError};
use super::layers::{cross_entropy, relu, relu_gradient, sum_examples};
use super::linear::DeviceLinear;
use crate::model::Loss;

/// A perceptron with buffers for `examples` examples.
#[derive(Debug)]
pub struct DeviceMlp<M> {
    layers: Vec<DeviceLinear>,
    examples: usize,
    /// What goes into the first layer, then what comes out of each; of the last, the logits and then their gradient.
    activations: Vec<Buffer<M, f32>>,
    /// The gradient of what goes into a layer, by layer; none for the first.
    deltas: Vec<Buffer<M, f32>>,
    /// The gradients of weight and bias, by layer.
    gradients: Vec<[Buffer<M, f32>; 2]>,
}

/// Takes a gradient that is final: the parameter's index, and its sum over the batch.
pub type Ready<'a, D> =
    dyn FnMut(&mut D, usize, &Buffer<<D as Device>::Memory, f32>) -> Result<(), DeviceError> + 'a;

impl<M> DeviceMlp<M> {
    /// Of inputs of `features` numbers, hidden layers of these widths, and `classes` classes, for batches of exactly `examples`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new<D: Device<Memory = M>>(
        device: &mut D,
        features: usize,
        hidden: &[usize],
        classes: usize,
        examples: usize,
    ) -> Result<Self, DeviceError> {
        let widths: Vec<usize> =
            [features].into_iter().chain(hidden.iter().copied()).chain([classes]).collect();
        let layers: Vec<DeviceLinear> = widths
            .windows(2)
            .filter_map(|pair| match *pair {
                [inputs, outputs] => Some(DeviceLinear { inputs, outputs }),
                _ => None,
            })
            .collect();
        let mut made = Self { layers, examples, activations: vec![], deltas: vec![], gradients: vec![] };
        for width in widths {
            let activations = Buffer::zeros(device, "activations", examples.saturating_mul(width))?;
            made.activations.push(activations);
        }
        for (index, layer) in made.layers.iter().enumerate() {
            let elements = if index == 0 { 0 } else { examples.saturating_mul(layer.inputs) };
            made.deltas.push(Buffer::zeros(device, "gradient of activations", elements)?);
            let elements = layer.inputs.saturating_mul(layer.outputs);
            let name = index + 1;
            made.gradients.push([
                Buffer::zeros(device, &format!("gradient of fc{name}.weight"), elements)?,
                Buffer::zeros(device, &format!("gradient of fc{name}.bias"), layer.outputs)?,
            ]);
        }
        Ok(made)
    }

    /// The loss and the gradients' sums over a batch. `parameters` are `fc1.weight`, `fc1.bias`, `fc2.weight` and so on; `inputs` is
    /// [examples, features]. Each gradient is handed over with its parameter's index as soon as it is final, last layer first.
    ///
    /// # Errors
    /// [`DeviceError::Length`], [`DeviceError::Label`], what `ready` says, and what a launch may meet.
    pub fn gradients<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        parameters: &[Buffer<M, f32>],
        (inputs, labels): (&[f32], &[u32]),
        ready: &mut Ready<'_, D>,
    ) -> Result<Loss, DeviceError> {
        let (parameters, _) = parameters.as_chunks::<2>();
        if parameters.len() != self.layers.len() {
            let (expected, found) = (self.layers.len(), parameters.len());
            return Err(DeviceError::Length { tensor: "parameters of layers".into(), expected, found });
        }
        let examples = self.examples;
        if let Some(first) = self.activations.first_mut() {
            first.write(device, inputs)?;
        }
        let last = self.layers.len().saturating_sub(1);
        for (index, (layer, [weights, bias])) in self.layers.iter().zip(parameters).enumerate() {
            if let [x, y] = &mut self.activations[index..=index + 1] {
                layer.forward(device, examples, (weights, bias), x, y)?;
                if index < last {
                    relu(device, y)?;
                }
            }
        }
        let classes = self.layers[last].outputs;
        let loss = match self.activations.last_mut() {
            Some(logits) => cross_entropy(device, logits, labels, classes)?,
            None => Loss::default(),
        };
        for (index, (layer, [weights, _])) in self.layers.iter().zip(parameters).enumerate().rev() {
            let (before, from_here) = self.deltas.split_at_mut(index + 1);
            // The last layer's is where the logits were.
            let dy = from_here.first().unwrap_or(&self.activations[last + 1]);
            let x = &self.activations[index];
            let [of_weights, of_bias] = &mut self.gradients[index];
            layer.weights(device, examples, dy, x, of_weights)?;
            ready(device, 2 * index, of_weights)?;
            sum_examples(device, dy, examples, of_bias)?;
            ready(device, 2 * index + 1, of_bias)?;
            if let (true, Some(dx)) = (index > 0, before.last_mut()) {
                layer.backward(device, examples, weights, dy, dx)?;
                relu_gradient(device, dx, x)?;
            }
        }
        Ok(loss)
    }
}
