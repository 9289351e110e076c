//! A scheduler's connections: who opens a stream is heard on it, and told on it what it reads.
//!
//! 1. A peer has one stream; a second is a fault.
//! 2. What waits for a peer is bounded by [`order_bytes`]; one that does not read is cut off.

use testudo_transport::{Cause, CloseCode, Connection};
use tokio::runtime::Handle;

use super::{Mail, SchedulerActor};
use crate::hear::hear;
use crate::job::JobSpec;
use crate::link::Network;
use crate::mailbox::Mailbox;
use crate::outbox::{Budget, Outbox};

/// Orders that may wait for one member: it reads them as they come, and a member that does not is cut off.
const MAX_ORDERS: usize = 1024;

/// Bytes of orders that may wait for one peer of a scheduler with so many workers and servers, and so many logical shards: what
/// is said often, and eight lists of everybody.
#[must_use]
pub const fn order_bytes(members: u64, shards: u64) -> u64 {
    (1 << 20) + 8 * (256 * members + 32 * shards)
}

/// [`order_bytes`] for the members of `job`.
pub(super) fn orders_of(job: &JobSpec) -> usize {
    let members = u64::from(job.most_workers()) + u64::from(job.servers);
    usize::try_from(order_bytes(members, u64::from(job.logical_shards))).unwrap_or(usize::MAX)
}

/// Where peers come in.
#[derive(Clone)]
pub(super) struct Doors {
    pub(super) network: Network,
    pub(super) mailbox: Mailbox<SchedulerActor>,
    pub(super) runtime: Handle,
    /// Bytes that may wait for one peer.
    pub(super) most: usize,
}

impl Doors {
    /// Until the network is closed.
    pub(super) async fn run(self) {
        let mut link = 0;
        while let Some(connection) = self.network.accept().await {
            link += 1;
            self.runtime.spawn(self.clone().serve(connection, link));
        }
    }

    /// A peer of the scheduler has one stream, which it opens.
    async fn serve(self, connection: Connection, link: u64) {
        let Ok((sender, receiver)) = connection.accept().await else { return };
        let budget = Budget::new(MAX_ORDERS, self.most);
        let outbox = Outbox::new(connection.clone(), sender, budget, &self.runtime);
        let (peer, watched) = (connection.peer().clone(), connection.clone());
        if self.mailbox.deliver(Mail::Opened { link, peer, connection, outbox }).await.is_err() {
            return;
        }
        let heard = hear(receiver, self.mailbox, |heard| match heard {
            Ok(message) => Mail::Said { link, message: Box::new(message) },
            Err(reason) => Mail::Gone { link, reason },
        });
        tokio::pin!(heard);
        tokio::select! {
            () = &mut heard => return,
            second = watched.accept() => if second.is_ok() {
                watched.blame(Cause::Flood, CloseCode::Policy, "opens a second stream to the scheduler, which hears one");
            },
        }
        drop(watched);
        heard.await;
    }
}
