//! The nodes of a run are started while its scheduler is heard: a short run is over, and a bad one has failed, before all are there.

use std::net::SocketAddr;

use testudo_actors::JobSpec;
use testudo_actors::message::{Outcome, StatusReport};
use testudo_actors::operator::{OperatorError, Reports};
use testudo_transport::Role;

use crate::config::{Config, Placement};
use crate::error::Failure;
use crate::launch::Nodes;

/// What comes on the line to the scheduler.
pub(super) type Told = Result<Box<StatusReport>, OperatorError>;

/// Starts all nodes but the scheduler, which is there. What it has told by then, if the run is over, or the line has broken: then no
/// further node is started, unless the run has finished, where each still hands over what it has.
///
/// # Errors
/// When a node does not come up.
pub(super) async fn start_others(
    config: &Config,
    job: &JobSpec,
    nodes: &mut Nodes,
    scheduler: SocketAddr,
    reports: &mut Reports,
) -> Result<Option<Told>, Failure> {
    let starting = start(config, job, nodes, scheduler);
    tokio::pin!(starting);
    let told = tokio::select! {
        started = &mut starting => return started.map(|()| None),
        told = end(reports) => told,
    };
    if told.as_ref().is_ok_and(|report| matches!(report.outcome, Some(Outcome::Finished(_)))) {
        // Who comes up no more is not missed.
        let _ = starting.await;
    }
    Ok(Some(told))
}

async fn start(
    config: &Config,
    job: &JobSpec,
    nodes: &mut Nodes,
    scheduler: SocketAddr,
) -> Result<(), Failure> {
    let processes = match config.cluster.placement {
        Placement::Dedicated => vec![(Role::Server, job.servers), (Role::Worker, job.workers)],
        Placement::Colocated => vec![(Role::Peer, job.workers)],
    };
    for (role, count) in processes {
        for index in 0..count {
            nodes.start(role, index, Some(scheduler)).await.map_err(Failure::not_up)?;
        }
    }
    Ok(())
}

/// Hears the scheduler up to a report that the run is over, or the line's end.
pub(super) async fn end(reports: &mut Reports) -> Told {
    loop {
        match reports.next().await {
            Ok(report) if report.outcome.is_none() => {}
            told => return told.map(Box::new),
        }
    }
}
