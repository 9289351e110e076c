//! That the spine is real: sending overlaps the backward pass, a peer that does not read costs what it was granted and no
//! more, and nobody on the network reads anything.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use testudo_actors::link::Network;
use testudo_actors::message::{Body, Failure, Hello, MemberRole, Membership, Outcome, Pull, Push};
use testudo_actors::server::SumOrder;
use testudo_actors::{Audit, JobSpec};
use testudo_kernels::ModelSpec;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::member::{Answer, GIVEN_UP, Lane, Member, give_up, in_time, placement, secret};
use testudo_tests::pace::hold;
use testudo_tests::process;
use testudo_tests::proxy::{Proxy, Record};
use testudo_tests::sim::Simulation;
use testudo_tests::{files, toy};
use testudo_transport::identity::Address;
use testudo_transport::session::Prelude;
use testudo_transport::{
    Class, CloseCode, Envelope, Error, Outgoing, Role, SpiffeId, TransportConfig, encode,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// A run in which the test plays a worker takes as long as the test does, and one that is recorded as long as that takes.
fn patient(job: JobSpec) -> JobSpec {
    JobSpec { heartbeat_timeout_ms: 600_000, ..job }
}

/// The first slice of a step leaves, and is part of an updated parameter, before the step's backward pass ends. The test
/// plays the second worker, which contributes zeros to everything beforehand: a slice's next version is there as soon as the
/// first worker's contribution is.
#[test]
fn the_first_slice_of_a_step_leaves_before_its_backward_pass_ends() {
    let site = Site::new(patient(toy::job(2, 1, 2, 3)), Links::Quic);
    let (map, server) = (placement(&site.job), site.job.member(Role::Server, 0).unwrap());
    let (held, adapt) = hold(0);
    let wiring = Wiring { adapt, absent: vec![1], ..Wiring::default() };
    let cluster = Cluster::start_with(site, wiring);
    let network = cluster.site.network(&cluster.site.identity(Role::Worker, "1"));
    let scheduler = cluster.scheduler.to_string();
    cluster.site.runtime.block_on(async {
        let mut member = Member::join(&network, &scheduler, MemberRole::Worker).await.unwrap();
        let Membership { epoch, leases, servers, .. } = member.membership().await;
        let node = leases.iter().find(|l| l.worker == 1).unwrap().node;
        let mut lane = Lane::dial(&network, &servers[0].address, &server).await;
        for slice in map.slices() {
            let push = Push { epoch, step: 0, slice: slice.id, node, codec: 0 };
            assert_eq!(lane.pushed(&push, &vec![0.0; slice.elements]).await, Answer::Accepted(false));
        }
        let first = held.reached();
        assert!(first > 1, "the backward pass begins at the last layer, not at parameter {first}");
        let not_yet = lane.pull(&Pull { slice: map.of_parameter(0)[0].id, version: 1, exact: false }).await;
        let answer =
            lane.pulled(&Pull { slice: map.of_parameter(first)[0].id, version: 1, exact: false }).await;
        assert!(matches!(answer, Answer::Values(_)), "{answer:?}");
        assert!(!held.ended(), "the backward pass was over");
        assert!(!lane.answered(not_yet), "the first layer's gradient does not exist yet");
        held.release();
        assert!(matches!(lane.answer(not_yet).await, Answer::Values(_)));
        member.tell(&Failure { reason: "seen enough".into() }).await;
        in_time("the scheduler to hang up", member.connection().closed()).await;
    });
    // One worker's word ends no run that another can go on with.
    let outcome = cluster.outcome();
    assert!(matches!(&outcome, Outcome::Finished(f) if f.workers_lost == 1), "{outcome:?}");
}

/// 16 MiB of parameters in slices of 1 MiB.
fn wide_job() -> JobSpec {
    let model = ModelSpec::Mlp { inputs: 512, hidden: vec![4096, 512], classes: 10 };
    // The test plays workers that report no step, so that no hash of any is due.
    let audit = Audit { hash_every: 0, ..Audit::default() };
    JobSpec { model, slice_bytes: 1 << 20, audit, ..patient(toy::job(2, 1, 2, 1000)) }
}

/// A server as a process of its own: its resident memory is nobody else's.
fn start_server(site: &Site, scheduler: &str, dir: &Path) -> process::Started {
    let file = files::write_job(dir);
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("slice_bytes = 1024", "slice_bytes = 1048576");
    std::fs::write(&file, text.replace("name = \"small\"", "name = \"toy\"\ntrust_domain = \"test.local\""))
        .unwrap();
    let identity = dir.join("server-0");
    site.identity(Role::Server, "0").save(&identity).unwrap();
    let arguments = [
        "node",
        "--role",
        "server",
        "--index",
        "0",
        "--config",
        file.to_str().unwrap(),
        "--identity",
        identity.to_str().unwrap(),
        "--scheduler",
        scheduler,
    ];
    process::start(PROGRAM, &arguments, dir)
}

/// A process's resident memory in bytes; `None` once it has ended.
fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// A peer that asks for parameters without end, over many versions, and never reads an answer, costs the server no more
/// memory than the credit that it grants, and is cut off.
#[test]
fn a_peer_that_never_reads_costs_its_credit_and_is_cut_off() {
    /// What allocators and QUIC's own bookkeeping may add.
    const ALLOWANCE: u64 = 16 << 20;
    /// Versions that the parameters go through under attack; each is new memory.
    const VERSIONS: u64 = 14;
    let site = Site::new(wide_job(), Links::Quic);
    let map = placement(&site.job);
    let (scheduler, running) = site.scheduler();
    let folder = tempfile::tempdir().unwrap();
    let server = start_server(&site, &scheduler, folder.path());
    let networks: Vec<Network> =
        ["0", "1"].map(|index| site.network(&site.identity(Role::Worker, index))).into();
    let id = site.job.member(Role::Server, 0).unwrap();
    let (credit, pid) = (TransportConfig::DEFAULT_DATA_CREDIT.bytes, server.pid());

    site.runtime.block_on(async {
        let mut members = Vec::new();
        for network in &networks {
            members.push(Member::join(network, &scheduler, MemberRole::Worker).await.unwrap());
        }
        let Membership { epoch, leases, servers, .. } = members[0].membership().await;
        let address = &servers[0].address;
        let mut lanes = Vec::new();
        for (network, lease) in networks.iter().zip(&leases) {
            lanes.push((Lane::dial(network, address, &id).await, lease.node));
        }
        let zeros = Bytes::from(vec![0; 1 << 20]);
        let mut version = 0;
        // As many versions in peace first, with answers that are read: memory that a server needs anyway.
        for _ in 0..4 {
            complete_step(&mut lanes, &map, epoch, version, &zeros).await;
            version += 1;
            let (reader, _) = &mut lanes[0];
            for slice in map.slices() {
                assert!(matches!(
                    reader.pulled(&Pull { slice: slice.id, version, exact: false }).await,
                    Answer::Values(_)
                ));
            }
        }
        let before = resident(pid).unwrap();
        let peak = Arc::new(AtomicU64::new(before));
        let watch = watch(pid, Arc::clone(&peak));

        let (mut asked, mut cut_off, mut told) = (0, 0, 0);
        let mut silent = Silent::dial(&networks[1], address, &id).await;
        for _ in 0..VERSIONS {
            // One round of every slice a stream, and two streams a version: no more than a worker's allowance leaves.
            for _ in 0..2 {
                if silent.connection.stats().messages_sent > 0
                    && let Ok(why) = tokio::time::timeout(Duration::ZERO, silent.connection.closed()).await
                {
                    cut_off += 1;
                    told += u32::from(cut_off_with_reason(&why));
                    silent = Silent::dial(&networks[1], address, &id).await;
                }
                let pulls = map.slices().iter().map(|s| Pull { slice: s.id, version, exact: false });
                asked += silent.ask(pulls).await;
            }
            complete_step(&mut lanes, &map, epoch, version, &zeros).await;
            version += 1;
        }
        watch.store(true, Ordering::SeqCst);
        // Each is answered with 1 MiB: many times what may wait.
        assert!(asked > 300, "{asked} pulls are no attack");
        assert!(told > 0, "it was cut off {cut_off} times and never told why");
        let grown = peak.load(Ordering::SeqCst) - before;
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{asked} pulls, cut off {} times, grown by {} MiB over {} MiB",
            cut_off,
            mib(grown),
            mib(before)
        );
        assert!(
            grown <= credit + ALLOWANCE,
            "{asked} unread pulls cost the server {} MiB; the credit is {} MiB",
            mib(grown),
            mib(credit)
        );
        give_up(members.iter_mut()).await;
    });
    assert_eq!(server.wait().code(), Some(0), "the server was none the worse for it");
    assert_eq!(running.join().unwrap().unwrap(), Outcome::Failed(GIVEN_UP.into()));
}

/// Every slice's contributions to a step, of both workers.
async fn complete_step(
    lanes: &mut [(Lane, testudo_actors::tree::Node)],
    map: &testudo_actors::placement::SliceMap,
    epoch: u64,
    step: u64,
    zeros: &Bytes,
) {
    for (lane, node) in lanes {
        let mut requests = Vec::new();
        for slice in map.slices() {
            let push = Push { epoch, step, slice: slice.id, node: *node, codec: 0 };
            requests.push(lane.push_bytes(&push, zeros.slice(..slice.elements * 4)).await);
        }
        for request in requests {
            assert_eq!(lane.answer(request).await, Answer::Accepted(false));
        }
    }
}

/// Keeps the highest resident memory of a process until it is told to stop.
fn watch(pid: u32, peak: Arc<AtomicU64>) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    std::thread::spawn(move || {
        while !stopping.load(Ordering::SeqCst) {
            peak.fetch_max(resident(pid).unwrap_or(0), Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    stop
}

/// A connection that asks and never reads.
struct Silent {
    connection: testudo_transport::Connection,
    kept: VecDeque<(testudo_transport::Sender, testudo_transport::Receiver)>,
}

impl Silent {
    async fn dial(network: &Network, address: &str, server: &SpiffeId) -> Silent {
        let connection = in_time("a connection", network.connect(address, server)).await.unwrap();
        let mut stream = connection.open(Class::Data, 0).await.unwrap();
        let hello = Outgoing::new(Hello::KIND, 0, secret(network).hello().encode());
        stream.0.send(hello).await.unwrap();
        Silent { connection, kept: VecDeque::from([stream]) }
    }

    /// Sends these pulls on a stream of their own, or on one of the streams that it has when the server allows no more, as
    /// far as the server takes them at once; how many that was.
    async fn ask(&mut self, pulls: impl Iterator<Item = Pull>) -> u64 {
        let opening = self.connection.open(Class::Data, 0);
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(20), opening).await {
            self.kept.push_back(stream);
        } else {
            self.kept.rotate_left(1.min(self.kept.len()));
        }
        let Some((say, _unread)) = self.kept.back_mut() else { return 0 };
        let mut sent = 0;
        for pull in pulls {
            let message = Outgoing::new(Pull::KIND, sent, pull.encode());
            match tokio::time::timeout(Duration::from_millis(100), say.send(message)).await {
                Ok(Ok(())) => sent += 1,
                _ => break,
            }
        }
        sent
    }
}

/// Whether the server said why it closed the connection. That datagram may be lost among so many; a peer that goes on then
/// learns by a reset that the connection is no more.
fn cut_off_with_reason(why: &Error) -> bool {
    let stalled = CloseCode::Stalled.number();
    match why {
        Error::Closed { by_peer: true, code, .. } if *code == stalled => true,
        Error::Lost { what, .. } if what.contains("reset") => false,
        other => panic!("{other}"),
    }
}

/// Bytes of a run that nobody on the network may see: any so many bytes of a gradient or a parameter, and what headers say.
struct Secrets {
    values: HashSet<[u8; WINDOW]>,
    texts: Vec<&'static [u8]>,
}

const WINDOW: usize = 16;

impl Secrets {
    /// What of them occurs in these datagrams: windows of values, and texts.
    fn found_in(&self, datagrams: &[Vec<u8>]) -> (usize, Vec<&str>) {
        let mut windows = HashSet::new();
        for datagram in datagrams {
            windows.extend(datagram.windows(WINDOW).filter(|w| self.values.contains(*w)));
        }
        let occurs = |text: &[u8]| datagrams.iter().any(|d| d.windows(text.len()).any(|w| w == text));
        let texts =
            self.texts.iter().filter(|t| occurs(t)).map(|t| std::str::from_utf8(t).unwrap()).collect();
        (windows.len(), texts)
    }
}

/// Everything that travels between the nodes of a whole run is recorded on the way; no parameter, no gradient and no header
/// is in it. The same search finds all of them where the same messages are not encrypted.
#[test]
fn nothing_on_the_network_can_be_read() {
    let named =
        || JobSpec { name: "a-job-to-be-kept-secret".into(), slice_bytes: 256, ..toy::job(2, 2, 4, 8) };
    let job = || patient(named());
    // The simulator sends the same values: it gives what to look for.
    let mut simulation = Simulation::new(job(), 1, SumOrder::Canonical);
    let expected = simulation.finish();
    let windows = |values: &Bytes| -> Vec<[u8; WINDOW]> {
        let windows = values.windows(WINDOW).step_by(4).map(|w| w.try_into().unwrap());
        // Runs of zeros, as of untouched biases, say nothing.
        windows.filter(|w: &[u8; WINDOW]| w.iter().filter(|b| **b == 0).count() < WINDOW / 2).collect()
    };
    let values: HashSet<_> = simulation.carried.iter().flat_map(|(_, _, v)| windows(v)).collect();
    assert!(values.len() > 5_000, "{} windows are few", values.len());
    let texts: Vec<&[u8]> = vec![b"spiffe://", b"a-job-to-be-kept-secret", b"test.local", b"/worker/1"];
    let secrets = Secrets { values, texts };

    let record = Record::default();
    let proxies = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (kept, keeping) = (Arc::clone(&proxies), record.clone());
    let advertise = move |_, _, node| {
        let proxy = Proxy::start(node, keeping.clone());
        let address = proxy.address;
        kept.lock().unwrap().push(proxy);
        address
    };
    let wiring = Wiring { advertise: Box::new(advertise), ..Wiring::default() };
    let (finished, _) = Cluster::start_with(Site::new(job(), Links::Quic), wiring).finish();
    assert_eq!(finished.params_blake3, expected.params_blake3, "the run is the one that was looked for");
    assert_eq!(proxies.lock().unwrap().len(), 3, "the scheduler and both servers were behind a recorder");
    let datagrams = record.datagrams();
    let bytes: usize = datagrams.iter().map(Vec::len).sum();
    let carried: usize = simulation.carried.iter().map(|(_, _, values)| values.len()).sum();
    assert!(bytes > carried, "{bytes} bytes were recorded, {carried} bytes of values were sent");
    assert_eq!(secrets.found_in(&datagrams), (0, Vec::new()));

    let plain = in_the_clear(&simulation, &job());
    let (found, texts) = secrets.found_in(&plain);
    assert_eq!(texts, ["spiffe://", "a-job-to-be-kept-secret", "test.local", "/worker/1"]);
    assert!(found * 10 >= secrets.values.len() * 9, "{found} of {} windows were found", secrets.values.len());
}

/// The same messages as frames without encryption, cut into datagrams.
fn in_the_clear(simulation: &Simulation, job: &JobSpec) -> Vec<Vec<u8>> {
    let node = |role| Address::new(job.member(role, 1).unwrap(), None).unwrap();
    let mut stream = Vec::new();
    for (kind, body, payload) in &simulation.carried {
        let (from, to) = match *kind {
            Push::KIND => (node(Role::Worker), node(Role::Server)),
            _ => (node(Role::Server), node(Role::Worker)),
        };
        let header = [encode(&Envelope { from, to, request: 1, traceparent: None }), body.clone()].concat();
        let prelude = Prelude {
            kind: *kind,
            header_len: u32::try_from(header.len()).unwrap(),
            payload_len: payload.len() as u64,
        };
        stream.extend([&prelude.encode()[..], &header, payload, &[0; 32]].concat());
    }
    stream.chunks(1_452).map(<[u8]>::to_vec).collect()
}
