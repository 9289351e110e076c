//! What a worker hears: servers' answers to what it asked, and the scheduler's orders.

use actix::Context;
use testudo_observability::{Span, set_remote_parent};
use testudo_transport::Message;

use super::{Values, WorkerActor};
use crate::active::Active;
use crate::message::{
    AuditHead, Body, Evaluate, Export, LeaseExtended, Membership, PullRefused, PushAccepted, PushRefused,
    ResidualOrder, Revocations, Shutdown, SliceVersion, Witnessed,
};
use crate::node::dismissed;
use crate::placement::SliceId;
use crate::tree::Node;
use crate::worker::Input;
use crate::worker::thread::Work;

/// What was asked of a server.
#[derive(Debug)]
pub(super) enum Asked {
    Push { step: u64, node: Node, slice: SliceId },
    Pull { slice: SliceId, version: u64 },
}

/// A request that has no answer yet.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) server: u32,
    pub(super) asked: Asked,
    /// As it is shown in the trace of its step, if that is traced; ends with the answer.
    pub(super) span: Option<Box<Span>>,
    /// Counted until it is answered.
    pub(super) _active: Active,
}

impl WorkerActor {
    /// A server's answer, for the core.
    pub(super) fn answer(
        &mut self,
        context: &mut Context<Self>,
        server: u32,
        message: Message,
    ) -> Result<(), String> {
        let request = message.envelope.request;
        // Only the server that was asked may answer: each is trusted with its own slices alone.
        let (asked, mut span) = match self.asked.remove(&request) {
            Some(Request { server: of, asked, span, .. }) if of == server => (asked, span),
            _ => return Err("an answer to a request that was never made of it".into()),
        };
        if let (PushRefused::KIND | PullRefused::KIND, Some(span)) = (message.kind, &mut span) {
            span.fail("refused");
        }
        drop(span);
        let unreadable = |e: testudo_transport::WireError| e.to_string();
        let input = match (message.kind, asked) {
            (PushAccepted::KIND, Asked::Push { step, node, slice }) => {
                PushAccepted::decode(&message.body).map_err(unreadable)?;
                Input::Accepted { step, node, slice }
            }
            (PushRefused::KIND, Asked::Push { step, node, slice }) => {
                let reason = PushRefused::decode(&message.body).map_err(unreadable)?.reason;
                Input::Refused { step, node, slice, reason }
            }
            (SliceVersion::KIND, Asked::Pull { slice, version }) => {
                let answer = SliceVersion::decode(&message.body).map_err(unreadable)?;
                if (answer.slice, answer.version) != (slice, version) {
                    return Err(format!("version {version} of {slice} was asked for, another came"));
                }
                let bytes = message.payload.len() as u64;
                let values = Values::Arrived(message.payload);
                Input::Slice { slice, version, codec: answer.codec, values, bytes }
            }
            (PullRefused::KIND, Asked::Pull { slice, version }) => {
                let reason = PullRefused::decode(&message.body).map_err(unreadable)?.reason;
                Input::PullRefused { slice, version, reason }
            }
            (kind, asked) => return Err(format!("kind {kind} is no answer to {asked:?}")),
        };
        self.drive(context, input);
        Ok(())
    }

    /// The scheduler's order.
    pub(super) fn order(&mut self, context: &mut Context<Self>, message: &Message) -> Result<(), String> {
        let unreadable = |e: testudo_transport::WireError| e.to_string();
        let input = match message.kind {
            Membership::KIND => {
                let membership = Membership::decode(&message.body).map_err(unreadable)?;
                tracing::info!(epoch = membership.epoch, leases = membership.leases.len(), "membership");
                if let Some(run) = message.envelope.traceparent
                    && self.traced.tell(run)
                {
                    self.step = tracing::info_span!(parent: None, "begin");
                    let _ = set_remote_parent(&self.step, run);
                }
                Input::Membership(membership)
            }
            LeaseExtended::KIND => {
                let LeaseExtended { epoch, until } =
                    LeaseExtended::decode(&message.body).map_err(unreadable)?;
                Input::Extended { epoch, until }
            }
            Witnessed::KIND => {
                let Witnessed { key } = Witnessed::decode(&message.body).map_err(unreadable)?;
                self.work(context, Work::Witness(key));
                return Ok(());
            }
            ResidualOrder::KIND => {
                let ResidualOrder { version, shards } =
                    ResidualOrder::decode(&message.body).map_err(unreadable)?;
                self.work(context, Work::Residuals { version, shards });
                return Ok(());
            }
            Evaluate::KIND => Input::Evaluate(Evaluate::decode(&message.body).map_err(unreadable)?),
            Export::KIND => Input::Export(Export::decode(&message.body).map_err(unreadable)?),
            Revocations::KIND => return crate::revoke::passed_on(&self.network, &message.body),
            AuditHead::KIND => {
                let shown = AuditHead::decode(&message.body).map_err(unreadable)?;
                let (renewed, signed) = self.countersigner.sign(&mut self.signer, &shown)?;
                renewed.iter().for_each(|renewed| self.tell(renewed));
                self.tell(&signed);
                return Ok(());
            }
            Shutdown::KIND => {
                let shutdown = Shutdown::decode(&message.body).map_err(unreadable)?;
                self.end(context, dismissed(shutdown));
                return Ok(());
            }
            other => return Err(format!("kind {other} makes no sense to a worker")),
        };
        self.drive(context, input);
        Ok(())
    }
}
