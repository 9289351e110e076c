//! Joining by token. Invariants are those of `testudo_transport::join` and of `testudo_transport::pki`'s tokens.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{DAY, id};
use testudo_transport::join::{Enrolment, JoinError, JoinLimits, join, serve};
use testudo_transport::pki::{
    self, CERT_FILE, Issued, JoinToken, KEY_FILE, Register, Request, TOKENS_FILE, Tokens,
};
use testudo_transport::{Identity, JobCa, PkiError, Role};

const HOUR: Duration = Duration::from_secs(3600);

struct Place {
    folder: tempfile::TempDir,
    ca: JobCa,
}

impl Place {
    fn new() -> Place {
        let (folder, ca) = common::kept_ca();
        Place { folder, ca }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tokens(&self) -> Tokens {
        Tokens::of(&self.path("ca"))
    }

    fn token(&self, index: u32) -> JoinToken {
        self.tokens().make(&self.ca, &id(Role::Worker, index), HOUR, None).unwrap()
    }

    fn serve(&self, limits: JoinLimits) -> Enrolment {
        serve(&self.path("ca"), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), DAY, limits).unwrap()
    }

    /// What was issued to nodes.
    fn issued(&self) -> Vec<Issued> {
        let all = Register::of(&self.path("ca")).read().unwrap();
        all.into_iter().filter(|one| one.id.role() != Role::Operator).collect()
    }

    fn request(&self, name: &str, index: u32) -> Request {
        pki::request(&self.path(name), &id(Role::Worker, index)).unwrap()
    }

    fn redeem(&self, token: &JoinToken, request: &Request) -> Result<String, PkiError> {
        let mac = token.secret().mac(request.der());
        let now = SystemTime::now();
        self.tokens().redeem(&self.ca, token.secret(), request.der(), &mac, DAY, now)
    }
}

fn wide() -> JoinLimits {
    JoinLimits { per_second: 10_000, per_second_each: 10_000, ..JoinLimits::default() }
}

fn refused(result: Result<impl std::fmt::Debug, PkiError>, part: &str) {
    let why = result.unwrap_err().to_string();
    assert!(why.contains(part), "expected `{part}` in: {why}");
}

#[tokio::test]
async fn a_node_joins_by_token() {
    let place = Place::new();
    let service = place.serve(JoinLimits::default());
    let token: JoinToken = place.token(3).to_text().parse().unwrap();
    let home = place.path("worker-3");
    let identity = join(&token, service.local_addr(), &home).await.unwrap();
    assert_eq!(identity.id(), &id(Role::Worker, 3));
    let loaded = Identity::load(&home).unwrap();
    assert_eq!(loaded.certificate_der(), identity.certificate_der());
    assert_eq!(loaded.trust().ca_der(), place.ca.trust().ca_der());
    assert_eq!(place.issued(), [Issued::of(identity.certificate_der()).unwrap()]);
}

/// Invariants 1 and 4 of tokens.
#[test]
fn the_ca_keeps_no_secret_and_nothing_shows_one() {
    let place = Place::new();
    let token = place.token(0);
    let text = token.to_text().as_str().to_owned();
    let record = fs::read_to_string(place.path("ca").join(TOKENS_FILE)).unwrap();
    assert!(record.contains("worker/0") && record.lines().count() == 1);
    let body = text.rsplit('.').next().unwrap();
    assert!(body.len() > 80 && !record.contains(&body[..40]));
    assert_eq!(
        format!("{token:?} {:?}", token.secret()),
        format!("JoinToken({}) TokenSecret(..)", token.id())
    );
    // The name in the record is no key to anything: neither as the secret, nor as that of a MAC.
    let name = record.split("\"token\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let bytes: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&name[at..at + 2], 16).unwrap()).collect();
    let key: [u8; 32] = bytes.try_into().unwrap();
    let request = place.request("worker-0", 0);
    let mac = *blake3::keyed_hash(&key, request.der()).as_bytes();
    let now = SystemTime::now();
    let forged = place.tokens().redeem(&place.ca, token.secret(), request.der(), &mac, DAY, now);
    refused(forged, "MAC");
    assert_ne!(place.token(0).to_text().as_str(), text, "each has its own secret");
    for bad in [
        "",
        "x",
        "testudo-join-1.",
        &text[..text.len() - 2],
        &format!("{text}AA"),
        &text.replace("-1.", "-2."),
    ] {
        assert!(matches!(bad.parse::<JoinToken>(), Err(PkiError::Token(_))), "{bad}");
    }
    let long = format!("testudo-join-1.{}", "A".repeat(1 << 20));
    assert!(long.parse::<JoinToken>().is_err());
}

/// Invariant 2 of tokens.
#[tokio::test]
async fn a_token_is_used_once() {
    let place = Place::new();
    let service = place.serve(wide());
    let token = place.token(3);
    let (home, thief) = (place.path("worker-3"), place.path("thief"));
    let first = join(&token, service.local_addr(), &home).await.unwrap();
    let again = join(&token, service.local_addr(), &thief).await.unwrap_err();
    assert!(again.to_string().contains("used by another key"), "{again}");
    assert!(!thief.join(CERT_FILE).exists());
    // The answer was lost: the same key gets the same certificate, and nothing else.
    fs::remove_file(home.join(CERT_FILE)).unwrap();
    let key = fs::read(home.join(KEY_FILE)).unwrap();
    let second = join(&token, service.local_addr(), &home).await.unwrap();
    assert_eq!(second.certificate_der(), first.certificate_der());
    assert_eq!(fs::read(home.join(KEY_FILE)).unwrap(), key);
    assert_eq!(place.issued().len(), 1);
    // A node that has its certificate does not join over it.
    assert!(matches!(
        join(&token, service.local_addr(), &home).await,
        Err(JoinError::Pki(PkiError::File { .. }))
    ));
}

/// Invariant 2 of tokens: of many who have it at once, one gets it.
#[test]
fn a_race_for_a_token_has_one_winner() {
    let place = Place::new();
    let token = place.token(0);
    let requests: Vec<Request> = (0..8).map(|n| place.request(&format!("racer-{n}"), 0)).collect();
    let won: usize = std::thread::scope(|scope| {
        let racers: Vec<_> =
            requests.iter().map(|request| scope.spawn(|| place.redeem(&token, request))).collect();
        racers.into_iter().filter(|_| true).map(|racer| usize::from(racer.join().unwrap().is_ok())).sum()
    });
    assert_eq!((won, place.issued().len()), (1, 1));
}

/// Invariants 2 and 3 of tokens.
#[test]
fn what_a_token_is_not_good_for() {
    let place = Place::new();
    let (tokens, ca) = (place.tokens(), &place.ca);
    let (token, now) = (place.token(3), SystemTime::now());
    let request = place.request("worker-3", 3);
    let redeem = |token: &JoinToken, der: &[u8], mac: &[u8; 32], now| {
        tokens.redeem(ca, token.secret(), der, mac, DAY, now)
    };
    let mac = token.secret().mac(request.der());
    // Expired.
    refused(redeem(&token, request.der(), &mac, now + 2 * HOUR), "expired");
    // Another identity.
    let other = place.request("worker-4", 4);
    refused(place.redeem(&token, &other), "it is for worker/3, and the request asks for worker/4");
    // A request swapped on the way, or touched.
    let swapped = place.request("thief", 3);
    refused(redeem(&token, swapped.der(), &mac, now), "MAC");
    for byte in 0..request.der().len() {
        let mut touched = request.der().to_vec();
        touched[byte] ^= 1;
        refused(redeem(&token, &touched, &mac, now), "MAC");
        // Even by who has the secret: then the request itself does not hold.
        assert!(redeem(&token, &touched, &token.secret().mac(&touched), now).is_err(), "byte {byte}");
    }
    // Another token's MAC, and a token that this CA never made.
    let second = place.token(3);
    refused(redeem(&token, request.der(), &second.secret().mac(request.der()), now), "MAC");
    refused(place.redeem(&Place::new().token(3), &request), "not known");
    // Another key than the one that it was made for.
    let bound = tokens.make(ca, request.id(), HOUR, Some(&request.key_sha256())).unwrap();
    refused(place.redeem(&bound, &swapped), "another key");
    assert_eq!(place.issued(), []);
    assert!(place.redeem(&bound, &request).is_ok());
    // And what no token is made for.
    assert!(matches!(
        tokens.make(ca, &id(Role::Worker, 0), Duration::ZERO, None),
        Err(PkiError::Validity(_))
    ));
    refused(tokens.make(ca, &id(Role::Worker, 0), HOUR, Some("abc")), "64 hexadecimal digits");
    let elsewhere = testudo_transport::SpiffeId::new("testudo.test", "cifar", Role::Worker, "0").unwrap();
    assert!(matches!(tokens.make(ca, &elsewhere, HOUR, None), Err(PkiError::NotOurs { .. })));
}

/// Invariant 1 of `join`: an impostor hears nothing of the token.
#[tokio::test]
async fn a_node_tells_its_token_to_its_ca_alone() {
    let (place, impostor) = (Place::new(), Place::new());
    let service = impostor.serve(wide());
    let token = place.token(0);
    let home = place.path("worker-0");
    let told = join(&token, service.local_addr(), &home).await.unwrap_err();
    assert!(told.to_string().contains("its CA is not the one that the token names"), "{told}");
    assert_eq!((impostor.issued(), home.join(CERT_FILE).exists()), (vec![], false));
    // The right one still takes it.
    join(&token, place.serve(wide()).local_addr(), &home).await.unwrap();
}

async fn stranger(
    service: &Enrolment,
) -> Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
    stranger_at([127, 0, 0, 1], service).await
}

async fn stranger_at(
    address: [u8; 4],
    service: &Enrolment,
) -> Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
    let mut config = raw::client(None);
    config.alpn_protocols = vec![b"testudo-join/1".to_vec()];
    let endpoint = quinn::Endpoint::client(SocketAddr::from((address, 0))).unwrap();
    let connecting = endpoint.connect_with(raw::quic_client(config), service.local_addr(), "any").unwrap();
    let connection = connecting.await?;
    Ok((endpoint, connection))
}

/// Invariant 2 of `join`: who stalls, floods or talks nonsense holds one place for a while, and the next node joins.
#[tokio::test]
async fn strangers_hold_bounded_places_for_a_bounded_time() {
    let place = Place::new();
    let limits = JoinLimits { connections: 1, deadline: Duration::from_secs(2), ..wide() };
    let service = place.serve(limits);
    // Nonsense, and more bytes than any question has: closed, unanswered.
    for bytes in [vec![0xff; 100], vec![0; 64 << 10]] {
        let (_endpoint, connection) = loop {
            match stranger(&service).await {
                Ok(connected) => break connected,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let (mut tx, mut rx) = connection.open_bi().await.unwrap();
        // The other end may close before it has taken all.
        let _ = tx.write_all(&bytes).await;
        let _ = tx.finish();
        assert!(rx.read_to_end(1 << 20).await.map_or(true, |answer| answer.is_empty()));
        connection.closed().await;
    }
    // One that says nothing has the only place.
    let (_endpoint, silent) = loop {
        match stranger(&service).await {
            Ok(connected) => break connected,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    // Until its time is over: a node that comes meanwhile asks again by itself, and joins then.
    let joined = join(&place.token(0), service.local_addr(), &place.path("worker-0")).await;
    assert!(silent.close_reason().is_some(), "{joined:?}");
    joined.unwrap();
}

/// Invariants 2 and 4 of `join`: forty connections that say nothing have but their address's places.
#[tokio::test]
async fn one_address_shuts_nobody_out() {
    let place = Place::new();
    let (patience, deadline) = (HOUR, HOUR);
    let service = Arc::new(place.serve(JoinLimits { patience, deadline, ..wide() }));
    let mut silent = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let service = Arc::clone(&service);
        silent.spawn(async move { stranger_at([127, 0, 0, 2], &service).await });
    }
    // One has a place at some time, and soon after that all have who may. Who is ignored goes on asking.
    let first = tokio::time::timeout(HOUR, silent.join_next()).await.unwrap().unwrap().unwrap();
    let mut held = vec![first.unwrap()];
    while let Ok(Some(one)) = tokio::time::timeout(Duration::from_secs(1), silent.join_next()).await {
        held.extend(one.unwrap().ok());
    }
    silent.shutdown().await;
    assert!((1..=4).contains(&held.len()), "{} places", held.len());
    join(&place.token(0), service.local_addr(), &place.path("worker-0")).await.unwrap();
    assert!(held.iter().all(|(_, connection)| connection.close_reason().is_none()));
}

/// Invariant 2 of `join`: a question is there soon, or never.
#[tokio::test]
async fn who_asks_nothing_is_soon_gone() {
    let place = Place::new();
    let patience = Duration::from_millis(100);
    let service = place.serve(JoinLimits { patience, deadline: HOUR, ..wide() });
    let (_endpoint, silent) = stranger(&service).await.unwrap();
    let why = silent.closed().await;
    assert!(matches!(why, quinn::ConnectionError::ApplicationClosed(_)), "{why}");
}

/// Invariant 2 of `join`.
#[tokio::test]
async fn who_knocks_too_often_is_turned_away() {
    let place = Place::new();
    let service = place.serve(JoinLimits { per_second_each: 2, ..wide() });
    let mut met = 0;
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        // Who is ignored goes on asking.
        let met_now = tokio::time::timeout(Duration::from_millis(200), stranger(&service)).await;
        met += u32::from(met_now.is_ok_and(|met| met.is_ok()));
    }
    let most = 2 + 2 * u32::try_from(begun.elapsed().as_secs() + 1).unwrap();
    assert!(met >= 2 && met <= most, "{met} of {most} in {:?}", begun.elapsed());
}
