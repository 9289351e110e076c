//! The server's writer thread: parts of checkpoints go to disk while training goes on.

use std::sync::mpsc;

use tokio::runtime::Handle;

use crate::checkpoint::{PartWriter, Snapshot};
use crate::compute_thread::{PANICKED, PanicGuard};
use crate::mailbox::Mailbox;
use crate::message::{CheckpointPart, PartOutcome};
use crate::server::actor::{Mail, ServerActor};

/// Snapshots that may wait for the thread: no more than one is ever under way, see
/// [`Snapshots`](crate::server::Snapshots).
pub(super) const WAITING: usize = 1;

/// Characters of a reason: it travels in a header.
const MAX_REASON: usize = 1000;

/// Starts the thread. It ends when `snapshots`' sender is dropped or the actor is gone.
pub(super) fn start(
    mut writer: Box<dyn PartWriter>,
    snapshots: mpsc::Receiver<Snapshot>,
    mailbox: Mailbox<ServerActor>,
    runtime: Handle,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
        let fatal = Mail::Fatal(PANICKED.into());
        let _guard = PanicGuard::new(mailbox.clone(), runtime.clone(), fatal);
        while let Ok(snapshot) = snapshots.recv() {
            let outcome = match writer.write(&snapshot) {
                Ok(receipt) => PartOutcome::Written {
                    bytes: receipt.bytes,
                    blake3: receipt.blake3,
                    slices: u32::try_from(snapshot.slices.len()).unwrap_or(u32::MAX),
                },
                Err(error) => PartOutcome::Failed(error.to_string().chars().take(MAX_REASON).collect()),
            };
            let version = snapshot.version;
            // The memory is given back before the next one may be taken.
            drop(snapshot);
            let part = CheckpointPart { version, outcome };
            if mailbox.deliver_blocking(&runtime, Mail::Part(part)).is_err() {
                return;
            }
        }
    })
}
