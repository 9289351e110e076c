//! A server's or worker's side: its part of each checkpoint, and what it begins with when a run is resumed.

use std::sync::Arc;

use age::x25519;
use testudo_actors::checkpoint::{
    PartReceipt, PartSource, PartWriter, ResidualSnapshot, ServerSetup, Snapshot,
};
use testudo_actors::{JobSpec, Resume};

use super::CheckpointError;
use super::keys::{self, Identities};
use super::layout::Layout;
use super::load::Source;
use super::part::{self, Frame};
use super::storage::{Disk, Storage};

/// Writes one node's parts.
#[derive(Debug)]
pub struct RunParts {
    layout: Layout,
    storage: Arc<dyn Storage>,
    frame: Frame,
    recipients: Vec<x25519::Recipient>,
}

impl RunParts {
    /// For parts of `job`'s checkpoints under `layout`, encrypted to `recipients`.
    ///
    /// # Errors
    /// [`CheckpointError::OtherJob`] when the job's model is none.
    pub fn new(
        layout: Layout,
        storage: Arc<dyn Storage>,
        job: &JobSpec,
        recipients: Vec<x25519::Recipient>,
    ) -> Result<RunParts, CheckpointError> {
        Ok(RunParts { layout, storage, frame: Frame::new(job, 0)?, recipients })
    }

    /// Makes room for a part of the checkpoint at `step`, which must not be whole.
    fn begin(&mut self, step: u64) -> Result<(), CheckpointError> {
        if self.layout.manifest(step).exists() {
            let path = self.layout.step(step);
            return Err(CheckpointError::malformed(&path, "a whole checkpoint is there already"));
        }
        let folder = self.layout.step(step);
        self.storage.create_dir(&folder).map_err(CheckpointError::io("make", &folder))?;
        self.frame.step = step;
        Ok(())
    }
}

impl PartWriter for RunParts {
    fn write(&mut self, snapshot: &Snapshot) -> Result<PartReceipt, testudo_actors::CheckpointError> {
        self.begin(snapshot.version)?;
        let path = self.layout.part(snapshot.version, snapshot.server);
        Ok(part::write(self.storage.as_ref(), &path, &self.frame, snapshot, &self.recipients)?)
    }

    fn write_residuals(
        &mut self,
        worker: u32,
        snapshot: &ResidualSnapshot,
    ) -> Result<PartReceipt, testudo_actors::CheckpointError> {
        self.begin(snapshot.version)?;
        let path = self.layout.residuals(snapshot.version, worker);
        let (storage, part) = (self.storage.as_ref(), (worker, snapshot));
        Ok(part::write_residuals(storage, &path, &self.frame, part, &self.recipients)?)
    }
}

/// A node's places, as its cluster file and command line say.
#[derive(Debug)]
pub struct Setup {
    layout: Layout,
    /// As `checkpoint.recipients` names them.
    recipients: Vec<String>,
    /// The secret keys, if they are not the run's own.
    identities: Option<Identities>,
}

impl Setup {
    /// Checkpoints under `layout`, for `recipients`, opened with `identities` or with the run's own key.
    #[must_use]
    pub fn new(layout: Layout, recipients: Vec<String>, identities: Option<Identities>) -> Setup {
        Setup { layout, recipients, identities }
    }
}

impl ServerSetup for Setup {
    fn writer(&mut self, job: &JobSpec, _: u32) -> Result<Box<dyn PartWriter>, String> {
        let made = keys::recipients(&self.recipients, &self.layout, &Disk)
            .and_then(|recipients| RunParts::new(self.layout.clone(), Arc::new(Disk), job, recipients));
        Ok(Box::new(made.map_err(|e| e.to_string())?))
    }

    fn source(&mut self, _: &JobSpec, resume: &Resume) -> Result<Box<dyn PartSource>, String> {
        let identities = match &self.identities {
            Some(given) => given.clone(),
            None => Identities::load(&self.layout.key()).map_err(|e| e.to_string())?,
        };
        Ok(Box::new(Source::new(self.layout.clone(), identities, *resume)))
    }
}
