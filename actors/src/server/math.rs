//! A server's arithmetic: initialisation, the canonical sum, the update. Runs on its compute thread.
//!
//! 1. Contributions are folded in the order of the reduction tree, whatever the order of their arrival; under a robust rule, the
//!    rule makes one gradient of them, whatever the order of their arrival.
//! 2. The sum is divided once, at the root, by the number of targets of the step (its examples, for a classifier). A rule's result is not: votes are means.
//! 3. A contribution with a value that is not finite changes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use testudo_kernels::{AggregationError, OptimizerError, ParameterSpec, add, first_non_finite};

use crate::checkpoint::{RestoredSlice, SliceSnapshot};
use crate::job::JobSpec;
use crate::message::ParameterPieces;
use crate::params_hash::Stream;
use crate::placement::{Slice, SliceId};
use crate::plan::{HashPlan, Plan};
use crate::server::pieces::Pieces;
use crate::server::votes::Votes;
use crate::server::{SnapshotEvent, Snapshots, Store};
use crate::tree::{Node, Partials, ReductionTree};

/// How contributions are summed. Only [`SumOrder::Canonical`] is ever configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SumOrder {
    /// By the reduction tree.
    #[default]
    Canonical,
    /// As they arrive: a mutant, kept so that the tests of determinism can be seen to catch it.
    Arrival,
    /// By the reduction tree, but in that one step the first element of every sum is off by one: a mutant, kept so that
    /// replays and witnesses can be seen to name a server that applies wrong updates.
    Wrong {
        /// The step.
        step: u64,
    },
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
    /// The robust rule refused the votes: a bug, since the job was checked.
    #[error("the votes could not be aggregated: {0}")]
    Aggregation(#[from] AggregationError),
    /// What was restored is not what this server keeps.
    #[error("the checkpoint does not hold what this server keeps: {0}")]
    Restored(String),
    /// A checkpoint or a hash of a version that the slices are not at.
    #[error("the scheduler ordered a checkpoint or hash of step {0}, at which this server is not")]
    Order(u64),
    /// A slice or length that the core should have refused: a bug.
    #[error("no such slice or length: {0}")]
    Unknown(SliceId),
}

#[derive(Debug, Default)]
struct SliceState {
    partials: Partials<Vec<f32>>,
    votes: Votes,
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
    snapshots: Snapshots,
    pieces: Pieces,
    store: Arc<Store>,
}

impl SliceMath {
    /// The arithmetic of server `server` for `slices` of `job`, whose versions go into `store`. `parameters` are the
    /// model's.
    #[must_use]
    pub fn new(
        server: u32,
        job: Arc<JobSpec>,
        parameters: Vec<ParameterSpec>,
        slices: impl IntoIterator<Item = Slice>,
        store: Arc<Store>,
        order: SumOrder,
    ) -> SliceMath {
        let slices: HashMap<_, _> = slices.into_iter().map(|s| (s.id, (s, SliceState::default()))).collect();
        let every = job.checkpoints.every_steps;
        let snapshots = Snapshots::new(server, slices.len(), every, job.first_step());
        let pieces = Pieces::new(Stream::of(&parameters), HashPlan::new(&job), slices.len());
        SliceMath {
            plan: Plan::new(&job),
            tree: job.tree(),
            job,
            parameters,
            order,
            slices,
            snapshots,
            pieces,
            store,
        }
    }

    /// The slices, in the model's order.
    #[must_use]
    pub fn slices(&self) -> Vec<Slice> {
        let mut slices: Vec<Slice> = self.slices.values().map(|(slice, _)| *slice).collect();
        slices.sort_by_key(|s| s.id);
        slices
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
        self.hash_all(self.job.first_step());
    }

    /// Sets every slice to what a checkpoint holds, at the step that the job resumes from.
    ///
    /// # Errors
    /// [`MathError::Restored`] when it is not exactly this server's slices, with the optimizer's state and finite values.
    pub fn restore(&mut self, restored: Vec<RestoredSlice>) -> Result<(), MathError> {
        let bad = |text: String| Err(MathError::Restored(text));
        let state_tensors = self.job.optimizer.state_tensors().len();
        if restored.len() != self.slices.len() {
            return bad(format!("{} slices instead of {}", restored.len(), self.slices.len()));
        }
        let version = self.job.first_step();
        for RestoredSlice { id, weights, state } in restored {
            let Some((slice, own)) = self.slices.get_mut(&id) else {
                return bad(format!("{id} is not kept here"));
            };
            let fits =
                |values: &Vec<f32>| values.len() == slice.elements && first_non_finite(values).is_none();
            if self.store.current(id).is_some() {
                return bad(format!("{id} twice"));
            }
            if state.len() != state_tensors || !fits(&weights) || !state.iter().all(fits) {
                return bad(format!(
                    "{id} has another length, another optimizer's state or a value that is not finite"
                ));
            }
            own.optimizer = state;
            self.store.begin(id, version, weights);
        }
        self.hash_all(version);
        Ok(())
    }

    /// Hashes what every slice is at, if that is to be.
    fn hash_all(&mut self, version: u64) {
        if !self.pieces.wants(version) {
            return;
        }
        for (slice, _) in self.slices.values() {
            if let Some((_, weights)) = self.store.current(slice.id) {
                self.pieces.hash(version, slice, &weights);
            }
        }
    }

    /// The scheduler wants the hash of `version`, at which every slice is.
    ///
    /// # Errors
    /// [`MathError::Order`] when one is not: the scheduler is wrong.
    pub fn order_hash(&mut self, version: u64) -> Result<(), MathError> {
        if !self.is_at(version) || !self.pieces.order(version) {
            return Err(MathError::Order(version));
        }
        self.hash_all(version);
        Ok(())
    }

    /// What the scheduler is to be told of the parameters' hash.
    pub fn poll_pieces(&mut self) -> Option<ParameterPieces> {
        self.pieces.poll()
    }

    fn is_at(&self, version: u64) -> bool {
        self.slices.keys().all(|id| self.store.current(*id).is_some_and(|(number, _)| number == version))
    }

    /// The scheduler wants a checkpoint of `version`, at which every slice is.
    ///
    /// # Errors
    /// [`MathError::Order`] when one is not: the scheduler is wrong.
    pub fn order_snapshot(&mut self, version: u64) -> Result<(), MathError> {
        if !self.is_at(version) {
            return Err(MathError::Order(version));
        }
        if self.snapshots.order(version) {
            self.keep_all();
        }
        Ok(())
    }

    /// The snapshot that was handed out is written, or could not be.
    pub fn snapshot_written(&mut self) {
        if self.snapshots.written().is_some() {
            self.keep_all();
        }
    }

    /// What has become of snapshots that fell due.
    pub fn poll_snapshot(&mut self) -> Option<SnapshotEvent> {
        self.snapshots.poll()
    }

    fn keep_all(&mut self) {
        for slice in self.kept() {
            self.snapshots.keep(slice);
        }
    }

    /// Every slice as it is now, in the model's order.
    #[must_use]
    pub fn kept(&self) -> Vec<SliceSnapshot> {
        let keep = |(slice, state): &(Slice, SliceState)| {
            let (_, weights) = self.store.current(slice.id)?;
            Some(SliceSnapshot { slice: *slice, weights, state: state.optimizer.clone() })
        };
        let mut kept: Vec<SliceSnapshot> = self.slices.values().filter_map(keep).collect();
        kept.sort_by_key(|s| s.slice.id);
        kept
    }

    /// Adds one contribution, or casts one vote. Returns the slice's new version when it was the last of its step.
    ///
    /// # Errors
    /// [`MathError`]; after [`MathError::NotFinite`] the slice is as it was before.
    pub fn contribute(&mut self, contribution: Contribution) -> Result<Option<u64>, MathError> {
        let Contribution { slice: id, step, node, values } = contribution;
        let (tree, order, rule) = (self.tree, self.order, self.job.aggregation);
        let (slice, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
        if values.len() != slice.elements {
            return Err(MathError::Unknown(id));
        }
        if let Some(element) = first_non_finite(&values) {
            return Err(MathError::NotFinite(element as u64));
        }
        let sum = match order {
            _ if rule.hostile().is_some() => {
                // Each vote is one shard's: nothing is summed before (a core that lets a larger node pass has a bug).
                if node.leaves != 1 {
                    return Err(MathError::Unknown(id));
                }
                let examples = self.plan.shard(&self.plan.step(step), node.first).len();
                state.votes.cast(rule, tree.leaves(), examples * self.job.model.targets(), values)?
            }
            SumOrder::Canonical | SumOrder::Wrong { .. } => {
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
            Some(mut sum) if order == (SumOrder::Wrong { step }) => {
                if let Some(first) = sum.first_mut() {
                    *first += 1.0;
                }
                self.update(id, step, sum).map(Some)
            }
            Some(sum) => self.update(id, step, sum).map(Some),
            None => Ok(None),
        }
    }

    /// Turns the complete gradient of a step, a sum or a rule's result, into the slice's next version.
    fn update(&mut self, id: SliceId, step: u64, mut sum: Vec<f32>) -> Result<u64, MathError> {
        let (slice, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
        let (version, weights) = self.store.current(id).ok_or(MathError::Unknown(id))?;
        let name =
            || self.parameters.get(id.parameter as usize).map_or_else(|| id.to_string(), |p| p.name.clone());
        let divisor = match self.job.aggregation.hostile() {
            None => self.plan.step(step).examples as f32 * self.job.model.targets() as f32,
            Some(_) => 1.0,
        };
        let rate = self.job.learning_rate * self.job.schedule.factor(step, self.plan.planned_steps());
        self.job
            .optimizer
            .update(step + 1, rate, divisor, &weights, &mut sum, &mut state.optimizer)
            .map_err(|source| MathError::Optimizer { parameter: name(), source })?;
        if let Some(element) = first_non_finite(&sum) {
            let element = (slice.first + element) as u64;
            return Err(MathError::Diverged { parameter: name(), step, element });
        }
        drop(weights);
        self.store.put(id, sum);
        let version = version + 1;
        if self.pieces.wants(version)
            && let Some((_, weights)) = self.store.current(id)
        {
            self.pieces.hash(version, slice, &weights);
        }
        if self.snapshots.wants(version)
            && let Some((_, weights)) = self.store.current(id)
        {
            let snapshot = SliceSnapshot { slice: *slice, weights, state: state.optimizer.clone() };
            self.snapshots.keep(snapshot);
        }
        Ok(version)
    }
}
