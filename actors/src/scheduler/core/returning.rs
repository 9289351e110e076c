//! Workers that come back, or join a running job (invariant 7 of the core).
//!
//! 1. Who has joined is leased steps from the horizon on; whoever has them now keeps them below it. The horizon stays until every
//!    worker knows, so nobody begins a step under leases of before that is another's by now.
//! 2. What a lost worker owes goes to those who hold parameters. If none of them is left, those who have joined begin with the version
//!    that servers still have, and take over what is owed from there on; if nobody is left at all, the run waits for as long as the
//!    job says.
//! 3. What a worker reports of its first steps counts when the steps before are reported by those who owe them.
//! 4. Who was lost for what it said or did does not come back, nor who comes too often, or too often says that it cannot go on: each
//!    return makes servers and workers change their leases.
//! 5. After the last step nobody comes back while another worker is there: nothing is left to lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{Effect, SchedulerCore, ToMember};
use crate::job::JobSpec;
use crate::lease::{Lease, reassign, rebalance};
use crate::message::{JoinRefused, Member, MemberRole, NodeDone, Phase, Witnessed};
use crate::time::Time;
use crate::tree::Node;

/// How often an identity may join within [`WINDOW`]: more than any budget of restarts that makes sense, and too seldom to keep
/// others from their work.
const MOST_JOINS: usize = 32;

/// See [`MOST_JOINS`].
pub(super) const WINDOW: Duration = Duration::from_secs(600);

/// How often a worker may say within [`WINDOW`] that it cannot go on, and come back: saying so costs it nothing, and others the leases
/// that move.
pub(super) const MOST_FAILURES: usize = 3;

/// What is known of those who join late.
#[derive(Debug, Default)]
pub(super) struct Returning {
    /// Some have joined that have no lease yet.
    waiting: bool,
    /// The horizon stays where it is: leases begin with it that workers do not know of (invariant 1).
    pub(super) held: bool,
    /// Nobody who holds parameters is left (invariant 2).
    afresh: bool,
    /// Since when no worker is left.
    forsaken_since: Option<Time>,
    joined: BTreeMap<Member, VecDeque<Time>>,
    failed: BTreeMap<Member, VecDeque<Time>>,
    barred: BTreeSet<Member>,
    /// Reports that wait for those of the steps before (invariant 3).
    early: Vec<(u32, NodeDone)>,
}

impl Returning {
    /// `member` says that it cannot go on. Whether it has said so too often to come back (invariant 4).
    pub(super) fn fails_too_often(&mut self, now: Time, member: Member) -> bool {
        let failed = self.failed.entry(member).or_default();
        failed.push_back(now);
        while failed.front().is_some_and(|first| now.since(*first) >= WINDOW) {
            failed.pop_front();
        }
        failed.len() > MOST_FAILURES
    }

    /// It does not come back.
    pub(super) fn bar(&mut self, member: Member) {
        self.barred.insert(member);
    }

    /// `member` has joined.
    pub(super) fn count(&mut self, now: Time, member: Member) {
        let joined = self.joined.entry(member).or_default();
        joined.push_back(now);
        while joined.len() > MOST_JOINS {
            joined.pop_front();
        }
    }

    /// Why `member` may not join, for its past (invariant 4).
    pub(super) fn admits(&self, now: Time, member: Member) -> Result<(), JoinRefused> {
        if self.barred.contains(&member) {
            let reason = format!(
                "{member} was lost for what it said or did, and is not let in again: see the audit log"
            );
            return Err(JoinRefused { reason, transient: false });
        }
        let first = self.joined.get(&member).filter(|j| j.len() >= MOST_JOINS).and_then(|j| j.front());
        if first.is_some_and(|first| now.since(*first) < WINDOW) {
            let minutes = WINDOW.as_secs() / 60;
            let reason = format!("{member} has joined {MOST_JOINS} times within {minutes} minutes");
            return Err(JoinRefused { reason, transient: true });
        }
        Ok(())
    }

    /// Times at which the scheduler stood still do not count (invariant 9 of the core).
    pub(super) fn stood_still(&mut self, shifted: impl Fn(Time) -> Time) {
        self.forsaken_since = self.forsaken_since.map(shifted);
    }

    /// Whether no worker has come back for longer than `job` waits for one.
    pub(super) fn is_forsaken(&self, now: Time, job: &JobSpec) -> bool {
        let most = Duration::from_millis(job.elastic.return_ms);
        self.forsaken_since.is_some_and(|since| now.since(since) > most)
    }

    /// Keeps a report that comes before others that are owed; a second one of the same nodes is dropped.
    pub(super) fn keep(&mut self, worker: u32, done: NodeDone) {
        let overlaps = |a: &Node, b: &Node| a.covers(b) || b.covers(a);
        let again = self.early.iter().any(|(of, kept)| {
            let mut pairs =
                kept.nodes.iter().flat_map(|k| done.nodes.iter().map(move |d| (&k.node, &d.node)));
            *of == worker && kept.step == done.step && pairs.any(|(a, b)| overlaps(a, b))
        });
        if !again {
            self.early.push((worker, done));
        }
    }

    /// What is left of a lost worker's reports is its heirs' to make.
    pub(super) fn forget(&mut self, worker: u32) {
        self.early.retain(|(of, _)| *of != worker);
    }
}

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// A worker has joined a job that is under way.
    pub(super) fn returned(&mut self, member: Member, incarnation: u64) {
        let how = if incarnation > 1 { "has come back" } else { "has joined" };
        self.effects.push_back(Effect::Notice(format!("{member} {how}, as its incarnation {incarnation}")));
        if let Some((key, _)) = &self.witness {
            let message = ToMember::Witnessed(Witnessed { key: key.clone() });
            self.send(member, message);
        }
        self.returning.forsaken_since = None;
        self.lease_anew();
        self.hand_out();
    }

    /// Those workers begin with that version.
    pub(super) fn begin_at(&mut self, version: u64, workers: &[u32]) {
        for index in workers {
            let member = Member { role: MemberRole::Worker, index: *index };
            if let Some(joined) = self.members.get_mut(&member) {
                joined.start = Some(version);
            }
        }
    }

    /// Workers that hold parameters, or have them coming: all steps below the version that they begin with are complete. Who is
    /// dismissed takes nothing over.
    pub(super) fn holders(&self) -> Vec<u32> {
        let completed = self.progress.completed();
        let holds = |start: Option<u64>| start.is_some_and(|start| start <= completed);
        self.remaining().into_iter().filter(|worker| holds(self.starts(*worker))).collect()
    }

    /// Who takes over what a lost worker owes (invariant 2).
    pub(super) fn heirs(&mut self) -> Vec<u32> {
        let (holders, staying) = (self.holders(), self.staying());
        let both: Vec<u32> = holders.iter().copied().filter(|worker| staying.contains(worker)).collect();
        if !both.is_empty() {
            return both;
        }
        // Who was to leave is needed.
        self.scaling.keep_everybody();
        if !holders.is_empty() {
            return holders;
        }
        self.returning.afresh = true;
        self.remaining()
    }

    /// Leases are made anew with the next epoch.
    pub(super) fn lease_anew(&mut self) {
        self.returning.waiting = true;
        self.moved = true;
    }

    /// What `dead` owes is owed by `heirs`.
    pub(super) fn bequeath(&mut self, dead: u32, heirs: &[u32]) {
        let progress = &self.progress;
        // Who is lost began no step from the horizon on.
        let alone_from = self.job.sums_shards().then_some(self.until);
        let owed = |node| progress.owed(node);
        self.leases = reassign(&self.leases, dead, heirs, self.epoch + 1, (owed, alone_from));
    }

    /// The last worker is lost: what it owes is nobody's until one comes back.
    pub(super) fn forsaken(&mut self, now: Time, member: Member) {
        self.effects.push_back(Effect::Notice(format!(
            "no worker is left: waiting {} ms for one to come back",
            self.job.elastic.return_ms
        )));
        self.lose_residuals(member.index);
        self.checkpoints.lose(member.index, self.until);
        self.testified.moved(self.until);
        self.returning.forsaken_since = Some(now);
        self.last_progress = now;
        self.give_back(member.index);
    }

    /// Leases for those who have joined, with the next epoch.
    pub(super) fn lease_to_newcomers(&mut self) {
        let completed = self.progress.completed();
        // Who contributed to the last complete step keeps what error feedback kept back of it.
        let (leases, ended): (Vec<Lease>, Vec<Lease>) = std::mem::take(&mut self.leases)
            .into_iter()
            .partition(|lease| lease.to_step.is_none_or(|to| to >= completed));
        self.leases = leases;
        self.keep_ended(ended);
        if self.staying().is_empty() {
            self.scaling.keep_everybody();
        }
        let live = self.staying();
        if live.is_empty() || !std::mem::take(&mut self.returning.waiting) {
            return;
        }
        let nobody_holds = self.holders().is_empty();
        // No step is left to lease, and what was kept back of the last is written by whoever contributed it.
        if self.phase == Phase::Finishing && !nobody_holds {
            return self.begin_newcomers(&live);
        }
        if nobody_holds {
            self.returning.afresh = true;
            // Who is back holds what was its former life's as an heir does: it need not contribute the same bits.
            let holders: BTreeSet<u32> = self.leases.iter().map(|lease| lease.worker).collect();
            let (remaining, starts) = (self.remaining(), |worker: &u32| self.starts(*worker).is_some());
            let lost: Vec<u32> =
                holders.into_iter().filter(|w| !(remaining.contains(w) && starts(w))).collect();
            for lost in lost {
                match live.contains(&lost) {
                    true => self.bequeath(lost, &[lost]),
                    false => self.bequeath(lost, &live),
                }
            }
        }
        let mut base: Vec<u32> = (0..self.job.workers).chain(live.iter().copied()).collect();
        base.sort_unstable();
        base.dedup();
        let (epoch, sums) = (self.epoch + 1, self.job.sums_shards());
        let former = std::mem::take(&mut self.leases);
        self.leases = rebalance(self.tree, &former, (&base, &live), (epoch, self.until), sums);
        let moved = self.leases.iter().filter(|l| l.from_step == self.until && !former.contains(l));
        // If nobody held parameters, they were lost before.
        if !self.returning.afresh {
            self.lose_residuals_of(moved.map(|l| l.node.leaves).sum(), "as they move to other workers");
        }
        self.returning.held = true;
        self.begin_newcomers(&live);
    }

    fn begin_newcomers(&mut self, live: &[u32]) {
        let newcomers: Vec<u32> = live.iter().copied().filter(|w| self.starts(*w).is_none()).collect();
        self.begin_at(self.until, &newcomers);
    }

    /// The version that a worker begins with, if it takes part and that is known.
    fn starts(&self, worker: u32) -> Option<u64> {
        self.members.get(&Member { role: MemberRole::Worker, index: worker })?.start
    }

    /// If nobody held parameters any more when leases were made, workers begin with what every server still has: the lowest
    /// version of any slice. A slice goes on to the version after the next only when a worker has had all of the next, so servers
    /// keep that one.
    pub(super) fn begin_afresh(&mut self) {
        if !std::mem::take(&mut self.returning.afresh) {
            return;
        }
        let servers = self.members.iter().filter(|(member, _)| member.role == MemberRole::Server);
        let lowest = servers.map(|(_, joined)| joined.version).min().unwrap_or_default();
        let version = lowest.min(self.until).max(self.progress.completed());
        let live = self.live(MemberRole::Worker);
        self.begin_at(version, &live);
        self.effects.push_back(Effect::Notice(format!(
            "nobody who held parameters was left: workers go on from version {version}, which servers have"
        )));
    }

    /// The first step that `worker` was leased of `node`, as it contributes it to `step`.
    pub(super) fn begins(&self, worker: u32, node: Node, step: u64) -> u64 {
        self.own(worker, node, step).map(|lease| lease.from_step).max().unwrap_or_default()
    }

    fn own(&self, worker: u32, node: Node, step: u64) -> impl Iterator<Item = &crate::lease::Lease> {
        let overlaps = move |of: &Node| of.covers(&node) || node.covers(of);
        self.leases.iter().filter(move |l| l.worker == worker && l.holds_in(step) && overlaps(&l.node))
    }

    /// Whether others owe steps below the first that `worker` was leased of what it reports.
    pub(super) fn is_early(&self, worker: u32, done: &NodeDone) -> bool {
        let waits =
            |node| self.own(worker, node, done.step).any(|l| self.progress.owed(l.node) < l.from_step);
        done.nodes.iter().any(|loss| waits(loss.node))
    }

    /// Reports that came early count once what was owed before them is reported.
    pub(super) fn count_early(&mut self) {
        while let Some(at) =
            self.returning.early.iter().position(|(worker, done)| !self.is_early(*worker, done))
        {
            let (_, mut done) = self.returning.early.remove(at);
            done.nodes.retain(|loss| self.progress.owes_all(loss.node, done.step));
            if !done.nodes.is_empty() {
                self.progress.report(&done);
            }
        }
    }
}
