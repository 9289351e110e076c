//! What every classifier ends with: logits, and what is made of them.

use super::{Loss, ModelError};
use crate::layers::{
    Panels, buffer, probabilities, scratch_elements, smoothed_cross_entropy, take, take_mut,
};
use crate::precision::Precision;

/// The logits of a batch, then their gradients.
#[derive(Debug)]
pub(super) struct Output {
    classes: usize,
    precision: Precision,
    logits: Vec<f32>,
    scratch: Vec<f32>,
}

impl Output {
    pub(super) fn new(
        classes: usize,
        precision: Precision,
        panels: Panels,
        max_examples: usize,
    ) -> Result<Output, ModelError> {
        let logits = buffer(panels.elements(classes), max_examples)?;
        Ok(Output { classes, precision, logits, scratch: buffer(scratch_elements(panels), max_examples)? })
    }

    /// Where the last layer leaves its results.
    pub(super) fn logits(&mut self, panels: Panels) -> &mut [f32] {
        take_mut(&mut self.logits, panels, self.classes)
    }

    /// The loss; the logits become their own gradients, as operands of the last layer's products.
    pub(super) fn loss(&mut self, panels: Panels, smoothing: f32, labels: &[u32]) -> Loss {
        let logits = take_mut(&mut self.logits, panels, self.classes);
        let loss = smoothed_cross_entropy(smoothing, panels, self.classes, logits, labels, &mut self.scratch);
        self.precision.round(logits);
        loss
    }

    /// What [`loss`](Output::loss) left.
    pub(super) fn gradients(&self, panels: Panels) -> &[f32] {
        take(&self.logits, panels, self.classes)
    }

    /// The probabilities of the classes, into rows.
    pub(super) fn probabilities(&mut self, panels: Panels, out: &mut [f32]) {
        let logits = take_mut(&mut self.logits, panels, self.classes);
        probabilities(panels, self.classes, logits, &mut self.scratch);
        panels.empty(logits, self.classes, out);
    }
}
