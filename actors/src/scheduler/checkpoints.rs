//! Which checkpoints are whole. Pure.
//!
//! 1. A checkpoint is committed when every server that keeps a slice has stored its part of that version, workers every logical shard's
//!    residuals if the job keeps them, and the step is complete; never before.
//! 2. Commits are in the order of their steps, one at a time.
//! 3. A version of which a part is missing for good is given up, with a notice that says whose part and why. The last
//!    checkpoint of a run is only given up when a part could not be stored.
//! 4. What servers say about versions that are not due, and what they say twice, changes nothing.
//! 5. Residuals that died with a worker are in no checkpoint: one whose step was not complete by then needs them from who computes
//!    their shards now.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Commit, Committed, Mark, PartReceipt, StoredPart};
use crate::job::JobSpec;
use crate::message::{CheckpointPart, PartOutcome, ResidualPart};
use crate::placement::SliceMap;
use crate::scheduler::residuals::Residuals;

/// Versions that may wait for parts; with more, the oldest is given up. A server works at one and skips the others, so
/// only one that says nothing makes them pile up.
const MAX_OPEN: usize = 64;

/// Settled versions that are remembered one by one: more than may be open, so that none of those falls below the floor.
const MAX_CLOSED: usize = 2 * MAX_OPEN;

#[derive(Debug, Default)]
struct Open {
    parts: BTreeMap<u32, PartOutcome>,
    residuals: Residuals,
    /// Samples and loss, once the step is complete.
    mark: Option<Mark>,
}

/// The checkpoints of a run, as the scheduler follows them.
#[derive(Debug)]
pub(super) struct Checkpoints {
    every: u64,
    at_end: bool,
    holders: BTreeSet<u32>,
    /// Logical shards whose residuals are kept; 0 if none are.
    shards: u32,
    /// Steps below this one may have been begun when a worker was lost.
    lost_until: u64,
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
            shards: if job.keeps_residuals() { job.logical_shards } else { 0 },
            lost_until: 0,
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

    /// A worker says what has become of its part. Whether it had said nothing of it before.
    pub(super) fn residuals(&mut self, worker: u32, part: ResidualPart, ahead: u64) -> bool {
        let ResidualPart { version, shards, outcome } = part;
        if self.shards == 0 || !self.is_due(version) || version > ahead {
            return false;
        }
        self.open.entry(version).or_default().residuals.add(worker, shards, outcome)
    }

    /// A worker is lost that may have begun the steps below `until`: what it has stored counts where all is stored of a complete step
    /// (invariant 5).
    pub(super) fn lose(&mut self, worker: u32, until: u64) {
        if self.shards == 0 {
            return;
        }
        self.lost_until = self.lost_until.max(until);
        for open in self.open.values_mut() {
            if open.mark.is_none() || !open.residuals.are_whole(self.shards) {
                open.residuals.forget(worker);
            }
        }
    }

    /// Whether a checkpoint of a complete step, at `version` or below, is still open for which a worker has said nothing of its residuals.
    pub(super) fn awaits(&self, worker: u32, version: u64) -> bool {
        let mut open = self.open.range(..=version);
        self.shards > 0
            && open.any(|(_, open)| {
                open.mark.is_some() && !open.residuals.are_whole(self.shards) && !open.residuals.knows(worker)
            })
    }

    /// The oldest version that waits for something, where residuals are kept.
    pub(super) fn oldest_with_residuals(&self) -> Option<u64> {
        self.open.keys().next().copied().filter(|_| self.shards > 0)
    }

    /// Whether residuals are missing that a worker can still be told to write: those of the last version.
    pub(super) fn last_lacks_residuals(&self) -> bool {
        let last = self.last.filter(|_| self.at_end && self.shards > 0);
        last.and_then(|last| self.open.get(&last)).is_some_and(|open| !open.residuals.are_whole(self.shards))
    }

    /// Whether a worker's part of the last version with exactly these shards' residuals is not stored.
    pub(super) fn last_lacks(&self, worker: u32, shards: &[u32]) -> bool {
        let open = self.last.and_then(|last| self.open.get(&last));
        self.last_lacks_residuals() && open.is_some_and(|open| !open.residuals.has(worker, shards))
    }

    /// Whether the residuals of a version are stored; why they never will be; `None` while that is open.
    fn residuals_of(&self, version: u64, open: &Open) -> Option<Result<(), String>> {
        if self.shards == 0 || open.residuals.are_whole(self.shards) {
            return Some(Ok(()));
        }
        if let Some(why) = open.residuals.failed() {
            return Some(Err(why));
        }
        if self.at_end && self.last == Some(version) {
            return None;
        }
        let lost = || "residuals were lost with a worker".to_owned();
        open.residuals.skipped().or_else(|| (version <= self.lost_until).then(lost)).map(Err)
    }

    /// The next version that can be settled: committed, or given up with a notice.
    pub(super) fn settle(&mut self) -> Option<Result<Commit, String>> {
        if self.committing.is_some() {
            return None;
        }
        let whole = |open: &Open| open.mark.is_some() && open.parts.len() == self.holders.len();
        let settled = |(version, open): (&u64, &Open)| {
            let waits = self.at_end && self.last == Some(*version);
            let skipped = open.parts.values().any(|o| *o == PartOutcome::Skipped);
            (whole(open) && !(waits && skipped)).then(|| self.residuals_of(*version, open)).flatten()
        };
        let found = self.open.iter().find_map(|entry| Some((*entry.0, entry.1, settled(entry)?)));
        let (version, open, residuals) = found?;
        let mark = open.mark.unwrap_or_default();
        let mut parts = Vec::new();
        let mut missing = residuals.err();
        let residuals = open.residuals.stored();
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
                // All write in order: what is older and not whole will not be.
                while let Some(older) = self.open.first_entry().filter(|open| *open.key() < version) {
                    let older = *older.key();
                    self.open.remove(&older);
                    self.close(older);
                }
                self.committing = Some(version);
                Ok(Commit { step: version, parts, residuals, mark })
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
        if missing.is_empty() {
            return Some(format!(
                "waiting for workers to write the residuals of the checkpoint at step {version}"
            ));
        }
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
mod tests;
