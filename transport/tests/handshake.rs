//! Who gets in. Each attack uses real QUIC on loopback. Invariants are those of the endpoint and of
//! `testudo_transport::pki`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{DAY, Job, id, policy};
use raw::{Credentials, client, client_with, good, issuer, leaf, provider, refused, sign};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::client::{Tls12Resumption, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
use rustls::{NamedGroup, pki_types::ServerName};
use testudo_transport::{
    BindError, Cause, ConnectError, CreditConfig, Endpoint, JobCa, KeyExchange, PkiError, Refused, Role,
    SpiffeId, TransportConfig, Who,
};

const WORKER: &str = "spiffe://testudo.test/job/mnist/worker/0";
const SERVER: &str = "spiffe://testudo.test/job/mnist/server/0";

fn patient() -> TransportConfig {
    TransportConfig { handshake_timeout: Duration::from_secs(60), ..TransportConfig::default() }
}

/// Certificates that no node of the job may get in with, each signed by the job's own CA unless it says so.
fn bad_credentials(job: &Job, good_uri: &str) -> Vec<(&'static str, Credentials)> {
    let issuer = issuer(&job.ca);
    let uris = |uris: &[&str]| sign(&leaf(uris), &issuer);
    let spoil = |spoil: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = leaf(&[good_uri]);
        spoil(&mut params);
        sign(&params, &issuer)
    };
    let (past, now) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(1970, 1, 1));
    let today = now + std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let foreign_ca = JobCa::create("testudo.test", "mnist", DAY).unwrap();
    let self_signed = {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = leaf(&[good_uri]).self_signed(&key).unwrap();
        Credentials { chain: vec![certificate.der().clone()], key: key.serialize_der() }
    };
    let long_chain = {
        let mut credentials = uris(&[good_uri]);
        credentials.chain.extend(vec![job.ca.trust().ca_der().into(); 4]);
        credentials
    };
    let no_ca_between = {
        let mut credentials = uris(&[good_uri]);
        credentials.chain.extend(uris(&[good_uri]).chain);
        credentials
    };
    let other_role = good_uri.replace("mnist", "cifar");
    vec![
        ("self-signed", self_signed),
        ("of another CA of the same name", good(&foreign_ca, &SpiffeId::parse(good_uri).unwrap())),
        ("expired", spoil(&|params| params.not_after = past)),
        ("not yet valid", spoil(&|params| params.not_before = today + DAY)),
        (
            "with a CA flag",
            spoil(&|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        ),
        ("for clients alone", spoil(&|params| params.extended_key_usages.truncate(1))),
        ("for servers alone", spoil(&|params| drop(params.extended_key_usages.remove(0)))),
        ("for no use", spoil(&|params| params.extended_key_usages.clear())),
        ("without key usage", spoil(&|params| params.key_usages.clear())),
        (
            "that may sign certificates",
            spoil(&|params| params.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign)),
        ),
        ("without a URI", uris(&[])),
        ("with two URIs", uris(&[good_uri, "spiffe://testudo.test/job/mnist/worker/1"])),
        ("with the same URI twice", uris(&[good_uri, good_uri])),
        ("of another job", uris(&[&other_role])),
        ("of another trust domain", uris(&[&good_uri.replace("testudo.test", "testudo.evil")])),
        ("with a percent escape", uris(&[&good_uri.replace("mnist", "mn%69st")])),
        ("with dot segments", uris(&[&good_uri.replace("/job/", "/job/../job/")])),
        ("with an unknown role", uris(&["spiffe://testudo.test/job/mnist/root/0"])),
        ("with a leading zero", uris(&[&good_uri.replace("/0", "/00")])),
        ("with a part", uris(&["spiffe://testudo.test/job/mnist/peer/0#server"])),
        ("with a chain of five", long_chain),
        ("with a node's certificate where a CA's belongs", no_ca_between),
    ]
}

#[tokio::test]
async fn no_bad_certificate_gets_in_as_a_client() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &patient());
    let address = endpoint.local_addr();
    let cases = bad_credentials(&job, WORKER);
    let count = cases.len() as u64;
    for (what, credentials) in cases {
        let why = refused(address, client(Some(&credentials))).await;
        assert!(matches!(why, quinn::ConnectionError::ConnectionClosed(_)), "{what}: {why}");
    }
    let why = refused(address, client(None)).await;
    assert!(why.to_string().contains("certificate"), "no certificate: {why}");

    // An honest node is let in, and is the first that the application sees.
    let honest = job.endpoint(Role::Worker, 0, &patient());
    let expect = id(Role::Server, 0);
    let (dialled, accepted) = tokio::join!(honest.connect(address, &expect), endpoint.accept());
    assert_eq!(accepted.unwrap().peer(), &id(Role::Worker, 0));
    drop(dialled.unwrap());
    // A refusal is counted a moment after the other end learns of it.
    while endpoint.stats().refused <= count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((endpoint.stats().accepted, endpoint.stats().refused), (1, count + 1));
    // By its cause, and by an address that has answered.
    let who = Who::address(Ipv4Addr::LOCALHOST.into());
    let expected = Refused { cause: Cause::Certificate, who, count: count + 1 };
    assert_eq!(endpoint.refusals().drain(), [expected]);
    assert!(endpoint.refusals().drain().is_empty());
}

/// Invariant 2: a client whose own handshake is done can open no stream until it is admitted.
#[tokio::test]
async fn nobody_opens_a_stream_before_admission() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &patient());
    let caller = raw::caller();
    let config = raw::quic_client(client(None));
    let connecting = caller.connect_with(config, endpoint.local_addr(), "any").unwrap();
    if let Ok(connection) = connecting.await {
        assert!(connection.open_bi().await.is_err());
    }
    assert_eq!(endpoint.stats().accepted, 0);
}

#[tokio::test]
async fn no_bad_certificate_is_dialled() {
    let job = Job::new();
    let dialling = job.endpoint(Role::Worker, 0, &patient());
    for (what, credentials) in bad_credentials(&job, SERVER) {
        let listening = raw::listen(raw::server(&credentials));
        let accepting = listening.clone();
        let task = tokio::spawn(async move {
            if let Some(incoming) = accepting.accept().await {
                drop(incoming.await);
            }
        });
        let error =
            dialling.connect(listening.local_addr().unwrap(), &id(Role::Server, 0)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Untrusted { .. }), "{what}: {error}");
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_dialler_takes_only_whom_it_asked_for() {
    let job = Job::new();
    let (worker, server) =
        (job.endpoint(Role::Worker, 0, &patient()), job.endpoint(Role::Server, 1, &patient()));
    for other in [id(Role::Server, 0), id(Role::Worker, 1), id(Role::Scheduler, 1)] {
        let error = worker.connect(server.local_addr(), &other).await.unwrap_err();
        let ConnectError::Untrusted { why: PkiError::Unexpected { found, expected }, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((found, expected), (&server.id().to_string(), &other.to_string()));
    }
    assert!(worker.connect(server.local_addr(), &id(Role::Server, 1)).await.is_ok());
    assert_eq!((worker.stats().dialled, worker.stats().dials_failed), (1, 3));
}

#[tokio::test]
async fn a_node_of_another_job_is_refused_by_both() {
    let (ours, theirs) = (Job::new(), JobCa::create("testudo.test", "cifar", DAY).unwrap());
    let server = ours.endpoint(Role::Server, 0, &patient());
    let stranger = SpiffeId::new("testudo.test", "cifar", Role::Worker, "0").unwrap();
    let identity = theirs.issue(&stranger, DAY).unwrap();
    let stranger = Endpoint::bind(&patient(), identity, policy()).unwrap();
    let error = stranger.connect(server.local_addr(), &id(Role::Server, 0)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { why: PkiError::Chain(_), .. }), "{error}");
}

#[tokio::test]
async fn another_application_protocol_is_refused() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &patient());
    let credentials = good(&job.ca, &id(Role::Worker, 0));
    for protocols in [vec![], vec![b"testudo/2".to_vec()], vec![b"h3".to_vec()]] {
        let mut config = client(Some(&credentials));
        config.alpn_protocols = protocols;
        let why = refused(endpoint.local_addr(), config).await;
        // TLS alert 120, no_application_protocol (RFC 7301, section 3.2).
        assert!(why.to_string().contains("error 120"), "{why}");
    }
    assert_eq!(endpoint.stats().accepted, 0);
    while endpoint.refusals().totals().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = endpoint.refusals().drain();
    assert_eq!(refused.iter().map(|r| r.cause).collect::<Vec<_>>(), [Cause::Handshake]);
}

#[tokio::test]
async fn key_exchange_without_a_post_quantum_part_is_refused_unless_configured() {
    let job = Job::new();
    let credentials = good(&job.ca, &id(Role::Worker, 0));
    let classical = || provider(Some(vec![X25519, SECP256R1]));
    let strict = job.endpoint(Role::Server, 0, &patient());
    let why = refused(strict.local_addr(), client_with(Some(&credentials), classical())).await;
    assert!(matches!(why, quinn::ConnectionError::ConnectionClosed(_)), "{why}");

    let lenient = TransportConfig { key_exchange: KeyExchange::PqFirst, ..patient() };
    let lenient = job.endpoint(Role::Server, 0, &lenient);
    let caller = raw::caller();
    let config = raw::quic_client(client_with(Some(&credentials), classical()));
    let connecting = caller.connect_with(config, lenient.local_addr(), "any").unwrap();
    let (_connection, accepted) = tokio::join!(async { connecting.await.unwrap() }, lenient.accept());
    assert_eq!(accepted.unwrap().peer(), &id(Role::Worker, 0));
    assert_eq!(X25519MLKEM768.name(), NamedGroup::X25519MLKEM768);
}

/// A store of session tickets that counts what it is given.
#[derive(Debug)]
struct Tickets(AtomicUsize, ClientSessionMemoryCache);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.1.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.1.kx_hint(name)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.1.take_tls13_ticket(name)
    }
}

/// A resumed session would skip the certificate checks.
#[tokio::test]
async fn no_ticket_is_issued_and_no_early_data_taken() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &patient());
    let tickets = Arc::new(Tickets(AtomicUsize::new(0), ClientSessionMemoryCache::new(8)));
    let mut config = client(Some(&good(&job.ca, &id(Role::Worker, 0))));
    config.enable_early_data = true;
    config.resumption =
        Resumption::store(Arc::clone(&tickets) as _).tls12_resumption(Tls12Resumption::Disabled);
    let config = raw::quic_client(config);
    let caller = raw::caller();
    for _ in 0..2 {
        let connecting = caller.connect_with(config.clone(), endpoint.local_addr(), "any").unwrap();
        let Err(connecting) = connecting.into_0rtt() else { panic!("early data was possible") };
        let (connection, accepted) = tokio::join!(connecting, endpoint.accept());
        // Tickets would come before the first grant, which is on the peer's first stream.
        let connection = connection.unwrap();
        let mut credit = connection.accept_uni().await.unwrap();
        credit.read_chunk(1, true).await.unwrap().unwrap();
        drop(accepted.unwrap());
    }
    assert_eq!(tickets.0.load(Ordering::Relaxed), 0);
}

/// Invariant 3: a handshake that does not go on is dropped, and holds up nobody.
#[tokio::test]
async fn a_stalled_handshake_is_dropped_and_holds_up_nobody() {
    let job = Job::new();
    let config = TransportConfig { handshake_timeout: Duration::from_secs(2), ..patient() };
    let endpoint = job.endpoint(Role::Server, 0, &config);
    let address = endpoint.local_addr();
    // A relay that carries the caller's first flight, and nothing back.
    let relay = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let relay_address = relay.local_addr().unwrap();
    let caller = raw::caller();
    let config = raw::quic_client(client(Some(&good(&job.ca, &id(Role::Worker, 9)))));
    let calling = tokio::spawn(caller.connect_with(config, relay_address, "any").unwrap());
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 65_536];
        // The ClientHello with a post-quantum key share takes two datagrams.
        for _ in 0..2 {
            let (len, _) = relay.recv_from(&mut buffer).unwrap();
            relay.send_to(&buffer[..len], address).unwrap();
        }
    })
    .await
    .unwrap();

    let honest = job.endpoint(Role::Worker, 0, &patient());
    let expect = id(Role::Server, 0);
    let (dialled, accepted) = tokio::join!(honest.connect(address, &expect), endpoint.accept());
    assert_eq!((dialled.unwrap().peer(), accepted.unwrap().peer()), (&expect, honest.id()));
    while endpoint.stats().timed_out == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    calling.abort();
}

/// Invariant 4.
#[tokio::test]
async fn newcomers_prove_their_address_when_many_are_at_the_door() {
    let job = Job::new();
    let config = TransportConfig { retry_after: 0, ..patient() };
    let endpoint = job.endpoint(Role::Server, 0, &config);
    let worker = job.endpoint(Role::Worker, 0, &patient());
    let expect = id(Role::Server, 0);
    let (dialled, accepted) = tokio::join!(worker.connect(endpoint.local_addr(), &expect), endpoint.accept());
    assert!(dialled.is_ok() && accepted.is_some());
    let stats = endpoint.stats();
    // Who waits long for the answer asks again, and is asked again.
    assert!(stats.retried >= 1 && stats.accepted == 1, "{stats:?}");
}

/// Invariant 4.
#[tokio::test]
async fn a_full_node_turns_newcomers_away_and_takes_them_again_later() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &TransportConfig { max_connections: 1, ..patient() });
    let (first, second) =
        (job.endpoint(Role::Worker, 0, &patient()), job.endpoint(Role::Worker, 1, &patient()));
    let expect = id(Role::Server, 0);
    let (dialled, accepted) = tokio::join!(first.connect(endpoint.local_addr(), &expect), endpoint.accept());
    let error = second.connect(endpoint.local_addr(), &expect).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    // Who waits long for the answer may have knocked twice.
    assert!(endpoint.stats().turned_away >= 1 && endpoint.stats().open == 1, "{:?}", endpoint.stats());

    drop((dialled, accepted));
    while endpoint.stats().open > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(second.connect(endpoint.local_addr(), &expect).await.is_ok());
    // And a node that is full itself does not dial.
    let full = job.endpoint(Role::Worker, 2, &TransportConfig { max_connections: 1, ..patient() });
    let other = job.endpoint(Role::Server, 5, &patient());
    let held = full.connect(other.local_addr(), &id(Role::Server, 5)).await.unwrap();
    let error = full.connect(other.local_addr(), &id(Role::Server, 5)).await.unwrap_err();
    assert_eq!(error, ConnectError::Full(1));
    drop(held);
}

/// One identity holds so many connections of ours and no more, whoever uses its key; others come in, and so does it again
/// when it has closed one.
#[tokio::test]
async fn one_peer_has_a_bounded_number_of_connections() {
    let job = Job::new();
    let endpoint =
        job.endpoint(Role::Server, 0, &TransportConfig { max_connections_per_peer: 2, ..patient() });
    let (greedy, other) =
        (job.endpoint(Role::Worker, 0, &patient()), job.endpoint(Role::Worker, 1, &patient()));
    let (address, expect) = (endpoint.local_addr(), id(Role::Server, 0));
    let (first, theirs) = tokio::join!(greedy.connect(address, &expect), endpoint.accept());
    let (second, _theirs) = tokio::join!(greedy.connect(address, &expect), endpoint.accept());
    assert!(first.is_ok() && second.is_ok());
    let error = greedy.connect(address, &expect).await.unwrap_err();
    assert!(error.to_string().contains("has 2 connections already"), "{error}");
    let (neighbour, _theirs_too) = tokio::join!(other.connect(address, &expect), endpoint.accept());
    assert!(neighbour.is_ok());
    drop((first, theirs));
    while endpoint.stats().open > 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(greedy.connect(address, &expect).await.is_ok());
}

#[tokio::test]
async fn a_node_that_is_not_there_is_reported_by_name() {
    let job = Job::new();
    let config = TransportConfig { handshake_timeout: Duration::from_millis(200), ..patient() };
    let worker = job.endpoint(Role::Worker, 0, &config);
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let error = worker.connect(silent.local_addr().unwrap(), &id(Role::Server, 0)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { milliseconds: 200, .. }), "{error}");
    assert!(error.to_string().contains("server/0"), "{error}");
}

#[tokio::test]
async fn an_address_in_use_is_reported_with_what_to_do() {
    let job = Job::new();
    let first = job.endpoint(Role::Server, 0, &patient());
    let config = TransportConfig { listen: first.local_addr(), ..patient() };
    let error = Endpoint::bind(&config, job.identity(Role::Server, 1), policy()).unwrap_err();
    assert_eq!(error, BindError::InUse(first.local_addr()));
    assert!(error.to_string().contains("ss -lunp"), "{error}");
    let elsewhere = SocketAddr::from(([192, 0, 2, 1], 0));
    let config = TransportConfig { listen: elsewhere, ..patient() };
    let error = Endpoint::bind(&config, job.identity(Role::Server, 1), policy()).unwrap_err();
    assert!(matches!(error, BindError::Address { address, .. } if address == elsewhere), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let job = Job::new();
    let small = CreditConfig { bytes: 1 << 20, messages: 8 };
    for (what, config) in [
        ("data credit", TransportConfig { data_credit: small, ..patient() }),
        ("mtu", TransportConfig { mtu: 1199, ..patient() }),
        ("mtu", TransportConfig { mtu: 65_528, ..patient() }),
        ("keep_alive", TransportConfig { keep_alive: Duration::from_secs(15), ..patient() }),
        ("max_streams", TransportConfig { max_streams: 0, ..patient() }),
        (
            "no message",
            TransportConfig { control_credit: CreditConfig { bytes: 1 << 20, messages: 0 }, ..patient() },
        ),
    ] {
        let error = Endpoint::bind(&config, job.identity(Role::Server, 0), policy()).unwrap_err();
        assert!(matches!(&error, BindError::Config(why) if why.contains(what)), "{what}: {error}");
    }
}

#[test]
fn binding_outside_a_runtime_is_an_error_and_no_panic() {
    let error = Endpoint::bind(&patient(), Job::new().identity(Role::Server, 0), policy()).unwrap_err();
    assert_eq!(error, BindError::NoRuntime);
}

#[tokio::test]
async fn a_closed_endpoint_ends_its_connections_and_its_accept() {
    let job = Job::new();
    let (server, worker) =
        (job.endpoint(Role::Server, 0, &patient()), job.endpoint(Role::Worker, 0, &patient()));
    let expect = id(Role::Server, 0);
    let (dialled, accepted) = tokio::join!(worker.connect(server.local_addr(), &expect), server.accept());
    let (dialled, _accepted) = (dialled.unwrap(), accepted.unwrap());
    server.close(300, "maintenance");
    assert!(dialled.closed().await.to_string().contains("maintenance"));
    assert!(server.accept().await.is_none());
    server.wait_idle().await;
    assert_eq!(server.stats().open, 0);
}
