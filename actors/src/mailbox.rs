//! The bounded way into an actor.
//!
//! actix 0.13 bounds a mailbox only for `try_send` on one long-lived address; `do_send` and `send` ignore the bound. So
//! every letter takes a slot of a semaphore before it is posted and gives it back when the actor has handled it: whoever
//! delivers waits (a connection's task then stops reading its stream), and an actor's mail never outgrows its slots.

use std::sync::Arc;

use actix::{Actor, Addr, Handler, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Letters that may wait for an actor: a few for every stream that can deliver at once; the actor only moves them on.
pub const SLOTS: usize = 256;

/// Mail with its slot.
#[derive(Debug)]
pub struct Letter<M> {
    /// The mail.
    pub mail: M,
    _slot: Option<OwnedSemaphorePermit>,
}

impl<M> Message for Letter<M> {
    type Result = ();
}

/// The actor is gone; nothing can be delivered any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the actor has stopped")]
pub struct Gone;

/// An address that delivers within bounds.
#[derive(Debug)]
pub struct Mailbox<A: Actor> {
    address: Addr<A>,
    slots: Arc<Semaphore>,
}

impl<A: Actor> Clone for Mailbox<A> {
    fn clone(&self) -> Self {
        Mailbox { address: self.address.clone(), slots: Arc::clone(&self.slots) }
    }
}

impl<A: Actor> Mailbox<A> {
    /// The mailbox of `address`.
    #[must_use]
    pub fn new(address: Addr<A>) -> Mailbox<A> {
        Mailbox { address, slots: Arc::new(Semaphore::new(SLOTS)) }
    }

    /// Delivers `mail`, waiting for a slot.
    ///
    /// # Errors
    /// [`Gone`] when the actor has stopped.
    pub async fn deliver<M>(&self, mail: M) -> Result<(), Gone>
    where
        M: Send + 'static,
        A: Handler<Letter<M>>,
        A::Context: actix::dev::ToEnvelope<A, Letter<M>>,
    {
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| Gone)?;
        if !self.address.connected() {
            return Err(Gone);
        }
        self.address.do_send(Letter { mail, _slot: Some(slot) });
        Ok(())
    }

    /// Delivers `mail` from a compute thread, waiting for a slot on that thread.
    ///
    /// # Errors
    /// [`Gone`] when the actor has stopped.
    pub fn deliver_blocking<M>(&self, runtime: &tokio::runtime::Handle, mail: M) -> Result<(), Gone>
    where
        M: Send + 'static,
        A: Handler<Letter<M>>,
        A::Context: actix::dev::ToEnvelope<A, Letter<M>>,
    {
        runtime.block_on(self.deliver(mail))
    }
}
