//! Which steps are complete, and what they measured.
//!
//! 1. A step is complete when every logical shard has been reported for it or a later step.
//! 2. Losses are folded in the order of the reduction tree, so a reported loss has the same bits for any number of
//!    workers.
//! 3. Steps are summarised in order, each once.

use std::collections::BTreeMap;

use testudo_kernels::Distortion;

use crate::audit::{Entry, Head};
use crate::checkpoint::{Committed, Ledger, PartSource};
use crate::job::{JobSpec, Resume};
use crate::message::{Evaluated, NodeDone, NodeLoss};
use crate::scheduler::histograms::TensorSpread;
use crate::time::Time;
use crate::tree::{Node, Partials, ReductionTree};

/// What one completed step measured.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSummary {
    /// The step, from 0.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Mean loss over the targets of the step's examples.
    pub loss: f64,
    /// Share of the step's examples classified right.
    pub accuracy: f64,
    /// The learning rate used.
    pub learning_rate: f64,
    /// Examples of the step.
    pub examples: u64,
    /// Seconds since the step before was complete.
    pub seconds: f64,
    /// Seconds since the first step began.
    pub elapsed_seconds: f64,
    /// Message bytes that workers sent to servers.
    pub bytes_sent: u64,
    /// Message bytes that workers received from servers.
    pub bytes_received: u64,
    /// Mean milliseconds of a worker in forward and backward passes.
    pub compute_ms: f64,
    /// Mean milliseconds of a worker from the end of its backward pass until its pushes were acknowledged.
    pub send_ms: f64,
    /// Mean milliseconds that a worker waited for the step's parameters.
    pub wait_ms: f64,
    /// What the push codec lost of the step's gradients, relative to them.
    pub push_error: f64,
}

/// Is told of every completed step, in order, and of every checkpoint.
pub trait Observer: Send {
    /// A step is complete.
    fn step(&mut self, summary: &StepSummary);

    /// A version is evaluated on the test set.
    fn evaluated(&mut self, _: &Evaluated) {}

    /// How gradients and parameters are spread after a step: the model's first tensors, in its order. `version` counts steps, and may be
    /// told before or after the step itself is.
    fn histograms(&mut self, _version: u64, _tensors: &[TensorSpread]) {}

    /// A checkpoint is whole; others were deleted, perhaps.
    fn checkpoint(&mut self, _: &Committed) {}

    /// Something happened that the audit log tells of.
    fn audit(&mut self, _: Entry) {}

    /// The checkpoint that `job` resumes from, for what is witnessed.
    ///
    /// # Errors
    /// When it cannot be read here; the text is for the operator.
    fn source(&mut self, _: &JobSpec, _: &Resume) -> Result<Box<dyn PartSource>, String> {
        Err("the scheduler has no checkpoints to begin with".into())
    }

    /// The head of the audit log as it is on the disk; `None` if there is no log.
    fn audit_head(&mut self) -> Option<Head> {
        None
    }

    /// What makes checkpoints whole. Asked for once, before training begins.
    fn ledger(&mut self) -> Option<Box<dyn Ledger>> {
        None
    }
}

#[derive(Debug, Default)]
struct Open {
    losses: Partials<NodeLoss>,
    held: Vec<NodeLoss>,
    whole: Option<NodeLoss>,
    reports: u64,
    compute_us: u64,
    send_us: u64,
    wait_us: u64,
    bytes_sent: u64,
    bytes_received: u64,
    pushed: Distortion,
}

/// Follows the steps of a run.
#[derive(Debug)]
pub(super) struct Progress {
    tree: ReductionTree,
    /// Targets of one example.
    targets: f64,
    /// By logical shard: the first step that has not been reported.
    owed: Vec<u64>,
    first: u64,
    completed: u64,
    open: BTreeMap<u64, Open>,
    begun: Option<Time>,
    last: Time,
    /// Smoothed examples a second.
    pub(super) rate: f64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) samples: u64,
    samples_before: u64,
    pub(super) last_loss: Option<f64>,
    pushed: Distortion,
}

/// How fast the displayed rate forgets: a step counts for this share of it.
const RATE_SHARE: f64 = 0.1;

impl Progress {
    pub(super) fn new(tree: ReductionTree, job: &JobSpec) -> Progress {
        let resume = job.resume.as_ref();
        let first = resume.map_or(0, |r| r.step);
        Progress {
            tree,
            targets: job.model.targets() as f64,
            owed: vec![first; tree.leaves() as usize],
            first,
            completed: first,
            open: BTreeMap::new(),
            begun: None,
            last: Time::default(),
            rate: 0.0,
            bytes_sent: 0,
            bytes_received: 0,
            samples: 0,
            samples_before: resume.map_or(0, |r| r.samples),
            last_loss: resume.and_then(|r| r.last_loss),
            pushed: Distortion::default(),
        }
    }

    /// Training begins.
    pub(super) fn begin(&mut self, now: Time) {
        if self.begun.is_none() {
            self.begun = Some(now);
            self.last = now;
        }
    }

    /// The run was paused until now: the pause is no step's time.
    pub(super) fn rest(&mut self, now: Time) {
        if let Some(begun) = &mut self.begun {
            *begun = begun.after(now.since(self.last));
            self.last = now;
        }
    }

    /// How many steps are complete.
    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    /// Seconds from the first step's begin to the last completed step's end.
    pub(super) fn training_seconds(&self) -> f64 {
        self.begun.map_or(0.0, |begun| self.last.since(begun).as_secs_f64())
    }

    /// What the push codec lost of all gradients, relative to them.
    pub(super) fn push_error(&self) -> f64 {
        self.pushed.relative()
    }

    /// Training examples seen, those before a resumption included.
    pub(super) fn samples_in_all(&self) -> u64 {
        self.samples_before.saturating_add(self.samples)
    }

    /// The first step for which `node` is owed.
    pub(super) fn owed(&self, node: Node) -> u64 {
        let shards = node.first as usize..node.end() as usize;
        self.owed.get(shards).and_then(|s| s.iter().min().copied()).unwrap_or(self.completed)
    }

    /// Whether nothing below `node` has been reported for `step`.
    pub(super) fn owes_all(&self, node: Node, step: u64) -> bool {
        let shards = node.first as usize..node.end() as usize;
        self.owed.get(shards).is_some_and(|shards| shards.iter().all(|owed| *owed <= step))
    }

    /// Takes a report of nodes. Whether a node is the worker's is the core's to check.
    pub(super) fn report(&mut self, done: &NodeDone) {
        let open = self.open.entry(done.step).or_default();
        for loss in &done.nodes {
            for owed in
                self.owed.get_mut(loss.node.first as usize..loss.node.end() as usize).into_iter().flatten()
            {
                *owed = (*owed).max(done.step + 1);
            }
            open.held.push(*loss);
            let fold = |l: NodeLoss, r: NodeLoss| NodeLoss {
                node: l.node,
                loss_sum: l.loss_sum + r.loss_sum,
                correct: l.correct + r.correct,
                examples: l.examples + r.examples,
            };
            let whole = open.losses.insert(self.tree, self.tree.root(), loss.node, *loss, fold);
            open.whole = open.whole.or(whole);
        }
        open.pushed.add(done.pushed);
        open.reports += u64::from(done.times.compute_us > 0);
        for (total, part) in [
            (&mut open.compute_us, done.times.compute_us),
            (&mut open.send_us, done.times.send_us),
            (&mut open.wait_us, done.times.wait_us),
            (&mut open.bytes_sent, done.bytes_sent),
            (&mut open.bytes_received, done.bytes_received),
        ] {
            *total = total.saturating_add(part);
        }
    }

    /// The next step that has become complete, if any. `learning_rate` and `epoch` are of that step.
    pub(super) fn next_complete(
        &mut self,
        now: Time,
        describe: impl Fn(u64) -> (u64, f64),
    ) -> Option<StepSummary> {
        let step = self.completed;
        if self.owed.iter().min().is_none_or(|owed| *owed <= step) {
            return None;
        }
        self.completed += 1;
        let open = self.open.remove(&step).unwrap_or_default();
        // A step that lost a report with its worker has no whole fold; what was reported is summed as it came.
        let whole = open.whole.unwrap_or_else(|| {
            open.held.iter().fold(
                NodeLoss { node: self.tree.root(), loss_sum: 0.0, correct: 0, examples: 0 },
                |sum, l| NodeLoss {
                    loss_sum: sum.loss_sum + l.loss_sum,
                    correct: sum.correct + l.correct,
                    examples: sum.examples + l.examples,
                    ..sum
                },
            )
        });
        let seconds = now.since(self.last).as_secs_f64();
        self.last = now;
        let targets = whole.examples.max(1) as f64 * self.targets;
        let (epoch, learning_rate) = describe(step);
        let instant = if seconds > 0.0 { whole.examples as f64 / seconds } else { self.rate };
        self.rate = if step == self.first { instant } else { self.rate + RATE_SHARE * (instant - self.rate) };
        self.bytes_sent = self.bytes_sent.saturating_add(open.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(open.bytes_received);
        self.samples += whole.examples;
        self.pushed.add(open.pushed);
        let loss = whole.loss_sum / targets;
        if whole.examples > 0 {
            self.last_loss = Some(loss);
        }
        let reports = open.reports.max(1) as f64;
        Some(StepSummary {
            step,
            epoch,
            loss: self.last_loss.unwrap_or(loss),
            accuracy: whole.correct as f64 / targets,
            learning_rate,
            examples: whole.examples,
            seconds,
            elapsed_seconds: self.training_seconds(),
            bytes_sent: open.bytes_sent,
            bytes_received: open.bytes_received,
            compute_ms: open.compute_us as f64 / reports / 1e3,
            send_ms: open.send_us as f64 / reports / 1e3,
            wait_ms: open.wait_us as f64 / reports / 1e3,
            push_error: open.pushed.relative(),
        })
    }
}
