//! Lines 9 and 13 of the list of semantics, end to end over QUIC: who counts as a member, in which order members leave, and
//! who is named when nothing moves. The same on pure cores is in the actors' own tests.

use std::sync::Arc;

use testudo_actors::JobSpec;
use testudo_actors::audit::Entry;
use testudo_actors::message::{
    Body, Evaluate, EvaluationResult, Export, Exported, Finished, Heartbeat, Load, MemberRole, Outcome,
    Ready, Shutdown,
};
use testudo_actors::operator::follow;
use testudo_actors::placement::SliceId;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::member::{Answer, GIVEN_UP, Member, give_up, in_time};
use testudo_tests::stage::{job, play, play_to_its_end};
use testudo_transport::Role;

const FIRST: SliceId = SliceId { parameter: 0, index: 0 };

/// Line 9: an identity that takes part cannot join again, from wherever it calls, and does not count twice.
#[test]
fn line_9_a_second_join_of_a_live_identity_is_refused() {
    let cluster = Cluster::start_with(
        Site::new(job(2, 1, 2), Links::Quic),
        Wiring { absent: vec![0, 1], ..Wiring::default() },
    );
    let (site, scheduler) = (&cluster.site, cluster.scheduler.to_string());
    let network = || site.network(&site.identity(Role::Worker, "0"));
    site.runtime.block_on(async {
        let (first, second) = (network(), network());
        let mut member = Member::join(&first, &scheduler, MemberRole::Worker).await.unwrap();
        for again in [&first, &second, &second] {
            let reason = Member::join(again, &scheduler, MemberRole::Worker).await.unwrap_err();
            assert!(reason.contains("worker/0 takes part already"), "{reason}");
        }
        // The real second worker makes the job form, and nobody did before it.
        let other = site.network(&site.identity(Role::Worker, "1"));
        let mut other = Member::join(&other, &scheduler, MemberRole::Worker).await.unwrap();
        assert_eq!(other.membership().await.epoch, 1);
        assert_eq!(member.membership().await.epoch, 1);
        let reason = Member::join(&second, &scheduler, MemberRole::Worker).await.unwrap_err();
        assert!(reason.contains("worker/0 takes part already"), "{reason}");
        give_up([&mut member, &mut other].into_iter()).await;
    });
    assert_eq!(cluster.outcome(), Outcome::Failed(GIVEN_UP.into()));
}

/// Line 9: a dead server ends everybody's wait with an error that names it. The test plays the server, and dies.
#[test]
fn line_9_a_dead_server_ends_the_wait_by_name() {
    let site = Site::new(job(1, 1, 1), Links::Quic);
    let (scheduler, running) = site.scheduler();
    site.runtime.block_on(async {
        let of = |role| site.network(&site.identity(role, "0"));
        let (server, worker) = (of(Role::Server), of(Role::Worker));
        let mut server = Member::join(&server, &scheduler, MemberRole::Server).await.unwrap();
        let mut worker = Member::join(&worker, &scheduler, MemberRole::Worker).await.unwrap();
        let epoch = server.membership().await.epoch;
        server.tell(&Ready { epoch, version: 0 }).await;
        worker.membership().await;
        server.connection().close(0, "dies");
        let told = worker.hear_of::<Shutdown>().await;
        assert!(told.reason.contains("server/0 was lost") && told.may_go_on, "{told:?}");
    });
    match running.join().unwrap().unwrap() {
        Outcome::ServerLost(reason) => {
            assert!(reason.contains("server/0 was lost"), "{reason}")
        }
        finished => panic!("{finished:?}"),
    }
}

/// Line 9: servers leave after the workers and after the last checkpoint: while a worker is still there, parameters are
/// served.
#[test]
fn line_9_servers_leave_last() {
    let job = JobSpec { max_steps: Some(1), ..job(2, 1, 2) };
    let kept = std::sync::Mutex::new([0; 32]);
    let cluster = play_to_its_end(job, async |stage| {
        for slice in stage.map.clone().slices() {
            stage.complete(0, slice.id, 1.0).await;
        }
        for worker in 0..2 {
            stage.sign(worker, 0).await;
            let done = stage.done(worker, 0);
            stage.members[worker].tell(&done).await;
        }
        let hash = stage.params_blake3(1, 1).await;
        *kept.lock().unwrap() = hash;
        let (first, second) = stage.members.split_at_mut(1);
        tokio::join!(obey(&mut first[0], hash), obey(&mut second[0], hash));
        stage.members[0].connection().close(0, "left");
        assert!(matches!(stage.pull(1, FIRST, 1).await, Answer::Values(_)), "worker 1 has not left");
        stage.members[1].connection().close(0, "left");
    });
    let (finished, _) = cluster.finish();
    let Finished { steps, params_blake3, stopped_early, workers_lost, .. } = finished;
    assert_eq!((steps, params_blake3, stopped_early, workers_lost), (1, *kept.lock().unwrap(), false, 0));
}

/// Evaluates as it is told, and exports parameters of that hash, until it is dismissed.
async fn obey(member: &mut Member, params_blake3: [u8; 32]) {
    loop {
        let message = member.hear().await;
        match message.kind {
            Evaluate::KIND => {
                let Evaluate { version, first, examples } = Evaluate::decode(&message.body).unwrap();
                member.tell(&EvaluationResult { version, first, examples, loss_sum: 1.0, correct: 1 }).await;
            }
            Export::KIND => {
                let Export { version, .. } = Export::decode(&message.body).unwrap();
                member.tell(&Exported { version, params_blake3, bytes: 1, pulled: Default::default() }).await;
            }
            Shutdown::KIND => return,
            _ => {}
        }
    }
}

/// Invariant 2 of `scheduler/actor/audited.rs`: who reports a step and signs nothing, or another step, is sent away with a reason
/// that says so; the log has it, and the rest of the step is another's.
#[test]
fn a_worker_that_does_not_sign_what_it_reports_is_sent_away() {
    for signed in [None, Some(1)] {
        let cluster = play_to_its_end(job(2, 1, 2), async |stage| {
            if let Some(step) = signed {
                stage.sign(1, step).await;
            }
            let (done, honest) = (stage.done(1, 0), stage.done(0, 0));
            stage.sign(0, 0).await;
            stage.members[0].tell(&honest).await;
            stage.members[1].tell(&done).await;
            let why = in_time("its end", stage.members[1].connection().closed()).await.to_string();
            assert!(why.contains("reported step 0 without signing what it contributed"), "{why}");
            let leases = stage.members[0].membership().await.leases;
            assert!(leases.len() == 2 && leases.iter().all(|lease| lease.worker == 0), "{leases:?}");
            give_up(stage.members.iter_mut().take(1)).await;
        });
        let told = Arc::clone(&cluster.steps.1);
        assert_eq!(cluster.outcome(), Outcome::Failed(GIVEN_UP.into()));
        let told = told.lock().unwrap();
        let sent_away = told.iter().any(|entry| {
            matches!(entry, Entry::Leave { node, reason, .. } if node == "worker/1" && reason.contains("without signing"))
        });
        assert!(sent_away, "{told:?}");
        let refused = told.iter().any(|entry| match entry {
            Entry::Refusals { refused, .. } => {
                refused.iter().any(|r| r.cause == "unsigned" && r.who == "worker/1" && r.count == 1)
            }
            _ => false,
        });
        assert!(refused, "{told:?}");
    }
}

/// Line 13: a worker that stands still is named, with the slice and the step that wait for it, to whoever follows the run.
#[test]
fn line_13_a_stall_has_a_name() {
    // Longer than a busy machine keeps anybody from a heartbeat: who says nothing for so long is lost before it stands still.
    let job = JobSpec { heartbeat_ms: 20, heartbeat_timeout_ms: 6000, ..job(2, 1, 2) };
    play(job, async |stage| {
        let ((operator, address), scheduler) =
            (&stage.operator, stage.job.member(Role::Scheduler, 0).unwrap());
        let (_line, mut reports) = follow(operator, address, &scheduler, 20).await.unwrap();
        for slice in stage.map.clone().slices().iter().skip(1) {
            stage.complete(0, slice.id, 1.0).await;
        }
        stage.push(0, 0, FIRST, 1.0).await;
        // Worker 1 lives and does nothing.
        let idle = Heartbeat { step: 0, waiting: None, load: Load::default(), served: None };
        let stalled = loop {
            for member in &mut stage.members {
                member.tell(&idle).await;
            }
            if let Some(stalled) = reports.next().await.unwrap().stalled {
                break stalled;
            }
        };
        for part in ["worker/1", "shard 1", "fc1.weight", "slice 0", "step 0", "server/0"] {
            assert!(stalled.contains(part), "{part:?} is missing in {stalled:?}");
        }
    });
}
