//! The server's compute thread: arithmetic behind a queue, results by mail.
//!
//! The queue needs no bound of its own: what waits in it are initialisation and accepted contributions, of which there is
//! at most one for each (tree node, slice, step), and whose payloads stay charged to their sender's credit until the
//! thread takes them.

use std::sync::mpsc;

use testudo_transport::Payload;
use tokio::runtime::Handle;

use crate::compute_thread::{PANICKED, PanicGuard};
use crate::mailbox::Mailbox;
use crate::numbers;
use crate::placement::SliceId;
use crate::server::actor::{Mail, ServerActor};
use crate::server::{Contribution, Input, MathError, SliceMath};
use crate::tree::Node;

/// Work for the thread.
pub(super) enum Work {
    Initialise,
    Store { slice: SliceId, step: u64, node: Node, values: Payload },
}

/// Starts the thread. It ends when `work`'s sender is dropped or the actor is gone.
pub(super) fn start(
    mut math: SliceMath,
    work: mpsc::Receiver<Work>,
    mailbox: Mailbox<ServerActor>,
    runtime: Handle,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("compute".into()).spawn(move || {
        let fatal = Mail::Fatal(PANICKED.into());
        let _guard = PanicGuard::new(mailbox.clone(), runtime.clone(), fatal);
        while let Ok(work) = work.recv() {
            let mail = match work {
                Work::Initialise => {
                    math.initialise();
                    Mail::Input(Input::Initialised)
                }
                Work::Store { slice, step, node, values } => store(&mut math, slice, step, node, values),
            };
            if mailbox.deliver_blocking(&runtime, mail).is_err() {
                return;
            }
        }
    })
}

fn store(math: &mut SliceMath, slice: SliceId, step: u64, node: Node, values: Payload) -> Mail {
    let values = match numbers::take(values) {
        Ok(values) => values,
        Err(error) => return Mail::Fatal(error.to_string()),
    };
    match math.contribute(Contribution { slice, step, node, values }) {
        Ok(version) => Mail::Input(Input::Stored { slice, step, node, version }),
        Err(MathError::NotFinite(element)) => Mail::Input(Input::NotFinite { slice, step, node, element }),
        Err(error) => Mail::Fatal(error.to_string()),
    }
}
