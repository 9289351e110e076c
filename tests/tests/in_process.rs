//! Whole clusters of real shells in one process: over memory, over secured memory, over QUIC.

use testudo_actors::server::SumOrder;
use testudo_tests::cluster::{Cluster, Links};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 8;
const SHARDS: u32 = 6;

fn expected() -> [u8; 32] {
    Simulation::new(toy::job(1, 1, SHARDS, STEPS), 0, SumOrder::Canonical).finish().params_blake3
}

fn train(workers: u32, servers: u32, links: Links) {
    let (finished, steps) =
        Cluster::start(toy::unhurried(toy::job(workers, servers, SHARDS, STEPS)), links).finish();
    assert_eq!(finished.params_blake3, expected(), "{workers} workers, {servers} servers, {links:?}");
    assert_eq!(finished.steps, STEPS);
    assert_eq!(finished.workers_lost, 0);
    assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), (0..STEPS).collect::<Vec<_>>());
    assert!(steps[1..].iter().all(|s| s.bytes_sent > 0 && s.bytes_received > 0), "{steps:?}");
}

#[test]
fn one_of_each_over_memory() {
    train(1, 1, Links::Memory);
}

#[test]
fn many_over_memory() {
    train(4, 3, Links::Memory);
}

/// The in-memory link runs with sessions and MACs on when asked, and no bit changes.
#[test]
fn many_over_secured_memory() {
    train(3, 2, Links::SecuredMemory);
}

#[test]
fn one_of_each_over_quic() {
    train(1, 1, Links::Quic);
}

#[test]
fn many_over_quic() {
    train(4, 3, Links::Quic);
}
