//! ResNet-18 for small images (He et al., "Deep residual learning for image recognition", 2016, with the stem that the
//! paper's section 4.2 has for CIFAR): a convolution 3x3 to 64 channels; four stages of two blocks, of 64, 128, 256 and
//! 512 channels, the last three halving the image; the mean over pixels; a fully connected layer to the classes, softmax
//! and cross-entropy. A block is convolution 3x3, norm, ReLU, convolution 3x3, norm, plus what went into it (where sizes
//! differ: a convolution 1x1 of that and a norm), ReLU. Convolutions have no bias; norms are batch norms.
//!
//! Parameters are named, shaped and ordered as in torchvision's `resnet18`. The running statistics of batch norm stand
//! among them, as values that are averaged ([`Update::Average`]) and not learnt: a shard's "gradient" of one is its part
//! in it. Training normalises by the shard's own statistics, evaluation by the running ones.
//!
//! The gradient of a block's input is that through the shortcut plus that through the convolutions, added in this order.

mod unit;

use super::check::{check_batch, check_inputs};
use super::parameter::uniform_layer;
use super::{Batch, Loss, Model, ModelError, ParameterSpec};
use crate::layers::{
    Image, Linear, Panels, Pool, Rows, buffer, probabilities, relu, relu_gradient, scratch_elements,
    smoothed_cross_entropy, sum_examples, take, take_mut,
};
use crate::simd::vectorized;
use unit::{Room, Unit, Units};

/// Channels of each stage; each has [`BLOCKS`] blocks.
const STAGES: [usize; 4] = [64, 128, 256, 512];
const BLOCKS: usize = 2;
/// Least side of an image: any, since convolutions are padded.
const LEAST: usize = 1;

/// A residual block.
struct Block {
    first: Unit,
    second: Unit,
    /// The shortcut's, where it is not the input itself.
    shortcut: Option<Unit>,
}

impl Block {
    fn units(&self) -> impl Iterator<Item = &Unit> {
        [&self.first, &self.second].into_iter().chain(&self.shortcut)
    }
}

/// The layers for images of one size.
struct Layers {
    image: Image,
    stem: Unit,
    blocks: Vec<Block>,
    pool: Pool,
    last: Linear,
    /// Numbers of all norms' statistics.
    statistics: usize,
}

impl Layers {
    fn new(image: [usize; 3], classes: usize) -> Result<(Self, Vec<ParameterSpec>), ModelError> {
        let image = super::image(image, LEAST)?;
        if classes == 0 {
            return Err(ModelError::EmptyLayer { layer: 1, inputs: STAGES[3], outputs: 0 });
        }
        let mut units = Units::default();
        let stem = Unit::new(["conv1", "bn1"], image, STAGES[0], 3, 1, &mut units)?;
        let (mut blocks, mut input) = (Vec::new(), stem.output());
        for (stage, channels) in STAGES.into_iter().enumerate() {
            for block in 0..BLOCKS {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let names = |parts: [&str; 2]| parts.map(|part| format!("layer{}.{block}.{part}", stage + 1));
                let first = Unit::new(names(["conv1", "bn1"]), input, channels, 3, stride, &mut units)?;
                let second = Unit::new(names(["conv2", "bn2"]), first.output(), channels, 3, 1, &mut units)?;
                let shortcut = match input == second.output() {
                    true => None,
                    false => {
                        let names = names(["downsample.0", "downsample.1"]);
                        Some(Unit::new(names, input, channels, 1, stride, &mut units)?)
                    }
                };
                input = second.output();
                blocks.push(Block { first, second, shortcut });
            }
        }
        let last = Linear { inputs: STAGES[3], outputs: classes };
        let Units { mut specs, statistics } = units;
        specs.extend(uniform_layer("fc", &[last.outputs, last.inputs])?);
        Ok((Self { image, stem, blocks, pool: Pool::global(input), last, statistics }, specs))
    }

    fn units(&self) -> impl Iterator<Item = &Unit> {
        std::iter::once(&self.stem).chain(self.blocks.iter().flat_map(Block::units))
    }

    /// Features of the widest activation.
    fn widest(&self) -> usize {
        let widths = self.units().map(|unit| unit.output().features());
        widths.fold(self.image.features().max(self.last.inputs), usize::max)
    }

    /// Features of all that is kept for the backward pass: the image; what each convolution made and what became of it,
    /// but for shortcuts; the mean over pixels and the logits.
    fn kept(&self) -> usize {
        let fixed = self.image.features().saturating_add(self.last.inputs).saturating_add(self.last.outputs);
        self.units().map(|unit| unit.output().features().saturating_mul(2)).fold(fixed, usize::saturating_add)
    }

    fn packed(&self, examples: usize) -> usize {
        let packed = self.units().map(|unit| unit.packed_elements(examples));
        packed.fold(self.last.packed_elements(examples), usize::max)
    }

    fn weights(&self) -> usize {
        self.units().map(Unit::weight_elements).fold(0, usize::max)
    }
}

pub(super) fn parameters(image: [usize; 3], classes: usize) -> Result<Vec<ParameterSpec>, ModelError> {
    Layers::new(image, classes).map(|(_, specs)| specs)
}

/// Numbers that a model holds, its parameters' gradients aside.
pub(super) fn buffer_elements(
    image: [usize; 3],
    classes: usize,
    examples: usize,
) -> Result<usize, ModelError> {
    let (layers, _) = Layers::new(image, classes)?;
    let each = layers.widest().saturating_mul(DELTAS).saturating_add(layers.kept());
    let beside = layers.packed(examples).saturating_add(layers.weights()).saturating_add(layers.statistics);
    Ok(each.saturating_mul(examples).saturating_add(beside))
}

/// Buffers of the widest activation's size for gradients.
const DELTAS: usize = 4;

/// What one unit's convolution made, and what became of that after norm and ReLU (and the shortcut), in panels.
struct Kept {
    raw: Vec<f32>,
    done: Vec<f32>,
}

struct KeptBlock {
    first: Kept,
    second: Kept,
    shortcut: Vec<f32>,
}

pub(super) struct ResNet {
    specs: Vec<ParameterSpec>,
    layers: Layers,
    smoothing: f32,
    max_examples: usize,
    input: Vec<f32>,
    stem: Kept,
    blocks: Vec<KeptBlock>,
    mean: Vec<f32>,
    logits: Vec<f32>,
    deltas: [Vec<f32>; DELTAS],
    /// Gradient of the parameter at work.
    gradient: Vec<f32>,
    room: Room,
    scratch: Vec<f32>,
}

impl ResNet {
    pub(super) fn new(
        image: [usize; 3],
        classes: usize,
        smoothing: f32,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let (layers, specs) = Layers::new(image, classes)?;
        let panels = Panels::new(max_examples);
        let buffer = |elements: usize| buffer(elements, max_examples);
        let features = |features: usize| buffer(panels.elements(features));
        let kept = |unit: &Unit| -> Result<Kept, ModelError> {
            let width = unit.output().features();
            Ok(Kept { raw: features(width)?, done: features(width)? })
        };
        let block = |block: &Block| -> Result<KeptBlock, ModelError> {
            let shortcut = block.shortcut.as_ref().map_or(0, |unit| unit.output().features());
            let (first, second) = (kept(&block.first)?, kept(&block.second)?);
            Ok(KeptBlock { first, second, shortcut: features(shortcut)? })
        };
        let widest = layers.widest();
        let weights = specs.iter().map(|spec| spec.shape.elements()).max().unwrap_or(0);
        let delta = || features(widest);
        Ok(Self {
            input: features(layers.image.features())?,
            stem: kept(&layers.stem)?,
            blocks: layers.blocks.iter().map(block).collect::<Result<_, _>>()?,
            mean: features(layers.last.inputs)?,
            logits: features(classes)?,
            deltas: [delta()?, delta()?, delta()?, delta()?],
            gradient: buffer(weights)?,
            room: Room {
                statistics: buffer(layers.statistics)?,
                ordered: buffer(layers.weights())?,
                packed: buffer(layers.packed(max_examples))?,
            },
            scratch: buffer(scratch_elements(panels))?,
            specs,
            layers,
            smoothing,
            max_examples,
        })
    }

    /// Fills the activations; the last are the logits. Norms go by the shard's own statistics if `training`, and else by
    /// the running ones.
    fn logits(&mut self, parameters: &[&[f32]], inputs: &[f32], panels: Panels, training: bool) {
        let Self { layers, room, .. } = self;
        let image = layers.image;
        let x = take_mut(&mut self.input, panels, image.features());
        let channels = take_mut(&mut self.deltas[0], panels, image.features());
        panels.fill(inputs, image.features(), channels);
        image.to_pixels(panels, channels, x);
        let mut run = |unit: &Unit, x: &[f32], raw: &mut Vec<f32>, y: &mut Vec<f32>| {
            let width = unit.output().features();
            let (raw, y) = (take_mut(raw, panels, width), take_mut(y, panels, width));
            unit.forward(parameters, panels, training, x, raw, y, room);
        };
        let width = layers.stem.output().features();
        run(&layers.stem, x, &mut self.stem.raw, &mut self.stem.done);
        let mut x = take_mut(&mut self.stem.done, panels, width);
        relu(x);
        for (block, kept) in layers.blocks.iter().zip(&mut self.blocks) {
            let KeptBlock { first, second, shortcut } = kept;
            run(&block.first, x, &mut first.raw, &mut first.done);
            let hidden = take_mut(&mut first.done, panels, block.first.output().features());
            relu(hidden);
            run(&block.second, hidden, &mut second.raw, &mut second.done);
            let width = block.second.output().features();
            match &block.shortcut {
                Some(unit) => {
                    run(unit, x, shortcut, &mut self.deltas[0]);
                    add_rectified(
                        take(&self.deltas[0], panels, width),
                        take_mut(&mut second.done, panels, width),
                    );
                }
                None => add_rectified(x, take_mut(&mut second.done, panels, width)),
            }
            x = take_mut(&mut second.done, panels, width);
        }
        let last = layers.last;
        let mean = take_mut(&mut self.mean, panels, last.inputs);
        layers.pool.mean(panels, x, mean);
        if let [.., weights, bias] = parameters {
            last.forward(weights, bias, panels, mean, take_mut(&mut self.logits, panels, last.outputs));
        }
    }

    /// As [`ResNet::logits`]; the logits become their own gradients.
    fn forward(&mut self, parameters: &[&[f32]], batch: Batch<'_>, training: bool) -> Loss {
        let panels = Panels::new(batch.labels.len());
        self.logits(parameters, batch.inputs, panels, training);
        let classes = self.classes();
        let logits = take_mut(&mut self.logits, panels, classes);
        let smoothing = if training { self.smoothing } else { 0.0 };
        smoothed_cross_entropy(smoothing, panels, classes, logits, batch.labels, &mut self.scratch)
    }
}

impl Model for ResNet {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn input_elements(&self) -> usize {
        self.layers.image.features()
    }

    fn classes(&self) -> usize {
        self.layers.last.outputs
    }

    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        let loss = self.forward(parameters, batch, true);
        let panels = Panels::new(batch.labels.len());
        let Self { layers, room, gradient, .. } = self;
        let [delta, a, b, c] = &mut self.deltas;

        let last = layers.last;
        let (mean, dy) = (take(&self.mean, panels, last.inputs), take(&self.logits, panels, last.outputs));
        let index = parameters.len().saturating_sub(2);
        let dw = gradient.get_mut(..last.inputs * last.outputs).unwrap_or_default();
        last.weights(panels, dy, Rows::Panels(mean), dw, &mut room.packed);
        ready(index, dw);
        let db = gradient.get_mut(..last.outputs).unwrap_or_default();
        sum_examples(panels, dy, db);
        ready(index + 1, db);
        let dmean = take_mut(a, panels, last.inputs);
        last.backward(parameters.get(index).copied().unwrap_or_default(), panels, dy, dmean);
        let width = layers.blocks.last().map_or(0, |block| block.second.output().features());
        layers.pool.mean_gradient(panels, dmean, take_mut(delta, panels, width));

        // What the stage at work shares: where its gradients go, and what they are computed in.
        let mut back = |unit: &Unit, x: &[f32], raw: &[f32], dy: &mut [f32], dx: Option<&mut [f32]>| {
            unit.backward(parameters, panels, x, raw, dy, dx, gradient, room, ready);
        };
        for (index, block) in layers.blocks.iter().enumerate().rev() {
            let Some((before, [kept, ..])) = self.blocks.split_at_checked(index) else { break };
            let (inner, outer) = (block.first.output().features(), block.second.output().features());
            let x = before.last().map_or(&self.stem.done, |before| &before.second.done);
            let width = block.first.input().features();
            let (x, hidden) = (take(x, panels, width), take(&kept.first.done, panels, inner));
            let dy = take_mut(delta, panels, outer);
            relu_gradient(dy, take(&kept.second.done, panels, outer));
            // The shortcut's gradient into `c`, for `delta` is needed whole.
            let dx = take_mut(c, panels, width);
            match &block.shortcut {
                Some(unit) => {
                    let copy = take_mut(a, panels, outer);
                    copy.copy_from_slice(dy);
                    back(unit, x, take(&kept.shortcut, panels, outer), copy, Some(dx));
                }
                None => dx.copy_from_slice(dy),
            }
            let dhidden = take_mut(a, panels, inner);
            back(&block.second, hidden, take(&kept.second.raw, panels, outer), dy, Some(dhidden));
            relu_gradient(dhidden, hidden);
            let through = take_mut(b, panels, width);
            back(&block.first, x, take(&kept.first.raw, panels, inner), dhidden, Some(through));
            crate::aggregate::add(dx, through);
            std::mem::swap(delta, c);
        }
        let width = layers.stem.output().features();
        let dy = take_mut(delta, panels, width);
        relu_gradient(dy, take(&self.stem.done, panels, width));
        let x = take(&self.input, panels, layers.image.features());
        back(&layers.stem, x, take(&self.stem.raw, panels, width), dy, None);
        Ok(loss)
    }

    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        Ok(self.forward(parameters, batch, false))
    }

    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let examples = check_inputs(self, self.max_examples, parameters, inputs, out)?;
        let (panels, classes) = (Panels::new(examples), self.classes());
        self.logits(parameters, inputs, panels, false);
        let logits = take_mut(&mut self.logits, panels, classes);
        probabilities(panels, classes, logits, &mut self.scratch);
        panels.empty(logits, classes, out);
        Ok(())
    }
}

vectorized! {
    /// Adds a shortcut to what the convolutions made, then ReLU.
    fn add_rectified<'a>(shortcut: &'a [f32], values: &'a mut [f32]) {
        for (value, shortcut) in values.iter_mut().zip(shortcut) {
            let sum = *value + *shortcut;
            *value = if sum < 0.0 { 0.0 } else { sum };
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
        let values: Vec<Vec<f32>> = parameters([3, 5, 4], 7)
            .unwrap()
            .iter()
            .map(|spec| {
                let mut values = vec![0.0; spec.shape.elements()];
                spec.initialize(2, 0, &mut values);
                values
            })
            .collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let examples = 19;
        let inputs: Vec<f32> = (0..examples * 60).map(|i| ((i * 29) % 83) as f32 / 40.0 - 1.0).collect();
        let labels: Vec<u32> = (0..examples as u32).map(|e| e % 7).collect();
        forced::assert_same(|| {
            let mut model = ResNet::new([3, 5, 4], 7, 0.1, examples + 3).unwrap();
            let mut hashes = Vec::new();
            let batch = Batch::new(&inputs, &labels);
            let loss = model.gradients(&values, batch, &mut |index, gradient| {
                let hash = gradient.iter().fold(0u64, |hash, value| {
                    (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
                });
                hashes.push((index, hash));
            });
            (loss, model.evaluate(&values, batch), hashes)
        });
    }
}
