//! What a run waits for, and how long: nobody keeps it from ending, or its stalls from being said.

use super::*;

/// Invariant 7: a worker that goes on as if it had not been dismissed does not keep the run.
#[test]
fn a_worker_that_does_not_leave_is_lost_and_the_run_is_over() {
    let members = [(server(0), idle()), (worker(0), idle()), (worker(1), idle())];
    let mut finished = Bench::training(job(2, 1));
    finished.complete(&[(0, LEFT), (1, RIGHT)]);
    let mut failed = Bench::training(job(2, 1));
    failed.handle(Input::Failure { member: server(0), reason: "no disk".into() });
    for mut bench in [finished, failed] {
        assert!(bench.outcome().is_some());
        let effects = bench.pass(TIMEOUT / 2, &members);
        assert_eq!(effects, [], "it may take a heartbeat timeout to leave");
        bench.gone(worker(0), 2);
        let effects = bench.pass(TIMEOUT, &members);
        let [left, dismissed, over] = &effects[..] else { panic!("{effects:?}") };
        assert!(matches!(left, Effect::Disconnect { member, .. } if *member == worker(1)), "{left:?}");
        assert!(
            matches!(dismissed, Effect::Send { member, message: ToMember::Shutdown(_), .. } if *member == server(0)),
            "{dismissed:?}"
        );
        assert!(matches!(over, Effect::Over(_)), "{over:?}");
        assert_eq!(bench.core.poll_timeout(), None);
    }
}

/// Line 13, and a member that says what nobody asked for, again and again: that is no progress.
#[test]
fn what_is_not_taken_does_not_hide_a_stall() {
    let result = EvaluationResult { version: 1, first: 0, examples: 10, loss_sum: 1.0, correct: 1 };
    let exported = Exported { version: 1, params_blake3: [7; 32], bytes: 1, pulled: Default::default() };
    let part = |version| CheckpointPart { version, outcome: PartOutcome::Skipped };
    let hashed = ParameterPieces { version: 0, pieces: Vec::new() };
    let noise: [(&str, &dyn Fn() -> Input<u32>); 4] = [
        ("evaluated", &|| Input::Evaluated { worker: 0, result: result.clone() }),
        ("exported", &|| Input::Exported { worker: 0, exported: exported.clone() }),
        ("part", &|| Input::CheckpointPart { server: 0, part: part(3) }),
        ("pieces", &|| Input::Pieces { server: 0, told: hashed.clone() }),
    ];
    let members = [(server(0), idle()), (worker(0), idle()), (worker(1), idle())];
    for (what, input) in noise {
        let audit = crate::job::Audit { hash_every: 1, countersign_every: 0 };
        let mut bench = Bench::training(JobSpec { audit, ..job(2, 1) });
        let mut effects = Vec::new();
        for _ in 0..4 {
            effects.extend(bench.handle(input()));
            effects.extend(bench.pass(TIMEOUT / 2, &members));
        }
        assert!(notices(&effects).contains("no progress"), "{what}: {effects:?}");
    }
    // At the end, what was taken once is not taken again.
    let mut bench = Bench::training(job(2, 1));
    bench.report(0, 0, LEFT, 2);
    bench.report(1, 0, RIGHT, 2);
    let mut effects = Vec::new();
    for _ in 0..4 {
        for worker in 0..2 {
            effects.extend(bench.handle(Input::Evaluated { worker, result: result.clone() }));
        }
        effects.extend(bench.pass(TIMEOUT / 2, &members));
    }
    assert!(notices(&effects).contains("the export of the final model"), "{effects:?}");
}

/// Invariant 9: a scheduler that stood still, and has yet to read what was said meanwhile, loses nobody for that; who is silent from
/// then on is lost.
#[test]
fn nobody_is_silent_while_the_scheduler_stands_still() {
    let members = [(server(0), idle()), (worker(0), idle()), (worker(1), idle())];
    let mut bench = Bench::training(job(2, 1));
    bench.pass(TIMEOUT / 2, &members);
    bench.now = bench.now.after(TIMEOUT * 5);
    assert_eq!(bench.handle(Input::Tick), []);
    let text = notices(&bench.pass(TIMEOUT * 2, &[(server(0), idle()), (worker(1), idle())]));
    assert!(text.contains("worker/0 was lost (no heartbeat for 1000 ms)"), "{text}");
    assert_eq!(text.matches("was lost").count(), 1, "{text}");
}

/// Invariant 9: nor does it give up waiting for a worker that has asked to join meanwhile; of the time before, nothing is forgiven.
#[test]
fn no_wait_for_workers_ends_while_the_scheduler_stands_still() {
    let elastic = crate::job::Elastic { extra_workers: 0, return_ms: 10_000 };
    let waits = Duration::from_millis(10_000);
    let mut bench = Bench::training(JobSpec { elastic, ..job(1, 1) });
    bench.gone(worker(0), 2);
    bench.pass(waits / 2, &[(server(0), idle())]);
    bench.now = bench.now.after(waits * 5);
    bench.handle(Input::Heartbeat { member: server(0), heartbeat: idle() });
    assert_eq!(bench.outcome(), None);
    bench.pass(waits / 2 - TIMEOUT, &[(server(0), idle())]);
    assert_eq!(bench.outcome(), None, "the rest of the wait is still to come");
    let effects = bench.pass(TIMEOUT * 2, &[(server(0), idle())]);
    assert!(failure(&effects).contains("none came back"), "{effects:?}");
}

/// Before training, a node with another arithmetic decides nothing for those who come after it has left.
#[test]
fn arithmetic_that_left_decides_nothing() {
    let mut bench = Bench::new(job(2, 1));
    let other = Join { fingerprint: "neon".into(), ..join_of(worker(1)) };
    bench.join_as(worker(1), other);
    assert!(refusal(&bench.join(worker(0))).contains("differs from that of worker/1"));
    bench.gone(worker(1), 1);
    assert!(matches!(bench.join(worker(0))[..], [Effect::Welcome { .. }]));
    let other = Join { fingerprint: "neon".into(), ..join_of(worker(1)) };
    assert!(refusal(&bench.join_as(worker(1), other)).contains("differs from that of worker/0"));
}

/// However many workers are lost, each server has one membership to install at a time, and the last one has all.
#[test]
fn losses_are_told_of_together() {
    let mut bench = Bench::training(JobSpec { logical_shards: 8, ..job(6, 2) });
    assert_eq!(told_of_members(&bench.gone(worker(0), 3)), [server(0), server(1)]);
    bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
    // Two are lost while one server has not said a word, and three by their silence.
    assert_eq!(told_of_members(&bench.gone(worker(1), 4)), []);
    let alive = [(server(0), idle()), (server(1), idle()), (worker(5), idle())];
    let effects = bench.pass(TIMEOUT * 2, &alive);
    assert_eq!(notices(&effects).matches("was lost").count(), 3, "{effects:?}");
    assert_eq!(told_of_members(&effects), []);
    let effects = bench.handle(Input::Ready { server: 1, epoch: 2, version: 0 });
    assert_eq!(told_of_members(&effects), [server(0), server(1)], "workers hear of no epoch that is past");
    bench.handle(Input::Ready { server: 0, epoch: 3, version: 0 });
    let effects = bench.handle(Input::Ready { server: 1, epoch: 3, version: 0 });
    assert_eq!(told_of_members(&effects), [worker(5)]);
    assert!(
        bench.core.leases.iter().all(|lease| lease.worker == 5 && lease.since <= 3),
        "{:?}",
        bench.core.leases
    );
    assert_eq!(told_of_members(&bench.pass(TIMEOUT / 2, &alive)), []);
}

/// A worker's word that it cannot go on costs the run that worker, whoever it is; what holds for all of them, the last one says.
#[test]
fn a_worker_that_gives_up_is_lost_and_the_last_one_ends_the_run() {
    let mut bench = Bench::training(job(2, 1));
    let effects = bench.handle(Input::Failure { member: worker(1), reason: "no data".into() });
    let lost = |e: &&Effect<u32>| matches!(e, Effect::Disconnect { member, .. } if *member == worker(1));
    assert_eq!(effects.iter().filter(lost).count(), 1, "{effects:?}");
    assert!(bench.outcome().is_none());
    bench.handle(Input::Failure { member: worker(1), reason: "no data".into() });
    assert!(bench.outcome().is_none(), "nobody fails twice");
    bench.handle(Input::Failure { member: worker(0), reason: "no data".into() });
    assert_eq!(bench.outcome(), Some(Outcome::Failed("worker/0: no data".into())));
}

/// Invariant 3: who cannot reach a server is lost while others go on; what the last one says of it is the server's loss, from which a job
/// goes on, and no failure of the job's own.
#[test]
fn a_server_that_the_last_worker_cannot_reach_is_lost() {
    let cannot = |worker| Input::Unreachable { worker, server: 1, reason: "timed out".into() };
    let mut bench = Bench::training(job(2, 2));
    let lost = notices(&bench.handle(cannot(1)));
    assert!(lost.contains("worker/1 was lost (server/1 cannot be reached: timed out)"), "{lost}");
    bench.handle(cannot(1));
    assert_eq!(bench.outcome(), None, "it is lost already");
    let effects = bench.handle(cannot(0));
    let told = |e: &Effect<u32>| matches!(e, Effect::Send { member, message: ToMember::Shutdown(s), .. } if *member == worker(0) && s.may_go_on);
    assert!(effects.iter().any(told), "{effects:?}");
    let why = "server/1 cannot be reached by worker/0, and no other worker is left: timed out";
    assert_eq!(bench.outcome(), Some(Outcome::ServerLost(why.into())));
    assert_eq!(failure(&bench.gone(worker(0), 3)), why);
}

/// Invariant 3: a server that was cut off for cause ends the run as a failure does, whatever is heard of it afterwards.
#[test]
fn a_run_does_not_go_on_with_a_server_that_was_expelled() {
    let expelled = |connection| Input::Expelled { member: server(1), connection, reason: "revoked".into() };
    let mut bench = Bench::training(job(1, 2));
    assert_eq!(bench.handle(expelled(1)), [], "that is another's connection");
    let effects = bench.handle(expelled(2));
    assert!(
        matches!(&effects[0], Effect::Send { message: ToMember::Shutdown(s), .. } if !s.may_go_on),
        "{effects:?}"
    );
    bench.gone(server(1), 2);
    bench.handle(Input::Unreachable { worker: 0, server: 1, reason: "reset".into() });
    let Some(Outcome::Failed(why)) = bench.outcome() else { panic!("{:?}", bench.outcome()) };
    assert!(why.starts_with("server/1 was cut off (revoked)"), "{why}");
}
