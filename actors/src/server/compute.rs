//! The server's compute thread: arithmetic behind a queue, results by mail.
//!
//! The queue needs no bound of its own: what waits in it are initialisation and accepted contributions, of which there is
//! at most one for each (tree node, slice, step), and whose payloads stay charged to their sender's credit until the
//! thread takes them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use testudo_kernels::robust::weigh::Weights;
use testudo_observability::Place;
use tokio::runtime::Handle;

use crate::checkpoint::{PartSource, Snapshot};
use crate::compute_thread::{PANICKED, PanicGuard};
use crate::job::JobSpec;
use crate::mailbox::Mailbox;
use crate::message::{CheckpointPart, PartOutcome, PushRefusal};
use crate::placement::SliceId;
use crate::server::actor::{Mail, ServerActor};
use crate::server::traced::{Pushed, Timed};
use crate::server::{Contribution, Input, MathError, SliceMath, SnapshotEvent};
use crate::tree::Node;

/// Work for the thread.
pub(super) enum Work {
    Initialise,
    Store {
        slice: SliceId,
        step: u64,
        node: Node,
        values: Pushed,
    },
    /// Every slice is at this version, and a checkpoint of it is wanted.
    Checkpoint {
        version: u64,
    },
    /// Every slice is at this version, and its hash is wanted.
    Hash {
        version: u64,
    },
    /// Every slice has what a step contributes, and is to be combined so.
    Combine {
        step: u64,
        weights: Weights,
        /// Where that is shown, if the step is traced.
        place: Option<Place>,
    },
    /// The writer is free again.
    Written,
}

/// Where slices come from and where snapshots go.
pub(super) struct Checkpointing {
    pub(super) job: Arc<JobSpec>,
    /// The checkpoint to begin with, instead of the seed.
    pub(super) source: Option<Box<dyn PartSource>>,
    /// To the writer thread; there is room for the one snapshot that is ever under way.
    pub(super) snapshots: Option<mpsc::SyncSender<Snapshot>>,
}

/// How long the thread has spent on what steps contribute; shared with the actor, which tells the scheduler.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<AtomicU64>);

impl Busy {
    /// Microseconds since the thread began.
    pub(super) fn micros(&self) -> u64 {
        self.0.load(Ordering::Relaxed) / 1_000
    }

    /// Does something that takes time.
    fn spend<T>(&self, on: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = on();
        let spent = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(spent, Ordering::Relaxed);
        done
    }
}

/// Starts the thread. It ends when `work`'s sender is dropped or the actor is gone.
pub(super) fn start(
    mut math: SliceMath,
    mut checkpointing: Checkpointing,
    work: mpsc::Receiver<Work>,
    busy: Busy,
    mailbox: Mailbox<ServerActor>,
    runtime: Handle,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("compute".into()).spawn(move || {
        let fatal = Mail::Fatal(PANICKED.into());
        let _guard = PanicGuard::new(mailbox.clone(), runtime.clone(), fatal);
        let histograms = math.histograms_on_the_way();
        while let Ok(work) = work.recv() {
            let mail = match work {
                Work::Initialise => Some(initialise(&mut math, &mut checkpointing)),
                Work::Store { slice, step, node, values } => {
                    Some(busy.spend(|| store(&mut math, slice, step, node, values)))
                }
                Work::Checkpoint { version } => {
                    math.order_snapshot(version).err().map(|error| Mail::Fatal(error.to_string()))
                }
                Work::Hash { version } => {
                    math.order_hash(version).err().map(|error| Mail::Fatal(error.to_string()))
                }
                Work::Combine { step, weights, place } => {
                    let timed = Timed::begin(place);
                    let combined = busy.spend(|| math.combine(step, &weights));
                    if let Some(timed) = timed {
                        timed.end();
                    }
                    Some(match combined {
                        Ok(updated) => Mail::Input(Input::Combined { updated }),
                        Err(error) => Mail::Fatal(error.to_string()),
                    })
                }
                Work::Written => math.snapshot_written().err().map(|error| Mail::Fatal(error.to_string())),
            };
            // The answer first: a snapshot holds nobody up.
            let told = mail.map_or(Ok(()), |mail| mailbox.deliver_blocking(&runtime, mail));
            let told = told.and_then(|()| match math.poll_products() {
                Some((step, products)) => {
                    mailbox.deliver_blocking(&runtime, Mail::Products(step, products.to_bytes()))
                }
                None => Ok(()),
            });
            let told = told.and_then(|()| match hand_over(&mut math, &checkpointing) {
                Some(mail) => mailbox.deliver_blocking(&runtime, mail),
                None => Ok(()),
            });
            if told.is_err() {
                return;
            }
            while let Some(pieces) = math.poll_pieces() {
                if mailbox.deliver_blocking(&runtime, Mail::Pieces(pieces)).is_err() {
                    return;
                }
            }
            while let Some(told) = math.poll_histograms() {
                let Some(until_sent) = histograms.begin() else { continue };
                if mailbox.deliver_blocking(&runtime, Mail::Histograms(told, until_sent)).is_err() {
                    return;
                }
            }
        }
    })
}

fn initialise(math: &mut SliceMath, checkpointing: &mut Checkpointing) -> Mail {
    let Some(mut source) = checkpointing.source.take() else {
        return match math.initialise() {
            Ok(()) => Mail::Input(Input::Initialised),
            Err(error) => Mail::Fatal(error.to_string()),
        };
    };
    let restored = source.load(&checkpointing.job, &math.slices()).map_err(|e| e.to_string());
    match restored.and_then(|slices| math.restore(slices).map_err(|e| e.to_string())) {
        Ok(()) => Mail::Input(Input::Initialised),
        Err(reason) => Mail::Fatal(format!("the checkpoint cannot be used: {reason}")),
    }
}

/// Hands a whole snapshot to the writer, or says that one was skipped. No more than one event is ever there after one
/// piece of work.
fn hand_over(math: &mut SliceMath, checkpointing: &Checkpointing) -> Option<Mail> {
    match math.poll_snapshot()? {
        SnapshotEvent::Skipped(version) => {
            Some(Mail::Part(CheckpointPart { version, outcome: PartOutcome::Skipped }))
        }
        SnapshotEvent::Ready(snapshot) => {
            let writer = checkpointing.snapshots.as_ref()?;
            let full = writer.try_send(snapshot).is_err();
            full.then(|| Mail::Fatal("a bug in Testudo: two snapshots at once; please report it".into()))
        }
    }
}

fn store(math: &mut SliceMath, slice: SliceId, step: u64, node: Node, pushed: Pushed) -> Mail {
    let unusable = |reason| Mail::Input(Input::Unusable { slice, step, node, reason });
    let timed = Timed::begin(pushed.place);
    let values = match math.decode(slice, pushed.values) {
        Ok(values) => values,
        Err(MathError::Codec(_)) => return unusable(PushRefusal::Malformed),
        Err(error) => return Mail::Fatal(error.to_string()),
    };
    let contributed = math.contribute(Contribution { slice, step, node, values });
    if let Some(timed) = timed {
        timed.end();
    }
    match contributed {
        Ok(updated) => Mail::Input(Input::Stored { slice, step, node, updated }),
        Err(MathError::NotFinite(element)) => unusable(PushRefusal::NotFinite { element }),
        Err(error) => Mail::Fatal(error.to_string()),
    }
}
