//! The server's decisions: who may contribute what, and when a pull can be answered. Pure.
//!
//! 1. A contribution counts once: who has contributed is a set of (tree node, slice, step).
//! 2. An acknowledgement leaves after the values are stored, never before.
//! 3. A second, different value for the same place is an error that names its sender.
//! 4. A push or pull that can never be served is refused with a reason; nothing waits for ever.
//! 5. Only the leases of the current membership epoch count; what a former holder still sends is refused, and what it still waits
//!    for is forgotten.

mod served;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use testudo_kernels::Codec;

use crate::lease::{LEASED_AHEAD, Lease, may_contribute};
use crate::message::{Heartbeat, Load, Membership, Pull, PullRefusal, Push, PushRefusal, Waiting};
use crate::placement::{Slice, SliceId, SliceMap};
use crate::server::Updated;
use crate::time::Time;
use crate::tree::{Node, ReductionTree};
use served::Served;

/// Pulls of one slice that may wait for one worker: its own, and what a former incarnation may have left behind.
const WAITING_PULLS: usize = 2;

/// A push as it came in. `T` is the shell's handle for the reply, `V` the values.
#[derive(Debug)]
pub struct PushInput<T, V> {
    /// The index of the worker that the connection was authenticated as.
    pub worker: u32,
    /// Where the reply goes.
    pub reply: T,
    /// The message.
    pub push: Push,
    /// Its payload.
    pub values: V,
    /// The payload's length in bytes.
    pub bytes: u64,
    /// The payload's BLAKE3 hash, as the session checked it.
    pub digest: [u8; 32],
}

/// What happened.
#[derive(Debug)]
pub enum Input<T, V> {
    /// The scheduler named a membership epoch.
    Membership(Membership),
    /// The arithmetic has initialised every slice.
    Initialised,
    /// A worker pushed.
    Push(PushInput<T, V>),
    /// A worker pulls a version that was not in the store.
    Pull {
        /// The worker.
        worker: u32,
        /// Where the reply goes.
        reply: T,
        /// The message.
        pull: Pull,
    },
    /// The arithmetic has stored a contribution, and updated the slices that `updated` names.
    Stored {
        /// The slice.
        slice: SliceId,
        /// The contribution's step.
        step: u64,
        /// The contribution's node.
        node: Node,
        /// The slices that this contribution completed: its own, or, where a tensor is updated as a whole, all of it.
        updated: Option<Updated>,
    },
    /// The arithmetic has combined what was stored before, by the scheduler's weights.
    Combined {
        /// The slices that have gone to their next version.
        updated: Vec<Updated>,
    },
    /// The arithmetic dropped a contribution: its values are not finite, or no encoding.
    Unusable {
        /// The slice.
        slice: SliceId,
        /// The contribution's step.
        step: u64,
        /// The contribution's node.
        node: Node,
        /// What its sender is told.
        reason: PushRefusal,
    },
    /// A timeout that [`ServerCore::poll_timeout`] asked for may have passed.
    Tick,
}

/// What must be done.
#[derive(Debug, PartialEq)]
pub enum Effect<T, V> {
    /// Initialise every slice of this server, then say [`Input::Initialised`].
    Initialise,
    /// Add a contribution, then say [`Input::Stored`] or [`Input::Unusable`].
    Store {
        /// The slice.
        slice: SliceId,
        /// The step.
        step: u64,
        /// The node.
        node: Node,
        /// The values.
        values: V,
    },
    /// Acknowledge a push.
    Accept {
        /// Where to.
        reply: T,
        /// Whether the contribution had been there already.
        duplicate: bool,
    },
    /// Refuse a push.
    RefusePush {
        /// Where to.
        reply: T,
        /// Whose push it was.
        worker: u32,
        /// Why.
        reason: PushRefusal,
    },
    /// Answer a pull from the store, which has that version.
    Answer {
        /// Where to.
        reply: T,
        /// The slice.
        slice: SliceId,
        /// The version.
        version: u64,
    },
    /// Refuse a pull.
    RefusePull {
        /// Where to.
        reply: T,
        /// Why.
        reason: PullRefusal,
    },
    /// Tell the scheduler that an epoch is installed.
    Ready {
        /// The epoch.
        epoch: u64,
        /// The lowest version of its slices.
        version: u64,
    },
    /// Tell the scheduler that this server lives.
    Heartbeat(Heartbeat),
}

#[derive(Debug)]
struct Accepted<T> {
    node: Node,
    digest: [u8; 32],
    worker: u32,
    stored: bool,
    /// Replies that leave when the values are stored: the first push's, then its duplicates'.
    replies: Vec<T>,
}

#[derive(Debug)]
struct SliceState<T> {
    slice: Slice,
    version: u64,
    accepted: Vec<Accepted<T>>,
    /// What the step before was made of.
    last: Vec<(Node, [u8; 32])>,
    /// Who waits for a version that is to come, for which, and where the answer goes.
    waiting: Vec<(u32, u64, T)>,
}

/// The server's state machine.
#[derive(Debug)]
pub struct ServerCore<T, V> {
    tree: ReductionTree,
    slices: Vec<Option<SliceState<T>>>,
    map: SliceMap,
    epoch: u64,
    leases: Vec<Lease>,
    /// By worker, the incarnation that takes part.
    incarnations: BTreeMap<u32, u64>,
    codec: Codec,
    initialised: bool,
    asked_to_initialise: bool,
    ready_owed: Option<u64>,
    heartbeat: Duration,
    next_heartbeat: Time,
    served: Served,
    effects: VecDeque<Effect<T, V>>,
}

impl<T, V> ServerCore<T, V> {
    /// Server `index` of a job with that tree and placement, whose slices begin at version `first`.
    #[must_use]
    pub fn new(
        index: u32,
        tree: ReductionTree,
        map: SliceMap,
        first: u64,
        heartbeat: Duration,
    ) -> ServerCore<T, V> {
        let slices: Vec<Option<SliceState<T>>> = map
            .slices()
            .iter()
            .map(|slice| {
                (slice.server == index).then(|| SliceState {
                    slice: *slice,
                    version: first,
                    accepted: Vec::new(),
                    last: Vec::new(),
                    waiting: Vec::new(),
                })
            })
            .collect();
        ServerCore {
            tree,
            served: Served::new(slices.iter().flatten().count()),
            slices,
            map,
            epoch: 0,
            leases: Vec::new(),
            incarnations: BTreeMap::new(),
            codec: Codec::F32,
            initialised: false,
            asked_to_initialise: false,
            ready_owed: None,
            heartbeat,
            next_heartbeat: Time::default(),
            effects: VecDeque::new(),
        }
    }

    /// For a job whose pushes are encoded in `codec`.
    #[must_use]
    pub fn with_codec(mut self, codec: Codec) -> ServerCore<T, V> {
        self.codec = codec;
        self
    }

    /// What happened, at `now`.
    pub fn handle(&mut self, now: Time, input: Input<T, V>) {
        match input {
            Input::Membership(membership) => self.install(membership),
            Input::Initialised => {
                self.initialised = true;
                if let Some(epoch) = self.ready_owed.take() {
                    let version = self.lowest();
                    self.effects.push_back(Effect::Ready { epoch, version });
                }
            }
            Input::Push(push) => self.push(now, push),
            Input::Pull { worker, reply, pull } => self.pull(worker, reply, &pull),
            Input::Stored { slice, step, node, updated } => self.stored(now, slice, step, node, updated),
            Input::Combined { updated } => updated.into_iter().for_each(|updated| self.updated(now, updated)),
            Input::Unusable { slice, step, node, reason } => self.unusable(slice, step, node, &reason),
            Input::Tick => {}
        }
        if now >= self.next_heartbeat {
            self.next_heartbeat = now.after(self.heartbeat);
            let heartbeat = Heartbeat { served: self.served.tell(now), ..self.status() };
            self.effects.push_back(Effect::Heartbeat(heartbeat));
        }
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Effect<T, V>> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        Some(self.next_heartbeat)
    }

    fn install(&mut self, membership: Membership) {
        if membership.epoch <= self.epoch {
            return;
        }
        self.epoch = membership.epoch;
        self.leases = membership.leases;
        let former = std::mem::replace(
            &mut self.incarnations,
            membership.workers.iter().map(|w| (w.index, w.incarnation)).collect(),
        );
        let stays = |worker: &u32| former.get(worker) == self.incarnations.get(worker);
        for state in self.slices.iter_mut().flatten() {
            state.waiting.retain(|(worker, ..)| stays(worker));
        }
        if self.initialised {
            let version = self.lowest();
            self.effects.push_back(Effect::Ready { epoch: self.epoch, version });
        } else {
            self.ready_owed = Some(self.epoch);
            if !self.asked_to_initialise {
                self.asked_to_initialise = true;
                self.effects.push_back(Effect::Initialise);
            }
        }
    }

    fn lowest(&self) -> u64 {
        self.slices.iter().flatten().map(|state| state.version).min().unwrap_or(u64::MAX)
    }

    fn state(&mut self, id: SliceId) -> Option<&mut SliceState<T>> {
        let at = self.map.position(id)?;
        self.slices.get_mut(at)?.as_mut()
    }

    fn push(&mut self, now: Time, input: PushInput<T, V>) {
        let PushInput { worker, reply, push, values, bytes, digest } = input;
        match self.judge(worker, &push, bytes, digest) {
            Ok(Verdict::New) => {
                if let Some(state) = self.state(push.slice) {
                    state.accepted.push(Accepted {
                        node: push.node,
                        digest,
                        worker,
                        stored: false,
                        replies: vec![reply],
                    });
                }
                let Push { slice, step, node, .. } = push;
                self.served.came(now, step);
                self.effects.push_back(Effect::Store { slice, step, node, values });
            }
            Ok(Verdict::Duplicate) => self.effects.push_back(Effect::Accept { reply, duplicate: true }),
            Ok(Verdict::BeingStored(at)) => {
                if let Some(accepted) = self.state(push.slice).and_then(|s| s.accepted.get_mut(at)) {
                    accepted.replies.push(reply);
                }
            }
            Err(reason) => self.effects.push_back(Effect::RefusePush { reply, worker, reason }),
        }
    }

    fn judge(
        &mut self,
        worker: u32,
        push: &Push,
        bytes: u64,
        digest: [u8; 32],
    ) -> Result<Verdict, PushRefusal> {
        if !self.initialised {
            return Err(PushRefusal::NotInitialised);
        }
        let codec = self.codec;
        if push.codec != codec.id() {
            return Err(PushRefusal::UnknownCodec(push.codec));
        }
        let tree = self.tree;
        let held = push.epoch <= self.epoch
            && may_contribute(tree, &self.leases, (worker, push.epoch), (push.node, push.step));
        let state = self.state(push.slice).ok_or(PushRefusal::UnknownSlice)?;
        let expected = codec.encoded_len(state.slice.elements) as u64;
        if bytes != expected {
            return Err(PushRefusal::WrongLength { expected, found: bytes });
        }
        if !held || !tree.contains(push.node) {
            return Err(PushRefusal::NoLease);
        }
        if push.step > state.version {
            return Err(PushRefusal::StepAhead { version: state.version });
        }
        if push.step < state.version {
            // The step before is remembered, so that what a replaced worker had half sent can be sent again.
            return match state.last.iter().find(|(node, _)| node.covers(&push.node)) {
                Some((node, earlier)) if push.step + 1 == state.version => {
                    if *node == push.node && *earlier != digest {
                        Err(PushRefusal::Conflict)
                    } else {
                        Ok(Verdict::Duplicate)
                    }
                }
                _ => Err(PushRefusal::StepGone { version: state.version }),
            };
        }
        if let Some(at) = state.accepted.iter().position(|a| a.node.covers(&push.node)) {
            let earlier = &state.accepted[at];
            if earlier.node == push.node && earlier.digest != digest {
                return Err(PushRefusal::Conflict);
            }
            return Ok(if earlier.stored { Verdict::Duplicate } else { Verdict::BeingStored(at) });
        }
        if state.accepted.iter().any(|a| push.node.covers(&a.node)) {
            return Err(PushRefusal::Overlap);
        }
        Ok(Verdict::New)
    }

    fn pull(&mut self, worker: u32, reply: T, pull: &Pull) {
        let initialised = self.initialised;
        let refusal = match self.state(pull.slice) {
            _ if !initialised => PullRefusal::NotInitialised,
            None => PullRefusal::UnknownSlice,
            Some(state)
                if pull.version == state.version || pull.version.saturating_add(1) == state.version =>
            {
                let (slice, version) = (pull.slice, pull.version);
                return self.effects.push_back(Effect::Answer { reply, slice, version });
            }
            Some(state) if pull.version < state.version => PullRefusal::Gone { version: state.version },
            // Who has just joined waits for the first step that is its own.
            Some(state) if pull.version > state.version + LEASED_AHEAD => {
                PullRefusal::NotYetPossible { version: state.version }
            }
            Some(state) if state.waiting.iter().filter(|(w, ..)| *w == worker).count() >= WAITING_PULLS => {
                PullRefusal::TooManyWaiting
            }
            Some(state) => return state.waiting.push((worker, pull.version, reply)),
        };
        self.effects.push_back(Effect::RefusePull { reply, reason: refusal });
    }

    fn stored(&mut self, now: Time, id: SliceId, step: u64, node: Node, updated: Option<Updated>) {
        let Some(state) = self.state(id) else { return };
        if step != state.version {
            return;
        }
        if let Some(accepted) = state.accepted.iter_mut().find(|a| a.node == node) {
            accepted.stored = true;
            let replies = std::mem::take(&mut accepted.replies);
            for (nth, reply) in replies.into_iter().enumerate() {
                self.effects.push_back(Effect::Accept { reply, duplicate: nth > 0 });
            }
        }
        if let Some(updated) = updated {
            self.updated(now, updated);
        }
    }

    /// Slices have gone to their next version: what made it is remembered, and who waited for it is answered.
    fn updated(&mut self, now: Time, Updated { version, slices }: Updated) {
        for slice in slices {
            let Some(state) = self.state(slice) else { continue };
            state.version = version;
            state.last = state.accepted.drain(..).map(|a| (a.node, a.digest)).collect();
            let (due, wait) =
                std::mem::take(&mut state.waiting).into_iter().partition(|(_, v, _)| *v <= version);
            state.waiting = wait;
            for (_, version, reply) in due {
                self.effects.push_back(Effect::Answer { reply, slice, version });
            }
            self.served.updated(now, version);
        }
    }

    fn unusable(&mut self, id: SliceId, step: u64, node: Node, reason: &PushRefusal) {
        let Some(state) = self.state(id) else { return };
        if step != state.version {
            return;
        }
        let Some(at) = state.accepted.iter().position(|a| a.node == node) else { return };
        let dropped = state.accepted.swap_remove(at);
        for reply in dropped.replies {
            let reason = reason.clone();
            self.effects.push_back(Effect::RefusePush { reply, worker: dropped.worker, reason });
        }
    }

    /// The slice that is furthest behind, and the first shards that it lacks: of two at one version, one that lacks some, since a
    /// tensor that is updated as a whole waits for its last slice.
    fn status(&self) -> Heartbeat {
        let missing = |state: &SliceState<T>| {
            let lacks = |node: &Node| !state.accepted.iter().any(|a| a.node.covers(node) && a.stored);
            self.leases.iter().filter(|l| l.holds_in(state.version)).map(|l| l.node).find(lacks)
        };
        let all = || self.slices.iter().flatten();
        let Some(version) = all().map(|s| s.version).min() else {
            return Heartbeat { step: 0, waiting: None, load: Load::default(), served: None };
        };
        let mut behind = all().filter(|s| s.version == version);
        let waiting = behind.find_map(|s| {
            missing(s).map(|node| Waiting { slice: s.slice.id, step: version, missing: Some(node) })
        });
        Heartbeat { step: version, waiting, load: Load::default(), served: None }
    }
}

enum Verdict {
    New,
    Duplicate,
    BeingStored(usize),
}

#[cfg(test)]
mod tests;
