//! The door of an endpoint, on real sockets: `endpoint/door.rs` has its rules, and tests of each.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::time::Duration;

use common::{DAY, Job, id, policy};
use raw::{client, good, refused};
use testudo_transport::{
    Cause, Class, ConnectError, Endpoint, EndpointStats, JobCa, Outgoing, Rate, Role, TransportConfig,
};

fn patient() -> TransportConfig {
    TransportConfig { handshake_timeout: Duration::from_secs(60), ..TransportConfig::default() }
}

async fn until(endpoint: &Endpoint, holds: impl Fn(EndpointStats) -> bool) {
    let waited = async {
        while !holds(endpoint.stats()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let what = format!("{:?}", endpoint.stats());
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect(&what);
}

/// Another network's caller hears nothing, whoever it is; one from an allowed network comes in.
#[tokio::test]
async fn callers_from_networks_that_are_not_allowed_hear_nothing() {
    let job = Job::new();
    let allow = |net: &str| TransportConfig { allow: vec![net.parse().unwrap()], ..patient() };
    let (closed, open) = (
        job.endpoint(Role::Server, 0, &allow("10.0.0.0/8")),
        job.endpoint(Role::Server, 1, &allow("127.0.0.0/8")),
    );
    let short = TransportConfig { handshake_timeout: Duration::from_millis(300), ..patient() };
    let hasty = job.endpoint(Role::Worker, 0, &short);
    let error = hasty.connect(closed.local_addr(), &id(Role::Server, 0)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    // The caller may give up before its packet is taken in.
    until(&closed, |stats| stats.sieve.not_allowed >= 1).await;
    let stats = closed.stats();
    assert_eq!(stats.retried + stats.accepted + stats.refused, 0, "{stats:?}");
    let counted = closed.refusals().totals().get(&Cause::Address).copied();
    let seen = closed.stats().sieve.not_allowed;
    assert!(counted >= Some(stats.sieve.not_allowed) && counted <= Some(seen), "{counted:?} of {seen}");
    let worker = job.endpoint(Role::Worker, 1, &patient());
    assert!(worker.connect(open.local_addr(), &id(Role::Server, 1)).await.is_ok());
}

/// An address whose handshakes fail is shut out for a while; one that is known to be honest is not, unless it fails too.
#[tokio::test]
async fn an_address_that_fails_is_shut_out() {
    let job = Job::new();
    // Nothing is gained back by waiting: this does not depend on how long it takes.
    let handshakes_per_address = Rate { per_second: 0, burst: 20 };
    let config = TransportConfig { retry_after: 0, handshakes_per_address, ..patient() };
    let endpoint = job.endpoint(Role::Server, 0, &config);
    let foreign = JobCa::create("testudo.test", "mnist", DAY).unwrap();
    let stranger = good(&foreign, &id(Role::Worker, 0));
    for _ in 0..3 {
        refused(endpoint.local_addr(), client(Some(&stranger))).await;
    }
    until(&endpoint, |stats| stats.refused == 3).await;
    let short = TransportConfig { handshake_timeout: Duration::from_millis(300), ..patient() };
    let worker = job.endpoint(Role::Worker, 0, &short);
    // It may give up before it has proved its address, and been ignored for it: then it tries again.
    let ignored = async {
        while endpoint.stats().over_rate == 0 {
            let error = worker.connect(endpoint.local_addr(), &id(Role::Server, 0)).await.unwrap_err();
            assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ignored).await.expect("it is ignored");
    assert_eq!(endpoint.stats().accepted, 0);
}

/// A flood of handshakes costs no more of them than the rate.
#[tokio::test]
async fn all_together_have_a_rate() {
    let job = Job::new();
    let handshakes = Rate { per_second: 0, burst: 3 };
    let endpoint =
        job.endpoint(Role::Server, 0, &TransportConfig { retry_after: 0, handshakes, ..patient() });
    let foreign = JobCa::create("testudo.test", "mnist", DAY).unwrap();
    let stranger = good(&foreign, &id(Role::Worker, 0));
    let address = endpoint.local_addr();
    let callers: Vec<_> = (0..12)
        .map(|_| {
            let config = client(Some(&stranger));
            tokio::spawn(async move { refused(address, config).await })
        })
        .collect();
    until(&endpoint, |stats| stats.refused == 3 && stats.over_rate >= 9).await;
    callers.into_iter().for_each(|caller| caller.abort());
    assert_eq!(endpoint.stats().refused, 3);
}

/// A peer that connects over and over is told that it is too often, and its neighbour is not.
#[tokio::test]
async fn one_identity_has_a_rate() {
    let job = Job::new();
    let handshakes_per_peer = Rate { per_second: 0, burst: 2 };
    let endpoint = Endpoint::bind(
        &TransportConfig { handshakes_per_peer, ..patient() },
        job.identity(Role::Server, 0),
        policy(),
    );
    let endpoint = endpoint.unwrap();
    let (hasty, other) =
        (job.endpoint(Role::Worker, 0, &patient()), job.endpoint(Role::Worker, 1, &patient()));
    let expect = id(Role::Server, 0);
    for _ in 0..2 {
        drop(hasty.connect(endpoint.local_addr(), &expect).await.unwrap());
    }
    let error = hasty.connect(endpoint.local_addr(), &expect).await.unwrap_err();
    assert!(error.to_string().contains("connects too often"), "{error}");
    assert_eq!(endpoint.stats().peers_over_rate, 1);
    assert!(other.connect(endpoint.local_addr(), &expect).await.is_ok());
}

/// An address has half of the connections; who has none yet is let in all the same.
#[tokio::test]
async fn one_address_has_its_share_and_keeps_no_neighbour_out() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &TransportConfig { max_connections: 4, ..patient() });
    let (address, expect) = (endpoint.local_addr(), id(Role::Server, 0));
    let (greedy, neighbour) =
        (job.endpoint(Role::Worker, 0, &patient()), job.endpoint(Role::Worker, 1, &patient()));
    let mut held = Vec::new();
    for _ in 0..2 {
        let (dialled, accepted) = tokio::join!(greedy.connect(address, &expect), endpoint.accept());
        held.push((dialled.unwrap(), accepted.unwrap()));
    }
    let error = greedy.connect(address, &expect).await.unwrap_err();
    assert!(error.to_string().contains("all that one address may have"), "{error}");
    assert!(neighbour.connect(address, &expect).await.is_ok());
}

/// Garbage and forged beginnings are dropped before anything is computed for them, a connection that lives notices
/// nothing, and when the flood is over others come in again.
#[tokio::test]
async fn a_flood_of_datagrams_is_sieved_out() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &patient());
    let (worker, late) =
        (job.endpoint(Role::Worker, 0, &patient()), job.endpoint(Role::Worker, 1, &patient()));
    let (address, expect) = (endpoint.local_addr(), id(Role::Server, 0));
    let (dialled, accepted) = tokio::join!(worker.connect(address, &expect), endpoint.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    let flooding = std::thread::spawn(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.2:0").unwrap();
        socket.connect(address).unwrap();
        for packet in 0..60_000_u64 {
            // By turns garbage, another version, a short header of nobody's, and a newcomer with an id of its own.
            let first = [0x00, 0xc0, 0x40, 0xc0][(packet % 4) as usize];
            let version = if packet % 4 == 3 { 1_u32 } else { 0xabad_1dea };
            let mut datagram = [&[first][..], &version.to_be_bytes(), &[8], &packet.to_be_bytes()].concat();
            datagram.resize(if packet % 4 == 3 { 1200 } else { 100 }, 0);
            let _ = socket.send(&datagram);
        }
    });
    let (mut sender, _replies) = dialled.open(Class::Control, 0).await.unwrap();
    sender.send(Outgoing::new(common::BEAT, 1, Vec::new())).await.unwrap();
    let (_, mut receiver) = accepted.accept().await.unwrap();
    assert!(receiver.recv().await.unwrap().is_some());
    flooding.join().unwrap();
    until(&endpoint, |stats| stats.sieve.raised >= 1 || stats.sieve.malformed >= 10_000).await;
    let stats = endpoint.stats();
    assert!(stats.sieve.malformed >= 200, "{stats:?}");
    assert!(stats.accepted == 1 && stats.refused == 0, "{stats:?}");
    let back = late.connect(address, &expect).await;
    assert!(back.is_ok(), "{back:?}");
    sender.send(Outgoing::new(common::BEAT, 2, Vec::new())).await.unwrap();
    assert!(receiver.recv().await.unwrap().is_some());
}

/// What peers are promised together is never more than there is, and is given back.
#[tokio::test]
async fn a_node_promises_no_more_memory_than_it_has() {
    let job = Job::new();
    let memory = patient().promise() * 2;
    let endpoint = job.endpoint(Role::Server, 0, &TransportConfig { memory, ..patient() });
    let (address, expect) = (endpoint.local_addr(), id(Role::Server, 0));
    let workers: Vec<Endpoint> = (0..3).map(|index| job.endpoint(Role::Worker, index, &patient())).collect();
    let (first, theirs) = tokio::join!(workers[0].connect(address, &expect), endpoint.accept());
    let (second, _theirs) = tokio::join!(workers[1].connect(address, &expect), endpoint.accept());
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(endpoint.stats().promised_bytes, memory);
    let error = workers[2].connect(address, &expect).await.unwrap_err();
    assert!(error.to_string().contains("promised to others"), "{error}");
    assert_eq!((endpoint.stats().out_of_memory, endpoint.stats().promised_bytes), (1, memory));
    let error = endpoint.connect(workers[2].local_addr(), &id(Role::Worker, 2)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Memory(..)), "{error}");
    drop((first, theirs));
    until(&endpoint, |stats| stats.promised_bytes < memory).await;
    assert!(workers[2].connect(address, &expect).await.is_ok());
}
