//! What the launcher does about processes that die, on real processes: `testudo run`, and SIGKILL.

use std::path::PathBuf;

use serde_json::Value;
use testudo_tests::place::Place;
use testudo_tests::process::{self, Ended, Signal, Started, assert_nothing_left, nodes, steps};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// More steps than any of these runs takes: they are stopped.
const ENDLESS: &str = "training.max_steps=100000000";

/// Stops a run, which must then have the bits of one that nothing happened to and that was never to go further.
fn ends_undisturbed(place: &Place, run: Started) -> Ended {
    run.signal(Signal::INT);
    let ended = run.wait().succeeded();
    let result = ended.json();
    let set = format!("training.max_steps={}", result["steps"]);
    let whole = place.start("whole", &["--quiet", "--workers", "1", "--set", &set]).wait().succeeded().json();
    assert_eq!(hash(&whole), hash(&result), "{}", ended.stderr);
    ended
}

fn hash(result: &Value) -> &str {
    result["params_blake3"].as_str().expect("a hash")
}

fn scheduler_log(run: &mut Started, what: &str, count: usize) {
    run.until(&format!("{count} times {what:?} in the scheduler's log"), |dir| {
        let log = std::fs::read_to_string(dir.join("logs/scheduler-0.log")).unwrap_or_default();
        (log.matches(what).count() >= count).then_some(())
    });
}

/// semantics.md, line 10: twenty deaths, of whichever worker runs, whenever; of all of them at once, if it so happens.
#[test]
fn workers_killed_twenty_times_change_no_bit() {
    let place = Place::small(PROGRAM);
    let options =
        ["--workers", "4", "--set", "training.logical_shards=4", "--set", "cluster.worker_restarts=20"];
    let mut run = place.start("killed", &[&options[..], &["--set", ENDLESS]].concat());
    run.until_steps(5);
    let mut random = u64::from(std::process::id());
    let mut below = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    for _ in 0..20 {
        let running = run.until("a worker to run", |dir| {
            let workers: Vec<_> = nodes(dir).into_iter().filter(|node| node.role == "worker").collect();
            Some(workers).filter(|workers| !workers.is_empty())
        });
        run.kill_child(running[below(running.len())].pid);
        std::thread::sleep(std::time::Duration::from_millis(below(500) as u64));
    }
    scheduler_log(&mut run, "has come back", 1);
    let taken = steps(&place.run_dir("killed"));
    run.until_steps(taken + 20);
    let ended = ends_undisturbed(&place, run);
    assert_eq!(ended.stderr.matches("is started again in").count(), 20, "{}", ended.stderr);
    assert_nothing_left(&place.run_dir("killed"));
}

/// Beyond its budget a worker is not started again, and the run goes on without it.
#[test]
fn a_worker_beyond_its_budget_is_gone() {
    let place = Place::small(PROGRAM);
    let mut run =
        place.start("run", &["--workers", "2", "--set", ENDLESS, "--set", "cluster.worker_restarts=1"]);
    run.until_steps(5);
    let worker = run.node("worker", 1).pid;
    run.kill_child(worker);
    scheduler_log(&mut run, "worker/1 has come back, as its incarnation 2", 1);
    let worker = run.node("worker", 1).pid;
    run.kill_child(worker);
    scheduler_log(&mut run, "worker/1 was lost", 2);
    let taken = steps(&place.run_dir("run"));
    run.until_steps(taken + 20);
    let ended = ends_undisturbed(&place, run);
    assert!(ended.stderr.contains("worker/1 is started again in 0.25 s (restart 1 of 1"), "{}", ended.stderr);
    assert!(ended.stderr.contains("(cluster.worker_restarts) and is not started again"), "{}", ended.stderr);
}

/// The only worker may die and come back: the run goes on where the servers are.
#[test]
fn the_only_worker_comes_back() {
    let place = Place::small(PROGRAM);
    let mut run = place.start("run", &["--workers", "1", "--servers", "2", "--set", ENDLESS]);
    run.until_steps(10);
    process::send(run.node("worker", 0).pid, Signal::KILL);
    scheduler_log(&mut run, "nobody who held parameters was left", 1);
    let taken = steps(&place.run_dir("run"));
    run.until_steps(taken + 20);
    ends_undisturbed(&place, run);
}

/// With the budget spent and nobody left, the run ends with the last death.
#[test]
fn a_run_whose_only_worker_keeps_dying_ends_with_its_name() {
    let place = Place::small(PROGRAM);
    let options = ["--workers", "1", "--quiet", "--set", ENDLESS, "--set", "cluster.worker_restarts=1"];
    let mut run = place.start("run", &options);
    run.until_steps(5);
    process::send(run.node("worker", 0).pid, Signal::KILL);
    scheduler_log(&mut run, "worker/0 has come back", 1);
    process::send(run.node("worker", 0).pid, Signal::KILL);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    let log = std::fs::read_to_string(place.run_dir("run").join("logs/worker-0.log")).unwrap();
    let last = log.lines().last().unwrap();
    for part in ["worker/0 died more than 1 times", "no worker is left", "SIGKILL", last] {
        assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
    }
    assert_nothing_left(&place.run_dir("run"));
}

/// A server's death, and the scheduler's, cost what was done since the newest checkpoint, and no bit; the run says what happened, and
/// goes on by itself as often as it may.
#[test]
fn a_dead_server_or_scheduler_restarts_the_job_from_its_checkpoint() {
    let place = Place::small(PROGRAM);
    let options = ["--set", ENDLESS, "--set", "checkpoint.every_steps=20", "--set", "cluster.restarts=2"];
    let mut run = place.start("run", &options);
    let whole = |dir: &std::path::Path, after: u64| {
        let at = |step: u64| dir.join(format!("checkpoint/step-{step:08}/manifest.json")).exists();
        (after / 20 + 1..after / 20 + 5000).map(|n| n * 20).find(|step| at(*step))
    };
    let mut after = 0;
    for (round, (role, index)) in [("server", 1), ("scheduler", 0)].into_iter().enumerate() {
        after = run.until("a checkpoint", |dir| whole(dir, after));
        process::send(run.node(role, index).pid, Signal::KILL);
        run.until("the job to go on", |dir| {
            dir.join(format!("job-{}.signed", round + 1)).exists().then_some(())
        });
        // What was done again is cut off by now. A checkpoint of the life before may be newer than `after`, but these steps are the new
        // life's.
        let taken = steps(&place.run_dir("run"));
        run.until_steps(taken + 20);
    }
    run.until("another checkpoint", |dir| whole(dir, after + 40));
    let ended = ends_undisturbed(&place, run);
    for part in [
        "server/1 ended before the run was over: killed by signal 9 (SIGKILL)",
        "scheduler/0 ended before the run was over: killed by signal 9 (SIGKILL)",
        "goes on from its newest checkpoint in 0.25 s (restart 1 of 2 within 10 minutes)",
        "(restart 2 of 2 within 10 minutes)",
        "resuming from step",
    ] {
        assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
    }
    assert_nothing_left(&place.run_dir("run"));
}

fn whole_steps(dir: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir.join("checkpoint")) else { return Vec::new() };
    let mut steps: Vec<_> = entries.flatten().map(|entry| entry.path().join("manifest.json")).collect();
    steps.retain(|manifest| manifest.exists());
    steps.sort();
    steps.into_iter().filter_map(|manifest| manifest.parent().map(PathBuf::from)).collect()
}

/// A newest checkpoint that is damaged is passed over, and the one before gives the same bits.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let place = Place::small(PROGRAM);
    let options = ["--workers", "2", "--set", ENDLESS, "--set", "checkpoint.every_steps=20"];
    let mut run = place.start("run", &options);
    run.until("two checkpoints", |dir| (whole_steps(dir).len() >= 2).then_some(()));
    // No further checkpoint becomes whole: nobody moves until the run goes on.
    run.hold_still();
    let dir = place.run_dir("run");
    let newest = whole_steps(&dir).pop().unwrap();
    std::fs::write(newest.join("server-0.part.age"), "nothing").unwrap();
    process::send(run.node("server", 1).pid, Signal::KILL);
    run.until("the job to go on", |dir| dir.join("job-1.signed").exists().then_some(()));
    let taken = steps(&dir);
    run.until_steps(taken + 20);
    let ended = ends_undisturbed(&place, run);
    assert!(ended.stderr.contains("is passed over: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("with 2 workers as its cluster file says"), "{}", ended.stderr);
}

/// A folder of checkpoints that trusts itself alone, as whoever may write there could leave it: nothing goes on from it.
#[test]
fn a_checkpoint_that_the_audit_log_does_not_vouch_for_is_not_gone_on_from() {
    let place = Place::small(PROGRAM);
    let other =
        ["--workers", "2", "--quiet", "--set", "training.max_steps=20", "--set", "checkpoint.at_end=true"];
    let _ = place.start("other", &other).wait().succeeded();
    let mut run = place.start("run", &["--workers", "2", "--quiet", "--set", ENDLESS]);
    run.until_steps(5);
    run.hold_still();
    let (from, to) = (place.run_dir("other").join("checkpoint"), place.run_dir("run").join("checkpoint"));
    let copied = std::process::Command::new("cp")
        .args(["-r", "--remove-destination"])
        .arg(from.join("."))
        .arg(&to)
        .status();
    assert!(copied.unwrap().success());
    // The run may have gone on as another user.
    let owner = format!("--reference={}", to.display());
    let owned = std::process::Command::new("chown").args(["-R", &owner]).arg(&to).status();
    assert!(owned.unwrap().success());
    process::send(run.node("server", 1).pid, Signal::KILL);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("the audit log names neither this checkpoint"), "{}", ended.stderr);
    assert_nothing_left(&place.run_dir("run"));
}

/// Beyond its budget, and without a checkpoint, the run ends, and says why it does not go on.
#[test]
fn a_job_beyond_its_budget_ends() {
    let place = Place::small(PROGRAM);
    let mut run = place.start("none", &["--quiet", "--set", ENDLESS]);
    run.until_steps(5);
    process::send(run.node("server", 0).pid, Signal::KILL);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("holds no whole checkpoint"), "{}", ended.stderr);
}

/// `testudo scale`: further workers are started and join, others leave in order, and no bit changes.
#[test]
fn a_run_is_scaled_by_its_operator() {
    let place = Place::small(PROGRAM);
    let options = ["--workers", "2", "--set", "training.logical_shards=4", "--set", "cluster.max_workers=4"];
    let patient = ["--set", "transport.idle_timeout_ms=60000", "--set", ENDLESS];
    let mut run = place.start("run", &[&options[..], &patient].concat());
    run.until_steps(5);
    let dir = place.run_dir("run");
    let scale = |workers: &str| {
        process::run(PROGRAM, &["scale", dir.to_str().unwrap(), "--workers", workers], &place.run_dir("none"))
    };
    let refused = scale("5");
    assert!(refused.code() == Some(3) && refused.stderr.contains("1 to 4 workers"), "{refused:?}");
    assert!(!dir.join("identities/worker-2").exists(), "who was never wanted has no key");
    assert!(scale("4").succeeded().stdout.contains("4 workers are wanted"));
    // Either may join first, and who has not joined does not leave.
    for worker in [2, 3] {
        scheduler_log(&mut run, &format!("worker/{worker} has joined, as its incarnation 1"), 1);
    }
    let taken = steps(&dir);
    run.until_steps(taken + 20);
    // The launcher is slow: it hears that workers have left when it hears that fewer are wanted, or before.
    run.signal(Signal::STOP);
    let _ = scale("1").succeeded();
    for worker in 1..4 {
        scheduler_log(&mut run, &format!("worker/{worker} has left: 1 workers are wanted"), 1);
    }
    run.until("three workers to be gone", |dir| (nodes(dir).len() == 4).then_some(()));
    // One of them is wanted again before the launcher has heard that it has left.
    let _ = scale("2").succeeded();
    run.signal(Signal::CONT);
    scheduler_log(&mut run, "worker/1 has come back, as its incarnation 2", 1);
    run.until("four nodes and the scheduler", |dir| (nodes(dir).len() == 5).then_some(()));
    let taken = steps(&dir);
    run.until_steps(taken + 20);
    let ended = ends_undisturbed(&place, run);
    assert!(!ended.stderr.contains("is started again"), "{}", ended.stderr);
}
