//! The scheduler's part in revocation: it takes an operator's list, and passes it on; so it does with what its endpoint has taken
//! from the file that it follows.

use std::sync::Arc;

use testudo_transport::Crl;

use super::actor::SchedulerActor;
use crate::audit::{Entry, Hex};
use crate::message::Revocations;

impl SchedulerActor {
    /// Puts `crl` in force here, which closes the connections of those in it, and passes it on to every member.
    pub(super) fn revoke(&mut self, crl: Vec<u8>) -> Result<String, String> {
        let installed = self.network().install_crl(&crl)?;
        self.record(Entry::Revocation {
            list: installed.number.to_string(),
            revoked: installed.revoked as u64,
            crl_blake3: Hex::hash(&crl),
        });
        *self.passed_on() = self.network().crls();
        let members = self.pass_on(&Revocations { crl });
        Ok(format!(
            "list {} is in force, with {} revoked, and was passed on to {members} node{}",
            installed.number,
            installed.revoked,
            if members == 1 { "" } else { "s" }
        ))
    }

    fn pass_on(&self, list: &Revocations) -> usize {
        self.joined().map(|link| self.tell(link, list)).count()
    }

    /// What a node that joins must know before it speaks with others.
    pub(super) fn pass_on_to(&self, link: u64) {
        let lists = self.network().crls();
        if !lists.is_empty() {
            self.tell(link, &in_one(&lists));
        }
    }

    /// Tells the members of lists that are new here, and that no operator handed in.
    pub(super) fn pass_on_new_lists(&mut self) {
        let lists = self.network().crls();
        let are_the_same = |passed: &[Arc<Crl>]| {
            passed.len() == lists.len()
                && passed.iter().zip(&lists).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        if are_the_same(self.passed_on()) {
            return;
        }
        let members = self.pass_on(&in_one(&lists));
        tracing::info!(lists = lists.len(), members, "lists of revoked certificates were passed on");
        *self.passed_on() = lists;
    }
}

/// Lists as one message has them: in DER, one after the other.
fn in_one(lists: &[Arc<Crl>]) -> Revocations {
    Revocations { crl: lists.iter().flat_map(|crl| crl.der()).copied().collect() }
}
