//! What bad input gets: an error that says what, where and what to do, exit status 2, and nothing started.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use testudo_actors::message::{Body, Join, JoinRefused, Outcome, Stop};
use testudo_actors::node::{RELEASE, run_scheduler};
use testudo_tests::cluster::{Links, Site, Steps, wait_for};
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, assert_nothing_left};
use testudo_tests::raw::RawEndpoint;
use testudo_tests::toy;
use testudo_transport::session::{Prelude, PreludeError, VERSION};
use testudo_transport::{Class, CloseCode, Endpoint, Error, Fault, Outgoing, Role, TransportConfig};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// The small job, to be spoilt.
struct Place {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        Place { folder, file }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// `testudo run` on the job as it is now, with two steps at most should it start after all.
    fn run(&self, options: &[&str]) -> Ended {
        let dir = self.run_dir();
        let (file, dir_text) = (self.file.to_str().unwrap(), dir.to_str().unwrap());
        let most = "training.max_steps=2";
        let arguments = [&["run", file, "--run-dir", dir_text, "--json", "--set", most], options].concat();
        process::run(PROGRAM, &arguments, &dir)
    }

    /// As [`run`](Place::run), which must be refused with a message that holds all of `parts`, before anything is
    /// started or made.
    fn refused(&self, options: &[&str], parts: &[&str]) {
        let ended = self.run(options);
        assert_refused(&ended, parts);
        assert!(!self.run_dir().exists(), "a run directory was made for a run that never began");
        assert_nothing_left(&self.run_dir());
    }

    /// Spoils the cluster file.
    fn replace(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.file).unwrap();
        assert!(text.contains(from), "{from:?} is not in the cluster file");
        std::fs::write(&self.file, text.replace(from, to)).unwrap();
    }
}

fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is missing in: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    assert!(ended.stdout.is_empty(), "{}", ended.stdout);
}

/// What the other tests spoil is good as it is.
#[test]
fn the_job_is_good_as_long_as_nothing_is_spoilt() {
    assert_eq!(Place::new().run(&["--quiet"]).succeeded().json()["steps"], 2);
}

#[test]
fn a_missing_data_file() {
    let place = Place::new();
    let gone = place.path("data/t10k-labels-idx1-ubyte");
    std::fs::remove_file(&gone).unwrap();
    place.refused(&[], &[text(&gone), "no such file", "data.path"]);
}

#[test]
fn a_truncated_data_file() {
    let place = Place::new();
    let cut = place.path("data/train-images-idx3-ubyte");
    let bytes = std::fs::read(&cut).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 17] {
        std::fs::write(&cut, &bytes[..length]).unwrap();
        let (expected, found) = (bytes.len().to_string(), length.to_string());
        place.refused(&[], &[text(&cut), "truncated", &expected, &found, "fetch the file again"]);
    }
}

#[test]
fn a_label_out_of_range() {
    let place = Place::new();
    let labels = place.path("data/train-labels-idx1-ubyte");
    let mut bytes = std::fs::read(&labels).unwrap();
    bytes[8 + 300] = 4;
    std::fs::write(&labels, bytes).unwrap();
    place.refused(&[], &[text(&labels), "label 4 at index 300", "4 classes", "model.classes"]);
}

/// Every port that the file names is looked at before anything is started, a server's as well as the scheduler's; and no
/// two nodes may be given the same.
#[test]
fn a_busy_port() {
    let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = busy.local_addr().unwrap().to_string();
    let place = Place::new();
    for set in [
        format!("network.scheduler.listen={at}"),
        format!("network.servers.listen=[\"127.0.0.1:0\", \"{at}\"]"),
    ] {
        place.refused(&["--set", &set], &[&at, "in use", "ss -lunp", "listen"]);
    }
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    place.refused(
        &["--set", &format!("network.listen={free}")],
        &[&free, "both listen", "network.servers.listen"],
    );
}

/// A node that is started by hand finds its port busy itself.
#[test]
fn a_busy_port_of_a_node() {
    let place = Place::new();
    place.issue("server", "server-0");
    let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = busy.local_addr().unwrap().to_string();
    place.replace(
        "[training]",
        &format!("[network.servers]\nlisten = [\"{at}\", \"127.0.0.1:0\"]\n\n[training]"),
    );
    assert_refused(&place.node("server", "server-0"), &[&at, "in use", "ss -lunp"]);
}

#[test]
fn an_unknown_key() {
    let place = Place::new();
    place.replace("batch_size = 64", "bach_size = 64");
    let at = format!("{}:11:1", place.file.display());
    place.refused(
        &[],
        &[&at, "unknown key", "training.bach_size", "did you mean `training.batch_size`", "^^^^^^^^^"],
    );

    let place = Place::new();
    place.replace("[optimizer]", "[optimiser]");
    place.refused(&[], &["unknown", "optimiser", "optimizer"]);

    let place = Place::new();
    place.refused(&["--set", "training.epoch=3"], &["--set training.epoch=3", "training.epochs"]);
}

#[test]
fn a_bad_value() {
    let place = Place::new();
    place.replace("learning_rate = 0.01", "learning_rate = -0.01");
    let at = format!("{}:22:", place.file.display());
    place.refused(&[], &[&at, "optimizer.learning_rate", "-0.01"]);

    for (set, parts) in [
        ("training.epochs=\"many\"", &["training.epochs", "integer"][..]),
        ("training.batch_size=63", &["training.batch_size", "multiple", "64"]),
        ("cluster.workers=5", &["cluster.workers", "training.logical_shards", "at most 4"]),
        ("model.inputs=15", &["model.inputs is 15", "16 pixels", "data.path"]),
        ("optimizer.kind=sdg", &["optimizer.kind", "sgd"]),
        ("transport.slice_bytes=66", &["transport.slice_bytes", "64"]),
        ("job.name=../up", &["job.name"]),
    ] {
        Place::new().refused(&["--set", set], parts);
    }
}

#[test]
fn a_file_that_is_none() {
    let place = Place::new();
    std::fs::write(&place.file, "[job\nname = 3").unwrap();
    place.refused(&[], &[&format!("{}:1:", place.file.display())]);
    std::fs::remove_file(&place.file).unwrap();
    place.refused(&[], &[text(&place.file)]);
}

/// A run directory that exists is left as it is.
#[test]
fn a_run_directory_that_exists() {
    let place = Place::new();
    std::fs::create_dir(place.run_dir()).unwrap();
    std::fs::write(place.run_dir().join("mine"), "dear").unwrap();
    assert_refused(&place.run(&[]), &[text(&place.run_dir()), "exists", "--run-dir"]);
    let left: Vec<_> = std::fs::read_dir(place.run_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["mine"]);
    assert_nothing_left(&place.run_dir());
}

#[test]
fn no_workers_and_no_servers() {
    let place = Place::new();
    place.refused(&["--workers", "0"], &["cluster.workers", "0", "1"]);
    place.refused(&["--servers", "0"], &["cluster.servers", "0", "1"]);
    place.replace("workers = 2", "workers = 0");
    place.refused(&[], &[&format!("{}:5:", place.file.display()), "cluster.workers"]);
}

impl Place {
    fn testudo(&self, arguments: &[&str]) -> Ended {
        process::run(PROGRAM, arguments, self.folder.path())
    }

    /// A certificate authority, once, and an identity under it.
    fn issue(&self, role: &str, dir: &str) {
        let (ca, dir) = (self.path("ca"), self.path(dir));
        if !ca.exists() {
            let _ = self.testudo(&["pki", "init", text(&ca), "--job", "small"]).succeeded();
        }
        let arguments = ["pki", "issue", "--ca", text(&ca), "--role", role, "--out", text(&dir)];
        let _ = self.testudo(&arguments).succeeded();
    }

    /// A node whose scheduler is nowhere.
    fn node(&self, role: &str, identity: &str) -> Ended {
        let identity = self.path(identity);
        let nowhere = "127.0.0.1:9";
        self.testudo(&[
            "node",
            "--role",
            role,
            "--config",
            text(&self.file),
            "--identity",
            text(&identity),
            "--scheduler",
            nowhere,
        ])
    }
}

/// A key that others can read is no secret; neither is one behind a link.
#[test]
fn a_key_file_that_others_can_read() {
    let place = Place::new();
    place.issue("worker", "worker-0");
    let key = place.path("worker-0/key.pem");
    for mode in [0o644, 0o640, 0o604, 0o660] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_refused(&place.node("worker", "worker-0"), &[text(&key), &format!("{mode:o}"), "chmod"]);
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&key, place.path("elsewhere.pem")).unwrap();
    std::os::unix::fs::symlink(place.path("elsewhere.pem"), &key).unwrap();
    assert_refused(&place.node("worker", "worker-0"), &[text(&key)]);
}

/// A node with the wrong folder, or none.
#[test]
fn an_identity_of_another_node() {
    let place = Place::new();
    place.issue("server", "server-0");
    assert_refused(&place.node("worker", "server-0"), &["server/0", "worker/0", "--identity"]);
    assert_refused(&place.node("worker", "nowhere"), &[text(&place.path("nowhere"))]);
}

/// A node of another release is turned away with both releases named, and the job waits for the right one.
#[test]
fn a_peer_of_another_release() {
    let site = Site::new(toy::job(1, 1, 2, 2), Links::Quic);
    let identity = site.identity(Role::Scheduler, "0");
    let network = site.network(&identity);
    let (address, scheduler) = (network.local_addr().to_string(), identity.id().clone());
    let (signed, runtime) = (site.signed(), site.runtime.handle().clone());
    let (over, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        over.send(run_scheduler(&identity, network, signed, Box::new(Steps::default()), runtime)).unwrap();
    });

    let worker = site.network(&site.identity(Role::Worker, "0"));
    let operator = site.network(&site.identity(Role::Operator, "0"));
    site.runtime.block_on(async {
        let connection = worker.connect(&address, &scheduler).await.unwrap();
        let (mut say, mut hear) = connection.open(Class::Control, 0).await.unwrap();
        let release = "0.0.7-other".to_owned();
        let fingerprint = testudo_kernels::fingerprint();
        let join = Join { release: release.clone(), fingerprint, address: None, commitment: [0; 32] };
        say.send(Outgoing::new(Join::KIND, 1, join.encode())).await.unwrap();
        let answer = hear.recv().await.unwrap().unwrap();
        assert_eq!(answer.kind, JoinRefused::KIND);
        let reason = JoinRefused::decode(&answer.body).unwrap().reason;
        for part in [&release, RELEASE, "install the same release on every node"] {
            assert!(reason.contains(part), "{part:?} is missing in {reason:?}");
        }
        let connection = operator.connect(&address, &scheduler).await.unwrap();
        let (mut say, _hear) = connection.open(Class::Control, 0).await.unwrap();
        say.send(Outgoing::new(Stop::KIND, 1, Stop {}.encode())).await.unwrap();
        say.finish().await.unwrap();
        // Kept until the scheduler has ended: hanging up first could overtake the order.
        let ended = tokio::task::spawn_blocking(move || wait_for(&outcome)).await.unwrap();
        assert_eq!(ended.unwrap(), Outcome::Failed("stopped before training began".into()));
    });
}

/// A message of another wire version is refused from its first 16 bytes, with both versions named.
#[test]
fn a_peer_of_another_wire_version() {
    let site = Site::new(toy::job(1, 1, 2, 2), Links::Quic);
    let victim = site.identity(Role::Server, "0");
    site.runtime.block_on(async {
        let config =
            TransportConfig { handshake_timeout: Duration::from_secs(60), ..TransportConfig::default() };
        let endpoint = Endpoint::bind(&config, (*victim).clone(), site.policy.clone()).unwrap();
        let worker = site.identity(Role::Worker, "0");
        let dialling = RawEndpoint::bind();
        for version in [0, VERSION + 1, 255] {
            let peer = dialling.connect(&worker, endpoint.local_addr(), victim.id()).await;
            let connection = tokio::time::timeout(Duration::from_secs(60), endpoint.accept()).await.unwrap().unwrap();
            let mut prelude = Prelude { kind: 20, header_len: 100, payload_len: 0 }.encode();
            prelude[0] = version;
            let _stream = peer.stream_with(&prelude).await;
            let (_reply, mut receiver) = connection.accept().await.unwrap();
            let error = receiver.recv().await.unwrap_err();
            assert!(
                matches!(&error, Error::Peer { fault: Fault::Prelude(PreludeError::Version(v)), .. } if *v == version),
                "{error}"
            );
            let told = peer.closed().await;
            assert!(told.iter().all(|(code, _)| *code == u64::from(CloseCode::Framing.number())), "{told:?}");
            for part in [format!("version {version}"), format!("version {VERSION}")] {
                assert!(told.iter().all(|(_, reason)| reason.contains(&part)), "{told:?}");
                assert!(error.to_string().contains(&part), "{error}");
            }
        }
    });
}
