//! The multilayer perceptron: linear, ReLU, linear, ..., linear, softmax and cross-entropy.
//!
//! The backward pass goes layer by layer from the last: the weights' gradient, then the bias's, are handed over before
//! the input's gradient is computed. The first layer's input gradient is not computed at all.

use super::check::{check_batch, check_inputs};
use super::parameter::uniform_layer;
use super::{Batch, Loss, MAX_LAYERS, Model, ModelError, ParameterSpec};
use crate::layers::{
    Linear, Panels, Rows, buffer, cross_entropy, probabilities, relu, relu_gradient, scratch_elements,
    sum_examples, take, take_mut,
};

pub(super) struct Mlp {
    specs: Vec<ParameterSpec>,
    layers: Vec<Linear>,
    max_examples: usize,
    /// The inputs, then each layer's output, in panels.
    activations: Vec<Vec<f32>>,
    /// Gradients of the output and of the input of the layer at work, in panels.
    deltas: [Vec<f32>; 2],
    /// Gradient of the parameter at work.
    gradient: Vec<f32>,
    packed: Vec<f32>,
    scratch: Vec<f32>,
}

/// The parameters of an MLP. Weights and biases are uniform within 1/sqrt(inputs), as PyTorch's `nn.Linear` draws them.
pub(super) fn parameters(
    inputs: usize,
    hidden: &[usize],
    classes: usize,
) -> Result<Vec<ParameterSpec>, ModelError> {
    let mut specs = Vec::new();
    for (index, Linear { inputs, outputs }) in layers(inputs, hidden, classes)?.into_iter().enumerate() {
        specs.extend(uniform_layer(&format!("fc{}", index + 1), &[outputs, inputs])?);
    }
    Ok(specs)
}

/// Numbers that a model holds, its parameters' gradients aside.
pub(super) fn buffer_elements(
    inputs: usize,
    hidden: &[usize],
    classes: usize,
    examples: usize,
) -> Result<usize, ModelError> {
    let layers = layers(inputs, hidden, classes)?;
    let widest = layers.iter().map(|layer| layer.outputs).max().unwrap_or(0);
    let widths = layers.iter().map(|layer| layer.outputs).fold(inputs, usize::saturating_add);
    let packed = layers.iter().map(|layer| layer.packed_elements(examples)).max().unwrap_or(0);
    let kept = widest.saturating_mul(2).saturating_add(widths);
    Ok(kept.saturating_mul(examples).saturating_add(packed))
}

fn layers(inputs: usize, hidden: &[usize], classes: usize) -> Result<Vec<Linear>, ModelError> {
    if hidden.len() >= MAX_LAYERS {
        return Err(ModelError::TooManyLayers { layers: hidden.len() + 1 });
    }
    let ins = std::iter::once(inputs).chain(hidden.iter().copied());
    let outs = hidden.iter().copied().chain(std::iter::once(classes));
    let layers: Vec<Linear> = ins.zip(outs).map(|(inputs, outputs)| Linear { inputs, outputs }).collect();
    match layers.iter().position(|layer| layer.inputs == 0 || layer.outputs == 0) {
        None => Ok(layers),
        Some(index) => {
            let Linear { inputs, outputs } = layers[index];
            Err(ModelError::EmptyLayer { layer: index + 1, inputs, outputs })
        }
    }
}

impl Mlp {
    pub(super) fn new(
        inputs: usize,
        hidden: &[usize],
        classes: usize,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let specs = parameters(inputs, hidden, classes)?;
        let layers = layers(inputs, hidden, classes)?;
        let panels = Panels::new(max_examples);
        let buffer = |elements: usize| buffer(elements, max_examples);
        let widths = || std::iter::once(inputs).chain(layers.iter().map(|layer| layer.outputs));
        let activations = widths().map(|width| buffer(panels.elements(width))).collect::<Result<_, _>>()?;
        let widest = layers.iter().map(|layer| layer.outputs).max().unwrap_or(0);
        let weights = specs.iter().map(|spec| spec.shape.elements()).max().unwrap_or(0);
        let packed = layers.iter().map(|layer| layer.packed_elements(max_examples)).max().unwrap_or(0);
        Ok(Self {
            activations,
            deltas: [buffer(panels.elements(widest))?, buffer(panels.elements(widest))?],
            gradient: buffer(weights)?,
            packed: buffer(packed)?,
            scratch: buffer(scratch_elements(panels))?,
            specs,
            layers,
            max_examples,
        })
    }

    /// Fills the activations; the last are the logits.
    fn logits(&mut self, parameters: &[&[f32]], inputs: &[f32], panels: Panels) {
        let mut activations = self.activations.as_mut_slice();
        if let Some(input) = activations.first_mut() {
            panels.fill(inputs, self.layers[0].inputs, input);
        }
        for (layer, values) in self.layers.iter().zip(parameters.chunks_exact(2)) {
            let [x, rest @ ..] = std::mem::take(&mut activations) else { break };
            activations = rest;
            let ([y, following @ ..], [weights, bias]) = (&mut *activations, values) else { break };
            let (x, y) = (take(x, panels, layer.inputs), take_mut(y, panels, layer.outputs));
            layer.forward(weights, bias, panels, x, y);
            if !following.is_empty() {
                relu(y);
            }
        }
    }

    /// As [`Mlp::logits`]; the logits become their own gradients.
    fn forward(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Loss {
        let panels = Panels::new(batch.labels.len());
        self.logits(parameters, batch.inputs, panels);
        let classes = self.classes();
        match self.activations.last_mut() {
            Some(logits) => cross_entropy(
                panels,
                classes,
                take_mut(logits, panels, classes),
                batch.labels,
                &mut self.scratch,
            ),
            None => Loss::default(),
        }
    }
}

impl Model for Mlp {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn input_elements(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.inputs)
    }

    fn classes(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.outputs)
    }

    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        let loss = self.forward(parameters, batch);
        let panels = Panels::new(batch.labels.len());
        let [delta, next] = &mut self.deltas;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let (Some(x), Some(y)) = (self.activations.get(index), self.activations.get(index + 1)) else {
                break;
            };
            // The last layer's delta is where the logits were.
            let dy = if index + 1 == self.layers.len() { y } else { &*delta };
            let dy = take(dy, panels, layer.outputs);
            let rows = if index == 0 { Rows::Rows(batch.inputs) } else { Rows::Panels(x) };
            let elements = layer.inputs * layer.outputs;
            let gradient = self.gradient.get_mut(..elements).unwrap_or_default();
            layer.weights(panels, dy, rows, gradient, &mut self.packed);
            ready(2 * index, gradient);
            let gradient = self.gradient.get_mut(..layer.outputs).unwrap_or_default();
            sum_examples(panels, dy, gradient);
            ready(2 * index + 1, gradient);
            if let (true, Some(weights)) = (index > 0, parameters.get(2 * index)) {
                let dx = take_mut(next, panels, layer.inputs);
                layer.backward(weights, panels, dy, dx);
                relu_gradient(dx, take(x, panels, layer.inputs));
                std::mem::swap(delta, next);
            }
        }
        Ok(loss)
    }

    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        Ok(self.forward(parameters, batch))
    }

    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let examples = check_inputs(self, self.max_examples, parameters, inputs, out)?;
        let classes = self.classes();
        let panels = Panels::new(examples);
        self.logits(parameters, inputs, panels);
        if let Some(logits) = self.activations.last_mut() {
            let logits = take_mut(logits, panels, classes);
            probabilities(panels, classes, logits, &mut self.scratch);
            panels.empty(logits, classes, out);
        }
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
        let specs = parameters(21, &[34, 19], 10).unwrap();
        let values: Vec<Vec<f32>> = specs
            .iter()
            .map(|spec| {
                let mut values = vec![0.0; spec.shape.elements()];
                spec.initialize(2, 0, &mut values);
                values
            })
            .collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        for examples in [1, 3, 8, 12, 16, 24, 31, 70, 150] {
            let inputs: Vec<f32> = (0..examples * 21).map(|i| ((i * 29) % 83) as f32 / 40.0 - 1.0).collect();
            let labels: Vec<u32> = (0..examples as u32).map(|e| e % 10).collect();
            forced::assert_same(|| {
                let mut model = Mlp::new(21, &[34, 19], 10, examples).unwrap();
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
