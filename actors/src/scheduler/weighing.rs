//! The phase of a step in which whole gradients are weighed: servers post inner products over their slices, and are all sent the
//! same weights. Pure.
//!
//! 1. Weights are a function of every server's products together, whichever server kept what and whatever order they came in:
//!    their sums are exact ([`testudo_kernels::robust::products`]).
//! 2. A server that posts other than its products of the step under way, or posts them twice, is named.
//! 3. What is kept is bounded: one sum of products. A step is weighed only after the one before.

use std::collections::BTreeSet;
use std::sync::Arc;

use testudo_kernels::robust::products::Products;
use testudo_kernels::robust::weigh::{Weighing, Weights};

use crate::job::JobSpec;
use crate::scheduler::checkpoints::holders;

/// What is known of the step under way.
#[derive(Debug)]
pub(super) struct WholeGradients {
    job: Arc<JobSpec>,
    weighing: Option<Weighing>,
    /// The servers that keep a slice.
    holders: BTreeSet<u32>,
    /// Steps below this one are weighed.
    step: u64,
    sum: Option<Products>,
    posted: BTreeSet<u32>,
}

impl WholeGradients {
    pub(super) fn new(job: &Arc<JobSpec>) -> WholeGradients {
        WholeGradients {
            weighing: job.weighing(),
            holders: holders(job),
            step: job.first_step(),
            sum: None,
            posted: BTreeSet::new(),
            job: Arc::clone(job),
        }
    }

    /// Takes the products that `server` posts; steps below `until` may have been begun. The answer is the weights of the step, once
    /// all are there.
    ///
    /// # Errors
    /// The text says what is wrong with it (invariant 2).
    pub(super) fn post(
        &mut self,
        server: u32,
        step: u64,
        until: u64,
        bytes: &[u8],
    ) -> Result<Option<Weights>, String> {
        let Some(weighing) = self.weighing.filter(|_| self.holders.contains(&server)) else {
            return Err("it posts products, which this job asks it for none of".into());
        };
        if step != self.step || step >= until {
            return Err(format!("it posts products of step {step}, which is not under way"));
        }
        let sum = self.sum.get_or_insert_with(|| weighing.products());
        let Some(products) = sum.from_bytes(bytes) else {
            return Err(format!("it posts {} bytes of products, which take {}", bytes.len(), sum.size()));
        };
        if !self.posted.insert(server) {
            return Err(format!("it posts its products of step {step} twice"));
        }
        sum.merge(&products).map_err(|error| error.to_string())?;
        if self.posted.len() < self.holders.len() {
            return Ok(None);
        }
        let weights = weighing.weigh(sum, f64::from(self.job.divisor(step)));
        (self.step, self.sum) = (step.saturating_add(1), None);
        self.posted.clear();
        weights.map(Some).map_err(|error| error.to_string())
    }

    /// Whether `step` needs no weights, or has them.
    pub(super) fn weighed(&self, step: u64) -> bool {
        self.weighing.is_none() || step < self.step
    }

    /// Who is to be sent weights.
    pub(super) fn holders(&self) -> impl Iterator<Item = u32> {
        self.holders.iter().copied()
    }

    /// The step under way and the servers that owe its products, once another has posted its own.
    pub(super) fn owing(&self) -> Option<(u64, Vec<u32>)> {
        let owing = self.holders.difference(&self.posted).copied().collect();
        (!self.posted.is_empty()).then_some((self.step, owing))
    }
}
