//! A run directory's checkpoint folder, with everything that writes to it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use testudo_actors::checkpoint::{
    Commit, Committed, Ledger as _, Mark, PartWriter as _, ResidualSnapshot, ShardResiduals, SliceSnapshot,
    Snapshot, StoredPart, StoredResiduals,
};
use testudo_actors::placement::{Slice, SliceMap};
use testudo_actors::{Codecs, DataSpec, JobSpec, Resume, SignedJob};
use testudo_kernels::Codec;
use testudo_transport::{Identity, JobCa, Role};

use crate::checkpoint::keys::{self, Identities};
use crate::checkpoint::ledger::RunLedger;
use crate::checkpoint::retention::Retention;
use crate::checkpoint::storage::{Disk, Storage};
use crate::checkpoint::writer::RunParts;
use crate::checkpoint::{CheckpointError, Checkpoints, Layout};
use crate::config::Config;

const KEEP: Retention = Retention { keep_last: 100, max_age: None };

/// What becomes of a part before the scheduler hears of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    Altered,
    Missing,
}

pub(super) struct Site {
    folder: tempfile::TempDir,
    pub(super) job: JobSpec,
    scheduler: Arc<Identity>,
    operator: Identity,
}

impl Site {
    pub(super) fn new() -> Site {
        Site::with_codec(Codec::F32)
    }

    /// For a job whose gradients travel so: with residuals, if the codec feeds back.
    pub(super) fn with_codec(push: Codec) -> Site {
        let text = "[job]\nname = \"toy\"\n[training]\nseed = 7\nepochs = 9\nbatch_size = 64\nlogical_shards = 4\n\
                    [model]\nkind = \"mlp\"\ninputs = 12\nhidden = [10]\nclasses = 4\n\
                    [optimizer]\nkind = \"momentum\"\nlearning_rate = 0.1\n\
                    [data]\nkind = \"mnist\"\npath = \".\"\n[transport]\nslice_bytes = 128\n";
        let config = Config::parse::<&str>(text, Path::new("toy.toml"), &[]).unwrap();
        let data = DataSpec { train_examples: 640, test_examples: 64, blake3: [3; 32] };
        let codecs = Codecs { push, pull: Codec::F32 };
        let job = JobSpec { workers: 2, servers: 2, codecs, ..crate::job::spec(&config, data) };
        let hour = Duration::from_secs(3600);
        let ca = JobCa::create(&job.trust_domain, &job.name, hour).unwrap();
        let issue = |role| ca.issue(&job.member(role, 0).unwrap(), hour).unwrap();
        let operator = issue(Role::Operator);
        let folder = tempfile::tempdir().unwrap();
        let site = Site { folder, scheduler: Arc::new(issue(Role::Scheduler)), operator, job };
        keys::recipients(&[], &site.layout(), &Disk).unwrap();
        site
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::new(self.folder.path())
    }

    pub(super) fn identities(&self) -> Identities {
        Identities::load(&self.layout().key()).unwrap()
    }

    pub(super) fn checkpoints(&self) -> Checkpoints {
        Checkpoints::open(self.folder.path()).unwrap()
    }

    pub(super) fn ledger(&self, resume: Option<Resume>) -> RunLedger {
        self.ledger_keeping(resume, KEEP)
    }

    pub(super) fn ledger_keeping(&self, resume: Option<Resume>, keep: Retention) -> RunLedger {
        self.ledger_on(Arc::new(Disk), resume, keep).unwrap()
    }

    pub(super) fn try_ledger(&self, resume: Option<Resume>) -> Result<RunLedger, CheckpointError> {
        self.ledger_on(Arc::new(Disk), resume, KEEP)
    }

    pub(super) fn ledger_on(
        &self,
        storage: Arc<dyn Storage>,
        resume: Option<Resume>,
        keep: Retention,
    ) -> Result<RunLedger, CheckpointError> {
        self.ledger_of(storage, &self.signs(resume), keep)
    }

    /// The job that goes on from there, as the operator signs it: anew each time.
    pub(super) fn signs(&self, resume: Option<Resume>) -> (JobSpec, SignedJob) {
        let job = JobSpec { resume, ..self.job.clone() };
        let signed = SignedJob::sign(&job, &self.operator).unwrap();
        (job, signed)
    }

    pub(super) fn ledger_of(
        &self,
        storage: Arc<dyn Storage>,
        (job, signed): &(JobSpec, SignedJob),
        keep: Retention,
    ) -> Result<RunLedger, CheckpointError> {
        let scheduler = Arc::clone(&self.scheduler);
        RunLedger::open(self.layout(), storage, scheduler, signed, job, Vec::new(), keep)
    }

    /// A checkpoint of `step`, after those that are there.
    pub(super) fn write(&self, step: u64, servers: u32) {
        let newest = self.checkpoints().steps().unwrap().last().copied();
        let resume = newest.map(|step| {
            crate::checkpoint::resume::resume(&self.job, &self.checkpoints().read(step).unwrap()).unwrap()
        });
        self.write_with(&mut self.ledger(resume), step, servers).unwrap();
    }

    pub(super) fn write_with(
        &self,
        ledger: &mut RunLedger,
        step: u64,
        servers: u32,
    ) -> Result<Committed, String> {
        self.write_on(&Arc::new(Disk), ledger, step, servers)
    }

    /// As `servers` servers and a scheduler would, over `storage`.
    pub(super) fn write_on<S: Storage + 'static>(
        &self,
        storage: &Arc<S>,
        ledger: &mut RunLedger,
        step: u64,
        servers: u32,
    ) -> Result<Committed, String> {
        let commit = self.stored_on(storage, step, servers)?;
        ledger.commit(&commit).map_err(|e| e.to_string())
    }

    /// The same, with a last worker's part that is not what it said.
    pub(super) fn write_damaged(
        &self,
        ledger: &mut RunLedger,
        step: u64,
        damage: Damage,
    ) -> Result<Committed, String> {
        let commit = self.stored_on(&Arc::new(Disk), step, 2)?;
        let path = self.layout().residuals(step, 1);
        match damage {
            Damage::Altered => {
                let mut bytes = std::fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
            Damage::Missing => std::fs::remove_file(&path).unwrap(),
        }
        ledger.commit(&commit).map_err(|e| e.to_string())
    }

    /// What nodes store for a checkpoint.
    fn stored_on<S: Storage + 'static>(
        &self,
        storage: &Arc<S>,
        step: u64,
        servers: u32,
    ) -> Result<Commit, String> {
        let job = JobSpec { servers, ..self.job.clone() };
        let mut parts = Vec::new();
        for server in 0..servers {
            let storage = Arc::clone(storage) as Arc<dyn Storage>;
            let recipients = self.identities().recipients();
            let mut writer = RunParts::new(self.layout(), storage, &job, recipients).unwrap();
            let snapshot = snapshot(&job, server, step);
            let receipt = writer.write(&snapshot).map_err(|e| e.to_string())?;
            parts.push(StoredPart { server, slices: snapshot.slices.len() as u32, receipt });
        }
        let mut residuals = Vec::new();
        for worker in (0..job.workers).filter(|_| job.keeps_residuals()) {
            let storage = Arc::clone(storage) as Arc<dyn Storage>;
            let mut writer =
                RunParts::new(self.layout(), storage, &job, self.identities().recipients()).unwrap();
            // Of four logical shards, every second.
            let shards = vec![worker, worker + 2];
            let kept = |shard: &u32| shard_residuals(&job, *shard, step);
            let snapshot = ResidualSnapshot { version: step, shards: shards.iter().map(kept).collect() };
            let receipt = writer.write_residuals(worker, &snapshot).map_err(|e| e.to_string())?;
            residuals.push(StoredResiduals { worker, shards, receipt });
        }
        Ok(Commit {
            step,
            parts,
            residuals,
            mark: Mark { samples: step * 64, last_loss: Some(0.25), best: None },
        })
    }
}

pub(super) fn slices(job: &JobSpec, server: u32) -> Vec<Slice> {
    let map = SliceMap::of(job, &job.model.parameters().unwrap()).unwrap();
    map.of_server(server).copied().collect()
}

/// Values that tell step, kind and place.
pub(super) fn values(step: u64, kind: f32, first: usize, elements: usize) -> Vec<f32> {
    (first..first + elements).map(|at| step as f32 * 1000.0 + at as f32 + kind).collect()
}

fn snapshot(job: &JobSpec, server: u32, step: u64) -> Snapshot {
    let keep = |slice: Slice| SliceSnapshot {
        slice,
        weights: Arc::new(values(step, 0.0, slice.first, slice.elements)),
        state: vec![values(step, 0.5, slice.first, slice.elements)],
        scalars: Vec::new(),
    };
    Snapshot { version: step, server, slices: slices(job, server).into_iter().map(keep).collect() }
}

/// Residuals that tell step, shard and place.
pub(super) fn shard_residuals(job: &JobSpec, shard: u32, step: u64) -> ShardResiduals {
    let elements = job.model.parameters().unwrap().into_iter().map(|p| p.shape.elements());
    ShardResiduals { shard, values: elements.map(|n| values(step, shard as f32 / 8.0, 0, n)).collect() }
}
