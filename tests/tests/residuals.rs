//! Residuals of error feedback in checkpoints: a resumed run goes on with what its workers had kept back, whoever computes which shard
//! then, and no checkpoint holds what is not the run's.

use testudo_actors::checkpoint::{ResidualSnapshot, Snapshot};
use testudo_actors::message::{Finished, Outcome};
use testudo_actors::replay::Replay;
use testudo_actors::server::SumOrder;
use testudo_actors::worker::ShardCompute;
use testudo_actors::{Checkpoints, Codecs, Elastic, JobSpec, Resume};
use testudo_kernels::Codec;
use testudo_tests::sim::{KeptResiduals, Simulation};
use testudo_tests::toy;

const STEPS: u64 = 8;
const SHARDS: u32 = 6;

/// Every codec that keeps residuals, lossy in both directions.
const FEEDING_BACK: [Codecs; 4] = [
    Codecs { push: Codec::Int8, pull: Codec::Int8 },
    Codecs { push: Codec::TwoBit { threshold: 0.5 }, pull: Codec::Bf16 },
    Codecs { push: Codec::OneBit { threshold: 0.0 }, pull: Codec::F16 },
    Codecs { push: Codec::TopK { fraction: 0.25 }, pull: Codec::Bf16 },
];

/// A checkpoint after every second step, or at the end alone.
fn job(codecs: Codecs, (workers, servers): (u32, u32), every_steps: u64) -> JobSpec {
    let checkpoints = Checkpoints { every_steps, at_end: true };
    JobSpec { codecs, checkpoints, slice_bytes: 1600, ..toy::job(workers, servers, SHARDS, STEPS) }
}

fn undisturbed(codecs: Codecs) -> Finished {
    Simulation::new(job(codecs, (1, 1), 0), 0, SumOrder::Canonical).finish()
}

fn resume(step: u64) -> Resume {
    Resume { step, manifest_blake3: [0; 32], samples: 0, last_loss: None, best: None }
}

fn resumed(job: &JobSpec, step: u64, seed: u64, kept: &(Vec<Snapshot>, Vec<ResidualSnapshot>)) -> Finished {
    let job = JobSpec { resume: Some(resume(step)), ..job.clone() };
    let simulation = Simulation::resumed(job, seed, SumOrder::Canonical, kept.0.clone());
    simulation.with_residuals(&kept.1).finish()
}

/// What is resumed has the bits of what was never stopped, with any number of workers and servers; so has what is replayed.
#[test]
fn a_resumed_run_has_the_bits_of_one_that_was_never_stopped() {
    for codecs in FEEDING_BACK {
        let expected = undisturbed(codecs).params_blake3;
        let job = |nodes| job(codecs, nodes, 2);
        let mut former = Simulation::new(job((3, 2)), 9, SumOrder::Canonical);
        assert_eq!(former.finish().params_blake3, expected, "{codecs:?}");
        assert!(former.commits.len() > 1 && former.commits.last().unwrap().step == STEPS);
        let step = former.commits[0].step;
        let kept = former.checkpoint(step);
        assert_eq!(kept.1.iter().map(|part| part.shards.len()).sum::<usize>(), SHARDS as usize);
        for (seed, nodes) in [(1, (1, 1)), (2, (2, 3)), (3, (6, 1))] {
            let finished = resumed(&job(nodes), step, seed, &kept);
            assert_eq!(
                (finished.params_blake3, finished.residuals_lost),
                (expected, 0),
                "{codecs:?}: {nodes:?}"
            );
        }
        // Without them it would have others.
        let none: Vec<ResidualSnapshot> = kept.1.iter().map(empty).collect();
        assert_ne!(
            resumed(&job((3, 2)), step, 4, &(kept.0.clone(), none)).params_blake3,
            expected,
            "{codecs:?}"
        );

        let alone = job((1, 1));
        let model = alone.model.build(ShardCompute::largest_batch(&alone)).unwrap();
        let mut source = KeptResiduals(kept.0, kept.1);
        let mut replay = Replay::new(&alone, model, toy::data(), Some((resume(step), &mut source))).unwrap();
        while replay.steps() < STEPS {
            let _ = replay.advance().unwrap();
        }
        assert_eq!(replay.params_blake3(), expected, "{codecs:?}");
    }
}

fn empty(part: &ResidualSnapshot) -> ResidualSnapshot {
    let mut part = part.clone();
    part.shards.iter_mut().flat_map(|shard| &mut shard.values).for_each(|values| values.fill(0.0));
    part
}

/// A resumed run is stopped and resumed again, with other nodes each time.
#[test]
fn a_chain_of_resumptions_has_the_same_bits() {
    let codecs = FEEDING_BACK[0];
    let expected = undisturbed(codecs).params_blake3;
    let first = JobSpec { max_steps: Some(3), ..job(codecs, (2, 1), 0) };
    let mut run = Simulation::new(first, 1, SumOrder::Canonical);
    let _ = run.finish();
    for (step, until, nodes) in [(3, 4, (5, 2)), (4, 7, (1, 3)), (7, STEPS, (4, 1))] {
        let (parts, residuals) = run.checkpoint(step);
        let next = JobSpec { max_steps: Some(until), resume: Some(resume(step)), ..job(codecs, nodes, 0) };
        run = Simulation::resumed(next, step, SumOrder::Canonical, parts).with_residuals(&residuals);
        let finished = run.finish();
        assert_eq!((finished.steps, finished.params_blake3 == expected), (until, until == STEPS));
    }
}

/// Who joins a resumed run later begins with none, and does not ask for a checkpoint that may be deleted by then.
#[test]
fn who_joins_a_resumed_run_later_restores_nothing() {
    let codecs = FEEDING_BACK[0];
    let mut former = Simulation::new(job(codecs, (2, 1), 2), 9, SumOrder::Canonical);
    let _ = former.finish();
    let step = former.commits[0].step;
    let (parts, residuals) = former.checkpoint(step);
    let elastic = Elastic { extra_workers: 1, return_ms: 0 };
    let resume = Some(resume(step));
    let next = JobSpec { max_steps: Some(20), elastic, resume, ..job(codecs, (2, 1), 2) };
    let mut run = Simulation::resumed(next, 1, SumOrder::Canonical, parts).with_residuals(&residuals);
    assert!(run.run_until(|s| s.steps.len() == 2));
    run.start(2);
    assert_eq!(run.finish().steps, 20);
    assert!(run.notices.iter().any(|n| n.contains("move to other workers")), "{:?}", run.notices);
}

/// Through a death at any time: whatever checkpoint there is, a run that resumes from it has the bits of one that nobody left, or of
/// the one that it was a checkpoint of. And there is one at the end, whatever was lost.
#[test]
fn a_checkpoint_is_of_a_run_whoever_dies() {
    let (mut given_up, mut lost, mut own) = (0, 0, 0);
    for seed in 0..24 {
        let codecs = FEEDING_BACK[seed as usize % FEEDING_BACK.len()];
        let expected = undisturbed(codecs).params_blake3;
        let job = job(codecs, (3, 2), 1 + seed % 3);
        let mut run = Simulation::new(job.clone(), seed, SumOrder::Canonical);
        let step = (seed * 5) % (STEPS + 1);
        // Some die with pushes under way, some between steps, some after the last step, before they have written.
        let dies = |s: &Simulation| {
            let between = step > 0 && seed % 2 == 0;
            s.steps.len() as u64 >= step && (step == STEPS || between || s.pushes_under_way(1) > 0)
        };
        if run.run_until(dies) {
            run.kill(1);
        }
        let finished = run.finish();
        let last = run.commits.last().map(|commit| commit.step);
        assert_eq!((last, finished.checkpoint), (Some(STEPS), Some(STEPS)), "{seed}: {:?}", run.notices);
        given_up += run.notices.iter().filter(|notice| notice.contains("no checkpoint at step")).count();
        lost += finished.residuals_lost;
        for commit in &run.commits {
            let kept = run.checkpoint(commit.step);
            let again = resumed(&JobSpec { workers: 2, ..job.clone() }, commit.step, seed, &kept);
            let bits = [expected, finished.params_blake3];
            assert!(bits.contains(&again.params_blake3), "{seed}: from step {}", commit.step);
            own += u32::from(
                again.params_blake3 == finished.params_blake3 && finished.params_blake3 != expected,
            );
        }
    }
    assert!(given_up > 0 && lost > 0 && own > 0, "{given_up} {lost} {own}");
}

/// A worker that says that it has written what is not its own is not believed, and costs nobody the run.
#[test]
fn a_checkpoint_that_lacks_residuals_is_none() {
    let codecs = FEEDING_BACK[0];
    let job = job(codecs, (2, 1), 0);
    let mut run = Simulation::new(job, 3, SumOrder::Canonical);
    run.foreign_residuals = Some(1);
    let Outcome::Finished(finished) = run.run() else { panic!("the run failed") };
    assert_eq!((finished.checkpoint, run.commits.len()), (None, 0));
    let said = |what: &str| run.notices.iter().any(|notice| notice.contains(what));
    assert!(
        said("worker/1: it wrote residuals of logical shards that it does not hold"),
        "{:?}",
        run.notices
    );
}
