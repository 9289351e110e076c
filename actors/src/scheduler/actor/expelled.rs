//! Servers that the scheduler itself has hung up on, for what they did or because their certificate was revoked, and those that have
//! hung up on a scheduler whose own was: the core is told so before it hears that they are gone, and before it hears from workers that
//! they cannot be reached.

use actix::Context;
use testudo_transport::{CloseCode, Error};

use super::{Link, SchedulerActor, member_of};
use crate::message::{Member, MemberRole};
use crate::scheduler::Input;

impl SchedulerActor {
    /// Tells the core if the peer of that connection is a server that was hung up on.
    pub(super) fn expel(&mut self, context: &mut Context<Self>, number: u64) {
        let Some(link) = self.links.get(&number) else { return };
        let server = member_of(&link.peer).filter(|member| member.role == MemberRole::Server);
        let Some((member, reason)) = server.zip(self.why_expelled(link)) else { return };
        self.drive(context, Input::Expelled { member, connection: number, reason });
    }

    /// The same of that server, by its index.
    pub(super) fn expel_server(&mut self, context: &mut Context<Self>, index: u32) {
        let server = Some(Member { role: MemberRole::Server, index });
        let links = self.links.iter().filter(|(_, link)| member_of(&link.peer) == server);
        let links: Vec<u64> = links.map(|(number, _)| *number).collect();
        links.into_iter().for_each(|number| self.expel(context, number));
    }

    /// Why one of the two has hung up on the other for good; `None` if neither has, or only because the peer did not read or is not there.
    fn why_expelled(&self, link: &Link) -> Option<String> {
        if link.certificate().is_some_and(|der| self.network.is_revoked(der, &link.peer)) {
            return Some("its certificate is revoked".into());
        }
        let for_cause = [CloseCode::Framing, CloseCode::Untrusted].map(CloseCode::number);
        match link.connection.ended()? {
            Error::Peer { fault, .. } if fault.code() != CloseCode::Stalled => Some(fault.to_string()),
            Error::Closed { by_peer: false, code, reason, .. } if for_cause.contains(&code) => {
                Some(reason.to_string())
            }
            Error::Closed { by_peer: true, code, reason, .. } if code == CloseCode::Untrusted.number() => {
                Some(format!("it trusts this scheduler no longer: {reason}"))
            }
            _ => None,
        }
    }
}
