//! How a parameter's next version follows from the complete gradient of a step: one rule for each parameter.
//!
//! 1. What a server runs is compiled once, whatever the number of its slices.
//! 2. A rule reads nothing but its tensor, the gradient, what it keeps of them, and the step: no bit depends on how a tensor is
//!    cut. One that needs a whole tensor says so ([`Rules::is_whole`]), and is given all its slices at once.

use testudo_kernels::model::average;
use testudo_kernels::optimizer::{Slice, StepInputs};
use testudo_kernels::{Optimizer, OptimizerError, ParameterSpec, Update, first_non_finite};

use crate::job::JobSpec;

/// In place of a line, where no program gave a value.
pub(super) const NO_LINE: u32 = 0;

/// A parameter's rule. Another kind of parameter (one that is no weight, say) takes a variant here, an arm in each method of
/// [`Rules`], and is chosen in [`Rules::new`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// One of the server's optimizers, by its place.
    Optimizer(usize),
    /// A running mean, which no optimizer touches. It keeps what the first optimizer would, as it was at first, so that
    /// all slices of a checkpoint have one form.
    Average {
        /// The part that a step replaces.
        momentum: f32,
    },
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
        let optimizer = &job.optimizer;
        let mut optimizers = vec![optimizer.compile()?];
        if !optimizer.no_decay.is_empty() {
            optimizers.push(optimizer.compile_without_decay()?);
        }
        let rule = |p: &ParameterSpec| Rule::of(p.update, optimizer.decays(&p.name));
        Ok(Rules { of: parameters.iter().map(rule).collect(), optimizers })
    }

    /// The optimizer whose state a parameter's slices keep.
    fn optimizer(&self, parameter: u32) -> Option<&Optimizer> {
        match self.of.get(parameter as usize)? {
            Rule::Optimizer(at) => self.optimizers.get(*at),
            Rule::Average { .. } => self.optimizers.first(),
        }
    }

    /// The optimizers that the rules name by their places.
    pub(super) fn optimizers(&self) -> &[Optimizer] {
        &self.optimizers
    }

    /// Which optimizer updates a parameter, if one does.
    pub(super) fn optimizer_of(&self, parameter: u32) -> Option<usize> {
        match self.of.get(parameter as usize)? {
            Rule::Optimizer(at) => Some(*at),
            Rule::Average { .. } => None,
        }
    }

    /// Whether its slices are updated together.
    pub(super) fn is_whole(&self, parameter: u32) -> bool {
        let learnt = matches!(self.of.get(parameter as usize), Some(Rule::Optimizer(_)));
        learnt && self.optimizer(parameter).is_some_and(|o| o.program().needs_whole_tensor())
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
    /// [`OptimizerError::NotFinite`] for a new value that is NaN or infinite; lengths or numbers that do not fit are a bug.
    pub(super) fn update(
        &mut self,
        parameter: u32,
        inputs: StepInputs,
        slices: &mut [Slice<'_>],
        scalars: &mut [f64],
    ) -> Result<(), OptimizerError> {
        testudo_kernels::stage::first_is_over();
        match self.of.get(parameter as usize) {
            Some(Rule::Optimizer(at)) => match self.optimizers.get_mut(*at) {
                Some(optimizer) => optimizer.update_checked(inputs, slices, scalars),
                None => Ok(()),
            },
            Some(Rule::Average { momentum }) => {
                let mut first = 0;
                for slice in slices {
                    average(*momentum, inputs.divisor, slice.weights, slice.gradient_to_weights)?;
                    if let Some(at) = first_non_finite(slice.gradient_to_weights) {
                        let (element, name) = (Some(first + at), "a running mean".to_owned());
                        return Err(OptimizerError::NotFinite { element, line: NO_LINE, name });
                    }
                    first += slice.weights.len();
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Rule {
    fn of(update: Update, decays: bool) -> Rule {
        match update {
            // The second is the first without weight decay.
            Update::Learn => Rule::Optimizer(usize::from(!decays)),
            Update::Average { momentum } => Rule::Average { momentum },
        }
    }
}

#[cfg(test)]
mod tests {
    use testudo_kernels::OptimizerSpec;

    use super::*;

    /// A running mean is blended with what the step's shards gave, whatever the optimizer, its weight decay and the learning
    /// rate; what it keeps beside does not change, and its slices need not wait for each other.
    #[test]
    fn running_means_are_no_optimizers_business() {
        for name in ["sgd", "adamw", "nadam", "lamb"] {
            let optimizer = OptimizerSpec::shipped(name).unwrap().compile().unwrap();
            let of = [Update::Average { momentum: 0.25 }, Update::Learn]
                .map(|update| Rule::of(update, true))
                .to_vec();
            let mut rules = Rules { optimizers: vec![optimizer], of };
            assert_eq!(rules.state_tensors(0), rules.state_tensors(1));
            assert_eq!(rules.scalars(0), rules.scalars(1));
            assert!(!rules.is_whole(0), "{name}");
            assert_eq!(rules.is_whole(1), name == "lamb");
            let (weights, mut values) = ([4.0, -1.0], [80.0, 8.0]);
            let mut state = vec![vec![0.0; 2]; rules.state_tensors(0)];
            let mut scalars = rules.scalars(0);
            let inputs = StepInputs { step: 3, learning_rate: 0.5, divisor: 8.0 };
            let slice = Slice { weights: &weights, gradient_to_weights: &mut values, state: &mut state };
            rules.update(0, inputs, &mut [slice], &mut scalars).unwrap();
            assert_eq!(values, [0.75 * 4.0 + 0.25 * 10.0, -0.75 + 0.25], "{name}");
            assert!(state.iter().flatten().all(|value| *value == 0.0));
            assert_eq!(scalars, rules.scalars(0));
            values[1] = f32::MAX;
            let slice =
                Slice { weights: &[f32::MAX; 2], gradient_to_weights: &mut values, state: &mut state };
            let inputs = StepInputs { divisor: 0.125, ..inputs };
            let refused = rules.update(0, inputs, &mut [slice], &mut scalars).unwrap_err();
            assert!(matches!(refused, OptimizerError::NotFinite { element: Some(1), line: NO_LINE, .. }));
        }
    }
}
