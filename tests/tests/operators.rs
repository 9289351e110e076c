//! Operators over the transport that nodes use: what they may do, what they are told, and who may not.

#[path = "common/steered.rs"]
mod steered;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use steered::{PROGRAM, Place, STEPS, operate};
use testudo_actors::incarnation::Secret;
use testudo_actors::link::Network;
use testudo_actors::message::{Join, MemberRole, Outcome, Pull, Push, Shutdown};
use testudo_actors::node::RELEASE;
use testudo_actors::operator::Line;
use testudo_actors::placement::SliceId;
use testudo_tests::cluster::{Cluster, Links, Site, Wiring};
use testudo_tests::files::text;
use testudo_tests::member::{Answer, GIVEN_UP, Lane, Member, give_up, in_time, secret};
use testudo_tests::process::{self, Started, assert_nothing_left, steps};
use testudo_tests::stage::{job, play};
use testudo_transport::{CloseCode, Error, Role, SpiffeId};

const SLICE: SliceId = SliceId { parameter: 0, index: 0 };

/// Between two looks at a run's status.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

fn status(dir: &Path) -> Value {
    operate("status", dir, &["--json"]).succeeded().json()
}

/// The next status that `wanted` likes.
fn status_when(run: &mut Started, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    run.until(what, |dir| {
        let seen = status(dir);
        if wanted(&seen) {
            return Some(seen);
        }
        // An identity may connect so often and no more.
        std::thread::sleep(BETWEEN_LOOKS);
        None
    })
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Status, pause, status, resume, pause, stop: every command is answered, a paused run stands still without counting as
/// stalled, and what was stopped has the bits of a run that was never to go further.
#[test]
fn a_run_is_watched_paused_resumed_and_stopped() {
    let place = Place::new();
    let timeout = ["--set", "cluster.heartbeat_timeout_ms=5000", "--set", STEPS];
    let (mut run, dir) = place.start("run", &timeout);
    run.until("steps", |dir| (steps(dir) >= 5).then_some(()));
    let seen = status_when(&mut run, "the launcher and this one to be counted", |s| s["operators"] == 2);
    assert_eq!((&seen["job"], &seen["state"]), (&"small".into(), &"training".into()), "{seen}");
    let nodes: Vec<&str> =
        seen["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["server/0", "server/1", "worker/0", "worker/1"], "{seen}");
    assert!(seen["nodes"].as_array().unwrap().iter().all(|n| n["incarnation"] == 1), "{seen}");
    let shown = operate("status", &dir, &[]).succeeded().stdout;
    assert!(shown.contains("small: training") && shown.contains("worker/1"), "{shown}");

    let answer = operate("pause", &dir, &[]).succeeded().stdout;
    assert!(answer.starts_with("paused: what is under way ends with step "), "{answer}");
    let paused = status_when(&mut run, "a paused run", |s| s["step"] == s["until"]);
    assert_eq!((&paused["state"], &paused["paused"]), (&"paused".into(), &true.into()), "{paused}");
    let begun = std::time::Instant::now();
    // Well beyond the timeout after which a run that stands still is stalled.
    // Nobody asks meanwhile: an identity may connect so often and no more.
    run.until("time", |_| (begun.elapsed() > Duration::from_secs(7)).then_some(()));
    let later = status(&dir);
    assert_eq!(later["step"], paused["step"], "no step is begun: {later}");
    assert!(later["stalled"].is_null() && later["nodes"].as_array().unwrap().len() == 4, "{later}");
    assert_eq!(operate("pause", &dir, &[]).succeeded().stdout, "the run is paused already\n");
    let told = operate("pause", &dir, &["--json"]).succeeded().json();
    assert_eq!(told["scheduler"], "the run is paused already");

    let answer = operate("resume", &dir, &[]).succeeded().stdout;
    assert_eq!(answer, format!("resumed after step {}\n", paused["step"]));
    assert_eq!(operate("resume", &dir, &[]).succeeded().stdout, "the run was not paused\n");
    let on = status_when(&mut run, "more steps", |s| number(&s["step"]) > number(&paused["step"]) + 3);
    assert_eq!(on["state"], "training", "{on}");

    // Into a file, which says when it has begun.
    let watch = "exec \"$0\" status \"$1\" --watch --json --every 0.1 > \"$2\"";
    let shown = place.folder.path().join("watched");
    let words = ["-c", watch, PROGRAM, text(&dir), text(&shown)];
    let mut watched = process::start("sh", &words, Path::new("/no/mark"));
    let followed = || std::fs::read_to_string(&shown).unwrap_or_default();
    watched.until("the watcher to follow", |_| followed().contains('\n').then_some(()));
    operate("pause", &dir, &[]).succeeded().stdout.clear();
    status_when(&mut run, "a paused run", |s| s["step"] == s["until"]);
    let answer = operate("stop", &dir, &[]).succeeded().stdout;
    assert!(answer.starts_with("stopping after step "), "{answer}");
    let result = run.wait().succeeded().json();
    assert_eq!(result["stopped_early"], true, "{result}");
    let _ = watched.wait().succeeded();
    let followed = followed();
    let lines: Vec<Value> = followed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.len() > 1 && lines.last().unwrap()["state"] == "finished", "{followed}");

    assert_eq!(status(&dir)["state"], "finished", "what is over is told from its summary");
    assert!(!dir.join("control.json").exists());
    for command in ["pause", "resume", "stop"] {
        let late = operate(command, &dir, &[]);
        assert_eq!(late.code(), Some(4), "{late:#?}");
        assert!(late.stderr.contains("is over"), "{late:#?}");
    }
    assert_nothing_left(&dir);

    let taken = format!("training.max_steps={}", result["steps"]);
    let again = place.start("again", &["--set", &taken]).0.wait().succeeded().json();
    assert_eq!(again["params_blake3"], result["params_blake3"], "pauses changed bits");
}

/// A command that cannot be carried out is refused with why, and exits 3; whoever is no operator never commands.
#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let place = Place::new();
    let (mut run, dir) = place.start("run", &["--set", STEPS]);
    run.until("steps", |dir| (steps(dir) >= 3).then_some(()));
    let worker = dir.join("identities/worker-0");
    let not = operate("stop", &dir, &["--identity", worker.to_str().unwrap()]);
    assert_eq!(not.code(), Some(2), "{not:#?}");
    assert!(not.stderr.contains("worker/0: only an operator commands"), "{not:#?}");
    let nobody = operate("status", &dir, &["--scheduler", "127.0.0.1:9"]);
    assert_eq!(nobody.code(), Some(4), "{nobody:#?}");
    assert_eq!(process::run(PROGRAM, &["stop"], Path::new("/no/mark")).code(), Some(2));

    // A worker that stands still keeps the run from ending before it is asked again.
    process::send(run.node("worker", 0).pid, process::Signal::STOP);
    operate("stop", &dir, &[]).succeeded().stdout.clear();
    let refused = operate("pause", &dir, &[]);
    assert_eq!(refused.code(), Some(3), "{refused:#?}");
    assert!(refused.stderr.contains("the run is stopping after step"), "{refused:#?}");
    let again = operate("stop", &dir, &[]).succeeded();
    assert!(again.stdout.contains("already"), "{again:#?}");
    process::send(run.node("worker", 0).pid, process::Signal::CONT);
    assert_eq!(run.wait().succeeded().json()["stopped_early"], true);
}

/// Several operators at a time, and no more than there may be; who is turned away reads why, and the others are none the worse.
#[test]
fn operators_are_many_and_counted() {
    let wiring = Wiring { absent: vec![0], ..Wiring::default() };
    let cluster = Cluster::start_with(Site::new(job(1, 1, 1), Links::Quic), wiring);
    let (site, address) = (&cluster.site, cluster.scheduler.to_string());
    let scheduler = site.job.member(Role::Scheduler, 0).unwrap();
    site.runtime.block_on(async {
        let mut lines = Vec::new();
        let refused = loop {
            let network = site.network(&site.identity(Role::Operator, &format!("person-{}", lines.len())));
            let mut line = match in_time("a line", Line::dial(&network, &address, &scheduler)).await {
                Ok(line) => line,
                // The scheduler's word comes while the line is being made, or just after.
                Err(error) => break error.to_string(),
            };
            match in_time("an answer", line.resume()).await {
                Ok(answer) => assert_eq!(answer, Ok("the run was not paused".into())),
                Err(error) => break error.to_string(),
            }
            lines.push((line, network));
            assert!(lines.len() <= 16, "there is no end of operators");
        };
        assert!(refused.contains("16 operators are connected"), "{refused}");
        for (line, _) in &mut lines {
            assert!(in_time("an answer", line.resume()).await.is_ok(), "the others go on");
        }
        lines.pop().unwrap().0.close();
        // There is room again as soon as the scheduler has seen it leave.
        let network = site.network(&site.identity(Role::Operator, "late"));
        loop {
            let line = in_time("a line", Line::dial(&network, &address, &scheduler)).await;
            if let Ok(mut line) = line
                && in_time("an answer", line.resume()).await.is_ok()
            {
                break;
            }
        }
        let answer = in_time("an answer", lines[0].0.stop()).await.unwrap();
        assert_eq!(answer, Ok("stopped before training began".into()));
    });
    cluster.outcome();
}

/// What becomes of a connection.
async fn ended(lane: &Lane) -> (u32, String) {
    match in_time("the end", lane.connection().closed()).await {
        Error::Closed { by_peer: true, code, reason, .. } => (code, reason.to_string()),
        other => panic!("{other}"),
    }
}

/// semantics.md, line 10: a server serves the process that the scheduler admitted. Another holder of the same key, a former
/// incarnation above all, is refused there too, and the live one is none the worse.
#[test]
fn another_incarnation_of_a_live_identity_is_refused_by_servers() {
    play(job(2, 1, 2), async |stage| {
        let server = stage.job.member(Role::Server, 0).unwrap();
        let (address, network) = (stage.servers[0].clone(), stage.networks[0].clone());
        let stranger = Secret::new().unwrap();
        let another = Secret::known(secret(&stage.networks[1]).commitment());
        for wrong in [stranger, another, secret(&stage.networks[1])] {
            let mut lane = Lane::dial_as(&network, &address, &server, &wrong).await;
            let push = Push { epoch: stage.epoch, ..stage.push_of(0, 0, SLICE) };
            lane.try_push(&push, &[1.0; 4]).await;
            let (code, reason) = ended(&lane).await;
            assert_eq!(code, CloseCode::Admission.number(), "{reason}");
            assert!(reason.contains("another incarnation"), "{reason}");
        }
        // Who says something else first is not heard at all.
        let connection = network.connect(&address, &server).await.unwrap();
        let mut silent = Lane::open(&connection).await;
        silent.push(&stage.push_of(0, 0, SLICE), &[1.0; 4]).await;
        let (code, reason) = ended(&silent).await;
        assert_eq!(
            (code, reason.as_str()),
            (CloseCode::Policy.number(), "the first word to a server is a hello")
        );
        // The live ones go on.
        stage.complete(0, SLICE, 1.0).await;
    });
}

/// How a worker joins that has this secret.
fn worker(secret: &Secret) -> Join {
    let fingerprint = testudo_kernels::fingerprint();
    Join { release: RELEASE.into(), fingerprint, address: None, commitment: secret.commitment() }
}

/// A worker that was lost while the job formed comes back as its next incarnation; the former one is refused by servers.
#[test]
fn a_former_incarnation_is_refused_by_servers() {
    let wiring = Wiring { absent: vec![0, 1], ..Wiring::default() };
    let cluster = Cluster::start_with(Site::new(job(2, 1, 2), Links::Quic), wiring);
    let (site, scheduler) = (&cluster.site, cluster.scheduler.to_string());
    let server = site.job.member(Role::Server, 0).unwrap();
    let of = |index: &str| site.network(&site.identity(Role::Worker, index));
    site.runtime.block_on(async {
        let (network, other) = (of("0"), of("1"));
        let (former, live) = (Secret::new().unwrap(), Secret::new().unwrap());
        let first = Member::join_as(&network, &scheduler, &worker(&former)).await.unwrap();
        first.connection().close(0, "dies");
        // Refused until the scheduler has seen the former one's end.
        let mut member = loop {
            match Member::join_as(&network, &scheduler, &worker(&live)).await {
                Ok(member) => break member,
                Err(reason) => assert!(reason.contains("takes part already"), "{reason}"),
            }
        };
        let mut other = Member::join(&other, &scheduler, MemberRole::Worker).await.unwrap();
        let membership = member.membership().await;
        let entry = membership.workers.iter().find(|w| w.index == 0).unwrap();
        assert_eq!((entry.incarnation, entry.commitment), (2, live.commitment()));
        let address = membership.servers[0].address.clone();
        only_the_live_is_heard(&address, &server, (&network, &former), (&network, &live)).await;
        give_up([&mut member, &mut other].into_iter()).await;
    });
    assert_eq!(cluster.outcome(), Outcome::Failed(GIVEN_UP.into()));
}

/// The server at `address` hears who is admitted now, by its network and its secret, and not who was.
async fn only_the_live_is_heard(
    address: &str,
    server: &SpiffeId,
    (network, former): (&Network, &Secret),
    live: (&Network, &Secret),
) {
    let ghost = Lane::dial_as(network, address, server, former).await;
    assert_eq!(ended(&ghost).await.0, CloseCode::Admission.number());
    let mut lane = Lane::dial_as(live.0, address, server, live.1).await;
    let pulled = lane.pulled(&Pull { slice: SLICE, version: 0, exact: false }).await;
    assert!(matches!(pulled, Answer::Values(_)), "{pulled:?}");
}

/// The same of a former life of the job, whose nodes have the same identities: what they show is nothing to the servers of the next.
#[test]
fn who_took_part_in_a_former_life_is_refused_by_the_servers_of_the_next() {
    let site = Site::new(job(2, 1, 2), Links::Quic);
    let former = site.network(&site.identity(Role::Worker, "0"));
    let (scheduler, running) = site.scheduler();
    site.runtime.block_on(async {
        let server = site.network(&site.identity(Role::Server, "0"));
        let server = Member::join(&server, &scheduler, MemberRole::Server).await.unwrap();
        let mut member = Member::join(&former, &scheduler, MemberRole::Worker).await.unwrap();
        server.connection().close(0, "dies");
        assert!(member.hear_of::<Shutdown>().await.may_go_on, "it may take part in the next");
        member.connection().close(0, "left");
    });
    assert!(matches!(running.join().unwrap().unwrap(), Outcome::ServerLost(_)));

    let wiring = Wiring { absent: vec![0, 1], ..Wiring::default() };
    let cluster = Cluster::start_with(site, wiring);
    let (site, scheduler) = (&cluster.site, cluster.scheduler.to_string());
    let server = site.job.member(Role::Server, 0).unwrap();
    let [network, other] = ["0", "1"].map(|index| site.network(&site.identity(Role::Worker, index)));
    site.runtime.block_on(async {
        let live = Secret::new().unwrap();
        let mut member = Member::join_as(&network, &scheduler, &worker(&live)).await.unwrap();
        let mut other = Member::join(&other, &scheduler, MemberRole::Worker).await.unwrap();
        let address = member.membership().await.servers[0].address.clone();
        only_the_live_is_heard(&address, &server, (&former, &secret(&former)), (&network, &live)).await;
        give_up([&mut member, &mut other].into_iter()).await;
    });
    assert_eq!(cluster.outcome(), Outcome::Failed(GIVEN_UP.into()));
}
