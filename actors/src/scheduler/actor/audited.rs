//! What members tell the audit log: signatures over their contributions and over its head, and whom they refused.
//!
//! 1. A signature is recorded only if it holds under the certificate that the member showed, or told since: the log names each.
//! 2. A worker whose report no signature comes before is sent away: what it did could be denied. Its leases go to the others.
//! 3. What one member can have recorded is bounded: signatures of contributions for each step that is under way or just past,
//!    others by the heads that were shown, new certificates by [`MAX_RENEWALS`], refusals by `refusals.rs`.

use std::collections::BTreeMap;

use testudo_transport::{Cause, Message, Trust, Who, WireError};

use super::SchedulerActor;
use crate::audit::{Base64, Entry, Head, Hex};
use crate::contributions::{self, Digest};
use crate::countersign;
use crate::message::{
    AuditHead, Body, Contributions, Countersigned, HeadName, Member, NewCertificate, RefusalReport,
};

/// Heads that were shown lately: a signature of an older one comes too late to be recorded.
const HEADS: usize = 64;

/// Steps that a worker may be ahead of the last complete one, and some to spare.
const AHEAD: u64 = 8;

/// Steps that a signature may come after its step was complete; an honest one comes before.
const BEHIND: u64 = 16;

/// Signed reports of one worker for each step: one, and those of nodes that it took over.
const REPORTS_A_STEP: u64 = 4;

/// Certificates that a member can go on with: three years of one a day.
const MAX_RENEWALS: u32 = 1024;

/// How much a member has had recorded.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    contributions: Signed,
    /// The step of the last signature, until its report comes.
    signed: Option<u64>,
    renewals: u32,
    /// The record of the last head that it signed.
    head: Option<u64>,
}

/// The signatures over contributions of one member, by step, that were recorded.
#[derive(Clone, Debug, Default)]
struct Signed(BTreeMap<u64, u64>);

impl Signed {
    /// Whether there may be one more for `step`, when `done` steps are complete and the members are those of epoch `epoch`:
    /// each change of the members may give a worker something more to do for the same step.
    fn admits(&self, step: u64, done: u64, epoch: u64) -> bool {
        (done.saturating_sub(BEHIND)..=done.saturating_add(AHEAD)).contains(&step)
            && self.0.get(&step).is_none_or(|count| *count < epoch.max(REPORTS_A_STEP))
    }

    /// There is one more for `step`.
    fn add(&mut self, step: u64, done: u64) {
        *self.0.entry(step).or_default() += 1;
        self.0 = self.0.split_off(&done.saturating_sub(BEHIND));
    }
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
            NewCertificate::KIND => NewCertificate::decode(body)
                .map_err(unreadable)
                .and_then(|told| self.renewed(link, member, told)),
            RefusalReport::KIND => RefusalReport::decode(body)
                .map_err(unreadable)
                .and_then(|told| self.refusals.add(&member.to_string(), told)),
            _ => return None,
        })
    }

    /// From here on, what `member` signs is checked with another certificate, which is its own and good now.
    fn renewed(&mut self, link: u64, member: Member, told: NewCertificate) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&link) else { return Ok(()) };
        let Some(before) = link.certificate() else { return Ok(()) };
        if told.certificate == before {
            return Ok(());
        }
        if link.recorded.renewals >= MAX_RENEWALS {
            return Err("it has had too many certificates".into());
        }
        self.network.check_certificate(&told.certificate, &link.peer)?;
        link.recorded.renewals += 1;
        link.renewed = Some(told.certificate.clone());
        let certificate = Base64(told.certificate);
        self.observer.audit(Entry::Renewed { node: member.to_string(), certificate });
        Ok(())
    }

    fn contributed(&mut self, link: u64, member: Member, told: Contributions) -> Result<(), String> {
        let (done, epoch) = (self.core.steps_done(), self.core.membership_epoch());
        let Some(link) = self.links.get_mut(&link) else { return Ok(()) };
        if !link.recorded.contributions.admits(told.step, done, epoch) {
            return Err("it signs contributions to steps that are not under way, or too often".into());
        }
        let Some(certificate) = link.certificate() else { return Ok(()) };
        let digest = Digest { count: told.count, blake3: told.digest };
        let message = contributions::signed_bytes(told.step, &digest);
        Trust::verify_with(certificate, &message, &told.signature).map_err(|e| e.to_string())?;
        link.recorded.contributions.add(told.step, done);
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
        let Some(certificate) = link.certificate() else { return Ok(()) };
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
        self.joined().for_each(|link| self.tell(link, &AuditHead { head }));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 3, in a run that was resumed at step 1,000.
    #[test]
    fn signatures_are_bounded_for_each_step_under_way_and_past_ones_are_refused() {
        let mut signed = Signed::default();
        let mut take = |step: u64, done: u64, epoch: u64| {
            let admits = signed.admits(step, done, epoch);
            if admits {
                signed.add(step, done);
            }
            (admits, signed.0.len())
        };
        for _ in 0..REPORTS_A_STEP {
            assert!(take(1_000, 1_000, 1).0);
        }
        assert!(!take(1_000, 1_000, 1).0, "a fifth for one step");
        assert!(take(1_000, 1_000, 5).0, "four workers were lost since, and it took over from each");
        for step in [0, 983, 1_009, u64::MAX] {
            assert!(!take(step, 1_000, 1).0, "{step} is not under way");
        }
        let most = (1_000..5_000).map(|done| take(done, done, 1).1).max();
        assert!(most.is_some_and(|most| most as u64 <= BEHIND + AHEAD + 1), "{most:?}");
    }
}
