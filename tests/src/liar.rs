//! Workers that lie about their gradients: honest in all else, so that whatever checks a message lets theirs through.

use testudo_kernels::{Batch, Loss, Model, ModelError, ParameterSpec};

/// What a liar makes of a part of its gradient.
pub type Lie = fn(&mut [f32]);

/// Every sign flipped, and ten times as much of it.
pub fn flipped(gradient: &mut [f32]) {
    gradient.iter_mut().for_each(|value| *value *= -10.0);
}

/// The greatest numbers there are, signs in turn.
pub fn huge(gradient: &mut [f32]) {
    for (at, value) in gradient.iter_mut().enumerate() {
        *value = if at.is_multiple_of(2) { f32::MAX } else { f32::MIN };
    }
}

/// The least numbers there are above and below zero.
pub fn subnormal(gradient: &mut [f32]) {
    for (at, value) in gradient.iter_mut().enumerate() {
        *value =
            f32::from_bits(1 + at as u32 % 0x7f_ffff).copysign(if at.is_multiple_of(3) { -1.0 } else { 1.0 });
    }
}

/// A model that tells its gradients through a lie. What it tells is sent to servers and scheduler alike.
pub struct Liar {
    model: Box<dyn Model>,
    lie: Lie,
    told: Vec<f32>,
}

impl Liar {
    /// `model`, but for its gradients.
    #[must_use]
    pub fn new(model: Box<dyn Model>, lie: Lie) -> Liar {
        Liar { model, lie, told: Vec::new() }
    }

    /// `model` itself, or behind a lie if there is one.
    #[must_use]
    pub fn perhaps(model: Box<dyn Model>, lie: Option<Lie>) -> Box<dyn Model> {
        match lie {
            Some(lie) => Box::new(Liar::new(model, lie)),
            None => model,
        }
    }
}

impl Model for Liar {
    fn parameters(&self) -> &[ParameterSpec] {
        self.model.parameters()
    }

    fn input_elements(&self) -> usize {
        self.model.input_elements()
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }

    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        let (lie, told) = (self.lie, &mut self.told);
        self.model.gradients(parameters, batch, &mut |index, gradient| {
            told.clear();
            told.extend_from_slice(gradient);
            lie(told);
            ready(index, told);
        })
    }

    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        self.model.evaluate(parameters, batch)
    }

    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        self.model.probabilities(parameters, inputs, out)
    }
}
