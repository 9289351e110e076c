//! Where a node's metrics are scraped: a port of the loopback address, bound before the node gives away its right to bind.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use testudo_observability::{Door, Environment};

use crate::cli::args::NodeRole;
use crate::config::Config;
use crate::error::Failure;
use crate::rundir::RunDir;

/// Opens the door of node `role`/`index`, if metrics are to be scraped, and leaves its address in the run directory, as Prometheus
/// reads targets from files (`file_sd_configs`).
pub(super) fn open(
    told: &Environment,
    config: &Config,
    (role, index): (NodeRole, u32),
    run_dir: &RunDir,
) -> Result<Option<Door>, Failure> {
    let Some(at) = told.scraped_at().map_err(Failure::misconfigured)? else { return Ok(None) };
    let node = format!("{}/{index}", role.word());
    let at = place(at, config, (role, index)).ok_or_else(|| {
        Failure::misconfigured(format!(
            "{node} has no port for Prometheus: telemetry.prometheus_port ({}) leaves too few above it; choose a lower one, or 0",
            at.port()
        ))
    })?;
    let door = Door::open(at).map_err(|e| {
        Failure::failed(format!(
            "{node} cannot serve metrics on {at}: {e}; choose another telemetry.prometheus_port, or 0 for any"
        ))
    })?;
    let file = run_dir.scraped(role.word(), index);
    if let Err(error) = leave(&file, door.address(), &node) {
        tracing::warn!(file = %file.display(), %error, "the address for Prometheus stands in the log alone");
    }
    Ok(Some(door))
}

/// Nodes of one machine have ports of their own: the scheduler the one that is named, servers those after it, then workers.
fn place(at: SocketAddr, config: &Config, (role, index): (NodeRole, u32)) -> Option<SocketAddr> {
    if at.port() == 0 {
        return Some(at);
    }
    let after = match role {
        NodeRole::Scheduler => 0,
        NodeRole::Server | NodeRole::Peer => index.checked_add(1)?,
        NodeRole::Worker => index.checked_add(1)?.checked_add(config.cluster.servers)?,
    };
    let port = u32::from(at.port()).checked_add(after)?;
    Some(SocketAddr::new(at.ip(), u16::try_from(port).ok()?))
}

/// The ports that nodes of this machine bind, for a launcher whose confinement they inherit.
pub(in crate::cli) fn ports(told: &Environment, config: &Config) -> Vec<u16> {
    match told.scraped_at() {
        Ok(Some(at)) if at.port() == 0 => vec![0],
        Ok(Some(at)) => {
            let nodes = config.cluster.servers.saturating_add(config.cluster.workers);
            let last = u32::from(at.port()).saturating_add(nodes);
            (at.port()..=u16::try_from(last).unwrap_or(u16::MAX)).collect()
        }
        _ => Vec::new(),
    }
}

fn leave(file: &Path, address: SocketAddr, node: &str) -> io::Result<()> {
    if let Some(folder) = file.parent()
        && let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(folder)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let targets =
        serde_json::json!([{ "targets": [address.to_string()], "labels": { "testudo_node": node } }]);
    std::fs::write(file, format!("{targets}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_one_machine_have_ports_of_their_own() {
        let text = "[job]\nname=\"x\"\n[cluster]\nworkers=3\nservers=2\n[training]\nepochs=1\nbatch_size=8\nlogical_shards=8\n\
            [model]\nkind=\"mlp\"\ninputs=784\nhidden=[8]\nclasses=10\n[optimizer]\nkind=\"sgd\"\nlearning_rate=0.1\n[data]\nkind=\"mnist\"\npath=\"x\"\n\
            [telemetry]\nprometheus_port=9464\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.toml");
        std::fs::write(&file, text).unwrap();
        let config = Config::load::<&str>(&file, &[]).unwrap();
        let told = Environment::default().with_settings(testudo_observability::Settings {
            prometheus: config.telemetry.prometheus_port,
            ..Default::default()
        });
        let at = told.scraped_at().unwrap().unwrap();
        let port = |role, index| place(at, &config, (role, index)).map(|at| at.port());
        let mut all = vec![port(NodeRole::Scheduler, 0)];
        all.extend((0..2).map(|index| port(NodeRole::Server, index)));
        all.extend((0..3).map(|index| port(NodeRole::Worker, index)));
        assert_eq!(all, (9464..9470).map(Some).collect::<Vec<_>>());
        assert_eq!(ports(&told, &config), (9464..9470).collect::<Vec<_>>());
        let high = SocketAddr::from(([127, 0, 0, 1], 65_534));
        assert_eq!(place(high, &config, (NodeRole::Worker, 2)), None);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        assert_eq!(place(any, &config, (NodeRole::Worker, 2)), Some(any));
    }
}
