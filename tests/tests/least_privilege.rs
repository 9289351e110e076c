//! What a run's processes are left with, as the kernel tells it of live ones.
//!
//! Some of this takes root to set up: those tests say so and check nothing for others.

#[path = "common/hardened.rs"]
mod hardened;
#[path = "common/privilege.rs"]
mod privilege;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use hardened::{assert_hardened, assert_nobodys, landlock, status};
use privilege::{NOBODY, PROGRAM, Roots, is_root, owners};
use testudo_kernels::ModelSpec;
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, Started, assert_nothing_left, nodes, steps};
use testudo_tests::served::Site;
use testudo_tests::sockets;

/// A copy of the program, made by another process: a child that some other test starts meanwhile would hold ours open for
/// writing.
fn copy_program(to: &Path, mode: &str) {
    let copied = std::process::Command::new("install").args(["-m", mode, PROGRAM, text(to)]).status();
    assert!(copied.unwrap().success());
}

/// Waits until the run is under way; the launcher and every node.
fn processes(run: &mut Started) -> Vec<u32> {
    processes_after(run, 0)
}

/// The same for a run that is resumed after so many steps.
fn processes_after(run: &mut Started, before: usize) -> Vec<u32> {
    run.until("steps", |dir| (steps(dir) >= before + 3).then_some(()));
    let nodes = run.until("all nodes", |dir| Some(nodes(dir)).filter(|nodes| nodes.len() == 5));
    std::iter::once(run.pid()).chain(nodes.iter().map(|node| node.pid)).collect()
}

/// Stops the run, and asserts that every log has the line of what holds, with `parts` in it.
fn ends_and_says(run: Started, dir: &Path, parts: &[&str]) {
    run.signal(process::Signal::INT);
    let ended = run.wait().succeeded();
    let mut said = vec![ended.stderr];
    for node in ["scheduler-0", "server-0", "server-1", "worker-0", "worker-1"] {
        said.push(std::fs::read_to_string(dir.join(format!("logs/{node}.log"))).unwrap());
    }
    let landlock = landlock();
    for said in said {
        let line = said.lines().find(|line| line.contains("protections that hold: "));
        let line = line.unwrap_or_else(|| panic!("it does not say what holds: {said}"));
        for part in parts {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
        assert!(line.contains("seccomp"), "{line}");
        let held = line.split("that do not:").next().unwrap();
        assert!(
            landlock.as_ref().is_none_or(|landlock| held.contains(landlock)),
            "no {landlock:?} in {line}"
        );
    }
    assert_nothing_left(dir);
}

/// Attack class I: no core dump, no tracing, no way up.
#[test]
fn every_process_gives_away_what_it_does_not_need_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
    let mut run = process::start(PROGRAM, &["run", text(&file), "--run-dir", text(&dir)], &dir);
    for pid in processes(&mut run) {
        assert_hardened(pid);
    }
    ends_and_says(run, &dir, &["no_new_privs", "no core dumps", "memory closed to other processes"]);
}

/// A place that `nobody` can reach and write, with the program in it.
struct Nobodys {
    folder: tempfile::TempDir,
    program: PathBuf,
    file: PathBuf,
}

impl Nobodys {
    fn new() -> Nobodys {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("testudo");
        copy_program(&program, "755");
        let file = files::write_job(folder.path());
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        Nobodys { folder, program, file }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run that `nobody` starts, by `setpriv` with these options more.
    fn start(&self, name: &str, options: &[&str]) -> Started {
        let dir = self.dir(name);
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let run = [text(&self.program), "run", text(&self.file), "--run-dir", text(&dir)];
        process::start("setpriv", &[&user[..], options, &run].concat(), &dir)
    }
}

/// Capabilities that a service manager hands to an unprivileged process go, the inheritable and ambient ones too; and whoever
/// shares its user can read neither its memory nor its environment.
#[test]
fn capabilities_that_are_handed_down_are_dropped() {
    if !is_root() {
        return;
    }
    let place = Nobodys::new();
    let more = ["--inh-caps=+net_bind_service,+sys_ptrace", "--ambient-caps=+net_bind_service,+sys_ptrace"];
    let mut run = place.start("run", &more);
    for pid in processes(&mut run) {
        assert_hardened(pid);
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(status(pid, set), "0000000000000000");
        }
        assert!(status(pid, "Uid").starts_with("65534\t65534\t65534"));
        let environment = format!("/proc/{pid}/environ");
        let peek = process::run(
            "setpriv",
            &["--reuid=65534", "--regid=65534", "--clear-groups", "cat", &environment],
            &place.dir("none"),
        );
        assert!(!peek.status.success() && peek.stderr.contains("Permission denied"), "{peek:?}");
    }
    ends_and_says(
        run,
        &place.dir("run"),
        &["runs as nobody (65534)", "an unprivileged user, no capabilities"],
    );
}

/// Attack class I, root: the launcher and every node are nobody's by the time they train, in a folder that only root may enter,
/// on data that only root may read. What they leave behind is nobody's, and root can use it.
#[test]
fn started_as_root_every_process_is_nobodys() {
    if !is_root() {
        return;
    }
    let place = Roots::new();
    let dir = place.path("run");
    let mut run = place.start_with(PROGRAM, &[], "run", &["--set", "checkpoint.every_steps=20"]);
    for pid in processes(&mut run) {
        assert_nobodys(pid);
    }
    let seen = process::run(PROGRAM, &["status", text(&dir), "--json"], &place.path("none")).succeeded();
    assert_eq!(seen.json()["state"], "training", "{seen:?}");
    let said = ["runs as nobody (65534)", "an unprivileged user, no capabilities, no_new_privs"];
    ends_and_says(run, &dir, &said);
    assert_eq!(owners(&dir), [NOBODY]);
    assert_eq!(owners(&place.path("data")), [0]);
    let (model, key) = (dir.join("checkpoint/final"), dir.join("checkpoint/model.pub.pem"));
    let _ = place.testudo(&["verify", text(&model), "--public-key", text(&key)]).succeeded();
    let listed = place.testudo(&["checkpoint", "list", text(&dir), "--json"]).succeeded().json();
    let step = listed["checkpoints"].as_array().unwrap().last().unwrap()["step"].as_u64().unwrap();
    let set = format!("training.max_steps={}", step + 5);
    let resumed = place.testudo(&["run", "--resume", text(&dir), "--set", &set, "--json"]).succeeded().json();
    assert_eq!(resumed["resumed_from_step"], step);
    let exported = place.path("model.safetensors");
    let _ = place.testudo(&["checkpoint", "export", text(&dir), "--out", text(&exported)]).succeeded();
    let _ = place.testudo(&["checkpoint", "prune", text(&dir), "--destroy-key", "--yes"]).succeeded();
    assert_eq!(owners(&dir), [NOBODY]);
    assert!(!dir.join("checkpoint/key.txt").exists());
}

/// A program that only root may even execute, as a build under a strict umask leaves it, and another user.
#[test]
fn a_program_that_only_root_may_reach_and_another_user() {
    if !is_root() {
        return;
    }
    let place = Roots::new();
    let program = place.path("testudo");
    copy_program(&program, "700");
    let set = ["--set", "training.max_steps=5", "--set", "security.run_as=3141592"];
    let _ = place.start_with(text(&program), &[], "run", &set).wait().succeeded();
    assert_eq!(owners(&place.path("run")), [3_141_592]);
}

/// Where root cannot be left, nothing is begun.
#[test]
fn a_switch_that_fails_is_refused() {
    if !is_root() {
        return;
    }
    let place = Roots::new();
    let refused = |ended: Ended, parts: &[&str]| {
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
        }
        assert!(!place.path("run").exists(), "a run directory was made for a run that never began");
    };
    for missing in ["-setuid", "-setgid"] {
        let bounding = format!("--bounding-set={missing}");
        let ended = place.start_with("setpriv", &[&bounding, PROGRAM], "run", &[]).wait();
        refused(ended, &["cannot become the user `nobody`", "security.run_as", "--allow-root"]);
    }
    refused(
        place.run("run", &["--set", "security.run_as=no-such-user"]),
        &["there is no user `no-such-user`"],
    );
    for root in ["root", "0"] {
        let set = format!("security.run_as={root}");
        refused(place.run("run", &["--set", &set]), &["security.run_as", "root"]);
    }
}

/// Whoever says so stays root, and the line says that too.
#[test]
fn root_stays_root_only_when_told_to() {
    if !is_root() {
        return;
    }
    let place = Roots::new();
    let mut run = place.start_with(PROGRAM, &[], "run", &["--allow-root"]);
    for pid in processes(&mut run) {
        assert_hardened(pid);
        assert_eq!(status(pid, "Uid").split_whitespace().collect::<Vec<_>>(), ["0"; 4]);
    }
    ends_and_says(run, &place.path("run"), &["runs as root (0)", "that do not: an unprivileged user"]);
    assert_eq!(owners(&place.path("run")), [0]);
    // What root made is handed over when the run goes on as nobody.
    let dir = place.path("run");
    let before = steps(&dir);
    let mut run = process::start(PROGRAM, &["run", "--resume", text(&dir), "--json"], &dir);
    for pid in processes_after(&mut run, before) {
        assert_nobodys(pid);
    }
    run.signal(process::Signal::INT);
    let _ = run.wait().succeeded();
    assert_eq!(owners(&dir), [NOBODY]);
}

/// A run directory was its user's all the time, who may have put anything anywhere: root writes nothing there, and follows no
/// link out of it.
#[test]
fn links_that_a_runs_user_planted_lead_root_nowhere() {
    if !is_root() {
        return;
    }
    let place = Roots::new();
    let dir = place.path("run");
    let _ = place.run("run", &["--set", "training.max_steps=5"]).succeeded();
    let precious = place.path("precious");
    std::fs::write(&precious, "root's\n").unwrap();
    let again = ["run", "--resume", text(&dir), "--set", "training.max_steps=8", "--quiet"];
    for name in ["logs/worker-0.log", "metrics.jsonl", "control.json", "lock", "checkpoint/deletions.jsonl"] {
        let _ = std::fs::remove_file(dir.join(name));
        symlink(&precious, dir.join(name)).unwrap();
        rustix::fs::chownat(
            rustix::fs::CWD,
            dir.join(name),
            Some(rustix::fs::Uid::from_raw(NOBODY)),
            None,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        let ended = place.testudo(&again);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "root's\n", "{name}: {ended:?}");
        assert_eq!(std::fs::metadata(&precious).unwrap().uid(), 0, "{name} gave away what is root's");
        let _ = std::fs::remove_file(dir.join(name));
        assert_nothing_left(&dir);
    }
    std::fs::hard_link(&precious, dir.join("second-name")).unwrap();
    let _ = place.testudo(&again);
    assert_eq!(std::fs::metadata(&precious).unwrap().uid(), 0);
    // A file that its user wrote decides nothing about whom root becomes.
    let cluster = dir.join("cluster.toml");
    let text_of = std::fs::read_to_string(&cluster).unwrap();
    std::fs::write(&cluster, text_of.replace("run_as = \"nobody\"", "run_as = \"3141592\"")).unwrap();
    let refused = place.testudo(&again);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("belongs to user 65534"), "{}", refused.stderr);
}

/// Nodes that are started by hand, as in a container, in a folder that is root's and stays so.
#[test]
fn nodes_that_root_starts_by_hand_are_nobodys_too() {
    if !is_root() {
        return;
    }
    let place = Roots::new();
    let job = place.path("small.toml");
    let settings = std::fs::read_to_string(&job).unwrap().replace("servers = 2", "servers = 1");
    std::fs::write(&job, settings.replace("workers = 2", "workers = 1")).unwrap();
    let _ = place.testudo(&["pki", "init", text(&place.path("ca")), "--job", "small"]).succeeded();
    for role in ["operator", "scheduler", "server", "worker"] {
        let out = place.path(role);
        let (ca, out) = (place.path("ca"), text(&out));
        let arguments = ["pki", "issue", "--ca", text(&ca), "--role", role, "--out", out];
        let _ = place.testudo(&arguments).succeeded();
    }
    let operator = place.path("operator");
    let sign = ["job", text(&job), "--identity", text(&operator), "--set", "training.max_steps=100000000"];
    let _ = place.testudo(&sign).succeeded();
    let start = |role: &str, more: &[&str]| {
        let (identity, log) = (place.path(role), place.path(&format!("{role}.log")));
        let node = ["node", "--role", role, "--config", text(&job), "--identity", text(&identity)];
        let arguments = [&node[..], &["--log", text(&log)], more].concat();
        process::start(PROGRAM, &arguments, &place.path(role))
    };
    // Whoever may write in that folder leads root nowhere.
    let precious = place.path("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "root's\n").unwrap();
    for (name, target) in [
        ("checkpoint", &precious),
        ("lock", &precious.join("file")),
        ("metrics.jsonl", &precious.join("file")),
        ("scheduler.log", &precious.join("file")),
    ] {
        let link = place.path(name);
        symlink(target, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
        let refused = start("scheduler", &[]).wait();
        assert!(matches!(refused.code(), Some(1 | 2)), "{name}: {refused:?}");
        assert!(refused.stderr.contains("is a link that the user 65534 made"), "{name}: {}", refused.stderr);
        assert_eq!(owners(&precious), [0], "{name} gave away what is root's");
        assert_eq!(std::fs::read_to_string(precious.join("file")).unwrap(), "root's\n");
        std::fs::remove_file(&link).unwrap();
    }
    std::fs::remove_dir_all(&precious).unwrap();
    let mut scheduler = start("scheduler", &[]);
    let log = place.path("scheduler.log");
    let at = scheduler.until("the scheduler to be bound", |_| {
        let log = std::fs::read_to_string(&log).ok()?;
        Some(log.split_once("address=")?.1.split_whitespace().next()?.to_owned())
    });
    let server = start("server", &["--scheduler", &at]);
    let worker = start("worker", &["--scheduler", &at]);
    let root = place.folder.path().to_owned();
    scheduler.until("steps", |_| (steps(&root) >= 3).then_some(()));
    for node in [&scheduler, &server, &worker] {
        assert_nobodys(node.pid());
    }
    let stop = ["stop", "--scheduler", &at, "--identity", text(&operator)];
    let _ = place.testudo(&stop).succeeded();
    for node in [scheduler, server, worker] {
        let _ = node.wait().succeeded();
    }
    assert!(place.path("checkpoint/final/model.safetensors").exists());
    assert_eq!(owners(&place.path("checkpoint")), [NOBODY]);
    for stays in ["", "ca", "data", "worker", "small.toml", "small.job"] {
        assert_eq!(std::fs::metadata(place.path(stays)).unwrap().uid(), 0, "{stays} is root's as before");
    }
}

/// Invariant 0 of `runtime/src/serve.rs`: what answers clients opens a model, its keys and its accounts, and one port.
#[test]
fn what_serves_a_model_is_confined_and_says_so() {
    let spec = ModelSpec::Mlp { inputs: 2, hidden: Vec::new(), classes: 2 };
    let site = Site::new(&spec, &[vec![0.5; 4], vec![0.0; 2]]);
    let at = |name: &str| text(&site.at(name)).to_owned();
    let (model, cert, key, state) = (at("model"), at("cert.pem"), at("server.pem"), at("state"));
    let _ = process::run(PROGRAM, &["serve", &model, "--state", &state, "--new-token", "a"], site.path())
        .succeeded();
    let public = at("key.pub.pem");
    let serve = ["serve", &model, "--state", &state, "--cert", &cert, "--key", &key, "--public-key", &public];
    let mut serving =
        process::start(PROGRAM, &[&serve[..], &["--listen", "127.0.0.1:0"]].concat(), site.path());
    let pid = serving.pid();
    // It listens once it catches SIGINT, which is the second bit.
    serving.until("it to serve", |_| {
        let caught = u64::from_str_radix(&status(pid, "SigCgt"), 16).unwrap();
        (caught & 2 != 0).then_some(())
    });
    assert_hardened(pid);
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(status(pid, set), "0000000000000000");
    }
    serving.signal(process::Signal::INT);
    let ended = serving.wait().succeeded();
    let says = ended.stderr.lines().find(|line| line.contains("protections that hold: "));
    let says = says.unwrap_or_else(|| panic!("it does not say what holds: {}", ended.stderr));
    let says = says.split("that do not:").next().unwrap();
    let mut parts = vec!["no_new_privs".to_owned(), "no capabilities".to_owned(), "seccomp".to_owned()];
    parts.extend(landlock());
    for part in parts {
        assert!(says.contains(&part), "{part:?} is missing in {says}");
    }
}

/// The enrolment service needs the authority's key, which no other user may have: it is its owner's, and that is all it can do.
/// Root it is only when told to.
#[test]
fn what_hands_out_identities_has_no_capability_and_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let ca = folder.path().join("ca");
    let _ = process::run(PROGRAM, &["pki", "init", text(&ca), "--job", "small"], folder.path()).succeeded();
    let serve = ["pki", "serve", "--ca", text(&ca), "--listen", "127.0.0.1:0"];
    let serves_as = |options: &[&str], uid: u32| {
        let mut serving = process::start(PROGRAM, &[&serve[..], options].concat(), &ca);
        let pid = serving.pid();
        serving.until("it to be confined", |_| (status(pid, "Seccomp") == "2").then_some(()));
        assert_hardened(pid);
        let (uids, uid) = (status(pid, "Uid"), uid.to_string());
        assert_eq!(uids.split_whitespace().collect::<Vec<_>>(), [uid.as_str(); 4]);
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(status(pid, set), "0000000000000000");
        }
        serving.signal(process::Signal::KILL);
        let _ = serving.wait();
    };
    let me = rustix::process::geteuid().as_raw();
    if me != 0 {
        return serves_as(&[], me);
    }
    let refused = process::run(PROGRAM, &serve, &ca);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    for part in ["nothing serves as root", "chown -R nobody", "security.run_as", "--allow-root"] {
        assert!(refused.stderr.contains(part), "no {part:?} in {}", refused.stderr);
    }
    assert!(refused.stdout.is_empty(), "{refused:?}");
    serves_as(&["--allow-root"], 0);
    for path in std::fs::read_dir(&ca).unwrap().map(|entry| entry.unwrap().path()).chain([ca.clone()]) {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    serves_as(&[], NOBODY);
}

/// docs/identities.md: what root renews in the folder of a node that it has started, and that is nobody's by now, the node takes.
#[test]
fn a_node_that_is_nobodys_takes_what_root_renews() {
    if !is_root() {
        return;
    }
    let place = Roots::new();
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let at = |name: &str| text(&place.path(name)).to_owned();
    // The node that goes on meanwhile is none of these commands'.
    let good = |arguments: &[&str]| drop(process::run(PROGRAM, arguments, Path::new("/no/mark")).succeeded());
    let (ca, ca_pem, home, operator) = (at("ca"), at("ca/ca.pem"), at("scheduler"), at("operator"));
    good(&["pki", "init", &ca, "--job", "small"]);
    good(&["pki", "issue", "--ca", &ca, "--role", "operator", "--out", &operator]);
    good(&["job", text(&place.file), "--identity", &operator]);
    good(&["pki", "request", "--job", "small", "--role", "scheduler/0", "--out", &home]);
    let (request, first) = (at("scheduler/request.pem"), at("first.pem"));
    good(&["pki", "issue", &request, "--ca", &ca, "--as", "scheduler/0", "--out", &first]);
    good(&["pki", "install", &home, "--cert", &first, "--ca", &ca_pem]);
    for path in std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().path()).chain([(&home).into()]) {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let log = place.path("scheduler.log");
    let mut node = process::start(
        PROGRAM,
        &[
            "node",
            "--role",
            "scheduler",
            "--config",
            text(&place.file),
            "--identity",
            &home,
            "--log",
            text(&log),
        ],
        &place.path("scheduler"),
    );
    let mut logged = |part: &str| {
        let has = |_: &Path| std::fs::read_to_string(&log).ok().filter(|log| log.contains(part)).map(|_| ());
        node.until(&format!("{part:?} in its log"), has);
    };
    logged("address=");
    let (renewal, second) = (at("scheduler/renewal.pem"), at("second.pem"));
    good(&["pki", "renew", &home]);
    good(&["pki", "issue", &renewal, "--ca", &ca, "--out", &second]);
    good(&["pki", "install", &home, "--cert", &second]);
    logged("the certificate has been renewed");
    assert_nobodys(node.pid());
    assert_eq!(owners(&place.path("scheduler")), [NOBODY]);
    // A socket keeps the user who opened it: it was opened when root was left.
    let opened: Vec<u32> = sockets::of(node.pid()).iter().map(|socket| socket.opened_by).collect();
    assert_eq!(opened, [NOBODY]);
}
