//! What a process tells an OpenTelemetry collector in numbers: names, units and attributes of every metric.
//!
//! The numbers are those that transport, actors and the server keep anyway; `testudo_observability::metrics` asks for them before
//! each export. `docs/metrics.md` lists them, and a test holds that list to these names.
//!
//! Invariants:
//! 1. What tells series apart are the enums below and the transport's causes and roles: nothing that a peer chooses.
//! 2. What is asked for keeps no endpoint, no connection and no thread alive, and can be read when they are gone: so the last
//!    export, at the end of the process, has the last numbers.

mod progress;

use std::collections::BTreeMap;
use std::sync::Arc;

use testudo_actors::JobSpec;
use testudo_actors::active::{Method, Side, active};
use testudo_observability::{Attribute, Instrument, Meter};
use testudo_transport::{Account, Cause, EndpointStats, Refusals, Role};

pub(crate) use progress::{Parts, Progress, Timed};

use crate::audit::AuditHandle;
use crate::job::codec_ratios;
use crate::serve::counts::{Code, Counts};

/// A closed set of words.
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis $of:ident: $($name:ident = $word:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $of { $($name,)* }

        impl $of {
            const ALL: &[$of] = &[$($of::$name,)*];

            fn word(self) -> &'static str {
                match self { $($of::$name => $word,)* }
            }
        }
    };
}
use words;

words! {
    /// Which way messages go (OpenTelemetry's `network.io.direction`).
    Direction: Transmit = "transmit", Receive = "receive",
}

words! {
    /// What became of a handshake, or of who wanted to begin one.
    Handshake:
    Accepted = "accepted",
    Dialled = "dialled",
    DialFailed = "dial_failed",
    Refused = "refused",
    TimedOut = "timed_out",
    Retried = "retried",
    Ignored = "ignored",
    OverRate = "over_rate",
    PeerOverRate = "peer_over_rate",
    TurnedAway = "turned_away",
    OutOfMemory = "out_of_memory",
}

words! {
    /// Why a datagram was dropped unread.
    Dropped: NotAllowed = "not_allowed", Malformed = "malformed", Stray = "stray", Newcomer = "newcomer",
}

words! {
    /// What of a node's memory for peers is meant.
    Memory: Held = "held", Promised = "promised",
}

const CAUSE: Attribute<Cause> = Attribute::new("cause", Cause::ALL, Cause::as_str);
const ROLE: Attribute<Option<Role>> = Attribute::new("role", &PROVED, proved);
const DIRECTION: Attribute<Direction> =
    Attribute::new("network.io.direction", Direction::ALL, Direction::word);
const HANDSHAKE: Attribute<Handshake> = Attribute::new("outcome", Handshake::ALL, Handshake::word);
const DROPPED: Attribute<Dropped> = Attribute::new("reason", Dropped::ALL, Dropped::word);
const MEMORY: Attribute<Memory> = Attribute::new("state", Memory::ALL, Memory::word);
const SIDE: Attribute<Side> = Attribute::new("role", &[Side::Worker, Side::Server], |side| match side {
    Side::Worker => "worker",
    Side::Server => "server",
});
const METHOD: Attribute<Method> =
    Attribute::new("rpc.method", &[Method::Push, Method::Pull], |method| match method {
        Method::Push => "Push",
        Method::Pull => "Pull",
    });
const CODE: Attribute<Code> = Attribute::new("cause", Code::ALL, Code::as_str);

/// The roles that a peer may have proved, and none.
const PROVED: [Option<Role>; Role::ALL.len() + 1] = {
    let mut all = [None; Role::ALL.len() + 1];
    let mut at = 0;
    while at < Role::ALL.len() {
        all[at + 1] = Some(Role::ALL[at]);
        at += 1;
    }
    all
};

fn proved(role: Option<Role>) -> &'static str {
    role.map_or("none", Role::as_str)
}

const fn metric(name: &'static str, unit: &'static str, what: &'static str) -> Instrument {
    Instrument { name, unit, what }
}

const REFUSALS: Instrument = metric(
    "testudo.refusals",
    "{refusal}",
    "Refusals of peers and of strangers, by cause and by the role that they had proved.",
);
const CONNECTIONS: Instrument = metric("testudo.connections", "{connection}", "Connections that are open.");
const HANDSHAKES: Instrument =
    metric("testudo.handshakes", "{handshake}", "Handshakes, and wishes for one, by what became of them.");
const DATAGRAMS: Instrument =
    metric("testudo.datagrams.dropped", "{datagram}", "Datagrams that were dropped by their first bytes.");
const MESSAGES: Instrument =
    metric("testudo.network.messages", "{message}", "Messages sent, and received and accepted.");
const IO: Instrument =
    metric("testudo.network.io", "By", "Bytes of messages sent, and received and accepted: whole frames.");
const HELD: Instrument = metric(
    "testudo.peers.memory.usage",
    "By",
    "Bytes of messages that are held for peers, and promised to them.",
);
const LIMIT: Instrument = metric(
    "testudo.peers.memory.limit",
    "By",
    "Bytes that may be promised to peers: what limits.memory_mib leaves them.",
);
const ACTIVE: Instrument = metric(
    "testudo.requests.active",
    "{request}",
    "Requests of workers to servers that have no answer yet, on either side.",
);
const RESIDENT: Instrument =
    metric("process.memory.usage", "By", "The physical memory that the process uses.");
const STEPS: Instrument = metric("testudo.steps", "{step}", "Steps that this run has completed.");
const SAMPLES: Instrument =
    metric("testudo.samples", "{sample}", "Training examples of the steps that this run has completed.");
const LOSS: Instrument = metric("testudo.loss", "1", "Mean loss over the batch of the last complete step.");
const TEST_LOSS: Instrument =
    metric("testudo.test.loss", "1", "Mean loss over the test set, by the last evaluation.");
const TEST_ACCURACY: Instrument = metric(
    "testudo.test.accuracy",
    "1",
    "Share of the test set that was classified right, by the last evaluation.",
);
const DURATION: Instrument =
    metric("testudo.step.duration", "s", "Time between the ends of the last two complete steps.");
const STAGES: Instrument = metric(
    "testudo.step.stage.duration",
    "s",
    "Time of the last complete step that a worker spent so: mean over the workers.",
);
const LEARNING_RATE: Instrument =
    metric("testudo.learning_rate", "1", "The learning rate of the last complete step's update.");
const PUSH_ERROR: Instrument = metric(
    "testudo.push.error",
    "1",
    "What transport.push_codec lost of the last complete step's gradients, relative to them.",
);
const PUSH_RATIO: Instrument =
    metric("testudo.push.ratio", "1", "Bytes of all slices in transport.push_codec over their bytes as f32.");
const PULL_RATIO: Instrument =
    metric("testudo.pull.ratio", "1", "Bytes of all slices in transport.pull_codec over their bytes as f32.");
const PULL_ERROR: Instrument = metric(
    "testudo.pull.error",
    "1",
    "What transport.pull_codec loses of the newest versions of this server's slices, relative to them.",
);
const CHECKPOINTS: Instrument =
    metric("testudo.checkpoints", "{checkpoint}", "Checkpoints that this run has made whole.");
const AUDITED: Instrument =
    metric("testudo.audit.records", "{record}", "Records of the audit log that are signed and on the disk.");
const PARTS: Instrument = metric(
    "testudo.checkpoint.parts",
    "{part}",
    "Parts of checkpoints that this server was to write, by outcome.",
);
const PART_DURATION: Instrument =
    metric("testudo.checkpoint.part.duration", "s", "Time that the last part of a checkpoint took to write.");
const UNSERVED: Instrument =
    metric("testudo.serve.refusals", "{refusal}", "Requests that were refused, by cause.");
const CLOSED: Instrument = metric(
    "testudo.serve.connections.closed",
    "{connection}",
    "Connections of nobody that is known that were closed, because their address had enough of them.",
);
const ROWS: Instrument = metric("testudo.serve.rows", "{row}", "Rows that were predicted and answered.");

/// What every process tells.
pub(crate) fn process(meter: &Meter) {
    meter.level(&RESIDENT, resident);
}

/// What the nodes of a process keep count of: one node's account, or a peer's two.
#[derive(Clone)]
struct Accounts(Arc<[Arc<Account>]>);

impl Accounts {
    fn sum(&self, of: impl Fn(&EndpointStats) -> u64) -> u64 {
        self.0.iter().map(|account| of(&account.stats())).sum()
    }

    fn refusals(&self) -> BTreeMap<(Cause, Option<Role>), u64> {
        let mut all = BTreeMap::new();
        for (by, count) in self.0.iter().flat_map(|account| account.refusals().totals_by_role()) {
            *all.entry(by).or_default() += count;
        }
        all
    }
}

/// What every process tells of its node, or of its nodes together.
pub(crate) fn node(meter: &Meter, accounts: Vec<Arc<Account>>) {
    process(meter);
    let accounts = Accounts(accounts.into());
    let held = || accounts.clone();
    meter.level_by(&ACTIVE, (SIDE, METHOD), || {
        let both = [Side::Worker, Side::Server].map(|side| [(side, Method::Push), (side, Method::Pull)]);
        both.into_iter().flatten().map(|of| (of, active(of.0, of.1)))
    });
    let of = held();
    meter.counter_by(&REFUSALS, (CAUSE, ROLE), move || of.refusals());
    let of = held();
    meter.level(&CONNECTIONS, move || Some(of.sum(|stats| stats.open)));
    let of = held();
    meter.counter_by(&HANDSHAKES, HANDSHAKE, move || {
        [
            (Handshake::Accepted, of.sum(|stats| stats.accepted)),
            (Handshake::Dialled, of.sum(|stats| stats.dialled)),
            (Handshake::DialFailed, of.sum(|stats| stats.dials_failed)),
            (Handshake::Refused, of.sum(|stats| stats.refused)),
            (Handshake::TimedOut, of.sum(|stats| stats.timed_out)),
            (Handshake::Retried, of.sum(|stats| stats.retried)),
            (Handshake::Ignored, of.sum(|stats| stats.ignored)),
            (Handshake::OverRate, of.sum(|stats| stats.over_rate)),
            (Handshake::PeerOverRate, of.sum(|stats| stats.peers_over_rate)),
            (Handshake::TurnedAway, of.sum(|stats| stats.turned_away)),
            (Handshake::OutOfMemory, of.sum(|stats| stats.out_of_memory)),
        ]
    });
    let of = held();
    meter.counter_by(&DATAGRAMS, DROPPED, move || {
        [
            (Dropped::NotAllowed, of.sum(|stats| stats.sieve.not_allowed)),
            (Dropped::Malformed, of.sum(|stats| stats.sieve.malformed)),
            (Dropped::Stray, of.sum(|stats| stats.sieve.strays)),
            (Dropped::Newcomer, of.sum(|stats| stats.sieve.newcomers)),
        ]
    });
    let of = held();
    meter.counter_by(&MESSAGES, DIRECTION, move || {
        [
            (Direction::Transmit, of.sum(|stats| stats.traffic.messages_sent)),
            (Direction::Receive, of.sum(|stats| stats.traffic.messages_received)),
        ]
    });
    let of = held();
    meter.counter_by(&IO, DIRECTION, move || {
        [
            (Direction::Transmit, of.sum(|stats| stats.traffic.bytes_sent)),
            (Direction::Receive, of.sum(|stats| stats.traffic.bytes_received)),
        ]
    });
    let of = held();
    meter.level_by(&HELD, MEMORY, move || {
        [
            (Memory::Held, of.sum(|stats| stats.held_bytes)),
            (Memory::Promised, of.sum(|stats| stats.promised_bytes)),
        ]
    });
    let of = held();
    meter.level(&LIMIT, move || Some(of.sum(|stats| stats.memory)));
}

/// What `testudo pki serve` tells of nodes that join.
pub(crate) fn enrolment(meter: &Meter, refusals: &Refusals) {
    process(meter);
    let of = refusals.clone();
    meter.counter_by(&REFUSALS, (CAUSE, ROLE), move || of.totals_by_role());
}

/// What a scheduler tells of the run of `job`.
pub(crate) fn scheduler(meter: &Meter, job: &JobSpec, progress: &Arc<Progress>, audit: Option<&AuditHandle>) {
    let (push, pull) = codec_ratios(job);
    meter.gauge(&PUSH_RATIO, move || Some(push));
    meter.gauge(&PULL_RATIO, move || Some(pull));
    let of = Arc::clone(progress);
    meter.counter(&STEPS, move || of.steps());
    let of = Arc::clone(progress);
    meter.counter(&SAMPLES, move || of.samples());
    let of = Arc::clone(progress);
    meter.gauge(&LOSS, move || of.loss());
    let of = Arc::clone(progress);
    meter.gauge(&TEST_LOSS, move || of.test_loss());
    let of = Arc::clone(progress);
    meter.gauge(&TEST_ACCURACY, move || of.test_accuracy());
    let of = Arc::clone(progress);
    meter.gauge(&DURATION, move || of.step_seconds());
    let of = Arc::clone(progress);
    meter.gauge_by(&STAGES, progress::STAGE, move || of.stages());
    let of = Arc::clone(progress);
    meter.gauge(&LEARNING_RATE, move || of.learning_rate());
    let of = Arc::clone(progress);
    meter.gauge(&PUSH_ERROR, move || of.push_error());
    let of = Arc::clone(progress);
    meter.counter(&CHECKPOINTS, move || of.checkpoints());
    if let Some(audit) = audit {
        let head = audit.heads();
        meter.counter(&AUDITED, move || head().map_or(0, |head| head.record + 1));
    }
}

/// What a server tells of the checkpoints that it writes, and of the versions that it gives out.
pub(crate) fn server(meter: &Meter, parts: &Arc<Parts>) {
    let of = Arc::clone(parts);
    meter.counter_by(&PARTS, progress::OUTCOME, move || of.counts());
    let of = Arc::clone(parts);
    meter.gauge(&PART_DURATION, move || of.seconds());
    let of = Arc::clone(parts);
    meter.gauge(&PULL_ERROR, move || of.pull_error());
}

/// What `testudo serve` tells of its clients.
pub(crate) fn serve(meter: &Meter, counts: &Arc<Counts>) {
    process(meter);
    let of = Arc::clone(counts);
    meter.counter_by(&UNSERVED, CODE, move || of.refused().collect::<Vec<_>>());
    let of = Arc::clone(counts);
    meter.counter(&CLOSED, move || of.closed());
    let of = Arc::clone(counts);
    meter.counter(&ROWS, move || of.rows());
}

/// Bytes of memory that this process has in use, from the second number of `statm` (proc(5)), which is in pages.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests;
