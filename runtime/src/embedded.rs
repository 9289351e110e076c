//! A whole cluster in this process, from code: [`Job::builder`] or a cluster file, [`JobBuilder::start`], [`RunningJob::wait`].
//!
//! 1. **The same bits**: nodes are those that processes run, each on a thread of its own with an identity of its own under a
//!    certificate authority made for the run. Whatever the links, the parameters are those of the same job in processes.
//! 2. **The same checks**: the job is signed and validated, every message passes the role table, credit and limits; over
//!    [`Links::Secured`] and [`Links::Quic`] every message carries a MAC.
//! 3. **Nothing is left behind**: a job that is dropped is stopped and waited for, and its keys never leave memory.
//! 4. **Nobody has to look**: reports that nobody takes are dropped, oldest first, and counted.
//!
//! What a run in processes has beside it is not here: no run directory, and so neither checkpoints nor audit log (an event file for
//! TensorBoard is written where [`JobBuilder::events`] names a folder); no
//! sandbox, and no limit of memory but the transport's own. A node's panic or a model's is this process's to see.

mod actors;
mod builder;
mod cluster;
mod ending;
mod error;
mod reports;
mod running;
mod site;

pub use actors::JobActors;
pub use builder::{Job, JobBuilder, ModelSetup};
pub use error::EmbeddedError;
pub use reports::{Report, Reports};
pub use running::{Parameter, RunningJob, Trained};
pub use site::Links;

#[cfg(test)]
mod tests;
