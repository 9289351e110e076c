//! A cluster of real processes on one core, with an operator who asks how it does.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testudo_actors::link::Network;
use testudo_actors::operator::Line;
use testudo_transport::{Endpoint, Identity, JobCa, Role, SpiffeId, TransportConfig};

const DAY: Duration = Duration::from_secs(24 * 3600);
const DOMAIN: &str = "testudo.local";
const JOB: &str = "mnist";
const BATCH: usize = 256;
/// MiB that each node may occupy in all. The least that the job with two workers is taken with is 365 (a scheduler of it says so
/// when it is given less): 64 for itself, and 22 connections with a slice of 1 MiB on its way; this is a twentieth more.
pub(crate) const CEILING_MIB: u64 = 384;
/// Within which whoever asks must have an answer: what is waited for a heartbeat (`cluster.heartbeat_timeout_ms`).
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// Between two questions of the operator.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
const NODES: [(Role, &str); 3] =
    [(Role::Scheduler, "scheduler"), (Role::Server, "server"), (Role::Worker, "worker")];

/// What of a job differs. Every worker but the first is played by an attacker.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    workers: u32,
    shards: u32,
    steps: u32,
}

/// Attacked from outside.
pub(crate) const ATTACKED: Shape = Shape { workers: 1, shards: 4, steps: 1500 };
/// With an attacker that takes part: two workers are quicker than one.
pub(crate) const SHARED: Shape = Shape { workers: 2, shards: 2, steps: 2500 };
/// The same job without it.
pub(crate) const ALONE: Shape = Shape { workers: 1, ..SHARED };

/// Identities, the cluster file and the program.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    program: PathBuf,
    scheduler: String,
}

impl Place {
    pub(crate) fn new(program: &Path, Shape { workers, shards, steps }: Shape) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let ca = JobCa::create(DOMAIN, JOB, DAY).unwrap();
        let foreign = JobCa::create(DOMAIN, JOB, DAY).unwrap();
        for (name, ca, role, index) in [
            ("scheduler", &ca, Role::Scheduler, "0"),
            ("server", &ca, Role::Server, "0"),
            ("worker", &ca, Role::Worker, "0"),
            ("operator", &ca, Role::Operator, "0"),
            ("malicious", &ca, Role::Worker, "9"),
            ("inside", &ca, Role::Worker, "1"),
            ("foreign", &foreign, Role::Worker, "0"),
        ] {
            let id = SpiffeId::new(DOMAIN, JOB, role, index).unwrap();
            ca.issue(&id, DAY).unwrap().save(&folder.path().join(name)).unwrap();
        }
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/mnist");
        let text = format!(
            "[job]\nname = \"{JOB}\"\n[limits]\nmemory_mib = {CEILING_MIB}\n[cluster]\nworkers = {workers}\nscheduler = \"{free}\"\n[network.scheduler]\nlisten = \"{free}\"\n\
             [training]\nepochs = 1000\nmax_steps = {steps}\nbatch_size = {BATCH}\nlogical_shards = {shards}\n[model]\nkind = \"mlp\"\ninputs = 784\n\
             hidden = [512, 512]\nclasses = 10\n[optimizer]\nkind = \"nesterov\"\nlearning_rate = 0.1\n\
             [data]\nkind = \"mnist\"\npath = {data:?}\n"
        );
        std::fs::write(folder.path().join("cluster.toml"), text).unwrap();
        let place = Place { folder, program: program.to_owned(), scheduler: free.to_string() };
        let mut job = place.command();
        job.arg("job").arg(place.file("cluster.toml")).arg("--identity").arg(place.file("operator"));
        let job = job.output().unwrap();
        assert!(job.status.success(), "{job:?}");
        place
    }

    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(&self.program);
        command
    }
}

/// What a cluster did in some time.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    /// Samples a second.
    pub(crate) samples: f64,
    /// Share of the cluster's core that something else took, interrupts for the attacker's packets among it.
    pub(crate) others: f64,
}

/// Linux's unit of processor time, in parts of a second.
const TICKS: f64 = 100.0;

/// Seconds that the cluster's core has been busy.
fn core_busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu0 ")).unwrap();
    let fields: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // User, nice, system, then idle and waiting, then interrupts, soft interrupts and what the host took.
    [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum::<f64>() / TICKS
}

/// A cluster under way.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    nodes: Vec<Child>,
    targets: Vec<OsString>,
    probes: Arc<Mutex<Vec<f64>>>,
}

impl Cluster {
    /// Starts every node but those that `attacker`, given identities and addresses by turns, is to play, and waits until they train.
    pub(crate) fn start(place: &Place, attacker: impl FnOnce(&[OsString])) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let (mut nodes, mut targets) = (Vec::new(), Vec::new());
        for (role, name) in NODES {
            let mut child = place
                .command()
                .args(["node", "--role", name, "--index", "0", "--config"])
                .arg(place.file("cluster.toml"))
                .arg("--identity")
                .arg(place.file(name))
                .arg("--run-dir")
                .arg(dir.path())
                .arg("--log")
                .arg(dir.path().join(name).with_extension("log"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let address = line.trim().strip_prefix("listening ").unwrap_or_else(|| panic!("{name}: {line}"));
            let id = SpiffeId::new(DOMAIN, JOB, role, "0").unwrap();
            targets.extend([id.as_str().into(), address.into()]);
            nodes.push(child);
        }
        let probes = Arc::new(Mutex::new(Vec::new()));
        let cluster = Cluster { dir, nodes, targets, probes };
        attacker(&cluster.targets);
        while cluster.steps() == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster.ask(place);
        cluster
    }

    /// Identities and addresses by turns.
    pub(crate) fn targets(&self) -> &[OsString] {
        &self.targets
    }

    fn steps(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("metrics.jsonl"))
            .map_or(0, |text| text.matches('\n').count())
    }

    /// Samples a second over that time, and what share of the core others than the cluster took of it.
    pub(crate) fn rate(&self, time: Duration) -> Rate {
        let (steps, own, busy, began) = (self.steps(), self.cpu(), core_busy(), Instant::now());
        std::thread::sleep(time);
        let seconds = began.elapsed().as_secs_f64();
        let samples = (self.steps() - steps) as f64 * BATCH as f64 / seconds;
        let others = (core_busy() - busy - (self.cpu() - own)) / seconds;
        Rate { samples, others }
    }

    /// Seconds of processor time that the nodes have used.
    fn cpu(&self) -> f64 {
        let of = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // User and system time are the 12th and 13th field after the name.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum::<f64>() / TICKS
        };
        self.nodes.iter().map(|node| of(node.id())).sum()
    }

    /// An operator asks for the run's status, again and again, over one connection, and notes how long each answer takes.
    fn ask(&self, place: &Place) {
        let identity = Identity::load(&place.file("operator")).unwrap();
        let scheduler = SpiffeId::new(DOMAIN, JOB, Role::Scheduler, "0").unwrap();
        let (address, probes) = (place.scheduler.clone(), Arc::clone(&self.probes));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let policy = Arc::new(testudo_actors::policy::policy(1 << 20).unwrap());
                let endpoint = Endpoint::bind(&TransportConfig::default(), identity, policy).unwrap();
                let network = Network::Quic(endpoint);
                let mut line = Line::dial(&network, &address, &scheduler).await.unwrap();
                loop {
                    let began = Instant::now();
                    // A run that is not paused has nothing to resume: the answer says so, and nothing changes.
                    if line.resume().await.is_err() {
                        return;
                    }
                    probes.lock().unwrap().push(began.elapsed().as_secs_f64() * 1000.0);
                    tokio::time::sleep(PROBE_PAUSE).await;
                }
            });
        });
    }

    pub(crate) fn forget_probes(&self) {
        self.probes.lock().unwrap().clear();
    }

    /// Milliseconds that answers took, in order.
    pub(crate) fn probes(&self) -> Vec<f64> {
        let mut probes = self.probes.lock().unwrap().clone();
        probes.sort_by(f64::total_cmp);
        probes
    }

    /// The most that each node has had in memory, in MiB, by name.
    pub(crate) fn peaks(&self) -> Vec<(&'static str, f64)> {
        let of = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(f64::NAN)
        };
        let nodes = self.nodes.iter().zip(NODES);
        nodes.map(|(node, (_, name))| (name, of(node.id()) / 1024.0)).collect()
    }

    /// Waits until the run is over, in order, by the same processes that began it. Nobody may be lost but who attacks; whether that
    /// was.
    pub(crate) fn finish(&mut self) -> (String, bool) {
        for node in &mut self.nodes {
            let status = node.wait().unwrap();
            assert!(status.success(), "a node ended with {status}; logs in {}", self.dir.path().display());
        }
        let log = std::fs::read_to_string(self.dir.path().join("scheduler.log")).unwrap_or_default();
        let lost = log.matches(" was lost (").count();
        let attacker = log.matches("worker/1 was lost (").count();
        assert_eq!(lost, attacker, "a node was lost: {log}");
        // The model's bytes are its parameters in name order, and what the job says of it.
        let model = std::fs::read(self.dir.path().join("checkpoint/final/model.safetensors")).unwrap();
        (blake3::hash(&model).to_hex().chars().take(12).collect(), attacker > 0)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}
