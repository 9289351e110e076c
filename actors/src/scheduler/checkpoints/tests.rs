//! Tests of which checkpoints are whole, by the invariants' numbers.

use testudo_kernels::{Codec, ModelSpec, OptimizerSpec, Schedule};

use super::*;
use crate::job::{Checkpoints as Wanted, DataSpec, Determinism, Evaluation, FORMAT};

fn mark(samples: u64, last_loss: Option<f64>) -> Mark {
    Mark { samples, last_loss, best: None }
}

fn checkpoints(every_steps: u64, at_end: bool) -> Checkpoints {
    Checkpoints::new(&job(every_steps, at_end))
}

/// The same for a job of three logical shards and error feedback.
fn with_residuals(every_steps: u64, at_end: bool) -> Checkpoints {
    let codecs = crate::Codecs { push: Codec::Int8, ..crate::Codecs::default() };
    Checkpoints::new(&JobSpec { codecs, workers: 3, logical_shards: 3, ..job(every_steps, at_end) })
}

fn job(every_steps: u64, at_end: bool) -> JobSpec {
    JobSpec {
        format: FORMAT,
        name: "job".into(),
        trust_domain: "test.local".into(),
        workers: 1,
        servers: 2,
        elastic: Default::default(),
        model: ModelSpec::Mlp { inputs: 8, hidden: vec![8], classes: 4 },
        precision: testudo_kernels::Precision::F32,
        optimizer: OptimizerSpec::shipped("sgd").unwrap(),
        learning_rate: 0.1,
        schedule: Schedule::Constant,
        seed: 1,
        epochs: 100,
        batch_size: 8,
        logical_shards: 1,
        aggregation: testudo_kernels::Aggregation::Mean,
        clip_norm: None,
        max_steps: None,
        evaluation: Evaluation::default(),
        data: DataSpec { train_examples: 64, test_examples: 8, blake3: [0; 32] },
        slice_bytes: 16,
        codecs: crate::Codecs::default(),
        determinism: Determinism::Strict,
        heartbeat_ms: 100,
        heartbeat_timeout_ms: 1000,
        export: true,
        checkpoints: Wanted { every_steps, at_end },
        audit: crate::job::Audit::default(),
        witness_rate: 0.0,
        resume: None,
    }
}

fn written(version: u64) -> CheckpointPart {
    CheckpointPart {
        version,
        outcome: PartOutcome::Written { bytes: 9, blake3: [version as u8; 32], slices: 1 },
    }
}

fn skipped(version: u64) -> CheckpointPart {
    CheckpointPart { version, outcome: PartOutcome::Skipped }
}

fn committed(step: u64) -> Result<Committed, String> {
    Ok(Committed { step, manifest_blake3: [0; 32], deleted: Vec::new() })
}

/// Invariants 1 and 2.
#[test]
fn a_checkpoint_is_committed_when_every_part_and_the_step_are_there() {
    let mut all = checkpoints(5, false);
    all.part(0, written(5), 8);
    assert_eq!(all.settle(), None);
    all.passed(5, mark(40, Some(0.5)));
    assert_eq!(all.settle(), None, "server/1 has not written");
    assert!(all.waits_for().is_some_and(|text| text.contains("server/1") && text.contains("step 5")));
    all.part(1, written(5), 8);
    let Some(Ok(commit)) = all.settle() else { panic!("it is whole") };
    assert_eq!((commit.step, commit.parts.len(), commit.mark.samples), (5, 2, 40));
    all.passed(10, mark(80, None));
    all.part(0, written(10), 13);
    all.part(1, written(10), 13);
    assert_eq!(all.settle(), None, "one at a time");
    assert_eq!(all.committed(5, &committed(5)), None);
    assert!(matches!(all.settle(), Some(Ok(Commit { step: 10, .. }))));
    assert!(!all.is_settled());
    assert!(all.committed(10, &Err("disk full".into())).is_some_and(|text| text.contains("disk full")));
    assert_eq!((all.newest(), all.is_settled()), (Some(5), true));
}

/// Invariant 3.
#[test]
fn a_skipped_one_is_given_up_but_never_the_last() {
    let mut all = checkpoints(5, true);
    all.part(0, written(5), 8);
    all.part(1, skipped(5), 8);
    all.passed(5, mark(40, None));
    let Some(Err(notice)) = all.settle() else { panic!("given up") };
    assert!(notice.contains("server/1 was still writing") && notice.contains("step 5"), "{notice}");
    assert!(all.is_settled());
    // The last version is due anyway; the server that skipped it writes it on the order.
    all.part(1, skipped(10), 10);
    all.part(0, written(10), 10);
    assert!(all.end(10, mark(80, None)));
    assert_eq!(all.settle(), None);
    all.part(1, written(10), 10);
    assert!(matches!(all.settle(), Some(Ok(Commit { step: 10, .. }))));
}

#[test]
fn a_part_that_failed_is_told_and_training_ends_all_the_same() {
    let mut all = checkpoints(0, true);
    assert_eq!(all.passed(5, mark(40, None)), None);
    assert!(all.end(7, mark(56, None)) && !all.is_settled());
    let failed = CheckpointPart { version: 7, outcome: PartOutcome::Failed("no space".into()) };
    all.part(0, failed, 7);
    all.part(1, written(7), 7);
    assert!(matches!(all.settle(), Some(Err(notice)) if notice.contains("server/0: no space")));
    assert_eq!((all.is_settled(), all.newest()), (true, None));
}

/// Invariant 4.
#[test]
fn what_is_not_due_or_said_twice_changes_nothing() {
    let mut all = checkpoints(5, false);
    for version in [0, 3, 10, 1_000_000] {
        all.part(0, written(version), 8);
    }
    all.part(7, written(5), 8);
    assert!(all.is_settled(), "neither due, nor possible yet, nor anybody's");
    all.part(0, written(5), 8);
    all.part(0, CheckpointPart { version: 5, outcome: PartOutcome::Failed("no".into()) }, 8);
    all.part(1, written(5), 8);
    all.passed(5, mark(40, None));
    assert!(matches!(all.settle(), Some(Ok(_))));
    assert_eq!(all.committed(4, &committed(4)), None);
    assert!(!all.is_settled());
    all.committed(5, &committed(5));
    all.part(0, written(5), 8);
    assert!(all.is_settled(), "what is settled is not opened again");
}

#[test]
fn versions_that_never_become_whole_do_not_pile_up() {
    let mut all = checkpoints(1, false);
    let notices = (1..=200).filter_map(|version| all.passed(version, mark(version, None))).count();
    assert_eq!(notices, 200 - MAX_OPEN);
    assert_eq!(all.open.len(), MAX_OPEN);
}

fn residuals(version: u64, shards: &[u32]) -> ResidualPart {
    let outcome = PartOutcome::Written { bytes: 7, blake3: [shards.len() as u8; 32], slices: 1 };
    ResidualPart { version, shards: shards.to_vec(), outcome }
}

fn skip(version: u64) -> ResidualPart {
    ResidualPart { version, shards: Vec::new(), outcome: PartOutcome::Skipped }
}

/// A checkpoint whose servers have all written, and whose step is complete.
fn served(all: &mut Checkpoints, version: u64) {
    all.part(0, written(version), version);
    all.part(1, written(version), version);
    all.passed(version, mark(8 * version, None));
}

/// Invariant 1.
#[test]
fn residuals_of_every_shard_belong_to_a_checkpoint() {
    let mut all = with_residuals(5, false);
    served(&mut all, 5);
    assert_eq!(all.settle(), None);
    assert!(all.waits_for().is_some_and(|text| text.contains("workers to write the residuals")));
    all.residuals(0, residuals(5, &[0]), 8);
    all.residuals(1, residuals(5, &[1, 2]), 8);
    let Some(Ok(commit)) = all.settle() else { panic!("it is whole") };
    let stored: Vec<(u32, Vec<u32>)> = commit.residuals.into_iter().map(|r| (r.worker, r.shards)).collect();
    assert_eq!(stored, [(0, vec![0]), (1, vec![1, 2])]);
    all.committed(5, &committed(5));
    // One that was skipped or failed is given up, whoever it was.
    for (version, part, why) in [
        (10, skip(10), "worker/2 was still writing"),
        (
            15,
            ResidualPart { outcome: PartOutcome::Failed("no space".into()), ..skip(15) },
            "worker/2: no space",
        ),
    ] {
        all.residuals(2, part, version);
        served(&mut all, version);
        assert!(matches!(all.settle(), Some(Err(notice)) if notice.contains(why)), "{why}");
        assert!(!all.residuals(0, residuals(version, &[0]), version), "and is not opened again");
    }
    assert!(all.is_settled());
    let mut none = checkpoints(5, true);
    assert!(
        !none.residuals(0, residuals(5, &[0]), 8) && none.is_settled(),
        "where none are kept, none are heard of"
    );
}

/// Invariant 5.
#[test]
fn what_a_lost_worker_stored_counts_if_all_of_the_step_is_stored() {
    // Its step was complete, and all was stored but a server's part.
    let mut all = with_residuals(5, false);
    all.part(0, written(5), 8);
    all.passed(5, mark(40, None));
    all.residuals(0, residuals(5, &[0, 1]), 8);
    all.residuals(1, residuals(5, &[2]), 8);
    all.lose(1, 9);
    all.part(1, written(5), 8);
    assert!(matches!(all.settle(), Some(Ok(commit)) if commit.residuals.len() == 2));
    all.committed(5, &committed(5));
    // Its step was not: the heir begins with none, and that is not in its part.
    all.residuals(0, residuals(10, &[0, 1]), 12);
    all.residuals(1, residuals(10, &[2]), 12);
    all.lose(1, 12);
    served(&mut all, 10);
    assert!(matches!(all.settle(), Some(Err(notice)) if notice.contains("lost with a worker")));
    // From there on the heir has them.
    all.residuals(0, residuals(15, &[0, 1, 2]), 15);
    served(&mut all, 15);
    assert!(matches!(all.settle(), Some(Ok(_))));
}

/// Invariant 3, for residuals: the last version is asked for again.
#[test]
fn the_last_checkpoint_waits_for_whoever_is_told_to_write() {
    let mut all = with_residuals(5, true);
    all.residuals(0, residuals(10, &[0]), 12);
    all.residuals(1, skip(10), 12);
    all.residuals(2, residuals(10, &[2]), 12);
    all.lose(2, 12);
    served(&mut all, 10);
    assert!(all.end(10, mark(80, None)));
    assert_eq!(all.settle(), None);
    assert!(all.last_lacks_residuals() && !all.last_lacks(0, &[0]) && all.last_lacks(0, &[0, 2]));
    all.residuals(1, residuals(10, &[1]), 12);
    all.residuals(0, residuals(10, &[0, 2]), 12);
    let Some(Ok(commit)) = all.settle() else { panic!("it is whole") };
    assert_eq!(
        commit.residuals[0].receipt.blake3, [2; 32],
        "the part that was written over is not the former"
    );
    assert!(!all.last_lacks_residuals());
}
