//! `testudo hosted`: one node on a host, as a launcher on another machine starts it (`launch/ssh.rs`).
//!
//! What the node is told comes on standard input, into a folder of its own; standard output says where it is bound, and carries the
//! final model at the end; the log goes to standard error.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use testudo_actors::audit::Hex;

use super::args::{NodeArguments, NodeRole};
use super::node::{self, Environment};
use crate::config::Config;
use crate::error::Failure;
use crate::launch::lease;
use crate::launch::ssh::{Orders, names};
use crate::rundir::RunDir;

/// `testudo hosted`
#[derive(Debug, Args)]
pub(crate) struct HostedArguments {
    /// What this node is
    #[arg(long)]
    role: NodeRole,
    /// Which one of its role, from 0
    #[arg(long, value_name = "N")]
    index: u32,
    /// The folder that is made for it
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
}

/// What a hosted node has beside others.
pub(super) struct Hosting {
    /// The run directory; the node's own folder where the host does not reach the launcher's.
    pub(super) run_dir: RunDir,
    /// The node's own folder.
    pub(super) folder: RunDir,
}

pub(super) fn hosted(arguments: &HostedArguments) -> Result<(), Failure> {
    let unusable = |e: &dyn std::fmt::Display| {
        let folder = arguments.folder.display();
        Failure::misconfigured(format!("{folder}: what the launcher sent cannot be taken: {e}"))
    };
    let folder = std::path::absolute(&arguments.folder).map_err(|e| unusable(&e))?;
    lease::receive(&folder).map_err(|e| unusable(&e))?;
    let folder = RunDir::open(&folder).and_then(RunDir::hold).map_err(Failure::misconfigured)?;
    let inside = |name: &str| folder.reach(&folder.path().join(name));
    let orders = std::fs::read(inside(names::ORDERS)).map_err(|e| unusable(&e))?;
    let orders: Orders = serde_json::from_slice(&orders).map_err(|e| unusable(&e))?;
    let (run_dir, shared) = match &orders.shared {
        Some((path, job)) => (shared_directory(path, *job)?, true),
        None => (folder.clone(), false),
    };
    let config = inside(names::CLUSTER_FILE);
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let overrides = overrides(&config, &orders, reached_at(&connection))?;
    let key = Some(inside(names::KEY)).filter(|key| key.exists());
    let node = NodeArguments {
        role: arguments.role,
        index: Some(arguments.index),
        config,
        identity: Some(inside(names::IDENTITY)),
        worker_identity: (arguments.role == NodeRole::Peer).then(|| inside(names::WORKER_IDENTITY)),
        scheduler: Some(orders.scheduler),
        listen_by_scheduler: false,
        job: None,
        run_dir: None,
        identity_file: key,
        audit_identity: None,
        summary: None,
        log: None,
        allow_root: orders.allow_root,
        with_parent: false,
    };
    let environment = Environment { scheduler: None, overrides, index: None };
    // The descriptor that it is reached through stays open until the model is sent.
    let held = run_dir.clone();
    node::run(&node, environment, Some(Hosting { run_dir, folder }), None)?;
    if shared {
        return Ok(());
    }
    lease::send(&held.model()).map_err(|e| Failure::failed(format!("the final model could not be sent: {e}")))
}

/// What the cluster file says otherwise on this host: it is the launcher's, which cannot know what is bound here.
fn overrides(config: &Path, orders: &Orders, here: Option<IpAddr>) -> Result<Vec<String>, Failure> {
    let mut overrides = Vec::new();
    if let Some(data) = &orders.data {
        overrides.push(format!("data.path={data}"));
    }
    if let Some(here) = here {
        let told = Config::load(config, &overrides).map_err(Failure::misconfigured)?;
        let listen = SocketAddr::new(here, told.network.listen.port());
        overrides.push(format!("network.listen={listen}"));
    }
    Ok(overrides)
}

/// The address of this machine to which the launcher's connection came: the third word of `SSH_CONNECTION` (`sshd` sets it; see
/// `ssh(1)`).
fn reached_at(connection: &str) -> Option<IpAddr> {
    connection.split(' ').nth(2)?.parse().ok()
}

/// The launcher's run directory, if that is what lies under its path here.
fn shared_directory(path: &Path, job: Hex) -> Result<RunDir, Failure> {
    let other = |why: &dyn std::fmt::Display| {
        Failure::misconfigured(format!(
            "{}, the run directory, is not reached from this host ({why}): set ssh.shared = false, or put output.dir on a file \
             system that hosts have under the same path",
            path.display()
        ))
    };
    let run_dir = RunDir::open(path).and_then(RunDir::hold).map_err(|e| other(&e))?;
    let signed = std::fs::read(run_dir.signed_job()).map_err(|e| other(&e))?;
    if Hex::hash(&signed) == job { Ok(run_dir) } else { Err(other(&"another run is there")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_reached_where_its_connection_came_in() {
        let at = |text: &str| text.parse::<IpAddr>().ok();
        assert_eq!(reached_at("10.0.0.1 50000 10.0.0.2 22"), at("10.0.0.2"));
        assert_eq!(reached_at("2001:db8::1 50000 2001:db8::2 22"), at("2001:db8::2"));
        for other in ["", "UNKNOWN", "10.0.0.1 50000", "fe80::1%eth0 1 fe80::2%eth0 22"] {
            assert_eq!(reached_at(other), None, "{other}");
        }
    }

    #[test]
    fn another_directory_under_the_same_path_is_no_shared_one() {
        let place = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(&place.path().join("run")).unwrap();
        std::fs::write(run_dir.signed_job(), "the job").unwrap();
        assert!(shared_directory(run_dir.path(), Hex::hash(b"the job")).is_ok());
        let refused = |path: &Path, job: &[u8]| match shared_directory(path, Hex::hash(job)) {
            Ok(_) => String::new(),
            Err(failure) => failure.message,
        };
        assert!(refused(run_dir.path(), b"another").contains("another run is there"));
        assert!(refused(&place.path().join("none"), b"the job").contains("ssh.shared"));
    }
}
