//! A small job on made-up data: quick to train, with hundreds of slices.

use std::sync::Arc;

use testudo_actors::{
    Audit, CheckpointError, CheckpointSink, Checkpoints, DataSpec, Dataset, Determinism, Evaluation,
    FinalModel, JobSpec,
};
use testudo_kernels::{ModelSpec, OptimizerSpec, Philox, Purpose, Schedule};

/// Numbers in an example.
pub const INPUTS: usize = 12;
/// Classes of the toy problem.
pub const CLASSES: usize = 4;

/// Points around one centre for each class.
#[derive(Debug)]
pub struct Toy {
    seed: u64,
    examples: usize,
}

impl Toy {
    /// The toy set of `examples` drawn with `seed`.
    #[must_use]
    pub fn new(seed: u64, examples: usize) -> Arc<Toy> {
        Arc::new(Toy { seed, examples })
    }
}

impl Dataset for Toy {
    fn len(&self) -> usize {
        self.examples
    }

    fn input_elements(&self) -> usize {
        INPUTS
    }

    fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
        let label = index % CLASSES;
        let random = Philox::new(self.seed, Purpose::Noise, 0, index as u64);
        for (at, value) in input.iter_mut().enumerate() {
            let noise = random.block(at as u32)[0] as f32 / u32::MAX as f32 - 0.5;
            let centre = if at % CLASSES == label { 1.0 } else { 0.0 };
            *value = centre + noise;
        }
        labels.fill(label as u32);
    }
}

/// A toy job: an MLP of some 900 parameters in slices of 16 bytes, so of more than 200 slices.
#[must_use]
pub fn job(workers: u32, servers: u32, shards: u32, steps: u64) -> JobSpec {
    JobSpec {
        format: testudo_actors::job::FORMAT,
        name: "toy".into(),
        trust_domain: "test.local".into(),
        workers,
        servers,
        elastic: Default::default(),
        model: ModelSpec::Mlp { inputs: INPUTS, hidden: vec![24, 16], classes: CLASSES },
        precision: testudo_kernels::Precision::F32,
        optimizer: OptimizerSpec::shipped("momentum").unwrap(),
        learning_rate: 0.05,
        schedule: Schedule::Constant,
        seed: 7,
        epochs: 50,
        batch_size: 37,
        logical_shards: shards,
        aggregation: testudo_kernels::Aggregation::Mean,
        clip_norm: None,
        max_steps: Some(steps),
        evaluation: Evaluation::default(),
        data: DataSpec { train_examples: 200, test_examples: 100, blake3: [0; 32] },
        slice_bytes: 16,
        codecs: testudo_actors::Codecs::default(),
        determinism: Determinism::Strict,
        heartbeat_ms: 200,
        heartbeat_timeout_ms: 5_000,
        export: true,
        checkpoints: Checkpoints::default(),
        audit: Audit::default(),
        witness_rate: 0.0,
        resume: None,
    }
}

/// The same job, for real nodes: none counts as dead that is only slow.
#[must_use]
pub fn unhurried(job: JobSpec) -> JobSpec {
    JobSpec { heartbeat_timeout_ms: 600_000, ..job }
}

/// The toy job's training and test sets.
#[must_use]
pub fn data() -> (Arc<dyn Dataset>, Arc<dyn Dataset>) {
    (Toy::new(1, 200), Toy::new(2, 100))
}

/// A sink that keeps nothing.
#[derive(Debug)]
pub struct NoSink;

impl CheckpointSink for NoSink {
    fn export(&mut self, model: &FinalModel<'_>) -> Result<u64, CheckpointError> {
        Ok(model.tensors.iter().map(|t| t.values.len() as u64 * 4).sum())
    }
}
