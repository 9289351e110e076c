//! Invariant 7 of the core: who comes back, and who does not.

use super::*;
use crate::job::Elastic;

fn joined(effects: &[Effect<u32>]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Welcome { .. }))
}

fn membership(effects: &[Effect<u32>]) -> Membership {
    let told = effects.iter().find_map(|e| match e {
        Effect::Send { message: ToMember::Membership(membership), .. } => Some(membership.clone()),
        _ => None,
    });
    told.expect("a membership is told")
}

fn extended(effects: &[Effect<u32>]) -> Option<u64> {
    effects.iter().find_map(|e| match e {
        Effect::Send { message: ToMember::Extended(extended), .. } => Some(extended.until),
        _ => None,
    })
}

/// The newcomer is leased steps from the horizon on, which stays until workers know of it.
#[test]
fn the_horizon_stays_until_everybody_knows_who_has_come_back() {
    let mut bench = Bench::training(JobSpec { max_steps: Some(20), ..job(2, 1) });
    bench.gone(worker(1), 3);
    bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
    let effects = bench.join(worker(1));
    assert!(joined(&effects) && told_of_members(&effects) == [server(0)], "servers first");
    let told = membership(&effects);
    assert_eq!(
        told.workers.iter().map(|w| (w.index, w.incarnation, w.start)).collect::<Vec<_>>(),
        [(0, 1, 0), (1, 2, 4)]
    );
    let of = |worker| {
        told.leases
            .iter()
            .filter(|l| l.worker == worker)
            .map(|l| (l.from_step, l.to_step))
            .collect::<Vec<_>>()
    };
    assert_eq!((of(0), of(1)), (vec![(0, None), (0, Some(4))], vec![(4, None)]));
    for step in 0..2 {
        let mut effects = bench.report(0, step, LEFT, 2);
        effects.extend(bench.report(0, step, RIGHT, 2));
        assert!(effects.iter().any(|e| matches!(e, Effect::Step(s) if s.step == step)));
        assert_eq!(extended(&effects), None);
    }
    let effects = bench.handle(Input::Ready { server: 0, epoch: 3, version: 2 });
    assert_eq!((told_of_members(&effects), extended(&effects)), (vec![worker(0), worker(1)], Some(6)));
}

/// Who is lost for what it says stays out; who only died may come back, but not for ever.
#[test]
fn who_lies_or_comes_too_often_stays_out() {
    let mut bench = Bench::training(job(3, 1));
    bench.handle(Input::Flooded { worker: 0, server: 0 });
    assert!(refusal(&bench.join(worker(0))).contains("not let in again"));
    let mut joins = 1;
    loop {
        bench.handle(Input::Command {
            connection: OPERATOR,
            request: 7,
            command: Command::Ended { member: worker(1), exit: "killed".into() },
        });
        let effects = bench.join(worker(1));
        if !joined(&effects) {
            assert!(refusal(&effects).contains("within 10 minutes"));
            break;
        }
        joins += 1;
    }
    assert_eq!(joins, 32);
}

/// With nobody left, those who come begin with the lowest version that servers have.
#[test]
fn who_comes_when_nobody_is_left_begins_with_what_servers_have() {
    let elastic = Elastic { extra_workers: 0, return_ms: 10_000 };
    let mut bench = Bench::training(JobSpec { max_steps: Some(20), elastic, ..job(1, 2) });
    let effects = bench.gone(worker(0), 3);
    assert!(notices(&effects).contains("waiting 10000 ms"));
    bench.join(worker(0));
    bench.handle(Input::Ready { server: 0, epoch: 2, version: 3 });
    let effects = bench.handle(Input::Ready { server: 1, epoch: 2, version: 2 });
    let told = membership(&effects);
    assert_eq!(told.workers.iter().map(|w| w.start).collect::<Vec<_>>(), [2]);
    assert_eq!(bench.outcome(), None);
}

/// Who says again and again that it cannot go on stays out long before one that only dies.
#[test]
fn who_fails_too_often_stays_out() {
    let mut bench = Bench::training(job(3, 1));
    for _ in 0..3 {
        bench.handle(Input::Failure { member: worker(1), reason: "out of memory".into() });
        assert!(joined(&bench.join(worker(1))));
    }
    let effects = bench.handle(Input::Failure { member: worker(1), reason: "out of memory".into() });
    let notice = notices(&effects);
    assert!(notice.contains("4 times within 10 minutes") && notice.contains("out of memory"), "{notice}");
    assert!(effects.iter().any(|e| matches!(e, Effect::Fault { .. })));
    assert!(refusal(&bench.join(worker(1))).contains("not let in again"));
    assert_eq!(bench.outcome(), None);
}

/// After the last step nobody comes back while another ends the run; if nobody is left, somebody must.
#[test]
fn nobody_comes_back_after_the_last_step_while_another_ends_the_run() {
    let elastic = Elastic { extra_workers: 0, return_ms: 10_000 };
    let mut bench = Bench::training(JobSpec { elastic, ..job(2, 1) });
    bench.report(0, 0, LEFT, 2);
    bench.report(1, 0, RIGHT, 2);
    assert_eq!(bench.core.report().phase, Phase::Finishing);
    bench.gone(worker(1), 3);
    assert!(refusal(&bench.join(worker(1))).contains("the last step is complete"));
    bench.gone(worker(0), 2);
    assert!(joined(&bench.join(worker(1))));
}

/// Who is dismissed inherits nothing: what the last of the others owes waits for one that comes back.
#[test]
fn who_is_dismissed_inherits_nothing() {
    let elastic = Elastic { extra_workers: 0, return_ms: 10_000 };
    let mut bench = Bench::training(JobSpec { max_steps: Some(20), elastic, ..job(2, 1) });
    let (_, answer) = bench.command(Command::Scale { workers: 1 });
    assert!(answer.is_ok());
    bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
    let mut effects = Vec::new();
    for step in 0..4 {
        effects.extend(bench.report(0, step, LEFT, 2));
        effects.extend(bench.report(1, step, RIGHT, 2));
    }
    assert_eq!(dismissed(&effects), [worker(1)]);
    let notice = notices(&bench.gone(worker(0), 2));
    assert!(notice.contains("waiting 10000 ms"), "{notice}");
    assert!(notices(&bench.gone(worker(1), 3)).contains("worker/1 has left"));
    bench.handle(Input::Ready { server: 0, epoch: 3, version: 4 });
    let told = membership(&bench.join(worker(0)));
    let open: Vec<u32> = told.leases.iter().filter(|l| l.to_step.is_none()).map(|l| l.node.leaves).collect();
    assert!(told.leases.iter().all(|l| l.worker == 0), "{told:?}");
    assert_eq!(open.iter().sum::<u32>(), 4, "{told:?}");
}

/// Residuals that are written late, of shards that have moved on since, are no lie.
#[test]
fn residuals_that_are_written_late_are_whose_they_were() {
    let codecs = crate::Codecs { push: testudo_kernels::Codec::Int8, ..crate::Codecs::default() };
    let checkpoints = crate::job::Checkpoints { every_steps: 4, at_end: false };
    let elastic = Elastic { extra_workers: 2, return_ms: 10_000 };
    let mut bench =
        Bench::training(JobSpec { max_steps: Some(20), elastic, codecs, checkpoints, ..job(2, 1) });
    bench.join(worker(2));
    bench.handle(Input::Ready { server: 0, epoch: 2, version: 0 });
    let mut completed = 0;
    for (step, holders) in (0..).zip([[0, 0, 1, 1]; 4].into_iter().chain([[0, 1, 2, 2]; 2])) {
        for (shard, holder) in (0..).zip(holders) {
            let effects = bench.report(holder, step, Node::leaf(shard), 1);
            completed += effects.iter().filter(|e| matches!(e, Effect::Step(_))).count();
        }
    }
    assert_eq!(completed, 6);
    bench.join(worker(3));
    let written = || PartOutcome::Written { bytes: 1, blake3: [1; 32], slices: 1 };
    let part = CheckpointPart { version: 4, outcome: written() };
    bench.handle(Input::CheckpointPart { server: 0, part });
    let mut effects = Vec::new();
    for (index, shards) in [(0, vec![0, 1]), (1, vec![2, 3])] {
        let part = ResidualPart { version: 4, shards, outcome: written() };
        effects.extend(bench.handle(Input::ResidualPart { worker: index, part }));
    }
    assert!(effects.iter().any(|e| matches!(e, Effect::Commit(commit) if commit.step == 4)), "{effects:?}");
}
