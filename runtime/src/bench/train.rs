//! Training on MNIST by the networks of a well-known peer's benchmark (PyTorch's DistributedDataParallel): samples a second
//! through real processes, every message authenticated, encrypted and MACed, with the audit log and witnesses as in any run.
//!
//! A step takes `batch` examples of each worker, each of which is a logical shard; stochastic gradient descent with momentum.
//! The first steps are not measured. What is trained is tested, so that speed cannot be had for accuracy.

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::bench::transport::Scratch;
use crate::bench::{Silent, Wire};
use crate::config::Config;
use crate::data::mnist::Files;
use crate::data::{Data, DataFiles};
use crate::error::Failure;
use crate::launch::local::Inputs;
use crate::report::metrics::{self, StepRecord};
use crate::rundir::RunDir;
use crate::say::say;
use crate::{job, run};

/// Steps that come first and do not count: connections open their windows, memory is touched for the first time.
const WARM_UP: u64 = 5;

/// The codec that docs/codecs.md recommends for training, both ways.
const RECOMMENDED: &str = "bf16";

/// Which network: the peer's, layer for layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// 784-512-512-10, fully connected, with ReLU
    Mlp,
    /// Two convolutions 3x3, to 32 and 64 channels, pooling, and two fully connected layers
    Cnn,
    /// That of `mlp` with 4096 instead of 512: 20 million parameters
    Wide,
}

impl Network {
    fn toml(self) -> String {
        let hidden = match self {
            Network::Mlp => 512,
            Network::Cnn => return "kind = \"cnn\"\nimage = [1, 28, 28]\nclasses = 10\n".into(),
            Network::Wide => 4096,
        };
        format!("kind = \"mlp\"\ninputs = 784\nhidden = [{hidden}, {hidden}]\nclasses = 10\n")
    }

    fn name(self) -> &'static str {
        match self {
            Network::Mlp => "mlp",
            Network::Cnn => "cnn",
            Network::Wide => "wide",
        }
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network.
    pub network: Network,
    /// Examples of a step and worker.
    pub batch: NonZeroU32,
    /// Workers, each a logical shard of the batch.
    pub workers: NonZeroU32,
    /// Steps that are measured.
    pub steps: u64,
    /// As `cluster.placement`, `transport.push_codec` and `transport.pull_codec`.
    pub wire: Wire,
    /// Whether to print one JSON object on the last line.
    pub json: bool,
}

/// Trains and prints the speed. `files` are MNIST's.
///
/// # Errors
/// When the cluster cannot be started or a node fails.
pub fn run(options: &Options, files: Files) -> Result<(), Failure> {
    let Options { network, batch, workers, steps, wire, json } = options;
    let (placement, push_codec, pull_codec) = wire.or("colocated", RECOMMENDED);
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let steps_in_all = steps.saturating_add(WARM_UP);
    let text = format!(
        "[job]\nname = \"bench\"\n[cluster]\nworkers = {workers}\nservers = {workers}\nplacement = \"{placement}\"\n\
         [training]\nbatch_size = {}\nlogical_shards = {workers}\nepochs = 1000000\nmax_steps = {steps_in_all}\n\
         [model]\n{}[optimizer]\nkind = \"momentum\"\nlearning_rate = 0.1\nmomentum = 0.9\n\
         [transport]\npush_codec = \"{push_codec}\"\npull_codec = \"{pull_codec}\"\n\
         [data]\nkind = \"mnist\"\npath = \".\"\n[checkpoint]\nexport = false\nat_end = false\n",
        u64::from(batch.get()) * u64::from(workers.get()),
        network.toml()
    );
    let config =
        Config::parse::<&str>(&text, &dir.join("bench.toml"), &[]).map_err(Failure::misconfigured)?;
    let files = DataFiles::from(files);
    let data = Data::read(&config, &files).map_err(Failure::misconfigured)?;
    let job = job::spec(&config, data.spec());
    drop(data);
    job.validate().map_err(Failure::misconfigured)?;
    let run_dir = RunDir::create(&dir.join("run")).map_err(Failure::failed)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let inputs = Inputs { data: Some(Arc::new(files)), ..Inputs::default() };
    let completed = runtime.block_on(run::run(&config, &job, &run_dir, inputs, &mut Silent))?;
    let records: Vec<StepRecord> = metrics::read(&run_dir.metrics()).map_err(Failure::failed)?;
    let end_of = |step: u64| {
        let record = records.iter().find(|record| record.step == step);
        record
            .map(|record| record.elapsed_seconds)
            .ok_or_else(|| Failure::failed(format!("step {step} is not in the metrics")))
    };
    let seconds = end_of(steps_in_all)? - end_of(WARM_UP)?;
    let samples = *steps as f64 * f64::from(job.batch_size);
    let (speed, step_ms) = (samples / seconds, seconds / *steps as f64 * 1e3);
    let (name, accuracy) = (network.name(), completed.finished.test_accuracy);
    say!(
        "train, {name}, {workers} workers of batch {batch}, {placement}, {push_codec} up and {pull_codec} down: {speed:.0} samples/s, {step_ms:.2} ms a step over \
         {steps} steps; test accuracy {accuracy:.4}"
    );
    if *json {
        let object = serde_json::json!({
            "samples_per_second": speed,
            "test_accuracy": accuracy,
            "push_codec": push_codec,
            "pull_codec": pull_codec,
            "placement": placement,
            "model": name,
            "batch": batch,
            "workers": workers,
            "steps": steps,
            "step_ms": step_ms,
        });
        say!("{object}");
    }
    Ok(())
}
