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
use super::output::Output;
use super::parameter::uniform_layer;
use super::working::Working;
use super::{Batch, Loss, Model, ModelError, ParameterSpec};
use crate::layers::{
    Image, Kept, Linear, Panels, Pool, Rows, buffer, relu, relu_gradient, sum_examples, take, take_mut,
};
use crate::precision::Precision;
use crate::simd::vectorized;
use unit::{Room, Unit, Units};

/// Channels of each stage; each has [`BLOCKS`] blocks.
pub(crate) const STAGES: [usize; 4] = [64, 128, 256, 512];
pub(crate) const BLOCKS: usize = 2;
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

    /// Features of what is kept for the backward pass: the image; what each convolution made and what became of it, but
    /// for shortcuts.
    fn kept(&self) -> usize {
        let image = self.image.features();
        self.units().map(|unit| unit.output().features().saturating_mul(2)).fold(image, usize::saturating_add)
    }

    /// Features of the widest activation, if activations are kept otherwise than they are read.
    fn read(&self, precision: Precision) -> usize {
        if precision == Precision::F32 { 0 } else { self.widest() }
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
    precision: Precision,
    examples: usize,
) -> Result<usize, ModelError> {
    let (layers, _) = Layers::new(image, classes)?;
    let each = [layers.read(precision), layers.last.inputs, layers.last.outputs]
        .into_iter()
        .fold(layers.widest().saturating_mul(DELTAS), usize::saturating_add);
    let kept = Kept::size(precision, layers.kept().saturating_mul(examples));
    let beside = layers.packed(examples).saturating_add(layers.weights()).saturating_add(layers.statistics);
    Ok(each.saturating_mul(examples).saturating_add(kept).saturating_add(beside))
}

/// Buffers of the widest activation's size for gradients.
const DELTAS: usize = 4;

/// What one unit's convolution made, and what became of that after norm and ReLU (and the shortcut), in panels.
struct KeptUnit {
    raw: Kept,
    done: Kept,
}

struct KeptBlock {
    first: KeptUnit,
    second: KeptUnit,
    shortcut: Kept,
}

pub(super) struct ResNet {
    specs: Vec<ParameterSpec>,
    layers: Layers,
    smoothing: f32,
    precision: Precision,
    weights: Working,
    max_examples: usize,
    input: Kept,
    stem: KeptUnit,
    blocks: Vec<KeptBlock>,
    mean: Vec<f32>,
    output: Output,
    deltas: [Vec<f32>; DELTAS],
    /// Where activations are read that are kept otherwise.
    read: Vec<f32>,
    /// Gradient of the parameter at work.
    gradient: Vec<f32>,
    room: Room,
}

impl ResNet {
    pub(super) fn new(
        image: [usize; 3],
        classes: usize,
        smoothing: f32,
        precision: Precision,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let (layers, specs) = Layers::new(image, classes)?;
        let panels = Panels::new(max_examples);
        let buffer = |elements: usize| buffer(elements, max_examples);
        let features = |features: usize| buffer(panels.elements(features));
        let kept = |features: usize| Kept::new(precision, panels.elements(features), max_examples);
        let kept_unit = |unit: &Unit| -> Result<KeptUnit, ModelError> {
            let width = unit.output().features();
            Ok(KeptUnit { raw: kept(width)?, done: kept(width)? })
        };
        let block = |block: &Block| -> Result<KeptBlock, ModelError> {
            let shortcut = block.shortcut.as_ref().map_or(0, |unit| unit.output().features());
            let (first, second) = (kept_unit(&block.first)?, kept_unit(&block.second)?);
            Ok(KeptBlock { first, second, shortcut: kept(shortcut)? })
        };
        let widest = layers.widest();
        let weights = specs.iter().map(|spec| spec.shape.elements()).max().unwrap_or(0);
        let delta = || features(widest);
        Ok(Self {
            input: kept(layers.image.features())?,
            stem: kept_unit(&layers.stem)?,
            blocks: layers.blocks.iter().map(block).collect::<Result<_, _>>()?,
            mean: features(layers.last.inputs)?,
            output: Output::new(classes, precision, panels, max_examples)?,
            deltas: [delta()?, delta()?, delta()?, delta()?],
            read: features(layers.read(precision))?,
            gradient: buffer(weights)?,
            room: Room {
                statistics: buffer(layers.statistics)?,
                ordered: buffer(layers.weights())?,
                packed: buffer(layers.packed(max_examples))?,
            },
            weights: Working::new(precision, &specs, max_examples)?,
            specs,
            layers,
            smoothing,
            precision,
            max_examples,
        })
    }

    /// Leaves activations and logits. Norms go by the shard's own statistics if `training`, and else by the running ones.
    fn logits(&mut self, parameters: &[&[f32]], inputs: &[f32], panels: Panels, training: bool) {
        self.weights.take(parameters);
        let Self { layers, room, weights, read, .. } = self;
        let image = layers.image;
        // Where what is kept otherwise is computed: of a shortcut, of a unit, what lies between, what a convolution makes.
        let [beside, done, hidden, raw] = &mut self.deltas;
        let size = |unit: &Unit| panels.elements(unit.output().features());
        let mut run = |unit: &Unit, x: &[f32], kept: &mut Kept, y: &mut [f32]| {
            unit.forward(weights, parameters, panels, training, x, (kept, raw), y, room);
        };
        let pixels = panels.elements(image.features());
        self.input.keep(pixels, done, |x| {
            let channels = take_mut(beside, panels, image.features());
            panels.fill(inputs, image.features(), channels);
            image.to_pixels(panels, channels, x);
        });
        let KeptUnit { raw: of_stem, done: stem } = &mut self.stem;
        stem.keep(size(&layers.stem), done, |y| {
            run(&layers.stem, self.input.read(pixels, read), of_stem, y);
            relu(y);
        });
        let mut before = &*stem;
        for (block, kept) in layers.blocks.iter().zip(&mut self.blocks) {
            let KeptBlock { first, second, shortcut } = kept;
            let x = before.read(panels.elements(block.first.input().features()), read);
            first.done.keep(size(&block.first), done, |y| {
                run(&block.first, x, &mut first.raw, y);
                relu(y);
            });
            let between = first.done.read(size(&block.first), hidden);
            second.done.keep(size(&block.second), done, |y| {
                run(&block.second, between, &mut second.raw, y);
                match &block.shortcut {
                    Some(unit) => {
                        let beside = take_mut(beside, panels, unit.output().features());
                        run(unit, x, shortcut, beside);
                        add_rectified(beside, y);
                    }
                    None => add_rectified(x, y),
                }
            });
            before = &second.done;
        }
        let last = layers.last;
        let mean = take_mut(&mut self.mean, panels, last.inputs);
        let width = layers.blocks.last().map_or(&layers.stem, |block| &block.second);
        layers.pool.mean(panels, before.read(size(width), read), mean);
        self.precision.round(mean);
        let index = parameters.len().saturating_sub(2);
        let at = |index: usize| weights.at(parameters, index);
        last.forward(at(index), at(index + 1), panels, mean, self.output.logits(panels));
    }

    /// As [`ResNet::logits`]; the logits become their own gradients.
    fn forward(&mut self, parameters: &[&[f32]], batch: Batch<'_>, training: bool) -> Loss {
        let panels = Panels::new(batch.labels.len());
        self.logits(parameters, batch.inputs, panels, training);
        let smoothing = if training { self.smoothing } else { 0.0 };
        self.output.loss(panels, smoothing, batch.labels)
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
        crate::stage::first_is_over();
        let panels = Panels::new(batch.labels.len());
        let Self { layers, room, gradient, weights, read, precision, .. } = self;
        let [delta, a, b, c] = &mut self.deltas;

        let last = layers.last;
        let (mean, dy) = (take(&self.mean, panels, last.inputs), self.output.gradients(panels));
        let index = parameters.len().saturating_sub(2);
        let dw = gradient.get_mut(..last.inputs * last.outputs).unwrap_or_default();
        last.weights(panels, dy, Rows::Panels(mean), dw, &mut room.packed);
        ready(index, dw);
        let db = gradient.get_mut(..last.outputs).unwrap_or_default();
        sum_examples(panels, dy, db);
        ready(index + 1, db);
        let dmean = take_mut(a, panels, last.inputs);
        last.backward(weights.at(parameters, index), panels, dy, dmean);
        let width = layers.blocks.last().map_or(0, |block| block.second.output().features());
        layers.pool.mean_gradient(panels, dmean, take_mut(delta, panels, width));

        // What the stage at work shares: where its gradients go, and what they are computed in.
        let precision = *precision;
        let mut back =
            |unit: &Unit, kept: (&Kept, &Kept, &mut [f32]), dy: &mut [f32], dx: Option<&mut [f32]>| {
                unit.backward(weights, precision, parameters, panels, kept, dy, dx, gradient, room, ready);
            };
        let size = |unit: &Unit| panels.elements(unit.output().features());
        for (index, block) in layers.blocks.iter().enumerate().rev() {
            let Some((before, [kept, ..])) = self.blocks.split_at_checked(index) else { break };
            let (inner, outer) = (block.first.output().features(), block.second.output().features());
            let x = before.last().map_or(&self.stem.done, |before| &before.second.done);
            let width = block.first.input().features();
            let dy = take_mut(delta, panels, outer);
            relu_gradient(dy, kept.second.done.read(size(&block.second), read));
            // The shortcut's gradient into `c`, for `delta` is needed whole.
            let dx = take_mut(c, panels, width);
            match &block.shortcut {
                Some(unit) => {
                    let copy = take_mut(a, panels, outer);
                    copy.copy_from_slice(dy);
                    back(unit, (x, &kept.shortcut, read), copy, Some(dx));
                }
                None => dx.copy_from_slice(dy),
            }
            let dhidden = take_mut(a, panels, inner);
            back(&block.second, (&kept.first.done, &kept.second.raw, read), dy, Some(dhidden));
            relu_gradient(dhidden, kept.first.done.read(size(&block.first), read));
            let through = take_mut(b, panels, width);
            back(&block.first, (x, &kept.first.raw, read), dhidden, Some(through));
            crate::aggregate::add(dx, through);
            std::mem::swap(delta, c);
        }
        let width = layers.stem.output().features();
        let dy = take_mut(delta, panels, width);
        relu_gradient(dy, self.stem.done.read(size(&layers.stem), read));
        back(&layers.stem, (&self.input, &self.stem.raw, read), dy, None);
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
        let panels = Panels::new(examples);
        self.logits(parameters, inputs, panels, false);
        self.output.probabilities(panels, out);
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
            let mut hashes = Vec::new();
            let batch = Batch::new(&inputs, &labels);
            let losses = [Precision::F32, Precision::Bf16].map(|precision| {
                let mut model = ResNet::new([3, 5, 4], 7, 0.1, precision, examples + 3).unwrap();
                let loss = model.gradients(&values, batch, &mut |index, gradient| {
                    let hash = gradient.iter().fold(0u64, |hash, value| {
                        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
                    });
                    hashes.push((index, hash));
                });
                (loss, model.evaluate(&values, batch))
            });
            assert_ne!(losses[0], losses[1]);
            (losses, hashes)
        });
    }
}
