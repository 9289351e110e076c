//! Continuing a text with a model of sequences, byte by byte.
//!
//! Invariants:
//! 1. What follows is a function of (model, prompt, temperature, top k, seed): the same on every machine, and its beginning
//!    does not depend on how many bytes are asked for.
//! 2. The model sees the last bytes that its context has room for. As long as that is all of them, each byte costs what is
//!    new of it; beyond, every byte changes its position, and the whole context is computed anew.
//! 3. Bytes of no weight are never chosen: those beyond the `top_k` likeliest, and all but the likeliest at temperature 0.

use std::collections::VecDeque;

use testudo_kernels::math::{exp, ln};
use testudo_kernels::{Model, ModelError, Philox, Purpose};

/// How bytes are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Probabilities are raised to the power of one over this: below 1 for what is likely, above for surprises; at 0 the
    /// likeliest byte is taken.
    pub temperature: f32,
    /// Of so many of the likeliest bytes alone; `None` for all.
    pub top_k: Option<usize>,
    /// What is drawn.
    pub seed: u64,
}

/// A text that is being continued.
pub struct Continuation<'a> {
    model: &'a mut dyn Model,
    parameters: &'a [&'a [f32]],
    choice: Choice,
    tokens: VecDeque<f32>,
    /// How many of them the model has seen where they stand.
    known: usize,
    probabilities: Vec<f32>,
    step: u64,
}

impl std::fmt::Debug for Continuation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Continuation")
            .field("choice", &self.choice)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

impl<'a> Continuation<'a> {
    /// Of `prompt`, by a model whose classes are bytes.
    pub fn new(
        model: &'a mut dyn Model,
        parameters: &'a [&'a [f32]],
        prompt: &[u8],
        choice: Choice,
    ) -> Continuation<'a> {
        let probabilities = vec![0.0; model.classes()];
        let mut new = Continuation {
            tokens: VecDeque::new(),
            known: 0,
            probabilities,
            model,
            parameters,
            choice,
            step: 0,
        };
        prompt.iter().for_each(|byte| new.push(*byte));
        new
    }

    /// The next byte.
    ///
    /// # Errors
    /// The prompt is empty, or the model is not of bytes.
    pub fn next_byte(&mut self) -> Result<u8, ModelError> {
        let (known, tokens) = (self.known, self.tokens.make_contiguous());
        self.model.follow_on(self.parameters, known, tokens, &mut self.probabilities)?;
        self.known = tokens.len();
        let draw = Philox::new(self.choice.seed, Purpose::Sample, self.step, 0).uniform(0);
        self.step += 1;
        let byte = choose(&self.choice, &self.probabilities, draw[0]);
        self.push(byte);
        Ok(byte)
    }

    fn push(&mut self, byte: u8) {
        if self.tokens.len() >= self.model.input_elements() {
            self.tokens.pop_front();
            self.known = 0;
        }
        self.tokens.push_back(f32::from(byte));
    }
}

/// The byte that a number in [0, 1) chooses: weights stand side by side in the order of the bytes.
fn choose(choice: &Choice, probabilities: &[f32], draw: f32) -> u8 {
    let mut order: Vec<usize> = (0..probabilities.len().min(256)).collect();
    let of = |byte: usize| probabilities.get(byte).copied().unwrap_or_default();
    // A stable sort: the first of equals comes first.
    order.sort_by(|a, b| of(*b).total_cmp(&of(*a)));
    let likeliest = order.first().copied().unwrap_or_default();
    if choice.temperature <= 0.0 {
        return likeliest as u8;
    }
    order.truncate(choice.top_k.unwrap_or(usize::MAX).max(1));
    order.sort_unstable();
    let greatest = ln(of(likeliest));
    let weight = |byte: usize| f64::from(exp((ln(of(byte)) - greatest) / choice.temperature));
    let whole: f64 = order.iter().map(|byte| weight(*byte)).sum();
    let mut left = f64::from(draw) * whole;
    for byte in &order {
        let weight = weight(*byte);
        if left < weight {
            return *byte as u8;
        }
        left -= weight;
    }
    likeliest as u8
}

/// Makes text that a terminal can show of bytes that come one by one: whole characters, and none that commands it.
#[derive(Debug, Default)]
pub struct Shown {
    pending: Vec<u8>,
}

impl Shown {
    /// What can be shown with this byte.
    pub fn push(&mut self, byte: u8) -> String {
        self.pending.push(byte);
        match std::str::from_utf8(&self.pending) {
            Ok(text) => {
                let shown = text.chars().map(visible).collect();
                self.pending.clear();
                shown
            }
            // The beginning of a character.
            Err(error) if error.error_len().is_none() => String::new(),
            Err(_) => {
                // What came before is no character; this byte may begin one.
                let broken = self.pending.len() > 1;
                self.pending.clear();
                let lost = char::REPLACEMENT_CHARACTER.to_string();
                if broken { lost + &self.push(byte) } else { lost }
            }
        }
    }
}

fn visible(character: char) -> char {
    match character {
        '\n' | '\t' => character,
        _ if character.is_control() => char::REPLACEMENT_CHARACTER,
        _ => character,
    }
}

#[cfg(test)]
mod tests {
    use testudo_kernels::{GptSpec, ModelSpec, Norm};

    use super::*;

    const CHOICE: Choice = Choice { temperature: 1.0, top_k: None, seed: 5 };

    fn counts(choice: Choice, probabilities: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; probabilities.len()];
        for draw in 0..1000 {
            counts[choose(&choice, probabilities, draw as f32 / 1000.0) as usize] += 1;
        }
        counts
    }

    /// Invariant 3, and shares that are the probabilities at temperature 1, their squares at one half.
    #[test]
    fn bytes_are_chosen_by_their_weights() {
        let probabilities = [0.1, 0.4, 0.0, 0.3, 0.2];
        let near = |found: Vec<usize>, expected: [i64; 5]| {
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found as i64 - expected).abs() <= 2, "{found}, not {expected}");
            }
        };
        near(counts(CHOICE, &probabilities), [100, 400, 0, 300, 200]);
        near(counts(Choice { top_k: Some(2), ..CHOICE }, &probabilities), [0, 571, 0, 429, 0]);
        near(counts(Choice { temperature: 0.5, ..CHOICE }, &probabilities), [33, 533, 0, 300, 133]);
        near(counts(Choice { temperature: 0.0, ..CHOICE }, &probabilities), [0, 1000, 0, 0, 0]);
        near(counts(Choice { top_k: Some(1), ..CHOICE }, &[0.2; 5]), [1000, 0, 0, 0, 0]);
    }

    fn continued(choice: Choice, prompt: &[u8], bytes: usize) -> Vec<u8> {
        with_model(|model, values| {
            let mut text = Continuation::new(model, values, prompt, choice);
            (0..bytes).map(|_| text.next_byte().unwrap()).collect()
        })
    }

    fn with_model<T>(with: impl FnOnce(&mut dyn Model, &[&[f32]]) -> T) -> T {
        let spec = ModelSpec::Gpt(GptSpec {
            vocabulary: 256,
            context: 8,
            layers: 1,
            heads: 2,
            width: 16,
            dropout: 0.0,
            attention_dropout: 0.0,
            norm: Norm::Layer,
        });
        let draw = |spec: &testudo_kernels::ParameterSpec| {
            let mut values = vec![0.0; spec.shape.elements()];
            spec.initialize(3, 0, &mut values);
            // Far from uniform, so that a choice matters.
            values.iter_mut().filter(|value| value.abs() < 0.5).for_each(|value| *value *= 30.0);
            values
        };
        let values: Vec<Vec<f32>> = spec.parameters().unwrap().iter().map(draw).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        with(spec.build(1).unwrap().as_mut(), &values)
    }

    /// Nothing is kept of what the model has seen that would change a byte: from a prompt that leaves room, to a context that is
    /// full, and on.
    #[test]
    fn what_is_seen_anew_gives_the_same_bytes() {
        let text = continued(CHOICE, b"It", 30);
        with_model(|model, values| {
            let (mut seen, mut probabilities) = (b"It".to_vec(), [0.0; 256]);
            for (step, byte) in text.iter().enumerate() {
                let last = &seen[seen.len().saturating_sub(8)..];
                let tokens: Vec<f32> = last.iter().copied().map(f32::from).collect();
                model.follow(values, &tokens, &mut probabilities).unwrap();
                let draw = Philox::new(CHOICE.seed, Purpose::Sample, step as u64, 0).uniform(0)[0];
                assert_eq!(choose(&CHOICE, &probabilities, draw), *byte, "{step}");
                seen.push(*byte);
            }
        });
    }

    /// Invariants 1 and 2.
    #[test]
    fn what_follows_depends_on_what_is_seen_and_the_seed() {
        let text = continued(CHOICE, b"It is a truth", 30);
        assert_eq!(continued(CHOICE, b"It is a truth", 12), text[..12]);
        assert_ne!(continued(Choice { seed: 6, ..CHOICE }, b"It is a truth", 30), text);
        assert_eq!(continued(CHOICE, b"Was it a truth", 30), text, "the last eight bytes are the same");
        assert_ne!(continued(CHOICE, b"It is a youth", 30), text);
        assert_eq!(continued(Choice { top_k: Some(1), seed: 8, ..CHOICE }, b"I", 9), {
            continued(Choice { temperature: 0.0, ..CHOICE }, b"I", 9)
        });
    }

    #[test]
    fn a_classifier_continues_nothing() {
        let spec = ModelSpec::Mlp { inputs: 2, hidden: vec![], classes: 3 };
        let values = [vec![0.0; 6], vec![0.0; 3]];
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let mut model = spec.build(1).unwrap();
        let mut text = Continuation::new(model.as_mut(), &values, b"a", CHOICE);
        assert_eq!(text.next_byte(), Err(ModelError::NoSequences));
    }

    /// Characters come whole; what is none, or commands a terminal, is replaced.
    #[test]
    fn a_terminal_is_shown_characters() {
        let shown = |bytes: &[u8]| -> String {
            let mut shown = Shown::default();
            bytes.iter().map(|byte| shown.push(*byte)).collect()
        };
        assert_eq!(shown("Dürer\n\tℵ🐢".as_bytes()), "Dürer\n\tℵ🐢");
        assert_eq!(shown(b"a\x1b[2J\x07\x7f"), "a\u{fffd}[2J\u{fffd}\u{fffd}");
        assert_eq!(shown(b"\xc3(\xff\xe2\x84b\xc2\x9b"), "\u{fffd}(\u{fffd}\u{fffd}b\u{fffd}");
    }
}
