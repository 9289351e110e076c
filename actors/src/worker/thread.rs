//! The worker's compute thread: arithmetic behind a queue, slices and results by mail.
//!
//! 1. The queue is bounded by what can be asked for at a time: one version of every slice, one step, a few orders.
//! 2. Slices under way to servers are bounded in number: the thread waits before it hands over another, so a slow
//!    network slows the backward pass instead of filling memory.

use std::sync::{Arc, mpsc};

use testudo_kernels::Codec;
use testudo_observability::Place;
use testudo_transport::Payload;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::checkpoint::{PartSource, ResidualSnapshot};
use crate::compute_thread::{PANICKED, PanicGuard};
use crate::mailbox::Mailbox;
use crate::message::{Evaluate, Export, PartOutcome, ResidualPart};
use crate::numbers;
use crate::placement::SliceId;
use crate::tree::Node;
use crate::witness::Key;
use crate::worker::actor::{Mail, Values, WorkerActor};
use crate::worker::watch::Watch;
use crate::worker::{Event, Input, ResidualEvent, ShardCompute};

/// Work for the thread.
pub(super) enum Work {
    Install {
        slice: SliceId,
        codec: Codec,
        values: Payload,
    },
    InstallExact {
        slice: SliceId,
        values: Payload,
    },
    Adopt {
        version: u64,
    },
    Witness(Key),
    Compute {
        step: u64,
        nodes: Vec<Node>,
        place: Option<Place>,
    },
    Evaluate(Evaluate),
    Export(Export),
    /// The scheduler wants residuals of the version that was computed with last.
    Residuals {
        version: u64,
        shards: Vec<u32>,
    },
    /// The writer is free again.
    ResidualsWritten,
}

/// Where residuals come from and where they go.
#[derive(Default)]
pub(super) struct Checkpointing {
    /// The checkpoint to begin with, if the job resumes from one and its push codec keeps residuals.
    pub(super) source: Option<Box<dyn PartSource>>,
    /// To the writer thread; there is room for the one snapshot that is ever under way.
    pub(super) snapshots: Option<mpsc::SyncSender<ResidualSnapshot>>,
}

/// Starts the thread. It ends when `work`'s sender is dropped or the actor is gone.
pub(super) fn start(
    compute: ShardCompute,
    checkpointing: Checkpointing,
    work: mpsc::Receiver<Work>,
    mailbox: Mailbox<WorkerActor>,
    runtime: Handle,
    in_flight: Arc<Semaphore>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let mut thread = Thread { compute, checkpointing, mailbox, runtime, in_flight, gone: false };
    std::thread::Builder::new().name("compute".into()).spawn(move || {
        let fatal = Mail::Fatal(PANICKED.into());
        let _guard = PanicGuard::new(thread.mailbox.clone(), thread.runtime.clone(), fatal);
        while let Ok(work) = work.recv() {
            if let Err(reason) = thread.carry_out(work).and_then(|()| thread.hand_over()) {
                thread.deliver(Mail::Fatal(reason));
            }
            if thread.gone {
                return;
            }
        }
    })
}

struct Thread {
    compute: ShardCompute,
    checkpointing: Checkpointing,
    mailbox: Mailbox<WorkerActor>,
    runtime: Handle,
    in_flight: Arc<Semaphore>,
    gone: bool,
}

impl Thread {
    fn deliver(&mut self, mail: Mail) {
        self.gone |= self.mailbox.deliver_blocking(&self.runtime, mail).is_err();
    }

    /// Hands residuals that are to be kept to the writer, or says that some were skipped.
    fn hand_over(&mut self) -> Result<(), String> {
        while let Some(event) = self.compute.poll_residuals() {
            match event {
                ResidualEvent::Skipped(version) => {
                    let part = ResidualPart { version, shards: Vec::new(), outcome: PartOutcome::Skipped };
                    self.deliver(Mail::Residuals(part));
                }
                ResidualEvent::Ready(snapshot) => {
                    if let Some(writer) = &self.checkpointing.snapshots
                        && writer.try_send(snapshot).is_err()
                    {
                        return Err("a bug in Testudo: two snapshots at once; please report it".into());
                    }
                }
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, work: Work) -> Result<(), String> {
        match work {
            Work::Install { slice, codec, values } => {
                self.compute.install_encoded(slice, codec, values.as_bytes()).map_err(|e| e.to_string())?;
            }
            Work::InstallExact { slice, values } => {
                let view = numbers::view(&values).map_err(|e| e.to_string())?;
                self.compute.install_exact(slice, view);
            }
            Work::Adopt { version } => {
                self.compute.adopt();
                if let Some(values) = self.compute.given() {
                    self.deliver(Mail::Given { version, values });
                }
            }
            Work::Witness(key) => self.compute.witness(&key),
            Work::Compute { step, nodes, place } => {
                if let Some(mut source) = self.checkpointing.source.take() {
                    self.compute.restore_for(step, source.as_mut(), &nodes).map_err(|e| e.to_string())?;
                }
                self.compute.watch(place.map(Watch::new));
                let Thread { compute, mailbox, runtime, in_flight, gone, .. } = self;
                let emit = |event| {
                    let mail = match event {
                        Event::Gradient { step, node, slice, values } => {
                            let Ok(permit) = runtime.block_on(Arc::clone(in_flight).acquire_owned()) else {
                                *gone = true;
                                return;
                            };
                            let values = Values::Gradient(values, permit);
                            Mail::Input(Input::Gradient { step, node, slice, values })
                        }
                        Event::Testimony { step, node, values } => Mail::Testimony { step, node, values },
                        Event::Computed { step, loss, compute_us, pushed } => {
                            Mail::Input(Input::Computed { step, loss, compute_us, pushed })
                        }
                    };
                    *gone |= mailbox.deliver_blocking(runtime, mail).is_err();
                };
                compute.compute(step, &nodes, emit).map_err(|e| e.to_string())?;
            }
            Work::Evaluate(order) => {
                let result = self.compute.evaluate(&order).map_err(|e| e.to_string())?;
                self.deliver(Mail::Input(Input::Evaluated(result)));
            }
            Work::Export(order) => {
                let exported = self.compute.export(&order).map_err(|e| e.to_string())?;
                self.deliver(Mail::Exported(exported));
            }
            Work::Residuals { version, shards } => self.compute.order_residuals(version, shards),
            Work::ResidualsWritten => self.compute.residuals_written(),
        }
        Ok(())
    }
}
