//! The local launcher: every node a process of its own on this machine.
//!
//! 1. No process is left behind: children are killed when the launcher drops them, and end by themselves when their
//!    standard input, a socket whose other end the launcher holds, closes.
//! 2. Children are in process groups of their own, so an interrupt at the terminal reaches the launcher alone.
//! 3. What a node prints or panics with ends up in its log.
//! 4. A node needs no path but those of the system: the program, the run directory, the data and keys are open in the launcher,
//!    which may have opened them as another user than the node is ([`handing`]).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use testudo_transport::Role;
use tokio::process::Command;

use super::ssh::Hosts;
use super::{Launched, Launcher, Launching, ToStart};
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

/// mimalloc's option that says for how many milliseconds what was freed is kept before the kernel has it back (`mi_option_purge_delay`), and its
/// value for nodes: a step takes as many slices as the one before gave back, and pages that the kernel had meanwhile are cleared again
/// (`docs/performance.md`). It is read when a process starts, so whoever starts it says it.
pub(super) const PURGE_DELAY: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "10000");

/// The names under which an environment may say it already: mimalloc reads this one first, then the option's former name, each in either case.
pub(super) const PURGE_NAMES: [&str; 4] =
    [PURGE_DELAY.0, "mimalloc_purge_delay", "MIMALLOC_RESET_DELAY", "mimalloc_reset_delay"];

/// How long a node may take until it is bound: loading the program from a cold disk, mostly.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long nodes may take to leave in order once the run is over.
const LEAVE_GRACE: Duration = Duration::from_secs(15);

/// What nodes are handed beside the run directory; all open.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The data set, for workers.
    pub data: Option<Arc<DataFiles>>,
    /// What opens the checkpoint that servers and witnesses begin with, if it is not the run's own key.
    pub key: Option<Arc<KeyFile>>,
    /// What `https://` collectors are spoken to with ([`collector`](crate::process::collector)).
    pub collector: Option<Arc<OwnedFd>>,
    /// Whether workers begin with something of it, too: residuals of error feedback.
    pub residuals: bool,
    /// What to execute for a node.
    pub program: Program,
    /// Whether nodes may be root.
    pub allow_root: bool,
    /// What starts nodes on hosts, if the cluster file names some.
    pub hosts: Option<Arc<Hosts>>,
}

/// Starts nodes on this machine.
#[derive(Debug)]
pub struct Local {
    command: Vec<&'static str>,
    run_dir: RunDir,
    inputs: Inputs,
}

impl Local {
    /// Nodes will run this program with `command`, on the cluster file and the identities in `run_dir`.
    #[must_use]
    pub fn new(command: &[&'static str], run_dir: RunDir, inputs: Inputs) -> Local {
        Local { command: command.to_vec(), run_dir, inputs }
    }

    fn start(&self, node: &ToStart) -> Result<Launched, Failure> {
        let ToStart { role, index, scheduler } = *node;
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
            .arg(name_of(log.clone()));
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
        environment(&mut command, |name| std::env::var_os(name).is_some());
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
        let child = command.spawn().map_err(not_started)?;
        // The command, dropped here, holds the node's end of the line, which must close with the node.
        Ok(Launched { child, lease: Box::new(line), log, telling: None })
    }

    /// What a node of that role needs.
    fn to_hand(&self, role: Role) -> ToHand<'_> {
        ToHand {
            run_dir: self.run_dir.descriptor(),
            data: self.inputs.data.as_deref().filter(|_| matches!(role, Role::Worker | Role::Peer)),
            key: self.key(role).map(|key| key.as_fd()),
            collector: self.inputs.collector.as_ref().map(|held| held.as_fd()),
        }
    }

    /// What opens the checkpoint that a node of that role begins with something of, wherever it is started.
    pub(super) fn key(&self, role: Role) -> Option<&KeyFile> {
        self.inputs.key.as_deref().filter(|_| role != Role::Worker || self.inputs.residuals)
    }
}

impl Launcher for Local {
    fn launch<'a>(&'a mut self, node: &'a ToStart) -> Launching<'a> {
        Box::pin(std::future::ready(self.start(node)))
    }

    fn patience(&self) -> Duration {
        START_DEADLINE
    }

    fn grace(&self) -> Duration {
        LEAVE_GRACE
    }
}

/// What a node's environment has otherwise than this process's; `is_set` says what that has.
fn environment(command: &mut Command, is_set: impl Fn(&str) -> bool) {
    for variable in LAUNCHER_VARIABLES {
        command.env_remove(variable);
    }
    // Whoever has set it knows better.
    if !PURGE_NAMES.into_iter().any(is_set) {
        let (name, value) = PURGE_DELAY;
        command.env(name, value);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What `environment` changes.
    fn changed(set: &[&str]) -> Vec<(String, Option<String>)> {
        let mut command = Command::new("testudo");
        environment(&mut command, |name| set.contains(&name));
        let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
        command.as_std().get_envs().map(|(name, value)| (text(name), value.map(text))).collect()
    }

    #[test]
    fn nodes_keep_what_they_free_unless_the_environment_says_otherwise() {
        let given = ("MIMALLOC_PURGE_DELAY".to_owned(), Some("10000".to_owned()));
        assert!(changed(&[]).contains(&given) && changed(&["OTHER"]).contains(&given));
        for set in
            ["MIMALLOC_PURGE_DELAY", "mimalloc_purge_delay", "MIMALLOC_RESET_DELAY", "mimalloc_reset_delay"]
        {
            let all = changed(&[set]);
            assert!(all.iter().all(|(name, value)| name.starts_with("DMLC_") && value.is_none()), "{all:?}");
            assert_eq!(all.len(), LAUNCHER_VARIABLES.len());
        }
    }
}
