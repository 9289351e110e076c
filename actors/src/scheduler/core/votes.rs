//! What deaths do to a robust rule: a vote that moves is cast by a worker that had one already.

use super::SchedulerCore;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// What to warn of, now that leases have moved: the votes that the job's number of hostile workers may have got, if the
    /// rule bears fewer. Which workers those are nobody knows, so the worst is assumed: those with the most votes.
    pub(super) fn moved_votes(&self) -> Option<String> {
        let rule = self.job.aggregation;
        let hostile = rule.hostile()?;
        let mut votes: Vec<u32> = self
            .live(super::MemberRole::Worker)
            .iter()
            .map(|worker| {
                self.leases.iter().filter(|lease| lease.worker == *worker && lease.to_step.is_none()).count()
                    as u32
            })
            .collect();
        votes.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        let worst: u32 = votes.iter().take(hostile as usize).sum();
        let (all, bears) = (self.tree.leaves(), rule.bears(self.tree.leaves()));
        (worst > bears).then(|| {
            format!(
                "{hostile} hostile workers may now have {worst} of {all} votes, since the lost workers' votes have moved; {rule} \
                 bears {bears}: set training.hostile_workers to hostile workers and deaths together"
            )
        })
    }
}
