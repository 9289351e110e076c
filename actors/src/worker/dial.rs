//! How a worker gets at a server: one connection, a lane of streams each way, and somebody who listens.
//!
//! A server is dialled with the patience that the scheduler is dialled with: it has just joined, and its name may take a while to be
//! known everywhere. Who is dismissed meanwhile, because a server is lost or for any other reason, does not wait for that.

use testudo_transport::{Class, Outgoing};
use tokio::runtime::Handle;

use super::actor::{Mail, SLICES_IN_FLIGHT, WorkerActor};
use crate::hear::hear;
use crate::incarnation::Secret;
use crate::link::Network;
use crate::mailbox::Mailbox;
use crate::message::{Body, Hello, ServerMember};
use crate::outbox::{Budget, Outbox};

/// Connects one server and hears it.
pub(super) struct Dialling {
    pub(super) network: Network,
    pub(super) secret: Secret,
    pub(super) mailbox: Mailbox<WorkerActor>,
    pub(super) runtime: Handle,
    pub(super) server: ServerMember,
    pub(super) slices: usize,
    pub(super) lanes: u32,
    /// The run's trace.
    pub(super) trace: Option<testudo_transport::message::Traceparent>,
}

impl Dialling {
    pub(super) async fn run(self, id: testudo_transport::SpiffeId) {
        let server = self.server.index;
        if let Err(why) = self.dial(&id).await {
            let _ = self.mailbox.deliver(Mail::ServerGone { server, why }).await;
        }
    }

    async fn dial(&self, id: &testudo_transport::SpiffeId) -> Result<(), String> {
        let server = self.server.index;
        let connection = self.network.connect_patiently(&self.server.address, id).await?;
        let mut lanes = Vec::new();
        // A pull of every slice, and the gradients under way, which have a bound of their own.
        let budget = Budget::messages(self.slices * 2 + SLICES_IN_FLIGHT + 64);
        for lane in 0..self.lanes {
            let priority = i32::try_from(self.lanes - lane).unwrap_or(i32::MAX);
            let (mut sender, receiver) =
                connection.open(Class::Data, priority).await.map_err(|e| e.to_string())?;
            if lane == 0 {
                let hello = Outgoing::new(Hello::KIND, 0, self.secret.hello().encode());
                let hello = hello.with_traceparent(self.trace);
                sender.send(hello).await.map_err(|e| e.to_string())?;
            }
            let outbox = Outbox::new(connection.clone(), sender, budget.clone(), &self.runtime);
            lanes.push(outbox);
            self.runtime.spawn(hear(receiver, self.mailbox.clone(), move |heard| match heard {
                Ok(message) => Mail::Answer { server, message },
                Err(why) => Mail::ServerGone { server, why },
            }));
        }
        self.mailbox.deliver(Mail::Connected { server, connection, lanes }).await.map_err(|e| e.to_string())
    }
}
