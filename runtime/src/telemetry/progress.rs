//! What is kept for a collector because nobody else keeps it: how far a run is, what parts of checkpoints took, and where a server's
//! versions are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use testudo_actors::checkpoint::{PartReceipt, PartSource, PartWriter, ServerSetup, Snapshot};
use testudo_actors::message::Evaluated;
use testudo_actors::scheduler::StepSummary;
use testudo_actors::server::Store;
use testudo_actors::{CheckpointError, JobSpec, Resume};
use testudo_kernels::{Aggregator, OwnName};
use testudo_observability::Attribute;

use super::words;

words! {
    /// What became of a part of a checkpoint.
    pub(super) Outcome: Written = "written", Failed = "failed",
}

words! {
    /// Where a worker's time of a step goes.
    pub(super) Stage: Compute = "compute", Send = "send", Wait = "wait",
}

pub(super) const STAGE: Attribute<Stage> = Attribute::new("stage", Stage::ALL, Stage::word);

pub(super) const OUTCOME: Attribute<Outcome> = Attribute::new("outcome", Outcome::ALL, Outcome::word);

/// A measurement that may not be there yet: NaN until it is.
#[derive(Debug)]
struct Last(AtomicU64);

impl Default for Last {
    fn default() -> Last {
        Last(AtomicU64::new(f64::NAN.to_bits()))
    }
}

impl Last {
    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|value| !value.is_nan())
    }
}

/// How far a run is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    steps: AtomicU64,
    samples: AtomicU64,
    checkpoints: AtomicU64,
    loss: Last,
    step_seconds: Last,
    compute_ms: Last,
    send_ms: Last,
    wait_ms: Last,
    learning_rate: Last,
    push_error: Last,
    test_loss: Last,
    test_accuracy: Last,
}

impl Progress {
    /// A version is evaluated.
    pub(crate) fn evaluated(&self, found: &Evaluated) {
        self.test_loss.set(found.loss);
        self.test_accuracy.set(found.accuracy);
    }

    pub(super) fn test_loss(&self) -> Option<f64> {
        self.test_loss.get()
    }

    pub(super) fn test_accuracy(&self) -> Option<f64> {
        self.test_accuracy.get()
    }

    /// A step is complete.
    pub(crate) fn step(&self, summary: &StepSummary) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.samples.fetch_add(summary.examples, Ordering::Relaxed);
        self.loss.set(summary.loss);
        self.step_seconds.set(summary.seconds);
        self.compute_ms.set(summary.compute_ms);
        self.send_ms.set(summary.send_ms);
        self.wait_ms.set(summary.wait_ms);
        self.learning_rate.set(summary.learning_rate);
        self.push_error.set(summary.push_error);
    }

    /// A checkpoint is whole.
    pub(crate) fn checkpoint(&self) {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    pub(super) fn samples(&self) -> u64 {
        self.samples.load(Ordering::Relaxed)
    }

    pub(super) fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Relaxed)
    }

    pub(super) fn loss(&self) -> Option<f64> {
        self.loss.get()
    }

    pub(super) fn push_error(&self) -> Option<f64> {
        self.push_error.get()
    }

    pub(super) fn learning_rate(&self) -> Option<f64> {
        self.learning_rate.get()
    }

    /// Seconds of a mean worker.
    pub(super) fn stages(&self) -> impl Iterator<Item = (Stage, f64)> + use<> {
        let all =
            [(Stage::Compute, &self.compute_ms), (Stage::Send, &self.send_ms), (Stage::Wait, &self.wait_ms)];
        let seconds = |(stage, last): (Stage, &Last)| Some((stage, last.get()? / 1000.0));
        all.map(seconds).into_iter().flatten()
    }

    pub(super) fn step_seconds(&self) -> Option<f64> {
        self.step_seconds.get()
    }
}

/// What a server's parts of checkpoints took, and the versions that it gives out.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    written: AtomicU64,
    failed: AtomicU64,
    seconds: Last,
    store: OnceLock<Arc<Store>>,
}

impl Parts {
    fn count(&self, is_written: bool, seconds: f64) {
        let counter = if is_written { &self.written } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.seconds.set(seconds);
    }

    pub(super) fn counts(&self) -> [(Outcome, u64); 2] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [(Outcome::Written, read(&self.written)), (Outcome::Failed, read(&self.failed))]
    }

    pub(super) fn seconds(&self) -> Option<f64> {
        self.seconds.get()
    }

    pub(super) fn pull_error(&self) -> Option<f64> {
        self.store.get().map(|store| store.pull_error())
    }
}

/// A server's places of checkpoints, whose writing is counted.
#[derive(Debug)]
pub(crate) struct Timed<T> {
    inner: T,
    parts: Arc<Parts>,
}

impl<T> Timed<T> {
    /// Counts in `parts` what `inner` writes.
    #[must_use]
    pub(crate) fn new(inner: T, parts: Arc<Parts>) -> Timed<T> {
        Timed { inner, parts }
    }
}

impl<T: ServerSetup> ServerSetup for Timed<T> {
    fn writer(&mut self, job: &JobSpec, server: u32) -> Result<Box<dyn PartWriter>, String> {
        let inner = self.inner.writer(job, server)?;
        Ok(Box::new(Timed { inner, parts: Arc::clone(&self.parts) }))
    }

    fn source(&mut self, job: &JobSpec, resume: &Resume) -> Result<Box<dyn PartSource>, String> {
        self.inner.source(job, resume)
    }

    fn stored(&mut self, store: &Arc<Store>) {
        // A server has one.
        let _ = self.parts.store.set(Arc::clone(store));
    }

    fn rule(&mut self, name: OwnName) -> Result<Arc<dyn Aggregator>, String> {
        self.inner.rule(name)
    }
}

impl PartWriter for Timed<Box<dyn PartWriter>> {
    fn write(&mut self, snapshot: &Snapshot) -> Result<PartReceipt, CheckpointError> {
        let begun = Instant::now();
        let result = self.inner.write(snapshot);
        self.parts.count(result.is_ok(), begun.elapsed().as_secs_f64());
        result
    }
}
