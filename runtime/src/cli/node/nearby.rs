//! Which of this machine's addresses a node binds, where the cluster file cannot know: another system has chosen the machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::Instant;

use testudo_actors::link::PATIENCE;

use super::Environment;
use crate::cli::args::{NodeArguments, NodeRole};
use crate::config::Config;
use crate::error::Failure;

/// Between two tries to find out what the scheduler's name means.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

/// Where the scheduler is: as the command line says, else a launcher's environment, else the cluster file.
pub(super) fn scheduler(
    arguments: &NodeArguments,
    environment: &Environment,
    config: &Config,
) -> Option<String> {
    let told = config.cluster.scheduler.as_ref().or(config.network.scheduler.advertise.as_ref());
    arguments.scheduler.as_ref().or(environment.scheduler.as_ref()).or(told).cloned()
}

/// What is said where nobody says.
pub(super) fn where_is_it() -> Failure {
    Failure::misconfigured(
        "where is the scheduler? set cluster.scheduler in the cluster file, or give --scheduler",
    )
}

/// What the cluster file says otherwise here: the scheduler binds where it is dialled, at `scheduler`; others bind the address from
/// which they reach it, with the port that `config` names.
pub(super) fn overrides(role: NodeRole, scheduler: &str, config: &Config) -> Result<Vec<String>, Failure> {
    let address = resolve(scheduler)?;
    if role == NodeRole::Scheduler {
        return Ok(vec![
            format!("network.scheduler.listen={address}"),
            format!("network.listen={}", SocketAddr::new(address.ip(), 0)),
        ]);
    }
    let own = reaching(address).map_err(|why| {
        Failure::failed(format!("no address of this machine reaches the scheduler at {address}: {why}"))
    })?;
    Ok(vec![format!("network.listen={}", SocketAddr::new(own, config.network.listen.port()))])
}

/// The first address of a name; one that is not known yet may be soon.
fn resolve(scheduler: &str) -> Result<SocketAddr, Failure> {
    let begun = Instant::now();
    loop {
        let why = match scheduler.to_socket_addrs().map(|mut found| found.next()) {
            Ok(Some(address)) => return Ok(address),
            Ok(None) => "it has no address".to_owned(),
            Err(why) => why.to_string(),
        };
        if begun.elapsed() > PATIENCE {
            return Err(Failure::failed(format!("the scheduler, {scheduler}, cannot be resolved: {why}")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The address that this machine sends from to `address`. Nothing is sent: a connected socket of UDP has one.
fn reaching(address: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(address)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[network]\nlisten = \"127.0.0.9:0\"\n[model]\nkind = \"mlp\"\ninputs = 4\nclasses = 2\n[data]\nkind = \"mnist\"\n\
                        path = \"data\"\n";

    #[test]
    fn nodes_bind_where_they_reach_the_scheduler_and_it_where_it_is_reached() {
        let parse = |set: &[String]| Config::parse(FILE, std::path::Path::new("/c.toml"), set).unwrap();
        let at = |role, scheduler| overrides(role, scheduler, &parse(&[])).unwrap();
        let scheduler = parse(&at(NodeRole::Scheduler, "localhost:4800"));
        assert_eq!(scheduler.network.scheduler_listen().port(), 4800);
        assert!(scheduler.network.scheduler_listen().ip().is_loopback());
        let server = parse(&at(NodeRole::Server, "127.0.0.1:4800"));
        assert_eq!(server.network.server_listen(0).to_string(), "127.0.0.1:0");
    }
}
