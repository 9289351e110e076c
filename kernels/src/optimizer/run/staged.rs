//! A step whose passes over the tensor run elsewhere, on a GPU: scalars are computed here, since f64 functions and
//! their bits are this crate's.

use super::explain::Element;
use super::{Optimizer, OptimizerError, StepInputs};
use crate::optimizer::check_step;
use crate::optimizer::language::NodeId;

impl Optimizer {
    /// How many passes a step takes; the last one stores.
    pub(crate) fn passes(&self) -> usize {
        self.plan.passes.len()
    }

    /// How many passes must be over before a node's value can be known, by node.
    pub(crate) fn levels(&self) -> &[usize] {
        &self.plan.levels
    }

    /// What is refused before a step, but for the tensors' lengths.
    pub(crate) fn check(&self, inputs: StepInputs, scalars: &[f64]) -> Result<(), OptimizerError> {
        check_step(inputs.step, inputs.learning_rate, inputs.divisor)?;
        let (expected, found) = (self.program.scalar_states().len(), scalars.len());
        if found == expected { Ok(()) } else { Err(OptimizerError::ScalarCount { expected, found }) }
    }

    /// The scalars, rounded, by node, that a pass may use once `level` passes are over.
    pub(crate) fn scalars_at(
        &mut self,
        level: usize,
        inputs: StepInputs,
        elements: usize,
        scalars: &[f64],
    ) -> &[f32] {
        self.evaluate(level, inputs, elements, scalars);
        &self.rounded
    }

    /// Says what a pass found a reduction to be.
    pub(crate) fn set_reduction(&mut self, node: NodeId, value: f64) {
        if let Some(known) = self.values.get_mut(node.index()) {
            *known = value;
        }
    }

    /// The new scalar states, after the last pass.
    pub(crate) fn store_scalars(&self, scalars: &mut [f64]) {
        for (scalar, node) in scalars.iter_mut().zip(self.program.graph().scalars()) {
            *scalar = self.values[node.index()];
        }
    }

    /// Refuses new scalar states that are not finite, once all passes but the last are over.
    pub(crate) fn check_scalars(&self) -> Result<(), OptimizerError> {
        let is_finite = |id: &NodeId| self.values.get(id.index()).is_some_and(|value| value.is_finite());
        match self.program.graph().scalars().iter().all(is_finite) {
            true => Ok(()),
            false => Err(self.not_finite(None, None)),
        }
    }

    /// What is said of element `at` of a tensor, of which not every new value is finite: the weight was `weight`.
    pub(crate) fn not_finite_at(
        &self,
        at: usize,
        (weight, new_weight): (f32, f32),
        new_state: &[f32],
    ) -> OptimizerError {
        self.not_finite(Some(at), Some(&Element { weight, new_weight, new_state }))
    }
}
