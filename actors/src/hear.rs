//! From a stream to an actor's mailbox: one loop for every stream that an actor hears.

use actix::{Actor, Handler};
use testudo_transport::{Message, Receiver};

use crate::mailbox::{Letter, Mailbox};

/// What a stream brings: a message, or the reason of its end, after which nothing comes.
pub(crate) type Heard = Result<Message, String>;

/// Delivers what `receiver` brings, as `mail` makes letters of it, until the stream ends or the actor is gone. Nothing is
/// read while the mailbox is full.
pub(crate) async fn hear<A, M>(mut receiver: Receiver, mailbox: Mailbox<A>, mail: impl Fn(Heard) -> M)
where
    M: Send + 'static,
    A: Actor + Handler<Letter<M>>,
    A::Context: actix::dev::ToEnvelope<A, Letter<M>>,
{
    loop {
        let heard = match receiver.recv().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err("it closed its stream".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let last = heard.is_err();
        if mailbox.deliver(mail(heard)).await.is_err() || last {
            return;
        }
    }
}
