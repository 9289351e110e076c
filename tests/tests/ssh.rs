//! `testudo run` with nodes on a host, over a real `sshd` on loopback.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use testudo_tests::files::{self, text};
use testudo_tests::process::{
    self, Ended, Signal, Started, UNHURRIED, assert_nothing_left, nodes, send, steps,
};
use testudo_tests::sshd::{self, Sshd};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// Whom runs that root starts go on as.
const NOBODY: u32 = 65534;

/// A job, a host, and the folder that nodes have theirs in over there.
struct Place {
    folder: tempfile::TempDir,
    file: PathBuf,
    sshd: Sshd,
}

impl Place {
    fn new() -> Option<Place> {
        let folder = tempfile::tempdir().unwrap();
        let client = rustix::process::geteuid().is_root().then_some(NOBODY);
        let sshd = sshd::start(folder.path(), client)?;
        let file = files::write_job(folder.path());
        Some(Place { folder, file, sshd })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where nodes are over there.
    fn remote(&self) -> PathBuf {
        self.path("remote")
    }

    fn start(&self, name: &str, options: &[&str]) -> Started {
        let dir = self.path(name);
        let first = ["run", text(&self.file), "--run-dir", text(&dir), "--json"];
        process::start(PROGRAM, &[&first[..], &UNHURRIED, options].concat(), &self.remote())
    }

    /// On the host, with these keys of hosts known.
    fn start_there(&self, name: &str, known_hosts: &Path, options: &[&str]) -> Started {
        let settings = [
            "cluster.launcher=ssh".to_owned(),
            format!("ssh.hosts=[\"{}\"]", self.sshd.host),
            format!("ssh.key={}", text(&self.sshd.key)),
            format!("ssh.known_hosts={}", text(known_hosts)),
            format!("ssh.folder={}", text(&self.remote())),
        ];
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        self.start(name, &[settings.as_slice(), options].concat())
    }

    /// No node is left, nor a folder of one.
    fn assert_clean(&self) {
        assert_nothing_left(&self.remote());
        let left: Vec<_> =
            std::fs::read_dir(self.remote()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| name == "bin"), "{left:?}");
    }
}

fn hash(run: &Ended) -> String {
    run.json()["params_blake3"].as_str().expect("a hash").to_owned()
}

const NO_CHECKPOINT: [&str; 2] = ["--set", "checkpoint.at_end=false"];

fn program() -> String {
    format!("ssh.program={PROGRAM}")
}

/// Servers and workers are on the host, each in a folder of its own; one of the workers is killed; the model comes back, and is the
/// one that this machine alone would have made.
#[test]
fn a_run_on_hosts_has_the_bits_of_a_local_one() {
    let Some(place) = Place::new() else { return };
    let program = program();
    // It goes on until it was looked at, and its worker killed, and is stopped then.
    let endless = ["--set", "training.max_steps=100000000", "--set", "cluster.worker_restarts=0"];
    let options = [&["--set", program.as_str()], &endless[..], &NO_CHECKPOINT].concat();
    let mut there = place.start_there("there", &place.sshd.known_hosts, &options);
    let dir = place.path("there");
    there.until("five steps", |_| (steps(&dir) >= 5).then_some(()));
    let hosted = nodes(&place.remote()).into_iter().filter(|node| {
        let arguments = std::fs::read(format!("/proc/{}/cmdline", node.pid)).unwrap_or_default();
        arguments.starts_with(PROGRAM.as_bytes())
    });
    let hosted: Vec<_> = hosted.collect();
    let who: Vec<_> = hosted.iter().map(|node| format!("{}/{}", node.role, node.index)).collect();
    assert_eq!(who, ["server/0", "server/1", "worker/0", "worker/1"]);
    assert!(hosted.iter().all(|node| node.parent != there.pid()));
    let mut folders = 0;
    for entry in std::fs::read_dir(place.remote()).unwrap() {
        let path = entry.unwrap().path();
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("identity"), mode("identity/key.pem")), (0o700, 0o700, 0o600));
        folders += 1;
    }
    assert_eq!(folders, 4);
    send(hosted[3].pid, Signal::KILL);
    there.until("the scheduler to notice", |_| {
        let log = std::fs::read_to_string(dir.join("logs/scheduler-0.log")).ok()?;
        log.contains("worker/1 was lost").then_some(())
    });
    there.signal(Signal::INT);
    let there = there.wait().succeeded();
    assert!(
        there.stderr.contains("worker 1 ended") || there.stderr.contains("worker/1 ended"),
        "{}",
        there.stderr
    );
    let set = format!("training.max_steps={}", there.json()["steps"]);
    let most_steps = ["--set", set.as_str()];
    let local = place.start("local", &[&most_steps[..], &NO_CHECKPOINT].concat()).wait().succeeded();
    assert_eq!(hash(&there), hash(&local));
    assert!(
        dir.join("checkpoint/final/model.sig").exists(),
        "the model came, and was what the scheduler reported"
    );
    let log = std::fs::read_to_string(dir.join("logs/server-1.log")).unwrap();
    assert!(log.contains("server/1 is up"), "its log is here: {log}");
    place.assert_clean();
}

/// `ssh.shared`: checkpoints lie in the run directory, and the run is resumed from it.
#[test]
fn a_run_on_hosts_that_reach_its_directory_is_resumed() {
    let Some(place) = Place::new() else { return };
    let local = place.start("local", &["--set", "training.max_steps=40"]).wait().succeeded();
    let program = program();
    let shared = ["--set", &program, "--set", "ssh.shared=true", "--set"];
    let half = [&shared[..], &["training.max_steps=20"]].concat();
    let _ = place.start_there("there", &place.sshd.known_hosts, &half).wait().succeeded();
    let dir = place.path("there");
    let again = ["run", "--resume", text(&dir), "--set", "training.max_steps=40", "--json"];
    let named = ["--set", &format!("data.path={}", text(&place.path("data")))];
    let again = process::run(PROGRAM, &[&again[..], &named].concat(), &place.remote()).succeeded();
    assert_eq!(hash(&again), hash(&local));
    assert!(dir.join("checkpoint/step-00000040/server-1.part.age").exists());
    place.assert_clean();
}

/// The key that opens the checkpoint comes to workers, too, who begin with what they had kept back; a job that exports no model gets
/// none.
#[test]
fn a_run_on_hosts_that_keeps_residuals_is_resumed_with_its_key() {
    let Some(place) = Place::new() else { return };
    let _ = place.start("keys", &["--set", "training.max_steps=1"]).wait().succeeded();
    let key = place.path("keys/checkpoint/key.txt");
    let keyfile = std::fs::read_to_string(&key).unwrap();
    let recipient = keyfile.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap();
    let recipients = format!("checkpoint.recipients=[\"{recipient}\"]");
    let codec = ["--set", "transport.push_codec=int8"];
    let local = place.start("local", &[&codec[..], &["--set", "training.max_steps=20"]].concat());
    let local = local.wait().succeeded();
    let program = program();
    let there = ["--set", &program, "--set", "ssh.shared=true", "--set", "checkpoint.export=false"];
    let half = ["--set", &recipients, "--set", "training.max_steps=10"];
    let half = [&there[..], &codec, &half].concat();
    let _ = place.start_there("there", &place.sshd.known_hosts, &half).wait().succeeded();
    let dir = place.path("there");
    let data = format!("data.path={}", text(&place.path("data")));
    let again = ["run", "--resume", text(&dir), "--set", "training.max_steps=20", "--set", &data, "--json"];
    let again = [&again[..], &["--identity-file", text(&key)]].concat();
    let again = process::run(PROGRAM, &again, &place.remote()).succeeded();
    assert_eq!(hash(&again), hash(&local));
    assert!(!dir.join("checkpoint/final/model.safetensors").exists());
    place.assert_clean();
}

/// A host with another key, and one whose key is not known: nobody logs in, and nothing is sent.
#[test]
fn a_host_with_another_key_is_refused() {
    let Some(place) = Place::new() else { return };
    let unknown = place.path("none");
    std::fs::write(&unknown, "").unwrap();
    let program = program();
    let options = [&["--set", program.as_str()], &NO_CHECKPOINT[..]].concat();
    for (name, known) in [("another", &place.sshd.wrong_hosts), ("unknown", &unknown)] {
        let run = place.start_there(name, known, &options).wait();
        assert_eq!(run.code(), Some(1), "{run:#?}");
        assert!(run.stderr.contains("Host key verification failed"), "{}", run.stderr);
        assert_eq!(place.sshd.logins(), 0);
        assert!(!place.remote().exists());
        assert_nothing_left(&place.path(name));
    }
}

/// The launcher is killed: every node on the host ends by itself, and its folder goes.
#[test]
fn nodes_on_hosts_end_with_their_launcher() {
    let Some(place) = Place::new() else { return };
    let program = program();
    let options = [&["--set", program.as_str()], &NO_CHECKPOINT[..]].concat();
    let mut run = place.start_there("killed", &place.sshd.known_hosts, &options);
    let dir = place.path("killed");
    run.until("a step", |_| (steps(&dir) >= 1).then_some(()));
    run.signal(Signal::KILL);
    let _ = run.wait();
    assert_nothing_left(&place.remote());
    let deadline = std::time::Instant::now() + process::DEADLINE;
    while std::fs::read_dir(place.remote()).unwrap().next().is_some() {
        assert!(std::time::Instant::now() < deadline, "a node's folder is left behind");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Without `ssh.program` a host gets a copy of this program, once; its data may lie elsewhere.
#[test]
fn a_host_without_the_program_gets_it_by_its_hash() {
    let Some(place) = Place::new() else { return };
    let small = ["--workers", "1", "--servers", "1", "--set", "training.max_steps=2"];
    let elsewhere = place.path("elsewhere");
    std::os::unix::fs::symlink(place.path("data"), &elsewhere).unwrap();
    let data = format!("ssh.data={}", text(&elsewhere));
    let options = [&small[..], &NO_CHECKPOINT, &["--set", &data]].concat();
    let copies = || {
        let found = std::fs::read_dir(place.remote().join("bin")).unwrap().flatten();
        found
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()))
            .collect::<Vec<_>>()
    };
    let _ = place.start_there("first", &place.sshd.known_hosts, &options).wait().succeeded();
    let first = copies();
    let same = |name: &std::ffi::OsStr| {
        let copy = std::fs::read(place.remote().join("bin").join(name)).unwrap();
        copy == std::fs::read(PROGRAM).unwrap()
    };
    assert!(first.len() == 1 && same(&first[0].0), "{first:?}");
    let _ = place.start_there("second", &place.sshd.known_hosts, &options).wait().succeeded();
    assert_eq!(copies(), first);
    place.assert_clean();
}
