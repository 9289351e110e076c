//! Certificates that are renewed while connections live. Invariants are those of `connection/renewal.rs`, and 1 of
//! `endpoint/standing.rs`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::{BEAT, DAY, Job, id, policy};
use raw::Hostile;
use testudo_transport::pki::WallClock;
use testudo_transport::session::{Direction, RENEWAL_KIND, Renewed};
use testudo_transport::{
    Class, CloseCode, Connection, Endpoint, Error, Identity, JobCa, Outgoing, PkiError, Role,
    TransportConfig, encode,
};

const HOUR: Duration = Duration::from_secs(3600);
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A clock that a test sets.
#[derive(Clone)]
struct Hands(Arc<Mutex<SystemTime>>);

impl WallClock for Hands {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

struct Cast {
    job: Job,
    clock: Hands,
    server: Identity,
    worker: Identity,
}

impl Cast {
    /// Two nodes by one clock, whose certificates have an hour.
    fn new() -> Cast {
        let (job, clock) = (Job::new(), Hands(Arc::new(Mutex::new(SystemTime::now()))));
        let [server, worker] = [Role::Server, Role::Worker]
            .map(|role| job.ca.issue(&id(role, 0), HOUR).unwrap().with_clock(Arc::new(clock.clone())));
        Cast { job, clock, server, worker }
    }

    fn next(&self, identity: &Identity) -> Identity {
        self.job.ca.issue(identity.id(), DAY).unwrap()
    }

    fn later(&self) {
        *self.clock.0.lock().unwrap() += 2 * HOUR;
    }
}

fn bind(identity: &Identity) -> Endpoint {
    let config = TransportConfig { handshake_timeout: PATIENCE, ..TransportConfig::default() };
    Endpoint::bind(&config, identity.clone(), policy()).unwrap()
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

async fn connected(from: &Endpoint, to: &Endpoint) -> (Connection, Connection) {
    let (dialled, accepted) = tokio::join!(from.connect(to.local_addr(), to.id()), to.accept());
    (dialled.unwrap(), accepted.unwrap())
}

/// Waits until `connection` has taken a renewed certificate of its peer.
async fn renewed(connection: &Connection) {
    in_time("a renewed certificate", async {
        while connection.stats().renewals == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn pulse(from: &Connection, to: &Connection) {
    let (mut tx, _rx) = from.open(Class::Control, 0).await.unwrap();
    tx.send(Outgoing::new(BEAT, 7, Vec::new())).await.unwrap();
    let (_tx, mut rx) = in_time("a stream", to.accept()).await.unwrap();
    assert_eq!(in_time("a pulse", rx.recv()).await.unwrap().unwrap().envelope.request, 7);
}

#[tokio::test]
async fn a_connection_goes_on_when_both_ends_renew_in_time() {
    let cast = Cast::new();
    let (listening, dialling) = (bind(&cast.server), bind(&cast.worker));
    let (dialled, accepted) = connected(&dialling, &listening).await;
    pulse(&dialled, &accepted).await;
    assert_eq!(cast.worker.succeed(&cast.next(&cast.worker)), Ok(true));
    assert_eq!(cast.server.succeed(&cast.next(&cast.server)), Ok(true));
    tokio::join!(renewed(&dialled), renewed(&accepted));
    cast.later();
    assert_eq!((listening.recheck(), dialling.recheck()), (0, 0));
    pulse(&dialled, &accepted).await;
    pulse(&accepted, &dialled).await;
    // New handshakes show the new certificates: the old ones have ended.
    let (again, _kept) = connected(&dialling, &listening).await;
    assert_eq!(again.stats().renewals, 0, "it began with the new one");
    assert_eq!((listening.recheck(), dialling.recheck()), (0, 0));
}

#[tokio::test]
async fn a_connection_ends_with_a_certificate_that_nobody_renewed() {
    let cast = Cast::new();
    let (listening, dialling) = (bind(&cast.server), bind(&cast.worker));
    let (dialled, accepted) = connected(&dialling, &listening).await;
    // Only one end renews: the other's certificate is the one that ends the connection.
    cast.server.succeed(&cast.next(&cast.server)).unwrap();
    renewed(&dialled).await;
    cast.later();
    // Each endpoint looks by itself every second.
    let ended = in_time("the end", accepted.closed()).await;
    let Error::Closed { by_peer: false, code, reason, .. } = &ended else { panic!("{ended}") };
    assert_eq!(*code, CloseCode::Untrusted.number());
    assert!(reason.contains("the certificate of worker/0 has ended"), "{reason}");
    let told = in_time("the end", dialled.closed()).await;
    assert!(matches!(told, Error::Closed { by_peer: true, .. }), "{told}");
    assert!(dialling.connect(listening.local_addr(), listening.id()).await.is_err(), "and none begins");
}

#[test]
fn only_the_same_identity_of_the_same_ca_follows() {
    let cast = Cast::new();
    let before = cast.worker.latest().certificate_der().to_vec();
    let other = cast.job.identity(Role::Worker, 1);
    assert!(matches!(cast.worker.succeed(&other), Err(PkiError::Unexpected { .. })));
    let foreign = Job::new().identity(Role::Worker, 0);
    assert!(matches!(cast.worker.succeed(&foreign), Err(PkiError::Chain(_))));
    assert_eq!(cast.worker.succeed(&cast.worker), Ok(false), "it is the one");
    assert_eq!(cast.worker.latest().certificate_der(), before);
    cast.later();
    let short = cast.job.ca.issue(cast.worker.id(), HOUR).unwrap();
    assert!(matches!(cast.worker.succeed(&short), Err(PkiError::Chain(_))), "it has ended");
}

/// A node made by hand, and what it says on the transport's own stream.
struct Scene {
    job: Job,
    endpoint: Endpoint,
    hostile: Hostile,
    connection: Connection,
}

async fn scene() -> Scene {
    let job = Job::new();
    let endpoint = bind(&job.identity(Role::Server, 0));
    let (hostile, connection) =
        tokio::join!(Hostile::dial(&job.ca, endpoint.local_addr()), endpoint.accept());
    Scene { job, endpoint, hostile, connection: connection.unwrap() }
}

impl Scene {
    async fn say(&self, bodies: &[Vec<u8>]) -> quinn::SendStream {
        let mut stream = self.hostile.quic.open_uni().await.unwrap();
        let mut sealer = self.hostile.sealer(stream.id());
        for body in bodies {
            let frame = self.hostile.frame(&mut sealer, RENEWAL_KIND, body, b"");
            // The other end may close before it has taken all.
            let _ = stream.write_all(&frame).await;
        }
        stream
    }

    /// `identity`'s certificate, signed for `direction` of the connection of `with`.
    fn proof(with: &Hostile, direction: Direction, identity: &Identity) -> Renewed {
        let certificate = identity.certificate_der().to_vec();
        let signature = identity.sign(&with.secret.renewal(direction, &certificate)).unwrap();
        Renewed { certificate, signature }
    }

    async fn cut_off(self, bodies: &[Vec<u8>], code: CloseCode, words: &str) {
        let _stream = self.say(bodies).await;
        let (number, reason) = in_time("the verdict", self.hostile.verdict()).await;
        assert_eq!(number, u64::from(code.number()), "{reason}");
        assert!(reason.contains(words), "{reason}");
        assert!(matches!(self.connection.closed().await, Error::Peer { .. }));
        assert_eq!(self.endpoint.stats().accepted, 1);
    }
}

fn worker(ca: &JobCa, index: u32) -> Identity {
    ca.issue(&id(Role::Worker, index), HOUR).unwrap()
}

/// Invariant 1.
#[tokio::test]
async fn a_hand_made_peer_renews_as_ours_do() {
    let scene = scene().await;
    let next = worker(&scene.job.ca, 0);
    let _stream = scene.say(&[encode(&Scene::proof(&scene.hostile, Direction::FromInitiator, &next))]).await;
    renewed(&scene.connection).await;
    assert_eq!(scene.connection.stats().refused, 0);
}

/// Invariant 1.
#[tokio::test]
async fn a_certificate_is_shown_by_its_holder_and_for_this_connection() {
    use Direction::{FromAcceptor, FromInitiator};
    let good = |scene: &Scene| worker(&scene.job.ca, 0);

    let s = scene().await;
    let others = encode(&Scene::proof(&s.hostile, FromInitiator, &worker(&s.job.ca, 1)));
    s.cut_off(&[others], CloseCode::Untrusted, "worker/1").await;

    let s = scene().await;
    let foreign = encode(&Scene::proof(&s.hostile, FromInitiator, &worker(&Job::new().ca, 0)));
    s.cut_off(&[foreign], CloseCode::Untrusted, "chain").await;

    let s = scene().await;
    let reflected = encode(&Scene::proof(&s.hostile, FromAcceptor, &good(&s)));
    s.cut_off(&[reflected], CloseCode::Untrusted, "signature does not verify").await;

    // Somebody else's certificate of this identity, without its key.
    let s = scene().await;
    let keyless = Renewed {
        certificate: good(&s).certificate_der().to_vec(),
        ..Scene::proof(&s.hostile, FromInitiator, &good(&s))
    };
    s.cut_off(&[encode(&keyless)], CloseCode::Untrusted, "signature does not verify").await;

    // What was good on another connection.
    let (s, other) = (scene().await, scene().await);
    let carried = encode(&Scene::proof(&other.hostile, FromInitiator, &good(&s)));
    s.cut_off(&[carried], CloseCode::Untrusted, "signature does not verify").await;

    let s = scene().await;
    s.cut_off(&[b"nonsense".to_vec()], CloseCode::Framing, "Renewed").await;
    let s = scene().await;
    s.cut_off(&[vec![0; 25 << 10]], CloseCode::Credit, "too long").await;
}

/// Invariant 2.
#[tokio::test]
async fn renewals_have_a_rate() {
    let s = scene().await;
    let proof = |_| encode(&Scene::proof(&s.hostile, Direction::FromInitiator, &worker(&s.job.ca, 0)));
    // Eight at once, and as many more as a slow machine has ten seconds for.
    let proofs: Vec<_> = (0..16).map(proof).collect();
    s.cut_off(&proofs, CloseCode::Credit, "too fast").await;

    let s = scene().await;
    let proof = encode(&Scene::proof(&s.hostile, Direction::FromInitiator, &worker(&s.job.ca, 0)));
    s.cut_off(&[proof.clone(), proof], CloseCode::Credit, "shown already").await;
}

/// Kind 60 is the transport's own: among actors' messages there is none.
#[tokio::test]
async fn a_renewal_on_a_stream_of_messages_is_refused() {
    let s = scene().await;
    let next = worker(&s.job.ca, 0);
    let proof = encode(&Scene::proof(&s.hostile, Direction::FromInitiator, &next));
    let (mut tx, _rx) = s.hostile.quic.open_bi().await.unwrap();
    let frame = s.hostile.frame(&mut s.hostile.sealer(tx.id()), RENEWAL_KIND, &proof, b"");
    tx.write_all(&frame).await.unwrap();
    let (_tx, mut rx) = s.connection.accept().await.unwrap();
    assert!(rx.recv().await.is_err());
    let (number, reason) = s.hostile.verdict().await;
    assert_eq!(number, u64::from(CloseCode::Policy.number()), "{reason}");
}
