//! A job of `testudo deploy --to kubernetes` that goes on by itself, under a stand-in for Kubernetes: no Kubernetes is here.
//!
//! Without an interpreter in `TESTUDO_PYTHON` that has kubernetes-validate, the tests say so and do nothing; with
//! `TESTUDO_REQUIRE_PYTHON=1` that is a failure.

use std::path::Path;

use serde_json::Value;
use testudo_tests::files::text;
use testudo_tests::kubernetes::Cluster;
use testudo_tests::kubernetes::policy::{Action, Verdict};
use testudo_tests::process::{self, Signal};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

const SCHEDULER: &str = "small-scheduler";
const SERVER: &str = "small-server";
const WORKER: &str = "small-worker";
const PEER: &str = "small-peer";

/// The step of a whole checkpoint beyond the next ones after `step`.
fn beyond(cluster: &Cluster, step: u64) -> Option<u64> {
    cluster.checkpoint().filter(|newest| *newest > step + 20)
}

/// Kills a pod's container once there is a checkpoint, and waits until another life has come beyond; the steps of the two checkpoints.
fn goes_on_without(cluster: &mut Cluster, job: &str, index: usize) -> [u64; 2] {
    let before = cluster.until("a checkpoint", Cluster::checkpoint);
    cluster.signal(job, index, Signal::KILL);
    let after = cluster.until("the job to go on", |cluster| {
        beyond(cluster, before).filter(|_| cluster.made(SCHEDULER, 0) >= 2)
    });
    [before, after]
}

/// How pods of a Job have failed, in order, and what it made of that.
fn ended(cluster: &Cluster, job: &str) -> Vec<(u8, Action)> {
    let all = cluster.failures.iter().filter(|failure| failure.job == job);
    all.map(|failure| (failure.failed.status, failure.action)).collect()
}

/// Stops the run, whose Jobs then end in order, with the bits of one that nothing happened to; what it came to.
fn ends_undisturbed(cluster: &mut Cluster, place: &Path, jobs: &[&str]) -> Value {
    cluster.stop();
    cluster.until("its end", |cluster| jobs.iter().all(|job| cluster.verdict(job).is_some()).then_some(()));
    for job in jobs {
        assert_eq!(cluster.verdict(job), Some(Verdict::Complete), "{job}: {:#?}", cluster.failures);
    }
    let summary = std::fs::read_to_string(cluster.run().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["steps"], process::steps(&cluster.run()), "each step stands once in metrics.jsonl");
    let (file, local) = (place.join("small.toml"), place.join("local"));
    let set = format!("training.max_steps={}", summary["steps"]);
    let whole = ["run", text(&file), "--run-dir", text(&local), "--quiet", "--json", "--set", &set];
    let undisturbed = process::run(PROGRAM, &whole, &local).succeeded().json();
    assert_eq!(undisturbed["params_blake3"], summary["params_blake3"], "{:#?}", cluster.failures);
    summary
}

/// The scheduler's death and a server's cost what was done since the newest checkpoint, and no bit: pods are made again, the scheduler's
/// signs from where it goes on, and a worker and a server of the life before, which were stopped while all others went, take part in
/// the next as new ones. That takes the scheduler five seconds to notice, of which fewer would be too few on a machine with other work.
#[test]
fn a_job_goes_on_when_its_scheduler_and_a_server_have_died() {
    let place = tempfile::tempdir().unwrap();
    // More restarts than it takes: a machine with other work may have a server missed that is there.
    let set = ["checkpoint.every_steps=10", "cluster.restarts=6"];
    let Some(mut cluster) = Cluster::prepare(PROGRAM, place.path(), 1, &set) else { return };
    let [_, second] = goes_on_without(&mut cluster, SCHEDULER, 0);

    for (job, index) in [(WORKER, 1), (SERVER, 0)] {
        cluster.signal(job, index, Signal::STOP);
    }
    let made = cluster.made(SCHEDULER, 0);
    cluster.signal(SERVER, 1, Signal::KILL);
    cluster.until("another scheduler", |cluster| (cluster.made(SCHEDULER, 0) > made).then_some(()));
    for (job, index) in [(WORKER, 1), (SERVER, 0)] {
        cluster.signal(job, index, Signal::CONT);
    }
    cluster.until("the job to go on again", |cluster| beyond(cluster, second));
    let summary = ends_undisturbed(&mut cluster, place.path(), &[SCHEDULER, SERVER, WORKER]);

    let deaths = ended(&cluster, SCHEDULER);
    assert_eq!(deaths[0], (137, Action::Count), "{:#?}", cluster.failures);
    assert!(deaths.len() >= 2 && deaths[1..].iter().all(|death| *death == (5, Action::Count)), "{deaths:?}");
    for (job, status, action) in [(SERVER, 137, Action::Count), (WORKER, 6, Action::Ignore)] {
        assert!(ended(&cluster, job).contains(&(status, action)), "{job}: {:#?}", cluster.failures);
    }
    let schedulers = cluster.failures.iter().filter(|failure| failure.job == SCHEDULER);
    let signed: Vec<bool> =
        schedulers.map(|failure| failure.said.contains("/operator/restarts in ")).collect();
    assert!(!signed[0] && signed[1..].iter().all(|signed| *signed), "all but the first: {signed:?}");
    assert!(summary["resumed_from_step"].as_u64() >= Some(second), "{summary}");
}

/// The same of a peer, whose server is lost with it; the other one is dismissed.
#[test]
fn a_job_goes_on_when_a_peer_has_died() {
    let place = tempfile::tempdir().unwrap();
    let set = ["checkpoint.every_steps=10", "cluster.placement=colocated"];
    let Some(mut cluster) = Cluster::prepare(PROGRAM, place.path(), 3, &set) else { return };
    let [first, _] = goes_on_without(&mut cluster, PEER, 1);
    let summary = ends_undisturbed(&mut cluster, place.path(), &[SCHEDULER, PEER]);
    assert!(summary["resumed_from_step"].as_u64() >= Some(first), "{summary}");
    assert!(
        ended(&cluster, SCHEDULER).iter().all(|death| *death == (5, Action::Count)),
        "{:#?}",
        cluster.failures
    );
    for end in [(137, Action::Count), (6, Action::Ignore)] {
        assert!(ended(&cluster, PEER).contains(&end), "{:#?}", cluster.failures);
    }
}

/// Where nobody is there to sign, the scheduler's death ends the job, and its pod says so.
#[test]
fn a_job_without_the_operators_secret_ends() {
    let place = tempfile::tempdir().unwrap();
    let set = ["checkpoint.every_steps=10"];
    let Some(mut cluster) = Cluster::prepare(PROGRAM, place.path(), 2, &set) else { return };
    cluster.without_secret("small-restarts");
    cluster.until("a checkpoint", Cluster::checkpoint);
    cluster.signal(SCHEDULER, 0, Signal::KILL);
    let verdict = cluster.until("the scheduler's end", |cluster| cluster.verdict(SCHEDULER));
    assert_eq!((verdict, cluster.made(SCHEDULER, 0)), (Verdict::PodFailurePolicy, 2));
    let last = cluster.failures.iter().rfind(|failure| failure.job == SCHEDULER).unwrap();
    assert_eq!((last.failed.container.as_str(), last.failed.status), ("job", 2), "{last:#?}");
    assert!(last.said.contains("the job does not go on by itself: nobody is here to sign"), "{last:#?}");
    assert_eq!(std::fs::read(cluster.run().join("summary.json")).unwrap(), b"", "nothing was come to");
}
