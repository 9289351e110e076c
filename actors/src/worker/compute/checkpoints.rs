//! Residuals of error feedback on their way to checkpoints, and out of one.

use super::{ComputeError, ShardCompute};
use crate::checkpoint::{CheckpointError, PartSource};
use crate::tree::Node;
use crate::worker::residuals::ResidualEvent;

impl ShardCompute {
    /// The same as [`restore`](ShardCompute::restore), if `step`, the first that is computed here, is the job's first: residuals of any
    /// other step are not in that checkpoint, which may be deleted by then.
    ///
    /// # Errors
    /// [`ComputeError::Restore`], likewise.
    pub fn restore_for(
        &mut self,
        step: u64,
        source: &mut dyn PartSource,
        nodes: &[Node],
    ) -> Result<(), ComputeError> {
        match step == self.job.first_step() {
            true => self.restore(source, nodes),
            false => Ok(()),
        }
    }

    /// Begins with the residuals that the checkpoint which the job resumes from holds of the logical shards under `nodes`; with
    /// nothing if the push codec keeps none.
    ///
    /// # Errors
    /// [`ComputeError::Restore`] when they cannot be read, or are of another model.
    pub fn restore(&mut self, source: &mut dyn PartSource, nodes: &[Node]) -> Result<(), ComputeError> {
        if !self.job.codecs.push.feeds_back() {
            return Ok(());
        }
        let leaves = |node: &Node| node.first..node.first.saturating_add(node.leaves);
        let shards: Vec<u32> = nodes.iter().flat_map(leaves).collect();
        let loaded = source.residuals(&self.job, &shards).map_err(ComputeError::Restore)?;
        let is_whole = loaded.iter().map(|loaded| loaded.shard).eq(shards.iter().copied());
        match is_whole && self.encoder.residuals().restore(self.job.first_step(), loaded) {
            true => Ok(()),
            false => {
                let text = "its residuals are not those of the job's logical shards and parameters";
                Err(ComputeError::Restore(CheckpointError(text.into())))
            }
        }
    }

    /// The scheduler wants the residuals of these logical shards at `version`, beyond which no step was computed.
    pub fn order_residuals(&mut self, version: u64, shards: Vec<u32>) {
        let shards = shards.into_iter().filter(|shard| *shard < self.job.logical_shards).collect();
        self.encoder.residuals().order(version, shards);
    }

    /// The residuals that were handed out are written, or could not be.
    pub fn residuals_written(&mut self) {
        self.encoder.residuals().written();
    }

    /// What has become of residuals that are to be kept.
    pub fn poll_residuals(&mut self) -> Option<ResidualEvent> {
        self.encoder.residuals().poll()
    }
}
