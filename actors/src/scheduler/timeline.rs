//! When the last steps were worked on, node by node, by the scheduler's clock.
//!
//! 1. Nodes' clocks need not agree. A node says how long ago something was, and by its own clock when it says that; of its last words, the
//!    one that was heard with the least delay says how its clock compares, so that what waits in a queue is not placed late. The delay of that
//!    one is not known, and part of every moment.
//! 2. A timeline is of one step. Workers tell of every step and servers of some ([`sampled`](crate::sampled)); what is shown is the newest
//!    step of which all have told; the newest without servers until there is one, and where it is [`PATIENCE`] heartbeats behind.
//! 3. What is kept is bounded: steps that workers have begun and not completed, of which there are a few, the newest complete step of
//!    each rank, the newest word of each server, and [`WORDS`] delays of each node.
//! 4. Whatever a node says, its moments are between the beginning of the scheduler's clock and now, and nothing takes longer than that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::job::JobSpec;
use crate::message::{Member, MemberRole, NodeDone, ServedStep, ServerSpan, Timeline, WorkerSpan};
use crate::placement::SliceMap;
use crate::sampled::rank;
use crate::time::Time;

/// Horizons that are remembered: more than steps can be open beyond the last complete one.
const OPENINGS_MOST: usize = 16;

/// Words by which a node's clock is compared: so many that one of them has waited nowhere, and so few that clocks do not drift apart
/// meanwhile.
const WORDS: usize = 16;

/// Heartbeats that servers have for telling of a step in common: about every fourth does.
const PATIENCE: u32 = 32;

/// How much later by the scheduler's clock than by the node's own its last words were, in microseconds.
#[derive(Debug, Default)]
struct Delays(VecDeque<i64>);

impl Delays {
    /// A word is heard that was said at `said_at_us` by the node's clock: when that was by the scheduler's, if none of the last words was
    /// quicker than the quickest.
    fn hear(&mut self, now: Time, said_at_us: u64) -> i64 {
        let said = i64::try_from(said_at_us).unwrap_or(i64::MAX);
        if self.0.len() == WORDS {
            self.0.pop_front();
        }
        let delay = micros(now).saturating_sub(said);
        self.0.push_back(delay);
        let placed = said.saturating_add(self.0.iter().copied().min().unwrap_or(delay));
        placed.clamp(0, micros(now))
    }
}

/// A complete step, and when it was opened.
type Complete = (Time, Timeline);

/// Follows the steps.
#[derive(Debug, Default)]
pub(super) struct Timelines {
    /// Servers that keep slices.
    servers: usize,
    /// Steps below the first have been open since the second, in order.
    opened: VecDeque<(u64, Time)>,
    /// By step and worker: as many workers at most as there are logical shards, each of which is reported once a step.
    begun: BTreeMap<u64, BTreeMap<u32, WorkerSpan>>,
    /// By rank.
    complete: BTreeMap<u32, Complete>,
    /// By server, and when it was said by the scheduler's clock.
    told: BTreeMap<u32, (i64, ServedStep)>,
    delays: BTreeMap<Member, Delays>,
    /// The rank of the newest complete step.
    newest: Option<u32>,
    /// The newest of which every server has told.
    whole: Option<Complete>,
    /// How far the whole one may be behind the newest before it is shown no longer: a server has stopped telling.
    patience: Duration,
}

impl Timelines {
    pub(super) fn new(job: &JobSpec) -> Timelines {
        // A job's model was checked with it; one that cannot be placed has no servers that tell anything.
        let map = SliceMap::of(job, &job.model.parameters().unwrap_or_default()).ok();
        let servers = map.iter().flat_map(SliceMap::slices).map(|slice| slice.server);
        let patience = Duration::from_millis(job.heartbeat_ms).saturating_mul(PATIENCE);
        Timelines { servers: servers.collect::<BTreeSet<u32>>().len(), patience, ..Timelines::default() }
    }

    /// A node has joined, perhaps as another process, whose clock is another.
    pub(super) fn joined(&mut self, member: Member) {
        self.delays.remove(&member);
    }

    /// Workers may begin the steps below `until`.
    pub(super) fn open(&mut self, now: Time, until: u64) {
        if self.opened.back().is_some_and(|(before, _)| *before >= until) {
            return;
        }
        if self.opened.len() == OPENINGS_MOST {
            self.opened.pop_front();
        }
        self.opened.push_back((until, now));
    }

    /// A worker says that its part of a step is done, and when it was. Whether the step was its own is the core's to check.
    pub(super) fn worked(&mut self, now: Time, worker: u32, done: &NodeDone) {
        let Some(opened) = self.opening(done.step).filter(|_| done.times.compute_us > 0) else { return };
        let times = &done.times;
        let said =
            self.said(now, (MemberRole::Worker, worker), times.said_at_us).saturating_sub(micros(opened));
        let at = |ago: u64| before(said, ago, opened);
        let (ready, began) = (at(times.ready_ago_us), at(times.began_ago_us));
        let workers = self.begun.entry(done.step).or_default();
        let new = WorkerSpan { worker, ready_at_us: ready, began_at_us: began, ..WorkerSpan::default() };
        let span = workers.entry(worker).or_insert(new);
        // Who takes over what another has left has two parts of one step.
        let most = micros(now).unsigned_abs();
        span.wait_us = span.wait_us.saturating_add(times.wait_us).min(most);
        span.compute_us = span.compute_us.saturating_add(times.compute_us).min(most);
        (span.send_us, span.ended_at_us) = (times.send_us.min(most), said);
    }

    /// `step` is complete, `seconds` after the one before.
    pub(super) fn completed(&mut self, step: u64, seconds: f64) {
        let opened = self.opening(step);
        let workers = self.begun.remove(&step);
        self.begun.retain(|begun, _| *begun > step);
        while self.opened.front().is_some_and(|(until, _)| *until <= step + 1) {
            self.opened.pop_front();
        }
        let (Some(opened), Some(workers)) = (opened, workers) else { return };
        let duration_us = (seconds * 1e6) as u64;
        let workers = workers.into_values().collect();
        let timeline = Timeline { step, duration_us, workers, servers: Vec::new() };
        self.newest = Some(rank(step));
        self.complete.insert(rank(step), (opened, timeline));
        // A server may have told of it before the last worker did.
        let told: Vec<_> =
            self.told.iter().filter(|(_, (_, served))| served.step == step).map(|(s, t)| (*s, *t)).collect();
        for (server, (said, served)) in told {
            self.place(said, server, &served);
        }
    }

    /// A server says when it worked for a step.
    pub(super) fn served(&mut self, now: Time, server: u32, served: ServedStep) {
        let said = self.said(now, (MemberRole::Server, server), served.said_at_us);
        self.told.insert(server, (said, served));
        self.place(said, server, &served);
    }

    /// What there is to show.
    pub(super) fn shown(&self) -> Option<&Timeline> {
        let newest = self.complete.get(&self.newest?)?;
        let whole = self.whole.as_ref().filter(|whole| newest.0.since(whole.0) <= self.patience);
        Some(&whole.unwrap_or(newest).1)
    }

    fn said(&mut self, now: Time, (role, index): (MemberRole, u32), said_at_us: u64) -> i64 {
        self.delays.entry(Member { role, index }).or_default().hear(now, said_at_us)
    }

    /// Entries that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.opened.len()
            + self.begun.len()
            + self.complete.len()
            + self.told.len()
            + self.delays.values().map(|delays| delays.0.len()).sum::<usize>()
    }

    fn opening(&self, step: u64) -> Option<Time> {
        self.opened.iter().find(|(until, _)| step < *until).map(|(_, opened)| *opened)
    }

    fn place(&mut self, said: i64, server: u32, served: &ServedStep) {
        let Some((opened, timeline)) =
            self.complete.get_mut(&rank(served.step)).filter(|(_, timeline)| timeline.step == served.step)
        else {
            return;
        };
        let said = said.saturating_sub(micros(*opened));
        let at = |ago: u64| before(said, ago, *opened);
        let span = ServerSpan {
            server,
            first_at_us: at(served.first_ago_us),
            last_at_us: at(served.last_ago_us),
            done_at_us: at(served.done_ago_us),
        };
        match timeline.servers.binary_search_by_key(&server, |span| span.server) {
            Ok(_) => return,
            Err(place) => timeline.servers.insert(place, span),
        }
        let is_newer = self.whole.as_ref().is_none_or(|(_, whole)| whole.step < timeline.step);
        if timeline.servers.len() >= self.servers && is_newer {
            self.whole = Some((*opened, timeline.clone()));
        }
    }
}

/// `ago` before `said`, both counted from when the step was opened; never before the scheduler's clock began (invariant 4).
fn before(said: i64, ago: u64, opened: Time) -> i64 {
    said.saturating_sub_unsigned(ago).max(-micros(opened))
}

/// Microseconds since the scheduler's clock began.
fn micros(time: Time) -> i64 {
    i64::try_from(time.0.as_micros()).unwrap_or(i64::MAX)
}
