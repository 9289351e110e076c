//! The parameters' hashes: what servers tell, and what the last one must be.

use super::{Effect, LEASED_AHEAD, SchedulerCore, ToMember};
use crate::audit::Hex;
use crate::message::{HashOrder, Member, MemberRole, ParameterPieces, Phase};
use crate::time::Time;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    pub(super) fn pieces(&mut self, now: Time, server: u32, told: ParameterPieces) {
        let member = Member { role: MemberRole::Server, index: server };
        if self.hear(now, member).is_none() || self.outcome.is_some() {
            return;
        }
        // A slice is never further than the steps that may have been begun.
        let ahead = self.progress.completed().saturating_add(LEASED_AHEAD);
        let tells = !told.pieces.is_empty();
        match self.parameters.tell(server, told, ahead) {
            Ok(None) => {}
            Ok(Some((version, params_blake3))) => {
                self.effects.push_back(Effect::Parameters { version, params_blake3 });
            }
            Err(what) => return self.fail(format!("{member} misbehaved: {what}")),
        }
        if tells {
            self.last_progress = now;
        }
        // Training may have waited for this.
        self.extend();
        self.finish();
    }

    /// Which servers withhold hashes that training waits for, and which.
    pub(super) fn withheld(&self) -> Option<String> {
        let step = self.parameters.withheld().filter(|_| self.phase == Phase::Training)?;
        Some(format!("{} to hash its parameters at step {step}", self.owing(step)))
    }

    /// The servers that owe the hash at `step`, by name.
    pub(super) fn owing(&self, step: u64) -> String {
        let owing = self.parameters.owing(step).into_iter();
        owing.map(|server| format!("server/{server}")).collect::<Vec<_>>().join(", ")
    }

    /// The last step is complete: its hash is wanted whenever it is.
    pub(super) fn order_hash(&mut self) {
        let version = self.progress.completed();
        if self.parameters.order(version) {
            self.send_all(MemberRole::Server, &ToMember::Hash(HashOrder { version }));
        }
    }
}

/// What is wrong if the servers keep one thing and the worker that exports the model has another.
pub(super) fn differ(kept: [u8; 32], exported: [u8; 32]) -> Option<String> {
    (kept != exported).then(|| {
        format!(
            "the final model is not what the servers keep: its parameters have the BLAKE3 hash {}, as the worker says that \
             exports it, and theirs {}",
            Hex(exported),
            Hex(kept)
        )
    })
}
