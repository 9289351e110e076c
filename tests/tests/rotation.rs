//! Certificates that end in the middle of a run, or are taken back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use testudo::audit::{self, AuditLog, Options, Verified};
use testudo_actors::audit::{Entry, Hex, KEY_NAME};
use testudo_actors::link::Network;
use testudo_actors::message::Finished;
use testudo_actors::server::SumOrder;
use testudo_actors::{Audit, JobSpec};
use testudo_tests::cluster::{Cluster, Links, Site, VALIDITY, Wiring};
use testudo_tests::files::text;
use testudo_tests::sim::Simulation;
use testudo_tests::{pace, process, python, toy};
use testudo_transport::pki::{Issued, Revocation, RevocationList, Serial, WallClock};
use testudo_transport::{Endpoint, Role, SpiffeId};

const WORKERS: u32 = 3;
const SERVERS: u32 = 2;
const SHARDS: u32 = 6;
const STEPS: u64 = 8;

const CHECKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/audit.py");

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A clock that the test sets.
#[derive(Clone)]
struct Hands(Arc<Mutex<SystemTime>>);

impl WallClock for Hands {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A run in whose first step every certificate ends; those of whom `renews` says so have others by then. Its audit log holds.
fn train(renews: fn(&SpiffeId) -> bool) -> (Finished, Verified) {
    let clock = Hands(Arc::new(Mutex::new(SystemTime::now())));
    let audit = Audit { countersign_every: 2, ..Audit::default() };
    // Whoever is lost is lost for its certificate, however busy the machine is.
    let heartbeat_timeout_ms = 600_000;
    let job = JobSpec { audit, heartbeat_timeout_ms, ..toy::job(WORKERS, SERVERS, SHARDS, STEPS) };
    let site = Site::new(job, Links::Quic).with_clock(Arc::new(clock.clone()));
    let folder = tempfile::tempdir().unwrap();
    let log = Log::open(&site, folder.path());
    let (held, adapt) = pace::hold(0);
    let (sender, networks) = mpsc::channel();
    let show = Box::new(move |network: &Network| sender.send(network.clone()).unwrap());
    let audit = Some(log.log.handle());
    let cluster = Cluster::start_with(site, Wiring { adapt, networks: show, audit, ..Wiring::default() });
    let _ = held.reached();
    let site = &cluster.site;
    let endpoints: Vec<Endpoint> = networks.try_iter().filter_map(quic).collect();
    let expected = |endpoint: &Endpoint| match endpoint.id().role() {
        Role::Scheduler => (WORKERS + SERVERS) as usize,
        Role::Server => 1 + WORKERS as usize,
        _ => 1 + SERVERS as usize,
    };
    wait_until("every connection", || endpoints.iter().all(|e| e.peers().len() == expected(e)));
    for identity in site.given.lock().unwrap().iter().filter(|identity| renews(identity.id())) {
        assert_eq!(identity.succeed(&site.ca.issue(identity.id(), 10 * VALIDITY).unwrap()), Ok(true));
    }
    let later = clock.now() + 2 * VALIDITY;
    let then = i64::try_from(later.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let shown = |(peer, end): (SpiffeId, i64)| end > then || !renews(&peer);
    wait_until("the new certificates", || endpoints.iter().all(|e| e.peers().into_iter().all(shown)));
    *clock.0.lock().unwrap() = later;
    let closed: usize = endpoints.iter().map(Endpoint::recheck).sum();
    // Endpoints look by themselves, too: how many this look found to close is not for sure.
    assert!(closed == 0 || !endpoints.iter().all(|e| renews(e.id())), "{closed} connections were closed");
    drop(endpoints);
    held.release();
    let finished = cluster.finish_with(renews).0;
    let head = log.log.close().unwrap();
    let verified = audit::read(&log.path, &Options::default(), |_, _| {}).unwrap();
    assert_eq!((verified.head, verified.ended), (Some(head), true));
    if let Some(python) = python::with("blake3, cryptography.x509") {
        let (path, head) = (text(&log.path), head.to_string());
        let said = process::run(&python, &[CHECKER, path, &head], folder.path()).succeeded().stdout;
        assert!(said.contains(&head), "{said}");
    }
    (finished, verified)
}

/// The audit log of a run on a site.
struct Log {
    path: PathBuf,
    log: AuditLog,
}

impl Log {
    fn open(site: &Site, folder: &Path) -> Log {
        let key = site.identity(Role::Actor, KEY_NAME);
        let path = folder.join("audit.log");
        let log = AuditLog::open(&path, &key, &site.job, &site.signed(), "operator/test").unwrap();
        Log { path, log }
    }
}

/// A job is opened by the node's clock and the node's list of who was revoked; what a run left is read by the time of its own.
#[test]
fn a_job_that_a_revoked_operator_signed_is_opened_no_longer() {
    let clock = Hands(Arc::new(Mutex::new(SystemTime::now())));
    let site = Site::new(toy::job(1, 1, 1, 1), Links::Memory).with_clock(Arc::new(clock.clone()));
    let (node, signed) = (site.identity(Role::Worker, "0"), site.signed());
    assert_eq!(signed.open(&node).unwrap(), site.job);
    let operator = site.given.lock().unwrap().last().unwrap().clone();
    let serial = Issued::of(operator.certificate_der()).unwrap().serial;
    let at = clock.now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    let mut list = RevocationList::default();
    assert!(list.revoke(Serial::from_hex(&serial).unwrap(), Revocation { at, compromised: true }));
    node.trust().install_crl(site.ca.sign_crl(&list, VALIDITY).unwrap().der()).unwrap();
    let refused = signed.open(&node).unwrap_err().to_string();
    assert!(refused.contains("revoked"), "{refused}");
    assert!(signed.check(node.trust(), clock.now()).is_ok(), "then it was good");
    let other = site.identity(Role::Worker, "1");
    assert!(signed.open(&other).is_ok());
    *clock.0.lock().unwrap() = clock.now() + 2 * VALIDITY;
    assert!(signed.open(&other).is_err(), "the certificate has ended");
}

fn quic(network: Network) -> Option<Endpoint> {
    match network {
        Network::Quic(endpoint) | Network::Colocated(endpoint, _) => Some(endpoint),
        Network::Memory(_) => None,
    }
}

fn undisturbed() -> [u8; 32] {
    Simulation::new(toy::job(1, 1, SHARDS, STEPS), 0, SumOrder::Canonical).finish().params_blake3
}

#[test]
fn a_run_outlives_its_certificates() {
    let (finished, log) = train(|_| true);
    assert_eq!((finished.params_blake3, finished.workers_lost), (undisturbed(), 0));
    assert_eq!(finished.steps, STEPS);
    let kind = |kind: &str| log.kinds.get(kind).copied().unwrap_or_default();
    // Every node that signs, and the key that signs the log.
    assert_eq!(kind("renewed"), u64::from(WORKERS + SERVERS + 1), "{:?}", log.kinds);
    assert!(kind("contributions") >= u64::from(WORKERS) * STEPS, "{:?}", log.kinds);
    assert!(kind("countersignature") >= u64::from(WORKERS + SERVERS), "{:?}", log.kinds);
}

/// A log whose key has a certificate no longer ends with an error, and what is in it holds.
#[test]
fn an_audit_key_whose_certificate_has_ended_signs_nothing() {
    let clock = Hands(Arc::new(Mutex::new(SystemTime::now())));
    let site = Site::new(toy::job(1, 1, 1, 1), Links::Memory).with_clock(Arc::new(clock.clone()));
    let folder = tempfile::tempdir().unwrap();
    let Log { path, log } = Log::open(&site, folder.path());
    let told = || Entry::Parameters { step: 0, params_blake3: Hex([1; 32]) };
    log.handle().tell(told());
    *clock.0.lock().unwrap() = clock.now() + 2 * VALIDITY;
    log.handle().tell(told());
    let why = log.close().unwrap_err().to_string();
    assert!(why.contains("renew it in time"), "{why}");
    let unfinished = Options { unfinished: true, ..Options::default() };
    let verified = audit::read(&path, &unfinished, |_, _| {}).unwrap();
    // The second one is written if the thread got to it before it had to sign.
    assert!(matches!(verified.kinds.get("parameters"), Some(1 | 2)) && !verified.ended, "{verified:?}");
}

/// A worker that does not renew is out, as one that has died is, and no bit changes.
#[test]
fn a_worker_whose_certificate_has_ended_is_out() {
    let (finished, _) = train(|id| id.short() != "worker/2");
    assert_eq!((finished.params_blake3, finished.workers_lost), (undisturbed(), 1));
}
