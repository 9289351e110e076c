//! What a node takes in of peers that have said nothing yet: next to nothing, and of strangers nothing if it only dials.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::time::Duration;

use common::{Job, PUSH, id};
use raw::Hostile;
use testudo_transport::{Class, ConnectError, Outgoing, Role, TransportConfig};

/// What a connection may hold before its peer is heard.
const UNHEARD: usize = 64 << 10;
/// Long after everything that may be taken without an answer has been.
const QUIET: Duration = Duration::from_millis(300);
/// Far longer than answers take.
const PATIENCE: Duration = Duration::from_secs(60);

fn patient() -> TransportConfig {
    TransportConfig { handshake_timeout: PATIENCE, ..TransportConfig::default() }
}

/// Writes on a stream of its own until nothing more is taken for so long; how much that was, up to `most`.
async fn pour(peer: &Hostile, most: usize, quiet: Duration) -> usize {
    let (mut tx, _rx) = peer.quic.open_bi().await.unwrap();
    let (some, mut taken) = (vec![7; 16 << 10], 0);
    while taken < most {
        match tokio::time::timeout(quiet, tx.write(&some)).await {
            Ok(written) => taken += written.unwrap(),
            Err(_) => break,
        }
    }
    taken
}

/// The endpoint's invariant 2: whatever credit there is, an authenticated peer that has said nothing cannot fill a node with what
/// nobody reads; one that has said something may have its credit on the way.
#[tokio::test]
async fn a_peer_is_heard_before_it_may_send_much() {
    let job = Job::new();
    let endpoint = job.endpoint(Role::Server, 0, &patient());
    let (peer, connection) = tokio::join!(Hostile::dial(&job.ca, endpoint.local_addr()), endpoint.accept());
    let connection = connection.unwrap();
    let (mut first, _answers) = peer.quic.open_bi().await.unwrap();
    let word = peer.frame(&mut peer.sealer(first.id()), PUSH, b"", b"a word");
    first.write_all(&word).await.unwrap();
    let taken = pour(&peer, 4 * UNHEARD, QUIET).await;
    assert!((UNHEARD / 2..=UNHEARD).contains(&taken), "{taken} bytes were taken in for nobody");
    let (_tx, mut rx) = connection.accept().await.unwrap();
    assert_eq!(rx.recv().await.unwrap().unwrap().payload.as_bytes(), b"a word");
    let taken = pour(&peer, 4 << 20, PATIENCE).await;
    assert!(taken >= 4 << 20, "{taken}");
}

/// Who has no business being dialled answers nobody, and dials.
#[tokio::test]
async fn a_node_that_only_dials_answers_nobody() {
    let job = Job::new();
    let worker = job.endpoint(Role::Worker, 0, &TransportConfig { accepts: false, ..patient() });
    let hasty = TransportConfig { handshake_timeout: Duration::from_millis(300), ..patient() };
    let stranger = job.endpoint(Role::Server, 1, &hasty);
    let error = stranger.connect(worker.local_addr(), &id(Role::Worker, 0)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    // The stranger may give up before its packet is taken in.
    let taken_in = async {
        while worker.stats().sieve.newcomers == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken_in).await.expect("a newcomer's packet");
    let stats = worker.stats();
    assert_eq!((stats.accepted, stats.refused, stats.open), (0, 0, 0));
    assert!(worker.accept().await.is_none(), "there is nobody to wait for");

    let server = job.endpoint(Role::Server, 0, &patient());
    let expect = id(Role::Server, 0);
    let (dialled, accepted) = tokio::join!(worker.connect(server.local_addr(), &expect), server.accept());
    let (mut tx, _rx) = dialled.unwrap().open(Class::Data, 0).await.unwrap();
    tx.send(Outgoing::new(PUSH, 3, Vec::new())).await.unwrap();
    let (_tx, mut rx) = accepted.unwrap().accept().await.unwrap();
    assert_eq!(rx.recv().await.unwrap().unwrap().envelope.request, 3);
}
