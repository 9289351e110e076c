//! What a node may occupy: `limits.memory_mib`, and how it is shared out.
//!
//! 1. What a node of any role needs for itself, and all that its peers may make it hold, come to the limit together at most.
//! 2. A limit that leaves a peer less than one slice on its way is refused, with the least that does.
//!
//! Estimates of what a node needs for itself are upper bounds, from the job alone; a worker adds its data.

use std::collections::BTreeSet;

use testudo_actors::scheduler::actor::order_bytes;
use testudo_actors::scheduler::{self, LEASED_AHEAD};
use testudo_actors::server;
use testudo_actors::witness::MOST;
use testudo_kernels::robust::weigh::Weighing;
use testudo_transport::{Role, TransportConfig};

use super::{ComputeDevice, Config, Data};

/// The program with its threads and buffers, handshakes under way (256 of some 100 KiB), tables and lists.
const PROGRAM: u64 = 64 << 20;
/// One part in so many of what peers may occupy is left to the allocator: it rounds sizes up, and keeps what was freed a moment.
const SLACK: u64 = 8;
/// Peers of a scheduler beside its members: operators.
const OPERATORS: u64 = 8;
/// Peers of a server beside workers and the scheduler: nodes that have no business with it, until they are turned away.
const STRANGERS: u64 = 4;
/// Connections that each peer may have without taking another's memory: one that lives, and one that has not timed out yet.
const CONNECTIONS_EACH: u64 = 2;
/// Bytes that travel with a slice at most: prelude, header and MAC.
const FRAME_OVERHEAD: u64 = 4 << 10;
/// Slices that a worker has under way to servers at most.
const SLICES_UNDER_WAY: u64 = 32;
/// Bytes that a server keeps of each slice beside its values: what was accepted and who waits, its hash while that is put
/// together, places in lists. Measured with slices of 64 bytes: 2.3 KiB.
const SLICE_AT_SERVER: u64 = 4 << 10;
/// Steps of which workers may tell at a time: those that may be begun, and the one that is not complete.
const STEPS_UNDER_WAY: u64 = LEASED_AHEAD + 1;
/// What it keeps of each logical shard of a slice, where each is pushed by itself.
const SHARD_OF_SLICE: u64 = 128;
/// What a scheduler keeps of each: measured likewise, 0.9 KiB.
const SLICE_AT_SCHEDULER: u64 = 2 << 10;
/// Copies of a step's inner products in a node at most: the sum, one that is joined to it, its bytes, and those on their way.
const PRODUCTS_AT_ONCE: u64 = 4;
/// What a GPU's driver and compiler keep on the host in a process that computes on one, beside pinned memory: an estimate.
const DRIVER: u64 = 512 << 20;
/// Pinned memory through which tensors go to a GPU and come from it: two buffers of 4 MiB.
const STAGING: u64 = 8 << 20;
/// Gradients of one size that are on their way from a GPU at a time, each in pinned memory of its own: `UNDER_WAY` and one more.
const LEAVING: u64 = 5;
/// How much larger than its content a buffer that grew with a file may be.
const GROWN: u64 = 2;

/// The least credit in bytes with which slices can travel: the transport lets one message take three quarters of it, so
/// that a large one does not wait for every byte to be given back.
pub(super) fn least_credit(slice_bytes: u32) -> u64 {
    (u64::from(slice_bytes) + FRAME_OVERHEAD).div_ceil(3) * 4
}

/// What a node's peers are granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// A peer's credit for data.
    pub(super) data_credit: u64,
    /// Bytes that may wait to be sent to one peer.
    pub(super) answers: u64,
    /// What all peers together may occupy.
    pub(super) memory: u64,
}

impl Config {
    /// The sum of something over all parameters, by their bytes.
    fn over_parameters(&self, of: impl Fn(u64) -> u64) -> u64 {
        // A model that is none is refused elsewhere.
        let parameters = crate::job::model(&self.model).parameters().unwrap_or_default();
        let bytes = parameters.iter().map(|p| (p.shape.elements() as u64).saturating_mul(4));
        bytes.fold(0, |sum: u64, bytes| sum.saturating_add(of(bytes)))
    }

    fn parameter_bytes(&self) -> u64 {
        self.over_parameters(|bytes| bytes)
    }

    fn slices(&self) -> u64 {
        let slice_bytes = u64::from(self.transport.slice_bytes).max(1);
        self.over_parameters(|bytes| bytes.div_ceil(slice_bytes))
    }

    /// Bytes that are placed together at most: a slice's, or a parameter's where those are updated as a whole.
    fn placed_together(&self) -> u64 {
        if self.optimizer.spec().parse().is_ok_and(|program| program.needs_whole_tensor()) {
            let parameters = crate::job::model(&self.model).parameters().unwrap_or_default();
            let bytes = parameters.iter().map(|p| (p.shape.elements() as u64).saturating_mul(4));
            return bytes.max().unwrap_or(0);
        }
        u64::from(self.transport.slice_bytes)
    }

    /// Bytes of parameters that a server holds at most: an eighth above its part, and what is placed together.
    fn server_bytes(&self) -> u64 {
        let all = self.parameter_bytes();
        let part = all / u64::from(self.cluster.servers).max(1);
        part.saturating_add(part / 8).saturating_add(self.placed_together()).min(all)
    }

    /// Bytes of votes that a server keeps at most, under a robust rule: all workers' for what it holds. Under the mean,
    /// contributions are summed as they come: 0.
    pub(super) fn votes_bytes(&self) -> u64 {
        match crate::job::aggregation(&self.training).hostile() {
            Some(_) => self.server_bytes().saturating_mul(u64::from(self.cluster.workers)),
            None => 0,
        }
    }

    /// Bytes of the inner products of a step's vectors, where whole gradients are weighed, as often as they are in memory at once.
    fn products_bytes(&self) -> u64 {
        let rule = crate::job::aggregation(&self.training);
        // What is too much for the rule is refused elsewhere.
        let votes = self.cluster.workers.min(rule.most_votes()) as usize;
        let weighing = Weighing::new(rule, self.training.clip_norm, votes);
        weighing.map_or(0, |weighing| weighing.products().size() as u64 * PRODUCTS_AT_ONCE)
    }

    /// Bytes that a node of that role needs for itself, `data` bytes of examples among them if it is a worker.
    fn own_bytes(&self, role: Role, data: u64) -> u64 {
        let shards = u64::from(self.training.step_shards());
        let codecs = crate::job::codecs(&self.transport);
        let needs = match role {
            Role::Server => {
                let program = self.optimizer.spec().parse();
                let state = program.map_or(0, |program| program.state_tensors().len()) as u64;
                let rule = crate::job::aggregation(&self.training);
                let state = state + u64::from(rule.keeps_aggregate());
                let (kept, votes) = (&self.checkpoint, self.votes_bytes());
                let snapshot = if kept.at_end || kept.every_steps > 0 { 1 + state } else { 0 };
                // Of sums that wait for their sibling there is one for every second shard at most.
                let sums = if votes > 0 { 0 } else { shards.div_ceil(2) };
                let each = if codecs.push.is_lossless() { 0 } else { shards.saturating_mul(SHARD_OF_SLICE) };
                let tables = self.slices().saturating_mul(SLICE_AT_SERVER + each);
                // Two versions, the next, and what goes with them; each once more as it is given out, if that is another way.
                let encoded = if codecs.pull.is_lossless() { 0 } else { 3 };
                let values = self.server_bytes().saturating_mul(3 + state + sums + snapshot + encoded);
                values
                    .saturating_add(votes)
                    .saturating_add(tables)
                    .saturating_add(self.products_bytes())
                    .saturating_add(self.histogram_bytes(role))
            }
            Role::Worker => {
                // Two versions, a shard's gradient, its file, and sums along one path of the tree.
                let copies = 4 + u64::from(shards.max(1).ilog2()) + 1;
                // The exact parameters that are evaluated; and, if all others die, the residuals of every shard, once more for the
                // checkpoint that is being written.
                let copies = copies + u64::from(!codecs.pull.is_lossless());
                let kept = self.checkpoint.at_end || self.checkpoint.every_steps > 0;
                let residuals = if kept { 2 * shards } else { shards };
                let copies = copies + if codecs.push.feeds_back() { residuals } else { 0 };
                let shard = u64::from(self.training.step_examples()) / shards.max(1);
                let activations = match self.worker_device() {
                    // They are on the device; what goes there is here.
                    ComputeDevice::Cuda(_) => self.given_bytes(shard),
                    // With `auto`, either may be.
                    ComputeDevice::Cpu | ComputeDevice::Auto => self.activation_bytes(shard),
                };
                let sent = SLICES_UNDER_WAY * u64::from(self.transport.slice_bytes);
                let all = self.parameter_bytes();
                all.saturating_mul(copies)
                    .saturating_add(activations)
                    .saturating_add(sent.min(all.saturating_mul(2)))
                    .saturating_add(data.saturating_mul(GROWN))
                    .saturating_add(self.order_bytes(data))
            }
            _ => {
                let tables = self.slices().saturating_mul(SLICE_AT_SCHEDULER);
                tables
                    .saturating_add(self.products_bytes())
                    .saturating_add(self.told_bytes())
                    .saturating_add(self.histogram_bytes(role))
            }
        };
        needs.saturating_add(self.device_bytes(role)).saturating_add(PROGRAM)
    }

    /// Bytes in which a node of that role keeps how gradients and parameters are spread. A scheduler has room for what servers tell
    /// whatever its own file says: theirs may say something else.
    fn histogram_bytes(&self, role: Role) -> u64 {
        // A model that is none is refused elsewhere.
        let parameters = crate::job::model(&self.model).parameters().unwrap_or_default();
        let elements = parameters.iter().map(|p| p.shape.elements() as u64);
        match role {
            Role::Server if self.telemetry.counted_every() > 0 => server::histogram_bytes(elements),
            Role::Server | Role::Worker | Role::Operator => 0,
            _ => {
                let slice = (u64::from(self.transport.slice_bytes) / 4).max(1);
                let on = |elements: u64| elements.div_ceil(slice).min(u64::from(self.cluster.servers));
                scheduler::histogram_bytes(elements.map(|elements| (elements, on(elements))))
            }
        }
    }

    /// Bytes that a node of that role needs on the host because it computes on a GPU, or may.
    fn device_bytes(&self, role: Role) -> u64 {
        let device = match role {
            Role::Server => self.servers.device,
            Role::Worker => self.worker_device(),
            _ => ComputeDevice::Cpu,
        };
        match (role, device) {
            (_, ComputeDevice::Cpu) => 0,
            (Role::Worker, _) => {
                // Room for a gradient is used again for those that are no longer.
                let parameters = crate::job::model(&self.model).parameters().unwrap_or_default();
                let sizes: BTreeSet<u64> =
                    parameters.iter().map(|p| (p.shape.elements() as u64).saturating_mul(4)).collect();
                let leaving = sizes.into_iter().fold(0, |sum: u64, bytes| sum.saturating_add(bytes));
                leaving.saturating_mul(LEAVING).saturating_add(DRIVER + STAGING)
            }
            _ => DRIVER + STAGING,
        }
    }

    /// Bytes of an epoch's order of a text's windows, of which there is one for every stride. That of images is little.
    fn order_bytes(&self, data: u64) -> u64 {
        match self.data {
            Data::Text { stride, .. } => {
                let stride = stride.unwrap_or_else(|| crate::job::model(&self.model).input_elements());
                (data / stride.max(1) as u64).saturating_mul(4)
            }
            Data::Mnist { .. } => 0,
        }
    }

    /// Bytes of what workers tell of their contributions for witnessing, where each logical shard is told of by itself: for the steps
    /// that may be under way, as many values as are chosen.
    fn told_bytes(&self) -> u64 {
        if crate::job::codecs(&self.transport).push.is_lossless() {
            return 0;
        }
        let values = (self.parameter_bytes() as f64 / 4.0 * self.audit.witness_rate).ceil() as u64;
        let values = values.min(MOST as u64).saturating_mul(4);
        values.saturating_mul(u64::from(self.training.step_shards())).saturating_mul(STEPS_UNDER_WAY)
    }

    /// Bytes of what a worker's model computes for a shard of so many examples, or for what it evaluates at a time, the
    /// examples themselves and their labels among them.
    fn activation_bytes(&self, shard: u64) -> u64 {
        let model = crate::job::model(&self.model);
        let examples = usize::try_from(self.examples_at_once(shard)).unwrap_or(usize::MAX);
        // A model that is none is refused elsewhere.
        let computed = model.buffer_elements(self.training.precision, examples).unwrap_or(0);
        (computed as u64).saturating_mul(4).saturating_add(self.given_bytes(shard))
    }

    /// Of those, the examples and their labels.
    fn given_bytes(&self, shard: u64) -> u64 {
        let model = crate::job::model(&self.model);
        let given = model.input_elements().saturating_add(model.targets()) as u64;
        given.saturating_mul(self.examples_at_once(shard)).saturating_mul(4)
    }

    fn examples_at_once(&self, shard: u64) -> u64 {
        shard.saturating_add(1).max(crate::job::model(&self.model).evaluation_batch() as u64)
    }

    /// Connections that a node of that role has memory for.
    fn connections(&self, role: Role) -> u64 {
        let (workers, servers) = (u64::from(self.cluster.most_workers()), u64::from(self.cluster.servers));
        let peers = match role {
            Role::Server => workers + 1 + STRANGERS,
            Role::Worker => servers + 1,
            _ => workers + servers + OPERATORS,
        };
        peers * CONNECTIONS_EACH
    }

    /// Bytes that may wait to be sent to one peer, beside what its windows hold: a server's are its parameters, a scheduler's its
    /// orders. A worker's peers are trusted, and what it sends them counts as its own.
    fn answer_bytes(&self, role: Role) -> u64 {
        match role {
            Role::Server => self.server_bytes(),
            Role::Worker => 0,
            _ => {
                let members = u64::from(self.cluster.most_workers()) + u64::from(self.cluster.servers);
                order_bytes(members, u64::from(self.training.step_shards()))
            }
        }
    }

    fn connection_bytes(&self, role: Role, data_credit: u64) -> u64 {
        let control = TransportConfig::DEFAULT_CONTROL_CREDIT.bytes;
        // What comes and what goes each take the credit of both classes.
        let windows = control.saturating_add(data_credit).saturating_mul(2);
        windows.saturating_add(self.answer_bytes(role)).saturating_add(TransportConfig::CONNECTION)
    }

    /// The memory that a node of that role shares out among its peers, each peer's credit cut to its share of it; or what their
    /// credit comes to.
    pub(super) fn shares(&self, role: Role, data: u64) -> Shares {
        let (asked, answers) = (self.transport.max_in_flight_bytes, self.answer_bytes(role));
        let limit = self.limits.memory_mib.filter(|_| role != Role::Operator);
        let Some(mib) = limit else {
            let memory = self.connections(Role::Scheduler).saturating_mul(self.connection_bytes(role, asked));
            return Shares { data_credit: asked, answers, memory };
        };
        let room = (mib << 20).saturating_sub(self.own_bytes(role, data));
        let memory = room - room / SLACK;
        let each = (memory / self.connections(role)).saturating_sub(self.connection_bytes(role, 0));
        Shares { data_credit: asked.min(each / 2), answers, memory }
    }

    /// The least `limits.memory_mib` with which a node of that role can work, and how much of it is for itself.
    pub(crate) fn least_mib(&self, role: Role, data: u64) -> (u64, u64) {
        let credit = least_credit(self.transport.slice_bytes).min(self.transport.max_in_flight_bytes);
        let peers = self.connections(role).saturating_mul(self.connection_bytes(role, credit));
        let own = self.own_bytes(role, data);
        // A connection's share is rounded down, and so is the allocator's part.
        let room = peers.saturating_add(peers.div_ceil(SLACK - 1)).saturating_add(SLACK);
        (own.saturating_add(room).div_ceil(1 << 20), own.div_ceil(1 << 20))
    }

    /// Why a node of that role, with `data` bytes of examples, cannot keep to the limit; `None` if it can.
    pub(crate) fn too_little_memory(&self, role: Role, data: u64) -> Option<String> {
        let limit = self.limits.memory_mib?;
        let (least, own) = self.least_mib(role, data);
        let votes = match self.votes_bytes() {
            kept if kept > 0 && role == Role::Server => {
                format!(" ({} MiB being kept for votes)", kept.div_ceil(1 << 20))
            }
            _ => String::new(),
        };
        (limit < least).then(|| {
            format!(
                "`limits.memory_mib` is {limit}, and a {role} of this job takes {least}: {own} for itself{votes}, and for each of \
                 {} connections credit for a slice (`transport.slice_bytes` is {}) and for control messages; use at least {least}, \
                 or lower `transport.slice_bytes`",
                self.connections(role),
                self.transport.slice_bytes
            )
        })
    }
}

#[cfg(test)]
mod tests;
