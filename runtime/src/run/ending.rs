//! How nodes end, and which of them is behind a run's failure.
//!
//! 1. Where the scheduler could not say what the run came to, but ended by itself, that is the end, and no death: a run that is over
//!    is not begun again, and one that has failed would fail again.
//! 2. Otherwise a server that died is behind it, before a scheduler that lost that server; and a scheduler that was killed before
//!    servers that lost it.

use std::time::Duration;

use testudo_actors::message::{Member, MemberRole, Outcome};
use testudo_actors::operator::Reports;
use testudo_transport::Role;

use super::begin::end;
use crate::error::{Failure, Status};
use crate::launch::{NodeProcess, Nodes};

/// How long a dead node is looked for when a run has failed: its process ends within this if it does.
const EXPLANATION: Duration = Duration::from_millis(500);
/// How long a scheduler that is not heard any more may take to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a node ended.
pub(super) struct Ending {
    /// What it was to the run; nothing for the scheduler.
    pub(super) member: Option<Member>,
    pub(super) how: String,
    pub(super) in_order: bool,
    /// Its exit status, unless a signal ended it.
    code: Option<i32>,
    pub(super) failure: Failure,
}

impl Ending {
    pub(super) fn of(node: &NodeProcess) -> Ending {
        let how = node.exit().unwrap_or_default();
        let member = match node.role {
            // What a peer's server keeps is what the run cannot do without.
            Role::Server | Role::Peer => Some(MemberRole::Server),
            Role::Worker => Some(MemberRole::Worker),
            _ => None,
        };
        let failure = match member {
            None if node.succeeded() => {
                node.failure("has ended in order, and this process has not heard what the run came to")
            }
            _ => node.failure(&format!("ended before the run was over: {how}")),
        };
        let member = member.map(|role| Member { role, index: node.index });
        Ending { member, in_order: node.succeeded(), code: node.code(), how, failure }
    }

    fn is_of_a_worker(&self) -> bool {
        self.member.is_some_and(|member| member.role == MemberRole::Worker)
    }
}

/// The dead node behind a failure that the scheduler tells, if one turns up at once. A scheduler that could still speak ends with the
/// reason it gave.
pub(super) async fn behind(nodes: &mut Nodes, reason: String) -> Failure {
    let dead = tokio::time::timeout(EXPLANATION, async {
        loop {
            let ending = Ending::of(nodes.ended().await);
            if !(ending.in_order || ending.is_of_a_worker()) {
                return ending;
            }
        }
    });
    match dead.await {
        Ok(ending) if ending.member.is_some() => ending.failure.died(),
        _ => Failure::failed(reason),
    }
}

/// What the run came to, as a scheduler has said that has ended: its last report may still be on its way.
pub(super) async fn last_words(reports: &mut Reports) -> Option<Outcome> {
    tokio::time::timeout(EXPLANATION, end(reports)).await.ok()?.ok()?.outcome
}

/// Why the scheduler is not heard any more, by its end, if it has ended, and by the nodes that end.
pub(super) async fn unheard(nodes: &mut Nodes, scheduler: Option<Ending>, reason: String) -> Failure {
    let wait = match &scheduler {
        None => LAST_WORDS,
        // A server that it lost may turn up.
        Some(scheduler) if scheduler.code == Some(lost_server()) => EXPLANATION,
        Some(_) => Duration::ZERO,
    };
    let mut server = None;
    let awaited = tokio::time::timeout(wait, async {
        loop {
            let ending = Ending::of(nodes.ended().await);
            match ending.member {
                None => return ending,
                _ if ending.in_order || ending.is_of_a_worker() => {}
                Some(_) => server = server.take().or(Some(ending)),
            }
        }
    });
    let awaited = awaited.await.ok();
    blamed(scheduler.or(awaited), server, reason)
}

/// Invariants 1 and 2.
fn blamed(scheduler: Option<Ending>, server: Option<Ending>, reason: String) -> Failure {
    match (scheduler, server) {
        (Some(scheduler), server) if scheduler.code == Some(lost_server()) => {
            server.unwrap_or(scheduler).failure.died()
        }
        (Some(scheduler), _) if scheduler.code.is_some() => scheduler.failure,
        (Some(dead), _) | (None, Some(dead)) => dead.failure.died(),
        (None, None) => Failure::failed(reason).died(),
    }
}

fn lost_server() -> i32 {
    i32::from(Status::LostServer.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, code: Option<i32>) -> Option<Ending> {
        let member = (name != "scheduler").then_some(Member { role: MemberRole::Server, index: 0 });
        Some(Ending { member, how: String::new(), in_order: false, code, failure: Failure::failed(name) })
    }

    fn blames(scheduler: Option<Ending>, server: Option<Ending>) -> (String, Status) {
        let Failure { message, status } = blamed(scheduler, server, "nobody".into());
        (message, status)
    }

    /// Invariant 1.
    #[test]
    fn a_scheduler_that_ended_by_itself_has_not_died() {
        for code in [0, 1, 2, 101] {
            for server in [None, ended("server", Some(1)), ended("server", None)] {
                assert_eq!(
                    blames(ended("scheduler", Some(code)), server),
                    ("scheduler".into(), Status::Failed)
                );
            }
        }
    }

    /// Invariant 2.
    #[test]
    fn who_died_first_is_to_blame() {
        let (killed, lost) = (|name| ended(name, None), |name| ended(name, Some(1)));
        assert_eq!(blames(ended("scheduler", Some(5)), killed("server")), ("server".into(), Status::Died));
        assert_eq!(blames(ended("scheduler", Some(5)), None), ("scheduler".into(), Status::Died));
        assert_eq!(blames(killed("scheduler"), lost("server")), ("scheduler".into(), Status::Died));
        assert_eq!(blames(killed("scheduler"), None), ("scheduler".into(), Status::Died));
        assert_eq!(blames(None, killed("server")), ("server".into(), Status::Died));
        assert_eq!(blames(None, None), ("nobody".into(), Status::Died));
    }
}
