//! Evaluation between steps, and what follows from it: on pure cores, under seeds.

use std::cell::Cell;

use testudo_actors::checkpoint::Snapshot;
use testudo_actors::message::{Evaluated, Finished};
use testudo_actors::scheduler::Command;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, EarlyStopping, Evaluation, JobSpec, Resume};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const SHARDS: u32 = 6;
const STEPS: u64 = 14;
const EVERY: Evaluation = Evaluation { every_steps: 4, early_stopping: None };

fn job(workers: u32, servers: u32, evaluation: Evaluation) -> JobSpec {
    JobSpec { evaluation, ..toy::job(workers, servers, SHARDS, STEPS) }
}

fn run(job: JobSpec, seed: u64) -> (Finished, Vec<Evaluated>) {
    let mut simulation = Simulation::new(job, seed, SumOrder::Canonical);
    (simulation.finish(), simulation.evaluations)
}

fn steps(evaluations: &[Evaluated]) -> Vec<u64> {
    evaluations.iter().map(|found| found.step).collect()
}

/// Invariant 1 of `evaluations.rs`: what is found has the same bits for any cluster, and training has those that it has without.
#[test]
fn what_is_found_does_not_depend_on_the_cluster_nor_training_on_it() {
    let (whole, at_end) = run(job(1, 1, Evaluation::default()), 0);
    assert_eq!(steps(&at_end), [STEPS]);
    let (_, reference) = run(job(1, 1, EVERY), 0);
    assert_eq!(steps(&reference), [4, 8, 12, 14]);
    assert_eq!(reference.last(), at_end.last());
    assert!(reference.iter().all(|found| found.loss.is_finite() && (0.0..=1.0).contains(&found.accuracy)));
    assert!(reference.windows(2).all(|pair| pair[0].loss != pair[1].loss), "each is of its own version");
    for seed in 0..12 {
        let (finished, found) = run(job(1 + seed as u32 % 4, 1 + seed as u32 % 3, EVERY), seed);
        assert_eq!((finished.params_blake3, found), (whole.params_blake3, reference.clone()), "seed {seed}");
        assert!(!finished.stopped_early);
    }
}

/// What a stopped run has found at a version is what an evaluation on the way finds there.
#[test]
fn an_evaluation_on_the_way_is_that_of_a_run_which_ends_there() {
    let (_, found) = run(job(2, 2, EVERY), 3);
    for version in [4, 8] {
        let (_, end) = run(JobSpec { max_steps: Some(version), ..job(2, 1, Evaluation::default()) }, 1);
        assert_eq!(found.iter().find(|found| found.step == version), end.last());
    }
}

/// A worker that dies while it evaluates leaves its part to the others, and its leases too.
#[test]
fn a_death_while_the_test_set_is_evaluated_changes_nothing() {
    let (whole, reference) = run(job(1, 1, EVERY), 0);
    for seed in 0..12 {
        let mut simulation = Simulation::new(job(3, 2, EVERY), seed, SumOrder::Canonical);
        assert!(simulation.run_until(|s| s.steps.len() as u64 == 4 + 4 * (seed % 2)));
        simulation.kill(seed as u32 % 3);
        let finished = simulation.finish();
        assert_eq!(finished.params_blake3, whole.params_blake3, "seed {seed}");
        assert_eq!(simulation.evaluations, reference, "seed {seed}");
    }
}

/// Nothing improves by as much as this asks for, so the first evaluation stays the best.
fn impatient(patience: u32) -> Evaluation {
    Evaluation { every_steps: 2, early_stopping: Some(EarlyStopping { patience, min_improvement: 1e6 }) }
}

#[test]
fn a_run_stops_when_patience_ends_with_the_model_of_that_step() {
    for seed in 0..6 {
        let (finished, found) = run(job(2, 2, impatient(3)), seed);
        assert_eq!((finished.steps, finished.stopped_early), (8, true));
        assert_eq!(steps(&found), [2, 4, 6, 8, 8], "and once more, with the export");
        assert_eq!(found[3], found[4]);
        let (cut, _) = run(JobSpec { max_steps: Some(8), ..job(1, 1, Evaluation::default()) }, seed);
        assert_eq!(finished.params_blake3, cut.params_blake3);
    }
    let (finished, _) = run(job(2, 2, impatient(7)), 0);
    assert_eq!(
        (finished.steps, finished.stopped_early),
        (STEPS, false),
        "there are six evaluations before the end"
    );
}

/// Invariant 2 of `evaluations.rs`: wherever a run goes on from, it stops where an unbroken one does.
#[test]
fn a_resumed_run_stops_where_an_unbroken_one_does() {
    for every_steps in [1, 2, 3] {
        for last in 1..8 {
            let checkpoints = Checkpoints { every_steps, at_end: true };
            let first = JobSpec { checkpoints, max_steps: Some(last), ..job(2, 2, impatient(3)) };
            let mut former = Simulation::new(first, last, SumOrder::Canonical);
            former.finish();
            while let Some(commit) = former.commits.pop() {
                let parts: Vec<Snapshot> = former.parts[&commit.step].values().cloned().collect();
                let (samples, last_loss, best) =
                    (commit.mark.samples, commit.mark.last_loss, commit.mark.best);
                let resume = Resume { step: commit.step, manifest_blake3: [0; 32], samples, last_loss, best };
                let job = JobSpec { resume: Some(resume), ..job(1, 1, impatient(3)) };
                let finished = Simulation::resumed(job, 1, SumOrder::Canonical, parts).finish();
                assert_eq!(finished.steps, 8, "from step {} of {last}", commit.step);
            }
        }
    }
}

/// A pause that falls on an evaluation lets it end, and nothing else begin.
#[test]
fn a_paused_run_ends_its_evaluation_and_goes_on_when_it_is_resumed() {
    let (whole, reference) = run(job(1, 1, EVERY), 0);
    for seed in 0..6 {
        let mut simulation = Simulation::new(job(2, 2, EVERY), seed, SumOrder::Canonical);
        assert!(simulation.run_until(|s| s.steps.len() == 3));
        simulation.command(Command::Pause).unwrap();
        assert!(simulation.run_until(|s| !s.evaluations.is_empty()));
        let looked = Cell::new(0);
        assert!(simulation.run_until(|_| looked.replace(looked.get() + 1) > 300));
        assert_eq!((steps(&simulation.evaluations), simulation.steps.len()), (vec![4], 4));
        simulation.command(Command::Resume).unwrap();
        assert_eq!(simulation.finish().params_blake3, whole.params_blake3);
        assert_eq!(simulation.evaluations, reference);
    }
}
