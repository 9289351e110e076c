//! What both kinds of compute thread share: a panic on one is told to its actor, which would wait for ever otherwise.

use actix::{Actor, Handler};
use tokio::runtime::Handle;

use crate::mailbox::{Letter, Mailbox};

/// Mails `on_panic` if the thread that holds it panics.
pub(crate) struct PanicGuard<A: Actor, M: Send + 'static>
where
    A: Handler<Letter<M>>,
    A::Context: actix::dev::ToEnvelope<A, Letter<M>>,
{
    mailbox: Mailbox<A>,
    runtime: Handle,
    on_panic: Option<M>,
}

impl<A: Actor, M: Send + 'static> PanicGuard<A, M>
where
    A: Handler<Letter<M>>,
    A::Context: actix::dev::ToEnvelope<A, Letter<M>>,
{
    pub(crate) fn new(mailbox: Mailbox<A>, runtime: Handle, on_panic: M) -> Self {
        PanicGuard { mailbox, runtime, on_panic: Some(on_panic) }
    }
}

impl<A: Actor, M: Send + 'static> Drop for PanicGuard<A, M>
where
    A: Handler<Letter<M>>,
    A::Context: actix::dev::ToEnvelope<A, Letter<M>>,
{
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(mail) = self.on_panic.take()
        {
            let _ = self.mailbox.deliver_blocking(&self.runtime, mail);
        }
    }
}

/// What an actor is told of its compute thread's panic; the panic's own message is in the log.
pub(crate) const PANICKED: &str = "the compute thread panicked: a bug in Testudo, or in a model, data set or rule of the program's own; its log says where";
