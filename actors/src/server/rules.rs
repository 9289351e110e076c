//! How a parameter's next version follows from the complete gradient of a step: one rule for each parameter.
//!
//! 1. What a server runs is compiled once, whatever the number of its slices.
//! 2. A rule reads nothing but its tensor, the gradient, what it keeps of them, and the step: no bit depends on how a tensor is
//!    cut. One that needs a whole tensor says so ([`Rules::is_whole`]), and is given all its slices at once.

use testudo_kernels::optimizer::{Slice, StepInputs};
use testudo_kernels::{Optimizer, OptimizerError, ParameterSpec};

use crate::job::JobSpec;

/// A parameter's rule. Another kind of parameter (one that is no weight, say) takes a variant here, an arm in each method of
/// [`Rules`], and is chosen in [`Rules::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// One of the server's optimizers, by its place.
    Optimizer(usize),
}

/// The rules of a job's parameters, ready to run.
#[derive(Debug)]
pub(super) struct Rules {
    optimizers: Vec<Optimizer>,
    of: Vec<Rule>,
}

impl Rules {
    /// What `job` says of `parameters`.
    ///
    /// # Errors
    /// [`OptimizerError`] when the job's optimizer is none, which its validation has seen to.
    pub(super) fn new(job: &JobSpec, parameters: &[ParameterSpec]) -> Result<Rules, OptimizerError> {
        Ok(Rules {
            optimizers: vec![job.optimizer.compile()?],
            of: vec![Rule::Optimizer(0); parameters.len()],
        })
    }

    fn optimizer(&self, parameter: u32) -> Option<&Optimizer> {
        let Rule::Optimizer(at) = self.of.get(parameter as usize)?;
        self.optimizers.get(*at)
    }

    /// Whether its slices are updated together.
    pub(super) fn is_whole(&self, parameter: u32) -> bool {
        self.optimizer(parameter).is_some_and(|o| o.program().needs_whole_tensor())
    }

    /// How many tensors it keeps beside the values, each of their length.
    pub(super) fn state_tensors(&self, parameter: u32) -> usize {
        self.optimizer(parameter).map_or(0, |o| o.program().state_tensors().len())
    }

    /// The numbers that it keeps, as they are before the first step.
    pub(super) fn scalars(&self, parameter: u32) -> Vec<f64> {
        let states = self.optimizer(parameter).map_or(&[][..], |o| o.program().scalar_states());
        states.iter().map(|state| state.initial).collect()
    }

    /// One step on slices of a parameter: all of them, in order, or one alone if it is not [`whole`](Rules::is_whole).
    ///
    /// # Errors
    /// [`OptimizerError`]: lengths or numbers that do not fit are a bug.
    pub(super) fn update(
        &mut self,
        parameter: u32,
        inputs: StepInputs,
        slices: &mut [Slice<'_>],
        scalars: &mut [f64],
    ) -> Result<(), OptimizerError> {
        let Some(Rule::Optimizer(at)) = self.of.get(parameter as usize) else { return Ok(()) };
        let Some(optimizer) = self.optimizers.get_mut(*at) else { return Ok(()) };
        optimizer.update_tensor(inputs, slices, scalars)
    }
}
