//! `testudo deploy --to slurm`: its script, submitted to a real Slurm of one node, and read by ShellCheck.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Signal};
use testudo_tests::slurm::Slurm;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

fn testudo(arguments: &[&str]) -> process::Ended {
    process::run(PROGRAM, arguments, Path::new("/no/mark")).succeeded()
}

/// Writes the script for the small job into a folder `deployed`, and what the script says that it needs.
fn deploy(place: &Path, set: &[&str]) -> PathBuf {
    let file = files::write_job(place);
    let folder = place.join("deployed");
    let program = ["--program", PROGRAM];
    let deploy = ["deploy", text(&file), "--to", "slurm", "--out", text(&folder)];
    let said = testudo(&[&deploy[..], &program, set].concat());
    assert!(said.stdout.contains("sbatch"), "{}", said.stdout);
    let script = std::fs::read_to_string(folder.join("job.sbatch")).unwrap();
    // What its first lines say is what is done, in a folder of the operator's own.
    let own = place.join("own");
    std::fs::create_dir(&own).unwrap();
    let lines: Vec<&str> =
        script.lines().filter_map(|l| l.strip_prefix("#   ")).map(|line| line.trim()).collect();
    assert!(lines.len() >= 5, "{script}");
    let shell = format!(
        "set -e\numask 077\ntestudo() {{ {PROGRAM} \"$@\" > /dev/null 2>&1; }}\n{}",
        lines.join("\n")
    );
    let mut prepared = Command::new("bash");
    prepared.args(["-c", &shell]).current_dir(&own).env("folder", &folder);
    let prepared = prepared.output().unwrap();
    assert!(prepared.status.success(), "{shell}\n{}", String::from_utf8_lossy(&prepared.stderr));
    assert!(
        own.join("ca/ca-key.pem").exists() && !folder.join("ca").exists(),
        "the authority stays with its owner"
    );
    folder
}

fn runs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.file_name().is_some_and(|name| text(Path::new(name)).starts_with("run-")))
        .collect()
}

/// The log of one of the run's nodes.
fn log(run: &Path, node: &str) -> String {
    std::fs::read_to_string(run.join("logs").join(format!("{node}.log"))).unwrap_or_default()
}

/// One job, a step for each role: it ends in order, with the bits of a run on this machine alone.
#[test]
fn a_job_runs_under_slurm() {
    let place = tempfile::tempdir().unwrap();
    let Some(slurm) = Slurm::start(place.path()) else { return };
    let set = ["--set", "training.max_steps=40", "--set", "limits.memory_mib=512"];
    let folder = deploy(place.path(), &set);
    let output = place.path().join("job.out");
    let script = folder.join("job.sbatch");
    let submitted = slurm.run("sbatch", &["--wait", "-o", text(&output), text(&script)]);
    let said = std::fs::read_to_string(&output).unwrap_or_default();
    let found = runs(&folder);
    let logs = || found.first().map(|run| log(run, "scheduler-0")).unwrap_or_default();
    assert!(submitted.status.success(), "{submitted:?}\n{said}\n{}", logs());
    let run = found.first().expect("a run");
    assert!(said.contains(text(run)), "{said}");
    let model = std::fs::read(run.join("checkpoint/final/model.safetensors")).expect("a model");
    let local = place.path().join("local");
    let file = place.path().join("small.toml");
    let arguments = [&["run", text(&file), "--run-dir", text(&local), "--quiet"], &set[..]].concat();
    let _ = process::run(PROGRAM, &arguments, &local).succeeded();
    assert_eq!(model, std::fs::read(local.join("checkpoint/final/model.safetensors")).unwrap());
    for node in ["server-0", "server-1", "worker-0", "worker-1"] {
        assert!(log(run, node).contains("is up"), "{node}: {}", log(run, node));
    }
}

/// A job that goes on until it is told to stop.
struct Endless<'a> {
    slurm: &'a Slurm,
    folder: PathBuf,
    output: PathBuf,
    number: String,
}

impl<'a> Endless<'a> {
    fn submit(slurm: &'a Slurm, place: &Path) -> Endless<'a> {
        Endless::submit_with(slurm, place, &[])
    }

    fn submit_with(slurm: &'a Slurm, place: &Path, set: &[&str]) -> Endless<'a> {
        let folder = deploy(place, &[&["--set", "limits.memory_mib=512"], set].concat());
        let (output, script) = (place.join("job.out"), folder.join("job.sbatch"));
        let submitted = slurm.run("sbatch", &["--parsable", "-o", text(&output), text(&script)]);
        assert!(submitted.status.success(), "{submitted:?}");
        let number = String::from_utf8_lossy(&submitted.stdout).trim().to_owned();
        Endless { slurm, folder, output, number }
    }

    /// What the job has printed.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The run's directory, as soon as it is there.
    fn run(&self) -> PathBuf {
        self.until("a run", || runs(&self.folder).pop())
    }

    fn until<T>(&self, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + process::DEADLINE;
        loop {
            if let Some(found) = ready() {
                return found;
            }
            let logs = || runs(&self.folder).pop().map(|run| log(&run, "scheduler-0")).unwrap_or_default();
            assert!(Instant::now() < deadline, "waited for {what} in vain:\n{}\n{}", self.said(), logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `--signal=B:TERM@120` does two minutes before the limit; then the job ends in order.
    fn stop(&self) {
        let job = self.number.as_str();
        assert!(self.slurm.run("scancel", &["--signal=TERM", "--batch", job]).status.success());
        self.until("its end", || {
            let left = self.slurm.run("squeue", &["-h", "-o", "%T"]).stdout;
            left.trim_ascii().is_empty().then_some(())
        });
        let shown = self.slurm.run("scontrol", &["show", "job", job]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("ExitCode=0:0"), "{shown}\n{}", self.said());
    }
}

/// In time before its limit, Slurm tells the job, which then ends in order, with a model.
#[test]
fn a_job_that_slurm_ends_stops_in_order() {
    let place = tempfile::tempdir().unwrap();
    let Some(slurm) = Slurm::start(place.path()) else { return };
    let job = Endless::submit(&slurm, place.path());
    let run = job.run();
    job.until("steps", || (process::steps(&run) >= 3).then_some(()));
    job.stop();
    assert!(run.join("checkpoint/final/model.safetensors").exists(), "{}", job.said());
}

/// semantics.md, line 10, under Slurm: its script starts a worker again that was killed, which joins as its next incarnation, and no
/// bit changes. That takes the scheduler five seconds to notice, of which fewer would be too few on a machine with other work.
#[test]
fn a_worker_that_is_killed_under_slurm_comes_back_and_changes_no_bit() {
    let place = tempfile::tempdir().unwrap();
    let Some(slurm) = Slurm::start(place.path()) else { return };
    let job = Endless::submit(&slurm, place.path());
    let run = job.run();
    job.until("steps", || (process::steps(&run) >= 5).then_some(()));
    let worker = job.until("worker/1 to run", || {
        process::nodes(&run).into_iter().find(|node| node.role == "worker" && node.index == 1)
    });
    process::send(worker.pid, Signal::KILL);
    job.until("worker/1 to come back", || {
        log(&run, "scheduler-0").contains("worker/1 has come back, as its incarnation").then_some(())
    });
    let taken = process::steps(&run);
    job.until("more steps", || (process::steps(&run) >= taken + 20).then_some(()));
    job.stop();
    let said = job.said();
    assert!(
        said.contains("worker/1 ended with status 137 and is started again in 6 s (restart 1 of 3"),
        "{said}"
    );
    process::assert_nothing_left(&run);

    let scheduler = log(&run, "scheduler-0");
    let end = scheduler.lines().rfind(|line| line.contains(" finished ")).expect("the run's end");
    let field = |name: &str| {
        let at = |word: &&str| word.split_once('=').is_some_and(|(found, _)| found == name);
        end.split(' ').find(at).and_then(|word| word.split_once('=')).expect("a field").1
    };
    let (file, local) = (place.path().join("small.toml"), place.path().join("local"));
    let set = format!("training.max_steps={}", field("steps"));
    let arguments = ["run", text(&file), "--run-dir", text(&local), "--quiet", "--json", "--set", &set];
    let undisturbed = process::run(PROGRAM, &arguments, &local).succeeded().json();
    assert_eq!(undisturbed["params_blake3"], field("params_blake3"), "{said}\n{scheduler}");
}

/// The number of a node's own process, which is no shell's and none of Slurm's.
fn pid(run: &Path, role: &str, index: u32) -> Option<u32> {
    let line = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_own = |pid: u32| line(pid).split(|byte| *byte == 0).next() == Some(PROGRAM.as_bytes());
    let mut found = process::nodes(run).into_iter().filter(|node| node.role == role && node.index == index);
    found.find(|node| is_own(node.pid)).map(|node| node.pid)
}

/// Under Slurm, too, a server's death, and the scheduler's, cost what was done since the newest checkpoint, and no bit; what the job
/// prints says so, and the run leaves a summary.
#[test]
fn a_job_goes_on_from_its_checkpoint_when_slurm_has_lost_a_server_or_the_scheduler() {
    let place = tempfile::tempdir().unwrap();
    let Some(slurm) = Slurm::start(place.path()) else { return };
    let job = Endless::submit_with(&slurm, place.path(), &["--set", "checkpoint.every_steps=20"]);
    let run = job.run();
    let whole = |after: u64| {
        let at = |step: &u64| run.join(format!("checkpoint/step-{step:08}/manifest.json")).exists();
        (after / 20 + 1..after / 20 + 5000).map(|n| n * 20).find(at)
    };
    let mut after = 0;
    for (round, (role, index)) in [("server", 1), ("scheduler", 0)].into_iter().enumerate() {
        after = job.until("a checkpoint", || whole(after));
        process::send(job.until("a node", || pid(&run, role, index)), Signal::KILL);
        job.until("the job to go on", || {
            (log(&run, "scheduler-0").matches("resuming from step").count() > round).then_some(())
        });
        // What was done again is cut off by now. A checkpoint of the life before may be newer than `after`, but these steps are the new
        // life's.
        let taken = process::steps(&run);
        job.until("steps of its own", || (process::steps(&run) >= taken + 20).then_some(()));
    }
    job.until("another checkpoint", || whole(after + 40));
    job.stop();
    let said = job.said();
    for part in [
        "a server or the scheduler has died (status 5)",
        "a server or the scheduler has died (status 137)",
        "goes on from its newest checkpoint in 1 s (restart 1 of 3 within 10 minutes)",
        "goes on from its newest checkpoint in 2 s (restart 2 of 3 within 10 minutes)",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    process::assert_nothing_left(&run);
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["steps"], process::steps(&run), "{said}");
    assert!(summary["resumed_from_step"].as_u64() >= Some(after), "{summary}");
    let (file, local) = (place.path().join("small.toml"), place.path().join("local"));
    let set = format!("training.max_steps={}", summary["steps"]);
    let arguments = ["run", text(&file), "--run-dir", text(&local), "--quiet", "--json", "--set", &set];
    let undisturbed = process::run(PROGRAM, &arguments, &local).succeeded().json();
    assert_eq!(undisturbed["params_blake3"], summary["params_blake3"], "{said}");
}

/// Whatever a folder is called, and whoever shares a process.
#[test]
fn scripts_pass_shellcheck() {
    if Command::new("shellcheck").arg("--version").output().is_err() {
        assert!(
            std::env::var("TESTUDO_REQUIRE_SLURM").is_err(),
            "TESTUDO_REQUIRE_SLURM=1: install shellcheck"
        );
        eprintln!("skipped: needs shellcheck");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let file = files::write_job(place.path());
    for set in
        [&["cluster.placement=dedicated"][..], &["cluster.placement=colocated", "limits.memory_mib=512"]]
    {
        let set: Vec<&str> = set.iter().flat_map(|one| ["--set", one]).collect();
        let arguments = ["deploy", text(&file), "--to", "slurm", "--print", "--out", "/srv/a $HOME"];
        let script = testudo(&[&arguments[..], &set].concat()).stdout;
        let path = place.path().join("job.sbatch");
        std::fs::write(&path, &script).unwrap();
        let checked = Command::new("shellcheck").args(["--shell=bash", text(&path)]).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
}
