//! The simulator's workers live and die, and come back: each life is a process of its own, with links of its own.

use testudo_actors::message::{Join, JoinRefused, Member, MemberRole};
use testudo_actors::scheduler::Input as SchedulerInput;

use super::worker::Worker;
use super::{Simulation, Wire};

impl Simulation {
    pub(super) fn join(&mut self, member: Member, life: u64) {
        let address =
            (member.role == MemberRole::Server).then(|| format!("127.0.0.1:{}", 1000 + member.index));
        let join =
            Join { release: "1".into(), fingerprint: "sim".into(), address, commitment: [life as u8; 32] };
        let wire = Wire::ToScheduler(SchedulerInput::Join { member, connection: (member, life), join });
        self.post(format!("{}>scheduler", name(member, life)), wire);
    }

    /// A number below `bound`, of the seed's choosing.
    pub fn choose(&mut self, bound: usize) -> usize {
        self.choice.below(bound)
    }

    /// A worker that was killed, or one more, starts and asks to take part.
    pub fn start(&mut self, worker: u32) {
        let at = worker as usize;
        while self.workers.len() <= at {
            let mut next = (self.make)(self.workers.len() as u32);
            (next.alive, next.life) = (false, 0);
            self.workers.push(next);
        }
        let life = self.workers[at].life + 1;
        // By then the checkpoint that the job resumed from is deleted.
        let restored = (!self.restored.is_empty()).then(Vec::new);
        self.workers[at] = Worker { life, restored, ..(self.make)(worker) };
        self.join(Member { role: MemberRole::Worker, index: worker }, life);
    }

    /// Kills a worker: what it has sent may still arrive up to a point of the seed's choosing on each link.
    pub fn kill(&mut self, worker: u32) {
        let node = &mut self.workers[worker as usize];
        node.alive = false;
        node.work.clear();
        node.events.clear();
        node.writing = None;
        let (member, life) = (Member { role: MemberRole::Worker, index: worker }, node.life);
        let own = format!("{}>", name(member, life));
        let names: Vec<String> = self.links.keys().filter(|n| n.starts_with(&own)).cloned().collect();
        for name in names {
            let len = self.links[&name].len();
            let kept = self.choice.below(len + 1);
            self.links.get_mut(&name).unwrap().truncate(kept);
        }
        let gone = SchedulerInput::Gone { member, connection: (member, life), reason: "killed".into() };
        self.post(format!("{own}scheduler"), Wire::ToScheduler(gone));
    }

    /// A worker that comes back before its death is known asks again; others that are not let in end.
    pub(super) fn turn_away(&mut self, member: Member, life: u64, refused: JoinRefused) {
        let JoinRefused { reason, transient } = refused;
        assert!(member.role == MemberRole::Worker && life > 0, "{member} was refused: {reason}");
        if self.workers[member.index as usize].life != life {
            return;
        }
        if transient {
            return self.join(member, life);
        }
        self.workers[member.index as usize].alive = false;
        self.turned_away.push((member.index, reason));
    }
}

/// A member's name in links: of each life its own.
pub(super) fn name(member: Member, life: u64) -> String {
    if life == 0 { member.to_string() } else { format!("{member}'{life}") }
}
