//! The scheduler's side: a checkpoint becomes whole.
//!
//! The order of writes is what invariant 1 of [`super`] rests on: parts (by servers and workers), signature, manifest under a
//! temporary name, its rename, the head, and only then deletions.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use testudo_actors::checkpoint::{Commit, Committed, Deletion, Ledger};
use testudo_actors::plan::Plan;
use testudo_actors::{JobSpec, SignedJob};
use testudo_transport::Identity;

use super::head::Head;
use super::layout::{Layout, part_name, residuals_name};
use super::manifest::{self, DataPosition, Hex, Manifest, PartEntry, ResidualEntry};
use super::retention::{self, Retention};
use super::storage::{Storage, replace};
use super::store::{Checkpoints, TrustedCas};
use super::{CheckpointError, part, resume};

/// Writes manifests, heads and deletions of one run.
#[derive(Debug)]
pub struct RunLedger {
    layout: Layout,
    storage: Arc<dyn Storage>,
    identity: Arc<Identity>,
    job: JobSpec,
    job_blake3: Hex,
    recipients: Vec<String>,
    retention: Retention,
    run: Hex,
    newest: u64,
    parent: Option<Hex>,
}

impl RunLedger {
    /// The ledger of `job` under `layout`, for the scheduler `identity`. Adds the job's CA to those that the folder trusts;
    /// puts aside what is newer than the step that the job resumes from.
    ///
    /// # Errors
    /// [`CheckpointError`] when the folder cannot be written, or holds another run's checkpoints, or newer ones of this very job.
    pub fn open(
        layout: Layout,
        storage: Arc<dyn Storage>,
        identity: Arc<Identity>,
        signed: &SignedJob,
        job: &JobSpec,
        recipients: Vec<String>,
        retention: Retention,
    ) -> Result<RunLedger, CheckpointError> {
        storage.create_dir(layout.folder()).map_err(CheckpointError::io("make", layout.folder()))?;
        let before = TrustedCas::load(&layout.trust())?;
        if !before.contains(identity.ca_pem()) {
            trust(&layout, storage.as_ref(), identity.ca_pem())?;
        }
        let run = TrustedCas::load(&layout.trust())?.run();
        let run = run.ok_or_else(|| CheckpointError::malformed(&layout.trust(), "no certificate in it"))?;
        let mut ledger = RunLedger {
            storage,
            identity,
            job: job.clone(),
            job_blake3: Hex(*blake3::hash(&signed.to_bytes()).as_bytes()),
            recipients,
            retention,
            run,
            newest: job.first_step(),
            parent: job.resume.as_ref().map(|resume| Hex(resume.manifest_blake3)),
            layout,
        };
        ledger.begin()?;
        Ok(ledger)
    }

    /// Leaves nothing newer than what the job begins with.
    fn begin(&mut self) -> Result<(), CheckpointError> {
        let checkpoints = Checkpoints::open(self.layout.folder())?;
        let newer: Vec<u64> = checkpoints.steps()?.into_iter().filter(|step| *step > self.newest).collect();
        if self.job.resume.is_none() && !newer.is_empty() {
            return Err(CheckpointError::OtherJob(format!(
                "{} holds checkpoints of an earlier run: go on with `--resume`, or give this run a directory of its own",
                self.layout.folder().display()
            )));
        }
        checkpoints.check_not_begun(self.newest, self.job_blake3)?;
        for folder in checkpoints.unfinished()? {
            self.storage.remove_dir_all(&folder).map_err(CheckpointError::io("delete", &folder))?;
        }
        // First: whatever is still there of what is put aside then descends from the head, and a crash leaves a chain to go on from.
        if let Some(parent) = self.parent {
            self.head(self.newest, parent, SystemTime::now())?;
        }
        if !newer.is_empty() {
            self.put_aside(&newer)?;
        }
        Ok(())
    }

    /// Records and moves away what the run left behind when it was resumed from an earlier step. The newest goes first, and is gone
    /// before the next follows, so that no gap is left in the chain at any time.
    fn put_aside(&self, steps: &[u64]) -> Result<(), CheckpointError> {
        let mut moved = Vec::new();
        for step in steps {
            let path = self.layout.manifest(*step);
            let hash = *blake3::hash(&manifest::read_small(&path)?).as_bytes();
            let why = format!("superseded: the run was resumed from step {}", self.newest);
            moved.push(Deletion { step: *step, manifest_blake3: hash, why });
        }
        let storage = self.storage.as_ref();
        retention::record(&self.layout, storage, SystemTime::now(), &moved)?;
        let aside = self.layout.superseded();
        storage.create_dir(&aside).map_err(CheckpointError::io("make", &aside))?;
        for Deletion { step, manifest_blake3, .. } in moved.into_iter().rev() {
            let from = self.layout.step(step);
            let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let hash = String::from(Hex(manifest_blake3));
            let to = aside.join(format!("{name}-{}", hash.get(..16).unwrap_or(&hash)));
            storage.rename(&from, &to).map_err(CheckpointError::io("rename", &from))?;
            for folder in [aside.as_path(), self.layout.folder()] {
                storage.sync_dir(folder).map_err(CheckpointError::io("sync", folder))?;
            }
        }
        Ok(())
    }

    fn head(&self, step: u64, manifest_blake3: Hex, now: SystemTime) -> Result<(), CheckpointError> {
        let head = Head {
            job: self.job.name.clone(),
            trust_domain: self.job.trust_domain.clone(),
            run: self.run,
            step,
            manifest_blake3,
            at: seconds(now),
        };
        head.write(self.storage.as_ref(), &self.layout, &self.identity)
    }

    fn manifest(&self, commit: &Commit, now: SystemTime) -> Manifest {
        let (format, hash, encryption, tensors) = Manifest::formats();
        let position = Plan::new(&self.job).step(commit.step);
        let parts = commit.parts.iter().map(|part| PartEntry {
            name: part_name(part.server),
            server: part.server,
            slices: part.slices,
            bytes: part.receipt.bytes,
            blake3: Hex(part.receipt.blake3),
        });
        let residuals = commit.residuals.iter().map(|part| ResidualEntry {
            name: residuals_name(part.worker),
            worker: part.worker,
            shards: part.shards.clone(),
            bytes: part.receipt.bytes,
            blake3: Hex(part.receipt.blake3),
        });
        Manifest {
            format,
            job: self.job.name.clone(),
            trust_domain: self.job.trust_domain.clone(),
            run: self.run,
            job_blake3: self.job_blake3,
            step: commit.step,
            parent: self.parent,
            parts: parts.collect(),
            residuals: residuals.collect(),
            settings: resume::settings(&self.job),
            data: DataPosition { epoch: position.epoch, first: position.first },
            samples: commit.mark.samples,
            last_loss: commit.mark.last_loss,
            best: commit.mark.best,
            created: seconds(now),
            recipients: self.recipients.clone(),
            hash,
            encryption,
            tensors,
        }
    }

    fn make_whole(&mut self, commit: &Commit, now: SystemTime) -> Result<Hex, CheckpointError> {
        if commit.step <= self.newest {
            return Err(CheckpointError::NotNewer { step: commit.step, newest: self.newest });
        }
        let (storage, layout) = (self.storage.as_ref(), &self.layout);
        let (folder, path) = (layout.step(commit.step), layout.manifest(commit.step));
        storage.create_dir(&folder).map_err(CheckpointError::io("make", &folder))?;
        check_residuals(&folder, commit)?;
        let bytes = self.manifest(commit, now).to_bytes(&path)?;
        let signature_path = layout.signature(commit.step);
        let signature = serde_json::to_vec_pretty(&manifest::sign(&self.identity, &bytes)?)
            .map_err(|e| CheckpointError::malformed(&signature_path, e))?;
        replace(storage, &signature_path, &signature)
            .map_err(CheckpointError::io("write", &signature_path))?;
        // The folder's own name must outlast a crash before the manifest's does.
        storage.sync_dir(layout.folder()).map_err(CheckpointError::io("sync", layout.folder()))?;
        replace(storage, &path, &bytes).map_err(CheckpointError::io("write", &path))?;
        let hash = Hex(*blake3::hash(&bytes).as_bytes());
        (self.newest, self.parent) = (commit.step, Some(hash));
        Ok(hash)
    }

    /// Removes what was left unfinished below `step`: every server has gone on from there.
    fn clean(&self, step: u64) -> Result<(), CheckpointError> {
        let checkpoints = Checkpoints::open(self.layout.folder())?;
        for folder in checkpoints.unfinished()? {
            if folder < self.layout.step(step) {
                self.storage.remove_dir_all(&folder).map_err(CheckpointError::io("delete", &folder))?;
            }
        }
        Ok(())
    }
}

impl Ledger for RunLedger {
    fn commit(&mut self, commit: &Commit) -> Result<Committed, testudo_actors::CheckpointError> {
        let now = SystemTime::now();
        let hash = self.make_whole(commit, now)?;
        // The checkpoint is whole. What goes wrong from here on is told, and changes nothing about that.
        let after = || {
            self.head(commit.step, hash, now)?;
            self.clean(commit.step)?;
            retention::due(&self.layout, self.storage.as_ref(), self.retention, now)
        };
        let failed = |error: CheckpointError| {
            tracing::error!(%error, step = commit.step, "after the checkpoint was written");
        };
        let deleted = after().unwrap_or_else(|error| {
            failed(error);
            Vec::new()
        });
        // What is recorded is told, whether or not all of it can be deleted: part of it may be gone.
        for deletion in &deleted {
            if let Err(error) = retention::delete(&self.layout, self.storage.as_ref(), deletion.step) {
                failed(error);
            }
        }
        Ok(Committed { step: commit.step, manifest_blake3: hash.0, deleted })
    }
}

/// What workers say of their parts is not signed for before it is found: a checkpoint that could not be loaded would push good ones out
/// of the folder. Where not all servers' parts are here, nodes have folders of their own, and so may a worker whose part is not.
fn check_residuals(folder: &Path, commit: &Commit) -> Result<(), CheckpointError> {
    let is_shared = commit.parts.iter().all(|part| folder.join(part_name(part.server)).exists());
    for stored in &commit.residuals {
        let path = folder.join(residuals_name(stored.worker));
        if is_shared || path.exists() {
            part::check(&path, stored.receipt)?;
        }
    }
    Ok(())
}

/// Adds a CA to those that the folder trusts.
fn trust(layout: &Layout, storage: &dyn Storage, pem: &str) -> Result<(), CheckpointError> {
    let path = layout.trust();
    let mut all = if path.exists() { manifest::read_small(&path)? } else { Vec::new() };
    all.extend(pem.trim().as_bytes());
    all.push(b'\n');
    replace(storage, &path, &all).map_err(CheckpointError::io("write", &path))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
