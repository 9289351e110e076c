//! The multilayer perceptron: linear, ReLU, linear, ..., linear, softmax and cross-entropy.
//!
//! The backward pass goes layer by layer from the last: the weights' gradient, then the bias's, are handed over before
//! the input's gradient is computed. The first layer's input gradient is not computed at all.
//!
//! A bias's gradient is summed over examples in ascending order within sixteen interleaved sums (example e in sum
//! e mod 16), which are then added pairwise.

use super::{Batch, Initial, Loss, MAX_LAYERS, Model, ModelError, ParameterSpec};
use crate::linear::{Linear, Panels, Rows};
use crate::shape::Shape;
use crate::simd::vectorized;
use crate::softmax;

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
        let initial = Initial::Uniform { bound: (1.0 / (inputs as f64).sqrt()) as f32 };
        for (kind, dims) in [("weight", &[outputs, inputs][..]), ("bias", &[outputs])] {
            let name = format!("fc{}.{kind}", index + 1);
            let shape =
                Shape::new(dims).map_err(|source| ModelError::Shape { parameter: name.clone(), source })?;
            specs.push(ParameterSpec { name, shape, initial });
        }
    }
    Ok(specs)
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
        let too_large = ModelError::TooLarge { max_examples };
        let panels = Panels::new(max_examples);
        let buffer = |elements: usize| -> Result<Vec<f32>, ModelError> {
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(elements).map_err(|_| too_large.clone())?;
            buffer.resize(elements, 0.0);
            Ok(buffer)
        };
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
            scratch: buffer(softmax::scratch_elements(panels))?,
            specs,
            layers,
            max_examples,
        })
    }

    fn check_parameters(&self, parameters: &[&[f32]]) -> Result<(), ModelError> {
        if parameters.len() != self.specs.len() {
            return Err(ModelError::ParameterCount { expected: self.specs.len(), found: parameters.len() });
        }
        for (spec, values) in self.specs.iter().zip(parameters) {
            let (expected, found) = (spec.shape.elements(), values.len());
            if expected != found {
                return Err(ModelError::ParameterLength { parameter: spec.name.clone(), expected, found });
            }
        }
        Ok(())
    }

    fn check(&self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<(), ModelError> {
        self.check_parameters(parameters)?;
        let examples = batch.labels.len();
        if examples > self.max_examples {
            return Err(ModelError::TooManyExamples { examples, max_examples: self.max_examples });
        }
        let (expected, found) = (examples * self.input_elements(), batch.inputs.len());
        if expected != found {
            return Err(ModelError::InputLength { labels: examples, expected, found });
        }
        let classes = self.classes();
        match batch.labels.iter().enumerate().find(|&(_, &label)| label as usize >= classes) {
            Some((example, &label)) => Err(ModelError::Label { example, label, classes }),
            None => Ok(()),
        }
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
            Some(logits) => softmax::cross_entropy(
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
        self.check(parameters, batch)?;
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
        self.check(parameters, batch)?;
        Ok(self.forward(parameters, batch))
    }

    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        self.check_parameters(parameters)?;
        let (features, classes) = (self.input_elements(), self.classes());
        let examples = inputs.len() / features.max(1);
        if examples > self.max_examples {
            return Err(ModelError::TooManyExamples { examples, max_examples: self.max_examples });
        }
        if inputs.len() != examples * features || out.len() != examples * classes {
            return Err(ModelError::OutputLength {
                inputs: inputs.len(),
                features,
                outputs: out.len(),
                classes,
            });
        }
        let panels = Panels::new(examples);
        self.logits(parameters, inputs, panels);
        if let Some(logits) = self.activations.last_mut() {
            let logits = take_mut(logits, panels, classes);
            softmax::probabilities(panels, classes, logits, &mut self.scratch);
            panels.empty(logits, classes, out);
        }
        Ok(())
    }
}

/// Interleaved sums of a bias's gradient.
const SUMS: usize = 16;

/// The part of a buffer that a batch uses.
fn take(buffer: &[f32], panels: Panels, features: usize) -> &[f32] {
    buffer.get(..panels.elements(features)).unwrap_or_default()
}

fn take_mut(buffer: &mut [f32], panels: Panels, features: usize) -> &mut [f32] {
    buffer.get_mut(..panels.elements(features)).unwrap_or_default()
}

vectorized! {
    /// The bias's gradient: each feature's sum over examples.
    fn sum_examples<'a>(panels: Panels, dy: &'a [f32], out: &'a mut [f32]) {
        let features = out.len();
        for (feature, out) in out.iter_mut().enumerate() {
            let mut sums = [0.0f32; SUMS];
            for panel in panels.iter() {
                let start = panel.start * features + feature * panel.width;
                let row = dy.get(start..start + panel.used).unwrap_or_default();
                // Few panels start elsewhere than at a multiple: the last ones, on narrow vectors.
                let aligned = if panel.start % SUMS == 0 { row.len() / SUMS * SUMS } else { 0 };
                let (aligned, rest) = row.split_at(aligned);
                for values in aligned.as_chunks::<SUMS>().0 {
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += value;
                    }
                }
                for (example, value) in rest.iter().enumerate() {
                    sums[(panel.start + aligned.len() + example) % SUMS] += value;
                }
            }
            let mut width = SUMS / 2;
            while width > 0 {
                for lane in 0..width {
                    sums[lane] += sums[lane + width];
                }
                width /= 2;
            }
            *out = sums[0];
        }
    }

    /// Zero for what is negative; NaN stays, so that it is noticed.
    fn relu<'a>(values: &'a mut [f32]) {
        for value in values {
            *value = if *value < 0.0 { 0.0 } else { *value };
        }
    }

    /// The gradient through [`relu`] whose results are `outputs`: zero where they are not positive.
    fn relu_gradient<'a>(gradient: &'a mut [f32], outputs: &'a [f32]) {
        for (gradient, output) in gradient.iter_mut().zip(outputs) {
            *gradient = if *output > 0.0 { *gradient } else { 0.0 };
        }
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
