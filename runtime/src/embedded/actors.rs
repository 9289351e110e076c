//! Actors of one's own beside the nodes of a job in this process.

use std::sync::Arc;

use testudo_actors::own::{Actor, Caller, OwnActor, RunningActor};
use testudo_transport::Role;

use super::EmbeddedError;
use super::site::Site;

/// Starts actors under identities of the job's certificate authority, on the links that its nodes use. What they may say was stated with
/// [`JobBuilder::grants`](super::JobBuilder::grants). Connections last as long as this, or the job, is there: keep it until the last
/// answer has come.
#[derive(Clone)]
pub struct JobActors(pub(super) Arc<Site>);

impl std::fmt::Debug for JobActors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JobActors").field(&self.0.grants).finish()
    }
}

impl JobActors {
    /// Starts `actor` as `actor/NAME`. Each name is given once.
    ///
    /// # Errors
    /// [`EmbeddedError`] when the name is none, or a thread or socket is missing.
    pub fn start<A: Actor>(&self, name: &str, actor: OwnActor<A>) -> Result<RunningActor, EmbeddedError> {
        let network = self.0.network(self.0.identity(Role::Actor, name)?.as_ref())?;
        Ok(actor.start(network, self.0.grants.clone(), self.0.runtime().clone())?)
    }

    /// An identity `actor/NAME` that says things and hears nothing: for the program that runs the job.
    ///
    /// # Errors
    /// As [`start`](JobActors::start).
    pub fn caller(&self, name: &str) -> Result<Caller, EmbeddedError> {
        let network = self.0.network(self.0.identity(Role::Actor, name)?.as_ref())?;
        Ok(Caller::new(network, self.0.grants.clone(), self.0.runtime().clone()))
    }
}
