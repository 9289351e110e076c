//! A program's own rule of aggregation, applied to one slice.
//!
//! 1. A rule is given what it takes: the votes in the order of logical shards, or the one mean of the step, all finite.
//! 2. What it gives is used only if it is finite; otherwise the server ends, and says which rule, parameter and step.
//! 3. Parameters that are running means never come here.

use std::fmt;
use std::sync::Arc;

use testudo_kernels::robust::divide;
use testudo_kernels::{Aggregation, Aggregator, OwnRule, RuleInput, VotesOnSlice, first_non_finite};

use super::math::MathError;
use crate::job::JobSpec;

/// The rule that this program brings along.
#[derive(Clone)]
pub(super) struct OwnAggregator(pub(super) Arc<dyn Aggregator>);

impl fmt::Debug for OwnAggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        OwnRule::of(self.0.as_ref()).fmt(f)
    }
}

impl OwnAggregator {
    /// The gradient of a slice.
    pub(super) fn apply(&self, slice: VotesOnSlice<'_>) -> Result<Vec<f32>, MathError> {
        let failed = |reason: String| MathError::Rule {
            rule: self.0.name(),
            parameter: slice.parameter.to_owned(),
            step: slice.step,
            reason,
        };
        for vote in slice.votes {
            if let Some(element) = first_non_finite(vote) {
                return Err(failed(format!(
                    "what it is given overflows at element {}",
                    slice.first + element
                )));
            }
        }
        let mut out = vec![0.0; slice.votes.first().map_or(0, Vec::len)];
        self.0.aggregate(slice, &mut out).map_err(failed)?;
        match first_non_finite(&out) {
            None => Ok(out),
            Some(element) => Err(failed(format!("element {} is not finite", slice.first + element))),
        }
    }
}

/// What a job whose rule is a program's own says of a parameter.
pub(super) struct Stated<'a> {
    pub(super) job: &'a JobSpec,
    pub(super) input: RuleInput,
    /// The rule for the parameter, which is another for running means.
    pub(super) rule: Aggregation,
}

impl Stated<'_> {
    /// What is made of `votes`, or of the one sum, on the slice that begins at `first`.
    pub(super) fn made(
        &self,
        own: Option<&OwnAggregator>,
        (parameter, first, step): (&str, usize, u64),
        mut votes: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>, MathError> {
        if self.input == RuleInput::Mean {
            let targets = self.job.targets_in(step);
            votes.iter_mut().for_each(|sum| divide(sum, targets));
        }
        let Some(stated) = self.rule.own() else { return Ok(votes) };
        let own = own.ok_or(MathError::NoRule(stated.name))?;
        let seed = self.job.seed;
        Ok(vec![own.apply(VotesOnSlice { parameter, first, step, seed, votes: &votes })?])
    }
}

/// Whether `rule` is the one that `job` names, and says of itself what the job says of it.
///
/// # Errors
/// The text is for the operator.
pub(crate) fn fits(job: &JobSpec, rule: &dyn Aggregator) -> Result<(), String> {
    let (stated, found) = (job.aggregation.own(), OwnRule::of(rule));
    if stated == Some(found) {
        return Ok(());
    }
    let stated = stated.map_or("none of its own".into(), |stated| format!("{stated:?}"));
    Err(format!(
        "the job's rule of aggregation is {stated}, and this program has {found:?}: every server needs the operator's program"
    ))
}
