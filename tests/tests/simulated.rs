//! Whole clusters of pure cores under seeds: determinism, deaths, duplicates, stalls.

use std::collections::BTreeSet;

use testudo_actors::message::{Body, Finished, MemberRole, Outcome, Push, PushRefusal};
use testudo_actors::server::SumOrder;
use testudo_actors::tree::Node;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 6;
const SHARDS: u32 = 6;

fn train(workers: u32, servers: u32, seed: u64) -> (Finished, Vec<f64>) {
    let mut simulation =
        Simulation::new(toy::job(workers, servers, SHARDS, STEPS), seed, SumOrder::Canonical);
    let finished = simulation.finish();
    let losses = simulation.steps.iter().map(|s| s.loss).collect();
    (finished, losses)
}

/// Invariant 5 of the actors: bits do not depend on workers, servers or the order of events.
#[test]
fn same_bits_for_any_number_of_workers_and_servers() {
    let (reference, losses) = train(1, 1, 0);
    assert_eq!(losses.len() as u64, STEPS);
    assert!(losses[STEPS as usize - 1] < losses[0], "it learns: {losses:?}");
    for (seed, workers, servers) in [(1, 1, 3), (2, 2, 1), (3, 2, 2), (4, 3, 2), (5, 4, 3), (6, 6, 1)] {
        let (finished, other) = train(workers, servers, seed);
        assert_eq!(finished.params_blake3, reference.params_blake3, "{workers} workers, {servers} servers");
        assert_eq!(other, losses, "{workers} workers, {servers} servers");
        assert_eq!(finished.test_accuracy.to_bits(), reference.test_accuracy.to_bits());
        assert_eq!(finished.test_loss.to_bits(), reference.test_loss.to_bits());
    }
}

/// A server that sums in order of arrival must be caught by the test above.
#[test]
fn the_mutant_that_sums_in_order_of_arrival_is_caught() {
    let hash = |seed| {
        let mut simulation = Simulation::new(toy::job(4, 2, SHARDS, STEPS), seed, SumOrder::Arrival);
        simulation.finish().params_blake3
    };
    let canonical = train(4, 2, 0).0.params_blake3;
    let hashes: Vec<_> = (0..4).map(hash).collect();
    assert!(hashes.iter().any(|h| *h != canonical), "arrival order went unnoticed");
    assert!(hashes.iter().any(|h| *h != hashes[0]), "every order of arrival gave the same bits");
}

/// semantics.md, line 1, and the crash part of invariant 5: half-sent steps count once, whoever completes them.
#[test]
fn a_worker_that_dies_mid_step_changes_nothing() {
    let (reference, _) = train(1, 1, 0);
    for seed in 0..12 {
        let mut simulation = Simulation::new(toy::job(3, 2, SHARDS, STEPS), seed, SumOrder::Canonical);
        let step = seed % STEPS;
        let mid_step = simulation
            .run_until(|s| s.steps.len() as u64 >= step && s.pushes_under_way(1) > 3 + seed as usize % 20);
        assert!(mid_step, "seed {seed}: the run ended before the kill");
        simulation.kill(1);
        let finished = simulation.finish();
        assert_eq!(finished.params_blake3, reference.params_blake3, "seed {seed}");
        assert_eq!(finished.workers_lost, 1);
        assert!(simulation.refused.iter().all(|(_, reason)| *reason == PushRefusal::NoLease));
    }
}

/// Second and third failures are like the first.
#[test]
fn all_workers_but_one_may_die() {
    let (reference, _) = train(1, 1, 0);
    for seed in 20..26 {
        let mut simulation = Simulation::new(toy::job(4, 2, SHARDS, STEPS), seed, SumOrder::Canonical);
        for (nth, worker) in [2, 0, 3].into_iter().enumerate() {
            assert!(simulation.run_until(|s| {
                s.steps.len() > nth && s.pushes_under_way(worker) > 0 || s.steps.len() > nth + 1
            }));
            simulation.kill(worker);
        }
        let finished = simulation.finish();
        assert_eq!(finished.params_blake3, reference.params_blake3, "seed {seed}");
        assert_eq!(finished.workers_lost, 3);
    }
}

/// Two workers may die before any server has heard of the first death: the epoch between is never told to anybody.
#[test]
fn two_deaths_at_once_are_survived() {
    let (reference, _) = train(1, 1, 0);
    for seed in 40..52 {
        let mut simulation = Simulation::new(toy::job(4, 2, SHARDS, STEPS), seed, SumOrder::Canonical);
        let step = seed as usize % 4;
        assert!(simulation.run_until(|s| s.steps.len() >= step && s.pushes_under_way(3) > 0));
        simulation.kill(3);
        simulation.kill(1);
        let finished = simulation.finish();
        assert_eq!(finished.params_blake3, reference.params_blake3, "seed {seed}");
        assert_eq!(finished.workers_lost, 2);
    }
}

/// Invariant 4 of leases: what survivors took over is soon summed before it is pushed, and a death in the middle of such a step
/// is like any other.
#[test]
fn what_moved_is_pushed_as_one_sum_again() {
    const LONG: u64 = 24;
    let whole = |seed| Simulation::new(toy::job(1, 1, SHARDS, LONG), seed, SumOrder::Canonical).finish();
    let reference = whole(0);
    for seed in 60..84 {
        let mut simulation = Simulation::new(toy::job(4, 2, SHARDS, LONG), seed, SumOrder::Canonical);
        for (worker, step) in [(2, 2), (0, 9), (3, 16)] {
            let in_the_middle = 1 + seed as usize % 30;
            assert!(simulation.run_until(|s| {
                s.steps.len() >= step && s.pushes_under_way(worker) > in_the_middle
                    || s.steps.len() > step + 1
            }));
            simulation.kill(worker);
        }
        let finished = simulation.finish();
        assert_eq!(finished.params_blake3, reference.params_blake3, "seed {seed}");
        assert_eq!((finished.workers_lost, finished.test_loss.to_bits()), (3, reference.test_loss.to_bits()));
        assert!(simulation.refused.iter().all(|(_, reason)| *reason == PushRefusal::NoLease));
        let last = pushes(&simulation).filter(|push| push.step == LONG - 1).map(|push| push.node);
        let root = Node { first: 0, leaves: SHARDS };
        assert_eq!(last.collect::<BTreeSet<_>>(), BTreeSet::from([root]), "seed {seed}");
    }
}

fn pushes(simulation: &Simulation) -> impl Iterator<Item = Push> {
    let pushes = simulation.carried.iter().filter(|(kind, ..)| *kind == Push::KIND);
    pushes.map(|(_, body, _)| Push::decode(body).unwrap())
}

/// Invariant 4 of leases: not before it is the survivor's alone. Here the dead worker has contributed to a part of a step that the
/// survivor has not begun, so the survivor begins it with both nodes as they are.
#[test]
fn what_moved_is_not_joined_to_what_the_dead_have_done() {
    let whole = |workers| Simulation::new(toy::job(workers, 1, 2, STEPS), 7, SumOrder::Canonical);
    let mut simulation = whole(2);
    assert!(simulation.run_until(|s| s.steps.len() == 2));
    // Worker 1 gets no parameters; worker 0 contributes to the next step, and nobody hears its reports.
    simulation.frozen = vec!["server/0>worker/1".into(), "worker/0>scheduler".into()];
    assert!(simulation.run_until(|s| s.notices.iter().any(|notice| notice.contains("worker/0 was lost"))));
    let last = |shard| {
        let steps = pushes(&simulation).filter(|push| push.node == Node::leaf(shard)).map(|push| push.step);
        steps.max().unwrap()
    };
    assert!(last(0) > last(1));
    simulation.kill(0);
    simulation.frozen.remove(0);
    assert_eq!(simulation.finish().params_blake3, whole(1).finish().params_blake3);
}

/// A worker may die while the last version is evaluated and exported.
#[test]
fn a_death_during_the_evaluation_leaves_its_parts_to_others() {
    let (reference, _) = train(1, 1, 0);
    let mut simulation = Simulation::new(toy::job(2, 1, SHARDS, STEPS), 3, SumOrder::Canonical);
    assert!(simulation.run_until(|s| s.steps.len() as u64 == STEPS));
    simulation.kill(0);
    let finished = simulation.finish();
    assert_eq!(finished.params_blake3, reference.params_blake3);
    assert_eq!(finished.test_accuracy.to_bits(), reference.test_accuracy.to_bits());
}

/// semantics.md, line 1: a push that arrives twice counts once.
#[test]
fn duplicates_count_once() {
    let (reference, _) = train(1, 1, 0);
    let mut simulation = Simulation::new(toy::job(2, 2, SHARDS, STEPS), 9, SumOrder::Canonical);
    simulation.duplicate = true;
    assert_eq!(simulation.finish().params_blake3, reference.params_blake3);
    assert!(simulation.refused.is_empty(), "{:?}", simulation.refused);
}

/// semantics.md, line 13: the stalled node, slice and step have names.
#[test]
fn a_stall_has_a_name() {
    let mut simulation = Simulation::new(toy::job(2, 1, SHARDS, STEPS), 4, SumOrder::Canonical);
    assert!(simulation.run_until(|s| s.steps.len() == 2));
    simulation.frozen = (0..3).map(|lane| format!("worker/1>server/0/{lane}")).collect();
    let noticed = simulation.run_until(|s| s.notices.iter().any(|n| n.contains("no progress")));
    assert!(noticed);
    let notice = simulation.notices.iter().find(|n| n.contains("no progress")).unwrap();
    for part in ["worker/1", "server/0", "shard 3", "fc", "slice", "step"] {
        assert!(notice.contains(part), "{part:?} is missing in {notice:?}");
    }
    simulation.frozen.clear();
    let (reference, _) = train(1, 1, 0);
    assert_eq!(simulation.finish().params_blake3, reference.params_blake3);
}

/// A stop ends the run at a step that every worker reaches, with a model.
#[test]
fn a_stop_ends_in_order_with_a_model() {
    let mut simulation = Simulation::new(toy::job(2, 2, SHARDS, 200), 5, SumOrder::Canonical);
    assert!(simulation.run_until(|s| s.steps.len() == 3));
    simulation.stop();
    let finished = simulation.finish();
    assert!(finished.stopped_early);
    assert!((3..12).contains(&finished.steps), "{}", finished.steps);
    let same = train_for(finished.steps);
    assert_eq!(finished.params_blake3, same.params_blake3);
}

fn train_for(steps: u64) -> Finished {
    Simulation::new(toy::job(1, 1, SHARDS, steps), 0, SumOrder::Canonical).finish()
}

/// semantics.md, line 9: when no worker is left, the run ends and says who died.
#[test]
fn the_last_death_ends_the_run_by_name() {
    let mut simulation = Simulation::new(toy::job(1, 1, SHARDS, STEPS), 6, SumOrder::Canonical);
    assert!(simulation.run_until(|s| s.steps.len() == 1));
    simulation.kill(0);
    match simulation.run() {
        Outcome::Failed(reason) => {
            assert!(reason.contains(&format!("{}/0", MemberRole::Worker.role())), "{reason}");
        }
        other => panic!("a run without workers: {other:?}"),
    }
}
