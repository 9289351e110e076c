//! Which checkpoints are whole. Pure.
//!
//! 1. A checkpoint is committed when every server that keeps a slice has stored its part of that version, and the step is
//!    complete; never before.
//! 2. Commits are in the order of their steps, one at a time.
//! 3. A version of which a part is missing for good is given up, with a notice that says whose part and why. The last
//!    checkpoint of a run is only given up when a part could not be stored.
//! 4. What servers say about versions that are not due, and what they say twice, changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Commit, Committed, Mark, PartReceipt, StoredPart};
use crate::job::JobSpec;
use crate::message::{CheckpointPart, PartOutcome};
use crate::placement::SliceMap;

/// Versions that may wait for parts; with more, the oldest is given up. A server works at one and skips the others, so
/// only one that says nothing makes them pile up.
const MAX_OPEN: usize = 64;

/// Settled versions that are remembered one by one: more than may be open, so that none of those falls below the floor.
const MAX_CLOSED: usize = 2 * MAX_OPEN;

#[derive(Debug, Default)]
struct Open {
    parts: BTreeMap<u32, PartOutcome>,
    /// Samples and loss, once the step is complete.
    mark: Option<Mark>,
}

/// The checkpoints of a run, as the scheduler follows them.
#[derive(Debug)]
pub(super) struct Checkpoints {
    every: u64,
    at_end: bool,
    holders: BTreeSet<u32>,
    open: BTreeMap<u64, Open>,
    /// Nothing at or below this version will be opened.
    floor: u64,
    /// Versions above it that are settled.
    closed: BTreeSet<u64>,
    /// The version that the run ends with, once it is known.
    last: Option<u64>,
    committing: Option<u64>,
    newest: Option<u64>,
}

impl Checkpoints {
    pub(super) fn new(job: &JobSpec) -> Checkpoints {
        let first = job.first_step();
        Checkpoints {
            every: job.checkpoints.every_steps,
            at_end: job.checkpoints.at_end,
            holders: holders(job),
            open: BTreeMap::new(),
            floor: first,
            closed: BTreeSet::new(),
            last: None,
            committing: None,
            newest: job.resume.as_ref().map(|resume| resume.step),
        }
    }

    fn is_due(&self, version: u64) -> bool {
        let periodic = self.every > 0 && version.is_multiple_of(self.every);
        version > self.floor
            && !self.closed.contains(&version)
            && (periodic || self.at_end && self.last == Some(version))
    }

    /// `version` steps are complete. Gives up the oldest version that waits if too many do; its notice.
    pub(super) fn passed(&mut self, version: u64, mark: Mark) -> Option<String> {
        if !self.is_due(version) {
            return None;
        }
        self.open.entry(version).or_default().mark = Some(mark);
        if self.open.len() <= MAX_OPEN {
            return None;
        }
        let (oldest, _) = self.open.pop_first()?;
        self.close(oldest);
        Some(format!("the checkpoint at step {oldest} is given up: its parts do not come"))
    }

    /// The run ends with `version`. Whether servers are to be told to write it.
    pub(super) fn end(&mut self, version: u64, mark: Mark) -> bool {
        self.last = Some(version);
        if !(self.at_end && self.is_due(version)) {
            return false;
        }
        let open = self.open.entry(version).or_default();
        open.mark = Some(mark);
        true
    }

    /// A server says what has become of its part; `ahead` is the highest version that any slice can have. Whether that
    /// was taken.
    pub(super) fn part(&mut self, server: u32, part: CheckpointPart, ahead: u64) -> bool {
        let CheckpointPart { version, outcome } = part;
        if !self.is_due(version) || version > ahead || !self.holders.contains(&server) {
            return false;
        }
        let parts = &mut self.open.entry(version).or_default().parts;
        let is_news = match parts.get(&server) {
            None => true,
            Some(PartOutcome::Skipped) => outcome != PartOutcome::Skipped,
            Some(_) => false,
        };
        if is_news {
            parts.insert(server, outcome);
        }
        is_news
    }

    /// The next version that can be settled: committed, or given up with a notice.
    pub(super) fn settle(&mut self) -> Option<Result<Commit, String>> {
        if self.committing.is_some() {
            return None;
        }
        let whole = |open: &Open| open.mark.is_some() && open.parts.len() == self.holders.len();
        let (version, open) = self.open.iter().find(|(version, open)| {
            let waits = self.at_end && self.last == Some(**version);
            let skipped = open.parts.values().any(|o| *o == PartOutcome::Skipped);
            whole(open) && !(waits && skipped)
        })?;
        let version = *version;
        let mark = open.mark.unwrap_or_default();
        let mut parts = Vec::new();
        let mut missing = None;
        for (server, outcome) in &open.parts {
            match outcome {
                PartOutcome::Written { bytes, blake3, slices } => parts.push(StoredPart {
                    server: *server,
                    slices: *slices,
                    receipt: PartReceipt { bytes: *bytes, blake3: *blake3 },
                }),
                PartOutcome::Skipped => {
                    missing = Some(format!("server/{server} was still writing the one before"));
                }
                PartOutcome::Failed(why) => missing = Some(format!("server/{server}: {why}")),
            }
        }
        self.open.remove(&version);
        self.close(version);
        Some(match missing {
            Some(why) => Err(format!("no checkpoint at step {version}: {why}")),
            None => {
                // Servers write in order: what is older and not whole will not be.
                while let Some(older) = self.open.first_entry().filter(|open| *open.key() < version) {
                    let older = *older.key();
                    self.open.remove(&older);
                    self.close(older);
                }
                self.committing = Some(version);
                Ok(Commit { step: version, parts, mark })
            }
        })
    }

    fn close(&mut self, version: u64) {
        self.closed.insert(version);
        if self.closed.len() > MAX_CLOSED
            && let Some(oldest) = self.closed.pop_first()
        {
            self.floor = self.floor.max(oldest);
        }
    }

    /// A commit has ended. A notice, if it failed.
    pub(super) fn committed(&mut self, step: u64, result: &Result<Committed, String>) -> Option<String> {
        self.committing.take_if(|committing| *committing == step)?;
        match result {
            Ok(_) => {
                self.newest = Some(step);
                None
            }
            Err(why) => Some(format!("no checkpoint at step {step}: {why}")),
        }
    }

    /// The step of the newest whole checkpoint.
    pub(super) fn newest(&self) -> Option<u64> {
        self.newest
    }

    /// Whether nothing is under way any more.
    pub(super) fn is_settled(&self) -> bool {
        self.committing.is_none() && self.open.is_empty()
    }

    /// Whom the checkpoints under way wait for.
    pub(super) fn waits_for(&self) -> Option<String> {
        if let Some(step) = self.committing {
            return Some(format!("waiting for the manifest of the checkpoint at step {step} to be written"));
        }
        let (version, open) = self.open.first_key_value()?;
        let missing: Vec<String> = self
            .holders
            .iter()
            .filter(|server| !matches!(open.parts.get(server), Some(PartOutcome::Written { .. })))
            .map(|server| format!("server/{server}"))
            .collect();
        Some(format!("waiting for {} to write the checkpoint at step {version}", missing.join(", ")))
    }
}

/// The servers that keep a slice: those that keep none have nothing to write.
pub(super) fn holders(job: &JobSpec) -> BTreeSet<u32> {
    let parameters = job.model.parameters().ok();
    let placed = parameters.and_then(|parameters| SliceMap::of(job, &parameters).ok());
    placed.map(|map| map.slices().iter().map(|s| s.server).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use testudo_kernels::{ModelSpec, OptimizerSpec, Schedule};

    use super::*;
    use crate::job::{Checkpoints as Wanted, DataSpec, Determinism, Evaluation, FORMAT};

    fn mark(samples: u64, last_loss: Option<f64>) -> Mark {
        Mark { samples, last_loss, best: None }
    }

    fn checkpoints(every_steps: u64, at_end: bool) -> Checkpoints {
        Checkpoints::new(&JobSpec {
            format: FORMAT,
            name: "job".into(),
            trust_domain: "test.local".into(),
            workers: 1,
            servers: 2,
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
        })
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
}
