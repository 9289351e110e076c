//! An actor's mailbox: bounded in letters and in bytes, and told to stop without room or runtime.

use std::sync::Arc;

use testudo_transport::SpiffeId;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::message::MOST_BYTES;
use super::serve::Work;

/// Letters that may wait for an actor.
pub(super) const LETTERS: usize = 256;
/// Bytes of messages that may wait for an actor; one of the largest always may.
pub(super) const MAIL_BYTES: usize = 8 << 20;

/// A message on its way to an actor.
pub(super) struct Letter<A> {
    pub(super) from: SpiffeId,
    pub(super) work: Work<A>,
    pub(super) _room: OwnedSemaphorePermit,
}

/// Where an actor's mail goes.
pub(super) struct Mailbox<A> {
    pub(super) letters: mpsc::Sender<Letter<A>>,
    bytes: Arc<Semaphore>,
}

impl<A> Mailbox<A> {
    /// A mailbox, and what the actor reads it with until `stop` is true. Reading needs `runtime` for nothing but to wait, and does so though it
    /// has been shut down.
    pub(super) fn new(stop: watch::Receiver<bool>, runtime: Handle) -> (Mailbox<A>, Inbox<A>) {
        let (letters, mail) = mpsc::channel(LETTERS);
        const { assert!(MOST_BYTES as usize <= MAIL_BYTES) };
        let inbox = Inbox { mail, stop, runtime, last: None };
        (Mailbox { letters, bytes: Arc::new(Semaphore::new(MAIL_BYTES)) }, inbox)
    }

    /// Waits for room; says whether the actor is still there.
    pub(super) async fn deliver(&self, from: SpiffeId, bytes: usize, work: Work<A>) -> bool {
        let bytes = bytes.clamp(1, MAIL_BYTES) as u32;
        let Ok(room) = Arc::clone(&self.bytes).acquire_many_owned(bytes).await else { return false };
        self.letters.send(Letter { from, work, _room: room }).await.is_ok()
    }
}

/// The actor's end of its mailbox.
pub(super) struct Inbox<A> {
    mail: mpsc::Receiver<Letter<A>>,
    stop: watch::Receiver<bool>,
    runtime: Handle,
    /// Once it is to stop: letters that lay there then and are still to be read.
    last: Option<usize>,
}

impl<A> Inbox<A> {
    /// The next letter; `None` once the actor is to stop and has read what lay there, or nobody can write to it any more.
    pub(super) fn next(&mut self) -> Option<Letter<A>> {
        if self.last.is_none() {
            let Inbox { mail, stop, runtime, .. } = self;
            let heard = runtime.block_on(async {
                tokio::select! {
                    biased;
                    // Whoever can say so has gone: nobody waits for this actor any more.
                    _ = stop.wait_for(|stop| *stop) => None,
                    letter = mail.recv() => Some(letter),
                }
            });
            match heard {
                Some(letter) => return letter,
                None => self.last = Some(self.mail.len()),
            }
        }
        let last = self.last.as_mut()?;
        *last = last.checked_sub(1)?;
        // This one never waits: tasks that would hand over more may be blocked by whoever waits for the end.
        self.mail.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use testudo_transport::Role;

    use super::*;

    /// What lies there when the actor is told to stop is read still, and no more; though the mailbox is full and the runtime gone.
    #[test]
    fn a_full_mailbox_is_read_to_its_end_without_a_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let stop = watch::Sender::new(false);
        let (mailbox, mut inbox) = Mailbox::<()>::new(stop.subscribe(), runtime.handle().clone());
        let write = |count| {
            let from = SpiffeId::new("t", "j", Role::Actor, "a").unwrap();
            runtime.block_on(async {
                for _ in 0..count {
                    assert!(mailbox.deliver(from.clone(), 1, Box::new(|_, _| Ok(()))).await);
                }
            });
        };
        write(LETTERS);
        stop.send_replace(true);
        assert!(inbox.next().is_some());
        write(1);
        drop(runtime);
        let rest = std::iter::from_fn(|| inbox.next()).count();
        assert_eq!(rest, LETTERS - 1, "the one that came later is not read");
        assert!(inbox.next().is_none());
    }
}
