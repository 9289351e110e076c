//! A connection between two authenticated nodes: the thin asynchronous shell over the session.
//!
//! Invariants:
//!
//! 1. The first fault of the peer closes the connection, and every later operation reports that same fault.
//! 2. Dropping the last handle ([`Connection`], [`Sender`] or [`Receiver`]) closes the connection; the tasks
//!    in the background keep it no longer.
//! 3. No message is ever sent in part: a `send` that is dropped half-way is completed in the background.
//! 4. A dropped [`Receiver`] goes on taking in and discarding, so that its sender's credit is not lost.
//! 5. Of a peer that this node cut off nothing is heard any more, on whatever stream it has come. What had come before the
//!    peer ended the connection, or this node was done, is still heard.
//! 6. That a connection has ended is known here when its link is closed, and not before: the peer hears why ahead of the end of its
//!    streams, which whoever knows drops.

mod grants;
mod link;
mod pace;
mod receiver;
mod renewal;
mod sender;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

pub(crate) use link::{Broken, Ended, Link, Rx, Tx};
pub(crate) use pace::Paced;
pub use receiver::Receiver;
pub(crate) use renewal::{Renewal, Take};
pub use sender::Sender;

use crate::config::CreditConfig;
use crate::error::{CloseCode, Error, Fault, Misuse};
use crate::identity::SpiffeId;
use crate::policy::{Class, Policy};
use crate::refusals::{Cause, Refusals, Who};
use crate::session::{ConnectionSecret, Direction, Gate, Inbound, Opener, Outbound, Sealer, Stream};
use crate::traffic::{Traffic, TrafficStats};

/// An authenticated connection with one node. Clones are handles to the same one.
#[derive(Clone)]
pub struct Connection(Arc<Handle>);

impl Connection {
    /// Starts the session on a link whose two ends are already known to each other.
    pub(crate) fn start(setup: Setup, guard: impl Send + 'static) -> Connection {
        let inner = Arc::new(Inner {
            local: setup.local,
            peer: setup.peer,
            certificate: setup.certificate,
            policy: setup.policy,
            link: setup.link,
            secret: setup.secret,
            direction: setup.direction,
            inbound: Inbound::counted(setup.control_credit, setup.data_credit, setup.held),
            outbound: Outbound::default(),
            stall_timeout: setup.stall_timeout,
            renewal: setup.renewal,
            on_fault: setup.on_fault,
            refusals: setup.refusals,
            traffic: setup.traffic,
            pace: setup.pace,
            counters: Counters::default(),
            failure: OnceLock::new(),
            closing: Mutex::default(),
        });
        tokio::spawn(grants::run(Arc::clone(&inner), guard));
        Connection(Arc::new(Handle(inner)))
    }

    /// The node at the other end, as its certificate names it.
    pub fn peer(&self) -> &SpiffeId {
        &self.inner().peer
    }

    /// The certificate that the node at the other end showed, in DER; there is none on a link in memory.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        self.inner().certificate.as_deref()
    }

    /// This node.
    pub fn local(&self) -> &SpiffeId {
        &self.inner().local
    }

    /// Opens a stream for messages of one class; the peer learns of it with the first message. Among streams
    /// of one class those of higher priority go first, and control goes before data whatever the priority.
    /// Waits while the peer allows no more streams.
    ///
    /// # Errors
    /// [`Error`] when the connection is closed.
    pub async fn open(&self, class: Class, priority: i32) -> Result<(Sender, Receiver), Error> {
        let (tx, rx) = self.inner().link.open().await.map_err(|why| self.inner().lost(why))?;
        let sender = Sender::new(Arc::clone(&self.0), tx, Some(class), priority);
        Ok((sender, Receiver::new(Arc::clone(&self.0), rx)))
    }

    /// Waits for the peer's next stream. Replies go back on its [`Sender`]. A stream may be there before its
    /// first message is, so each wants a task of its own. Streams that come faster than the peer's rate are taken late.
    ///
    /// # Errors
    /// [`Error`] when the connection is closed, which is also how it ends in good order.
    pub async fn accept(&self) -> Result<(Sender, Receiver), Error> {
        self.inner().pace.stream_due().await;
        let (tx, rx) = self.inner().link.accept().await.map_err(|why| self.inner().lost(why))?;
        self.inner().pace.stream_taken();
        let sender = Sender::new(Arc::clone(&self.0), tx, None, 0);
        Ok((sender, Receiver::new(Arc::clone(&self.0), rx)))
    }

    /// Closes the connection at once; what was not delivered is lost ([`Sender::finish`] waits for delivery).
    /// Codes from [`CloseCode::FIRST_APPLICATION`] up are the application's.
    pub fn close(&self, code: u32, reason: &str) {
        self.inner().close(code, reason);
    }

    /// Closes the connection for a fault of the peer that only the application can judge: it is counted under `cause`, and held
    /// against the peer as every fault is.
    pub fn blame(&self, cause: Cause, code: CloseCode, what: &str) {
        self.inner().fail(Fault::Application { cause, code, what: what.into() });
    }

    /// Waits until the connection is closed, by whomever, and says why.
    pub async fn closed(&self) -> Error {
        let why = self.inner().link.closed().await;
        self.inner().lost(why)
    }

    /// Why the connection is closed; `None` while it is open.
    #[must_use]
    pub fn ended(&self) -> Option<Error> {
        let failed = self.inner().failure.get().cloned();
        failed.or_else(|| self.inner().link.ended().map(|why| self.inner().lost(why)))
    }

    /// What went over this connection so far.
    pub fn stats(&self) -> ConnectionStats {
        let inner = self.inner();
        ConnectionStats { path: inner.link.path(), ..inner.counters.snapshot() }
    }

    /// Waits for the peer's first grant, which it sends when it has admitted us.
    pub(crate) async fn admitted(&self) -> Result<(), Error> {
        tokio::select! {
            biased;
            () = self.inner().outbound.opened() => Ok(()),
            why = self.closed() => Err(why),
        }
    }

    /// A hold on this connection that does not keep it.
    pub(crate) fn watched(&self) -> Watched {
        Watched(Arc::downgrade(self.inner()))
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }
}

/// A connection as the endpoint watches it: it can be closed, and is not kept.
pub(crate) struct Watched(Weak<Inner>);

impl Watched {
    /// Closes the connection if it lives, and counts its peer as refused for `cause`; says whether it did.
    pub(crate) fn refuse(&self, cause: Cause, code: CloseCode, reason: &str) -> bool {
        let Some(inner) = self.0.upgrade().filter(|inner| inner.close(code.number(), reason)) else {
            return false;
        };
        inner.refusals.count(cause, Who::node(&inner.peer));
        true
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({} to {})", self.local().short(), self.peer().short())
    }
}

/// What a session needs to start.
pub(crate) struct Setup {
    pub(crate) local: SpiffeId,
    pub(crate) peer: SpiffeId,
    /// The peer's certificate, in DER; None only on a link in memory.
    pub(crate) certificate: Option<Arc<[u8]>>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) link: Link,
    /// None only on an unsecured link in memory.
    pub(crate) secret: Option<ConnectionSecret>,
    /// The direction in which this node sends.
    pub(crate) direction: Direction,
    pub(crate) control_credit: CreditConfig,
    pub(crate) data_credit: CreditConfig,
    pub(crate) stall_timeout: Duration,
    /// Counts what is held for this peer and others.
    pub(crate) held: Arc<AtomicU64>,
    /// How both ends renew their certificates; None in memory, where there are none.
    pub(crate) renewal: Option<Renewal>,
    /// Told when the peer is found at fault.
    pub(crate) on_fault: Option<OnFault>,
    /// Where the peer's fault is counted.
    pub(crate) refusals: Refusals,
    /// Counts what goes over this connection and others.
    pub(crate) traffic: Arc<Traffic>,
    /// How fast the peer is heard.
    pub(crate) pace: Arc<Paced>,
}

/// What is told of a peer's fault.
pub(crate) type OnFault = Box<dyn Fn() + Send + Sync>;

/// What went over a connection, the transport's own credit messages not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionStats {
    /// Bytes of messages sent: preludes, headers, payloads, MACs.
    pub bytes_sent: u64,
    /// Bytes of messages received and accepted.
    pub bytes_received: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Messages received and accepted.
    pub messages_received: u64,
    /// Renewed certificates of the peer that were taken.
    pub renewals: u64,
    /// Faults of the peer.
    pub refused: u64,
    /// The path, on a network; zeroes in memory.
    pub path: PathStats,
}

/// What the network layer found out about the path to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathStats {
    /// Largest UDP payload that the path carries, in bytes, as far as discovery got.
    pub mtu: u16,
    /// Round-trip time, smoothed.
    pub round_trip: Duration,
    /// Packets of ours that were lost.
    pub packets_lost: u64,
    /// Packets of ours in all.
    pub packets_sent: u64,
    /// Bytes that congestion control allows in flight.
    pub congestion_window: u64,
}

// Closes the connection when the application holds nothing of it any more.
pub(crate) struct Handle(Arc<Inner>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close(CloseCode::Done.number(), "");
    }
}

pub(crate) struct Inner {
    local: SpiffeId,
    peer: SpiffeId,
    certificate: Option<Arc<[u8]>>,
    policy: Arc<Policy>,
    link: Link,
    secret: Option<ConnectionSecret>,
    direction: Direction,
    inbound: Arc<Inbound>,
    outbound: Outbound,
    stall_timeout: Duration,
    renewal: Option<Renewal>,
    on_fault: Option<OnFault>,
    refusals: Refusals,
    traffic: Arc<Traffic>,
    pace: Arc<Paced>,
    counters: Counters,
    failure: OnceLock<Error>,
    /// Held from before the link is closed until [`Inner::failure`] says why.
    closing: Mutex<()>,
}

impl Inner {
    /// The state machines of a stream: what seals what goes out, and what opens what comes in.
    fn sealer(&self, stream: u64) -> Option<Sealer> {
        self.secret.as_ref().map(|secret| Sealer::new(secret.stream_key(self.direction, stream)))
    }

    fn opener(&self, stream: u64, gate: Gate) -> Option<Opener> {
        let direction = self.direction.reverse();
        self.secret.as_ref().map(|secret| Opener::new(secret.stream_key(direction, stream), gate))
    }

    fn gate(&self, stream: Stream) -> Gate {
        Gate {
            policy: Arc::clone(&self.policy),
            from: self.peer.clone(),
            to: self.local.clone(),
            credit: Arc::clone(&self.inbound),
            stream,
        }
    }

    fn count_sent(&self, bytes: u64) {
        self.counters.traffic.sent(bytes);
        self.traffic.sent(bytes);
    }

    fn count_received(&self, bytes: u64) {
        self.counters.traffic.received(bytes);
        self.traffic.received(bytes);
    }

    /// How long a message of that kind, which has come, waits until it is heard.
    fn wait_for(&self, kind: u8) -> Duration {
        let rate = self.policy.rule(kind).and_then(|rule| rule.rate);
        rate.map_or(Duration::ZERO, |rate| self.pace.message(kind, rate))
    }

    /// The peer has kept on saying something faster than anybody needs to.
    fn floods(&self, kind: u8) -> Error {
        let name = self.policy.rule(kind).map_or("message", |rule| rule.name);
        let what = format!("keeps on saying `{name}` faster than anybody needs to");
        self.fail(Fault::Application {
            cause: Cause::Flood,
            code: CloseCode::Credit,
            what: what.as_str().into(),
        })
    }

    /// Invariant 1.
    fn fail(&self, fault: Fault) -> Error {
        let (code, cause) = (fault.code(), Cause::from(&fault));
        let reason = fault.to_string();
        let error = Error::Peer { peer: self.peer.clone(), fault };
        let (error, first) = self.end(code.number(), &reason, error);
        if first {
            if let Some(left_out) = self.refusals.count(cause, Who::node(&self.peer)) {
                tracing::warn!(peer = %self.peer, %cause, %reason, left_out, "peer at fault; connection closed");
            }
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            if let Some(on_fault) = &self.on_fault {
                on_fault();
            }
        }
        error
    }

    /// Says whether it was this that closed it.
    fn close(&self, code: u32, reason: &str) -> bool {
        let peer = self.peer.clone();
        self.end(code, reason, Error::Closed { peer, by_peer: false, code, reason: reason.into() }).1
    }

    /// Closes the connection for `error`, unless it has ended before: for what, then, and whether this was it (invariant 6).
    fn end(&self, code: u32, reason: &str, error: Error) -> (Error, bool) {
        let _closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = self.failure.get() {
            return (failure.clone(), false);
        }
        self.link.close(code, reason);
        (self.failure.get_or_init(|| error).clone(), true)
    }

    /// Why nothing of this peer is to be heard any more (invariant 5).
    fn cut_off(&self) -> Option<Error> {
        let done = CloseCode::Done.number();
        let failure = self.failure.get()?;
        (!matches!(failure, Error::Closed { code, .. } if *code == done)).then(|| failure.clone())
    }

    /// What the link says became of the connection; what we know ourselves goes first.
    fn lost(&self, why: link::Ended) -> Error {
        let peer = self.peer.clone();
        if matches!(why, link::Ended::ByUs) {
            // Whoever is closing it is about to say why.
            drop(self.closing.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.failure.get().cloned().unwrap_or(match why {
            link::Ended::ByPeer { code, reason } => Error::Closed { peer, by_peer: true, code, reason },
            link::Ended::ByUs => {
                let code = CloseCode::Done.number();
                Error::Closed { peer, by_peer: false, code, reason: "the endpoint was closed".into() }
            }
            link::Ended::Lost(what) => Error::Lost { peer, what },
        })
    }

    /// What a stream operation's failure means for the connection.
    fn broken(&self, why: link::Broken) -> Error {
        match why {
            link::Broken::Connection(why) => self.lost(why),
            link::Broken::Abandoned(code) => self.fail(Fault::Abandoned(code)),
        }
    }

    fn misuse(&self, misuse: impl Into<Misuse>) -> Error {
        Error::Misuse { peer: self.peer.clone(), misuse: misuse.into() }
    }

    fn stalled(&self, what: &'static str) -> Error {
        let milliseconds = u64::try_from(self.stall_timeout.as_millis()).unwrap_or(u64::MAX);
        self.fail(Fault::Stalled { what, milliseconds })
    }
}

#[derive(Debug, Default)]
struct Counters {
    traffic: Traffic,
    renewals: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    fn snapshot(&self) -> ConnectionStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let TrafficStats { bytes_sent, bytes_received, messages_sent, messages_received } =
            self.traffic.stats();
        ConnectionStats {
            bytes_sent,
            bytes_received,
            messages_sent,
            messages_received,
            renewals: read(&self.renewals),
            refused: read(&self.refused),
            path: PathStats::default(),
        }
    }
}

#[cfg(test)]
mod tests;
