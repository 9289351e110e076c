//! Lists of revoked certificates that the scheduler takes from its file: the nodes that are there hear of them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use testudo_actors::JobSpec;
use testudo_actors::link::Network;
use testudo_actors::server::SumOrder;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::files;
use testudo_tests::pace;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;
use testudo_transport::pki::{Revocation, RevocationList, Serial, describe};
use testudo_transport::{Endpoint, Role};

const WORKERS: u32 = 3;
const SERVERS: u32 = 2;
const SHARDS: u32 = 6;
const STEPS: u64 = 8;
const HOUR: Duration = Duration::from_secs(3600);
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Only the scheduler has a file. A worker that is on its next list is out everywhere, and no bit changes.
#[test]
fn a_list_that_the_scheduler_takes_from_its_file_reaches_the_nodes_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let (file, new) = (folder.path().join("crl.pem"), folder.path().join("crl.pem.new"));
    // Whoever is lost is lost for the list, however busy the machine is.
    let job = JobSpec { heartbeat_timeout_ms: 600_000, ..toy::job(WORKERS, SERVERS, SHARDS, STEPS) };
    let site = Site::new(job, Links::Quic);
    let first = site.ca.sign_crl(&RevocationList::default(), HOUR).unwrap();
    files::publish(&file, &first.to_pem());
    let (held, adapt) = pace::hold(0);
    let (sender, networks) = mpsc::channel();
    let follows = file.clone();
    let show = Box::new(move |network: &Network| {
        let Network::Quic(endpoint) = network else { panic!("QUIC") };
        if endpoint.id().role() == Role::Scheduler {
            endpoint.follow_crl(&follows).unwrap();
        }
        sender.send(endpoint.clone()).unwrap();
    });
    let cluster = Cluster::start_with(site, Wiring { adapt, networks: show, ..Wiring::default() });
    let _ = held.reached();
    let endpoints: Vec<Endpoint> = networks.try_iter().collect();
    assert_eq!(endpoints.len(), (1 + SERVERS + WORKERS) as usize);
    let number = |endpoint: &Endpoint| endpoint.crls().first().map(|crl| crl.number());
    wait_until("the list that was there", || endpoints.iter().all(|e| number(e) == Some(first.number())));

    let mut next = RevocationList::after(&first).unwrap();
    for identity in cluster.site.given.lock().unwrap().iter().filter(|one| one.id().short() == "worker/2") {
        let serial = describe(identity.certificate_pem().as_bytes()).unwrap().serial;
        let is_new = next.revoke(Serial::from_hex(&serial).unwrap(), Revocation { at: 0, compromised: true });
        assert!(is_new);
    }
    let second = cluster.site.ca.sign_crl(&next, HOUR).unwrap();
    files::publish(&new, &second.to_pem());
    std::fs::rename(&new, &file).unwrap();
    let others = || endpoints.iter().filter(|endpoint| endpoint.id().short() != "worker/2");
    wait_until("the next one", || others().all(|endpoint| number(endpoint) == Some(second.number())));
    drop(endpoints);
    held.release();
    let (finished, _) = cluster.finish_with(|id| id.short() != "worker/2");
    let undisturbed =
        Simulation::new(toy::job(1, 1, SHARDS, STEPS), 0, SumOrder::Canonical).finish().params_blake3;
    assert_eq!((finished.params_blake3, finished.workers_lost, finished.steps), (undisturbed, 1, STEPS));
}
