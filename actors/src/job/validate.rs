//! What no job may say.

use super::{EarlyStopping, FORMAT, JobError, JobSpec, MAX_LOGICAL_SHARDS};
use crate::tree::ReductionTree;

impl JobSpec {
    /// Refuses values that no run could work with. Called when a job is signed and whenever one is opened.
    ///
    /// # Errors
    /// [`JobError::Invalid`] with the value and what is allowed.
    pub fn validate(&self) -> Result<(), JobError> {
        let bad = |text: String| Err(JobError::Invalid(text));
        if self.format != FORMAT {
            return Err(JobError::Format(self.format));
        }
        for (name, value) in [("workers", self.workers), ("servers", self.servers)] {
            if value == 0 {
                return bad(format!("cluster.{name} is 0: at least one is needed"));
            }
        }
        if ReductionTree::new(self.logical_shards).is_none() || self.logical_shards > MAX_LOGICAL_SHARDS {
            return bad(format!(
                "training.logical_shards is {}: 1 to {MAX_LOGICAL_SHARDS} are possible",
                self.logical_shards
            ));
        }
        if self.workers > self.logical_shards {
            return bad(format!(
                "cluster.workers is {} but training.logical_shards is {}: the workers beyond would have nothing to do; \
                 raise training.logical_shards",
                self.workers, self.logical_shards
            ));
        }
        if self.most_workers() > self.logical_shards {
            return bad(format!(
                "cluster.max_workers is {} but training.logical_shards is {}: the workers beyond would have nothing to do; raise \
                 training.logical_shards",
                self.most_workers(),
                self.logical_shards
            ));
        }
        if self.elastic.extra_workers > 0 && self.aggregation.hostile().is_some() {
            return bad(format!(
                "cluster.max_workers is {} and cluster.workers {}, but under training.aggregation = {} every worker has a vote from the \
                 beginning: leave cluster.max_workers out",
                self.most_workers(),
                self.workers,
                self.aggregation
            ));
        }
        if self.batch_size < self.logical_shards {
            return bad(format!(
                "training.batch_size is {} but training.logical_shards is {}: every shard needs an example",
                self.batch_size, self.logical_shards
            ));
        }
        if let Some(most) = self.clip_norm
            && !(most.is_finite() && most > 0.0)
        {
            return bad(format!("training.clip_norm is {most}: a number above 0 is needed"));
        }
        self.validate_votes()?;
        self.validate_own()?;
        self.validate_codecs()?;
        if self.data.train_examples == 0 || self.data.test_examples == 0 {
            return bad("the data set is empty".into());
        }
        if self.epochs == 0 || self.max_steps == Some(0) {
            return bad(
                "there is no step to train: training.epochs and training.max_steps must be at least 1".into(),
            );
        }
        if let Some(EarlyStopping { patience, min_improvement }) = self.evaluation.early_stopping {
            if self.evaluation.every_steps == 0 || patience == 0 {
                return bad(
                    "training.patience stops after evaluations without progress: it must be at least 1, and \
                            training.evaluate_every say after how many steps the test set is evaluated"
                        .into(),
                );
            }
            if self.aggregation.hostile().is_some() {
                return bad(format!(
                    "training.patience stops by what single workers say of the test set, and training.aggregation is {}, which \
                     believes no single worker: leave one of them out",
                    self.aggregation
                ));
            }
            if !(min_improvement.is_finite() && min_improvement >= 0.0) {
                return bad(format!(
                    "training.min_improvement is {min_improvement}: a number from 0 up is needed"
                ));
            }
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return bad(format!(
                "optimizer.learning_rate is {}: a number above 0 is needed",
                self.learning_rate
            ));
        }
        if !(4..=crate::policy::MAX_SLICE_BYTES).contains(&self.slice_bytes)
            || !self.slice_bytes.is_multiple_of(4)
        {
            return bad(format!(
                "transport.slice_bytes is {}: a multiple of 4 up to {} is needed",
                self.slice_bytes,
                crate::policy::MAX_SLICE_BYTES
            ));
        }
        if !(0.0..=1.0).contains(&self.witness_rate) {
            return bad(format!(
                "audit.witness_rate is {}: a share from 0 to 1 is needed",
                self.witness_rate
            ));
        }
        if self.heartbeat_ms == 0 || self.heartbeat_timeout_ms <= self.heartbeat_ms {
            return bad(format!(
                "cluster.heartbeat_timeout_ms ({}) must exceed cluster.heartbeat_ms ({}), which must not be 0",
                self.heartbeat_timeout_ms, self.heartbeat_ms
            ));
        }
        if let Some(resume) = &self.resume {
            let planned = crate::plan::Plan::new(self).planned_steps();
            if resume.step == 0 || resume.step > planned {
                return bad(format!(
                    "the checkpoint to resume from is at step {}, of {planned}",
                    resume.step
                ));
            }
            let losses = resume.last_loss.into_iter().chain(resume.best.map(|best| best.loss));
            if losses.into_iter().any(|loss| !loss.is_finite()) {
                return bad("the checkpoint to resume from states a loss that is not finite".into());
            }
        }
        self.optimizer.validate().map_err(|e| JobError::Invalid(e.to_string()))?;
        self.validate_network()
    }

    /// A robust rule needs enough votes, each one worker's, and each about something.
    fn validate_votes(&self) -> Result<(), JobError> {
        let bad = |text: String| Err(JobError::Invalid(text));
        if self.aggregation.hostile().is_none() {
            return Ok(());
        }
        let (rule, workers) = (self.aggregation, self.workers);
        if let Err(error) = rule.check(workers as usize) {
            return bad(format!(
                "training.aggregation is {rule}, and cluster.workers is {workers}: {error}; use more workers, or a lower \
                 training.hostile_workers"
            ));
        }
        if self.logical_shards != workers {
            return bad(format!(
                "training.aggregation is {rule}, under which every worker has one vote, but training.logical_shards is {} for \
                 {workers} workers: set it to {workers}",
                self.logical_shards
            ));
        }
        let last = self.data.train_examples % u64::from(self.batch_size).max(1);
        if last > 0 && last < u64::from(workers) {
            return bad(format!(
                "an epoch's last batch has {last} examples, and each of {workers} workers needs one to vote on \
                 (training.aggregation is {rule}): choose another training.batch_size"
            ));
        }
        Ok(())
    }
}
