//! The scheduler's ledger thread: manifests go to disk while the scheduler listens on.

use std::sync::mpsc;

use tokio::runtime::Handle;

use crate::checkpoint::{Commit, Ledger};
use crate::mailbox::Mailbox;
use crate::scheduler::actor::{Mail, SchedulerActor};

/// Commits that may wait: the core asks for one at a time.
const WAITING: usize = 1;

/// Starts the thread, and returns the way to it. It ends when that is dropped or the actor is gone.
pub(super) fn start(
    mut ledger: Box<dyn Ledger>,
    mailbox: Mailbox<SchedulerActor>,
    runtime: Handle,
) -> std::io::Result<mpsc::SyncSender<Commit>> {
    let (sender, receiver) = mpsc::sync_channel::<Commit>(WAITING);
    std::thread::Builder::new().name("ledger".into()).spawn(move || {
        while let Ok(commit) = receiver.recv() {
            // A panic must not leave the run waiting for its last checkpoint for ever.
            let committing = std::panic::AssertUnwindSafe(|| ledger.commit(&commit));
            let result = match std::panic::catch_unwind(committing) {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("a bug in Testudo: writing the manifest panicked; its log says where".into()),
            };
            let mail = Mail::Committed { step: commit.step, result };
            if mailbox.deliver_blocking(&runtime, mail).is_err() {
                return;
            }
        }
    })?;
    Ok(sender)
}
