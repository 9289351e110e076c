//! A model whose gradients pass through a test's hands.

use testudo_kernels::{Batch, Loss, Model, ModelError, ParameterSpec};

/// A model, but for its gradients: what is ready of them is handed to `pass`, which may look at it or tell something else.
pub struct Through<F> {
    model: Box<dyn Model>,
    pass: F,
}

impl<F: FnMut(usize, &[f32], &mut dyn FnMut(usize, &[f32])) + Send> Through<F> {
    /// `model` behind `pass`: the parameter's index, its gradient, and who is to be told.
    #[must_use]
    pub fn new(model: Box<dyn Model>, pass: F) -> Through<F> {
        Through { model, pass }
    }
}

impl<F: FnMut(usize, &[f32], &mut dyn FnMut(usize, &[f32])) + Send> Model for Through<F> {
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
        let pass = &mut self.pass;
        self.model.gradients(parameters, batch, &mut |index, gradient| pass(index, gradient, ready))
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
