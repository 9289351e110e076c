//! What a job may ask of what programs bring along.

use testudo_kernels::{ModelSpec, OwnName};

use super::{Determinism, JobError, JobSpec};

impl JobSpec {
    /// A model or rule of one's own is named as such, and a rule is run only where nothing relies on what it does not keep to.
    pub(super) fn validate_own(&self) -> Result<(), JobError> {
        let bad = |text: String| Err(JobError::Invalid(text));
        if let ModelSpec::Custom { name, targets, .. } = &self.model {
            if let Err(error) = OwnName::new(name) {
                return bad(format!("the model's name: {error}"));
            }
            if *targets == 0 {
                return bad(format!(
                    "the model {name} has no targets: one label of each example is the least"
                ));
            }
        }
        let Some(rule) = self.aggregation.own() else { return Ok(()) };
        if !rule.deterministic && self.determinism == Determinism::Strict {
            return bad(format!(
                "the rule of aggregation {} does not promise the same bits, and training.determinism is strict: set it to relaxed",
                rule.name
            ));
        }
        if self.witness_rate > 0.0 {
            return bad(format!(
                "the rule of aggregation {} is a program's own, which the scheduler does not compute a second time: set \
                 audit.witness_rate to 0",
                rule.name
            ));
        }
        Ok(())
    }
}
