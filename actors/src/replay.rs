//! Training over again, by one: what a third party needs to check a run.
//!
//! [`Replay`] puts a worker's arithmetic and a server's together without a network between them. It is the same code that
//! trained, so its bits are those that any honest cluster of the job must have had at that step.
//!
//! 1. The parameters after step N are a function of the signed job, its data and what the replay began with, and of nothing
//!    else: neither of how many nodes trained nor of how they shared the work.
//! 2. It begins with the job's seed, or with a checkpoint that its caller vouches for: what that holds is believed.

use std::sync::Arc;

use testudo_kernels::{Model, ModelError, ParameterSpec};
use testudo_transport::Payload;

use crate::checkpoint::{
    CheckpointError, CheckpointSink, FinalModel, NamedTensor, PartSource, SliceSnapshot, params_blake3,
};
use crate::dataset::TrainAndTest;
use crate::job::{Audit, Checkpoints, JobError, JobSpec, Resume};
use crate::placement::{PlacementError, SliceMap};
use crate::plan::Plan;
use crate::server::{Contribution, MathError, SliceMath, Store, SumOrder};
use crate::tree::{Node, Partials, ReductionTree};
use crate::worker::{ComputeError, Event, ShardCompute};

/// Why a step could not be computed again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The job is none.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Its model is none.
    #[error("the job's model: {0}")]
    Model(#[from] ModelError),
    /// Its parameters cannot be cut.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The checkpoint to begin with cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint to begin with does not fit, or a step diverged.
    #[error(transparent)]
    Update(#[from] MathError),
    /// Gradients could not be computed.
    #[error(transparent)]
    Gradients(#[from] ComputeError),
    /// There are no more steps.
    #[error("the job plans {0} steps, and all are taken")]
    Over(u64),
}

/// One step that was taken again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayedStep {
    /// The step, from 0.
    pub step: u64,
    /// Mean training loss over its batch's targets, before its update.
    pub loss: f64,
    /// Examples in its batch.
    pub examples: u64,
}

/// One parameter at the step that a replay has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayedParameter {
    /// Its name.
    pub name: String,
    /// Its values.
    pub weights: Vec<f32>,
    /// The optimizer's state, in the order of its names.
    pub state: Vec<Vec<f32>>,
    /// The numbers that it keeps, likewise; none of a parameter without elements.
    pub scalars: Vec<f64>,
}

/// A job's training, taken step by step in one place.
#[derive(Debug)]
pub struct Replay {
    job: Arc<JobSpec>,
    plan: Plan,
    map: Arc<SliceMap>,
    parameters: Vec<ParameterSpec>,
    tree: ReductionTree,
    targets: usize,
    /// What is computed, each by itself: the whole batch, or every vote.
    nodes: Vec<Node>,
    compute: ShardCompute,
    math: SliceMath,
    store: Arc<Store>,
    step: u64,
}

impl Replay {
    /// The training of `job` on `data`, from its seed, or from the checkpoint `from` that the source holds. What the job
    /// says of workers, servers, the last step, checkpoints and resumption is not looked at: no bit depends on it.
    ///
    /// # Errors
    /// [`ReplayError`] when job, data and checkpoint do not fit each other.
    pub fn new(
        job: &JobSpec,
        model: Box<dyn Model>,
        data: TrainAndTest,
        from: Option<(Resume, &mut dyn PartSource)>,
    ) -> Result<Replay, ReplayError> {
        let (resume, source) = from.unzip();
        // Under a robust rule, the number of workers is the number of votes.
        let votes = job.aggregation.hostile().is_some();
        let alone = JobSpec {
            workers: if votes { job.workers } else { 1 },
            servers: 1,
            max_steps: None,
            checkpoints: Checkpoints::default(),
            audit: Audit { hash_every: 0, countersign_every: 0 },
            resume,
            ..job.clone()
        };
        alone.validate()?;
        let job = Arc::new(alone);
        let parameters = job.model.parameters()?;
        let map = Arc::new(SliceMap::of(&job, &parameters)?);
        let (store, slices) = (Arc::new(Store::new(job.codecs.pull)), map.slices().to_vec());
        let mut math = SliceMath::new(
            0,
            Arc::clone(&job),
            parameters.clone(),
            slices,
            Arc::clone(&store),
            SumOrder::Canonical,
        )?;
        let (train, test) = data;
        let mut compute =
            ShardCompute::new(Arc::clone(&job), Arc::clone(&map), model, train, test, Box::new(NoSink))?;
        let tree = job.tree();
        let nodes = match job.sums_shards() {
            true => vec![tree.root()],
            false => (0..tree.leaves()).map(Node::leaf).collect(),
        };
        match source {
            Some(source) => {
                math.restore(source.load(&job, map.slices())?)?;
                compute.restore(source, &nodes)?;
            }
            None => math.initialise()?,
        }
        let mut replay = Replay {
            plan: Plan::new(&job),
            tree,
            targets: job.model.targets(),
            nodes,
            step: job.first_step(),
            job,
            map,
            parameters,
            compute,
            math,
            store,
        };
        replay.adopt()?;
        Ok(replay)
    }

    /// The steps that are taken: the version of every parameter.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Takes the next step.
    ///
    /// # Errors
    /// [`ReplayError`] when there is none, or when it diverges.
    pub fn advance(&mut self) -> Result<ReplayedStep, ReplayError> {
        let (step, tree) = (self.step, self.tree);
        if step >= self.plan.planned_steps() {
            return Err(ReplayError::Over(self.plan.planned_steps()));
        }
        let (math, mut loss, mut updated) = (&mut self.math, 0.0, Ok(()));
        let mut losses = Partials::default();
        self.compute.compute(step, &self.nodes, |event| match event {
            Event::Gradient { node, slice, values, .. } if updated.is_ok() => {
                let values = math.decode(slice, Payload::copy_from(&values));
                updated = values
                    .and_then(|values| math.contribute(Contribution { slice, step, node, values }))
                    .map(|_| ());
            }
            Event::Gradient { .. } | Event::Testimony { .. } => {}
            Event::Computed { loss: part, .. } => {
                let whole = losses.insert(tree, tree.root(), part.node, part.loss_sum, |l, r| l + r);
                loss = whole.unwrap_or(loss);
            }
        })?;
        updated?;
        if let (Some(weighing), Some((step, products))) = (self.job.weighing(), self.math.poll_products()) {
            let divisor = f64::from(self.job.divisor(step));
            let weights = weighing.weigh(&products, divisor).map_err(MathError::from)?;
            self.math.combine(step, &weights)?;
        }
        self.step += 1;
        self.adopt()?;
        let examples = self.plan.step(step).examples;
        Ok(ReplayedStep { step, loss: loss / (examples as f64 * self.targets as f64), examples })
    }

    /// The model computes with the newest version from now on, as workers decode it.
    fn adopt(&mut self) -> Result<(), ReplayError> {
        for slice in self.map.slices() {
            if let Ok((bytes, _)) = self.store.read(slice.id, self.step) {
                let installed = self.compute.install_encoded(slice.id, self.store.codec(), &bytes);
                installed.map_err(MathError::from)?;
            }
        }
        self.compute.adopt();
        Ok(())
    }

    /// `params_blake3` after the steps taken.
    #[must_use]
    pub fn params_blake3(&self) -> [u8; 32] {
        let parameters = self.parameters();
        let named: Vec<NamedTensor<'_>> = self
            .parameters
            .iter()
            .zip(&parameters)
            .map(|(spec, of)| NamedTensor { name: &spec.name, dims: spec.shape.dims(), values: &of.weights })
            .collect();
        params_blake3(&named)
    }

    /// Every parameter after the steps taken, with the optimizer's state, in the model's order.
    #[must_use]
    pub fn parameters(&self) -> Vec<ReplayedParameter> {
        // On the CPU, where reading them does not fail.
        let slices = self.math.kept().unwrap_or_default();
        let kinds = slices.first().map_or(0, |slice| slice.state.len());
        let empty = |spec: &ParameterSpec| ReplayedParameter {
            name: spec.name.clone(),
            weights: Vec::with_capacity(spec.shape.elements()),
            state: vec![Vec::with_capacity(spec.shape.elements()); kinds],
            scalars: Vec::new(),
        };
        let mut parameters: Vec<ReplayedParameter> = self.parameters.iter().map(empty).collect();
        // A parameter's slices follow each other.
        for SliceSnapshot { slice, weights, state, scalars } in slices {
            let Some(parameter) = parameters.get_mut(slice.id.parameter as usize) else { continue };
            parameter.weights.extend_from_slice(&weights);
            parameter.scalars = scalars;
            for (whole, part) in parameter.state.iter_mut().zip(&state) {
                whole.extend_from_slice(part);
            }
        }
        parameters
    }
}

/// A replay exports nothing.
#[derive(Debug)]
struct NoSink;

impl CheckpointSink for NoSink {
    fn export(&mut self, _: &FinalModel<'_>) -> Result<u64, CheckpointError> {
        Ok(0)
    }
}
