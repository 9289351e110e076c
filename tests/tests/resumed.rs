//! A run that is stopped and resumed has the bits of one that never was, whoever takes part: on pure cores, under seeds.

use testudo_actors::checkpoint::Snapshot;
use testudo_actors::message::Finished;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, JobSpec, Resume};
use testudo_kernels::{OptimizerSpec, Schedule};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const SHARDS: u32 = 6;
const STEPS: u64 = 14;
fn optimizer(name: &str) -> OptimizerSpec {
    OptimizerSpec::shipped(name).unwrap()
}

fn job(optimizer: OptimizerSpec, workers: u32, servers: u32, steps: u64) -> JobSpec {
    let schedule = Schedule::Cosine { warmup_steps: 3, final_fraction: 0.1 };
    JobSpec { optimizer, schedule, learning_rate: 0.01, ..toy::job(workers, servers, SHARDS, steps) }
}

fn unbroken(optimizer: OptimizerSpec) -> (Finished, Vec<f64>) {
    let mut simulation = Simulation::new(job(optimizer, 1, 1, STEPS), 0, SumOrder::Canonical);
    let finished = simulation.finish();
    (finished, simulation.steps.iter().map(|s| s.loss).collect())
}

/// The job goes on from the newest checkpoint of `former`.
fn resumed(job: JobSpec, former: &Simulation) -> (JobSpec, Vec<Snapshot>) {
    let commit = former.commits.last().expect("there is a checkpoint");
    let parts = former.parts[&commit.step].values().cloned().collect();
    let resume = Resume {
        step: commit.step,
        manifest_blake3: [0; 32],
        samples: commit.mark.samples,
        last_loss: commit.mark.last_loss,
        best: commit.mark.best,
    };
    (JobSpec { resume: Some(resume), ..job }, parts)
}

/// The issue's own line, and the optimizer's state with it: without it, momentum and Adam go astray at once.
#[test]
fn a_run_that_reached_its_last_step_goes_on_with_other_workers_and_servers() {
    let optimizers = [optimizer("sgd").with("weight_decay", 0.01), optimizer("momentum"), optimizer("adam")];
    for (seed, optimizer) in optimizers.into_iter().enumerate() {
        let (whole, losses) = unbroken(optimizer.clone());
        for (workers, servers) in [(4, 3), (1, 1), (3, 2)] {
            let seed = seed as u64 * 10 + u64::from(workers);
            let checkpoints = Checkpoints { every_steps: 0, at_end: true };
            let first = JobSpec { checkpoints, ..job(optimizer.clone(), 2, 2, 7) };
            let mut former = Simulation::new(first, seed, SumOrder::Canonical);
            let finished = former.finish();
            assert_eq!((finished.checkpoint, former.commits.len()), (Some(7), 1));

            let (job, parts) = resumed(job(optimizer.clone(), workers, servers, STEPS), &former);
            let mut simulation = Simulation::resumed(job, seed + 1, SumOrder::Canonical, parts);
            let finished = simulation.finish();
            assert_eq!(finished.params_blake3, whole.params_blake3, "{optimizer:?}, {workers} and {servers}");
            assert_eq!(finished.steps, STEPS);
            let all: Vec<f64> = former.steps.iter().chain(&simulation.steps).map(|s| s.loss).collect();
            assert_eq!(all, losses, "every loss, in one series");
            assert_eq!(simulation.steps[0].step, 7);
            // The servers' pieces make the same hashes before and after, and the last one is the model's.
            let (before, after) = (former.hashes.last().unwrap(), &simulation.hashes);
            assert_eq!(before, &after[0], "what it went on from");
            assert_eq!(after.last(), Some(&(STEPS, whole.params_blake3)));
            assert_eq!(after.len() as u64, STEPS - 7 + 1);
        }
    }
}

/// A stop leaves a checkpoint at the step that it stopped at.
#[test]
fn a_stopped_run_goes_on_where_it_stopped() {
    let (whole, _) = unbroken(optimizer("adam"));
    for seed in 0..6 {
        let checkpoints = Checkpoints { every_steps: 0, at_end: true };
        let first = JobSpec { checkpoints, ..job(optimizer("adam"), 3, 2, STEPS) };
        let mut former = Simulation::new(first, seed, SumOrder::Canonical);
        assert!(former.run_until(|s| s.steps.len() as u64 == 2 + seed));
        former.stop();
        let finished = former.finish();
        assert_eq!(finished.checkpoint, Some(finished.steps));
        let (job, parts) = resumed(job(optimizer("adam"), 2, 3, STEPS), &former);
        let finished = Simulation::resumed(job, seed, SumOrder::Canonical, parts).finish();
        assert_eq!(finished.params_blake3, whole.params_blake3, "seed {seed}");
    }
}

/// Checkpoints on the way are consistent at their step, whatever was under way when they were taken, and through a worker's
/// death; none of them changes a bit of the run that takes them.
#[test]
fn any_checkpoint_on_the_way_is_a_place_to_go_on_from() {
    let optimizer = optimizer("momentum");
    let (whole, _) = unbroken(optimizer.clone());
    for seed in 0..10 {
        let checkpoints = Checkpoints { every_steps: 3, at_end: seed % 2 == 0 };
        let first = JobSpec { checkpoints, ..job(optimizer.clone(), 3, 2, STEPS) };
        let mut former = Simulation::new(first, seed, SumOrder::Canonical);
        let at = 2 + seed % 5;
        assert!(former.run_until(|s| s.steps.len() as u64 >= at && s.pushes_under_way(1) > 0));
        former.kill(1);
        let finished = former.finish();
        assert_eq!(
            finished.params_blake3, whole.params_blake3,
            "seed {seed}: taking checkpoints changed bits"
        );
        let steps: Vec<u64> = former.commits.iter().map(|c| c.step).collect();
        assert!(steps.is_sorted() && !steps.is_empty(), "{steps:?}");
        assert!(steps.iter().all(|step| step % 3 == 0 || *step == STEPS), "{steps:?}");
        assert!(seed % 2 == 1 || steps.last() == Some(&STEPS), "{steps:?}");
        while let Some(step) = former.commits.last().map(|commit| commit.step) {
            let (job, parts) = resumed(job(optimizer.clone(), 2, 1, STEPS), &former);
            let finished = Simulation::resumed(job, seed, SumOrder::Canonical, parts).finish();
            assert_eq!(finished.params_blake3, whole.params_blake3, "seed {seed}, from step {step}");
            former.commits.pop();
        }
    }
}

/// A worker may die at any time of a resumed run, its first step included, and a checkpoint may be its last step.
#[test]
fn deaths_and_ends_right_after_a_resumption() {
    let optimizer = optimizer("adam");
    let (whole, _) = unbroken(optimizer.clone());
    let checkpoints = Checkpoints { every_steps: 0, at_end: true };
    let mut former =
        Simulation::new(JobSpec { checkpoints, ..job(optimizer.clone(), 2, 2, 9) }, 1, SumOrder::Canonical);
    former.finish();
    for seed in 0..8 {
        let (job, parts) = resumed(JobSpec { checkpoints, ..job(optimizer.clone(), 3, 2, STEPS) }, &former);
        let mut simulation = Simulation::resumed(job, seed, SumOrder::Canonical, parts);
        assert!(simulation.run_until(|s| s.pushes_under_way(2) > seed as usize * 3));
        simulation.kill(2);
        assert_eq!(simulation.finish().params_blake3, whole.params_blake3, "seed {seed}");
        assert_eq!(simulation.commits.last().map(|c| c.step), Some(STEPS));

        let (job, parts) = resumed(job_at_its_end(optimizer.clone()), &simulation);
        let mut end = Simulation::resumed(job, seed, SumOrder::Canonical, parts);
        let finished = end.finish();
        assert_eq!(finished.params_blake3, whole.params_blake3, "nothing is left to train");
        assert_eq!((finished.steps, end.steps.len(), finished.checkpoint), (STEPS, 0, Some(STEPS)));
    }
}

fn job_at_its_end(optimizer: OptimizerSpec) -> JobSpec {
    JobSpec { checkpoints: Checkpoints { every_steps: 2, at_end: true }, ..job(optimizer, 2, 3, STEPS) }
}
