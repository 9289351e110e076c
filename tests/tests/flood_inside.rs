//! Every flood of a worker that takes part (`testudo_tests::flood::inside`), a short one each: the worker computes its share
//! honestly, and beside that says and asks what its key allows, as fast as it goes. What is computed is what would have been
//! computed, nobody but the attacker is lost, and memory stays within what is configured.
//! What floods cost is measured by the program `flood` (`tests/src/bin/flood`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testudo_actors::JobSpec;
use testudo_actors::link::Network;
use testudo_actors::message::{Load, MemberRole};
use testudo_actors::node::{NodeOptions, run_worker};
use testudo_actors::server::SumOrder;
use testudo_tests::cluster::{Cluster, Links, Site, ToySetup, Wiring};
use testudo_tests::flood::inside::Inside;
use testudo_tests::flood::{Attack, Attacker, Done, Target};
use testudo_tests::pace::hold;
use testudo_tests::sim::Simulation;
use testudo_tests::toy;
use testudo_transport::{CreditConfig, Endpoint, Role, TransportConfig};

/// Half pushes that are flood enough: nothing ends it.
const HALVES: u64 = 16;
/// Far beyond what anything takes, and less than a worker is held.
const PATIENCE: Duration = Duration::from_secs(110);

fn job() -> JobSpec {
    // Few slices, so that a worker's allowance is soon used up.
    JobSpec { slice_bytes: 2048, heartbeat_timeout_ms: 600_000, ..toy::job(2, 1, 2, 30) }
}

/// Follows the run, and keeps the load of the scheduler and of the server as they last told it.
fn watch(cluster: &Cluster) -> Arc<Mutex<[Load; 2]>> {
    let seen = Arc::new(Mutex::new([Load::default(); 2]));
    let kept = Arc::clone(&seen);
    cluster.follow(move |report| {
        let server = report.nodes.iter().find(|node| node.member.role == MemberRole::Server);
        *kept.lock().unwrap() = [report.load, server.map(|node| node.load).unwrap_or_default()];
    });
    seen
}

/// Whether what it does is more than any work needs, so that who does it is cut off.
fn is_cut_off(attack: Attack) -> bool {
    attack != Attack::HalfPushes
}

/// Worker 1 floods while worker 0 is held in its first step, until it is cut off or has tried often; then training goes on.
fn flooded(name: &str, attack: Attack) {
    let (held, adapt) = hold(0);
    let mut site = Site::new(job(), Links::Quic);
    site.transport.data_credit = CreditConfig { bytes: 64 << 10, messages: 256 };
    site.transport.answers = 16 << 10;
    site.transport.memory = 8 * site.transport.promise();
    let cluster = Cluster::start_with(site, Wiring { adapt, absent: vec![1], ..Wiring::default() });
    let identity = cluster.site.identity(Role::Worker, "1");
    let settings = TransportConfig { accepts: false, ..cluster.site.transport.clone() };
    // Of its own, because the cluster's ends with the cluster.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let network = {
        let _inside = runtime.enter();
        let policy = Arc::clone(&cluster.site.policy);
        Network::Quic(Endpoint::bind(&settings, (*identity).clone(), policy).unwrap())
    };
    let options = NodeOptions {
        identity: Arc::clone(&identity),
        network: network.clone(),
        scheduler: cluster.scheduler.to_string(),
        advertise: None,
        lanes: 2,
        runtime: runtime.handle().clone(),
        codecs: None,
    };
    let inside = Inside::default();
    let mut setup = inside.watch(Box::new(ToySetup::plain()));
    let worker = std::thread::spawn(move || run_worker(options, &mut setup));
    let _ = held.reached();
    let seen = watch(&cluster);

    let attacker = Attacker { from: [127, 0, 0, 66].into(), foreign: Arc::clone(&identity), identity };
    let server = cluster.site.job.member(Role::Server, 0).unwrap();
    let target = Target { address: cluster.servers[0], id: server };
    let done = Arc::new(Done::default());
    let flooding = Arc::clone(&done);
    let flood = runtime.spawn(async move {
        inside.flood(attack, (&attacker, &network), &target, &flooding).await;
    });
    let began = Instant::now();
    loop {
        let faults: u64 = seen.lock().unwrap().iter().map(|load| load.refused.faults).sum();
        let sent = done.sent.load(Ordering::Relaxed);
        let enough = match attack {
            Attack::HalfPushes => sent >= HALVES,
            _ => faults > 0,
        };
        if enough {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{name}: after {sent} attempts nobody was cut off");
        std::thread::sleep(Duration::from_millis(5));
    }
    held.release();
    let (finished, _) = cluster.finish();
    done.stop.store(true, Ordering::Relaxed);
    runtime.block_on(flood).unwrap();
    let ended = worker.join().unwrap();
    assert_eq!(ended.is_err(), is_cut_off(attack), "{name}: {ended:?}");
    assert_eq!(finished.workers_lost, u32::from(is_cut_off(attack)), "{name}");
    let expected = Simulation::new(job(), 0, SumOrder::Canonical).finish();
    assert_eq!(finished.params_blake3, expected.params_blake3, "{name}");
    for load in *seen.lock().unwrap() {
        assert!(load.promised_bytes <= load.budget_bytes, "{name}: {load:?}");
        assert!(load.held_bytes <= load.promised_bytes, "{name}: {load:?}");
    }
}

#[test]
fn a_cluster_trains_on_through_every_flood_of_a_worker_that_takes_part() {
    for (name, attack) in Attack::INSIDE {
        let began = Instant::now();
        flooded(name, attack);
        println!("{name}: {} ms", began.elapsed().as_millis());
    }
}
