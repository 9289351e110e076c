//! A job of `testudo deploy --to kubernetes` that goes on by itself, under a stand-in for Kubernetes: no Kubernetes is here.
//!
//! Without an interpreter in `TESTUDO_PYTHON` that has kubernetes-validate, the tests say so and do nothing; with
//! `TESTUDO_REQUIRE_PYTHON=1` that is a failure.

use serde_json::Value;
use testudo_tests::files::text;
use testudo_tests::kubernetes::Cluster;
use testudo_tests::kubernetes::policy::{Action, Verdict};
use testudo_tests::process::{self, Signal};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

const JOBS: [&str; 3] = [SCHEDULER, SERVER, WORKER];
const SCHEDULER: &str = "small-scheduler";
const SERVER: &str = "small-server";
const WORKER: &str = "small-worker";

/// The scheduler's death and a server's cost what was done since the newest checkpoint, and no bit: pods are made again, the scheduler's
/// signs from where it goes on, and a worker and a server of the life before, which were stopped while all others went, take part in
/// the next as new ones. That takes the scheduler five seconds to notice, of which fewer would be too few on a machine with other work.
#[test]
fn a_job_goes_on_when_its_scheduler_and_a_server_have_died() {
    let place = tempfile::tempdir().unwrap();
    let set = ["checkpoint.every_steps=10"];
    let Some(mut cluster) = Cluster::prepare(PROGRAM, place.path(), 1, &set) else { return };
    let first = cluster.until("a checkpoint", Cluster::checkpoint);
    cluster.signal(SCHEDULER, 0, Signal::KILL);
    let again = |cluster: &Cluster, after: u64| cluster.checkpoint().filter(|step| *step > after + 20);
    let second = cluster.until("the job to go on", |cluster| {
        again(cluster, first).filter(|_| cluster.made(SCHEDULER, 0) == 2)
    });

    for (job, index) in [(WORKER, 1), (SERVER, 0)] {
        cluster.signal(job, index, Signal::STOP);
    }
    cluster.signal(SERVER, 1, Signal::KILL);
    cluster.until("another scheduler", |cluster| (cluster.made(SCHEDULER, 0) == 3).then_some(()));
    for (job, index) in [(WORKER, 1), (SERVER, 0)] {
        cluster.signal(job, index, Signal::CONT);
    }
    cluster.until("the job to go on again", |cluster| again(cluster, second));
    cluster.stop();
    cluster.until("its end", |cluster| JOBS.iter().all(|job| cluster.verdict(job).is_some()).then_some(()));
    for job in JOBS {
        assert_eq!(cluster.verdict(job), Some(Verdict::Complete), "{job}: {:#?}", cluster.failures);
    }

    let ended = |job: &str| -> Vec<(u8, Action)> {
        let all = cluster.failures.iter().filter(|failure| failure.job == job);
        all.map(|failure| (failure.failed.status, failure.action)).collect()
    };
    assert_eq!(ended(SCHEDULER), [(137, Action::Count), (5, Action::Count)], "{:#?}", cluster.failures);
    for (job, status, action) in [(SERVER, 137, Action::Count), (WORKER, 6, Action::Ignore)] {
        assert!(ended(job).contains(&(status, action)), "{job}: {:#?}", cluster.failures);
    }
    let signed = cluster.failures.iter().filter(|failure| failure.said.contains("signed by"));
    let signed: Vec<&str> = signed.map(|failure| failure.job.as_str()).collect();
    assert_eq!(signed, [SCHEDULER], "the second, not the first");
    let summary = std::fs::read_to_string(cluster.run().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert!(summary["resumed_from_step"].as_u64() >= Some(second), "{summary}");
    assert_eq!(summary["steps"], process::steps(&cluster.run()), "each step stands once in metrics.jsonl");

    let (file, local) = (place.path().join("small.toml"), place.path().join("local"));
    let set = format!("training.max_steps={}", summary["steps"]);
    let whole = ["run", text(&file), "--run-dir", text(&local), "--quiet", "--json", "--set", &set];
    let undisturbed = process::run(PROGRAM, &whole, &local).succeeded().json();
    assert_eq!(undisturbed["params_blake3"], summary["params_blake3"], "{:#?}", cluster.failures);
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
