//! A whole training run on this machine: identities, processes, progress, outcome.
//!
//! 1. Nothing is started before the cluster file, the data and the run directory have been found good.
//! 2. The key of the run's certificate authority is in the run directory, for its owner alone, so that `testudo revoke` can
//!    sign; it is removed when the run ends, however it ends, unless this process is killed (`RunAuthority`). Until then it
//!    renews the nodes' certificates.
//! 3. A worker that dies is started again within its budget ([`crate::launch::budget`]), in the name that it had and with a
//!    new key; servers tell its process from the former one by the secret that each makes for itself.
//! 4. However the run ends, no process is left behind ([`crate::launch`]).

mod begin;
mod ending;
mod staff;
mod supervise;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testudo_actors::audit::Hex;
use testudo_actors::link::Network;
use testudo_actors::message::{Finished, Member, MemberRole, Outcome, Phase, StatusReport};
use testudo_actors::operator::{self, Commands, Reports};
use testudo_actors::{JobSpec, SignedJob};
use testudo_transport::{Endpoint, Identity, Role, SpiffeId};
use tokio::signal::unix::{SignalKind, signal};

use crate::audit;
use crate::checkpoint::storage::{Disk, replace};
use crate::checkpoint::{Layout, keys};
use crate::config::Config;
use crate::control::Control;
use crate::error::{Failure, Status};
use crate::launch::budget::Budget;
use crate::launch::local::{Inputs, Local};
use crate::launch::ssh::Ssh;
use crate::launch::{Launcher, Nodes};
use crate::node::transport;
use crate::rotation::{self, Folders, Source};
use crate::rundir::RunDir;
use begin::Told;
use ending::{Ending, behind, last_words, unheard};
use staff::{Staff, make_identities};
use supervise::wait_for;

/// Between two reports of the scheduler.
const REPORT_EVERY_MS: u32 = 100;

/// What the scheduler decided so long ago, it has reported.
const REPORTED: Duration = Duration::from_secs(1);

/// A run's outcome.
#[derive(Debug)]
pub struct Completed {
    /// The scheduler's figures.
    pub finished: Finished,
    /// Seconds from the first process's start to the last one's end.
    pub wall_seconds: f64,
    /// The head of the audit log, if that holds.
    pub audit_head: Option<Hex>,
}

/// Is shown how the run is doing.
pub trait Watcher {
    /// The scheduler's latest report.
    fn report(&mut self, report: &StatusReport);
    /// Something a person should know.
    fn notice(&mut self, text: &str);
    /// Whether reports are to list every node, and where the last step's time went.
    fn wants_nodes(&self) -> bool {
        false
    }
}

/// Whole or not at all: a run that is resumed has the files of the run before until it has its own.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    replace(&Disk, path, bytes).map_err(|e| Failure::file(path, "cannot be written", e))
}

/// Runs `job` to its end in `run_dir`, from the checkpoint that it resumes from if it does. `inputs` are what nodes are handed:
/// the data and the key that opens that checkpoint; what is missing they look for where `config` says, or in `run_dir`.
///
/// # Errors
/// [`Failure`] naming the node, its exit and the last lines of its log where one died.
pub async fn run(
    config: &Config,
    job: &JobSpec,
    run_dir: &RunDir,
    inputs: Inputs,
    watcher: &mut dyn Watcher,
) -> Result<Completed, Failure> {
    run_as(&["node"], config, job, run_dir, inputs, watcher).await
}

/// As [`run`], with nodes that are started by another command of this program than `node`; it takes the same options.
///
/// # Errors
/// As [`run`].
pub async fn run_as(
    command: &[&'static str],
    config: &Config,
    job: &JobSpec,
    run_dir: &RunDir,
    inputs: Inputs,
    watcher: &mut dyn Watcher,
) -> Result<Completed, Failure> {
    let begun = Instant::now();
    let mut interrupts = Interrupts::new()?;
    if job.resume.is_some() {
        run_dir.begin_again().map_err(|e| Failure::file(run_dir.path(), "cannot be made ready", e))?;
    }
    if job.checkpoints.wanted() {
        let layout = Layout::new(&run_dir.checkpoints());
        keys::recipients(&config.checkpoint.recipients, &layout, &Disk).map_err(Failure::misconfigured)?;
    }
    let validity = Duration::from_secs(u64::from(config.security.certificate_hours) * 3600);
    let (authority, operator, folders) = make_identities(validity, job, run_dir)?;
    let signed = SignedJob::sign(job, &operator).map_err(Failure::misconfigured)?;
    write(&run_dir.signed_job(), &signed.to_bytes())?;
    let toml = config.to_toml().map_err(Failure::misconfigured)?;
    write(&run_dir.cluster_file(), toml.as_bytes())?;
    let mut nodes = Nodes::new(launcher(command, config, job, run_dir, inputs)?);
    let result = {
        let own = (operator.clone(), Source::Folder(run_dir.identity(Role::Operator.as_str(), 0)));
        let folders: Folders = Arc::new(Mutex::new(folders));
        let ca = Arc::clone(authority.ca());
        let staff = Staff { ca, job, run_dir, validity, folders: Arc::clone(&folders) };
        tokio::select! {
            result = train(config, &staff, &operator, &mut nodes, watcher, &mut interrupts) => result,
            never = rotation::keep_fresh(Arc::clone(authority.ca()), folders, own, validity) => match never {},
        }
    };
    Control::remove(run_dir);
    match result {
        Ok(finished) => {
            tokio::select! {
                all = nodes.wait_all(nodes.grace()) => {
                    if !all {
                        watcher.notice("some nodes did not leave in time and are ended");
                    }
                }
                () = interrupts.next() => watcher.notice("nodes that have not left are ended"),
            }
            nodes.kill_all().await;
            if let Err(failure) = nodes.settle(&finished) {
                watcher.notice(&failure.message);
            }
            let audit_head = audit_head(run_dir, &operator, watcher);
            Ok(Completed { finished, wall_seconds: begun.elapsed().as_secs_f64(), audit_head })
        }
        Err(failure) => {
            nodes.kill_all().await;
            Err(failure)
        }
    }
}

/// The launcher that the cluster file asks for.
fn launcher(
    command: &[&'static str],
    config: &Config,
    job: &JobSpec,
    run_dir: &RunDir,
    inputs: Inputs,
) -> Result<Box<dyn Launcher>, Failure> {
    let (hosts, allow_root) = (inputs.hosts.clone(), inputs.allow_root);
    let local = Local::new(command, run_dir.clone(), inputs);
    Ok(match hosts {
        None => Box::new(local),
        Some(hosts) => Box::new(Ssh::new(local, hosts, config, job, run_dir, allow_root)?),
    })
}

/// The head of the audit log, once the log has been checked against the CA that this process made.
fn audit_head(run_dir: &RunDir, operator: &Identity, watcher: &mut dyn Watcher) -> Option<Hex> {
    let ours = Hex::hash(&operator.trust().ca_der());
    match audit::read(&run_dir.audit_log(), &audit::Options::default(), |_, _| {}) {
        Ok(log) if log.sessions.last().is_some_and(|session| session.ca_blake3 == ours) => log.head,
        Ok(_) => {
            watcher.notice("warning: the audit log is not this run's");
            None
        }
        Err(error) => {
            watcher.notice(&format!("warning: the audit log does not hold: {error}"));
            None
        }
    }
}

async fn train(
    config: &Config,
    staff: &Staff<'_>,
    operator: &Identity,
    nodes: &mut Nodes,
    watcher: &mut dyn Watcher,
    interrupts: &mut Interrupts,
) -> Result<Finished, Failure> {
    let Staff { job, run_dir, .. } = *staff;
    let id: SpiffeId = job.member(Role::Scheduler, 0).map_err(Failure::misconfigured)?;
    let start = async {
        let scheduler = nodes.start(Role::Scheduler, 0, None).await.map_err(Failure::not_up)?;
        Control::write(run_dir, &scheduler.to_string(), &id)?;
        Ok::<_, Failure>(scheduler)
    };
    let scheduler = tokio::select! {
        started = start => started?,
        () = interrupts.next() => return Err(early()),
    };
    let network = operator_network(config, operator)?;
    let address = scheduler.to_string();
    // Before there is anybody who could train: a short run would be over before it was followed.
    let following = async {
        let line = operator::Line::dial(&network, &address, &id).await?;
        line.follow(REPORT_EVERY_MS, watcher.wants_nodes()).await
    };
    let followed = tokio::select! {
        followed = following => followed.map_err(|error| error.to_string()),
        () = nodes.gone(Role::Scheduler, 0) => Err("the scheduler has ended".to_owned()),
        () = interrupts.next() => return Err(early()),
    };
    let (commands, mut reports) = match followed {
        Ok(followed) => followed,
        Err(reason) => return Err(unheard(nodes, None, reason).await),
    };
    let told = tokio::select! {
        started = begin::start_others(config, job, nodes, scheduler, &mut reports) => started?,
        () = interrupts.next() => return Err(early()),
    };
    let mut run = Running {
        nodes,
        watcher,
        commands,
        staff,
        wanted: job.workers,
        scheduler,
        restarts: config.cluster.supervision.worker_restarts,
        budgets: BTreeMap::new(),
        due: BTreeMap::new(),
        left: BTreeSet::new(),
        welcome: BTreeSet::new(),
        phase: Phase::Forming,
        stopping: false,
        deaths: Vec::new(),
    };
    let outcome = run.follow((told, reports), interrupts).await;
    run.commands.close();
    network.close("done").await;
    outcome
}

/// Waits, unless it is interrupted.
///
/// # Errors
/// When it is.
pub async fn pause(wait: Duration) -> Result<(), Failure> {
    let mut interrupts = Interrupts::new()?;
    tokio::select! {
        () = tokio::time::sleep(wait) => Ok(()),
        () = interrupts.next() => Err(interrupted("ended while it waited to go on")),
    }
}

fn operator_network(config: &Config, operator: &Identity) -> Result<Network, Failure> {
    let policy = testudo_actors::policy::policy(config.transport.slice_bytes).map_err(Failure::failed)?;
    let listen = std::net::SocketAddr::new(config.network.listen.ip(), 0);
    let endpoint =
        Endpoint::bind(&transport(config, Role::Operator, listen, 0), operator.clone(), Arc::new(policy));
    Ok(Network::Quic(endpoint.map_err(Failure::failed)?))
}

struct Running<'a> {
    nodes: &'a mut Nodes,
    watcher: &'a mut dyn Watcher,
    commands: Commands,
    staff: &'a Staff<'a>,
    /// How many workers the operator wants.
    wanted: u32,
    /// Where workers find it.
    scheduler: SocketAddr,
    /// How often a worker may be started again.
    restarts: u32,
    /// By worker: its restarts, and when the next is due.
    budgets: BTreeMap<u32, Budget>,
    due: BTreeMap<u32, Instant>,
    /// Those of them that left in order, and have yet to be found wanted.
    left: BTreeSet<u32>,
    /// Those who were started again for that since somebody last changed how many are wanted.
    welcome: BTreeSet<u32>,
    phase: Phase,
    stopping: bool,
    /// Workers that have died, and how.
    deaths: Vec<(Member, Failure)>,
}

enum Happened {
    Report(Told),
    Ended(Ending),
    Due(u32),
    Interrupt,
}

impl Running<'_> {
    async fn follow(
        &mut self,
        (mut early, mut reports): (Option<Told>, Reports),
        interrupts: &mut Interrupts,
    ) -> Result<Finished, Failure> {
        loop {
            let due = self.due.iter().min_by_key(|(_, at)| **at).map(|(worker, at)| (*worker, *at));
            let happened = tokio::select! {
                // What the scheduler has said comes before what has followed from it.
                biased;
                told = next(&mut early, &mut reports) => Happened::Report(told),
                node = self.nodes.ended() => Happened::Ended(Ending::of(node)),
                worker = wait_for(due) => Happened::Due(worker),
                () = interrupts.next() => Happened::Interrupt,
            };
            match happened {
                Happened::Report(Ok(report)) => {
                    self.phase = report.phase;
                    self.watcher.report(&report);
                    self.scale(report.workers_wanted).await;
                    if let Some(outcome) = report.outcome {
                        return self.came_to(outcome).await;
                    }
                }
                Happened::Report(Err(error)) => return Err(self.explain(error.to_string(), true).await),
                Happened::Ended(ending) => match ending.member {
                    Some(member) => self.ended(member, ending).await?,
                    None => {
                        return match last_words(&mut reports).await {
                            Some(outcome) => self.came_to(outcome).await,
                            None => Err(unheard(self.nodes, Some(ending), String::new()).await),
                        };
                    }
                },
                Happened::Due(worker) if self.left.remove(&worker) => {
                    self.start_who_left(worker).await?;
                }
                Happened::Due(worker) => self.start_again(worker).await,
                Happened::Interrupt if self.stopping => return Err(interrupted("ended at once")),
                Happened::Interrupt => {
                    self.stopping = true;
                    self.watcher
                        .notice("stopping in order, with a last checkpoint; interrupt again to end at once");
                    if let Err(error) = self.commands.stop().await {
                        return Err(self.explain(error.to_string(), true).await);
                    }
                }
            }
        }
    }

    /// What the run has come to, as the scheduler says.
    async fn came_to(&mut self, outcome: Outcome) -> Result<Finished, Failure> {
        match outcome {
            Outcome::Finished(finished) => Ok(finished),
            Outcome::Failed(reason) => Err(self.explain(reason, false).await),
            // However its process ends: its parameters are gone.
            Outcome::ServerLost(reason) => Err(self.explain(reason, false).await.died()),
        }
    }

    /// Whether nobody is wanted any more, as far as is known.
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Finishing | Phase::Over)
    }

    /// A worker's death is survived, if training has begun; a server's is not.
    async fn ended(&mut self, member: Member, ending: Ending) -> Result<(), Failure> {
        let is_worker = member.role == MemberRole::Worker;
        if ending.in_order {
            // Nodes leave in order at the scheduler's word alone. Its next reports say why: what this process knows of the phase, and
            // of who is wanted, may be a report old.
            if !is_worker || self.is_over() {
                return Ok(());
            }
            if member.index < self.wanted {
                // It may be wanted again by now.
                self.due.insert(member.index, Instant::now() + REPORTED);
                self.left.insert(member.index);
            } else {
                self.watcher.notice(&format!("{member} has left: {} workers are wanted", self.wanted));
            }
            return Ok(());
        }
        if !is_worker {
            return Err(ending.failure.died());
        }
        // The scheduler decides: what this process knows of the phase may be a report old.
        self.watcher.notice(&format!("{member} ended: {}", ending.how));
        let said = self.commands.ended(member, ending.how).await;
        self.deaths.push((member, ending.failure));
        if let Err(error) = said {
            return Err(self.explain(error.to_string(), true).await);
        }
        self.plan_restart(member)
    }

    /// A failure as the scheduler tells it (or, with `line_broke`, does not), or the dead node behind it: a worker that it
    /// names, or one that turns up at once.
    async fn explain(&mut self, reason: String, line_broke: bool) -> Failure {
        if let Some(at) = self.deaths.iter().position(|(member, _)| reason.contains(&member.to_string())) {
            let Failure { message, status } = self.deaths.swap_remove(at).1;
            return Failure { message: format!("{reason}\n{message}"), status };
        }
        match line_broke {
            true => unheard(self.nodes, None, reason).await,
            false => behind(self.nodes, reason).await,
        }
    }
}

/// What was told early comes first.
async fn next(early: &mut Option<Told>, reports: &mut Reports) -> Told {
    match early.take() {
        Some(told) => told,
        None => reports.next().await.map(Box::new),
    }
}

fn early() -> Failure {
    interrupted("stopped before training began")
}

fn interrupted(text: &str) -> Failure {
    Failure { message: text.into(), status: Status::Interrupted }
}

/// Ctrl-C and SIGTERM alike.
struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn new() -> Result<Interrupts, Failure> {
        let failed = |e| Failure::failed(format!("signals cannot be caught: {e}"));
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
