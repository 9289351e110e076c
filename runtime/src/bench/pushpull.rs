//! Rounds of the real actors, without arithmetic of a model: every worker pushes, the servers sum and update, every
//! worker pulls.
//!
//! The model is one tensor whose gradient is there at once, so a step is a round: `mib` mebibytes of f32 from each worker
//! and as many to it, in slices of 1 MiB, authenticated, encrypted and MACed. Scheduler, servers and workers are processes
//! of their own, as in training.

use std::sync::Arc;

use testudo_actors::node::WorkerSetup;
use testudo_actors::{Audit, CheckpointError, CheckpointSink, DataSpec, Dataset, FinalModel, JobSpec};
use testudo_kernels::{
    Batch, Initial, Loss, Model, ModelError, ModelSpec, ParameterSpec, Schedule, Shape, Update,
};

use crate::bench::transport::{Scratch, median};
use crate::bench::{Silent, Wire};
use crate::config::Config;
use crate::error::Failure;
use crate::launch::local::Inputs;
use crate::report::metrics::{self, StepRecord};
use crate::run;
use crate::rundir::RunDir;
use crate::say::say;

/// Rounds that come first and do not count: connections open their windows, memory is touched for the first time.
const WARM_UP: u64 = 3;

/// Mebibytes at most: 32-bit element numbers and a machine's memory.
const MOST_MIB: u32 = 4096;

/// The model's name in the job; nothing but this benchmark has it.
const MODEL: &str = "pushpull@1";

/// Runs the benchmark and prints the median round.
///
/// # Errors
/// When the cluster cannot be started or a node fails.
pub fn run(
    workers: u32,
    servers: Option<u32>,
    wire: &Wire,
    mib: u32,
    rounds: u64,
    json: bool,
) -> Result<(), Failure> {
    let (placement, push_codec, pull_codec) = wire.or("dedicated", "f32");
    let servers = servers.unwrap_or(if placement == "colocated" { workers } else { 1 });
    if !(1..=MOST_MIB).contains(&mib) || rounds == 0 || workers == 0 || servers == 0 {
        return Err(Failure::misconfigured(format!(
            "--mib must be 1 to {MOST_MIB}; --rounds, --workers and --servers at least 1"
        )));
    }
    let text = format!(
        "[job]\nname = \"bench\"\n[cluster]\nworkers = {workers}\nservers = {servers}\nplacement = \"{placement}\"\nheartbeat_timeout_ms = 60000\n\
         [training]\nbatch_size = {workers}\nlogical_shards = {workers}\nepochs = {rounds}\n\
         [model]\nkind = \"mlp\"\ninputs = 1\nhidden = []\nclasses = 2\n\
         [optimizer]\nkind = \"sgd\"\nlearning_rate = 0.001\n[data]\nkind = \"mnist\"\npath = \".\"\n\
         [transport]\npush_codec = \"{push_codec}\"\npull_codec = \"{pull_codec}\"\n\
         [checkpoint]\nexport = false\nat_end = false\n"
    );
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let config = Config::parse::<&str>(&text, &dir.join("bench.toml"), &[]).map_err(Failure::failed)?;
    let job = job(workers, mib, rounds + WARM_UP, &config)?;
    let run_dir = RunDir::create(&dir.join("run")).map_err(Failure::failed)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let prefix = &["bench", "node"];
    let completed =
        runtime.block_on(run::run_as(prefix, &config, &job, &run_dir, Inputs::default(), &mut Silent))?;
    let records: Vec<StepRecord> = metrics::read(&run_dir.metrics()).map_err(Failure::failed)?;
    let ends: Vec<f64> = records.iter().map(|r| r.elapsed_seconds).collect();
    let spans = ends.windows(2).skip(WARM_UP as usize - 1).map(|pair| match pair {
        [before, after] => (after - before) * 1e3,
        _ => 0.0,
    });
    let median_ms = median(spans);
    say!(
        "pushpull, {workers} workers, {servers} servers, {placement}, {mib} MiB of values ({push_codec} up, {pull_codec} down) each way a worker: median {median_ms:.1} ms a \
         round over {rounds} rounds ({:.1} s in all)",
        completed.wall_seconds
    );
    if json {
        let object = serde_json::json!({
            "median_ms": median_ms,
            "push_codec": push_codec,
            "pull_codec": pull_codec,
            "workers": workers,
            "servers": servers,
            "placement": placement,
            "mib": mib,
            "rounds": rounds,
        });
        say!("{object}");
    }
    Ok(())
}

fn job(workers: u32, mib: u32, rounds: u64, config: &Config) -> Result<JobSpec, Failure> {
    let shape = Shape::new(&[mib as usize, 256 << 10]).map_err(Failure::misconfigured)?;
    let parameters =
        vec![ParameterSpec { name: "values".into(), shape, initial: Initial::Zeros, update: Update::Learn }];
    let data = DataSpec { train_examples: u64::from(workers), test_examples: 1, blake3: [0; 32] };
    Ok(JobSpec {
        model: ModelSpec::Custom { name: MODEL.into(), inputs: 1, classes: 2, targets: 1, parameters },
        schedule: Schedule::Constant,
        epochs: rounds,
        // What is measured is pushes and pulls.
        audit: Audit { hash_every: 0, countersign_every: 0 },
        witness_rate: 0.0,
        ..crate::job::spec(config, data)
    })
}

/// A worker of the benchmark: no data, and a gradient that is there at once.
#[derive(Debug)]
pub struct Setup;

struct Blank(usize);

impl Dataset for Blank {
    fn len(&self) -> usize {
        self.0
    }

    fn input_elements(&self) -> usize {
        1
    }

    fn fill(&self, _: usize, _: &mut [f32], labels: &mut [u32]) {
        labels.fill(0);
    }
}

impl WorkerSetup for Setup {
    fn data(&mut self, job: &JobSpec) -> Result<(Arc<dyn Dataset>, Arc<dyn Dataset>), String> {
        Ok((Arc::new(Blank(job.data.train_examples as usize)), Arc::new(Blank(1))))
    }

    fn model(&mut self, job: &JobSpec) -> Result<Box<dyn Model>, ModelError> {
        let parameters = job.model.parameters()?;
        let elements = parameters.iter().map(|p| p.shape.elements()).sum();
        Ok(Box::new(Constant { parameters, gradient: vec![1.0; elements] }))
    }

    fn sink(&mut self, _: &JobSpec) -> Box<dyn CheckpointSink> {
        Box::new(Nowhere)
    }
}

struct Nowhere;

impl CheckpointSink for Nowhere {
    fn export(&mut self, _: &FinalModel<'_>) -> Result<u64, CheckpointError> {
        Ok(0)
    }
}

struct Constant {
    parameters: Vec<ParameterSpec>,
    gradient: Vec<f32>,
}

impl Model for Constant {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.parameters
    }

    fn input_elements(&self) -> usize {
        1
    }

    fn classes(&self) -> usize {
        2
    }

    fn gradients(
        &mut self,
        _: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        ready(0, &self.gradient);
        Ok(Loss { loss_sum: 0.0, correct: 0, examples: batch.labels.len() as u32 })
    }

    fn evaluate(&mut self, _: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        Ok(Loss { loss_sum: 0.0, correct: 0, examples: batch.labels.len() as u32 })
    }

    fn probabilities(&mut self, _: &[&[f32]], _: &[f32], out: &mut [f32]) -> Result<(), ModelError> {
        out.fill(0.5);
        Ok(())
    }
}
