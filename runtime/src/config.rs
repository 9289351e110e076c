//! The cluster file: one TOML file that says what is trained, on what, by how many nodes, and where.
//!
//! [`Config::load`] reads it with any `--set key=value` overrides and answers with a [`Config`] in which
//! every value has been checked, or with every problem at once, each with its line and column. The keys
//! are described in one table, [`keys::all`], from which `docs/config.md` is made.
//!
//! Invariants:
//! 1. An unknown key is refused, with the nearest one that exists; so is a key that means nothing beside
//!    the others (`optimizer.beta1` with plain SGD).
//! 2. A [`Config`] satisfies every rule of the table and every rule between keys (`config/semantic.rs`).
//! 3. [`Config::to_toml`] followed by [`Config::load`] gives an equal [`Config`], from any folder.
//! 4. No input makes this module panic.
//!
//! Left to others: whether paths exist, whether ports are free, whether the data fits the model.

mod build;
mod check;
mod data;
mod device;
pub mod docs;
pub mod keys;
mod limits;
mod memory;
mod nearest;
mod optimizer;
mod problem;
mod read;
mod security;
mod semantic;
mod ssh;
mod telemetry;
pub(crate) mod template;
mod transport;
mod value;

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use testudo_kernels::{Norm, Precision};

pub use device::{ComputeDevice, MatrixProducts, Servers, Workers};
pub use limits::Limits;
pub use optimizer::Optimizer;
pub use problem::{ConfigErrors, Place, Problem};
pub use security::{Revocation, Security, SecurityFiles};
pub use ssh::{Host, Launcher, Ssh};
pub use telemetry::Telemetry;
pub use transport::{KeyExchange, PullCodec, PushCodec, Transport};

/// Largest cluster file that is read, in bytes: thousands of times a real one.
pub(crate) const FILE_MOST: u64 = 1 << 20;

/// A whole cluster file, checked. Its fields are the file's sections; `docs/config.md` describes them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// `[job]`
    pub job: Job,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[network]`
    pub network: Network,
    /// `[servers]`
    pub servers: Servers,
    /// `[workers]`
    pub workers: Workers,
    /// `[training]`
    pub training: Training,
    /// `[model]`
    pub model: Model,
    /// `[optimizer]`
    pub optimizer: Optimizer,
    /// `[schedule]`
    pub schedule: Schedule,
    /// `[data]`
    pub data: Data,
    /// `[transport]`
    pub transport: Transport,
    /// `[limits]`
    pub limits: Limits,
    /// `[security]`
    pub security: Security,
    /// `[ssh]`, where [`Cluster::launcher`] needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Ssh>,
    /// `[checkpoint]`
    pub checkpoint: Checkpoint,
    /// `[audit]`
    pub audit: Audit,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[output]`
    pub output: Output,
}

/// `[job]`: what the job is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// The job's name, a SPIFFE path segment.
    pub name: String,
    /// The SPIFFE trust domain.
    pub trust_domain: String,
}

/// `[cluster]`: who takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Workers, at least 1.
    pub workers: u32,
    /// Servers, at least 1.
    pub servers: u32,
    /// Where nodes dial the scheduler, `host:port`; `None` in a local run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// Who shares a process.
    pub placement: Placement,
    /// Who starts servers and workers.
    pub launcher: Launcher,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which a node counts as dead.
    pub heartbeat_timeout_ms: u64,
    /// What becomes of nodes that die, and who may join a running job.
    #[serde(flatten)]
    pub supervision: Supervision,
}

impl Cluster {
    /// Workers that may take part at a time.
    #[must_use]
    pub fn most_workers(&self) -> u32 {
        self.supervision.max_workers.unwrap_or(self.workers).max(self.workers)
    }
}

/// Of `[cluster]`: what becomes of nodes that die, and who may join a running job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Supervision {
    /// Workers that may take part at a time; `None` for those that the job begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_workers: Option<u32>,
    /// How often within ten minutes the run goes on from its newest checkpoint when a server or the scheduler has died.
    pub restarts: u32,
    /// How often within ten minutes a worker is started again that has died.
    pub worker_restarts: u32,
    /// Milliseconds that a run waits for a worker to come back when none is left.
    pub worker_return_ms: u64,
}

/// Who shares a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Servers and workers are processes of their own.
    #[default]
    Dedicated,
    /// The server and the worker of one number are one process, a peer.
    Colocated,
}

/// `[network]`: what is bound, and what others are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Address for those that have none of their own below.
    pub listen: SocketAddr,
    /// Largest UDP payload that path discovery may try, in bytes.
    pub mtu: u16,
    /// Networks that others come from; none for all.
    pub allow: Vec<IpNet>,
    /// `[network.scheduler]`
    pub scheduler: SchedulerNetwork,
    /// `[network.servers]`
    pub servers: ServersNetwork,
}

/// `[network.scheduler]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchedulerNetwork {
    /// Address the scheduler binds; `None` for [`Network::listen`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Address at which others reach it, `host:port`; `None` for the bound one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

/// `[network.servers]`, by the servers' index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServersNetwork {
    /// Addresses they bind: none, or one each.
    pub listen: Vec<SocketAddr>,
    /// Addresses at which others reach them, `host:port`: none, or one each.
    pub advertise: Vec<String>,
}

impl Network {
    /// The address the scheduler binds.
    pub fn scheduler_listen(&self) -> SocketAddr {
        self.scheduler.listen.unwrap_or(self.listen)
    }

    /// The address that server `index` binds.
    pub fn server_listen(&self, index: u32) -> SocketAddr {
        self.servers.listen.get(index as usize).copied().unwrap_or(self.listen)
    }

    /// What server `index` tells others to dial; `None` for the bound address.
    pub fn server_advertise(&self, index: u32) -> Option<&str> {
        self.servers.advertise.get(index as usize).map(String::as_str)
    }
}

/// `[training]`: how long and how large.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// Seed of the training random source.
    pub seed: u64,
    /// Passes over the training set, at least 1.
    pub epochs: u64,
    /// Examples a step, over all workers.
    pub batch_size: u32,
    /// Parts a batch is cut into; divides [`Training::batch_size`].
    pub logical_shards: u32,
    /// Batches that a step sums.
    pub accumulate: u32,
    /// How contributions become one gradient.
    #[serde(flatten)]
    pub aggregation: Aggregation,
    /// The norm that a step's whole gradient is clipped to; `None` for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Steps after which to stop; `None` for all epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Steps after which the test set is evaluated; 0 for the end alone.
    pub evaluate_every: u64,
    /// Evaluations without a better loss after which to stop; `None` for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// How much better a loss has to be.
    pub min_improvement: f64,
    /// What workers compute in.
    pub precision: Precision,
    /// Whether differing arithmetic is refused.
    pub determinism: Determinism,
}

impl Training {
    /// Examples that a step sums.
    #[must_use]
    pub fn step_examples(&self) -> u32 {
        self.batch_size.saturating_mul(self.accumulate)
    }

    /// Parts that a step sums.
    #[must_use]
    pub fn step_shards(&self) -> u32 {
        self.logical_shards.saturating_mul(self.accumulate)
    }
}

/// How contributions become one gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "aggregation", rename_all = "snake_case")]
pub enum Aggregation {
    /// The mean over all examples.
    Mean,
    /// The coordinate-wise median of one vote per worker.
    Median {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The coordinate-wise mean without the lowest and highest votes.
    TrimmedMean {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The vote that has the nearest neighbours.
    Krum {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The mean of the votes that have the nearest neighbours.
    MultiKrum {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The point whose distances to all votes sum to the least.
    GeometricMedian {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The aggregate before, moved by votes' shortened differences from it.
    CentredClipping {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
        /// To which differences are shortened.
        clip_radius: f64,
    },
    /// The mean of shortened votes.
    NormBound {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
        /// To which votes are shortened.
        norm_bound: f64,
    },
}

/// Whether nodes of differing arithmetic may train together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Determinism {
    /// They are refused.
    Strict,
    /// They may; runs can differ in the last bits.
    Relaxed,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Model {
    /// Fully connected layers with ReLU between them.
    Mlp {
        /// Numbers in one example.
        inputs: usize,
        /// Widths of the hidden layers.
        hidden: Vec<usize>,
        /// Classes.
        classes: usize,
    },
    /// A small convolutional network.
    Cnn {
        /// Channels, height and width of an image.
        image: [usize; 3],
        /// Classes.
        classes: usize,
        /// The part of what training asks for that is all classes alike.
        label_smoothing: f64,
    },
    /// ResNet-18 for small images.
    ResNet18 {
        /// Channels, height and width of an image.
        image: [usize; 3],
        /// Classes.
        classes: usize,
        /// The part of what training asks for that is all classes alike.
        label_smoothing: f64,
    },
    /// GPT-2 of any size, on bytes.
    Gpt {
        /// Bytes that it sees at once.
        context: usize,
        /// Blocks.
        layers: usize,
        /// Heads of each block's attention.
        heads: usize,
        /// Numbers that stand for a byte between blocks.
        width: usize,
        /// Share of numbers that training drops.
        dropout: f64,
        /// Share of attention's probabilities that training drops.
        attention_dropout: f64,
        /// The norm before each branch.
        norm: Norm,
    },
}

impl Model {
    /// Tokens of a GPT: one for each byte.
    pub const BYTES: usize = 256;
}

/// `[schedule]`: the learning rate over the planned steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Schedule {
    /// Always the same.
    Constant,
    /// Warm-up, then half a cosine down.
    Cosine {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// The last factor, 0 to 1.
        final_fraction: f64,
    },
    /// Warm-up, then a straight line down.
    Linear {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// The last factor, 0 to 1.
        final_fraction: f64,
    },
    /// Warm-up, then a fall every so many steps.
    Step {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// Steps between two falls.
        every_steps: u64,
        /// What is left at each, 0 to 1.
        gamma: f64,
    },
    /// Half a cosine up, half a cosine down.
    OneCycle {
        /// The part of the steps that rises, 0 to 1.
        rise_fraction: f64,
        /// The first factor, 0 to 1.
        start_fraction: f64,
        /// The last factor, 0 to 1.
        final_fraction: f64,
    },
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Data {
    /// Four IDX files.
    Mnist {
        /// Their folder, absolute.
        path: PathBuf,
        /// Subtracted from each pixel in 0..1.
        mean: f64,
        /// Divides it after that.
        std: f64,
    },
    /// A file of bytes.
    Text {
        /// The file, absolute.
        path: PathBuf,
        /// Bytes between two training windows' begins; `None` for as many as the context has.
        stride: Option<usize>,
        /// The part that is held out, above 0 and below 1.
        test_fraction: f64,
    },
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Whether the final model is written in the clear.
    pub export: bool,
    /// Steps between checkpoints; 0 for none on the way.
    pub every_steps: u64,
    /// Whether a run ends with a checkpoint.
    pub at_end: bool,
    /// How many are kept.
    pub keep_last: u32,
    /// Hours after which one is deleted, but for the last; 0 for never.
    pub max_age_hours: u32,
    /// age recipients; none for a key of the run's own.
    pub recipients: Vec<String>,
    /// The key that signs it; a new one where there is none.
    pub sign_key: Option<PathBuf>,
}

/// `[audit]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    /// Steps between hashes of the parameters; 0 for none.
    pub hash_every: u64,
    /// Share of the parameters' values whose updates are computed a second time, 0 to 1.
    pub witness_rate: f64,
    /// Steps between counter-signatures of the log's head; 0 for none.
    pub countersign_every: u64,
}

/// `[output]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Output {
    /// The folder of run directories, absolute.
    pub dir: PathBuf,
}

impl Config {
    /// Reads the cluster file at `path` and applies `overrides`, each `key=value`, in order.
    ///
    /// Relative paths in the file start at the file's folder, those in overrides (and `output.dir`) at the
    /// current folder.
    ///
    /// # Errors
    /// Every problem there is, or the one that keeps the file from being read.
    pub fn load<S: AsRef<str>>(path: &Path, overrides: &[S]) -> Result<Self, ConfigErrors> {
        let whole = |message: String| ConfigErrors::whole(path, message);
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(FILE_MOST + 1).read_to_end(&mut bytes))
            .map_err(|error| whole(format!("cannot read the cluster file: {error}")))?;
        if bytes.len() as u64 > FILE_MOST {
            return Err(whole(format!("larger than {FILE_MOST} bytes: this is no cluster file")));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
            whole(format!("not UTF-8 from line {line} on: save the file as UTF-8"))
        })?;
        Self::parse(&text, path, overrides)
    }

    /// The same for a file's `text`; `path` is where it came from, for messages and relative paths.
    ///
    /// # Errors
    /// Every problem there is.
    pub fn parse<S: AsRef<str>>(text: &str, path: &Path, overrides: &[S]) -> Result<Self, ConfigErrors> {
        let (mut values, mut problems) = (read::Values::default(), Vec::new());
        values.read(text, &mut problems);
        for argument in overrides {
            values.set(argument.as_ref(), &mut problems);
        }
        values.complete(&mut problems);
        let config = build::config(&values, path, &mut problems);
        semantic::check(&config, &values, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigErrors::new(path, problems)) }
    }

    /// The effective configuration as a cluster file, every default written out.
    ///
    /// # Errors
    /// A path that is not UTF-8, which [`Config::load`] lets nobody write.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

#[cfg(test)]
mod tests;
