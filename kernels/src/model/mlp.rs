//! The multilayer perceptron: linear, ReLU, linear, ..., linear, softmax and cross-entropy.
//!
//! The backward pass goes layer by layer from the last: the weights' gradient, then the bias's, are handed over before
//! the input's gradient is computed. The first layer's input gradient is not computed at all.

use super::check::{check_batch, check_inputs};
use super::output::Output;
use super::parameter::uniform_layer;
use super::working::Working;
use super::{Batch, Loss, MAX_LAYERS, Model, ModelError, ParameterSpec};
use crate::layers::{Kept, Linear, Panels, Rows, buffer, relu, relu_gradient, sum_examples, take, take_mut};
use crate::precision::Precision;

pub(super) struct Mlp {
    specs: Vec<ParameterSpec>,
    layers: Vec<Linear>,
    precision: Precision,
    weights: Working,
    max_examples: usize,
    /// The inputs, then what each layer but the last made, in panels.
    activations: Vec<Kept>,
    output: Output,
    /// Where activations are read that are kept otherwise.
    read: Vec<f32>,
    /// Gradients of the output and of the input of the layer at work, in panels.
    deltas: [Vec<f32>; 2],
    /// Gradient of the parameter at work.
    gradient: Vec<f32>,
    packed: Vec<f32>,
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
    precision: Precision,
    examples: usize,
) -> Result<usize, ModelError> {
    let layers = layers(inputs, hidden, classes)?;
    let widest = layers.iter().map(|layer| layer.outputs).max().unwrap_or(0);
    let widths = layers.iter().map(|layer| layer.inputs).fold(0, usize::saturating_add);
    let packed = layers.iter().map(|layer| layer.packed_elements(examples)).max().unwrap_or(0);
    let beside = widest.saturating_mul(2).saturating_add(classes).saturating_add(read(&layers, precision));
    let kept = Kept::size(precision, widths.saturating_mul(examples));
    Ok(beside.saturating_mul(examples).saturating_add(kept).saturating_add(packed))
}

/// Features of the widest input of a layer, if activations are kept otherwise than they are read.
fn read(layers: &[Linear], precision: Precision) -> usize {
    match precision {
        Precision::F32 => 0,
        Precision::Bf16 => layers.iter().map(|layer| layer.inputs).max().unwrap_or(0),
    }
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
        precision: Precision,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let specs = parameters(inputs, hidden, classes)?;
        let layers = layers(inputs, hidden, classes)?;
        let panels = Panels::new(max_examples);
        let buffer = |elements: usize| buffer(elements, max_examples);
        let kept = |layer: &Linear| Kept::new(precision, panels.elements(layer.inputs), max_examples);
        let widest = layers.iter().map(|layer| layer.outputs).max().unwrap_or(0);
        let weights = specs.iter().map(|spec| spec.shape.elements()).max().unwrap_or(0);
        let packed = layers.iter().map(|layer| layer.packed_elements(max_examples)).max().unwrap_or(0);
        Ok(Self {
            activations: layers.iter().map(kept).collect::<Result<_, _>>()?,
            output: Output::new(classes, precision, panels, max_examples)?,
            read: buffer(panels.elements(read(&layers, precision)))?,
            deltas: [buffer(panels.elements(widest))?, buffer(panels.elements(widest))?],
            gradient: buffer(weights)?,
            packed: buffer(packed)?,
            weights: Working::new(precision, &specs, max_examples)?,
            specs,
            layers,
            precision,
            max_examples,
        })
    }

    /// Leaves activations and logits.
    fn logits(&mut self, parameters: &[&[f32]], inputs: &[f32], panels: Panels) {
        self.weights.take(parameters);
        let [room, _] = &mut self.deltas;
        let mut activations = self.activations.as_mut_slice();
        if let (Some(input), Some(first)) = (activations.first_mut(), self.layers.first()) {
            input.keep(panels.elements(first.inputs), &mut self.read, |x| {
                panels.fill(inputs, first.inputs, x);
            });
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let Some((x, rest)) = std::mem::take(&mut activations).split_first_mut() else { break };
            activations = rest;
            let x = x.read(panels.elements(layer.inputs), &mut self.read);
            let at = |index: usize| self.weights.at(parameters, index);
            let (weights, bias) = (at(2 * index), at(2 * index + 1));
            match activations.first_mut() {
                Some(hidden) => hidden.keep(panels.elements(layer.outputs), room, |y| {
                    layer.forward(weights, bias, panels, x, y);
                    relu(y);
                }),
                None => {
                    layer.forward(weights, bias, panels, x, self.output.logits(panels));
                }
            }
        }
    }

    /// As [`Mlp::logits`]; the logits become their own gradients.
    fn forward(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Loss {
        let panels = Panels::new(batch.labels.len());
        self.logits(parameters, batch.inputs, panels);
        self.output.loss(panels, 0.0, batch.labels)
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
        crate::stage::first_is_over();
        let panels = Panels::new(batch.labels.len());
        let precision = self.precision;
        let [delta, next] = &mut self.deltas;
        for (index, (layer, x)) in self.layers.iter().zip(&self.activations).enumerate().rev() {
            let last = index + 1 == self.layers.len();
            let dy = if last { self.output.gradients(panels) } else { take(delta, panels, layer.outputs) };
            let x = x.read(panels.elements(layer.inputs), &mut self.read);
            let rows = match (index, precision) {
                (0, Precision::F32) => Rows::Rows(batch.inputs),
                _ => Rows::Panels(x),
            };
            let elements = layer.inputs * layer.outputs;
            let gradient = self.gradient.get_mut(..elements).unwrap_or_default();
            layer.weights(panels, dy, rows, gradient, &mut self.packed);
            ready(2 * index, gradient);
            let gradient = self.gradient.get_mut(..layer.outputs).unwrap_or_default();
            sum_examples(panels, dy, gradient);
            ready(2 * index + 1, gradient);
            if index > 0 {
                let dx = take_mut(next, panels, layer.inputs);
                layer.backward(self.weights.at(parameters, 2 * index), panels, dy, dx);
                relu_gradient(dx, x);
                precision.round(dx);
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
                let mut bits = Vec::new();
                let batch = Batch::new(&inputs, &labels);
                let losses = [Precision::F32, Precision::Bf16].map(|precision| {
                    let mut model = Mlp::new(21, &[34, 19], 10, precision, examples).unwrap();
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
