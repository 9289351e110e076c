//! The node's side.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::{ALPN, Answer, Ask, JoinError, MAX_MESSAGE, quic, service};
use crate::codec::{decode_canonical, encode};
use crate::pki::{self, CERT_FILE, Identity, JoinToken, KEY_FILE, PkiError, REQUEST_FILE, Request};
use crate::tls;
use crate::tls::enrolment::CaPin;

/// Longest exchange: the service may be busy, and the world is large.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longest until the service has shown who it is: one that has no place ignores who knocks, and the next knock may find one.
const KNOCK: Duration = Duration::from_secs(4);
/// Between two attempts: a service that turned this node away may have a place then.
const PAUSES_MS: [u64; 4] = [250, 500, 1000, 2000];

/// Makes a key in `directory`, has it certified by the enrolment service at `address`, and puts certificate and CA beside
/// it. Called again after a failure, it goes on with the key that it made.
///
/// # Errors
/// [`JoinError`]; what is in the directory then is the key and its request at most.
pub async fn join(token: &JoinToken, address: SocketAddr, directory: &Path) -> Result<Identity, JoinError> {
    let request = own_request(directory, token)?;
    let mac = token.secret().mac(request.der());
    let ask = Ask { secret: token.secret().clone(), request: request.der().to_vec(), mac };
    let (answer, ca) = timeout(DEADLINE, attempts(token, address, &ask)).await.unwrap_or_else(|_| {
        let what = format!("no answer within {} s; is it running, and may UDP pass?", DEADLINE.as_secs());
        Err(JoinError::Unreachable { address, what })
    })?;
    match answer {
        Answer::Granted { certificate } => {
            Ok(pki::install(directory, certificate.as_bytes(), Some(ca.as_bytes()))?)
        }
        Answer::Refused { why } => Err(JoinError::Refused(why)),
    }
}

/// A request by a key made now, or by the one of an attempt before.
fn own_request(directory: &Path, token: &JoinToken) -> Result<Request, PkiError> {
    let (key, made) = (directory.join(KEY_FILE), directory.join(REQUEST_FILE));
    if !key.exists() || !made.exists() || directory.join(CERT_FILE).exists() {
        // Which refuses to make a key where there is one.
        return pki::request(directory, token.id());
    }
    let request = Request::from_pem(&pki::read_public(&made)?)?;
    if request.id() != token.id() {
        let what =
            format!("it asks for {}, and the token is for {}", request.id().short(), token.id().short());
        return Err(PkiError::File { path: made, what });
    }
    Ok(request)
}

/// Why an attempt came to nothing, and whether the next may go better.
struct Missed {
    why: JoinError,
    again: bool,
}

impl<E: Into<PkiError>> From<E> for Missed {
    fn from(why: E) -> Missed {
        Missed { why: JoinError::Pki(why.into()), again: false }
    }
}

/// Whether the service, or nobody, turned a handshake away that had nothing wrong with it.
fn is_passing(why: &quinn::ConnectionError) -> bool {
    let busy = [quinn::TransportErrorCode::CONNECTION_REFUSED, quinn::TransportErrorCode::INVALID_TOKEN];
    match why {
        quinn::ConnectionError::ConnectionClosed(close) => busy.contains(&close.error_code),
        quinn::ConnectionError::Reset | quinn::ConnectionError::TimedOut => true,
        _ => false,
    }
}

/// As many exchanges as it takes until one has an answer. What is asked twice is answered twice in the same way.
async fn attempts(token: &JoinToken, address: SocketAddr, ask: &Ask) -> Result<(Answer, String), JoinError> {
    for pause in PAUSES_MS.map(Duration::from_millis) {
        match exchange(token, address, ask).await {
            Err(missed) if missed.again => tokio::time::sleep(pause).await,
            told => return told.map_err(|missed| missed.why),
        }
    }
    exchange(token, address, ask).await.map_err(|missed| missed.why)
}

/// One question and its answer, with the CA's certificate (PEM).
async fn exchange(token: &JoinToken, address: SocketAddr, ask: &Ask) -> Result<(Answer, String), Missed> {
    let missed = |what: String, again| Missed { why: JoinError::Unreachable { address, what }, again };
    let unreachable = |what: String| missed(what, false);
    let id = token.id();
    let service = service(id.trust_domain(), id.job())?;
    let pin = CaPin { ca: *token.ca(), service };
    let (config, failure) = tls::enrolment::client_config(pin, ALPN)?;
    let mut client = quinn::ClientConfig::new(Arc::new(tls::quic_client(config)?));
    client.transport_config(Arc::new(quic()));
    client.token_store(Arc::new(quinn::NoneTokenStore));
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let local =
        |why: std::io::Error| Missed { why: JoinError::Local(format!("no UDP socket: {why}")), again: false };
    let endpoint = quinn::Endpoint::client(any).map_err(local)?;
    let connecting = endpoint.connect_with(client, address, tls::SERVER_NAME);
    let connecting = connecting.map_err(|why| unreachable(why.to_string()))?;
    // Invariant 1: this returns once the other end has shown who it is.
    let knocked = timeout(KNOCK, connecting).await;
    let knocked = knocked.map_err(|_| missed(format!("no answer within {} s", KNOCK.as_secs()), true))?;
    let connection = knocked.map_err(|why| match failure.take() {
        Some(why) => unreachable(why.to_string()),
        None => missed(why.to_string(), is_passing(&why)),
    })?;
    let ca = shown_ca(&connection).ok_or_else(|| unreachable("it showed no CA".to_owned()))?;
    let lost = |why: &dyn std::fmt::Display| missed(why.to_string(), true);
    let (mut tx, mut rx) = connection.open_bi().await.map_err(|why| lost(&why))?;
    let message = zeroize::Zeroizing::new(encode(ask));
    tx.write_all(&message).await.map_err(|why| lost(&why))?;
    tx.finish().map_err(|why| lost(&why))?;
    let answer = rx.read_to_end(MAX_MESSAGE).await.map_err(|why| lost(&why))?;
    let answer = decode_canonical::<Answer>(&answer).map_err(|why| unreachable(why.to_string()))?;
    connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    Ok((answer, ca))
}

/// The CA's certificate as the handshake checked it, in PEM.
fn shown_ca(connection: &quinn::Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let [_, ca] = chain.as_slice() else { return None };
    Some(pki::to_pem(ca))
}
