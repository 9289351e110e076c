//! What members tell the audit log: signatures over their contributions and over its head, and whom they refused.
//!
//! 1. A signature is recorded only if it holds under the certificate that the member showed.
//! 2. A worker whose report no signature comes before is sent away: what it did could be denied. Its leases go to the others.
//! 3. What one member can have recorded is bounded: signatures by the steps that were taken and the heads that were shown,
//!    refusals by `refusals.rs`.

use testudo_transport::{Cause, Message, Trust, Who, WireError};

use super::SchedulerActor;
use crate::audit::{Base64, Entry, Head, Hex};
use crate::contributions::{self, Digest};
use crate::countersign;
use crate::message::{AuditHead, Body, Contributions, Countersigned, HeadName, Member, RefusalReport};

/// Heads that were shown lately: a signature of an older one comes too late to be recorded.
const HEADS: usize = 64;

/// Steps that a worker may be ahead of the last complete one, and some to spare.
const AHEAD: u64 = 8;

/// Signed reports of one worker for each step: one, and those of nodes that it took over.
const REPORTS_A_STEP: u64 = 4;

/// How much a member has had recorded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recorded {
    contributions: u64,
    /// The step of the last signature, until its report comes.
    signed: Option<u64>,
    /// The record of the last head that it signed.
    head: Option<u64>,
}

impl SchedulerActor {
    /// Takes what is meant for the audit log; `None` if `message` is not.
    pub(super) fn audited(
        &mut self,
        link: u64,
        member: Member,
        message: &Message,
    ) -> Option<Result<(), String>> {
        let unreadable = |e: WireError| e.to_string();
        let body = message.body.as_slice();
        Some(match message.kind {
            Contributions::KIND => Contributions::decode(body)
                .map_err(unreadable)
                .and_then(|told| self.contributed(link, member, told)),
            Countersigned::KIND => Countersigned::decode(body)
                .map_err(unreadable)
                .and_then(|told| self.countersigned(link, member, told)),
            RefusalReport::KIND => RefusalReport::decode(body)
                .map_err(unreadable)
                .and_then(|told| self.refusals.add(&member.to_string(), told)),
            _ => return None,
        })
    }

    fn contributed(&mut self, link: u64, member: Member, told: Contributions) -> Result<(), String> {
        let done = self.core.steps_done();
        let Some(link) = self.links.get_mut(&link) else { return Ok(()) };
        let Some(certificate) = link.connection.peer_certificate() else { return Ok(()) };
        let recorded = link.recorded.contributions;
        if told.step > done + AHEAD || recorded >= (done + AHEAD) * REPORTS_A_STEP {
            return Err("it signs contributions to more steps than there are".into());
        }
        let digest = Digest { count: told.count, blake3: told.digest };
        let message = contributions::signed_bytes(told.step, &digest);
        Trust::verify_with(certificate, &message, &told.signature).map_err(|e| e.to_string())?;
        link.recorded.contributions += 1;
        link.recorded.signed = Some(told.step);
        self.observer.audit(Entry::Contributions {
            node: member.to_string(),
            step: told.step,
            count: told.count,
            digest: Hex(told.digest),
            signature: Base64(told.signature),
        });
        Ok(())
    }

    /// Why the worker on that link may not report `step`: it has not signed (invariant 2). Over memory there are no certificates,
    /// and nothing is signed.
    pub(super) fn unsigned(&mut self, link: u64, step: u64) -> Option<String> {
        let link = self.links.get_mut(&link)?;
        link.connection.peer_certificate()?;
        if link.recorded.signed.take() == Some(step) {
            return None;
        }
        let who = Who::node(&link.peer);
        let reason = format!("it reported step {step} without signing what it contributed");
        if let Some(left_out) = self.network.refusals().count(Cause::Unsigned, who) {
            tracing::warn!(peer = %link.peer, reason, left_out, "sent away");
        }
        Some(reason)
    }

    fn countersigned(&mut self, link: u64, member: Member, told: Countersigned) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&link) else { return Ok(()) };
        let Some(certificate) = link.connection.peer_certificate() else { return Ok(()) };
        let is_next = link.recorded.head.is_none_or(|last| last < told.head.record);
        if !is_next || !self.heads.contains(&told.head) {
            return Err("it signs a head of the audit log that it was not shown".into());
        }
        let message = countersign::signed_bytes(&told.head, told.before.as_ref());
        Trust::verify_with(certificate, &message, &told.signature).map_err(|e| e.to_string())?;
        link.recorded.head = Some(told.head.record);
        self.observer.audit(Entry::Countersignature {
            node: member.to_string(),
            record: told.head.record,
            head: Hex(told.head.hash),
            before: told.before.map(|b| Head { record: b.record, hash: Hex(b.hash) }),
            signature: Base64(told.signature),
        });
        Ok(())
    }

    /// Shows every member the head of the log, if `steps` steps are the time for that.
    pub(super) fn show_head(&mut self, steps: u64) {
        let every = self.countersign_every;
        if every == 0 || !steps.is_multiple_of(every) {
            return;
        }
        let Some(Head { record, hash }) = self.observer.audit_head() else { return };
        let head = HeadName { record, hash: hash.0 };
        // Nothing was recorded since the last time: nodes have signed that.
        if self.heads.back().is_some_and(|last| last.record >= record) {
            return;
        }
        self.heads.push_back(head);
        if self.heads.len() > HEADS {
            self.heads.pop_front();
        }
        let speaks = |(number, link): (&u64, &super::Link)| {
            super::member_of(&link.peer).filter(|m| self.core.speaks_for(number, *m)).map(|_| *number)
        };
        for link in self.links.iter().filter_map(speaks).collect::<Vec<u64>>() {
            self.tell(link, &AuditHead { head });
        }
    }

    /// Records refusals that are due, or at the end of the run all that are left; this node's own too.
    pub(super) fn record_refusals(&mut self, at_the_end: bool) {
        let name = self.network.id().short().to_owned();
        let own = self.network.refusal_report().map_or(Ok(()), |report| self.refusals.add(&name, report));
        if let Err(error) = own {
            tracing::error!(error, "a bug in Testudo; please report it");
        }
        let entries = match at_the_end {
            true => self.refusals.all(),
            false => self.refusals.due(self.clock.now()),
        };
        for entry in entries {
            self.observer.audit(entry);
        }
    }
}
