//! A worker that takes part, and asks for more than its part in the work can need: it is cut off as a flood, its leases move, and
//! the run goes on without it. What strangers' floods do is in flood.rs.

use testudo_actors::message::{
    Body, EvaluationResult, MemberRole, Membership, NodeDone, Pull, StatusReport, StepTimes,
};
use testudo_actors::operator::Line;
use testudo_actors::placement::SliceId;
use testudo_tests::member::{Answer, Lane, give_up, in_time};
use testudo_tests::stage::{Stage, job, play_to_its_end};
use testudo_transport::{Class, CloseCode, Error, Outgoing, Role};

const FIRST: SliceId = SliceId { parameter: 0, index: 0 };

/// Plays `act`, after which worker 1 must have lost its leases to worker 0, and ends the run.
fn cut_off(act: impl AsyncFnOnce(&mut Stage)) {
    let cluster = play_to_its_end(job(2, 1, 2), async |stage| {
        act(stage).await;
        let Membership { epoch, leases, workers, .. } = stage.members[0].membership().await;
        assert_eq!(epoch, 2);
        assert!(leases.iter().all(|lease| lease.worker == 0), "{leases:?}");
        assert_eq!(workers.len(), 1);
        // Training is the other's now, and goes on.
        stage.epoch = epoch;
        assert_eq!(stage.push(0, 0, FIRST, 1.0).await, Answer::Accepted(false));
        counted(stage).await;
        give_up(stage.members.iter_mut().take(1)).await;
    });
    let _ = cluster.outcome();
}

/// An operator reads of the fault, at the node that found it.
async fn counted(stage: &Stage) {
    let (network, address) = &stage.operator;
    let scheduler = stage.job.member(Role::Scheduler, 0).unwrap();
    let line = Line::dial(network, address, &scheduler).await.unwrap();
    let (_commands, mut reports) = line.follow(50, true).await.unwrap();
    let faults = |report: &StatusReport| {
        let servers = report.nodes.iter().filter(|node| node.member.role == MemberRole::Server);
        report.load.refused.faults + servers.map(|node| node.load.refused.faults).sum::<u64>()
    };
    in_time("a fault in the counts", async { while faults(&reports.next().await.unwrap()) == 0 {} }).await;
}

/// The scheduler hears one stream of a peer. Another is not left lying: it is a fault.
#[test]
fn a_second_stream_to_the_scheduler_is_a_fault() {
    cut_off(async |stage| {
        let connection = stage.members[1].connection().clone();
        let (mut say, _hear) = connection.open(Class::Control, 0).await.unwrap();
        let done = NodeDone {
            step: 0,
            nodes: Vec::new(),
            times: StepTimes::default(),
            bytes_sent: 0,
            bytes_received: 0,
            pushed: Default::default(),
        };
        let message = Outgoing::new(NodeDone::KIND, 0, done.encode());
        let _ = in_time("room for a message", say.send(message)).await;
        closed(connection.closed().await, CloseCode::Policy);
    });
}

/// Results that nobody asked for, over and over: an allowance follows from the job and the steps that were taken.
#[test]
fn reports_beyond_what_the_work_can_need_are_a_flood() {
    cut_off(async |stage| {
        let result = EvaluationResult { version: 0, first: 0, examples: 1, loss_sum: 1.0, correct: 1 };
        let mut member = stage.members.remove(1);
        let connection = member.connection().clone();
        // However it ends when it is cut off.
        tokio::spawn(async move {
            loop {
                member.tell(&result).await;
            }
        });
        closed(in_time("the end of a flood", connection.closed()).await, CloseCode::Credit);
    });
}

/// The same version pulled again and again, with every answer read: the server has an allowance too, and tells the scheduler.
#[test]
fn pulls_beyond_what_the_work_can_need_are_a_flood() {
    cut_off(async |stage| {
        let id = stage.job.member(Role::Server, 0).unwrap();
        let mut lane = Lane::dial(&stage.networks[1], &stage.servers[0], &id).await;
        let connection = lane.connection().clone();
        tokio::spawn(async move {
            loop {
                lane.pulled(&Pull { slice: FIRST, version: 0, exact: false }).await;
            }
        });
        closed(in_time("the end of a flood", connection.closed()).await, CloseCode::Credit);
    });
}

fn closed(why: Error, expected: CloseCode) {
    let Error::Closed { by_peer: true, code, reason, .. } = why else { panic!("{why}") };
    assert_eq!(code, expected.number(), "{reason}");
}
