//! ResNet-18 for small images: the twin of `model/resnet.rs`. Activations are images by pixels, a pixel's channels side by side.

use super::super::batch_norm::{DeviceBatchNorm, DeviceStatistics};
use super::super::device::{Device, DeviceError};
use super::super::image::{DeviceConvolution, DevicePool, ImageSize};
use super::super::layers::{relu, relu_gradient, sum_examples};
use super::super::linear::DeviceLinear;
use super::super::network::{add_rectified, copy, permute};
use super::super::operations::add;
use super::{Network, Numbers, Out, Rows};
use crate::model::resnet::{BLOCKS, STAGES};
use crate::model::{ModelError, ParameterSpec, Place};

/// A convolution without bias and the batch norm of its result.
struct Unit<M> {
    input: ImageSize,
    convolution: DeviceConvolution,
    norm: DeviceBatchNorm,
    /// Its first parameter: the convolution's weight. The norm's weight, bias, running mean and running variance follow.
    first: usize,
    by: DeviceStatistics<M>,
    /// What the convolution made.
    raw: Rows<M>,
    /// The norm of that, and what became of it.
    done: Rows<M>,
}

/// Parameters of a unit.
const OF_UNIT: usize = 5;

impl<M: Send + 'static> Unit<M> {
    fn new<D: Device<Memory = M>>(
        device: &mut D,
        input: ImageSize,
        (outputs, kernel, stride): (usize, usize, usize),
        (units, max_examples): (&mut usize, usize),
        specs: &[ParameterSpec],
    ) -> Result<Self, ModelError> {
        let refused = ModelError::Image { image: [input.channels, input.height, input.width], least: 1 };
        let convolution =
            DeviceConvolution::new(input, outputs, kernel, stride, kernel / 2).ok_or(refused)?;
        let features = convolution.output().features();
        let first = OF_UNIT * *units;
        *units += 1;
        // A layer is called as its weight is.
        let name = |at: usize| {
            let weight = specs.get(at).map_or("", |spec| spec.name.as_str());
            weight.strip_suffix(".weight").unwrap_or(weight)
        };
        let (conv, norm) = (name(first), name(first + 1));
        Ok(Self {
            input,
            convolution,
            norm: DeviceBatchNorm { image: convolution.output() },
            first,
            by: DeviceStatistics::new(device, norm, outputs)?,
            raw: Rows::new(device, &format!("output of {conv}"), max_examples, features)?,
            done: Rows::new(device, &format!("output of {norm}"), max_examples, features)?,
        })
    }

    fn output(&self) -> ImageSize {
        self.convolution.output()
    }

    fn set(&mut self, examples: usize) -> Result<(), DeviceError> {
        self.raw.set(examples)?;
        self.done.set(examples)
    }

    /// `done` becomes the norm of the convolution of `x`: by its own statistics if `training`, else by the running ones.
    fn forward<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        (examples, training): (usize, bool),
        x: &Numbers<D>,
    ) -> Result<(), DeviceError> {
        let [weight, scale, shift, mean, variance] = of_unit(parameters, self.first)?;
        self.convolution.forward(device, examples, (weight, None, false), x, &mut self.raw)?;
        if training {
            self.norm.measure(device, examples, &self.raw, &mut self.by)?;
        } else {
            copy(device, mean, &mut self.by.mean)?;
            copy(device, variance, &mut self.by.variance)?;
            self.by.invert(device)?;
        }
        self.norm.forward(device, examples, (scale, shift), &self.by, &self.raw, &mut self.done)
    }

    /// From the gradient `dy` of its result, which becomes that of what the convolution made, to that of its input, if wanted.
    fn backward<D: Device<Memory = M>>(
        &self,
        device: &mut D,
        parameters: &[Numbers<D>],
        examples: usize,
        (x, dy, dx): (&Numbers<D>, &mut Numbers<D>, Option<&mut Numbers<D>>),
        out: &mut Out<'_, D>,
    ) -> Result<(), DeviceError> {
        let [weight, scale, ..] = of_unit(parameters, self.first)?;
        let [mean, variance] = out.pair(self.first + 3, self.first + 4)?;
        self.norm.parts(device, examples, &self.by, (mean, variance))?;
        out.ready(device, self.first + 4)?;
        out.ready(device, self.first + 3)?;
        let [of_scale, of_shift] = out.pair(self.first + 1, self.first + 2)?;
        self.norm.backward(device, examples, scale, &self.by, (&self.raw, dy), (of_scale, of_shift))?;
        out.ready(device, self.first + 1)?;
        out.ready(device, self.first + 2)?;
        self.convolution.weights(device, examples, dy, x, out.gradient(self.first)?)?;
        out.ready(device, self.first)?;
        match dx {
            Some(dx) => self.convolution.backward(device, examples, weight, dy, dx),
            None => Ok(()),
        }
    }
}

fn of_unit<M>(
    parameters: &[super::Buffer<M, f32>],
    first: usize,
) -> Result<&[super::Buffer<M, f32>; OF_UNIT], DeviceError> {
    parameters.get(first..).and_then(|rest| rest.first_chunk()).ok_or_else(DeviceError::parameters)
}

/// A residual block.
struct Block<M> {
    first: Unit<M>,
    second: Unit<M>,
    /// The shortcut's, where it is not the input itself.
    shortcut: Option<Unit<M>>,
}

pub(super) struct ResNet<M> {
    image: ImageSize,
    examples: usize,
    channels: Rows<M>,
    input: Rows<M>,
    stem: Unit<M>,
    blocks: Vec<Block<M>>,
    pool: DevicePool,
    last: DeviceLinear,
    mean: Rows<M>,
    logits: Rows<M>,
    /// Gradients, of the widest activation's size: of a block's result and of its input, and two between.
    deltas: [Rows<M>; 4],
}

impl<M: Send + 'static> ResNet<M> {
    pub(super) fn new<D: Device<Memory = M>>(
        device: &mut D,
        image: [usize; 3],
        classes: usize,
        max_examples: usize,
        specs: &[ParameterSpec],
    ) -> Result<Self, ModelError> {
        let [channels, height, width] = image;
        let image = ImageSize { channels, height, width };
        let mut units = 0;
        let mut unit = |device: &mut D, input: ImageSize, convolution: (usize, usize, usize)| {
            Unit::new(device, input, convolution, (&mut units, max_examples), specs)
        };
        let stem = unit(device, image, (STAGES[0], 3, 1))?;
        let (mut blocks, mut input) = (Vec::new(), stem.output());
        let mut widest = image.features().max(stem.output().features()).max(STAGES[3]);
        for (stage, channels) in STAGES.into_iter().enumerate() {
            for block in 0..BLOCKS {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let first = unit(device, input, (channels, 3, stride))?;
                let second = unit(device, first.output(), (channels, 3, 1))?;
                let shortcut = match input == second.output() {
                    true => None,
                    false => Some(unit(device, input, (channels, 1, stride))?),
                };
                input = second.output();
                widest = widest.max(first.output().features()).max(input.features());
                blocks.push(Block { first, second, shortcut });
            }
        }
        let refused = || ModelError::Image { image: [channels, height, width], least: 1 };
        let pool = DevicePool::global(input).ok_or_else(refused)?;
        let last = DeviceLinear { inputs: STAGES[3], outputs: classes };
        let mut rows = |name: &str, features| Rows::new(device, name, max_examples, features);
        Ok(Self {
            channels: rows("inputs", image.features())?,
            input: rows("inputs by pixels", image.features())?,
            mean: rows("mean over pixels", last.inputs)?,
            logits: rows("output of fc", classes)?,
            deltas: [
                rows("gradient of a block's output", widest)?,
                rows("gradient between a block's layers", widest)?,
                rows("gradient through a block's layers", widest)?,
                rows("gradient of a block's input", widest)?,
            ],
            image,
            examples: 0,
            stem,
            blocks,
            pool,
            last,
        })
    }
}

impl<D: Device> Network<D> for ResNet<D::Memory> {
    fn forward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        inputs: &[f32],
        place: Option<Place>,
    ) -> Result<(), DeviceError> {
        let n = inputs.len() / self.image.features().max(1);
        self.examples = n;
        for rows in [&mut self.channels, &mut self.input, &mut self.mean, &mut self.logits] {
            rows.set(n)?;
        }
        let how = (n, place.is_some());
        self.channels.write(device, inputs)?;
        let sides = (self.image.channels, self.image.height * self.image.width);
        permute(device, sides, &self.channels, &mut self.input)?;
        self.stem.set(n)?;
        self.stem.forward(device, parameters, how, &self.input)?;
        relu(device, &mut self.stem.done)?;
        let mut x = &self.stem.done;
        for Block { first, second, shortcut } in &mut self.blocks {
            first.set(n)?;
            first.forward(device, parameters, how, x)?;
            relu(device, &mut first.done)?;
            second.set(n)?;
            second.forward(device, parameters, how, &first.done)?;
            match shortcut {
                Some(unit) => {
                    unit.set(n)?;
                    unit.forward(device, parameters, how, x)?;
                    add_rectified(device, &unit.done, &mut second.done)?;
                }
                None => add_rectified(device, x, &mut second.done)?,
            }
            x = &second.done;
        }
        self.pool.mean(device, n, x, &mut self.mean)?;
        let [.., weights, bias] = parameters else { return Err(DeviceError::parameters()) };
        self.last.forward(device, n, (weights, bias), &self.mean, &mut self.logits)
    }

    fn logits(&mut self) -> &mut Numbers<D> {
        &mut self.logits
    }

    fn backward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        _: Place,
        out: &mut Out<'_, D>,
    ) -> Result<(), DeviceError> {
        let n = self.examples;
        let [delta, between, through, before] = &mut self.deltas;
        let [.., weights, _] = parameters else { return Err(DeviceError::parameters()) };
        let (last, index) = (self.last, parameters.len() - 2);
        last.weights(device, n, &self.logits, &self.mean, out.gradient(index)?)?;
        out.ready(device, index)?;
        sum_examples(device, &self.logits, n, out.gradient(index + 1)?)?;
        out.ready(device, index + 1)?;
        let dmean = between.shape(n, last.inputs)?;
        last.backward(device, n, weights, &self.logits, dmean)?;
        let top = self.blocks.last().map_or(0, |block| block.second.output().features());
        self.pool.mean_gradient(device, n, dmean, delta.shape(n, top)?)?;

        for (index, block) in self.blocks.iter().enumerate().rev() {
            let below = index.checked_sub(1).and_then(|below| self.blocks.get(below));
            let x: &Numbers<D> = below.map_or(&self.stem.done, |below| &below.second.done);
            let (inner, outer) = (block.first.output().features(), block.second.output().features());
            let width = block.first.input.features();
            relu_gradient(device, delta, &block.second.done)?;
            // The shortcut's gradient into `before`, for `delta` is needed whole.
            let dx = before.shape(n, width)?;
            match &block.shortcut {
                Some(unit) => {
                    let dy = between.shape(n, outer)?;
                    copy(device, delta, dy)?;
                    unit.backward(device, parameters, n, (x, dy, Some(dx)), out)?;
                }
                None => copy(device, delta, dx)?,
            }
            let dhidden = between.shape(n, inner)?;
            let hidden: &Numbers<D> = &block.first.done;
            block.second.backward(device, parameters, n, (hidden, delta, Some(dhidden)), out)?;
            let dhidden = between.shape(n, inner)?;
            relu_gradient(device, dhidden, hidden)?;
            let into = through.shape(n, width)?;
            block.first.backward(device, parameters, n, (x, dhidden, Some(into)), out)?;
            add(device, before.shape(n, width)?, through.shape(n, width)?)?;
            std::mem::swap(delta, before);
        }
        relu_gradient(device, delta, &self.stem.done)?;
        self.stem.backward(device, parameters, n, (&self.input, delta, None), out)
    }
}
