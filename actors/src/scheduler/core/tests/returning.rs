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
