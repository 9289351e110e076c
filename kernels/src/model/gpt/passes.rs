//! The forward and the backward pass of a GPT, and the buffers that they share.
//!
//! 1. Every token is an example of the layers, whatever sequence it is of; only attention knows of sequences.
//! 2. Of each block, what its input, its queries, keys and values, its attention, its middle and its wide layer were is
//!    kept; norms and GELUs are computed again in the backward pass, to the same bits.
//! 3. What is an operand of a product is rounded where the precision says so, and kept as such; the stream, and what norms make
//!    statistics of, is not.
//! 4. The gradient of the embedding table begins as the output layer's, and is handed over last.

use super::super::working::Working;
use super::GptSpec;
use crate::layers::{
    Attention, AttentionScratch, Dropout, Drops, Kept, Known, Linear, Normalize, Panels, Rows, add_to_table,
    buffer, cross_entropy, embed, gelu, gelu_gradient, positions_gradient, probabilities, scratch_elements,
    sum_examples, take, take_mut,
};
use crate::model::{Batch, Loss, ModelError, ParameterSpec, Place};
use crate::precision::Precision;

/// What is kept of a block, in panels.
struct KeptBlock {
    x: Vec<f32>,
    of_first_norm: Vec<f32>,
    qkv: Kept,
    attended: Kept,
    /// A number for each head of each token.
    of_attention: Vec<f32>,
    middle: Vec<f32>,
    of_second_norm: Vec<f32>,
    wide: Kept,
}

/// What the tokens of a forward pass are.
pub(super) enum Sequences<'a> {
    /// Sequences of `positions` tokens; dropout is for those that have a place in training.
    Each { positions: usize, place: Option<Place> },
    /// Those of one sequence that follow the first `known`, which attention has been told of, block by block.
    Extended { known: usize, by: &'a mut [Known] },
}

pub(super) struct Passes {
    precision: Precision,
    weights: Working,
    panels: Panels,
    positions: usize,
    layers: Layers,
    blocks: Vec<KeptBlock>,
    /// The stream after the last block.
    last: Vec<f32>,
    of_last_norm: Vec<f32>,
    logits: Vec<f32>,
    /// What a norm, a branch and a wide layer at work make.
    normal: Vec<f32>,
    branch: Vec<f32>,
    wide: [Vec<f32>; 2],
    /// The gradient of the stream.
    stream: Vec<f32>,
    /// Gradients of the parameters at work, and of the table.
    gradient: Vec<f32>,
    of_bias: Vec<f32>,
    of_table: Vec<f32>,
    zeros: Vec<f32>,
    packed: Vec<f32>,
    scratch: Vec<f32>,
    attention: AttentionScratch,
}

/// The layers of each block, and the last.
#[derive(Clone, Copy)]
struct Layers {
    norm: Normalize,
    attention: Attention,
    dropout: Dropout,
    attention_dropout: f32,
    qkv: Linear,
    attended: Linear,
    widen: Linear,
    narrow: Linear,
    head: Linear,
}

impl Layers {
    fn new(spec: &GptSpec, precision: Precision) -> Layers {
        let width = spec.width;
        let linear = |inputs, outputs| Linear { inputs, outputs };
        Layers {
            norm: Normalize { norm: spec.norm, features: width },
            attention: Attention { heads: spec.heads, size: width / spec.heads.max(1), precision },
            dropout: Dropout::new(spec.dropout, spec.context),
            attention_dropout: spec.attention_dropout,
            qkv: linear(width, 3 * width),
            attended: linear(width, width),
            widen: linear(width, 4 * width),
            narrow: linear(4 * width, width),
            head: linear(width, spec.vocabulary),
        }
    }

    /// What is dropped of the attention of a block, in sequences of `positions`.
    fn drops(self, block: usize, positions: usize, place: Place) -> Option<Drops> {
        Drops::new(self.attention_dropout, [self.attention.heads, positions, block], place)
    }
}

impl Passes {
    pub(super) fn new(
        spec: &GptSpec,
        specs: &[ParameterSpec],
        precision: Precision,
        max_examples: usize,
    ) -> Result<Passes, ModelError> {
        let too_large = ModelError::TooLarge { max_examples };
        let tokens = max_examples.checked_mul(spec.context).filter(|tokens| u32::try_from(*tokens).is_ok());
        let tokens = tokens.ok_or(too_large.clone())?;
        let (panels, width, layers) = (Panels::new(tokens), spec.width, Layers::new(spec, precision));
        if !layers.dropout.fits(2 * spec.layers + 1, width) {
            return Err(too_large);
        }
        let room = |elements| buffer(elements, max_examples);
        let features = |features| room(panels.elements(features));
        let kept = |features| Kept::new(precision, panels.elements(features), max_examples);
        let of_norm = || room(Normalize::kept_elements(panels));
        let blocks = (0..spec.layers).map(|_| {
            Ok(KeptBlock {
                x: features(width)?,
                of_first_norm: of_norm()?,
                qkv: kept(3 * width)?,
                attended: kept(width)?,
                of_attention: room(tokens.saturating_mul(spec.heads))?,
                middle: features(width)?,
                of_second_norm: of_norm()?,
                wide: kept(4 * width)?,
            })
        });
        let linear = [layers.qkv, layers.attended, layers.widen, layers.narrow, layers.head];
        let packed = linear.iter().map(|layer| layer.packed_elements(tokens)).max().unwrap_or(0);
        let largest = specs.iter().skip(2).map(|spec| spec.shape.elements()).max().unwrap_or(0);
        let positions = spec.context.saturating_mul(width);
        Ok(Passes {
            blocks: blocks.collect::<Result<_, ModelError>>()?,
            last: features(width)?,
            of_last_norm: of_norm()?,
            logits: features(spec.vocabulary)?,
            normal: features(width)?,
            branch: features(width)?,
            wide: [features(4 * width)?, features(4 * width)?],
            stream: features(width)?,
            gradient: room(largest.max(positions))?,
            of_bias: room(4 * width)?,
            of_table: room(spec.vocabulary.saturating_mul(width))?,
            zeros: room(spec.vocabulary)?,
            packed: room(packed)?,
            scratch: room(scratch_elements(panels).max(Normalize::scratch_elements(panels)))?,
            attention: AttentionScratch::new(layers.attention, spec.context, max_examples)?,
            weights: Working::new(precision, specs, max_examples)?,
            precision,
            panels,
            positions: spec.context,
            layers,
        })
    }

    /// Room for what attention is told of a sequence, for each block.
    pub(super) fn known(&self, spec: &GptSpec) -> Result<Vec<Known>, ModelError> {
        (0..spec.layers).map(|_| Known::new(self.layers.attention, spec.context)).collect()
    }

    /// Leaves the logits of every token.
    pub(super) fn forward(
        &mut self,
        spec: &GptSpec,
        parameters: &[&[f32]],
        tokens: &[f32],
        mut sequences: Sequences<'_>,
    ) {
        let panels = Panels::new(tokens.len());
        let (positions, first, place) = match &sequences {
            Sequences::Each { positions, place } => (*positions, 0, *place),
            Sequences::Extended { known, .. } => (tokens.len(), *known, None),
        };
        (self.panels, self.positions) = (panels, positions);
        self.weights.take(parameters);
        let (width, at) = (spec.width, |index: usize| self.weights.at(parameters, index));
        let (layers, precision) = (self.layers, self.precision);
        let drop = |site: usize, values: &mut [f32]| {
            if let Some(place) = place {
                layers.dropout.apply(panels, width, place, site, values);
            }
        };
        let [wide, room] = &mut self.wide;
        let rows = wide.get_mut(..tokens.len() * width).unwrap_or_default();
        let places = at(1).get(first * width..(first + positions) * width).unwrap_or_default();
        embed(tokens, at(0), places, width, rows);
        let stream = self.blocks.first_mut().map_or(&mut self.last, |block| &mut block.x);
        let stream = take_mut(stream, panels, width);
        panels.fill(rows, width, stream);
        drop(0, stream);
        let mut blocks = self.blocks.as_mut_slice();
        let mut index = 0;
        while let Some((block, rest)) = std::mem::take(&mut blocks).split_first_mut() {
            let base = spec.block(index);
            let n = spec.of_norm();
            let normal = take_mut(&mut self.normal, panels, width);
            let branch = take_mut(&mut self.branch, panels, width);
            let wide = take_mut(wide, panels, 4 * width);
            let x = take(&block.x, panels, width);
            layers.norm.forward(panels, norm(spec, parameters, base), x, normal, &mut block.of_first_norm);
            precision.round(normal);
            block.qkv.keep(panels.elements(3 * width), room, |qkv| {
                layers.qkv.forward(at(base + n), at(base + n + 1), panels, normal, qkv);
            });
            let qkv = block.qkv.read(panels.elements(3 * width), room);
            block.attended.keep(panels.elements(width), branch, |attended| {
                let (kept, scratch) = (&mut block.of_attention, &mut self.attention);
                match &mut sequences {
                    Sequences::Each { .. } => {
                        let drops = place.and_then(|place| layers.drops(index, positions, place));
                        layers.attention.forward(panels, positions, drops, qkv, attended, kept, scratch);
                    }
                    Sequences::Extended { known, by } => {
                        if let Some(before) = by.get_mut(index) {
                            layers.attention.extend(panels, *known, before, qkv, attended, scratch);
                        }
                    }
                }
            });
            let attended = block.attended.read(panels.elements(width), room);
            layers.attended.forward(at(base + n + 2), at(base + n + 3), panels, attended, branch);
            drop(2 * index + 1, branch);
            let middle = take_mut(&mut block.middle, panels, width);
            sum(x, branch, middle);
            let second = norm(spec, parameters, base + n + 4);
            layers.norm.forward(panels, second, middle, normal, &mut block.of_second_norm);
            precision.round(normal);
            block.wide.keep(panels.elements(4 * width), room, |wide| {
                layers.widen.forward(at(base + 2 * n + 4), at(base + 2 * n + 5), panels, normal, wide);
            });
            gelu(block.wide.read(panels.elements(4 * width), room), wide);
            precision.round(wide);
            layers.narrow.forward(at(base + 2 * n + 6), at(base + 2 * n + 7), panels, wide, branch);
            drop(2 * index + 2, branch);
            let next = rest.first_mut().map_or(&mut self.last, |block| &mut block.x);
            sum(middle, branch, take_mut(next, panels, width));
            blocks = rest;
            index += 1;
        }
        let (last, normal) = (take(&self.last, panels, width), take_mut(&mut self.normal, panels, width));
        let of_norm = norm(spec, parameters, spec.block(spec.layers));
        layers.norm.forward(panels, of_norm, last, normal, &mut self.of_last_norm);
        precision.round(normal);
        let logits = take_mut(&mut self.logits, panels, spec.vocabulary);
        layers.head.forward(at(0), &self.zeros, panels, normal, logits);
    }

    /// The loss of what [`forward`](Self::forward) left, by token; the logits become their gradients.
    pub(super) fn loss(&mut self, spec: &GptSpec, labels: &[u32]) -> Loss {
        let logits = take_mut(&mut self.logits, self.panels, spec.vocabulary);
        cross_entropy(self.panels, spec.vocabulary, logits, labels, &mut self.scratch)
    }

    /// Probabilities of what follows the last token of each sequence of `positions`.
    pub(super) fn following(&mut self, spec: &GptSpec, positions: usize, out: &mut [f32]) {
        let (panels, classes) = (self.panels, spec.vocabulary);
        let logits = take_mut(&mut self.logits, panels, classes);
        probabilities(panels, classes, logits, &mut self.scratch);
        for (example, out) in out.chunks_exact_mut(classes).enumerate() {
            let last = (example + 1) * positions - 1;
            panels.gather(logits, classes, 0..classes, last..last + 1, out);
        }
    }

    /// The gradients, of the logits' gradients that [`loss`](Self::loss) left.
    pub(super) fn backward(
        &mut self,
        spec: &GptSpec,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) {
        let (panels, positions, width, layers) = (self.panels, self.positions, spec.width, self.layers);
        let (weights, precision) = (&self.weights, self.precision);
        let at = |index: usize| weights.at(parameters, index);
        let drop = |site: usize, values: &mut [f32]| {
            layers.dropout.apply(panels, width, batch.place, site, values);
        };
        let normal = take_mut(&mut self.normal, panels, width);
        let branch = take_mut(&mut self.branch, panels, width);
        let stream = take_mut(&mut self.stream, panels, width);
        let [wide, other] = &mut self.wide;
        let (wide, other) = (take_mut(wide, panels, 4 * width), take_mut(other, panels, 4 * width));
        let mut out = Out {
            panels,
            gradient: &mut self.gradient,
            of_bias: &mut self.of_bias,
            packed: &mut self.packed,
            ready,
        };

        // The last norm's results are still there.
        let logits = take_mut(&mut self.logits, panels, spec.vocabulary);
        precision.round(logits);
        layers.head.weights(panels, logits, Rows::Panels(normal), &mut self.of_table, out.packed);
        layers.head.backward(at(0), panels, logits, branch);
        stream.fill(0.0);
        let index = spec.block(spec.layers);
        let x = (take(&self.last, panels, width), &self.of_last_norm[..]);
        out.norm(layers.norm, index, at(index), x, (branch, stream), (normal, &mut self.scratch));

        for (index, block) in self.blocks.iter_mut().enumerate().rev() {
            let (base, n) = (spec.block(index), spec.of_norm());
            branch.copy_from_slice(stream);
            drop(2 * index + 2, branch);
            precision.round(branch);
            gelu(block.wide.read(panels.elements(4 * width), other), wide);
            precision.round(wide);
            out.linear(layers.narrow, base + 2 * n + 6, branch, wide);
            layers.narrow.backward(at(base + 2 * n + 6), panels, branch, other);
            gelu_gradient(block.wide.read(panels.elements(4 * width), wide), other);
            precision.round(other);
            let middle = take(&block.middle, panels, width);
            let second = norm(spec, parameters, base + n + 4);
            layers.norm.forward(panels, second, middle, normal, &mut block.of_second_norm);
            precision.round(normal);
            out.linear(layers.widen, base + 2 * n + 4, other, normal);
            layers.widen.backward(at(base + 2 * n + 4), panels, other, branch);
            let x = (middle, &block.of_second_norm[..]);
            out.norm(layers.norm, base + n + 4, second.0, x, (branch, stream), (normal, &mut self.scratch));

            branch.copy_from_slice(stream);
            drop(2 * index + 1, branch);
            precision.round(branch);
            let (of_qkv, of_attended) = wide.split_at_mut(panels.elements(3 * width));
            let attended = block.attended.read(panels.elements(width), of_attended);
            out.linear(layers.attended, base + n + 2, branch, attended);
            layers.attended.backward(at(base + n + 2), panels, branch, normal);
            precision.round(normal);
            let qkv = block.qkv.read(panels.elements(3 * width), of_qkv);
            let (done, scratch) = ((attended, &block.of_attention[..]), &mut self.attention);
            let of_qkv = other.get_mut(..panels.elements(3 * width)).unwrap_or_default();
            let drops = layers.drops(index, positions, batch.place);
            layers.attention.backward(panels, positions, drops, qkv, done, normal, of_qkv, scratch);
            precision.round(of_qkv);
            let x = take(&block.x, panels, width);
            let first = norm(spec, parameters, base);
            layers.norm.forward(panels, first, x, normal, &mut block.of_first_norm);
            precision.round(normal);
            out.linear(layers.qkv, base + n, of_qkv, normal);
            layers.qkv.backward(at(base + n), panels, of_qkv, branch);
            let x = (x, &block.of_first_norm[..]);
            out.norm(layers.norm, base, first.0, x, (branch, stream), (normal, &mut self.scratch));
        }
        drop(0, stream);
        let rows = wide.get_mut(..panels.examples() * width).unwrap_or_default();
        panels.gather(stream, width, 0..width, 0..panels.examples(), rows);
        let of_places = out.gradient.get_mut(..positions * width).unwrap_or_default();
        positions_gradient(rows, of_places);
        (out.ready)(1, of_places);
        add_to_table(batch.inputs, rows, width, &mut self.of_table);
        (out.ready)(0, &self.of_table);
    }
}

/// Weight and bias of a norm; with RMS norm, no bias.
fn norm<'a>(spec: &GptSpec, parameters: &[&'a [f32]], index: usize) -> (&'a [f32], &'a [f32]) {
    let at = |index: usize| parameters.get(index).copied().unwrap_or_default();
    (at(index), if spec.of_norm() == 2 { at(index + 1) } else { &[] })
}

fn sum(x: &[f32], branch: &[f32], out: &mut [f32]) {
    for ((out, x), branch) in out.iter_mut().zip(x).zip(branch) {
        *out = x + branch;
    }
}

/// Where gradients of parameters are made and handed over.
struct Out<'a> {
    panels: Panels,
    gradient: &'a mut [f32],
    of_bias: &'a mut [f32],
    packed: &'a mut [f32],
    ready: &'a mut dyn FnMut(usize, &[f32]),
}

impl Out<'_> {
    /// Weight and bias of a linear layer, `index` and the next.
    fn linear(&mut self, layer: Linear, index: usize, dy: &[f32], x: &[f32]) {
        let gradient = self.gradient.get_mut(..layer.inputs * layer.outputs).unwrap_or_default();
        layer.weights(self.panels, dy, Rows::Panels(x), gradient, self.packed);
        (self.ready)(index, gradient);
        let gradient = self.of_bias.get_mut(..layer.outputs).unwrap_or_default();
        sum_examples(self.panels, dy, gradient);
        (self.ready)(index + 1, gradient);
    }

    /// Weight, and bias if there is one, of a norm; adds its input's gradient to the stream's.
    fn norm(
        &mut self,
        layer: Normalize,
        index: usize,
        weight: &[f32],
        x: (&[f32], &[f32]),
        dy: (&[f32], &mut [f32]),
        scratch: (&mut [f32], &mut [f32]),
    ) {
        let biases = if layer.norm == crate::layers::Norm::Layer { layer.features } else { 0 };
        let of_weight = self.gradient.get_mut(..layer.features).unwrap_or_default();
        let of_bias = self.of_bias.get_mut(..biases).unwrap_or_default();
        layer.backward(self.panels, weight, x, dy, scratch, (&mut *of_weight, &mut *of_bias));
        (self.ready)(index, of_weight);
        if biases > 0 {
            (self.ready)(index + 1, of_bias);
        }
    }
}
