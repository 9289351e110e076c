//! Certificates that end in the middle of a run.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use testudo_actors::link::Network;
use testudo_actors::message::Finished;
use testudo_actors::server::SumOrder;
use testudo_tests::cluster::{Cluster, Links, Site, VALIDITY, Wiring};
use testudo_tests::pace;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;
use testudo_transport::pki::WallClock;
use testudo_transport::{Endpoint, Role, SpiffeId};

const WORKERS: u32 = 3;
const SERVERS: u32 = 2;
const SHARDS: u32 = 6;
const STEPS: u64 = 8;

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

/// A run in whose first step every certificate ends; those of whom `renews` says so have others by then.
fn train(renews: fn(&SpiffeId) -> bool) -> Finished {
    let clock = Hands(Arc::new(Mutex::new(SystemTime::now())));
    let job = toy::job(WORKERS, SERVERS, SHARDS, STEPS);
    let site = Site::new(job, Links::Quic).with_clock(Arc::new(clock.clone()));
    let (held, adapt) = pace::hold(0);
    let (sender, networks) = mpsc::channel();
    let show = Box::new(move |network: &Network| sender.send(network.clone()).unwrap());
    let cluster = Cluster::start_with(site, Wiring { adapt, networks: show, ..Wiring::default() });
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
    cluster.finish_with(renews).0
}

fn quic(network: Network) -> Option<Endpoint> {
    match network {
        Network::Quic(endpoint) => Some(endpoint),
        Network::Memory(_) => None,
    }
}

fn undisturbed() -> [u8; 32] {
    Simulation::new(toy::job(1, 1, SHARDS, STEPS), 0, SumOrder::Canonical).finish().params_blake3
}

#[test]
fn a_run_outlives_its_certificates() {
    let finished = train(|_| true);
    assert_eq!((finished.params_blake3, finished.workers_lost), (undisturbed(), 0));
    assert_eq!(finished.steps, STEPS);
}

/// A worker that does not renew is out, as one that has died is, and no bit changes.
#[test]
fn a_worker_whose_certificate_has_ended_is_out() {
    let finished = train(|id| id.short() != "worker/2");
    assert_eq!((finished.params_blake3, finished.workers_lost), (undisturbed(), 1));
}
