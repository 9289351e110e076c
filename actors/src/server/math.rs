//! A server's arithmetic: initialisation, the canonical sum, the update. Runs on its compute thread.
//!
//! 1. Contributions are folded in the order of the reduction tree, whatever the order of their arrival.
//! 2. The sum is divided once, at the root, by the number of examples of the step.
//! 3. A contribution with a value that is not finite changes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use testudo_kernels::{OptimizerError, ParameterSpec, add, first_non_finite};

use crate::job::JobSpec;
use crate::placement::{Slice, SliceId};
use crate::plan::Plan;
use crate::server::Store;
use crate::tree::{Node, Partials, ReductionTree};

/// How contributions are summed. Only [`SumOrder::Canonical`] is ever configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SumOrder {
    /// By the reduction tree.
    #[default]
    Canonical,
    /// As they arrive: a mutant, kept so that the tests of determinism can be seen to catch it.
    Arrival,
}

/// One accepted push, to be summed.
#[derive(Debug)]
pub struct Contribution {
    /// The slice.
    pub slice: SliceId,
    /// The step.
    pub step: u64,
    /// The tree node that the values sum over.
    pub node: Node,
    /// The values; as many as the slice has elements.
    pub values: Vec<f32>,
}

/// Why a contribution or an update could not be carried out.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum MathError {
    /// NaN or infinity in a contribution.
    #[error("element {0} of the contribution is not finite")]
    NotFinite(u64),
    /// The update produced NaN or infinity.
    #[error(
        "the update of {parameter} in step {step} gives a value that is not finite (element {element}): \
         training has diverged; a lower optimizer.learning_rate may help"
    )]
    Diverged {
        /// The parameter's name.
        parameter: String,
        /// The step.
        step: u64,
        /// The first such element of the parameter.
        element: u64,
    },
    /// The optimizer refused its inputs.
    #[error("the optimizer failed on {parameter}: {source}")]
    Optimizer {
        /// The parameter's name.
        parameter: String,
        /// What it said.
        source: OptimizerError,
    },
    /// A slice or length that the core should have refused: a bug.
    #[error("no such slice or length: {0}")]
    Unknown(SliceId),
}

#[derive(Debug, Default)]
struct SliceState {
    partials: Partials<Vec<f32>>,
    arrival: Option<(u32, Vec<f32>)>,
    optimizer: Vec<Vec<f32>>,
}

/// The arithmetic of all slices of one server.
#[derive(Debug)]
pub struct SliceMath {
    job: Arc<JobSpec>,
    plan: Plan,
    tree: ReductionTree,
    parameters: Vec<ParameterSpec>,
    order: SumOrder,
    slices: HashMap<SliceId, (Slice, SliceState)>,
    store: Arc<Store>,
}

impl SliceMath {
    /// The arithmetic for `slices` of `job`, whose versions go into `store`. `parameters` are the model's.
    #[must_use]
    pub fn new(
        job: Arc<JobSpec>,
        parameters: Vec<ParameterSpec>,
        slices: impl IntoIterator<Item = Slice>,
        store: Arc<Store>,
        order: SumOrder,
    ) -> SliceMath {
        let slices = slices.into_iter().map(|s| (s.id, (s, SliceState::default()))).collect();
        SliceMath { plan: Plan::new(&job), tree: job.tree(), job, parameters, order, slices, store }
    }

    /// Sets every slice to version 0: a function of (seed, parameter, element) alone.
    pub fn initialise(&mut self) {
        let state_tensors = self.job.optimizer.state_tensors().len();
        for (slice, state) in self.slices.values_mut() {
            let Some(parameter) = self.parameters.get(slice.id.parameter as usize) else { continue };
            let mut values = vec![0.0; slice.elements];
            parameter.initialize(self.job.seed, slice.first, &mut values);
            state.optimizer = vec![vec![0.0; slice.elements]; state_tensors];
            self.store.put(slice.id, values);
        }
    }

    /// Adds one contribution. Returns the slice's new version when it was the last of its step.
    ///
    /// # Errors
    /// [`MathError`]; after [`MathError::NotFinite`] the slice is as it was before.
    pub fn contribute(&mut self, contribution: Contribution) -> Result<Option<u64>, MathError> {
        let Contribution { slice: id, step, node, values } = contribution;
        let (tree, order) = (self.tree, self.order);
        let (slice, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
        if values.len() != slice.elements {
            return Err(MathError::Unknown(id));
        }
        if let Some(element) = first_non_finite(&values) {
            return Err(MathError::NotFinite(element as u64));
        }
        let sum = match order {
            SumOrder::Canonical => {
                state.partials.insert(tree, tree.root(), node, values, |mut left, right| {
                    add(&mut left, &right);
                    left
                })
            }
            SumOrder::Arrival => {
                let (count, sum) = match state.arrival.take() {
                    None => (node.leaves, values),
                    Some((count, mut sum)) => {
                        add(&mut sum, &values);
                        (count + node.leaves, sum)
                    }
                };
                if count == tree.leaves() {
                    Some(sum)
                } else {
                    state.arrival = Some((count, sum));
                    None
                }
            }
        };
        match sum {
            Some(sum) => self.update(id, step, sum).map(Some),
            None => Ok(None),
        }
    }

    /// Turns the complete gradient sum of a step into the slice's next version.
    fn update(&mut self, id: SliceId, step: u64, mut sum: Vec<f32>) -> Result<u64, MathError> {
        let (slice, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
        let (version, weights) = self.store.current(id).ok_or(MathError::Unknown(id))?;
        let name =
            || self.parameters.get(id.parameter as usize).map_or_else(|| id.to_string(), |p| p.name.clone());
        let examples = self.plan.step(step).examples as f32;
        let rate = self.job.learning_rate * self.job.schedule.factor(step, self.plan.planned_steps());
        self.job
            .optimizer
            .update(step + 1, rate, examples, &weights, &mut sum, &mut state.optimizer)
            .map_err(|source| MathError::Optimizer { parameter: name(), source })?;
        if let Some(element) = first_non_finite(&sum) {
            let element = (slice.first + element) as u64;
            return Err(MathError::Diverged { parameter: name(), step, element });
        }
        drop(weights);
        self.store.put(id, sum);
        Ok(version + 1)
    }
}
