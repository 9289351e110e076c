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
mod network;
mod optimizer;
mod problem;
mod read;
mod security;
mod semantic;
mod ssh;
mod telemetry;
pub(crate) mod template;
mod training;
mod transport;
mod value;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use testudo_kernels::Norm;

pub use device::{ComputeDevice, MatrixProducts, Servers, Workers};
pub use limits::Limits;
pub use network::{Network, SchedulerNetwork, ServersNetwork};
pub use optimizer::Optimizer;
pub use problem::{ConfigErrors, Place, Problem};
pub use security::{Revocation, Security, SecurityFiles};
pub use ssh::{Host, Launcher, Ssh};
pub use telemetry::Telemetry;
pub use training::{Aggregation, Determinism, Schedule, Training};
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
