//! GPT-2 of any size (Radford et al., "Language models are unsupervised multitask learners", 2019): a model of sequences
//! that predicts each token from those before it.
//!
//! Token and position embeddings are added; each block adds to that stream what attention makes of its norm, then what
//! two linear layers with a GELU between them make of its norm; a last norm goes through the token embedding's
//! transpose, so the table and the output layer are one parameter. An example is `context` tokens, each an integer in an
//! `f32`; its labels are the tokens that follow each of them.
//!
//! Parameters, in forward order: `wte.weight` (vocabulary x width), `wpe.weight` (context x width); for each block `h0`,
//! `h1`, ...: `ln1.weight`, `ln1.bias`, `attn.qkv.weight` (3 width x width: queries, keys, values), `attn.qkv.bias`,
//! `attn.proj.weight`, `attn.proj.bias`, `ln2.weight`, `ln2.bias`, `mlp.fc.weight` (4 width x width), `mlp.fc.bias`,
//! `mlp.proj.weight`, `mlp.proj.bias`; then `lnf.weight`, `lnf.bias`. With RMS norm, norms have no bias. Weights are
//! normal with deviation 0.02, those that end a branch (`proj`) with that over sqrt(2 layers); norms begin at one.
//!
//! Dropout, where there is any, is of the embeddings' sum and of what each branch adds; that of attention's probabilities has a
//! rate of its own.

mod passes;

use serde::{Deserialize, Serialize};

use super::check::{check_batch, check_inputs, check_parameters, check_tokens};
use super::{Batch, Initial, Loss, Model, ModelError, ParameterSpec, Update};
use crate::layers::{Drops, Kept, Known, Norm};
use crate::precision::Precision;
use crate::shape::Shape;
use passes::{Passes, Sequences};

/// The size of a GPT.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptSpec {
    /// Tokens that there are, from 0.
    pub vocabulary: usize,
    /// Tokens of an example: how far back it sees.
    pub context: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of each block's attention; they divide the width.
    pub heads: usize,
    /// Numbers that stand for a token between blocks.
    pub width: usize,
    /// Share of numbers that training drops, 0 to below 1.
    pub dropout: f32,
    /// Share of attention's probabilities that training drops, 0 to below 1; GPT-2 has that of `dropout`.
    #[serde(default)]
    pub attention_dropout: f32,
    /// The norm before each branch.
    pub norm: Norm,
}

/// Deviation of the weights' first values.
const DEVIATION: f64 = 0.02;
/// Most blocks: eight times GPT-2's largest. A spec is untrusted input to a node.
const MAX_BLOCKS: usize = 384;
/// Most tokens in a vocabulary: all of them are integers that an f32 holds exactly.
const MAX_VOCABULARY: usize = 1 << 24;

impl GptSpec {
    /// Refuses sizes that are no network's.
    ///
    /// # Errors
    /// [`ModelError::Gpt`], [`ModelError::TooManyLayers`].
    pub fn check(&self) -> Result<(), ModelError> {
        let bad = |what: String| Err(ModelError::Gpt { what });
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("layers", self.layers),
            ("heads", self.heads),
            ("width", self.width),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return bad(format!("{name} is 0; at least 1 is needed"));
        }
        if self.layers > MAX_BLOCKS {
            return bad(format!("layers is {}; at most {MAX_BLOCKS} are supported", self.layers));
        }
        if self.vocabulary > MAX_VOCABULARY {
            return bad(format!("vocabulary is {}; at most {MAX_VOCABULARY} is supported", self.vocabulary));
        }
        if !self.width.is_multiple_of(self.heads) {
            return bad(format!("heads is {}, which does not divide width, {}", self.heads, self.width));
        }
        for (name, rate) in [("dropout", self.dropout), ("attention_dropout", self.attention_dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return bad(format!("{name} is {rate}; a share from 0 to below 1 is needed"));
            }
        }
        if self.attention_dropout > 0.0 && !Drops::fits(self.layers, self.heads, self.context) {
            return bad(format!(
                "layers x heads x context x context is too much for attention_dropout, which is {}: a random number is drawn for \
                 each, and 2^34 have numbers of their own",
                self.attention_dropout
            ));
        }
        Ok(())
    }

    /// Its parameters, in forward order.
    pub(super) fn parameters(&self) -> Result<Vec<ParameterSpec>, ModelError> {
        self.check()?;
        let normal = |std: f64| Initial::Normal { std: std as f32 };
        let branch = normal(DEVIATION / (2.0 * self.layers as f64).sqrt());
        let weight = normal(DEVIATION);
        let width = self.width;
        let mut specs = Vec::new();
        let mut push = |name: String, dims: &[usize], initial: Initial| {
            let shape =
                Shape::new(dims).map_err(|source| ModelError::Shape { parameter: name.clone(), source })?;
            specs.push(ParameterSpec { name, shape, initial, update: Update::Learn });
            Ok::<(), ModelError>(())
        };
        push("wte.weight".into(), &[self.vocabulary, width], weight)?;
        push("wpe.weight".into(), &[self.context, width], weight)?;
        let wide = |times: usize| width.saturating_mul(times);
        for block in 0..self.layers {
            for (part, dims, initial) in [
                ("ln1", None, Initial::Ones),
                ("attn.qkv", Some([wide(3), width]), weight),
                ("attn.proj", Some([width, width]), branch),
                ("ln2", None, Initial::Ones),
                ("mlp.fc", Some([wide(4), width]), weight),
                ("mlp.proj", Some([width, wide(4)]), branch),
            ] {
                let outputs = dims.map_or(width, |[outputs, _]| outputs);
                match &dims {
                    Some(dims) => push(format!("h{block}.{part}.weight"), dims, initial)?,
                    None => push(format!("h{block}.{part}.weight"), &[width], initial)?,
                }
                if dims.is_some() || self.norm == Norm::Layer {
                    push(format!("h{block}.{part}.bias"), &[outputs], Initial::Zeros)?;
                }
            }
        }
        push("lnf.weight".into(), &[width], Initial::Ones)?;
        if self.norm == Norm::Layer {
            push("lnf.bias".into(), &[width], Initial::Zeros)?;
        }
        Ok(specs)
    }

    /// Parameters that a norm has.
    fn of_norm(&self) -> usize {
        if self.norm == Norm::Layer { 2 } else { 1 }
    }

    /// Where a block's parameters begin.
    fn block(&self, index: usize) -> usize {
        2 + index * (8 + 2 * self.of_norm())
    }

    /// At least as many numbers, of four bytes each, as the buffers of a model for `examples` examples hold, copies of weights
    /// aside.
    #[must_use]
    pub fn buffer_elements(&self, precision: Precision, examples: u64) -> u64 {
        let [context, layers, heads, width, vocabulary] =
            [self.context, self.layers, self.heads, self.width, self.vocabulary].map(|n| n as u64);
        // See `Passes`: kept of each block, and shared by all; a vector of padding beyond the tokens, and packed tiles.
        let operands = Kept::size(precision, self.width.saturating_mul(8)) as u64;
        let block = width.saturating_mul(2).saturating_add(operands).saturating_add(heads).saturating_add(4);
        let shared = width.saturating_mul(12).saturating_add(vocabulary).saturating_add(8);
        let token = layers.saturating_mul(block).saturating_add(shared);
        let tokens = examples.saturating_mul(context).saturating_add(64);
        let weights = width.saturating_mul(width).saturating_mul(4);
        let tables = weights.max(vocabulary.saturating_mul(width)).saturating_mul(2);
        let packed = width
            .saturating_add(64)
            .saturating_mul(4)
            .max(64)
            .saturating_mul(tokens)
            .min(tokens.saturating_mul(64).saturating_add(1 << 17));
        let head = context.saturating_add(256).saturating_mul(width.saturating_mul(12).saturating_add(256));
        token.saturating_mul(tokens).saturating_add(tables).saturating_add(packed).saturating_add(head)
    }
}

/// A GPT with buffers for some number of examples.
pub(super) struct Gpt {
    spec: GptSpec,
    specs: Vec<ParameterSpec>,
    max_examples: usize,
    passes: Passes,
    /// The tokens of the last sequence that was followed on, and what attention knows of them in each block.
    followed: Vec<f32>,
    known: Vec<Known>,
}

impl Gpt {
    pub(super) fn new(spec: &GptSpec, precision: Precision, max_examples: usize) -> Result<Gpt, ModelError> {
        let specs = spec.parameters()?;
        let passes = Passes::new(spec, &specs, precision, max_examples)?;
        let (followed, known) = (Vec::new(), Vec::new());
        Ok(Gpt { passes, spec: spec.clone(), specs, max_examples, followed, known })
    }

    /// Whether these tokens can be followed, and `out` takes what follows.
    fn check_followed(&self, parameters: &[&[f32]], tokens: &[f32], out: &[f32]) -> Result<(), ModelError> {
        check_parameters(self, parameters)?;
        let (context, vocabulary) = (self.spec.context, self.spec.vocabulary);
        let room = self.max_examples.min(1).saturating_mul(context);
        if tokens.is_empty() || tokens.len() > room || out.len() != vocabulary {
            let (tokens, outputs) = (tokens.len(), out.len());
            return Err(ModelError::FollowLength { tokens, context, outputs, classes: vocabulary });
        }
        self.check_tokens(tokens)
    }

    /// Where batches of whole examples stand, if they are trained on.
    fn examples(&self, place: Option<super::Place>) -> Sequences<'static> {
        Sequences::Each { positions: self.spec.context, place }
    }

    fn check_tokens(&self, tokens: &[f32]) -> Result<(), ModelError> {
        check_tokens(self.spec.vocabulary, tokens)
    }

    fn check(&self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<(), ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        self.check_tokens(batch.inputs)
    }

    /// Losses by token, counted by example.
    fn counted(&self, loss: Loss) -> Loss {
        Loss { examples: loss.examples / self.spec.context.max(1) as u32, ..loss }
    }
}

impl Model for Gpt {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn input_elements(&self) -> usize {
        self.spec.context
    }

    fn classes(&self) -> usize {
        self.spec.vocabulary
    }

    fn targets(&self) -> usize {
        self.spec.context
    }

    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        self.check(parameters, batch)?;
        let sequences = self.examples(Some(batch.place));
        self.passes.forward(&self.spec, parameters, batch.inputs, sequences);
        let loss = self.passes.loss(&self.spec, batch.labels);
        crate::stage::first_is_over();
        self.passes.backward(&self.spec, parameters, batch, ready);
        Ok(self.counted(loss))
    }

    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        self.check(parameters, batch)?;
        let sequences = self.examples(None);
        self.passes.forward(&self.spec, parameters, batch.inputs, sequences);
        let loss = self.passes.loss(&self.spec, batch.labels);
        Ok(self.counted(loss))
    }

    /// Of what follows each example's last token.
    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        check_inputs(self, self.max_examples, parameters, inputs, out)?;
        self.check_tokens(inputs)?;
        let sequences = self.examples(None);
        self.passes.forward(&self.spec, parameters, inputs, sequences);
        self.passes.following(&self.spec, self.spec.context, out);
        Ok(())
    }

    fn follow(&mut self, parameters: &[&[f32]], tokens: &[f32], out: &mut [f32]) -> Result<(), ModelError> {
        self.check_followed(parameters, tokens, out)?;
        let sequences = Sequences::Each { positions: tokens.len(), place: None };
        self.passes.forward(&self.spec, parameters, tokens, sequences);
        self.passes.following(&self.spec, tokens.len(), out);
        Ok(())
    }

    fn follow_on(
        &mut self,
        parameters: &[&[f32]],
        known: usize,
        tokens: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        self.check_followed(parameters, tokens, out)?;
        if self.known.is_empty() {
            self.known = self.passes.known(&self.spec)?;
            self.followed.reserve_exact(self.spec.context);
        }
        // What the caller takes for known must have been here; the last token's logits are always wanted.
        let same = self.followed.iter().zip(tokens).take_while(|(before, token)| before == token).count();
        let known = known.min(same).min(tokens.len().saturating_sub(1));
        let new = tokens.get(known..).unwrap_or_default();
        self.followed.clear();
        let sequences = Sequences::Extended { known, by: &mut self.known };
        self.passes.forward(&self.spec, parameters, new, sequences);
        self.passes.following(&self.spec, new.len(), out);
        self.followed.extend_from_slice(tokens);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
