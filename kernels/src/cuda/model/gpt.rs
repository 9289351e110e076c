//! GPT: the twin of `model/gpt.rs` and its passes. Every token is a row.
//!
//! The gradient of the embedding table begins as the output layer's, and is handed over last. Norms and GELUs are computed again in the
//! backward pass, to the same bits.

use super::super::attention::{DeviceAttention, DeviceDrops};
use super::super::buffer::Buffer;
use super::super::device::{Device, DeviceError};
use super::super::layers::{gelu, gelu_gradient, sum_examples};
use super::super::linear::DeviceLinear;
use super::super::network::{copy, fill, sum_of};
use super::super::sequence::{DeviceNorm, Tokens, dropout, positions_gradient};
use super::{Network, Numbers, Out, Rows};
use crate::layers::{Dropout, Norm};
use crate::model::{GptSpec, ModelError, Place};

/// What is kept of a block.
struct Kept<M> {
    x: Rows<M>,
    of_first_norm: Rows<M>,
    qkv: Rows<M>,
    attended: Rows<M>,
    /// A number for each head of each token.
    of_attention: Rows<M>,
    middle: Rows<M>,
    of_second_norm: Rows<M>,
    wide: Rows<M>,
}

impl<M> Kept<M> {
    fn all(&mut self) -> [&mut Rows<M>; 8] {
        let Self { x, of_first_norm, qkv, attended, of_attention, middle, of_second_norm, wide } = self;
        [x, of_first_norm, qkv, attended, of_attention, middle, of_second_norm, wide]
    }
}

/// The layers of each block, and the last.
#[derive(Clone, Copy)]
struct Layers {
    norm: DeviceNorm,
    attention: DeviceAttention,
    qkv: DeviceLinear,
    attended: DeviceLinear,
    widen: DeviceLinear,
    narrow: DeviceLinear,
    head: DeviceLinear,
}

pub(super) struct Gpt<M> {
    spec: GptSpec,
    layers: Layers,
    rows: usize,
    /// Those of the batch at work.
    tokens: Option<Tokens<M>>,
    blocks: Vec<Kept<M>>,
    /// The stream after the last block.
    last: Rows<M>,
    of_last_norm: Rows<M>,
    logits: Rows<M>,
    /// What a norm, a branch and a wide layer at work make.
    normal: Rows<M>,
    branch: Rows<M>,
    wide: [Rows<M>; 2],
    of_qkv: Rows<M>,
    /// The gradient of the stream.
    stream: Rows<M>,
    /// What the gradients of attention and of norms are computed in.
    of_heads: Rows<M>,
    scratch: Rows<M>,
    zeros: Buffer<M, f32>,
    none: Buffer<M, f32>,
}

impl<M: Send + 'static> Gpt<M> {
    pub(super) fn new<D: Device<Memory = M>>(
        device: &mut D,
        spec: &GptSpec,
        max_examples: usize,
    ) -> Result<Self, ModelError> {
        let (width, heads) = (spec.width, spec.heads);
        let tokens = max_examples.saturating_mul(spec.context);
        if !Dropout::new(spec.dropout, spec.context).fits(2 * spec.layers + 1, width) {
            return Err(ModelError::TooLarge { max_examples });
        }
        let linear = |inputs, outputs| DeviceLinear { inputs, outputs };
        let layers = Layers {
            norm: DeviceNorm { norm: spec.norm, features: width },
            attention: DeviceAttention { heads, size: width / heads.max(1), positions: spec.context },
            qkv: linear(width, 3 * width),
            attended: linear(width, width),
            widen: linear(width, 4 * width),
            narrow: linear(4 * width, width),
            head: linear(width, spec.vocabulary),
        };
        let mut rows = |name: &str, features| Rows::new(device, name, tokens, features);
        let mut blocks = Vec::with_capacity(spec.layers);
        for block in 0..spec.layers {
            let mut of = |what: &str, features| rows(&format!("{what} of h{block}"), features);
            blocks.push(Kept {
                x: of("input", width)?,
                of_first_norm: of("statistics of ln1", 2)?,
                qkv: of("output of attn.qkv", 3 * width)?,
                attended: of("attention", width)?,
                of_attention: of("statistics of attention", heads)?,
                middle: of("input of ln2", width)?,
                of_second_norm: of("statistics of ln2", 2)?,
                wide: of("output of mlp.fc", 4 * width)?,
            });
        }
        Ok(Self {
            blocks,
            last: rows("input of lnf", width)?,
            of_last_norm: rows("statistics of lnf", 2)?,
            logits: rows("logits", spec.vocabulary)?,
            normal: rows("output of a norm", width)?,
            branch: rows("output of a branch", width)?,
            wide: [rows("output of a GELU", 4 * width)?, rows("gradient of output of mlp.fc", 4 * width)?],
            of_qkv: rows("gradient of output of attn.qkv", 3 * width)?,
            stream: rows("gradient of the stream", width)?,
            of_heads: rows("gradient of statistics of attention", heads)?,
            scratch: rows("gradient of input of a norm", width)?,
            zeros: Buffer::zeros(device, "zeros", spec.vocabulary)?,
            none: Buffer::zeros(device, "no bias", 0)?,
            spec: spec.clone(),
            layers,
            rows: 0,
            tokens: None,
        })
    }

    fn set(&mut self, rows: usize) -> Result<(), DeviceError> {
        self.rows = rows;
        let [wide, other] = &mut self.wide;
        let shared = [
            &mut self.last,
            &mut self.of_last_norm,
            &mut self.logits,
            &mut self.normal,
            &mut self.branch,
            wide,
            other,
            &mut self.of_qkv,
            &mut self.stream,
            &mut self.of_heads,
            &mut self.scratch,
        ];
        shared.into_iter().chain(self.blocks.iter_mut().flat_map(Kept::all)).try_for_each(|of| of.set(rows))
    }
}

/// Where a block's parameters begin, and how many a norm has.
fn places(spec: &GptSpec, index: usize) -> (usize, usize) {
    let of_norm = if spec.norm == Norm::Layer { 2 } else { 1 };
    (2 + index * (8 + 2 * of_norm), of_norm)
}

/// What is dropped of a block's attention, if anything is.
fn drops(spec: &GptSpec, block: usize, place: Place) -> Option<DeviceDrops> {
    let rate = spec.attention_dropout;
    (rate > 0.0).then_some(DeviceDrops { rate, site: block, place })
}

/// Weight and bias of a layer.
type Pair<'a, M> = Result<(&'a Buffer<M, f32>, &'a Buffer<M, f32>), DeviceError>;

/// Weight and bias of a norm; with RMS norm, `none`.
fn norm<'a, M>(
    parameters: &'a [Buffer<M, f32>],
    none: &'a Buffer<M, f32>,
    (index, of_norm): (usize, usize),
) -> Pair<'a, M> {
    let weight = at(parameters, index)?;
    Ok((weight, if of_norm == 2 { at(parameters, index + 1)? } else { none }))
}

fn at<M>(parameters: &[Buffer<M, f32>], index: usize) -> Result<&Buffer<M, f32>, DeviceError> {
    parameters.get(index).ok_or_else(DeviceError::parameters)
}

/// Weight and bias of a linear layer.
fn linear<M>(parameters: &[Buffer<M, f32>], index: usize) -> Pair<'_, M> {
    Ok((at(parameters, index)?, at(parameters, index + 1)?))
}

impl<D: Device> Network<D> for Gpt<D::Memory> {
    fn forward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        inputs: &[f32],
        place: Option<Place>,
    ) -> Result<(), DeviceError> {
        let n = inputs.len();
        self.set(n)?;
        let Self { spec, layers, blocks, none, .. } = self;
        let width = spec.width;
        let sizes = (spec.context, width);
        let drop = |device: &mut D, site: usize, values: &mut Numbers<D>| match place {
            Some(place) => dropout(device, spec.dropout, sizes, place, site, values),
            None => Ok(()),
        };
        let (normal, branch, [wide, _]) = (&mut self.normal, &mut self.branch, &mut self.wide);
        let numbers: Vec<u32> = inputs.iter().map(|token| *token as u32).collect();
        let tokens = Tokens::new(device, &numbers, spec.vocabulary)?;
        let first = blocks.first_mut().map_or(&mut self.last, |block| &mut block.x);
        if n > 0 {
            tokens.embed(device, width, (at(parameters, 0)?, at(parameters, 1)?), first)?;
        }
        self.tokens = Some(tokens);
        drop(device, 0, first)?;
        let mut blocks = blocks.as_mut_slice();
        let mut index = 0;
        while let Some((block, rest)) = std::mem::take(&mut blocks).split_first_mut() {
            let (base, of) = places(spec, index);
            let Kept { x, of_first_norm, qkv, attended, of_attention, middle, of_second_norm, wide: kept } =
                block;
            let first = norm(parameters, none, (base, of))?;
            layers.norm.forward(device, n, first, x, (normal, of_first_norm))?;
            layers.qkv.forward(device, n, linear(parameters, base + of)?, normal, qkv)?;
            let drops = place.and_then(|place| drops(spec, index, place));
            layers.attention.forward(device, (n, drops), qkv, attended, of_attention)?;
            layers.attended.forward(device, n, linear(parameters, base + of + 2)?, attended, branch)?;
            drop(device, 2 * index + 1, branch)?;
            sum_of(device, x, branch, middle)?;
            let second = norm(parameters, none, (base + of + 4, of))?;
            layers.norm.forward(device, n, second, middle, (normal, of_second_norm))?;
            layers.widen.forward(device, n, linear(parameters, base + 2 * of + 4)?, normal, kept)?;
            gelu(device, kept, wide)?;
            layers.narrow.forward(device, n, linear(parameters, base + 2 * of + 6)?, wide, branch)?;
            drop(device, 2 * index + 2, branch)?;
            let next = rest.first_mut().map_or(&mut self.last, |block| &mut block.x);
            sum_of(device, middle, branch, next)?;
            blocks = rest;
            index += 1;
        }
        let last = norm(parameters, none, places(spec, spec.layers))?;
        layers.norm.forward(device, n, last, &self.last, (normal, &mut self.of_last_norm))?;
        layers.head.forward(device, n, (at(parameters, 0)?, &self.zeros), normal, &mut self.logits)
    }

    fn logits(&mut self) -> &mut Numbers<D> {
        &mut self.logits
    }

    fn backward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        place: Place,
        out: &mut Out<'_, D>,
    ) -> Result<(), DeviceError> {
        let Self { spec, layers, normal, branch, stream, scratch, none, rows, .. } = self;
        let (n, width) = (*rows, spec.width);
        let sizes = (spec.context, width);
        let drop = |device: &mut D, site: usize, values: &mut Numbers<D>| {
            dropout(device, spec.dropout, sizes, place, site, values)
        };
        let [wide, other] = &mut self.wide;

        // The last norm's results are still there.
        layers.head.weights(device, n, &self.logits, normal, out.gradient(0)?)?;
        layers.head.backward(device, n, at(parameters, 0)?, &self.logits, branch)?;
        fill(device, stream, 0.0)?;
        let (index, of) = places(spec, spec.layers);
        let weight = at(parameters, index)?;
        let x = (&*self.last, &*self.of_last_norm);
        back_norm(device, (layers.norm, n, index), weight, x, (branch, stream, scratch), out)?;

        for (index, block) in self.blocks.iter_mut().enumerate().rev() {
            let base = places(spec, index).0;
            let weight = |offset: usize| at(parameters, base + offset);
            let Kept { x, of_first_norm, qkv, attended, of_attention, middle, of_second_norm, wide: kept } =
                block;
            copy(device, stream, branch)?;
            drop(device, 2 * index + 2, branch)?;
            gelu(device, kept, wide)?;
            back_linear(device, (layers.narrow, n, base + 2 * of + 6), (branch, wide), out)?;
            layers.narrow.backward(device, n, weight(2 * of + 6)?, branch, other)?;
            gelu_gradient(device, kept, other)?;
            let second = norm(parameters, none, (base + of + 4, of))?;
            layers.norm.forward(device, n, second, middle, (normal, of_second_norm))?;
            back_linear(device, (layers.widen, n, base + 2 * of + 4), (other, normal), out)?;
            layers.widen.backward(device, n, weight(2 * of + 4)?, other, branch)?;
            let (layer, x_kept) = ((layers.norm, n, base + of + 4), (&**middle, &**of_second_norm));
            back_norm(device, layer, second.0, x_kept, (branch, stream, scratch), out)?;

            copy(device, stream, branch)?;
            drop(device, 2 * index + 1, branch)?;
            back_linear(device, (layers.attended, n, base + of + 2), (branch, attended), out)?;
            layers.attended.backward(device, n, weight(of + 2)?, branch, normal)?;
            let done = (&**qkv, &**attended, &**of_attention);
            let tokens = (n, drops(spec, index, place));
            layers.attention.backward(device, tokens, done, normal, &mut self.of_qkv, &mut self.of_heads)?;
            let first = norm(parameters, none, (base, of))?;
            layers.norm.forward(device, n, first, x, (normal, of_first_norm))?;
            back_linear(device, (layers.qkv, n, base + of), (&self.of_qkv, normal), out)?;
            layers.qkv.backward(device, n, weight(of)?, &self.of_qkv, branch)?;
            let (layer, x_kept) = ((layers.norm, n, base), (&**x, &**of_first_norm));
            back_norm(device, layer, first.0, x_kept, (branch, stream, scratch), out)?;
        }
        drop(device, 0, stream)?;
        positions_gradient(device, stream, out.gradient(1)?)?;
        out.ready(device, 1)?;
        if let Some(tokens) = &self.tokens {
            tokens.add_to_table(device, width, stream, out.gradient(0)?)?;
        }
        out.ready(device, 0)
    }
}

/// The gradients of weight and bias of a linear layer, parameter `index` and the next, of `n` rows.
fn back_linear<D: Device>(
    device: &mut D,
    (layer, n, index): (DeviceLinear, usize, usize),
    (dy, x): (&Numbers<D>, &Numbers<D>),
    out: &mut Out<'_, D>,
) -> Result<(), DeviceError> {
    layer.weights(device, n, dy, x, out.gradient(index)?)?;
    out.ready(device, index)?;
    sum_examples(device, dy, n, out.gradient(index + 1)?)?;
    out.ready(device, index + 1)
}

/// The gradients of weight, and bias if there is one, of a norm; adds its input's to that of the stream. `dy`, the stream's, and room.
fn back_norm<D: Device>(
    device: &mut D,
    (layer, n, index): (DeviceNorm, usize, usize),
    weight: &Numbers<D>,
    x: (&Numbers<D>, &Numbers<D>),
    dy: (&Numbers<D>, &mut Numbers<D>, &mut Numbers<D>),
    out: &mut Out<'_, D>,
) -> Result<(), DeviceError> {
    if layer.norm == Norm::Layer {
        let [of_weight, of_bias] = out.pair(index, index + 1)?;
        layer.backward(device, n, weight, x, dy, (of_weight, Some(of_bias)))?;
        out.ready(device, index)?;
        return out.ready(device, index + 1);
    }
    layer.backward(device, n, weight, x, dy, (out.gradient(index)?, None))?;
    out.ready(device, index)
}
