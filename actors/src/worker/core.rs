//! The worker's decisions. Pure.
//!
//! 1. A step begins when every slice is at its version and the lease covers it; not before.
//! 2. The pull of the next version follows the first push of a slice at once; no barrier spans slices.
//! 3. A step is reported done when every server has acknowledged every slice of it.
//! 4. Parameters of the step being computed stay in place until every slice of the next version has arrived, so that
//!    shards of a worker that died can still be computed for that step.
//! 5. A worker that joins a running job begins with the version that the scheduler names, and pulls no other before.
//! 6. What a lost worker contributed counts, whatever its heir computes: that they differ is said, and ends nothing.

mod exact;
mod io;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use testudo_kernels::Distortion;

use exact::{Exact, Order};
pub use io::{Effect, Input, WorkerError};

use crate::job::Codecs;
use crate::lease::{FIRST_EPOCH, Lease, contributed, may_contribute};
use crate::message::{
    Heartbeat, Load, Membership, NodeDone, NodeLoss, Pull, Push, PushRefusal, StepTimes, Waiting,
};
use crate::placement::{SliceId, SliceMap};
use crate::time::Time;
use crate::tree::{Node, ReductionTree};

#[derive(Debug)]
struct Batch {
    nodes: Vec<Node>,
    losses: Vec<NodeLoss>,
    unacknowledged: usize,
    /// When the step's parameters were there, and when computing began.
    ready: Time,
    began: Time,
    wait_us: u64,
    compute_us: u64,
    pushed: Distortion,
    computed_at: Option<Time>,
}

/// The worker's state machine.
#[derive(Debug)]
pub struct WorkerCore<V> {
    index: u32,
    tree: ReductionTree,
    map: SliceMap,
    names: Vec<String>,
    /// The version that it begins with.
    start: u64,
    steps: u64,
    epoch: u64,
    until: u64,
    leases: Vec<Lease>,
    dialled: bool,
    connected: bool,
    /// The adopted version.
    version: Option<u64>,
    begun: Option<u64>,
    /// By slice: the version asked for last (`None`: nothing yet), and whether it has arrived.
    asked: Vec<Option<u64>>,
    arrived: Vec<bool>,
    arrivals: usize,
    /// Slices and versions that were asked for before this worker was told to begin with another, and have not come.
    abandoned: BTreeSet<(usize, u64)>,
    /// Work under way, by step; a second batch of one step exists only after another worker's death.
    batches: BTreeMap<u64, Vec<Batch>>,
    orders: Vec<Order>,
    codecs: Codecs,
    exact: Exact,
    waiting_since: Time,
    /// When the adopted version was there, and how long it was waited for.
    ready: Time,
    wait_us: u64,
    heartbeat: Duration,
    next_heartbeat: Time,
    effects: VecDeque<Effect<V>>,
}

impl<V> WorkerCore<V> {
    /// Worker `index` of a job with that tree and placement that goes from version `first` to version `steps`. `names` are the
    /// parameters', for messages.
    #[must_use]
    pub fn new(
        index: u32,
        tree: ReductionTree,
        map: SliceMap,
        names: Vec<String>,
        (first, steps): (u64, u64),
        heartbeat: Duration,
    ) -> WorkerCore<V> {
        let slices = map.slices().len();
        WorkerCore {
            index,
            tree,
            map,
            names,
            start: first,
            steps,
            epoch: 0,
            until: 0,
            leases: Vec::new(),
            dialled: false,
            connected: false,
            version: None,
            begun: None,
            asked: vec![None; slices],
            arrived: vec![false; slices],
            arrivals: 0,
            abandoned: BTreeSet::new(),
            batches: BTreeMap::new(),
            orders: Vec::new(),
            codecs: Codecs::default(),
            exact: Exact::default(),
            waiting_since: Time::default(),
            ready: Time::default(),
            wait_us: 0,
            heartbeat,
            next_heartbeat: Time::default(),
            effects: VecDeque::new(),
        }
    }

    /// For a job in which values travel otherwise than as `f32`.
    #[must_use]
    pub fn with_codecs(mut self, codecs: Codecs) -> WorkerCore<V> {
        self.codecs = codecs;
        self
    }

    /// What happened, at `now`.
    ///
    /// # Errors
    /// [`WorkerError`] when the worker cannot go on.
    pub fn handle(&mut self, now: Time, input: Input<V>) -> Result<(), WorkerError> {
        match input {
            Input::Membership(membership) => self.install(now, membership),
            Input::Extended { epoch, until } => {
                if epoch == self.epoch {
                    self.until = self.until.max(until);
                    self.begin(now);
                }
            }
            Input::Connected => {
                self.connected = true;
                self.pull_all(self.start);
                self.begin(now);
            }
            Input::Slice { slice, version, codec, values, bytes } => {
                self.arrive(now, slice, version, codec, values, bytes)?;
            }
            Input::PullRefused { slice, version, reason } => {
                let (server, parameter) = self.describe(slice);
                return Err(WorkerError::PullRefused { server, parameter, slice, version, reason });
            }
            Input::Gradient { step, node, slice, values } => self.send(step, node, slice, values),
            Input::Computed { step, loss, compute_us, pushed } => {
                self.computed(now, step, loss, compute_us, pushed);
            }
            Input::Accepted { step, node, slice: _ } => self.acknowledged(now, step, node),
            Input::Refused { step, node, slice, reason } => {
                // A node that moved on while its push was under way is owed by its new holder.
                if reason == PushRefusal::NoLease && !self.holds(node, step) {
                    self.acknowledged(now, step, node);
                } else if reason == PushRefusal::Conflict && self.inherited(node, step) {
                    let (server, parameter) = self.describe(slice);
                    self.effects.push_back(Effect::Differs { server, parameter, slice, step, node });
                    self.acknowledged(now, step, node);
                } else {
                    let (server, parameter) = self.describe(slice);
                    return Err(WorkerError::Refused { server, parameter, slice, step, reason });
                }
            }
            Input::Evaluate(order) => self.order(Order::Evaluate(order)),
            Input::Evaluated(result) => self.effects.push_back(Effect::Result(result)),
            Input::Export(order) => self.order(Order::Export(order)),
            Input::Tick => {}
        }
        if now >= self.next_heartbeat {
            self.next_heartbeat = now.after(self.heartbeat);
            let heartbeat = self.status();
            self.effects.push_back(Effect::Heartbeat(heartbeat));
        }
        Ok(())
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Effect<V>> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        Some(self.next_heartbeat)
    }

    /// The adopted version.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    fn holds(&self, node: Node, step: u64) -> bool {
        may_contribute(self.tree, &self.leases, (self.index, self.epoch), (node, step))
    }

    /// Whether a worker that is lost may have contributed that node to `step` in this one's place: what a server took of it counts,
    /// and no liar ends a run by what it leaves behind (invariant 6).
    fn inherited(&self, node: Node, step: u64) -> bool {
        let may =
            |l: &Lease| l.node == node && l.holds_in(step) && l.since > FIRST_EPOCH && step < l.alone_from;
        self.leases.iter().any(may)
    }

    fn describe(&self, slice: SliceId) -> (String, String) {
        let server = self.map.slice(slice).map_or(0, |s| s.server);
        let name = self.names.get(slice.parameter as usize);
        (format!("server/{server}"), name.cloned().unwrap_or_else(|| slice.to_string()))
    }

    fn install(&mut self, now: Time, membership: Membership) {
        if membership.epoch <= self.epoch {
            return;
        }
        let before = self.epoch;
        self.epoch = membership.epoch;
        if let Some(me) = membership.workers.iter().find(|w| w.index == self.index) {
            self.begin_with(me.start);
        }
        self.until = self.until.max(membership.until);
        self.leases = membership.leases.into_iter().filter(|l| l.worker == self.index).collect();
        if !self.dialled {
            self.dialled = true;
            self.effects.push_back(Effect::Connect(membership.servers));
        }
        // Epochs may be skipped: when workers die in quick succession, only the last is told.
        let fresh = self.leases.iter().filter(|l| l.since > before);
        let version = self.version.unwrap_or(self.start);
        let under_way = self.begun.is_some() && self.begun == self.version;
        let (mut taken_over, mut complete): (Vec<Node>, BTreeMap<u64, Vec<NodeLoss>>) = Default::default();
        for lease in fresh {
            if under_way && lease.holds_in(version) {
                // This step is under way: what has moved here is computed for it as well.
                taken_over.push(lease.node);
            } else if lease.from_step < version {
                // Every slice has this version, so the steps below it are complete whoever contributed.
                let last = lease.to_step.map_or(version, |to| to.min(version)).saturating_sub(1);
                let loss = NodeLoss { node: lease.node, loss_sum: 0.0, correct: 0, examples: 0 };
                complete.entry(last).or_default().push(loss);
            }
        }
        if under_way {
            self.compute(now, version, taken_over);
        }
        for (step, nodes) in complete {
            self.effects.push_back(Effect::Report(NodeDone {
                step,
                nodes,
                times: StepTimes::default(),
                bytes_sent: 0,
                bytes_received: 0,
                pushed: Distortion::default(),
            }));
        }
        self.begin(now);
    }

    /// What a worker begins with that has no version yet: another than it was told before, if all that had one are lost since
    /// (invariant 5).
    fn begin_with(&mut self, start: u64) {
        if self.version.is_some() || start == self.start {
            return;
        }
        self.start = start;
        self.arrivals = 0;
        for (at, (asked, arrived)) in self.asked.iter_mut().zip(&mut self.arrived).enumerate() {
            let asked = asked.take();
            if !std::mem::take(arrived) {
                self.abandoned.extend(asked.map(|version| (at, version)));
            }
        }
        if self.connected {
            self.pull_all(start);
        }
    }

    fn pull_all(&mut self, version: u64) {
        for at in 0..self.asked.len() {
            self.pull(at, version);
        }
    }

    fn pull(&mut self, at: usize, version: u64) {
        let (Some(asked), Some(slice)) = (self.asked.get_mut(at), self.map.slices().get(at)) else { return };
        if asked.is_none_or(|v| v < version) {
            *asked = Some(version);
            // What was asked for once is still to come.
            if self.abandoned.remove(&(at, version)) {
                return;
            }
            let pull = Pull { slice: slice.id, version, exact: false };
            self.effects.push_back(Effect::Pull { server: slice.server, pull });
        }
    }

    fn arrive(
        &mut self,
        now: Time,
        id: SliceId,
        version: u64,
        codec: u8,
        values: V,
        bytes: u64,
    ) -> Result<(), WorkerError> {
        if self.exact.version() == Some(version) {
            return self.arrive_exact(id, version, codec, values, bytes);
        }
        let next = self.version.map_or(self.start, |v| v + 1);
        let at = self.map.position(id);
        let pull = self.codecs.pull;
        let expected =
            at.and_then(|at| self.map.slices().get(at)).map(|s| pull.encoded_len(s.elements) as u64);
        let asked = at.and_then(|at| self.asked.get(at).copied().flatten());
        if asked != Some(version) && at.is_some_and(|at| self.abandoned.remove(&(at, version))) {
            return Ok(());
        }
        let first_time = at.and_then(|at| self.arrived.get(at)).is_some_and(|arrived| !arrived);
        let fits = expected == Some(bytes) && codec == pull.id();
        let (Some(at), true) = (at, fits && first_time && asked == Some(version) && version == next) else {
            return Err(self.unasked(id, version, codec, bytes));
        };
        if let Some(arrived) = self.arrived.get_mut(at) {
            *arrived = true;
        }
        self.arrivals += 1;
        self.effects.push_back(Effect::Install { slice: id, codec: pull, values });
        if self.arrivals == self.arrived.len() {
            self.arrivals = 0;
            self.arrived.fill(false);
            self.version = Some(version);
            self.ready = now;
            // What is there before the last push of the step before is acknowledged was never waited for.
            let waited = if self.batches.is_empty() { now.since(self.waiting_since) } else { Duration::ZERO };
            self.wait_us = waited.as_micros() as u64;
            self.effects.push_back(Effect::Adopt { version });
            self.begin(now);
            self.carry_out_orders();
        }
        Ok(())
    }

    /// Begins the step of the adopted version, if it may begin and has not.
    fn begin(&mut self, now: Time) {
        let Some(version) = self.version else { return };
        if version >= self.steps || version >= self.until || self.begun == Some(version) {
            return;
        }
        self.begun = Some(version);
        self.waiting_since = now;
        let nodes = contributed(self.tree, &self.leases, self.index, version);
        if nodes.is_empty() {
            self.pull_all(version + 1);
        } else {
            self.compute(now, version, nodes);
        }
    }

    fn compute(&mut self, now: Time, step: u64, nodes: Vec<Node>) {
        if nodes.is_empty() {
            return;
        }
        let batch = Batch {
            unacknowledged: nodes.len() * self.map.slices().len(),
            nodes: nodes.clone(),
            losses: Vec::new(),
            ready: self.ready,
            began: now,
            wait_us: std::mem::take(&mut self.wait_us),
            compute_us: 0,
            pushed: Distortion::default(),
            computed_at: None,
        };
        self.batches.entry(step).or_default().push(batch);
        self.effects.push_back(Effect::Compute { step, nodes });
    }

    fn send(&mut self, step: u64, node: Node, id: SliceId, values: V) {
        let Some(at) = self.map.position(id) else { return };
        let Some(server) = self.map.slices().get(at).map(|s| s.server) else { return };
        let push = Push { epoch: self.epoch, step, slice: id, node, codec: self.codecs.push.id() };
        self.effects.push_back(Effect::Push { server, push, values });
        self.pull(at, step + 1);
    }

    fn batch(&mut self, step: u64, node: Node) -> Option<&mut Batch> {
        self.batches.get_mut(&step)?.iter_mut().find(|b| b.nodes.contains(&node))
    }

    fn computed(&mut self, now: Time, step: u64, loss: NodeLoss, compute_us: u64, pushed: Distortion) {
        if let Some(batch) = self.batch(step, loss.node) {
            batch.losses.push(loss);
            batch.pushed.add(pushed);
            batch.compute_us += compute_us;
            batch.computed_at = Some(now);
        }
        self.report(now, step);
    }

    fn acknowledged(&mut self, now: Time, step: u64, node: Node) {
        if let Some(batch) = self.batch(step, node) {
            batch.unacknowledged = batch.unacknowledged.saturating_sub(1);
        }
        self.report(now, step);
    }

    /// Reports the batches of `step` that are computed and acknowledged.
    fn report(&mut self, now: Time, step: u64) {
        let Some(batches) = self.batches.get_mut(&step) else { return };
        let is_done = |b: &Batch| b.unacknowledged == 0 && b.losses.len() == b.nodes.len();
        let Some(at) = batches.iter().position(is_done) else { return };
        let batch = batches.swap_remove(at);
        if batches.is_empty() {
            self.batches.remove(&step);
        }
        self.waiting_since = now;
        let since = |then: Time| now.since(then).as_micros() as u64;
        self.effects.push_back(Effect::Report(NodeDone {
            step,
            nodes: batch.losses,
            times: StepTimes {
                compute_us: batch.compute_us,
                send_us: batch.computed_at.map_or(0, since),
                wait_us: batch.wait_us,
                ready_ago_us: since(batch.ready),
                began_ago_us: since(batch.began),
                said_at_us: now.0.as_micros() as u64,
            },
            bytes_sent: 0,
            bytes_received: 0,
            pushed: batch.pushed,
        }));
    }

    fn unasked(&self, slice: SliceId, version: u64, codec: u8, bytes: u64) -> WorkerError {
        let (server, _) = self.describe(slice);
        let what = format!("version {version} in {bytes} bytes by codec {codec}");
        WorkerError::Unasked { server, what, slice }
    }

    /// The first slice that has not arrived, if the worker waits for parameters.
    fn status(&self) -> Heartbeat {
        let step = self.version.unwrap_or(0);
        let computing = self.batches.values().flatten().any(|b| b.losses.len() < b.nodes.len());
        let missing = self.map.slices().iter().zip(self.asked.iter().zip(&self.arrived)).find(
            |(_, (asked, arrived))| asked.is_some_and(|v| self.version.is_none_or(|c| v > c)) && !**arrived,
        );
        let waiting =
            missing.filter(|_| !computing).map(|(slice, _)| Waiting { slice: slice.id, step, missing: None });
        Heartbeat { step, waiting, load: Load::default(), served: None }
    }
}

#[cfg(test)]
mod tests;
