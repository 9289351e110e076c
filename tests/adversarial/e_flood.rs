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

use serde_json::json;
use testudo_actors::message::Refused;
use testudo_tests::attacker::Attacker as PythonAttacker;
use testudo_tests::cluster::VALIDITY;
use testudo_tests::flood::inside::Inside;
use testudo_tests::flood::{Attack, Attacker, Done, Target, run};
use testudo_tests::live::{Live, Node, Plan, until};
use testudo_tests::member::{in_time, placement};
use testudo_tests::process;
use testudo_tests::raw::RawEndpoint;
use testudo_transport::{Cause, CloseCode, JobCa, Role, SpiffeId, TransportConfig};

use crate::PROGRAM;
use crate::counted::Counts;
use crate::hostile::beside;

/// The longest that one flood goes on, once something was sent.
const TIME: Duration = Duration::from_millis(800);
/// Within which something is sent, on any machine.
const LONGEST: Duration = Duration::from_secs(60);
/// Longer than a node waits for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(4);
/// Within which a flood is counted, if it is, once no handshake is waited for any more.
const COUNTED: Duration = Duration::from_secs(2);
/// Whose floods they are that must be refused, whatever the others were: an address beyond those of the kinds.
const STRANGER: u8 = 150;
/// How often a flood that comes to nothing at a node is tried.
const TRIES: u32 = 12;
/// Bytes that a node may log under all of them together: a few lines for each kind, and one a second for each cause.
const LOG: usize = 512 << 10;
/// As many are flood enough.
const ATTEMPTS: u64 = 2000;
/// Names of nodes that are all cut off.
const NAMES: u32 = 2000;
/// How many of them come between two looks.
const EACH: u32 = 500;
/// Connections under way at once: fewer than a node has room for.
const AT_ONCE: usize = 4;
/// Answers that a slow reader takes, one at a time.
const SLOWLY: u64 = 24;
/// Causes that the audit log has in the end. That of abandoned streams is not among them: all of them may be counted as floods.
const RECORDED: [&str; 8] =
    ["handshake", "late", "certificate", "request", "message", "flood", "mac", "policy"];

/// What a scheduler and a server count a flood as: each under one of these, unless there are none. Datagrams that are nobody's have
/// no cause (they are dropped, by the kernel soon, which counts nothing), and a node of the job may connect to a scheduler now and
/// then. A server turns away whoever has no lease, whatever it would say.
fn counted_as(kind: Attack) -> (&'static [Cause], &'static [Cause]) {
    const REQUEST: &[Cause] = &[Cause::Request];
    match kind {
        Attack::Beginnings => (&[Cause::Handshake], &[Cause::Handshake]),
        Attack::Deaf => (&[Cause::Handshake, Cause::Late], &[Cause::Handshake, Cause::Late]),
        Attack::Stalled => (&[Cause::Late], &[Cause::Late]),
        Attack::NoCertificate | Attack::Foreign => (&[Cause::Certificate], &[Cause::Certificate]),
        Attack::Reconnect => (&[], REQUEST),
        // Whether the first stream's end or the second stream is seen first is a race. One that ends with nothing said is no fault:
        // then the connection ends, and only another one may be counted.
        Attack::EmptyStreams | Attack::AbandonedStreams => (&[Cause::Framing, Cause::Flood], REQUEST),
        Attack::Control => (&[Cause::Message], REQUEST),
        Attack::HalfFrames => (&[Cause::Flood], REQUEST),
        Attack::BadMacs => (&[Cause::Mac], REQUEST),
        Attack::Pushes => (&[Cause::Policy], REQUEST),
        _ => (&[], &[]),
    }
}

#[test]
fn class_e_flood_and_starvation() {
    let Some(counts) = Counts::start() else { return };
    let began = Instant::now();
    let mut live = Live::start_with(PROGRAM, counts.plan(Plan::default()), |_| ());
    for (number, (name, kind)) in (1_u8..).zip(Attack::ALL) {
        live.case(&format!("a flood of {name}"), |live| {
            let before: Vec<_> = live.nodes().iter().map(|node| counts.so_far(node)).collect();
            let (scheduler, server) = counted_as(kind);
            let causes = |node: &Node| if node.id.role() == Role::Scheduler { scheduler } else { server };
            let is_waited_for = matches!(kind, Attack::Deaf | Attack::Stalled);
            let soon = COUNTED + if is_waited_for { HANDSHAKE } else { Duration::ZERO };
            for _ in 0..TRIES {
                let sent = flood(live, kind, number);
                assert!(sent > 0, "nothing was sent");
                let mut nodes = live.nodes().iter().zip(&before);
                if nodes.all(|(node, before)| counts.is_more_within(soon, node, before, causes(node))) {
                    break;
                }
            }
            for (node, before) in live.nodes().iter().zip(&before) {
                counts.more_since(node, before, causes(node));
            }
        });
    }
    live.case("datagrams that are nobody's are counted", |live| {
        for node in live.nodes() {
            assert!(counts.number(node, "testudo.datagrams.dropped") > 0.0, "{}", node.id.short());
        }
    });
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
            let all = (counted && all.strangers > 0 && all.faults > 0).then_some(());
            if all.is_none() {
                // A slow machine's flood may leave the rates of its address unspent: then there is more of it.
                flood(live, Attack::NoCertificate, STRANGER);
            }
            all
        });
        // Handshakes that were left under way are over, and counted.
        std::thread::sleep(HANDSHAKE);
        for node in live.nodes() {
            let load = live.load(node);
            assert!(load.promised_bytes <= load.budget_bytes, "{}: {load:?}", node.id.short());
        }
    });
    live.case("the audit log has the refusals, in few records", |live| {
        live.recorded(&RECORDED);
        let records = live.refusal_records();
        // One a node within moments, and one every ten seconds after that: thousands of attempts of each kind make no flood of records.
        let most = 200.max(records_in(began.elapsed()));
        assert!(records < most, "{records} records of refusals");
    });
    live.case("the logs stay small", logs_are_small);
    counts.recorded(live);
}

/// Records that a scheduler and two servers may have made in that time, and one more of each.
fn records_in(time: Duration) -> usize {
    3 * (2 + usize::try_from(time.as_secs() / 10).unwrap())
}

fn logs_are_small(live: &Live) {
    for node in live.nodes() {
        let bytes = node.log().len();
        assert!(bytes < LOG, "{} has logged {bytes} bytes", node.id.short());
    }
}

/// Thousands of good certificates, each of another name and each cut off for what it frames: who they are adds to counts, and to a
/// bounded list of names, and never a series.
#[test]
fn class_e_names_without_end() {
    let Some(counts) = Counts::start() else { return };
    let limits = "handshakes_per_second = 100000\nhandshakes_per_address = 100000";
    let plan = Plan { limits, ..Plan::default() };
    let began = Instant::now();
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |_| ());
    let mut series = 0;
    for round in 0..NAMES / EACH {
        live.case(&format!("{EACH} names more, after {}", round * EACH), |live| {
            let node = live.node(Role::Scheduler, 0);
            counts
                .rise(node, &[(Cause::Framing, u64::from(EACH))], || badly_framed(live, node, round * EACH));
            // As many kinds of refusals as there were after the first of them.
            let now = counts.series(node);
            assert!(round == 0 || now == series, "{now} series instead of {series}");
            series = now;
        });
    }
    live.case("records name a few, and count all", |live| {
        let log = live.audit_log();
        let longest = log.lines().map(str::len).max().unwrap_or_default();
        assert!(longest < 32 << 10, "a record of {longest} bytes");
        let records = live.refusal_records();
        assert!(records < 20.max(records_in(began.elapsed())), "{records} records of refusals");
    });
    live.case("the logs stay small", logs_are_small);
    counts.recorded(live);
}

/// Has `EACH` workers, from `first` on, connect to `node` and send a message of no version.
fn badly_framed(live: &Live, node: &Node, first: u32) {
    live.site.runtime.block_on(async {
        let mut under_way = tokio::task::JoinSet::new();
        for index in first..first + EACH {
            if under_way.len() == AT_ONCE {
                under_way.join_next().await.unwrap().unwrap();
            }
            let identity = live.site.identity(Role::Worker, &(1_000 + index).to_string());
            let (address, id) = (node.address, node.id.clone());
            under_way.spawn(async move {
                // The first packets of one address have a rate.
                let [.., high, low] = index.to_be_bytes();
                let endpoint = RawEndpoint::bind_to(IpAddr::from([127, 77, high, low.max(1)]));
                let peer = endpoint.connect(&identity, address, &id).await;
                let _stream = peer.stream_with(&[0xff; 16]).await;
                if let Some((code, reason)) = peer.closed().await {
                    assert_eq!(code, u64::from(CloseCode::Framing.number()), "{reason}");
                }
            });
        }
        while let Some(ended) = under_way.join_next().await {
            ended.unwrap();
        }
    });
}

/// A worker that holds a lease and pulls without end and reads nothing is sent away, and the others do its part; one that reads an
/// answer now and then, within its allowance, delays nobody.
#[test]
fn class_e_who_reads_slowly_or_never() {
    let (Some(attacker), Some(counts)) = (PythonAttacker::start(), Counts::start()) else { return };
    let inside = Inside::default();
    let plan = Plan { inside: Some((0, inside.clone())), lost: 1, ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |_| ());
    let first = *placement(&live.site.job).of_parameter(0).first().unwrap();
    beside(&attacker, &live, &inside);
    live.case("an answer now and then", |live| {
        let node = live.node(Role::Server, first.server);
        // The newest version, or one that has just gone: answers that each take room in any case.
        let version = process::steps(&live.run_dir(Role::Scheduler, 0));
        let mut order = json!({"server": node.id.as_str(), "slice_id": [first.id.parameter, first.id.index]});
        order["version"] = version.into();
        order["asked"] = SLOWLY.into();
        let found = counts.rise(node, &[], || attacker.attack("worker.trickle", order));
        assert_eq!(found, json!({"came": SLOWLY, "closed": null}));
    });
    live.case("nothing at all", |live| {
        let node = live.node(Role::Server, first.server);
        let attacker = attacker_named(live, "0", 200);
        let config = TransportConfig { accepts: false, ..live.site.transport.clone() };
        let network = live.site.network_with(&attacker.identity, &config);
        let target = Target { address: node.address, id: node.id.clone() };
        let before = counts.so_far(node);
        let done = Arc::new(Done::default());
        live.site.runtime.block_on(async {
            let sent_away = async {
                while live.report().workers_lost == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                () = inside.flood(Attack::NeverReads, (&attacker, &network), &target, &done) => {}
                () = in_time("the worker to be sent away", sent_away) => {}
            }
        });
        counts.more_since(node, &before, &[Cause::Flood]);
    });
    live.case("the audit log has the refusals", |live| live.recorded(&["flood"]));
    counts.recorded(live);
}

/// An attacker under the identity of that worker, from an address of its own.
fn attacker_named(live: &Live, name: &str, address: u8) -> Attacker {
    let job = &live.site.job;
    let foreign = JobCa::create(&job.trust_domain, &job.name, VALIDITY).unwrap();
    let id = SpiffeId::new(&job.trust_domain, &job.name, Role::Worker, name).unwrap();
    Attacker {
        from: IpAddr::from([127, 0, 66, address]),
        identity: live.site.identity(Role::Worker, name),
        foreign: Arc::new(foreign.issue(&id, VALIDITY).unwrap()),
    }
}

/// Floods every node with one kind, from an address and under an identity of its own; how much was sent.
fn flood(live: &Live, kind: Attack, number: u8) -> u64 {
    let attacker = attacker_named(live, &(100 + u32::from(number)).to_string(), number);
    let targets: Vec<Target> =
        live.nodes().iter().map(|node| Target { address: node.address, id: node.id.clone() }).collect();
    let done = Arc::new(Done::default());
    std::thread::scope(|scope| {
        scope.spawn(|| run(kind, &attacker, &targets, &done));
        let began = Instant::now();
        let goes_on = |sent| sent < ATTEMPTS && began.elapsed() < if sent == 0 { LONGEST } else { TIME };
        while goes_on(done.sent.load(Ordering::Relaxed)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        done.stop.store(true, Ordering::Relaxed);
    });
    done.sent.load(Ordering::Relaxed)
}
