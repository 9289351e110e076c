//! The worker's writer thread: residuals go to disk while training goes on.

use std::sync::mpsc;

use tokio::runtime::Handle;

use crate::checkpoint::{PartWriter, ResidualSnapshot};
use crate::compute_thread::{PANICKED, PanicGuard};
use crate::mailbox::Mailbox;
use crate::message::{PartOutcome, ResidualPart};
use crate::worker::actor::{Mail, WorkerActor};

/// Snapshots that may wait for the thread: no more than one is ever under way (invariant 3 of
/// [`residuals`](super::residuals)).
pub(super) const WAITING: usize = 1;

/// Characters of a reason: it travels in a header.
const MAX_REASON: usize = 1000;

/// Starts the thread of worker `worker`. It ends when `snapshots`' sender is dropped or the actor is gone.
pub(super) fn start(
    mut writer: Box<dyn PartWriter>,
    worker: u32,
    snapshots: mpsc::Receiver<ResidualSnapshot>,
    mailbox: Mailbox<WorkerActor>,
    runtime: Handle,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
        let _guard = PanicGuard::new(mailbox.clone(), runtime.clone(), Mail::Fatal(PANICKED.into()));
        while let Ok(snapshot) = snapshots.recv() {
            let shards: Vec<u32> = snapshot.shards.iter().map(|shard| shard.shard).collect();
            let outcome = match writer.write_residuals(worker, &snapshot) {
                Ok(receipt) => PartOutcome::Written {
                    bytes: receipt.bytes,
                    blake3: receipt.blake3,
                    slices: u32::try_from(shards.len()).unwrap_or(u32::MAX),
                },
                Err(error) => PartOutcome::Failed(error.to_string().chars().take(MAX_REASON).collect()),
            };
            let version = snapshot.version;
            // The memory is given back before the next one may be taken.
            drop(snapshot);
            let part = ResidualPart { version, shards, outcome };
            if mailbox.deliver_blocking(&runtime, Mail::Residuals(part)).is_err() {
                return;
            }
        }
    })
}
