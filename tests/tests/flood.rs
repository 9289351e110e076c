//! Every flood of `testudo_tests::flood`, a short one each, at a cluster that trains on with the transport's own limits:
//! what it computes is what it would have computed, nobody is lost, memory stays bounded, and what was refused is counted.
//! Processes whose memory is their own, and held to what is configured, are in `tests/adversarial/e_flood.rs`.
//! What floods cost is measured by the program `flood` (`tests/src/bin/flood`).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testudo_actors::JobSpec;
use testudo_actors::message::Load;
use testudo_actors::server::SumOrder;
use testudo_tests::cluster::{Cluster, Links, Site, VALIDITY, Wiring};
use testudo_tests::flood::{Attack, Attacker, Done, Target, run};
use testudo_tests::pace::hold;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;
use testudo_transport::{CreditConfig, JobCa, Role, SpiffeId, TransportConfig};

/// Attempts of one attack in a round: more than any burst of first packets or handshakes would need to show.
const ATTEMPTS: u64 = 400;
/// The longest that one attack of a round goes on, where limits keep it from so many attempts.
const PATIENCE: Duration = Duration::from_millis(700);
/// What a node needs beside its peers' connections, handshakes under way above all: as the cluster file's limit sets it aside.
const OWN_MIB: u64 = 64;
/// What the attacker needs, who is this process too: 64 endpoints at once, each with a receive buffer of some 4 MiB.
const ATTACKER_MIB: u64 = 256;
/// Connections that a node has memory for: workers, the scheduler's, an operator's, and four of the attacker.
const CONNECTIONS: u64 = 10;

/// Limits as a node with a small `limits.memory_mib` has them.
fn limited() -> TransportConfig {
    let data_credit = CreditConfig { bytes: 2 << 20, messages: 512 };
    let config = TransportConfig { data_credit, ..TransportConfig::default() };
    TransportConfig { memory: CONNECTIONS * config.promise(), ..config }
}

fn job() -> JobSpec {
    JobSpec { heartbeat_timeout_ms: 600_000, ..toy::job(2, 1, 4, 40) }
}

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().unwrap() / 1024
}

/// One attack, until it has tried so often or so long.
fn attack(attack: Attack, attacker: &Attacker, targets: &[Target]) {
    let done = Arc::new(Done::default());
    std::thread::scope(|scope| {
        let flood = Arc::clone(&done);
        scope.spawn(move || run(attack, attacker, targets, &flood));
        let began = Instant::now();
        while done.sent.load(Ordering::Relaxed) < ATTEMPTS && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        done.stop.store(true, Ordering::Relaxed);
    });
}

/// Follows the run, and keeps what the scheduler last said of its own door.
fn watch(cluster: &Cluster) -> Arc<Mutex<Load>> {
    let seen = Arc::new(Mutex::new(Load::default()));
    let kept = Arc::clone(&seen);
    cluster.follow(move |report| *kept.lock().unwrap() = report.load);
    seen
}

#[test]
fn a_cluster_trains_on_through_every_flood() {
    let expected = Simulation::new(job(), 0, SumOrder::Canonical).finish();
    let (held, adapt) = hold(0);
    let mut site = Site::new(job(), Links::Quic);
    site.transport = limited();
    let cluster = Cluster::start_with(site, Wiring { adapt, ..Wiring::default() });
    let _ = held.reached();
    let seen = watch(&cluster);
    let before = status("VmRSS");

    let target =
        |role, address: SocketAddr| Target { address, id: cluster.site.job.member(role, 0).unwrap() };
    let targets = vec![target(Role::Scheduler, cluster.scheduler), target(Role::Server, cluster.servers[0])];
    let foreign = JobCa::create(&cluster.site.job.trust_domain, &cluster.site.job.name, VALIDITY).unwrap();
    let id =
        SpiffeId::new(&cluster.site.job.trust_domain, &cluster.site.job.name, Role::Worker, "9").unwrap();
    let attacker = Attacker {
        from: [127, 0, 0, 66].into(),
        identity: cluster.site.identity(Role::Worker, "9"),
        foreign: Arc::new(foreign.issue(&id, VALIDITY).unwrap()),
    };
    let over = AtomicBool::new(false);
    let (finished, load) = std::thread::scope(|scope| {
        let (attacker, targets, over) = (&attacker, &targets, &over);
        let kinds = || Attack::ALL.iter().map(|(_, kind)| *kind).filter(|kind| *kind != Attack::Busy);
        // Once all of them while a step is under way, so that each is seen however fast training is; then on, to its end.
        kinds().for_each(|kind| attack(kind, attacker, targets));
        let until = Instant::now() + Duration::from_secs(100);
        let mut looked = Instant::now();
        let load = loop {
            let load = *seen.lock().unwrap();
            let refused = load.refused;
            if refused.datagrams > 0
                && refused.strangers > 0
                && refused.handshakes + refused.knocks > 0
                && refused.faults > 0
            {
                break load;
            }
            assert!(Instant::now() < until, "what was refused is not counted: {load:?}");
            if looked.elapsed() > Duration::from_secs(3) {
                // On a slow machine one round may leave the rates of an address unspent.
                kinds().for_each(|kind| attack(kind, attacker, targets));
                looked = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        scope.spawn(move || {
            for kind in kinds().cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                attack(kind, attacker, targets);
            }
        });
        held.release();
        let (finished, _) = cluster.finish();
        over.store(true, Ordering::Relaxed);
        (finished, load)
    });
    assert_eq!(finished.params_blake3, expected.params_blake3);
    assert_eq!(finished.workers_lost, 0);
    assert!(load.promised_bytes <= load.budget_bytes && load.held_bytes <= load.promised_bytes, "{load:?}");
    let growth = status("VmHWM").saturating_sub(before);
    let most = 2 * (OWN_MIB + (limited().memory >> 20)) + ATTACKER_MIB;
    assert!(growth <= most, "{growth} MiB more than before, of {most}");
}
