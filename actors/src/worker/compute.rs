//! A worker's arithmetic: gradients of whole tree nodes, evaluation, the final hash, residuals in checkpoints.
//!
//! 1. Each logical shard is computed by itself; shards of one node are added in the order of the reduction tree, so the
//!    sum of a node has the same bits whoever computes it, in one piece or in many.
//! 2. A parameter's slices leave the moment its gradient is complete, while the rest of the backward pass is still to
//!    run.

mod checkpoints;
mod evaluate;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use testudo_kernels::{
    Batch, Codec, CodecError, Distortion, Gradient, Model, ModelError, Place, add, permutation,
};

use crate::checkpoint::{CheckpointError, CheckpointSink};
use crate::dataset::Dataset;
use crate::job::JobSpec;
use crate::message::NodeLoss;
use crate::placement::{SliceId, SliceMap};
use crate::plan::Plan;
use crate::tree::{Node, Partials, ReductionTree};
use crate::witness::{Choice, Key};
use crate::worker::encode::{Encoder, Witnessed};
use crate::worker::residuals::Residuals;
use crate::worker::watch::Watch;

/// What the arithmetic hands over as it goes.
#[derive(Debug)]
pub enum Event {
    /// One slice of a node's gradient is complete.
    Gradient {
        /// The step.
        step: u64,
        /// The node.
        node: Node,
        /// The slice.
        slice: SliceId,
        /// Its values, in the job's push codec.
        values: Bytes,
    },
    /// What the scheduler witnesses of a node's gradient.
    Testimony {
        /// The step.
        step: u64,
        /// The node.
        node: Node,
        /// The chosen values, in the order of the choice.
        values: Vec<f32>,
    },
    /// A node is complete.
    Computed {
        /// The step.
        step: u64,
        /// Its loss.
        loss: NodeLoss,
        /// Microseconds spent on it.
        compute_us: u64,
        /// What the push codec lost of it, as sampled.
        pushed: Distortion,
    },
}

/// Tells a watcher how far the backward pass has come; used by tests of overlap.
pub trait Pace: Send {
    /// The gradient of `parameter` has just been handed over; `last` says whether it was the step's last.
    fn handed_over(&mut self, parameter: usize, last: bool);
}

/// Why the arithmetic failed.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// The model refused its input.
    #[error("the model failed: {0}")]
    Model(#[from] ModelError),
    /// The final model could not be stored.
    #[error("the final model could not be stored: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The residuals of the checkpoint to begin with cannot be used.
    #[error("the checkpoint cannot be used: {0}")]
    Restore(CheckpointError),
    /// The push codec cannot say a gradient.
    #[error(
        "element {element} of the gradient of {parameter} (logical shard {shard}) in step {step} is not finite, residual included: \
         training has diverged; a lower optimizer.learning_rate may help"
    )]
    NotFinite {
        /// The parameter's name.
        parameter: String,
        /// The element of the parameter.
        element: usize,
        /// The shard.
        shard: u32,
        /// The step.
        step: u64,
    },
    /// A codec failed otherwise: a bug.
    #[error("the codec failed: {0}")]
    Codec(#[from] CodecError),
    /// The program's model is not the one that the job describes.
    #[error(
        "the job's model has {stated} parameters, this program's has {found}, and they differ in {first}: every worker needs the \
         operator's program"
    )]
    OtherModel {
        /// Parameters that the job states.
        stated: usize,
        /// Parameters that the model has.
        found: usize,
        /// The first that is not the same.
        first: String,
    },
    /// The data set on this node is not the job's.
    #[error("{0}")]
    Data(String),
}

/// The arithmetic of one worker.
pub struct ShardCompute {
    job: Arc<JobSpec>,
    plan: Plan,
    tree: ReductionTree,
    map: Arc<SliceMap>,
    model: Box<dyn Model>,
    train: Arc<dyn Dataset>,
    test: Arc<dyn Dataset>,
    sink: Box<dyn CheckpointSink>,
    current: Vec<Vec<f32>>,
    next: Vec<Vec<f32>>,
    order: Option<(u64, Vec<u32>)>,
    inputs: Vec<f32>,
    labels: Vec<u32>,
    /// Buffers for sums under way, used again.
    spare: Vec<Vec<f32>>,
    encoder: Encoder,
    /// The adopted parameters as servers keep them, where a lossy codec brought others and they were asked for.
    exact: Option<Vec<Vec<f32>>>,
    pace: Option<Box<dyn Pace>>,
    witnessed: Option<Witnessed>,
    /// Of the step under way, if that is traced.
    watch: Option<Watch>,
}

impl std::fmt::Debug for ShardCompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardCompute").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl ShardCompute {
    /// The most examples that a worker of `job` hands its model at a time.
    #[must_use]
    pub fn largest_batch(job: &JobSpec) -> usize {
        Plan::new(job).largest_shard().max(job.model.evaluation_batch())
    }

    /// The arithmetic of `job` with `model`, which takes [`largest_batch`](ShardCompute::largest_batch) examples, on
    /// these data sets.
    ///
    /// # Errors
    /// [`ComputeError`] when model, data and job do not fit each other.
    pub fn new(
        job: Arc<JobSpec>,
        map: Arc<SliceMap>,
        model: Box<dyn Model>,
        train: Arc<dyn Dataset>,
        test: Arc<dyn Dataset>,
        sink: Box<dyn CheckpointSink>,
    ) -> Result<ShardCompute, ComputeError> {
        let plan = Plan::new(&job);
        for (name, set, count) in
            [("training", &train, job.data.train_examples), ("test", &test, job.data.test_examples)]
        {
            let (here, wanted) =
                ((set.input_elements(), set.targets()), (model.input_elements(), job.model.targets()));
            if set.len() as u64 != count || here != wanted {
                return Err(ComputeError::Data(format!(
                    "the {name} set holds {} examples of {} numbers and {} labels here, the job says {count} of {} and {}: \
                     point data.path at the data that the job was signed for",
                    set.len(),
                    here.0,
                    here.1,
                    wanted.0,
                    wanted.1
                )));
            }
        }
        let (stated, found) = (job.model.parameters()?, model.parameters());
        if stated.as_slice() != found {
            let other = stated.iter().zip(found).find(|(stated, found)| stated != found);
            let first = other.map_or("their number".into(), |(stated, _)| stated.name.clone());
            return Err(ComputeError::OtherModel { stated: stated.len(), found: found.len(), first });
        }
        let sizes = model.parameters().iter().map(|p| p.shape.elements()).collect();
        let every = if job.keeps_residuals() { job.checkpoints.every_steps } else { 0 };
        let encoder = Encoder::new(job.codecs.push, Residuals::new(sizes, every, job.first_step()));
        let zeros: Vec<Vec<f32>> = model.parameters().iter().map(|p| vec![0.0; p.shape.elements()]).collect();
        Ok(ShardCompute {
            plan,
            tree: job.tree(),
            map,
            train,
            test,
            sink,
            current: zeros.clone(),
            next: zeros,
            order: None,
            inputs: Vec::new(),
            labels: Vec::new(),
            spare: Vec::new(),
            encoder,
            exact: None,
            pace: None,
            witnessed: None,
            watch: None,
            model,
            job,
        })
    }

    /// Sets a watcher of the backward pass.
    #[must_use]
    pub fn with_pace(mut self, pace: Box<dyn Pace>) -> ShardCompute {
        self.pace = Some(pace);
        self
    }

    /// Has the next step watched, or not.
    pub(super) fn watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    /// Tells what the scheduler witnesses from now on: [`Event::Testimony`] for each node, and [`given`](ShardCompute::given).
    pub fn witness(&mut self, key: &Key) {
        let choice = Choice::new(key, &self.map, self.job.witness_rate, self.job.codecs.pull);
        let values = vec![0.0; choice.elements()];
        self.witnessed = Some(Witnessed { values, choice, decoded: Vec::new() });
    }

    /// The witnessed values of the adopted parameters; `None` if nothing is witnessed.
    #[must_use]
    pub fn given(&self) -> Option<Vec<f32>> {
        let Witnessed { choice, values, .. } = self.witnessed.as_ref()?;
        let mut given = vec![0.0; values.len()];
        for (parameter, values) in self.current.iter().enumerate() {
            choice.gather(parameter, values, &mut given);
        }
        Some(given)
    }

    /// Puts a slice that came in `codec` into the next version. A slice that the core would refuse is ignored.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none of that slice's: the server is at fault.
    pub fn install_encoded(&mut self, slice: SliceId, codec: Codec, bytes: &[u8]) -> Result<(), CodecError> {
        let Some(place) = self.map.slice(slice) else { return Ok(()) };
        let target = self.next.get_mut(slice.parameter as usize);
        match target.and_then(|p| p.get_mut(place.first..place.first + place.elements)) {
            Some(target) => codec.decode(bytes, target),
            None => Ok(()),
        }
    }

    /// Puts a slice into the next version. A slice or length that the core would refuse is ignored.
    pub fn install(&mut self, slice: SliceId, values: &[f32]) {
        let Some(place) = self.map.slice(slice) else { return };
        let target = self
            .next
            .get_mut(slice.parameter as usize)
            .and_then(|p| p.get_mut(place.first..place.first + place.elements));
        if let Some(target) = target
            && target.len() == values.len()
        {
            target.copy_from_slice(values);
        }
    }

    /// Computes with the next version from now on.
    pub fn adopt(&mut self) {
        std::mem::swap(&mut self.current, &mut self.next);
        self.exact = None;
    }

    /// Keeps a slice of the adopted version's exact parameters: what is evaluated and exported from now on. Every slice of it must
    /// come.
    pub fn install_exact(&mut self, slice: SliceId, values: &[f32]) {
        let Some(place) = self.map.slice(slice) else { return };
        let exact = self.exact.get_or_insert_with(|| self.current.clone());
        let target = exact
            .get_mut(slice.parameter as usize)
            .and_then(|p| p.get_mut(place.first..place.first + place.elements));
        if let Some(target) = target
            && target.len() == values.len()
        {
            target.copy_from_slice(values);
        }
    }

    /// The adopted parameters, in the model's order.
    #[must_use]
    pub fn parameters(&self) -> &[Vec<f32>] {
        &self.current
    }

    /// Computes the gradients of `nodes` in `step` and hands slices over as they are ready.
    ///
    /// # Errors
    /// [`ComputeError`] when the model refuses.
    pub fn compute(
        &mut self,
        step: u64,
        nodes: &[Node],
        mut emit: impl FnMut(Event),
    ) -> Result<(), ComputeError> {
        let place = self.plan.step(step);
        if self.order.as_ref().is_none_or(|(epoch, _)| *epoch != place.epoch) {
            // The former epoch's order goes before the next is made.
            self.order = None;
            self.order = Some((place.epoch, permutation(self.job.seed, place.epoch, self.train.len())));
        }
        for node in nodes {
            let begun = Instant::now();
            let mut sums: Vec<Partials<Vec<f32>>> = Vec::new();
            sums.resize_with(self.current.len(), Partials::default);
            let mut losses = Partials::default();
            let mut total = None;
            for shard in node.first..node.first + node.leaves {
                let range = self.plan.shard(&place, shard);
                let first = (range.start as u64).saturating_sub(place.first);
                self.load_training(range);
                let at = Place { seed: self.job.seed, step, first };
                self.encoder.begin(shard, step);
                let loss = self.shard(at, *node, shard, &mut sums, &mut emit)?;
                total =
                    losses.insert(self.tree, *node, Node::leaf(shard), loss, |l: NodeLoss, r: NodeLoss| {
                        NodeLoss {
                            node: l.node,
                            loss_sum: l.loss_sum + r.loss_sum,
                            correct: l.correct + r.correct,
                            examples: l.examples + r.examples,
                        }
                    });
            }
            if let Some(Witnessed { values, .. }) = &self.witnessed {
                emit(Event::Testimony { step, node: *node, values: values.clone() });
            }
            if let Some(loss) = total {
                let compute_us = begun.elapsed().as_micros() as u64;
                let (loss, pushed) = (NodeLoss { node: *node, ..loss }, self.encoder.take_distortion());
                emit(Event::Computed { step, loss, compute_us, pushed });
            }
        }
        self.encoder.residuals().passed(step + 1);
        Ok(())
    }

    fn load_training(&mut self, positions: std::ops::Range<usize>) {
        let order = self.order.as_ref().map_or(&[][..], |(_, order)| order.as_slice());
        let chosen = order.get(positions).unwrap_or(&[]);
        load(self.train.as_ref(), chosen.iter().map(|i| *i as usize), &mut self.inputs, &mut self.labels);
    }

    fn shard(
        &mut self,
        place: Place,
        node: Node,
        shard: u32,
        sums: &mut [Partials<Vec<f32>>],
        emit: &mut impl FnMut(Event),
    ) -> Result<NodeLoss, ComputeError> {
        let (tree, map, step) = (self.tree, &self.map, place.step);
        let (spare, pace, witnessed) = (&mut self.spare, &mut self.pace, &mut self.witnessed);
        let (encoder, watch, mut failed) = (&mut self.encoder, self.watch.as_ref(), None);
        let named = watch.map(|_| self.model.parameters().iter().map(|spec| spec.name.clone()).collect());
        let names: Vec<String> = named.unwrap_or_default();
        let parameters: Vec<&[f32]> = self.current.iter().map(Vec::as_slice).collect();
        let batch = Batch { inputs: &self.inputs, labels: &self.labels, place };
        let completes = node.end() == u64::from(shard) + 1;
        let mut left = parameters.len();
        // What is summed here is summed as it is.
        let codec = if node.leaves == 1 { self.job.codecs.push } else { Codec::F32 };
        let mut ready = |parameter: usize, gradient: Gradient<'_>| {
            let Some(sums) = sums.get_mut(parameter) else { return };
            if let Some(watch) = watch {
                watch.gradient(names.get(parameter).map_or("", String::as_str));
            }
            let mut hand_over = |sum: Gradient<'_>| {
                let emit = |slice, values| {
                    if let Some(watch) = watch {
                        watch.encoded(slice);
                    }
                    emit(Event::Gradient { step, node, slice, values });
                    if let Some(watch) = watch {
                        watch.resume();
                    }
                };
                let (slices, witnessed) = (map.of_parameter(parameter), witnessed.as_mut());
                let done = match sum {
                    Gradient::Values(sum) => encoder.hand_over(slices, shard, sum, witnessed, emit),
                    Gradient::Encoded { bytes, start } => {
                        encoder.hand_over_encoded(slices, (bytes, start), witnessed, emit)
                    }
                };
                if let Err((first, error)) = done {
                    failed.get_or_insert((parameter, first, error));
                }
            };
            left = left.saturating_sub(1);
            if let Gradient::Values(gradient) = gradient
                && node.leaves > 1
            {
                let mut mine = spare.pop().unwrap_or_default();
                mine.clear();
                mine.extend_from_slice(gradient);
                let sum = sums.insert(tree, node, Node::leaf(shard), mine, |mut l, r| {
                    add(&mut l, &r);
                    spare.push(r);
                    l
                });
                let Some(sum) = sum else { return };
                hand_over(Gradient::Values(&sum));
                spare.push(sum);
            } else {
                hand_over(gradient);
            }
            if let Some(pace) = pace {
                pace.handed_over(parameter, completes && left == 0);
            }
            if let Some(watch) = watch {
                watch.resume();
            }
        };
        if let Some(watch) = watch {
            watch.begin();
        }
        let loss = self.model.gradients_in(codec, &parameters, batch, &mut ready)?;
        if let Some((parameter, first, error)) = failed {
            let name = self.model.parameters().get(parameter).map(|p| p.name.clone()).unwrap_or_default();
            return Err(match error {
                CodecError::NotFinite(at) => {
                    ComputeError::NotFinite { parameter: name, element: first + at, shard, step }
                }
                other => other.into(),
            });
        }
        Ok(NodeLoss {
            node: Node::leaf(shard),
            loss_sum: loss.loss_sum,
            correct: u64::from(loss.correct),
            examples: u64::from(loss.examples),
        })
    }
}

fn load(
    set: &dyn Dataset,
    examples: impl Iterator<Item = usize>,
    inputs: &mut Vec<f32>,
    labels: &mut Vec<u32>,
) {
    let (width, targets) = (set.input_elements(), set.targets());
    let (mut filled, mut labelled) = (0, 0);
    for example in examples {
        if inputs.len() < filled + width {
            inputs.resize(filled + width, 0.0);
        }
        if labels.len() < labelled + targets {
            labels.resize(labelled + targets, 0);
        }
        if let (Some(input), Some(labels)) =
            (inputs.get_mut(filled..filled + width), labels.get_mut(labelled..labelled + targets))
        {
            set.fill(example, input, labels);
        }
        (filled, labelled) = (filled + width, labelled + targets);
    }
    inputs.truncate(filled);
    labels.truncate(labelled);
}
