//! Class E, flood and starvation: handshakes, connections, streams, messages, half-open frames and noise, as fast as one core
//! sends them, from strangers and from a node of the job.
//!
//! The attackers are `testudo_tests::flood`: UDP sockets, and quinn by hand. What floods cost an undisturbed run's throughput is
//! measured by the program `flood` (docs/hardening.md); here every kind is short, and the cluster is processes whose memory is
//! their own. A peer that never reads is `tests/tests/spine.rs::a_peer_that_never_reads_costs_its_credit_and_is_cut_off`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use testudo_actors::message::Refused;
use testudo_tests::cluster::VALIDITY;
use testudo_tests::flood::{Attack, Attacker, Done, Target, run};
use testudo_tests::live::{Live, until};
use testudo_transport::{JobCa, Role, SpiffeId};

use crate::PROGRAM;

/// The longest that one flood goes on.
const TIME: Duration = Duration::from_millis(800);
/// Bytes that a node may log under all of them together: a few lines for each kind, and one a second for each cause.
const LOG: usize = 512 << 10;
/// As many are flood enough.
const ATTEMPTS: u64 = 2000;

#[test]
fn class_e_flood_and_starvation() {
    let mut live = Live::start(PROGRAM);
    for (number, (name, kind)) in (1_u8..).zip(Attack::ALL) {
        live.case(&format!("a flood of {name}"), |live| {
            let sent = flood(live, kind, number);
            assert!(sent > 0, "nothing was sent");
        });
    }
    live.case("what was refused is counted", |live| {
        until("counts of every kind", || {
            let mut all = Refused::default();
            for node in live.nodes() {
                let refused = live.load(node).refused;
                all.datagrams += refused.datagrams;
                all.knocks += refused.knocks;
                all.handshakes += refused.handshakes;
                all.strangers += refused.strangers;
                all.faults += refused.faults;
            }
            let counted = all.datagrams > 0 && all.knocks + all.handshakes > 0;
            (counted && all.strangers > 0 && all.faults > 0).then_some(())
        });
        for node in live.nodes() {
            let load = live.load(node);
            assert!(load.promised_bytes <= load.budget_bytes, "{}: {load:?}", node.id.short());
        }
    });
    live.case("the audit log has the refusals, in few records", |live| {
        live.recorded(&["certificate"]);
        let records = live.refusal_records();
        // One a node within moments, and one every ten seconds after that: thousands of attempts of each kind make no flood of records.
        assert!(records < 200, "{records} records of refusals");
    });
    live.case("the logs stay small", |live| {
        for node in live.nodes() {
            let bytes = node.log().len();
            assert!(bytes < LOG, "{} has logged {bytes} bytes", node.id.short());
        }
    });
    live.finish();
}

/// Floods every node with one kind, from an address and under an identity of its own; how much was sent.
fn flood(live: &Live, kind: Attack, number: u8) -> u64 {
    let job = &live.site.job;
    let foreign = JobCa::create(&job.trust_domain, &job.name, VALIDITY).unwrap();
    let name = (100 + u32::from(number)).to_string();
    let id = SpiffeId::new(&job.trust_domain, &job.name, Role::Worker, &name).unwrap();
    let attacker = Attacker {
        from: IpAddr::from([127, 0, 66, number]),
        identity: live.site.identity(Role::Worker, &name),
        foreign: Arc::new(foreign.issue(&id, VALIDITY).unwrap()),
    };
    let targets: Vec<Target> =
        live.nodes().iter().map(|node| Target { address: node.address, id: node.id.clone() }).collect();
    let done = Arc::new(Done::default());
    std::thread::scope(|scope| {
        scope.spawn(|| run(kind, &attacker, &targets, &done));
        let began = Instant::now();
        while done.sent.load(Ordering::Relaxed) < ATTEMPTS && began.elapsed() < TIME {
            std::thread::sleep(Duration::from_millis(2));
        }
        done.stop.store(true, Ordering::Relaxed);
    });
    done.sent.load(Ordering::Relaxed)
}
