//! Who may join.

use super::{MAX_QUOTED, SchedulerCore};
use crate::audit::printable;
use crate::job::Determinism;
use crate::message::{Join, JoinRefused, Member, MemberRole, Outcome, Phase};
use crate::time::Time;

/// Bytes of a server's address at most: a DNS name and a port.
const MAX_ADDRESS: usize = 300;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// Why `member` may not join, if it may not.
    pub(super) fn judge(&self, now: Time, member: Member, join: &Join) -> Result<(), JoinRefused> {
        let forming = self.phase == Phase::Forming && self.epoch == 0;
        let count = match member.role {
            MemberRole::Server => self.job.servers,
            MemberRole::Worker if forming => self.job.workers,
            MemberRole::Worker => self.admitted(),
        };
        if self.outcome.is_some() {
            // Without a server that was lost, another life of the job may be about to begin.
            let transient = matches!(self.outcome, Some(Outcome::ServerLost(_)));
            return Err(JoinRefused { reason: "the run is over".into(), transient });
        }
        if self.members.contains_key(&member) {
            // Its former process may be the one, and not be missed yet.
            let reason = format!("{member} takes part already: one identity, one node");
            return Err(JoinRefused { reason, transient: true });
        }
        if !forming && member.role == MemberRole::Server {
            return lasting(
                "the job is under way, and what a server keeps cannot be had again: it takes no new servers",
            );
        }
        if member.index >= count {
            return lasting(format!("the job admits {count} of that role, numbered from 0"));
        }
        // What is left of the run is for those who contributed to it, unless nobody is left to end it.
        if self.phase == Phase::Finishing && !self.remaining().is_empty() {
            return lasting(
                "the last step is complete, and the workers that are there end the run: it needs no more",
            );
        }
        self.returning.admits(now, member)?;
        if join.release != self.release {
            return lasting(format!(
                "it runs release {}, the scheduler runs {}: install the same release on every node",
                printable(&join.release, MAX_QUOTED),
                self.release
            ));
        }
        if member.role == MemberRole::Server
            && !join.address.as_ref().is_some_and(|a| (1..=MAX_ADDRESS).contains(&a.len()))
        {
            return lasting(format!(
                "a server must say where workers can dial it, in {MAX_ADDRESS} bytes at most"
            ));
        }
        if self.job.determinism == Determinism::Strict
            && let Some((first, fingerprint)) = &self.fingerprint
            && *fingerprint != join.fingerprint
        {
            return lasting(format!(
                "its arithmetic ({}) differs from that of {first} ({}), so bits would differ: use equal machines, or \
                 set training.determinism = \"relaxed\"",
                printable(&join.fingerprint, MAX_QUOTED),
                printable(fingerprint, MAX_QUOTED)
            ));
        }
        Ok(())
    }
}

/// What stays wrong however often the node asks.
fn lasting(reason: impl Into<String>) -> Result<(), JoinRefused> {
    Err(JoinRefused { reason: reason.into(), transient: false })
}
