//! The CA's side: a process of its own, with the CA's key and nothing of a cluster.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use quinn::VarInt;
use tokio::time::timeout;

use super::places::Places;
use super::rates::{Rate, Rates};
use super::{ALPN, Answer, Ask, JoinError, MAX_MESSAGE, quic, service};
use crate::codec::{decode_canonical, encode};
use crate::pki::{JobCa, PkiError, Tokens};
use crate::refusals::{Cause, Refusals, Who};
use crate::tls;

/// How long the service's own certificate is good; a new one is made when half of it is over.
const OWN_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Bytes kept of a handshake that has not begun.
const PENDING_BUFFER: u64 = 8 * 1024;
/// Handshakes in progress that quinn remembers.
const MAX_PENDING: usize = 64;

/// What the service lets itself in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinLimits {
    /// Exchanges at a time. Each holds some 100 KiB.
    pub connections: usize,
    /// The same for one address (IPv4), or one network (IPv6, 64 bits).
    pub connections_each: usize,
    /// Longest from there until the question is in: a newcomer has it ready.
    pub patience: Duration,
    /// Longest exchange, from a newcomer's first packet that proves its address to the end.
    pub deadline: Duration,
    /// Exchanges a second in all, once as many have gone at once.
    pub per_second: u32,
    /// The same for one address (IPv4), or one network (IPv6, 64 bits).
    pub per_second_each: u32,
}

impl Default for JoinLimits {
    /// A cluster of a thousand nodes joins in a minute, and a flood costs a fraction of a core.
    fn default() -> Self {
        JoinLimits {
            connections: 32,
            connections_each: 4,
            patience: Duration::from_secs(3),
            deadline: Duration::from_secs(10),
            per_second: 20,
            per_second_each: 4,
        }
    }
}

/// An enrolment service that runs until it is dropped.
pub struct Enrolment {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    refusals: Refusals,
}

impl Enrolment {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whom it refused, and why.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Enrolment({})", self.address)
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        self.endpoint.close(VarInt::from_u32(0), b"");
    }
}

struct Desk {
    ca: JobCa,
    tokens: Tokens,
    valid_for: Duration,
    limits: JoinLimits,
    places: Places,
    rates: Mutex<Rates>,
    refusals: Refusals,
    begun: Instant,
}

/// Answers nodes at `listen` that have tokens of the CA in `directory`, with certificates that are good for `valid_for`. Must be
/// called within a tokio runtime.
///
/// # Errors
/// [`JoinError`] when the CA cannot be read or the address cannot be bound.
pub fn serve(
    directory: &Path,
    listen: SocketAddr,
    valid_for: Duration,
    limits: JoinLimits,
) -> Result<Enrolment, JoinError> {
    let ca = JobCa::load(directory)?;
    let bucket = |per_second: u32| {
        let per_second = f64::from(per_second);
        Rate { burst: per_second, per_second }
    };
    let rates = Rates::new(bucket(limits.per_second), bucket(limits.per_second_each));
    let desk = Arc::new(Desk {
        ca,
        tokens: Tokens::of(directory),
        valid_for,
        limits,
        places: Places::new(limits.connections, limits.connections_each),
        rates: Mutex::new(rates),
        refusals: Refusals::default(),
        begun: Instant::now(),
    });
    let bound = |why: std::io::Error| JoinError::Local(format!("cannot bind {listen}: {why}"));
    let endpoint = quinn::Endpoint::server(desk.config()?, listen).map_err(bound)?;
    let address = endpoint.local_addr().map_err(bound)?;
    let refusals = desk.refusals.clone();
    tokio::spawn(run(desk, endpoint.clone()));
    Ok(Enrolment { endpoint, address, refusals })
}

/// Until the endpoint closes.
async fn run(desk: Arc<Desk>, endpoint: quinn::Endpoint) {
    let mut renewal = tokio::time::interval(OWN_VALIDITY / 2);
    renewal.tick().await;
    loop {
        tokio::select! {
            _ = renewal.tick() => match desk.config() {
                Ok(config) => endpoint.set_server_config(Some(config)),
                Err(why) => tracing::error!(%why, "the service's own certificate cannot be renewed"),
            },
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => desk.meet(incoming),
                None => return,
            },
        }
    }
}

impl Desk {
    /// With a new certificate of the service's own, whose key is in memory alone.
    fn config(&self) -> Result<quinn::ServerConfig, PkiError> {
        let trust = self.ca.trust();
        let own = self.ca.issue(&service(trust.trust_domain(), trust.job())?, OWN_VALIDITY)?;
        let crypto = tls::quic_server(tls::enrolment::server_config(&own, ALPN)?)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(Arc::new(quic()))
            .migration(false)
            .max_incoming(MAX_PENDING)
            .incoming_buffer_size(PENDING_BUFFER)
            .incoming_buffer_size_total(PENDING_BUFFER * MAX_PENDING as u64);
        Ok(config)
    }

    /// Invariants 2 and 4: nothing is done for an address that has not been proved, or that comes too often.
    fn meet(self: &Arc<Self>, incoming: quinn::Incoming) {
        if !incoming.remote_address_validated() {
            // An address that is not validated may always be asked to prove itself.
            incoming.retry().ok();
            return;
        }
        let remote = incoming.remote_address();
        let now = self.begun.elapsed();
        let who = Who::address(remote.ip());
        // A place first: who has all of its own costs the others nothing of the rate for all.
        let place = self.places.take(remote.ip());
        let passes = || self.rates.lock().unwrap_or_else(PoisonError::into_inner).pass(remote.ip(), now);
        let Some(place) = place.filter(|_| passes()) else {
            if let Some(left_out) = self.refusals.count(Cause::Budget, who) {
                tracing::info!(%remote, left_out, "no place for an exchange");
            }
            incoming.ignore();
            return;
        };
        let desk = Arc::clone(self);
        tokio::spawn(async move {
            let exchange = timeout(desk.limits.deadline, desk.exchange(incoming)).await;
            let nothing = exchange.unwrap_or(Err(Nothing::Late)).err();
            if let Some(nothing) = nothing
                && let Some(left_out) = desk.refusals.count(nothing.cause(), who)
            {
                tracing::info!(%remote, %nothing, left_out, "an exchange came to nothing");
            }
            drop(place);
        });
    }

    async fn exchange(self: &Arc<Self>, incoming: quinn::Incoming) -> Result<(), Nothing> {
        let remote = incoming.remote_address();
        let heard = timeout(self.limits.patience, hear(incoming)).await.unwrap_or(Err(Nothing::Late));
        // Dropped with the connection's other handles at the end of this exchange, which closes it.
        let (connection, mut tx, ask) = heard?;
        let desk = Arc::clone(self);
        // Files are locked and synced: not on a thread that others wait for.
        let judged = tokio::task::spawn_blocking(move || desk.judge(&ask)).await.map_err(Nothing::of)?;
        let answer = match judged {
            Ok(certificate) => {
                tracing::info!(%remote, "a node joined");
                Answer::Granted { certificate }
            }
            Err(why) => {
                if let Some(left_out) = self.refusals.count(Cause::Join, Who::address(remote.ip())) {
                    tracing::warn!(%remote, %why, left_out, "a node was refused");
                }
                let why = match why {
                    PkiError::Token(_) | PkiError::Request(_) | PkiError::Identity(_) => why.to_string(),
                    // What is wrong with the CA's files is not a stranger's business.
                    _ => "the service cannot issue now; its log says why".to_owned(),
                };
                Answer::Refused { why }
            }
        };
        tx.write_all(&encode(&answer)).await.map_err(Nothing::of)?;
        tx.finish().map_err(Nothing::of)?;
        // The node closes when it has read the answer.
        connection.closed().await;
        Ok(())
    }

    fn judge(&self, ask: &Ask) -> Result<String, PkiError> {
        let Ask { secret, request, mac } = ask;
        self.tokens.redeem(&self.ca, secret, request, mac, self.valid_for, SystemTime::now())
    }
}

/// A newcomer's question, with the stream for its answer.
async fn hear(incoming: quinn::Incoming) -> Result<(quinn::Connection, quinn::SendStream, Ask), Nothing> {
    let connection = incoming.accept().map_err(Nothing::of)?.await.map_err(Nothing::of)?;
    let (tx, mut rx) = connection.accept_bi().await.map_err(Nothing::of)?;
    let asked = zeroize::Zeroizing::new(rx.read_to_end(MAX_MESSAGE).await.map_err(Nothing::of)?);
    let ask = decode_canonical(&asked).map_err(Nothing::of)?;
    Ok((connection, tx, ask))
}

/// Why there was no question, or nobody took the answer.
enum Nothing {
    Late,
    Broken(String),
}

impl Nothing {
    fn of(why: impl fmt::Display) -> Nothing {
        Nothing::Broken(why.to_string())
    }

    fn cause(&self) -> Cause {
        match self {
            Nothing::Late => Cause::Late,
            Nothing::Broken(_) => Cause::Handshake,
        }
    }
}

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Nothing::Late => f.write_str("it took too long"),
            Nothing::Broken(why) => f.write_str(why),
        }
    }
}
