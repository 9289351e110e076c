//! Why a cluster in this process did not begin, or did not end well.

use std::path::PathBuf;

use testudo_actors::JobError;
use testudo_actors::node::NodeError;
use testudo_actors::operator::OperatorError;
use testudo_actors::own::StoppedActor;
use testudo_kernels::{ModelError, OwnNameError};
use testudo_transport::{BindError, IdentityError, PkiError, PolicyError, SpiffeId};

use crate::config::ConfigErrors;
use crate::data::LoadError;

/// Why a cluster in this process did not begin, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The cluster file.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The data that the cluster file names.
    #[error(transparent)]
    Data(#[from] LoadError),
    /// Something that every job needs was not said.
    #[error("the job has no {0}: say it before the job is started")]
    Missing(&'static str),
    /// No optimizer ships under that name.
    #[error(
        "no optimizer called {0:?} ships: name one of docs/optimizers.md, or give a program's text, which has lines"
    )]
    Optimizer(String),
    /// A name of one's own.
    #[error(transparent)]
    Name(#[from] OwnNameError),
    /// The model cannot be built.
    #[error("the model: {0}")]
    Model(#[from] ModelError),
    /// Data sets of different sizes.
    #[error(
        "worker {worker} has {found:?} examples to train and to test on, and worker 0 has {expected:?}: as many are needed"
    )]
    Owners {
        /// The worker.
        worker: usize,
        /// What worker 0 has.
        expected: (usize, usize),
        /// What it has.
        found: (usize, usize),
    },
    /// The job does not hold.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The job's names make no identities.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate authority of the run.
    #[error("the run's certificate authority: {0}")]
    Pki(#[from] PkiError),
    /// The role table.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An actor of one's own could not be started.
    #[error(transparent)]
    Actor(#[from] StoppedActor),
    /// Two actors or callers of one name.
    #[error("actor/{0} is there already, or was: an actor or a caller has each name once")]
    NameTaken(String),
    /// A node's socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No thread, or none for the network.
    #[error("no thread could be started: {0}")]
    Thread(#[source] std::io::Error),
    /// The scheduler could not begin, or a node that the run cannot do without ended.
    #[error("{node} failed: {error}")]
    Node {
        /// Which.
        node: SpiffeId,
        /// How.
        error: NodeError,
    },
    /// A node's thread panicked; the panic itself was printed.
    #[error("the thread of {0} panicked")]
    Panicked(SpiffeId),
    /// The event file for TensorBoard could not be begun.
    #[error("no event file for TensorBoard can be begun in {}: {source}; name a folder whose parent is there and can be written to", folder.display())]
    Events {
        /// The folder.
        folder: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The run failed, as its scheduler tells it.
    #[error("the run failed: {0}")]
    Failed(String),
    /// The scheduler could not be told to stop.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// The scheduler refused to stop.
    #[error("the run is not stopped: {0}")]
    NotStopped(String),
    /// No worker exported the model of a run that finished: a bug.
    #[error("a bug in Testudo: the run finished and no worker exported its model; please report it")]
    NoModel,
    /// The model could not be written.
    #[error(transparent)]
    Save(#[from] crate::checkpoint::safetensors::CheckpointError),
}
