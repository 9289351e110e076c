//! The nodes of a run, whichever launcher started them: where they are bound, how they ended, and their end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use testudo_actors::message::Finished;
use testudo_transport::Role;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::task::JoinHandle;

use super::{Launched, Launcher, ToStart};
use crate::error::{Failure, Status};
use crate::rundir::in_words;

/// Log lines that are shown when a node dies.
const LAST_LINES: usize = 12;

/// Lines that may come before the one that says where a node is bound, and bytes of a line.
const GREETING_LINES: usize = 64;
const LINE_BYTES: u64 = 4096;

/// Bytes of a log's end that are looked at for them.
const LAST_BYTES: u64 = 16 << 10;

/// Between two looks at processes: a poll of a few costs microseconds, and a death is noticed well before any network timeout.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long what a node said last may take into its log once its process has ended.
const TELL_GRACE: Duration = Duration::from_secs(1);

/// A node's process.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its role.
    pub role: Role,
    /// Its index.
    pub index: u32,
    log: PathBuf,
    child: Child,
    _lease: Box<dyn std::fmt::Debug>,
    /// What takes the rest of its output.
    receiving: Option<JoinHandle<()>>,
    /// What writes its log, and when its process was first seen to have ended.
    telling: Option<JoinHandle<()>>,
    gone: Option<Instant>,
    exit: Option<ExitStatus>,
}

/// The nodes that one launcher has started. Those that still run when this is dropped are ended.
#[derive(Debug)]
pub struct Nodes {
    launcher: Box<dyn Launcher>,
    nodes: Vec<NodeProcess>,
}

impl Nodes {
    /// None yet.
    #[must_use]
    pub fn new(launcher: Box<dyn Launcher>) -> Nodes {
        Nodes { launcher, nodes: Vec::new() }
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
        let to_start = ToStart { role, index, scheduler };
        let Launched { mut child, lease, log, telling } = self.launcher.launch(&to_start).await?;
        let stdout = child.stdout.take();
        let patience = self.launcher.patience();
        self.nodes.push(NodeProcess::new(&to_start, log, child, lease, telling));
        let bound = tokio::time::timeout(patience, first_line(stdout)).await;
        let Some(node) = self.nodes.last_mut() else { return Err(Failure::failed("no node")) };
        if let Ok(Some((address, rest))) = bound {
            let receiver = self.launcher.receiver(&to_start);
            node.receiving = receiver.map(|receive| tokio::task::spawn_blocking(move || receive(rest)));
            return Ok(address);
        }
        let exit = tokio::time::timeout(Duration::from_secs(1), node.child.wait()).await;
        let how = match exit {
            Ok(Ok(status)) => {
                if let Some(telling) = &mut node.telling {
                    let _ = tokio::time::timeout(TELL_GRACE, telling).await;
                }
                node.telling = None;
                format!("ended before it was up ({})", describe(status))
            }
            _ => format!("was not up after {} s", patience.as_secs()),
        };
        Err(node.failure(&how))
    }

    /// Starts a node that has ended once more. Where it is bound is nobody's concern: it finds the others.
    ///
    /// # Errors
    /// When its process cannot be started.
    pub async fn start_again(
        &mut self,
        role: Role,
        index: u32,
        scheduler: SocketAddr,
    ) -> Result<(), Failure> {
        let node = ToStart { role, index, scheduler: Some(scheduler) };
        let Launched { mut child, lease, log, telling } = self.launcher.launch(&node).await?;
        let stdout = child.stdout.take();
        let receiver = self.launcher.receiver(&node);
        let receiving = Some(tokio::spawn(async move {
            if let (Some((_, rest)), Some(receive)) = (first_line(stdout).await, receiver) {
                let _ = tokio::task::spawn_blocking(move || receive(rest)).await;
            }
        }));
        let process = NodeProcess { receiving, ..NodeProcess::new(&node, log, child, lease, telling) };
        match self.nodes.iter_mut().find(|n| (n.role, n.index) == (role, index) && n.exit.is_some()) {
            Some(former) => *former = process,
            None => self.nodes.push(process),
        }
        Ok(())
    }

    /// Whether that node runs.
    #[must_use]
    pub fn runs(&self, role: Role, index: u32) -> bool {
        self.nodes.iter().any(|node| (node.role, node.index) == (role, index) && node.exit.is_none())
    }

    /// Whether a node of that role runs.
    #[must_use]
    pub fn any_runs(&self, role: Role) -> bool {
        self.nodes.iter().any(|node| node.role == role && node.exit.is_none())
    }

    /// Waits until a node that lived has ended, and returns it; never returns once all have.
    pub async fn ended(&mut self) -> &NodeProcess {
        loop {
            for at in 0..self.nodes.len() {
                let node = &mut self.nodes[at];
                if node.exit.is_none()
                    && let Ok(Some(status)) = node.child.try_wait()
                    && node.has_told()
                {
                    node.exit = Some(status);
                    return &self.nodes[at];
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until that node has ended, which [`ended`](Nodes::ended) says all the same.
    pub async fn gone(&mut self, role: Role, index: u32) {
        loop {
            let is_it = |node: &&mut NodeProcess| (node.role, node.index) == (role, index);
            if !self.nodes.iter_mut().filter(is_it).all(|node| matches!(node.child.try_wait(), Ok(None))) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How long nodes may take to leave in order once the run is over.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.launcher.grace()
    }

    /// Waits until all have ended, and what they sent has come, `grace` at most; returns whether they have.
    pub async fn wait_all(&mut self, grace: Duration) -> bool {
        let all = async {
            for node in &mut self.nodes {
                if node.exit.is_none() {
                    node.exit = node.child.wait().await.ok();
                }
                for task in [&mut node.receiving, &mut node.telling] {
                    if let Some(running) = task {
                        let _ = running.await;
                        *task = None;
                    }
                }
            }
        };
        tokio::time::timeout(grace, all).await.is_ok()
    }

    /// Puts what nodes sent at their end in its place, once all have ended.
    ///
    /// # Errors
    /// [`Failure`] when what should have come did not.
    pub fn settle(&mut self, finished: &Finished) -> Result<(), Failure> {
        self.launcher.settle(finished)
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
    fn new(
        &ToStart { role, index, .. }: &ToStart,
        log: PathBuf,
        child: Child,
        lease: Box<dyn std::fmt::Debug>,
        telling: Option<JoinHandle<()>>,
    ) -> NodeProcess {
        let (receiving, gone, exit) = (None, None, None);
        NodeProcess { role, index, log, child, _lease: lease, receiving, telling, gone, exit }
    }

    /// Whether all that it said is in its log, or has had its time; asked once its process has ended.
    fn has_told(&mut self) -> bool {
        let gone = *self.gone.get_or_insert_with(Instant::now);
        self.telling.as_ref().is_none_or(JoinHandle::is_finished) || gone.elapsed() > TELL_GRACE
    }

    /// How it ended, in words; `None` while it runs.
    #[must_use]
    pub fn exit(&self) -> Option<String> {
        self.exit.map(describe)
    }

    /// Its exit status, if it has ended, and not by a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.exit.and_then(|status| status.code())
    }

    /// Whether it ended in order: done, or dismissed by its scheduler.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.exit.is_some_and(in_order)
    }

    /// A failure that names this node, and shows the last lines of its log.
    #[must_use]
    pub fn failure(&self, how: &str) -> Failure {
        let mut message = format!("{}/{} {how}", self.role, self.index);
        let lines = last_lines(&self.log);
        if !lines.is_empty() {
            let log = in_words(&self.log.display().to_string());
            message += &format!("\nthe last lines of {log}:");
            for line in lines {
                message += "\n  ";
                message += &line;
            }
        }
        Failure::failed(message)
    }
}

/// Where the node says that it is bound, and what comes after. A shell on its way may have greeted before.
async fn first_line(stdout: Option<ChildStdout>) -> Option<(SocketAddr, BufReader<ChildStdout>)> {
    let mut from = BufReader::new(stdout?);
    for _ in 0..GREETING_LINES {
        let mut line = Vec::new();
        let mut bounded = (&mut from).take(LINE_BYTES);
        if bounded.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        let line = String::from_utf8_lossy(&line);
        if let Some(address) = line.trim_end().strip_prefix("listening ") {
            return Some((address.parse().ok()?, from));
        }
    }
    None
}

pub(super) fn describe(status: ExitStatus) -> String {
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

fn in_order(status: ExitStatus) -> bool {
    status.success() || status.code() == Some(i32::from(Status::RunLost.number()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    /// Whoever was dismissed from a run that has lost a server is not the one that was lost.
    #[test]
    fn who_was_dismissed_has_ended_in_order() {
        let ended = |status: i32| in_order(ExitStatus::from_raw(status << 8));
        assert_eq!([0, 1, 2, 5, 6].map(ended), [true, false, false, false, true]);
        assert!(!in_order(ExitStatus::from_raw(6)), "a signal of that number is no status");
    }
}
