//! A server's arithmetic: initialisation, the canonical sum, the update. Runs on its compute thread.
//!
//! 1. Contributions are folded in the order of the reduction tree, whatever the order of their arrival; under a robust rule, the
//!    rule makes one gradient of them, whatever the order of their arrival.
//! 2. The sum is divided once, at the root, by the number of targets of the step (its examples, for a classifier). A rule's result is not: votes are means.
//! 3. A contribution with a value that is not finite changes nothing.
//! 4. Where whole gradients are weighed, a slice is held until the scheduler's weights have come ([`super::held`]): no slice is at its
//!    next version before all can be.
//! 5. What an update is, its parameter's rule says ([`super::rules`]). Slices of a tensor that is updated as a whole go to their next
//!    version together, when the last of them is complete.
//! 6. On a device ([`SliceMath::with_device`]) every version has the same bits.

mod device;
mod error;
mod spread;
mod update;
mod weighed;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use testudo_kernels::{Aggregator, ParameterSpec, Update, add, first_non_finite};
use testudo_transport::Payload;

use device::whole;
pub use error::MathError;

use crate::checkpoint::{RestoredSlice, SliceSnapshot};
use crate::job::JobSpec;
use crate::message::ParameterPieces;
use crate::numbers;
use crate::params_hash::Stream;
use crate::placement::{Slice, SliceId};
use crate::plan::{HashPlan, Plan};
use crate::server::contribution::{Contribution, SumOrder};
use crate::server::held::{Contributed, Held};
use crate::server::histograms::Spread;
use crate::server::own_rule::{OwnAggregator, Stated};
use crate::server::pieces::Pieces;
use crate::server::resident::{Resident, Vector};
use crate::server::rules::Rules;
use crate::server::votes::Votes;
use crate::server::{SnapshotEvent, Snapshots, Store};
use crate::tree::{Partials, ReductionTree};

/// Slices that have gone to their next version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// The version.
    pub version: u64,
    /// One slice, or all of a tensor that is updated as a whole.
    pub slices: Vec<SliceId>,
}

#[derive(Debug, Default)]
struct SliceState {
    partials: Partials<Vector>,
    votes: Votes,
    arrival: Option<(u32, Vec<f32>)>,
    /// The aggregate of the step before, where the rule keeps that and it is not on the device: the last of the tensors that a checkpoint
    /// holds.
    aggregate: Option<Vec<f32>>,
    /// The gradient of the step, once it is whole.
    complete: Option<Vector>,
    /// What the rule keeps: tensors of the slice's length, unless the slice is on the device, and numbers, which all slices of a parameter
    /// have alike.
    optimizer: Vec<Vec<f32>>,
    scalars: Vec<f64>,
}

/// The arithmetic of all slices of one server.
#[derive(Debug)]
pub struct SliceMath {
    job: Arc<JobSpec>,
    plan: Plan,
    tree: ReductionTree,
    parameters: Vec<ParameterSpec>,
    order: SumOrder,
    rules: Rules,
    /// The program's own rule of aggregation, if the job names one.
    own: Option<OwnAggregator>,
    slices: HashMap<SliceId, (Slice, SliceState)>,
    /// The slices of parameters that are updated as a whole, in order.
    whole: BTreeMap<u32, Vec<SliceId>>,
    /// What waits for weights, where whole gradients are weighed.
    held: Option<Held>,
    /// The slices that are updated on a device, if there is one.
    resident: Option<Resident>,
    snapshots: Snapshots,
    pieces: Pieces,
    /// How values are spread, if that is wanted.
    spread: Spread,
    store: Arc<Store>,
}

impl SliceMath {
    /// The arithmetic of server `server` for `slices` of `job`, whose versions go into `store`. `parameters` are the
    /// model's.
    ///
    /// # Errors
    /// [`MathError::Optimizer`] when the job's optimizer is none, [`MathError::Incomplete`] when it needs more of a tensor than
    /// `slices` hold.
    pub fn new(
        server: u32,
        job: Arc<JobSpec>,
        parameters: Vec<ParameterSpec>,
        slices: impl IntoIterator<Item = Slice>,
        store: Arc<Store>,
        order: SumOrder,
    ) -> Result<SliceMath, MathError> {
        let rules = Rules::new(&job, &parameters)?;
        let slices: HashMap<_, _> = slices.into_iter().map(|s| (s.id, (s, SliceState::default()))).collect();
        let whole = whole(&rules, &parameters, slices.values().map(|(slice, _)| *slice))?;
        let every = job.checkpoints.every_steps;
        let snapshots = Snapshots::new(server, slices.len(), every, job.first_step());
        let pieces = Pieces::new(Stream::of(&parameters), HashPlan::new(&job), slices.len());
        let held = job.weighing().map(|weighing| Held::new(weighing, slices.len()));
        Ok(SliceMath {
            held,
            resident: None,
            plan: Plan::new(&job),
            tree: job.tree(),
            job,
            parameters,
            order,
            rules,
            own: None,
            slices,
            whole,
            snapshots,
            pieces,
            spread: Spread::default(),
            store,
        })
    }

    /// With the rule of aggregation that the job names, where that is a program's own.
    #[must_use]
    pub fn with_rule(mut self, rule: Option<Arc<dyn Aggregator>>) -> SliceMath {
        self.own = rule.map(OwnAggregator);
        self
    }

    /// The slices, in the model's order.
    #[must_use]
    pub fn slices(&self) -> Vec<Slice> {
        let mut slices: Vec<Slice> = self.slices.values().map(|(slice, _)| *slice).collect();
        slices.sort_by_key(|s| s.id);
        slices
    }

    /// Sets every slice to version 0: a function of (seed, parameter, element) alone.
    ///
    /// # Errors
    /// [`MathError::Codec`] when the pull codec cannot say a value: a bug.
    pub fn initialise(&mut self) -> Result<(), MathError> {
        for (slice, state) in self.slices.values_mut() {
            let Some(parameter) = self.parameters.get(slice.id.parameter as usize) else { continue };
            let mut values = vec![0.0; slice.elements];
            parameter.initialize(self.job.seed, slice.first, &mut values);
            state.optimizer = vec![vec![0.0; slice.elements]; self.rules.state_tensors(slice.id.parameter)];
            state.scalars = self.rules.scalars(slice.id.parameter);
            state.aggregate = self.job.aggregation.keeps_aggregate().then(|| vec![0.0; slice.elements]);
            self.store.put(slice.id, values)?;
        }
        self.hash_all(self.job.first_step());
        self.settle()
    }

    /// Sets every slice to what a checkpoint holds, at the step that the job resumes from.
    ///
    /// # Errors
    /// [`MathError::Restored`] when it is not exactly this server's slices, with the optimizer's state and finite values.
    pub fn restore(&mut self, restored: Vec<RestoredSlice>) -> Result<(), MathError> {
        let bad = |text: String| Err(MathError::Restored(text));
        if restored.len() != self.slices.len() {
            return bad(format!("{} slices instead of {}", restored.len(), self.slices.len()));
        }
        let version = self.job.first_step();
        let keeps_aggregate = self.job.aggregation.keeps_aggregate();
        for RestoredSlice { id, weights, mut state, scalars } in restored {
            let Some((slice, own)) = self.slices.get_mut(&id) else {
                return bad(format!("{id} is not kept here"));
            };
            let fits =
                |values: &Vec<f32>| values.len() == slice.elements && first_non_finite(values).is_none();
            if self.store.current(id).is_some() {
                return bad(format!("{id} twice"));
            }
            let tensors = self.rules.state_tensors(id.parameter) + usize::from(keeps_aggregate);
            let kept = (tensors, self.rules.scalars(id.parameter).len());
            let finite = scalars.iter().all(|scalar| scalar.is_finite());
            if (state.len(), scalars.len()) != kept || !fits(&weights) || !state.iter().all(fits) || !finite {
                return bad(format!(
                    "{id} has another length, another optimizer's state or a value that is not finite"
                ));
            }
            own.aggregate = if keeps_aggregate { state.pop() } else { None };
            (own.optimizer, own.scalars) = (state, scalars);
            self.store.begin(id, version, weights)?;
        }
        self.hash_all(version);
        self.settle()
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
        if self.snapshots.order(version) { self.keep_all() } else { Ok(()) }
    }

    /// The snapshot that was handed out is written, or could not be.
    ///
    /// # Errors
    /// [`MathError::Device`].
    pub fn snapshot_written(&mut self) -> Result<(), MathError> {
        if self.snapshots.written().is_some() { self.keep_all() } else { Ok(()) }
    }

    /// What has become of snapshots that fell due.
    pub fn poll_snapshot(&mut self) -> Option<SnapshotEvent> {
        self.snapshots.poll()
    }

    fn keep_all(&mut self) -> Result<(), MathError> {
        for slice in self.kept()? {
            self.snapshots.keep(slice);
        }
        Ok(())
    }

    /// Every slice as it is now, in the model's order.
    ///
    /// # Errors
    /// [`MathError::Device`]; never where slices are updated on the CPU.
    pub fn kept(&self) -> Result<Vec<SliceSnapshot>, MathError> {
        let keep = |(slice, state): &(Slice, SliceState)| {
            let (_, weights) = self.store.current(slice.id)?;
            Some(self.snapshot(slice, state, weights))
        };
        let mut kept = self.slices.values().filter_map(keep).collect::<Result<Vec<_>, _>>()?;
        kept.sort_by_key(|s| s.slice.id);
        Ok(kept)
    }

    /// A contribution's values from the bytes that came, which are of the length that the core has checked. The sender's credit for
    /// them is given back.
    ///
    /// # Errors
    /// [`MathError::Codec`] when no encoder of the job's push codec writes such bytes.
    pub fn decode(&self, slice: SliceId, payload: Payload) -> Result<Vec<f32>, MathError> {
        let (slice, _) = self.slices.get(&slice).ok_or(MathError::Unknown(slice))?;
        Ok(numbers::decode(payload, self.job.codecs.push, slice.elements)?)
    }

    /// Adds one contribution, or casts one vote. Returns what has gone to its next version: the slice, when the contribution was the
    /// last of its step, or the whole tensor, when it was the last of the last slice.
    ///
    /// # Errors
    /// [`MathError`]; after [`MathError::NotFinite`] the slice is as it was before.
    pub fn contribute(&mut self, contribution: Contribution) -> Result<Option<Updated>, MathError> {
        let Contribution { slice: id, step, node, values } = contribution;
        let (tree, order, learns) = (self.tree, self.order, self.learns(id.parameter));
        let rule = self.job.aggregation.of_parameter(learns);
        let (slice, _) = self.slices.get(&id).ok_or(MathError::Unknown(id))?;
        if values.len() != slice.elements {
            return Err(MathError::Unknown(id));
        }
        if let Some(element) = first_non_finite(&values) {
            return Err(MathError::NotFinite(element as u64));
        }
        let on_device =
            self.aggregates_on_device() && self.resident.as_ref().is_some_and(|resident| resident.holds(id));
        let (_, state) = self.slices.get_mut(&id).ok_or(MathError::Unknown(id))?;
        let mut resident = self.resident.as_mut().filter(|_| on_device);
        let contributed = match order {
            _ if rule.hostile().is_some() => {
                // Each vote is one shard's: nothing is summed before (a core that lets a larger node pass has a bug).
                if node.leaves != 1 {
                    return Err(MathError::Unknown(id));
                }
                let examples = self.plan.shard(&self.plan.step(step), node.first).len();
                let targets = examples * self.job.model.targets();
                match resident {
                    Some(resident) if rule.weighs() => {
                        resident.cast(id, node.first, targets, values)?.then_some(Contributed::Cast)
                    }
                    resident => {
                        match (state.votes.cast(tree.leaves(), node.first, targets, values), resident) {
                            (None, _) => None,
                            (Some(votes), Some(resident)) => {
                                Some(resident.aggregate(id, rule, &votes)?.into())
                            }
                            (Some(votes), None) if rule.weighs() || rule.own().is_some() => {
                                Some(Contributed::Host(votes))
                            }
                            (Some(votes), None) => Some(Contributed::Host(vec![rule.aggregate(votes)?])),
                        }
                    }
                }
            }
            SumOrder::Canonical | SumOrder::Wrong { .. } => {
                let (mut failed, values) = (None, Vector::new(id, values, resident.as_deref_mut())?);
                let sum = state.partials.insert(tree, tree.root(), node, values, |left, right| {
                    left.plus(right, resident.as_deref_mut()).unwrap_or_else(|error| {
                        failed.get_or_insert(error);
                        Vector::Host(Vec::new())
                    })
                });
                failed.map_or(Ok(()), Err)?;
                sum.map(Contributed::from)
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
                    Some(Contributed::Host(vec![sum]))
                } else {
                    state.arrival = Some((count, sum));
                    None
                }
            }
        };
        let Some(mut contributed) = contributed else { return Ok(None) };
        if let (Some(own), Contributed::Host(votes)) = (self.job.aggregation.own(), &mut contributed) {
            let (slice, _) = self.slices.get(&id).ok_or(MathError::Unknown(id))?;
            let parameter = self.parameters.get(id.parameter as usize).map_or("", |p| p.name.as_str());
            let stated = Stated { job: &self.job, input: own.input, rule };
            let votes = std::mem::take(votes);
            let made = stated.made(self.own.as_ref(), (parameter, slice.first, step), votes)?;
            contributed = Contributed::Host(made);
        }
        if self.held.is_some() {
            return self.hold(id, step, contributed).map(|()| None);
        }
        match contributed.alone() {
            Some(gradient) => self.complete(id, step, gradient),
            None => Ok(None),
        }
    }

    /// Whether sums and rules are computed on the device, if there is one, where slices are on it.
    fn aggregates_on_device(&self) -> bool {
        self.order == SumOrder::Canonical && self.job.aggregation.own().is_none()
    }

    /// Whether a parameter has a gradient, and is no running mean of statistics.
    fn learns(&self, parameter: u32) -> bool {
        self.parameters.get(parameter as usize).is_none_or(|p| p.update == Update::Learn)
    }
}

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod weighed_tests;
