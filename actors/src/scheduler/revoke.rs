//! The scheduler's part in revocation: it takes an operator's list, and passes it on.

use testudo_transport::Role;

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
        let members = self.pass_on(&Revocations { crl });
        Ok(format!(
            "list {} is in force, with {} revoked, and was passed on to {members} node{}",
            installed.number,
            installed.revoked,
            if members == 1 { "" } else { "s" }
        ))
    }

    fn pass_on(&self, list: &Revocations) -> usize {
        let members = self.peers().filter(|(_, peer)| matches!(peer.role(), Role::Server | Role::Worker));
        members.map(|(link, _)| self.tell(link, list)).count()
    }

    /// What a node that joins must know before it speaks with others.
    pub(super) fn pass_on_to(&self, link: u64) {
        let crl = self.network().crls();
        if !crl.is_empty() {
            self.tell(link, &Revocations { crl });
        }
    }
}
