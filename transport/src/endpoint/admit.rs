//! Who is let in: handshakes in their own tasks, budgets, and the start of the session.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::VarInt;
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::door::{Door, Knock, Limits};
use super::places::{NoPlace, Places, Slot};
use super::sieve::SieveStats;
use super::standing::{Live, Shown};
use super::transport;
use crate::config::TransportConfig;
use crate::connection::{Connection, Link, OnFault, Paced, Renewal, Setup};
use crate::error::CloseCode;
use crate::identity::SpiffeId;
use crate::pki::{Expected, Held, Identity, PkiError};
use crate::policy::Policy;
use crate::promises::Promises;
use crate::refusals::{Cause, Refusals, Who};
use crate::session::{ConnectionSecret, Direction, EXPORTER_LABEL, exporter_context};
use crate::traffic::{Traffic, TrafficStats};

/// What an endpoint saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointStats {
    /// Connections accepted and authenticated.
    pub accepted: u64,
    /// Connections dialled and authenticated.
    pub dialled: u64,
    /// Calls of ours that failed.
    pub dials_failed: u64,
    /// Handshakes refused: certificate, identity, or protocol.
    pub refused: u64,
    /// Handshakes that took too long.
    pub timed_out: u64,
    /// Newcomers asked to prove their address.
    pub retried: u64,
    /// Newcomers ignored, because too many handshakes were in progress, in all or with their address.
    pub ignored: u64,
    /// Newcomers turned away, because the node has all the connections that it may.
    pub turned_away: u64,
    /// Newcomers ignored, because their address, or all together, had used up their rate of handshakes.
    pub over_rate: u64,
    /// Peers of the job turned away, because they had used up their rate of connections.
    pub peers_over_rate: u64,
    /// Looks at the file with the list of revoked certificates.
    pub crl_looks: u64,
    /// Connections turned away, because the memory for peers was promised to others.
    pub out_of_memory: u64,
    /// Connections that ended by a fault of the peer.
    pub faults: u64,
    /// Connections open now.
    pub open: u64,
    /// Messages over all connections, those that have ended included.
    pub traffic: TrafficStats,
    /// Bytes that peers may occupy, by their credit.
    pub promised_bytes: u64,
    /// Bytes of messages that arrived and are not released.
    pub held_bytes: u64,
    /// Bytes that may be promised.
    pub memory: u64,
    /// Datagrams dropped before anything was computed for them.
    pub sieve: SieveStats,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    dialled: AtomicU64,
    dials_failed: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
    retried: AtomicU64,
    ignored: AtomicU64,
    turned_away: AtomicU64,
    over_rate: AtomicU64,
    peers_over_rate: AtomicU64,
    crl_looks: AtomicU64,
    out_of_memory: AtomicU64,
    faults: Arc<AtomicU64>,
}

/// What is needed to admit a connection.
pub(super) struct Admission {
    config: TransportConfig,
    identity: Identity,
    policy: Arc<Policy>,
    places: Places,
    promises: Arc<Promises>,
    counters: Counters,
    door: Arc<SharedDoor>,
    refusals: Refusals,
    live: Arc<Live>,
    traffic: Arc<Traffic>,
}

/// The door, and since when its time counts.
struct SharedDoor {
    door: Mutex<Door>,
    since: Instant,
}

impl SharedDoor {
    fn with<T>(&self, act: impl FnOnce(&mut Door, Duration) -> T) -> T {
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut door, self.since.elapsed())
    }
}

impl Admission {
    pub(super) fn new(config: TransportConfig, identity: Identity, policy: Arc<Policy>) -> Self {
        let (counters, refusals, live, traffic) = Default::default();
        let places = Places::new(&config);
        let limits = Limits {
            total: config.handshakes,
            per_address: config.handshakes_per_address,
            per_peer: config.handshakes_per_peer,
            retry_after: config.retry_after,
        };
        let door = Mutex::new(Door::new(limits, Duration::ZERO));
        let door = Arc::new(SharedDoor { door, since: Instant::now() });
        let promises = Promises::new(config.memory);
        Admission { config, identity, policy, places, promises, counters, door, refusals, live, traffic }
    }

    pub(super) fn config(&self) -> &TransportConfig {
        &self.config
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The connections that live.
    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Room for one more connection, if there is.
    pub(super) fn slot(&self) -> Option<Slot> {
        self.places.slot()
    }

    /// The same place, with memory for what its peer may make this node hold.
    pub(super) fn promised(&self, slot: Slot) -> Option<Slot> {
        let promise = self.promises.promise(self.config.promise());
        if promise.is_none() {
            bump(&self.counters.out_of_memory);
        }
        promise.map(|promise| slot.with(promise))
    }

    pub(super) fn count_dial(&self, is_good: bool) {
        bump(if is_good { &self.counters.dialled } else { &self.counters.dials_failed });
    }

    pub(super) fn count_crl_look(&self) {
        bump(&self.counters.crl_looks);
    }

    pub(super) fn stats(&self) -> EndpointStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EndpointStats {
            accepted: read(&self.counters.accepted),
            dialled: read(&self.counters.dialled),
            dials_failed: read(&self.counters.dials_failed),
            refused: read(&self.counters.refused),
            timed_out: read(&self.counters.timed_out),
            retried: read(&self.counters.retried),
            ignored: read(&self.counters.ignored),
            turned_away: read(&self.counters.turned_away),
            over_rate: read(&self.counters.over_rate),
            peers_over_rate: read(&self.counters.peers_over_rate),
            crl_looks: read(&self.counters.crl_looks),
            out_of_memory: read(&self.counters.out_of_memory),
            faults: read(&self.counters.faults),
            open: self.places.connections() as u64,
            traffic: self.traffic.stats(),
            promised_bytes: self.promises.promised(),
            held_bytes: read(self.promises.held()),
            memory: self.config.memory,
            sieve: SieveStats::default(),
        }
    }

    /// Starts the session on a connection whose peer is known.
    pub(super) fn start(
        &self,
        quic: quinn::Connection,
        peer: SpiffeId,
        direction: Direction,
        (slot, pace): (Slot, Arc<Paced>),
        on_fault: Option<OnFault>,
        changes: watch::Receiver<Arc<Held>>,
    ) -> Result<Connection, PkiError> {
        let local = self.identity.id().clone();
        let context = match direction {
            Direction::FromInitiator => exporter_context(&local, &peer),
            Direction::FromAcceptor => exporter_context(&peer, &local),
        };
        let mut secret = zeroize::Zeroizing::new([0; 32]);
        quic.export_keying_material(secret.as_mut(), EXPORTER_LABEL, &context)
            .map_err(|_| PkiError::Crypto("TLS exported no key for message authentication"))?;
        let trust = self.identity.trust();
        let chain = chain(&quic)?;
        let place = self.live.place(peer.clone(), Shown::of(&chain, trust)?);
        let witness = place.witness();
        let renewal = Renewal::new(self.identity.clone(), changes, place.renewals(trust));
        transport::admit(&quic, &self.config);
        let window = transport::window(&self.config);
        // Whom this node has dialled it means to hear; who dials it is heard first.
        let unheard = match direction {
            Direction::FromInitiator => {
                quic.set_receive_window(window);
                None
            }
            Direction::FromAcceptor => Some(window),
        };
        let setup = Setup {
            local,
            peer,
            certificate: Some(Arc::clone(&chain)),
            policy: Arc::clone(&self.policy),
            link: Link::quic(quic, unheard),
            secret: Some(ConnectionSecret::new(*secret)),
            direction,
            control_credit: self.config.control_credit,
            data_credit: self.config.data_credit,
            stall_timeout: self.config.stall_timeout,
            held: Arc::clone(self.promises.held()),
            on_fault,
            refusals: self.refusals.clone(),
            traffic: Arc::clone(&self.traffic),
            pace,
            renewal: Some(renewal),
        };
        let connection = Connection::start(setup, (place, slot));
        witness.started(&connection, trust);
        Ok(connection)
    }

    // The handshake has checked the certificate already; the name is read again from what it checked.
    fn peer(&self, quic: &quinn::Connection) -> Result<SpiffeId, PkiError> {
        self.identity.trust().verify(&chain(quic)?, &Expected::Member)
    }
}

/// The certificates that the peer showed, in DER one after the other.
fn chain(quic: &quinn::Connection) -> Result<Arc<[u8]>, PkiError> {
    let shown = quic.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let shown = shown.ok_or_else(|| PkiError::Certificate("the peer showed none".to_owned()))?;
    Ok(shown.iter().flat_map(|der| der.iter().copied()).collect())
}

/// Accepts newcomers until the endpoint closes.
pub(super) async fn run(
    admission: Arc<Admission>,
    endpoint: quinn::Endpoint,
    accepted: mpsc::Sender<Connection>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let counters = &admission.counters;
        let pending = admission.places.handshakes();
        let (address, proved) = (incoming.remote_address().ip(), incoming.remote_address_validated());
        match admission.door.with(|door, now| door.knock(now, address, proved, pending)) {
            Knock::Admit => {}
            Knock::Prove => {
                bump(&counters.retried);
                // An address that is not validated may always be asked to prove itself.
                incoming.retry().ok();
                continue;
            }
            // Ignored, not refused: an honest newcomer asks again by itself, and may then be in time.
            Knock::AddressSpent | Knock::TotalSpent => {
                bump(&counters.over_rate);
                let who = if proved { Who::address(address) } else { Who::Anyone };
                admission.refusals.count(Cause::Budget, who);
                incoming.ignore();
                continue;
            }
        }
        let Some(handshake) = admission.places.handshake(proved.then_some(address)) else {
            bump(&counters.ignored);
            admission.refusals.count(Cause::Budget, Who::Anyone);
            incoming.ignore();
            continue;
        };
        let Some(slot) = admission.slot() else {
            bump(&counters.turned_away);
            admission.refusals.count(Cause::Full, Who::Anyone);
            incoming.refuse();
            continue;
        };
        let (admission, accepted) = (Arc::clone(&admission), accepted.clone());
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            let limit = admission.config.handshake_timeout;
            let outcome = timeout(limit, admission.handshake(incoming, slot)).await;
            if proved && !matches!(outcome, Ok(Ok(_))) {
                admission.door.with(|door, now| door.failed(now, address));
            }
            let connection = match outcome {
                Ok(Ok(connection)) => connection,
                Ok(Err(Turned { cause, who, why })) => {
                    bump(&admission.counters.refused);
                    // Who shows a certificate has answered to its address.
                    let answered = proved || matches!(cause, Cause::Certificate | Cause::Revoked);
                    let who = who.unwrap_or(if answered { Who::address(remote.ip()) } else { Who::Anyone });
                    if let Some(left_out) = admission.refusals.count(cause, who) {
                        tracing::warn!(%remote, %cause, %why, left_out, "handshake refused");
                    }
                    return;
                }
                Err(_) => {
                    bump(&admission.counters.timed_out);
                    let who = if proved { Who::address(remote.ip()) } else { Who::Anyone };
                    if let Some(left_out) = admission.refusals.count(Cause::Late, who) {
                        tracing::warn!(%remote, ?limit, left_out, "handshake took too long");
                    }
                    return;
                }
            };
            drop(handshake);
            bump(&admission.counters.accepted);
            tracing::debug!(%remote, peer = %connection.peer(), "connection accepted");
            // Fails only when the endpoint was dropped, which closes the connection as it should.
            accepted.send(connection).await.ok();
        });
    }
}

impl Admission {
    async fn handshake(&self, incoming: quinn::Incoming, slot: Slot) -> Result<Connection, Turned> {
        let (address, changes) = (incoming.remote_address().ip(), self.identity.changes());
        let broken = |error: quinn::ConnectionError| Turned {
            cause: cause(&error),
            who: None,
            why: error.to_string(),
        };
        let quic = incoming.accept().map_err(broken)?.await.map_err(broken)?;
        let refuse = |why: PkiError| {
            let cause = match &why {
                PkiError::Unexpected { .. } => Cause::Identity,
                _ => Cause::Certificate,
            };
            let why = why.to_string();
            quic.close(VarInt::from_u32(CloseCode::Admission.number()), why.as_bytes());
            Turned { cause, who: None, why }
        };
        let peer = self.peer(&quic).map_err(refuse)?;
        let busy = |why: String| {
            quic.close(VarInt::from_u32(CloseCode::Busy.number()), why.as_bytes());
            Turned { cause: Cause::Full, who: Some(Who::node(&peer)), why }
        };
        if !self.door.with(|door, now| door.authenticated(now, address, &peer)) {
            bump(&self.counters.peers_over_rate);
            return Err(Turned { cause: Cause::Budget, ..busy(format!("{peer} connects too often")) });
        }
        let (slot, pace) = slot.accepted(&peer, address).map_err(|why| {
            let most = self.config.max_connections_per_peer;
            busy(match why {
                NoPlace::Peer => format!("{peer} has {most} connections already"),
                NoPlace::Address => {
                    format!("{peer} is connected, and its address has all that one address may have")
                }
            })
        })?;
        let Some(slot) = self.promised(slot) else {
            return Err(busy("this node's memory for peers is promised to others".to_owned()));
        };
        let on_fault = self.blame(address, peer.clone());
        self.start(quic.clone(), peer, Direction::FromAcceptor, (slot, pace), Some(on_fault), changes)
            .map_err(refuse)
    }
}

impl Admission {
    /// What charges a fault of `peer`, who came from `address`, to both.
    fn blame(&self, address: IpAddr, peer: SpiffeId) -> OnFault {
        let (door, faults) = (Arc::clone(&self.door), Arc::clone(&self.counters.faults));
        Box::new(move || {
            bump(&faults);
            door.with(|door, now| door.fault(now, address, &peer));
        })
    }
}

/// Why a newcomer was not let in.
struct Turned {
    cause: Cause,
    /// Who it is, if it is known by more than its address.
    who: Option<Who>,
    why: String,
}

/// Why a handshake failed, by the alert that ended it (RFC 8446, section 6.2; RFC 9001, section 4.8).
fn cause(error: &quinn::ConnectionError) -> Cause {
    const BAD_CERTIFICATE: u64 = 42;
    const CERTIFICATE_REVOKED: u64 = 44;
    const CERTIFICATE_UNKNOWN: u64 = 46;
    const UNKNOWN_CA: u64 = 48;
    const DECRYPT_ERROR: u64 = 51;
    const CERTIFICATE_REQUIRED: u64 = 116;
    let quinn::ConnectionError::TransportError(error) = error else {
        return match error {
            quinn::ConnectionError::TimedOut => Cause::Late,
            _ => Cause::Handshake,
        };
    };
    match u64::from(error.code).checked_sub(0x100) {
        Some(CERTIFICATE_REVOKED) => Cause::Revoked,
        Some(BAD_CERTIFICATE..=CERTIFICATE_UNKNOWN | UNKNOWN_CA..=DECRYPT_ERROR | CERTIFICATE_REQUIRED) => {
            Cause::Certificate
        }
        _ => Cause::Handshake,
    }
}

fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
