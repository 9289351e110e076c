//! The local launcher: every node a process of its own on this machine.
//!
//! 1. No process is left behind: children are killed when the launcher drops them, and end by themselves when their
//!    standard input, a socket whose other end the launcher holds, closes.
//! 2. Children are in process groups of their own, so an interrupt at the terminal reaches the launcher alone.
//! 3. What a node prints or panics with ends up in its log.
//! 4. A node needs no path but those of the system: the program, the run directory, the data and keys are open in the launcher,
//!    which may have opened them as another user than the node is ([`handing`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use testudo_transport::Role;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::checkpoint::keys::KeyFile;
use crate::data::DataFiles;
use crate::error::Failure;
use crate::process::Program;
use crate::process::handing::{self, ToHand};
use crate::rundir::RunDir;

/// What `testudo node` takes from the environment when another launcher starts it; here everything is said by options.
const LAUNCHER_VARIABLES: [&str; 7] = [
    "DMLC_ROLE",
    "DMLC_NUM_WORKER",
    "DMLC_NUM_SERVER",
    "DMLC_PS_ROOT_URI",
    "DMLC_PS_ROOT_PORT",
    "DMLC_WORKER_ID",
    "DMLC_SERVER_ID",
];

/// How long a node may take from its start until it is bound: loading the program from a cold disk, mostly.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Log lines that are shown when a node dies.
const LAST_LINES: usize = 12;

/// Bytes of a log's end that are looked at for them.
const LAST_BYTES: u64 = 16 << 10;

/// A node's process.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its role.
    pub role: Role,
    /// Its index.
    pub index: u32,
    log: PathBuf,
    /// What the log is called.
    log_name: PathBuf,
    child: Child,
    /// The other end of its standard input.
    _line: UnixStream,
    exit: Option<ExitStatus>,
}

/// What nodes are handed beside the run directory; all open.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The data set, for workers.
    pub data: Option<Arc<DataFiles>>,
    /// What opens the checkpoint that servers and witnesses begin with, if it is not the run's own key.
    pub key: Option<Arc<KeyFile>>,
    /// What to execute for a node.
    pub program: Program,
    /// Whether nodes may be root.
    pub allow_root: bool,
}

/// The processes of a cluster on this machine.
#[derive(Debug)]
pub struct LocalNodes {
    command: Vec<&'static str>,
    run_dir: RunDir,
    inputs: Inputs,
    nodes: Vec<NodeProcess>,
}

impl LocalNodes {
    /// None yet; they will run this program with `command`, on the cluster file and the identities in `run_dir`.
    #[must_use]
    pub fn new(command: &[&'static str], run_dir: RunDir, inputs: Inputs) -> LocalNodes {
        LocalNodes { command: command.to_vec(), run_dir, inputs, nodes: Vec::new() }
    }

    /// Starts a node and waits until it is bound; returns where.
    ///
    /// # Errors
    /// When it cannot be started, or ends before it is bound; its last log lines are in the text.
    pub async fn start(
        &mut self,
        role: Role,
        index: u32,
        scheduler: Option<SocketAddr>,
    ) -> Result<SocketAddr, Failure> {
        let name = role.to_string();
        // A peer is a server and a worker, each with an identity of its own.
        let own = if role == Role::Peer { Role::Server } else { role };
        let log = self.run_dir.log(&name, index);
        let output = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .map_err(|e| Failure::file(&log, "cannot be written", e))?;
        let name_of = |path: PathBuf| self.run_dir.name_of(&path);
        let log_name = name_of(log.clone());
        let mut command = Command::new(self.inputs.program.path());
        // For those who look at the list of processes.
        command.arg0(std::env::args_os().next().unwrap_or("testudo".into()));
        command
            .args(&self.command)
            .args(["--role", &name, "--index", &index.to_string(), "--with-parent", "--config"])
            .arg(name_of(self.run_dir.cluster_file()))
            .arg("--identity")
            .arg(name_of(self.run_dir.identity(own.as_str(), index)))
            .arg("--job")
            .arg(name_of(self.run_dir.signed_job()))
            .arg("--run-dir")
            .arg(self.run_dir.path())
            .arg("--log")
            .arg(&log_name);
        if role == Role::Peer {
            let worker = self.run_dir.identity(Role::Worker.as_str(), index);
            command.arg("--worker-identity").arg(name_of(worker));
        }
        if let Some(scheduler) = scheduler {
            command.args(["--scheduler", &scheduler.to_string()]);
        }
        if self.inputs.allow_root {
            command.arg("--allow-root");
        }
        for variable in LAUNCHER_VARIABLES {
            command.env_remove(variable);
        }
        let not_started =
            |e: std::io::Error| Failure::failed(format!("{name}/{index} cannot be started: {e}"));
        let (line, theirs) = UnixStream::pair().map_err(not_started)?;
        command
            .stdin(OwnedFd::from(theirs))
            .stdout(std::process::Stdio::piped())
            .stderr(output)
            .kill_on_drop(true)
            .process_group(0);
        handing::hand(&line, &self.to_hand(role)).map_err(|e| not_started(e.into()))?;
        let mut child = command.spawn().map_err(not_started)?;
        // The command holds the node's end of the line, which must close with the node.
        drop(command);
        let stdout = child.stdout.take();
        self.nodes.push(NodeProcess { role, index, log, log_name, child, _line: line, exit: None });
        let bound = tokio::time::timeout(START_DEADLINE, first_line(stdout)).await;
        if let Ok(Some(address)) = bound {
            return Ok(address);
        }
        let Some(node) = self.nodes.last_mut() else { return Err(Failure::failed("no node")) };
        let exit = tokio::time::timeout(Duration::from_secs(1), node.child.wait()).await;
        let how = match exit {
            Ok(Ok(status)) => format!("ended before it was up ({})", describe(status)),
            _ => format!("was not up after {} s", START_DEADLINE.as_secs()),
        };
        Err(node.failure(&how))
    }

    /// What a node of that role needs.
    fn to_hand(&self, role: Role) -> ToHand<'_> {
        ToHand {
            run_dir: self.run_dir.descriptor(),
            data: self.inputs.data.as_deref().filter(|_| matches!(role, Role::Worker | Role::Peer)),
            key: self
                .inputs
                .key
                .as_deref()
                .filter(|_| matches!(role, Role::Server | Role::Scheduler | Role::Peer))
                .map(|key| key.as_fd()),
        }
    }

    /// Waits until a node that lived has ended, and returns it; never returns once all have.
    pub async fn ended(&mut self) -> &NodeProcess {
        loop {
            for at in 0..self.nodes.len() {
                let node = &mut self.nodes[at];
                if node.exit.is_none()
                    && let Ok(Some(status)) = node.child.try_wait()
                {
                    node.exit = Some(status);
                    return &self.nodes[at];
                }
            }
            // A poll of a few processes costs microseconds; a death is noticed well before any network timeout.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all have ended, `grace` at most; returns whether they have.
    pub async fn wait_all(&mut self, grace: Duration) -> bool {
        let all = async {
            for node in &mut self.nodes {
                if node.exit.is_none() {
                    node.exit = node.child.wait().await.ok();
                }
            }
        };
        tokio::time::timeout(grace, all).await.is_ok()
    }

    /// Kills those that still run, and waits for them.
    pub async fn kill_all(&mut self) {
        for node in &mut self.nodes {
            let _ = node.child.start_kill();
        }
        self.wait_all(Duration::from_secs(5)).await;
    }
}

impl NodeProcess {
    /// How it ended, in words; `None` while it runs.
    #[must_use]
    pub fn exit(&self) -> Option<String> {
        self.exit.map(describe)
    }

    /// Whether it ended in order.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.exit.is_some_and(|status| status.success())
    }

    /// A failure that names this node, and shows the last lines of its log.
    #[must_use]
    pub fn failure(&self, how: &str) -> Failure {
        let mut message = format!("{}/{} {how}", self.role, self.index);
        let lines = last_lines(&self.log);
        if !lines.is_empty() {
            message += &format!("\nthe last lines of {}:", self.log_name.display());
            for line in lines {
                message += "\n  ";
                message += &line;
            }
        }
        Failure::failed(message)
    }
}

/// Ends this process when its standard input does: its launcher holds the other end, so no node outlives it.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
        tracing::error!("the launcher is gone; ending");
        std::process::exit(1);
    });
}

async fn first_line(stdout: Option<tokio::process::ChildStdout>) -> Option<SocketAddr> {
    let mut lines = BufReader::new(stdout?).lines();
    let line = lines.next_line().await.ok()??;
    line.strip_prefix("listening ")?.parse().ok()
}

fn describe(status: ExitStatus) -> String {
    match std::os::unix::process::ExitStatusExt::signal(&status) {
        Some(9) => "killed by signal 9 (SIGKILL)".into(),
        Some(signal) => format!("killed by signal {signal}"),
        None => match status.code() {
            Some(code) => format!("exit status {code}"),
            None => "ended".into(),
        },
    }
}

/// The last lines of a log, printable characters only: they hold what peers said.
fn last_lines(log: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LAST_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LAST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let mut lines = VecDeque::new();
    for line in text.lines() {
        lines.push_back(line.chars().filter(|c| !c.is_control()).collect());
        if lines.len() > LAST_LINES {
            lines.pop_front();
        }
    }
    lines.into()
}
