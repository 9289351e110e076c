//! Starting a cluster's nodes: what every launcher does for a run, and one file a launcher.
//!
//! Testudo schedules no machines: a launcher starts the nodes that it is told to, where its settings say, and nothing else. To the
//! run, a node is a child process that stands for it, whatever machine the node is on ([`Nodes`]).
//!
//! Invariants:
//! 1. The child ends when its node does, with the same exit status, and says on its first line of output where the node is bound.
//! 2. A node ends when its lease is dropped: none outlives the launcher, however that ends.
//! 3. What a node prints or panics with ends up in its log, here.
//! 4. No secret stands in an argument or an environment variable of any process.

pub mod budget;
pub(crate) mod lease;
pub mod local;
mod nodes;
mod parcel;
pub mod ssh;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use testudo_actors::message::Finished;
use testudo_transport::Role;
use tokio::io::BufReader;
use tokio::process::{Child, ChildStdout};
use tokio::task::JoinHandle;

use crate::error::Failure;

pub use nodes::{NodeProcess, Nodes};

/// A node that is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToStart {
    /// Its role; a peer is a server and a worker.
    pub role: Role,
    /// Its index.
    pub index: u32,
    /// Where it finds the scheduler; `None` for the scheduler itself.
    pub scheduler: Option<SocketAddr>,
}

/// Takes the rest of a node's standard output; may block.
pub type Receiver = Box<dyn FnOnce(BufReader<ChildStdout>) + Send>;

/// A node that is being started.
#[derive(Debug)]
pub struct Launched {
    /// The process that stands for it (invariant 1), which is killed when this is dropped; its standard output is piped.
    pub child: Child,
    /// What keeps it alive (invariant 2): it is dropped, and asked nothing.
    pub lease: Box<dyn std::fmt::Debug>,
    /// Where its log is, for this process.
    pub log: PathBuf,
    /// What writes the log, if the node itself does not; it ends soon after the process.
    pub telling: Option<JoinHandle<()>>,
}

/// A node's start, under way.
pub type Launching<'a> = Pin<Box<dyn Future<Output = Result<Launched, Failure>> + 'a>>;

/// Starts nodes.
pub trait Launcher: std::fmt::Debug {
    /// Starts one; [`Nodes`] waits until it is bound, follows it and ends it. The same node may be started again once it has ended.
    ///
    /// # Errors
    /// [`Failure`] when its process cannot be started.
    fn launch<'a>(&'a mut self, node: &'a ToStart) -> Launching<'a>;

    /// How long a node may take from its start until it is bound.
    fn patience(&self) -> Duration;

    /// How long nodes may take to leave in order once the run is over.
    fn grace(&self) -> Duration;

    /// What takes what a node writes on its standard output once it is bound, if that is more than nothing. It may block, ends
    /// when the output does, and is waited for when the node has ended.
    fn receiver(&mut self, _node: &ToStart) -> Option<Receiver> {
        None
    }

    /// Puts what receivers took in its place, once all nodes have ended and `finished` is what the scheduler reported. It is done
    /// once a run.
    ///
    /// # Errors
    /// [`Failure`] when what should have come did not.
    fn settle(&mut self, _finished: &Finished) -> Result<(), Failure> {
        Ok(())
    }
}
