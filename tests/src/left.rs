//! What a run leaves behind when its servers are what a test wants: a run directory with a signed job, checkpoints, an
//! exported model and a summary, written by the same code as every other, in one process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use testudo::checkpoint::ledger::RunLedger;
use testudo::checkpoint::retention::Retention;
use testudo::checkpoint::storage::Disk;
use testudo::checkpoint::{Layout, keys, writer};
use testudo::config::Config;
use testudo::node::{self, Metrics, Setup};
use testudo::rundir::RunDir;
use testudo_actors::message::{Finished, Outcome};
use testudo_actors::node::{WorkerSetup, run_scheduler, run_server, run_worker};
use testudo_actors::server::SumOrder;
use testudo_actors::worker::{Pace, ShardCompute};
use testudo_actors::{CheckpointSink, JobSpec, NodeOptions, TrainAndTest};
use testudo_transport::Role;

use crate::cluster::{Links, Site};
use crate::process::DEADLINE;

/// Trains what the cluster file `file` says, with `overrides`, and leaves the run in `dir`. Server i sums in `order(i)`.
///
/// # Panics
/// When any node ends other than in order.
pub fn leave(file: &Path, overrides: &[&str], dir: &Path, order: impl Fn(u32) -> SumOrder) -> Finished {
    let config = Config::load(file, overrides).unwrap();
    let job = testudo::job::spec(&config, node::data(&config).unwrap().spec());
    let run_dir = RunDir::create(dir).unwrap();
    let site = Site::new(job, Links::Memory);
    let signed = site.signed();
    std::fs::write(run_dir.signed_job(), signed.to_bytes()).unwrap();
    std::fs::write(run_dir.cluster_file(), config.to_toml().unwrap()).unwrap();
    let layout = Layout::new(&run_dir.checkpoints());
    let recipients = keys::recipients(&[], &layout, &Disk).unwrap();

    let identity = site.identity(Role::Scheduler, "0");
    let ledger = RunLedger::open(
        layout.clone(),
        Arc::new(Disk),
        Arc::clone(&identity),
        &signed,
        &site.job,
        recipients.iter().map(ToString::to_string).collect(),
        Retention::new(&config.checkpoint),
    );
    let observer = Metrics::open(&run_dir.metrics(), &run_dir.evaluations())
        .unwrap()
        .with_ledger(Box::new(ledger.unwrap()));
    let network = site.network(&identity);
    let scheduler = network.local_addr().to_string();
    let runtime = site.runtime.handle().clone();
    let outcome =
        std::thread::spawn(move || run_scheduler(&identity, network, signed, Box::new(observer), runtime));
    let options = |role: Role, index: u32| {
        let identity = site.identity(role, &index.to_string());
        let network = site.network(&identity);
        let advertise = (role == Role::Server).then(|| network.local_addr().to_string());
        let runtime = site.runtime.handle().clone();
        NodeOptions {
            identity,
            network,
            scheduler: scheduler.clone(),
            advertise,
            lanes: 3,
            runtime,
            codecs: None,
        }
    };
    let mut nodes = Vec::new();
    for index in 0..site.job.servers {
        let (options, order) = (options(Role::Server, index), order(index));
        let mut setup = writer::Setup::new(layout.clone(), Vec::new(), None);
        nodes.push(std::thread::spawn(move || run_server(options, order, &mut setup)));
    }
    for index in 0..site.job.workers {
        let options = options(Role::Worker, index);
        let setup = Setup::new(config.clone(), run_dir.model());
        let (every, steps) = (config.checkpoint.every_steps, 0);
        let mut setup =
            Unhurried { setup, pace: Some(AfterCheckpoints { layout: layout.clone(), every, steps }) };
        nodes.push(std::thread::spawn(move || run_worker(options, &mut setup)));
    }
    let outcome = outcome.join().unwrap().unwrap();
    for node in nodes {
        node.join().unwrap().unwrap();
    }
    match outcome {
        Outcome::Finished(finished) => finished,
        Outcome::Failed(reason) | Outcome::ServerLost(reason) => panic!("the run failed: {reason}"),
    }
}

/// A worker that does not run ahead of checkpoints: one that falls due while the one before is being written is skipped, and
/// a test wants all of them.
struct Unhurried {
    setup: Setup,
    pace: Option<AfterCheckpoints>,
}

impl WorkerSetup for Unhurried {
    fn data(&mut self, job: &JobSpec) -> Result<TrainAndTest, String> {
        self.setup.data(job)
    }

    fn sink(&mut self, job: &JobSpec) -> Box<dyn CheckpointSink> {
        self.setup.sink(job)
    }

    fn adapt(&mut self, compute: ShardCompute) -> ShardCompute {
        match self.pace.take() {
            Some(pace) => compute.with_pace(Box::new(pace)),
            None => compute,
        }
    }
}

struct AfterCheckpoints {
    layout: Layout,
    every: u64,
    steps: u64,
}

impl Pace for AfterCheckpoints {
    fn handed_over(&mut self, _: usize, last: bool) {
        self.steps += u64::from(last);
        // Before the step whose update is the next to be kept.
        let due = self.steps + 1;
        let before = due.saturating_sub(self.every);
        if last && self.every > 0 && due.is_multiple_of(self.every) && before > 0 {
            let deadline = Instant::now() + DEADLINE;
            while !self.layout.manifest(before).exists() {
                assert!(Instant::now() < deadline, "the checkpoint at step {before} is never whole");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The folder of a checkpoint's files.
#[must_use]
pub fn step(dir: &Path, step: u64) -> PathBuf {
    Layout::new(&dir.join("checkpoint")).step(step)
}
