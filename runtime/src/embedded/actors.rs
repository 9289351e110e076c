//! Actors of one's own beside the nodes of a job in this process.

use std::sync::{Arc, PoisonError};

use testudo_actors::link::Network;
use testudo_actors::own::{Actor, Caller, OwnActor, RunningActor, StoppedActor, is_reserved};
use testudo_transport::Role;

use super::EmbeddedError;
use super::site::Site;

/// Starts actors under identities of the job's certificate authority, on the links that its nodes use. What they may say was stated with
/// [`JobBuilder::grants`](super::JobBuilder::grants). Connections last as long as this, or the job, is there: keep it until the last
/// answer has come. An actor and a caller have a name each, which is given once as long as this lasts, though what had it be over.
#[derive(Clone)]
pub struct JobActors(pub(super) Arc<Site>);

impl std::fmt::Debug for JobActors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JobActors").field(&self.0.grants).finish()
    }
}

impl JobActors {
    /// Starts `actor` as `actor/NAME`.
    ///
    /// # Errors
    /// [`EmbeddedError::NameTaken`] when an actor or a caller has had the name; [`EmbeddedError`] when it is none, or a thread or socket is
    /// missing.
    pub fn start<A: Actor>(&self, name: &str, actor: OwnActor<A>) -> Result<RunningActor, EmbeddedError> {
        let network = self.network(name)?;
        Ok(actor.start(network, self.0.grants.clone(), self.0.runtime().clone())?)
    }

    /// An identity `actor/NAME` that says things and hears nothing: for the program that runs the job.
    ///
    /// # Errors
    /// As [`start`](JobActors::start).
    pub fn caller(&self, name: &str) -> Result<Caller, EmbeddedError> {
        let network = self.network(name)?;
        Ok(Caller::new(network, self.0.grants.clone(), self.0.runtime().clone()))
    }

    /// The network of `actor/NAME`. A second one of that name would take the first one's place, and its mail.
    fn network(&self, name: &str) -> Result<Network, EmbeddedError> {
        let identity = self.0.identity(Role::Actor, name)?;
        if is_reserved(identity.id()) {
            return Err(StoppedActor::Identity(identity.id().clone()).into());
        }
        if !self.0.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            return Err(EmbeddedError::NameTaken(name.to_owned()));
        }
        self.0.network(&identity)
    }
}
