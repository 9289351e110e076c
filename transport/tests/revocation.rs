//! Revoked nodes, and lists of them: before a connection and during one, in both directions; lists that have ended; files
//! that are put in a list's place. Invariants are those of `endpoint/standing.rs` and `pki/revocation.rs`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::{DAY, Job, policy};
use testudo_transport::pki::{
    CLOCK_SKEW, Crl, CrlError, Revocation, RevocationList, Serial, WallClock, describe,
};
use testudo_transport::{
    CloseCode, ConnectError, Connection, Endpoint, Error, Identity, PkiError, Role, TransportConfig,
};

const HOUR: Duration = Duration::from_secs(3600);
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A clock that a test sets.
#[derive(Clone)]
struct Hands(Arc<Mutex<SystemTime>>);

impl Hands {
    fn new() -> Hands {
        Hands(Arc::new(Mutex::new(SystemTime::now())))
    }

    fn on(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl WallClock for Hands {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

fn patient() -> TransportConfig {
    TransportConfig { handshake_timeout: PATIENCE, ..TransportConfig::default() }
}

fn bind(identity: &Identity) -> Endpoint {
    Endpoint::bind(&patient(), identity.clone(), policy()).unwrap()
}

fn serial(identity: &Identity) -> Serial {
    Serial::from_hex(&describe(identity.certificate_pem().as_bytes()).unwrap().serial).unwrap()
}

/// The CA's next list, after `last`, with these too.
fn next(job: &Job, last: Option<&Crl>, revoked: &[&Identity]) -> Crl {
    let mut list = last.map_or_else(RevocationList::default, |last| RevocationList::after(last).unwrap());
    for identity in revoked {
        list.revoke(serial(identity), Revocation { at: 1_700_000_000, compromised: true });
    }
    job.ca.sign_crl(&list, HOUR).unwrap()
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

async fn connected(from: &Endpoint, to: &Endpoint) -> (Connection, Connection) {
    let (dialled, accepted) = tokio::join!(from.connect(to.local_addr(), to.id()), to.accept());
    (dialled.unwrap(), accepted.unwrap())
}

/// How a connection ended, on either side.
async fn closed(connection: &Connection) -> (bool, u32, String) {
    match in_time("the connection's end", connection.closed()).await {
        Error::Closed { by_peer, code, reason, .. } => (by_peer, code, reason.to_string()),
        other => panic!("{other}"),
    }
}

struct Cast {
    job: Job,
    server: Identity,
    worker: Identity,
    other: Identity,
}

impl Cast {
    fn new() -> Cast {
        let job = Job::new();
        let [server, worker, other] = [(Role::Server, 0), (Role::Worker, 0), (Role::Worker, 1)]
            .map(|(role, index)| job.identity(role, index));
        Cast { job, server, worker, other }
    }
}

#[tokio::test]
async fn a_revoked_node_is_neither_let_in_nor_dialled() {
    let Cast { job, server, worker, other } = Cast::new();
    let (listening, bad, good) = (bind(&server), bind(&worker), bind(&other));
    listening.install_crl(next(&job, None, &[&worker]).der()).unwrap();
    let refused = bad.connect(listening.local_addr(), listening.id()).await.unwrap_err();
    // TLS alert 44, certificate_revoked (RFC 8446, section 6.2).
    assert!(matches!(&refused, ConnectError::Refused { why, .. } if why.contains("error 44")), "{refused}");
    // A refusal is counted a moment after the other end learns of it.
    in_time("the refusal", async {
        while listening.stats().refused == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!((listening.stats().refused, listening.stats().accepted), (1, 0));
    // Others are none the worse, and the same identity under a new certificate is let in: lists have certificates, not names.
    connected(&good, &listening).await;
    let renewed = bind(&job.identity(Role::Worker, 0));
    connected(&renewed, &listening).await;

    // The other direction.
    good.install_crl(next(&job, None, &[&server]).der()).unwrap();
    let refused = good.connect(listening.local_addr(), listening.id()).await.unwrap_err();
    let ConnectError::Untrusted { why: PkiError::Revoked { id, serial: shown }, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!((id.as_str(), shown), ("server/0", &serial(&server).to_string()));
}

/// Invariant 1 of `endpoint/standing.rs`, at both ends.
#[tokio::test]
async fn a_node_that_is_revoked_while_connected_is_cut_off_and_others_are_not() {
    let Cast { job, server, worker, other } = Cast::new();
    let (listening, bad, good) = (bind(&server), bind(&worker), bind(&other));
    let (dialled, accepted) = connected(&bad, &listening).await;
    let (kept, _kept) = connected(&good, &listening).await;
    let list = next(&job, None, &[&worker]);
    assert_eq!(listening.install_crl(list.der()).unwrap().revoked, 1);
    let (by_peer, code, reason) = closed(&accepted).await;
    assert_eq!((by_peer, code), (false, CloseCode::Untrusted.number()));
    assert!(reason.contains("certificate of worker/0 is revoked"), "{reason}");
    assert_eq!(closed(&dialled).await, (true, code, reason), "the peer is told");
    assert_eq!(listening.recheck(), 0, "once is enough");
    while listening.stats().open > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pulse = kept.open(testudo_transport::Class::Control, 0).await;
    assert!(pulse.is_ok(), "the other worker goes on");

    // The dialling end: a server that is revoked.
    good.install_crl(next(&job, Some(&list), &[&server]).der()).unwrap();
    let (by_peer, _, reason) = closed(&kept).await;
    assert!(!by_peer && reason.contains("certificate of server/0 is revoked"), "{reason}");
}

/// Invariant 2 of `pki/revocation.rs`: fail closed.
#[tokio::test]
async fn when_the_list_has_ended_nobody_is_trusted_until_there_is_another() {
    let Cast { job, server, worker, other } = Cast::new();
    let hands = Hands::new();
    let listening = bind(&server.with_clock(Arc::new(hands.clone())));
    let (one, two) = (bind(&worker), bind(&other));
    let list = next(&job, None, &[]);
    listening.install_crl(list.der()).unwrap();
    let (dialled, accepted) = connected(&one, &listening).await;
    hands.on(HOUR + CLOCK_SKEW / 2);
    assert_eq!(listening.recheck(), 0, "within the clocks' tolerance");
    hands.on(CLOCK_SKEW);
    let (by_peer, code, reason) = closed(&accepted).await;
    assert_eq!((by_peer, code), (false, CloseCode::Untrusted.number()));
    assert!(reason.contains("list of revoked certificates ended"), "{reason}");
    assert!(closed(&dialled).await.0);
    let refused = two.connect(listening.local_addr(), listening.id()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
    // It does not dial either.
    let elsewhere = bind(&job.identity(Role::Server, 1));
    let refused = listening.connect(elsewhere.local_addr(), elsewhere.id()).await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Untrusted { why: PkiError::RevocationUnknown { .. }, .. }),
        "{refused}"
    );
    // The ended list again is no help; the next one is.
    let again = next(&job, Some(&list), &[]);
    assert_eq!(listening.install_crl(list.der()).map(|i| i.is_new), Ok(false));
    assert!(two.connect(listening.local_addr(), listening.id()).await.is_err());
    let refused = listening.install_crl(again.der()).unwrap_err();
    assert!(matches!(refused, PkiError::Crl(CrlError::Expired { .. })), "{refused}");
    let fresh = job.ca.sign_crl_at(&RevocationList::after(&list).unwrap(), HOUR, hands.now()).unwrap();
    listening.install_crl(fresh.der()).unwrap();
    connected(&two, &listening).await;
}

struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &[u8]) -> File {
        let folder = tempfile::tempdir().unwrap();
        let file = File { path: folder.path().join("crl.pem"), _folder: folder };
        file.put(text);
        file
    }

    /// Puts a whole new file in the place of the last.
    fn put(&self, text: &[u8]) {
        let beside = self.path.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::rename(&beside, &self.path).unwrap();
    }
}

/// Waits until the endpoint has looked at what is in the file now: the list that follows is in force.
async fn taken(endpoint: &Endpoint, file: &File, list: &Crl) {
    file.put(list.to_pem().as_bytes());
    in_time("the file to be taken", async {
        while endpoint.crls().first().is_none_or(|crl| crl.number() != list.number()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Invariant 2 of `endpoint/standing.rs`.
#[tokio::test]
async fn a_file_is_followed_and_takes_nothing_back() {
    let Cast { job, server, worker, other } = Cast::new();
    let (listening, bad, good) = (bind(&server), bind(&worker), bind(&other));
    let first = next(&job, None, &[]);
    let file = File::new(first.to_pem().as_bytes());
    listening.follow_crl(&file.path).unwrap();
    let (_dialled, accepted) = connected(&bad, &listening).await;
    let (_kept, kept) = connected(&good, &listening).await;
    let second = next(&job, Some(&first), &[&worker]);
    file.put(second.to_pem().as_bytes());
    let (by_peer, _, reason) = closed(&accepted).await;
    assert!(!by_peer && reason.contains("worker/0 is revoked"), "{reason}");

    let stranger = Job::new();
    let foreign = next(&stranger, Some(&second), &[]);
    for (what, bytes) in [
        ("malformed", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_vec()),
        ("empty", Vec::new()),
        ("foreign", foreign.to_pem().into_bytes()),
        ("older", first.to_pem().into_bytes()),
        ("too long", vec![b'A'; 1 << 20]),
    ] {
        file.put(&bytes);
        looked_at(&listening).await;
        assert_eq!(listening.crls()[0].der(), second.der(), "{what}");
        let refused = bad.connect(listening.local_addr(), listening.id()).await;
        assert!(refused.is_err(), "{what}: what was revoked stays revoked");
    }
    std::fs::remove_file(&file.path).unwrap();
    looked_at(&listening).await;
    assert_eq!(listening.crls()[0].der(), second.der(), "a file that is gone changes nothing");
    // And the next good one is taken.
    let third = next(&job, Some(&second), &[&other]);
    taken(&listening, &file, &third).await;
    let (_, _, reason) = closed(&kept).await;
    assert!(reason.contains("worker/1 is revoked"), "{reason}");
}

/// Waits until the endpoint has looked at the file twice from now on, so at least once at what is there now.
async fn looked_at(endpoint: &Endpoint) {
    let from = endpoint.stats().crl_looks;
    in_time("two looks at the file", async {
        while endpoint.stats().crl_looks < from + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A node does not begin without the list that it was told to heed.
#[tokio::test]
async fn a_file_that_cannot_be_taken_is_not_followed() {
    let Cast { job, server, .. } = Cast::new();
    let listening = bind(&server);
    let none = listening.follow_crl(Path::new("/no/such/crl.pem")).unwrap_err();
    assert!(matches!(none, PkiError::File { .. }), "{none}");
    let over = job.ca.sign_crl_at(&RevocationList::default(), HOUR, SystemTime::now() - DAY).unwrap();
    let file = File::new(over.to_pem().as_bytes());
    let refused = listening.follow_crl(&file.path).unwrap_err();
    assert!(matches!(refused, PkiError::Crl(CrlError::Expired { .. })), "{refused}");
    // Whoever can change it decides who is revoked.
    file.put(next(&job, None, &[]).to_pem().as_bytes());
    std::fs::set_permissions(&file.path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let refused = listening.follow_crl(&file.path).unwrap_err();
    assert!(matches!(refused, PkiError::NotPrivate { .. }), "{refused}");
    assert!(listening.crls().is_empty());
}
