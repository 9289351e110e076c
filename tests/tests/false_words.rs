//! A worker that takes part and says what is false: it is lost, and the honest ones end the run as they would have without it.

use testudo_actors::JobSpec;
use testudo_actors::message::{
    Finished, MemberRole, Membership, NodeDone, NodeLoss, Outcome, Push, StepTimes,
};
use testudo_actors::server::SumOrder;
use testudo_actors::tree::Node;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::member::{Answer, Lane, Member, in_time, placement};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;
use testudo_transport::Role;

const STEPS: u64 = 5;

/// Runs a job whose second worker is played by `act`.
fn beside(act: impl AsyncFnOnce(Member, Node, Lane, &JobSpec)) -> Finished {
    let job = JobSpec { heartbeat_timeout_ms: 600_000, ..toy::job(2, 1, 2, STEPS) };
    let site = Site::new(job, Links::SecuredMemory);
    let server = site.job.member(Role::Server, 0).unwrap();
    let cluster = Cluster::start_with(site, Wiring { absent: vec![1], ..Wiring::default() });
    let network = cluster.site.network(&cluster.site.identity(Role::Worker, "1"));
    let scheduler = cluster.scheduler.to_string();
    cluster.site.runtime.block_on(async {
        let mut member = Member::join(&network, &scheduler, MemberRole::Worker).await.unwrap();
        let Membership { leases, servers, .. } = member.membership().await;
        let node = leases.iter().find(|l| l.worker == 1).unwrap().node;
        let lane = Lane::dial(&network, &servers[0].address, &server).await;
        act(member, node, lane, &cluster.site.job).await;
    });
    match cluster.outcome() {
        Outcome::Finished(finished) => finished,
        Outcome::Failed(why) | Outcome::ServerLost(why) => panic!("the run failed: {why}"),
    }
}

fn honest() -> Finished {
    Simulation::new(toy::job(1, 1, 2, STEPS), 0, SumOrder::Canonical).finish()
}

/// threats.md, class F: neither ends the run, nor changes a bit of it.
#[test]
fn what_cannot_be_is_reported_in_vain() {
    let expected = honest();
    for (step, loss_sum, examples) in
        [(0, f64::NAN, 1), (0, f64::INFINITY, 1), (50, 1.0, 1), (0, 1.0, u64::MAX)]
    {
        let finished = beside(async |mut member, node, _lane, _| {
            let nodes = vec![NodeLoss { node, loss_sum, correct: 0, examples }];
            let times = StepTimes::default();
            member
                .tell(&NodeDone {
                    step,
                    nodes,
                    times,
                    bytes_sent: 0,
                    bytes_received: 0,
                    pushed: Default::default(),
                })
                .await;
            in_time("the scheduler to hang up", member.connection().closed()).await;
        });
        let what = format!("step {step}, loss {loss_sum}, {examples} examples");
        assert_eq!(finished.params_blake3, expected.params_blake3, "{what}");
        assert_eq!((finished.steps, finished.workers_lost), (STEPS, 1), "{what}");
    }
}

/// Its heir computes something else, and goes on with what the server has.
#[test]
fn what_a_liar_leaves_behind_ends_nothing() {
    let finished = beside(async |member, node, mut lane, job| {
        for slice in placement(job).slices().iter().step_by(2) {
            let push = Push { epoch: 1, step: 0, slice: slice.id, node, codec: 0 };
            assert_eq!(lane.pushed(&push, &vec![0.5; slice.elements]).await, Answer::Accepted(false));
        }
        drop((member, lane));
    });
    assert_eq!((finished.steps, finished.workers_lost), (STEPS, 1));
    assert_ne!(finished.params_blake3, honest().params_blake3, "under the mean, a lie counts");
}
