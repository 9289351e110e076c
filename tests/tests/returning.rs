//! Workers that die and come back, and workers that join a running job, under seeds: the bits stay what they are.

use testudo_actors::message::{Body, Finished, Outcome, Push, PushRefusal};
use testudo_actors::scheduler::Command;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, Codecs, Elastic, JobSpec};
use testudo_kernels::{Aggregation, Codec};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const SHARDS: u32 = 6;
const STEPS: u64 = 8;

/// Seeds that each test tries; `TESTUDO_SEEDS` asks for others.
fn seeds(usual: u64) -> u64 {
    std::env::var("TESTUDO_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn elastic(workers: u32, servers: u32, extra_workers: u32) -> JobSpec {
    JobSpec {
        elastic: Elastic { extra_workers, return_ms: 60_000 },
        ..toy::job(workers, servers, SHARDS, STEPS)
    }
}

fn simulate(job: JobSpec, seed: u64) -> Simulation {
    Simulation::new(job, seed, SumOrder::Canonical)
}

fn undisturbed(job: &JobSpec) -> (Finished, Vec<f64>) {
    let mut simulation = simulate(job.clone(), 0);
    let finished = simulation.finish();
    (finished, simulation.steps.iter().map(|step| step.loss).collect())
}

/// Kills and starts workers at moments of the seed's choosing, `workers` of them, `events` times, once training has begun.
fn disturb(simulation: &mut Simulation, workers: u32, events: usize) {
    simulation.run_until(|s| s.membership_epoch() > 0);
    for _ in 0..events {
        let next = simulation.moves + simulation.choose(600) as u64;
        // Where nobody is left, nothing moves any more at some point.
        if !simulation.run_until(|s| s.moves >= next || s.idle > 1) {
            return;
        }
        let worker = simulation.choose(workers as usize) as u32;
        match simulation.lives(worker) {
            true => simulation.kill(worker),
            false => simulation.start(worker),
        }
    }
    let dead: Vec<u32> = (0..workers).filter(|worker| !simulation.lives(*worker)).collect();
    dead.into_iter().for_each(|worker| simulation.start(worker));
}

fn same(simulation: &mut Simulation, reference: &Finished, what: &str) -> Finished {
    let finished = match simulation.run() {
        Outcome::Finished(finished) => finished,
        Outcome::Failed(reason) | Outcome::ServerLost(reason) => {
            panic!("{what}: {reason}; notices: {:?}", simulation.notices)
        }
    };
    assert_eq!(finished.params_blake3, reference.params_blake3, "{what}");
    assert_eq!(finished.test_loss.to_bits(), reference.test_loss.to_bits(), "{what}");
    let late = |reason: &PushRefusal| *reason == PushRefusal::NoLease;
    assert!(simulation.refused.iter().all(|(_, reason)| late(reason)), "{what}: {:?}", simulation.refused);
    finished
}

/// semantics.md, line 10: whoever dies whenever, and comes back whenever, all of them at once included.
#[test]
fn workers_that_die_and_come_back_change_no_bit() {
    for (workers, servers) in [(1, 1), (2, 1), (2, 2), (3, 2), (6, 3)] {
        let job = elastic(workers, servers, 0);
        let (reference, _) = undisturbed(&job);
        let mut lost = 0;
        for seed in 0..seeds(60) {
            let mut simulation = simulate(job.clone(), seed);
            disturb(&mut simulation, workers, 8);
            lost += same(
                &mut simulation,
                &reference,
                &format!("{workers} workers, {servers} servers, seed {seed}"),
            )
            .workers_lost;
        }
        assert!(lost > 60, "hardly anybody died: {lost}");
    }
}

/// The same with workers beyond those that the job begins with.
#[test]
fn workers_that_join_a_running_job_change_no_bit() {
    let job = elastic(2, 2, 3);
    let (reference, _) = undisturbed(&job);
    for seed in 0..seeds(60) {
        let mut simulation = simulate(job.clone(), seed);
        disturb(&mut simulation, 5, 9);
        same(&mut simulation, &reference, &format!("seed {seed}"));
    }
}

/// Votes, whole gradients, batches of evaluations between steps, and the witness go on as well.
#[test]
fn rules_evaluations_and_witnesses_go_on_through_returns() {
    let rule = |aggregation| JobSpec { logical_shards: 4, aggregation, ..elastic(4, 2, 0) };
    let mut evaluated = elastic(3, 2, 0);
    evaluated.evaluation.every_steps = 2;
    let jobs = [
        rule(Aggregation::Median { hostile: 1 }),
        JobSpec { clip_norm: Some(0.1), ..elastic(3, 2, 0) },
        evaluated,
        JobSpec { witness_rate: 1.0, ..elastic(3, 2, 0) },
    ];
    for (which, job) in jobs.into_iter().enumerate() {
        let (reference, _) = undisturbed(&job);
        for seed in 0..seeds(30) {
            let mut simulation = simulate(job.clone(), seed);
            disturb(&mut simulation, job.workers, 6);
            same(&mut simulation, &reference, &format!("job {which}, seed {seed}"));
        }
    }
}

/// Invariant 3 of returns: where no report is lost, losses are those of an undisturbed run, whoever reports which part first. And
/// invariant 6 of leases: the newcomer takes its own up, and pushes it.
#[test]
fn who_joins_takes_over_whole_steps_and_loses_nothing() {
    let job = JobSpec { max_steps: Some(24), ..elastic(2, 2, 2) };
    let (reference, losses) = undisturbed(&job);
    for seed in 0..seeds(20) {
        let mut simulation = simulate(job.clone(), seed);
        assert!(simulation.run_until(|s| s.steps.len() == 3));
        simulation.start(2);
        assert!(simulation.run_until(|s| s.steps.len() == 6));
        simulation.start(3);
        same(&mut simulation, &reference, &format!("seed {seed}"));
        let found: Vec<f64> = simulation.steps.iter().map(|step| step.loss).collect();
        assert_eq!(found, losses, "seed {seed}");
        let pushes = simulation.carried.iter().filter(|(kind, ..)| *kind == Push::KIND);
        let last: std::collections::BTreeSet<_> = pushes
            .map(|(_, body, _)| Push::decode(body).unwrap())
            .filter(|push| push.step == 23)
            .map(|push| push.node)
            .collect();
        assert!(last.len() >= 4, "four workers share the last step: {last:?}");
        assert!(simulation.notices.iter().any(|n| n.contains("worker/3 has joined, as its incarnation 1")));
    }
}

/// A run that nobody comes back to ends, with the reason; one that waits for nobody ends at once.
#[test]
fn a_run_without_workers_waits_for_as_long_as_it_says() {
    let run = |return_ms| {
        let mut job = elastic(1, 1, 0);
        job.elastic.return_ms = return_ms;
        let mut simulation = simulate(job, 3);
        assert!(simulation.run_until(|s| s.steps.len() == 2));
        simulation.kill(0);
        match simulation.run() {
            Outcome::Failed(reason) => reason,
            other => panic!("nobody was left: {other:?}"),
        }
    };
    assert!(run(0).contains("no worker is left"), "{}", run(0));
    assert!(run(2_000).contains("none came back within 2000 ms"), "{}", run(2_000));
}

/// Invariants 1 and 2 of scaling: up, and down again in order, with the bits and losses of a run that was left alone.
#[test]
fn a_run_is_scaled_up_and_down_and_nobody_is_lost() {
    let job = JobSpec { max_steps: Some(30), ..elastic(2, 2, 3) };
    let (reference, losses) = undisturbed(&job);
    for seed in 0..seeds(20) {
        let mut simulation = simulate(job.clone(), seed);
        assert!(simulation.run_until(|s| s.steps.len() == 3));
        assert!(simulation.command(Command::Scale { workers: 6 }).unwrap_err().contains("1 to 5 workers"));
        assert!(simulation.command(Command::Scale { workers: 5 }).is_ok());
        (2..5).for_each(|worker| simulation.start(worker));
        assert!(simulation.run_until(|s| s.steps.len() == 10));
        assert!(simulation.command(Command::Scale { workers: 1 }).is_ok());
        assert!(simulation.run_until(|s| !(1..5).any(|worker| s.lives(worker))), "seed {seed}: they leave");
        simulation.start(4);
        let finished = same(&mut simulation, &reference, &format!("seed {seed}"));
        assert_eq!(finished.workers_lost, 0, "seed {seed}: {:?}", simulation.notices);
        assert!(simulation.turned_away[0].1.contains("admits 1"), "{:?}", simulation.turned_away);
        let found: Vec<f64> = simulation.steps.iter().map(|step| step.loss).collect();
        assert_eq!(found, losses, "seed {seed}");
    }
    let votes =
        JobSpec { logical_shards: 4, aggregation: Aggregation::Median { hostile: 1 }, ..elastic(4, 1, 0) };
    let mut simulation = simulate(votes, 1);
    assert!(simulation.run_until(|s| s.steps.len() == 1));
    assert!(simulation.command(Command::Scale { workers: 3 }).unwrap_err().contains("has a vote"));
}

/// What error feedback keeps back is lost with a worker; the last checkpoint is whole all the same, whoever has come and gone.
#[test]
fn the_last_checkpoint_of_error_feedback_is_whole_through_returns() {
    let checkpoints = Checkpoints { every_steps: 3, at_end: true };
    let codecs = Codecs { push: Codec::OneBit { threshold: 0.0 }, pull: Codec::F32 };
    let job = JobSpec { codecs, checkpoints, ..elastic(3, 2, 2) };
    for seed in 0..seeds(30) {
        let mut simulation = simulate(job.clone(), seed);
        disturb(&mut simulation, 5, 8);
        let finished = simulation.finish();
        assert_eq!(finished.checkpoint, Some(STEPS), "seed {seed}: {:?}", simulation.notices);
        let last = simulation.commits.last().unwrap();
        let mut shards: Vec<u32> =
            last.residuals.iter().flat_map(|part| part.shards.iter().copied()).collect();
        shards.sort_unstable();
        assert_eq!(shards, (0..SHARDS).collect::<Vec<_>>(), "seed {seed}");
    }
}

/// The codecs that keep back what they lose.
const FEEDING_BACK: [Codec; 4] = [
    Codec::Int8,
    Codec::TwoBit { threshold: 0.5 },
    Codec::OneBit { threshold: 0.0 },
    Codec::TopK { fraction: 0.25 },
];

/// Who comes back computes other bits for a step than it had pushed when it died, as what it had kept back is lost: the run goes on.
#[test]
fn error_feedback_goes_on_through_the_death_of_everybody() {
    for push in FEEDING_BACK {
        for (workers, servers) in [(1, 1), (2, 2), (3, 1)] {
            let codecs = Codecs { push, pull: Codec::F32 };
            let checkpoints = Checkpoints { every_steps: 2, at_end: workers == 2 };
            let job = JobSpec { codecs, checkpoints, ..elastic(workers, servers, 0) };
            for seed in 0..seeds(15) {
                let mut simulation = simulate(job.clone(), seed);
                disturb(&mut simulation, workers, 8);
                assert_eq!(simulation.finish().steps, STEPS, "{push}, seed {seed}");
            }
        }
    }
}

/// Who is not wanted any more leaves when it has written what it kept back, and no checkpoint lacks it.
#[test]
fn who_is_dismissed_has_written_its_residuals() {
    let codecs = Codecs { push: Codec::Int8, pull: Codec::F32 };
    let checkpoints = Checkpoints { every_steps: 2, at_end: false };
    let job = JobSpec { codecs, checkpoints, max_steps: Some(20), ..elastic(3, 2, 0) };
    for seed in 0..seeds(40) {
        let mut simulation = simulate(job.clone(), seed);
        assert!(simulation.run_until(|s| s.steps.len() == 5));
        assert!(simulation.command(Command::Scale { workers: 1 }).is_ok());
        let finished = simulation.finish();
        assert_eq!(finished.workers_lost, 0, "seed {seed}");
        let wrong =
            |notice: &&String| notice.contains("does not hold") || notice.contains("lost with a worker");
        assert_eq!(simulation.notices.iter().find(wrong), None, "seed {seed}");
        assert!(simulation.notices.iter().any(|notice| notice.contains("move to other workers")));
    }
}
