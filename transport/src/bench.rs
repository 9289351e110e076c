//! Measures one-way throughput between two processes: gigabytes a second, and CPU nanoseconds a byte on each
//! side, which is what a machine that also has to train cares about.
//!
//! The receiving process calls [`receive`] on an endpoint that listens, the sending process [`send`]. Every
//! byte is real work: TLS, MAC, policy, credit; the receiver drops each payload as it comes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::connection::{Connection, PathStats};
use crate::endpoint::{ConnectError, Endpoint};
use crate::error::Error;
use crate::identity::{Role, RoleSet, SpiffeId};
use crate::message::Outgoing;
use crate::policy::{Class, Policy, PolicyError, Rule};

/// The kind of the messages that carry bytes.
const BLOCK: u8 = 1;
/// The kind of the message that ends a round, which the receiver answers when it has everything.
const MARK: u8 = 2;
/// Largest block, in bytes: a block must fit three quarters of the default data credit.
const MAX_BLOCK: u64 = 4 << 20;

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Bytes of payload of each message.
    pub message_bytes: usize,
    /// Messages on each stream and in each round.
    pub messages: usize,
    /// Streams side by side.
    pub streams: usize,
    /// Rounds; the first warms up and is not counted.
    pub rounds: usize,
}

impl Default for Plan {
    /// One gigabyte a round in slices of 1 MiB on one stream, four rounds.
    fn default() -> Self {
        Plan { message_bytes: 1 << 20, messages: 1024, streams: 1, rounds: 4 }
    }
}

/// What one side measured, over the counted rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes of payload.
    pub bytes: u64,
    /// Seconds of wall time.
    pub seconds: f64,
    /// Bytes a second of the fastest round, in units of 10^9.
    pub best_gigabytes_per_second: f64,
    /// Bytes a second over all counted rounds, in units of 10^9.
    pub gigabytes_per_second: f64,
    /// CPU time of the whole process a byte, in nanoseconds.
    pub cpu_nanoseconds_per_byte: f64,
    /// The path's largest UDP payload at the end, in bytes.
    pub mtu: u16,
    /// Packets of this side that were lost, of those sent.
    pub packets_lost: u64,
    /// Packets of this side.
    pub packets_sent: u64,
}

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The sender did not reach the receiver.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] Error),
    /// The endpoint closed before anybody came, or the other side ended early.
    #[error("the other side ended before the measurement did")]
    Ended,
}

/// The policy under which both sides measure: workers send blocks to servers.
///
/// # Errors
/// None, with the table as it is.
pub fn policy() -> Result<Arc<Policy>, PolicyError> {
    let (worker, server) = (RoleSet::of(&[Role::Worker]), RoleSet::of(&[Role::Server]));
    let rule = |kind, name, from, to, class, max_payload| Rule {
        kind,
        name,
        from,
        to,
        class,
        max_header: 1024,
        max_payload,
        rate: None,
    };
    let both = RoleSet::of(&[Role::Worker, Role::Server]);
    let rules = vec![
        rule(BLOCK, "block", worker, server, Class::Data, MAX_BLOCK),
        rule(MARK, "mark", both, both, Class::Control, 0),
    ];
    Ok(Arc::new(Policy::new(rules)?))
}

/// Accepts one connection and receives what [`send`] sends under the same plan.
///
/// # Errors
/// [`BenchError`].
pub async fn receive(endpoint: &Endpoint, plan: &Plan) -> Result<Figures, BenchError> {
    let connection = endpoint.accept().await.ok_or(BenchError::Ended)?;
    let (mut marks_out, mut marks_in) = connection.accept().await?;
    let mut meter = Meter::new(plan);
    let mut streams = Vec::new();
    for round in 0..plan.rounds {
        marks_in.recv().await?.ok_or(BenchError::Ended)?;
        meter.start(round);
        let mut tasks = Vec::new();
        for _ in 0..plan.streams {
            // Each is read from as soon as it is there: one that nobody reads would keep the others' credit.
            let mut stream = match streams.pop() {
                Some(stream) => stream,
                None => connection.accept().await?.1,
            };
            let count = plan.messages;
            tasks.push(tokio::spawn(async move {
                for _ in 0..count {
                    stream.recv().await?.ok_or(BenchError::Ended)?;
                }
                Ok::<_, BenchError>(stream)
            }));
        }
        for task in tasks {
            streams.push(task.await.map_err(|_| BenchError::Ended)??);
        }
        meter.stop();
        marks_out.send(Outgoing::new(MARK, 0, Vec::new())).await?;
    }
    let path = connection.stats().path;
    connection.closed().await;
    Ok(meter.figures(&path))
}

/// Dials `expect` and sends it blocks as the plan says.
///
/// # Errors
/// [`BenchError`].
pub async fn send(
    endpoint: &Endpoint,
    address: SocketAddr,
    expect: &SpiffeId,
    plan: &Plan,
) -> Result<Figures, BenchError> {
    let connection = endpoint.connect(address, expect).await?;
    let (mut marks_out, mut marks_in) = connection.open(Class::Control, 0).await?;
    let block = Bytes::from(pattern(plan.message_bytes));
    let mut meter = Meter::new(plan);
    let mut senders = open_streams(&connection, plan.streams).await?;
    for round in 0..plan.rounds {
        marks_out.send(Outgoing::new(MARK, 0, Vec::new())).await?;
        meter.start(round);
        let mut tasks = Vec::new();
        for (mut sender, receiver) in senders.drain(..) {
            let (block, count) = (block.clone(), plan.messages);
            tasks.push(tokio::spawn(async move {
                for number in 0..count {
                    let message = Outgoing::new(BLOCK, number as u64, Vec::new());
                    sender.send(message.with_payload(block.clone())).await?;
                }
                Ok::<_, BenchError>((sender, receiver))
            }));
        }
        for task in tasks {
            senders.push(task.await.map_err(|_| BenchError::Ended)??);
        }
        marks_in.recv().await?.ok_or(BenchError::Ended)?;
        meter.stop();
    }
    let path = connection.stats().path;
    connection.close(0, "measured");
    endpoint.wait_idle().await;
    Ok(meter.figures(&path))
}

async fn open_streams(
    connection: &Connection,
    count: usize,
) -> Result<Vec<(crate::Sender, crate::Receiver)>, Error> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(connection.open(Class::Data, 0).await?);
    }
    Ok(streams)
}

// Bytes that do not repeat within a block; their values do not matter to any layer.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

struct Meter {
    round_bytes: u64,
    warming: bool,
    start: Instant,
    cpu_start: Duration,
    bytes: u64,
    wall: Duration,
    cpu: Duration,
    best: f64,
}

impl Meter {
    fn new(plan: &Plan) -> Self {
        Meter {
            round_bytes: (plan.message_bytes * plan.messages * plan.streams) as u64,
            warming: true,
            start: Instant::now(),
            cpu_start: Duration::ZERO,
            bytes: 0,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
            best: 0.0,
        }
    }

    fn start(&mut self, round: usize) {
        self.warming = round == 0;
        self.cpu_start = cpu_time();
        self.start = Instant::now();
    }

    fn stop(&mut self) {
        let (wall, cpu) = (self.start.elapsed(), cpu_time().saturating_sub(self.cpu_start));
        if !self.warming {
            self.bytes += self.round_bytes;
            self.wall += wall;
            self.cpu += cpu;
            self.best = self.best.max(self.round_bytes as f64 / wall.as_secs_f64() / 1e9);
        }
    }

    fn figures(&self, path: &PathStats) -> Figures {
        let (bytes, seconds) = (self.bytes as f64, self.wall.as_secs_f64());
        Figures {
            bytes: self.bytes,
            seconds,
            best_gigabytes_per_second: self.best,
            gigabytes_per_second: bytes / seconds / 1e9,
            cpu_nanoseconds_per_byte: self.cpu.as_secs_f64() * 1e9 / bytes,
            mtu: path.mtu,
            packets_lost: path.packets_lost,
            packets_sent: path.packets_sent,
        }
    }
}

// User and system time of this process, all threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}
