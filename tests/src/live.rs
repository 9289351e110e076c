//! A cluster that trains on while it is attacked, and what must hold of it afterwards.
//!
//! Scheduler and servers are processes of their own, so that their memory and their logs are nobody else's. The workers run
//! in the test's process, over real QUIC, and take a step only when the test grants one: so steps go on during every attack and
//! after it, however long it takes, and their number is always the same.
//!
//! 1. A [case](Live::case) passes if its attack ended as it should and steps were completed while it ran and after it.
//! 2. [`Live::finish`] passes if every case did, the run ends with the `params_blake3` of an undisturbed one and no worker lost,
//!    no node restarted, panicked or failed, and no node's peak of resident memory has grown by more than [`MEMORY`], or is
//!    above [`LIMIT_MIB`].
//! 3. Every case that failed is named.
//! 4. One cluster at a time is under attack in a process: what floods one would starve the others.

mod audit;
mod case;
mod gate;
mod node;
mod plan;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testudo_actors::message::{Finished, Load, Member, MemberRole, Outcome, StatusReport};
use testudo_actors::node::{NodeOptions, run_worker};
use testudo_actors::operator::Line;
use testudo_actors::server::SumOrder;
use testudo_actors::worker::ShardCompute;
use testudo_actors::{JobSpec, NodeError};
use testudo_transport::{Role, TransportConfig};

use crate::cluster::{Adapt, Links, Site, ToySetup};
use crate::flood::inside::Inside;
use crate::process;
use crate::sim::Simulation;
use crate::{files, toy};
pub use audit::{Refusals, refusals};
use gate::{Gate, Paced};
use node::listening;
pub use node::{Node, peak};
pub use plan::{Closed, Plan};

/// Steps of the job under attack.
const STEPS: u64 = 150;

/// Steps that each case sees: the first as it begins, the last when its attack is over.
const PER_CASE: u64 = 3;

/// Between two steps while an attack goes on.
const BETWEEN_STEPS: Duration = Duration::from_millis(40);

/// Far beyond what anything waited for takes, attacks on a busy machine included.
const PATIENCE: Duration = Duration::from_secs(120);

/// No class takes longer than this.
const LIFE: Duration = Duration::from_secs(1500);

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// By how much an attack may raise a node's peak of resident memory: what a few peers' credit (as the cluster file below
/// grants it), handshakes and allocators may take.
pub const MEMORY: u64 = 48 << 20;

/// What a node may occupy in all: what the cluster file says, so that every peer has the credit below.
pub const LIMIT_MIB: u64 = 640;

/// Bytes that one peer may have on their way to a node.
pub const IN_FLIGHT: u64 = 4 << 20;

/// The job under attack: some forty slices on two servers, two workers. An attacker that takes part says nothing between what it
/// is told to do, and is none the less there.
#[must_use]
pub fn job() -> JobSpec {
    JobSpec { slice_bytes: 256, epochs: 10_000, heartbeat_timeout_ms: 120_000, ..toy::job(2, 2, 4, STEPS) }
}

/// Held by the cluster that is under attack.
static ALONE: Mutex<()> = Mutex::new(());

/// The parameters of an undisturbed run, computed once.
fn undisturbed() -> [u8; 32] {
    static EXPECTED: OnceLock<[u8; 32]> = OnceLock::new();
    *EXPECTED.get_or_init(|| Simulation::new(job(), 0, SumOrder::Canonical).finish().params_blake3)
}

/// The cluster.
pub struct Live {
    /// Its certificate authority and identities.
    pub site: Site,
    folder: TempDir,
    nodes: Vec<Node>,
    /// By index, and whether it may be sent away for what is done under its key.
    workers: Vec<(JoinHandle<Result<(), NodeError>>, bool)>,
    gate: Arc<Gate>,
    report: Arc<Mutex<Option<StatusReport>>>,
    granted: u64,
    /// Workers that will be lost, because the attack has them leave.
    lost: u32,
    failed: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

impl Live {
    /// Starts the cluster with `program`, and waits until it trains.
    #[must_use]
    pub fn start(program: &str) -> Live {
        Live::start_with(program, Plan::default(), |_| ())
    }

    /// As [`start`](Live::start), as `plan` says. `before` is done when everybody that it does not play itself has been started,
    /// and before training is waited for; if it panics, that is a case that failed.
    #[must_use]
    pub fn start_with(program: &str, plan: Plan, before: impl FnOnce(&Live)) -> Live {
        // A test that failed while it held it has ended its cluster.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let site = Site::new(JobSpec { workers: plan.workers, ..job() }, Links::Quic);
        let folder = tempfile::tempdir().unwrap();
        let config = write_config(folder.path(), plan.limits);
        std::fs::write(config.with_extension("job"), site.signed().to_bytes()).unwrap();
        site.ca.save(&folder.path().join("ca")).unwrap();
        let gate = Arc::new(Gate::default());
        let (nodes, workers, report, lost) = (Vec::new(), Vec::new(), Arc::default(), plan.lost);
        let mut live = Live {
            site,
            folder,
            nodes,
            workers,
            gate,
            report,
            granted: 0,
            lost,
            failed: Vec::new(),
            _alone: alone,
        };
        live.spawn(program, Role::Scheduler, 0, &plan.environment);
        for index in 0..live.site.job.servers {
            live.spawn(program, Role::Server, index, &plan.environment);
        }
        for index in (0..plan.workers).filter(|index| !plan.absent.contains(index)) {
            let inside = plan.inside.as_ref().filter(|(which, _)| *which == index);
            let worker = live.worker(index, inside.map(|(_, inside)| inside.clone()));
            let sent_away = inside.is_some() && plan.lost > 0;
            live.workers.push((worker, sent_away));
        }
        live.watch();
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| before(&live))) {
            live.failed.push(format!("before training: {}", told(&*why)));
            live.give_up();
        }
        live.grant(PER_CASE);
        live.trained("training to begin");
        for node in &mut live.nodes {
            node.calm = peak(node.process.pid()).unwrap();
        }
        live
    }

    /// Where everything of the run is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The run directory of a node.
    #[must_use]
    pub fn run_dir(&self, role: Role, index: u32) -> PathBuf {
        self.folder().join(format!("run-{role}-{index}"))
    }

    /// The folder with a member's certificate and key.
    #[must_use]
    pub fn identity(&self, role: Role, index: u32) -> PathBuf {
        let folder = self.folder().join(format!("{role}-{index}"));
        if !folder.exists() {
            self.site.identity(role, &index.to_string()).save(&folder).unwrap();
        }
        folder
    }

    /// The scheduler (with [`Role::Scheduler`]) or a server.
    #[must_use]
    pub fn node(&self, role: Role, index: u32) -> &Node {
        let id = self.site.job.member(role, index).unwrap();
        self.nodes.iter().find(|node| node.id == id).unwrap()
    }

    /// Scheduler and servers.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// An order to attack `node`, with the CA at hand, under the name of worker 0.
    #[must_use]
    pub fn order(&self, node: &Node) -> Value {
        json!({
            "target": node.target(),
            "ca": self.folder().join("ca"),
            "name": format!("{}/0", self.stem("worker")),
            "expect": node.id.as_str(),
        })
    }

    /// An order to speak to `node` under the key of that worker.
    #[must_use]
    pub fn order_as(&self, node: &Node, worker: u32) -> Value {
        json!({
            "target": node.target(),
            "identity": self.identity(Role::Worker, worker),
            "name": format!("{}/{worker}", self.stem("worker")),
            "expect": node.id.as_str(),
        })
    }

    /// The names of that role's nodes, without their index.
    #[must_use]
    pub fn stem(&self, role: &str) -> String {
        format!("spiffe://{}/job/{}/{role}", self.site.job.trust_domain, self.site.job.name)
    }

    /// What the scheduler last told an operator.
    #[must_use]
    pub fn report(&self) -> StatusReport {
        self.report.lock().unwrap().clone().expect("the scheduler reports")
    }

    /// What a node last told of its load.
    #[must_use]
    pub fn load(&self, node: &Node) -> Load {
        let report = self.report();
        if node.id.role() == Role::Scheduler {
            return report.load;
        }
        let index = node.id.index();
        let is = |m: &Member| m.role == MemberRole::Server && Some(m.index) == index;
        report.nodes.iter().find(|n| is(&n.member)).map(|n| n.load).unwrap_or_default()
    }

    /// Lets the run end, and checks everything that must hold. The audit log, whole.
    ///
    /// # Panics
    /// With every case that failed and everything that does not hold.
    pub fn finish(mut self) -> String {
        let mut failed = std::mem::take(&mut self.failed);
        for node in &self.nodes {
            match peak(node.process.pid()) {
                None => failed.push(format!("{} has ended", node.id.short())),
                Some(now) => {
                    let grown = now.saturating_sub(node.calm);
                    println!(
                        "{}: peak grown by {} KiB over {}",
                        node.id.short(),
                        grown >> 10,
                        node.calm >> 10
                    );
                    if grown > MEMORY {
                        let what = format!("{}: memory grew by {} MiB", node.id.short(), grown >> 20);
                        failed.push(what);
                    }
                    if now > LIMIT_MIB << 20 {
                        let what = format!("{}: {} MiB are over its limit", node.id.short(), now >> 20);
                        failed.push(what);
                    }
                }
            }
        }
        self.failed = failed;
        if !self.failed.is_empty() {
            // Whatever else does not hold may well follow from these.
            self.give_up();
        }
        self.gate.open();
        let Finished { params_blake3, workers_lost, steps, .. } = self.outcome();
        assert_eq!((steps, workers_lost), (STEPS, self.lost));
        assert_eq!(params_blake3, undisturbed(), "the attacks changed the parameters");
        for node in std::mem::take(&mut self.nodes) {
            let (log, name) = (node.log(), node.id.short().to_string());
            let ended = node.process.wait();
            assert_eq!(ended.code(), Some(0), "{name}: {ended:?}\n{log}");
            for words in ["panicked", "a bug in Testudo", " ERROR "] {
                assert!(!log.contains(words) && !ended.stderr.contains(words), "{name}: {ended:?}\n{log}");
            }
            assert_eq!(log.matches(" is up").count(), 1, "{name} was started once");
        }
        for (worker, sent_away) in std::mem::take(&mut self.workers) {
            let ended = worker.join().expect("no worker panics");
            assert!(ended.is_ok() || sent_away, "{ended:?}");
        }
        self.audit_log()
    }

    /// Fails with every case that failed.
    fn give_up(&self) -> ! {
        let logs: String = self.nodes.iter().map(Node::log).collect();
        panic!("{}\nlogs:\n{}", self.failed.join("\n"), last(&logs, 6_000));
    }

    fn outcome(&self) -> Finished {
        let outcome = until("the run's end", || self.report().outcome);
        match outcome {
            Outcome::Finished(finished) => finished,
            Outcome::Failed(why) | Outcome::ServerLost(why) => panic!("the run failed: {why}"),
        }
    }

    fn grant(&mut self, steps: u64) {
        self.gate.grant(steps);
        self.granted += steps;
        assert!(self.granted < STEPS - 4, "there are too many cases for {STEPS} steps");
    }

    /// Waits until every step that was granted is complete.
    fn trained(&self, what: &str) {
        until(what, || {
            (process::steps(&self.run_dir(Role::Scheduler, 0)) as u64 >= self.granted).then_some(())
        });
    }

    fn spawn(&mut self, program: &str, role: Role, index: u32, environment: &[(&str, String)]) {
        let (config, run) = (self.folder().join("small.toml"), self.run_dir(role, index));
        // One each: a node that is started as root hands its own to the user that it becomes.
        std::fs::create_dir(&run).unwrap();
        let log = run.join("node.log");
        let identity = self.identity(role, index);
        let mut arguments: Vec<String> =
            ["node", "--role", &role.to_string(), "--index", &index.to_string()].map(str::to_owned).into();
        for (option, path) in
            [("--config", &config), ("--identity", &identity), ("--run-dir", &run), ("--log", &log)]
        {
            arguments.extend([option.to_owned(), path.to_str().unwrap().to_owned()]);
        }
        if let Some(scheduler) = self.nodes.first() {
            arguments.extend(["--scheduler".to_owned(), scheduler.address.to_string()]);
        } else {
            let audit = self.folder().join("audit");
            self.site.identity(Role::Actor, "audit").save(&audit).unwrap();
            arguments.extend(["--audit-identity".to_owned(), audit.to_str().unwrap().to_owned()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // The mark is the node's alone: what is ended ends no other node of the cluster.
        let mut process = process::start_in(program, &arguments, &run, environment).patient(LIFE);
        let address = process.until("an address", |_| listening(&log));
        let id = self.site.job.member(role, index).unwrap();
        self.nodes.push(Node { id, address, process, log, calm: 0 });
    }

    fn worker(&self, index: u32, inside: Option<Inside>) -> JoinHandle<Result<(), NodeError>> {
        let identity = self.site.identity(Role::Worker, &index.to_string());
        let options = NodeOptions {
            network: self
                .site
                .network_with(&identity, &TransportConfig { accepts: false, ..self.site.transport.clone() }),
            identity,
            scheduler: self.nodes[0].address.to_string(),
            advertise: None,
            lanes: 2,
            runtime: self.site.runtime.handle().clone(),
            codecs: None,
        };
        let mut paced =
            Some(Paced { gate: Arc::clone(&self.gate), taken: 0, a_step: 1 + u64::from(self.lost) });
        let adapt: Adapt = Box::new(move |compute: ShardCompute| match paced.take() {
            Some(pace) => compute.with_pace(Box::new(pace)),
            None => compute,
        });
        std::thread::spawn(move || {
            let mut setup = ToySetup::adapted(adapt);
            match inside {
                Some(inside) => run_worker(options, &mut inside.watch(Box::new(setup))),
                None => run_worker(options, &mut setup),
            }
        })
    }

    /// Keeps the scheduler's newest report, as an operator gets it.
    fn watch(&self) {
        let network = self.site.network(&self.site.identity(Role::Operator, "watch"));
        let (scheduler, report) = (&self.nodes[0], Arc::clone(&self.report));
        let (address, id) = (scheduler.address.to_string(), scheduler.id.clone());
        let mut reports = self.site.runtime.block_on(async {
            let line = Line::dial(&network, &address, &id).await.unwrap();
            line.follow(50, true).await.unwrap()
        });
        let first = self.site.runtime.block_on(reports.1.next()).unwrap();
        *report.lock().unwrap() = Some(first);
        self.site.runtime.spawn(async move {
            let (_network, _commands) = (network, reports.0);
            while let Ok(next) = reports.1.next().await {
                let over = next.outcome.is_some();
                *report.lock().unwrap() = Some(next);
                if over {
                    return;
                }
            }
        });
    }
}

/// Waits for `ready` to give something.
///
/// # Panics
/// When it does not in two minutes.
pub fn until<T>(what: &str, ready: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, ready).unwrap_or_else(|| panic!("waited for {what} in vain"))
}

/// Waits at most that long for `ready` to give something.
pub fn within<T>(patience: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = ready() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.gate.open();
    }
}

/// The small job's file, so that nodes bind, allow and frame what this test's job needs.
fn write_config(folder: &Path, limits: &str) -> PathBuf {
    let file = files::write_job(folder);
    let text = std::fs::read_to_string(&file).unwrap();
    let transport = format!(
        "slice_bytes = 256\nkey_exchange = \"pq-first\"\nmax_in_flight_bytes = {IN_FLIGHT}\n\
         max_in_flight_messages = 512"
    );
    let text = text
        .replace("slice_bytes = 1024", &transport)
        .replace("[model]", &format!("[limits]\nmemory_mib = {LIMIT_MIB}\n{limits}\n\n[model]"))
        .replace("name = \"small\"", "name = \"toy\"\ntrust_domain = \"test.local\"");
    std::fs::write(&file, text).unwrap();
    file
}

fn told(why: &(dyn std::any::Any + Send)) -> &str {
    let text = why.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| why.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

fn last(text: &str, bytes: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
