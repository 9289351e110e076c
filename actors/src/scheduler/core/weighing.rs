//! Whole gradients: what servers post of their slices, and the weights that they are sent (invariant 6 of the core).

use testudo_kernels::robust::weigh::Weights;

use super::{SchedulerCore, ToMember};
use crate::message::{GradientWeights, Member, MemberRole, Phase};
use crate::time::Time;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    pub(super) fn products(&mut self, now: Time, server: u32, step: u64, bytes: &[u8]) {
        let member = Member { role: MemberRole::Server, index: server };
        if self.hear(now, member).is_none() || self.outcome.is_some() {
            return;
        }
        match self.gradients.post(server, step, self.until, bytes) {
            Ok(None) => self.last_progress = now,
            Ok(Some(weights)) => self.weighed(now, step, weights),
            Err(what) => self.fail(format!("{member} misbehaved: {what}")),
        }
    }

    /// A step is weighed: servers combine it, and so does the witness.
    fn weighed(&mut self, now: Time, step: u64, weights: Weights) {
        self.last_progress = now;
        let Weights { of, clip } = weights.clone();
        let message = ToMember::Weights(GradientWeights { step, weights: of, clip });
        let holders: Vec<u32> = self.gradients.holders().collect();
        for index in holders {
            self.send(Member { role: MemberRole::Server, index }, message.clone());
        }
        if let Some((_, witness)) = &mut self.witness {
            let heard = witness.weighed(step, weights);
            self.heed(heard);
        }
        // All of it may have been reported before.
        if self.phase == Phase::Training {
            self.complete(now);
        }
    }

    /// Which servers owe products that others have posted.
    pub(super) fn owing_products(&self) -> Option<String> {
        let (step, owing) = self.gradients.owing()?;
        let owing: Vec<String> = owing.into_iter().map(|server| format!("server/{server}")).collect();
        Some(format!("waiting for {} to post products of step {step}", owing.join(", ")))
    }
}
