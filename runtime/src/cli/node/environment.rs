//! How launchers of other systems tell a node who it is.

use crate::cli::args::NodeRole;

/// What MXNet's, ps-lite's and BytePS's launchers set, so that they can start this node.
pub(in crate::cli) struct Environment {
    pub(in crate::cli) scheduler: Option<String>,
    pub(in crate::cli) overrides: Vec<String>,
    pub(in crate::cli) index: Option<u32>,
}

pub(super) fn environment(role: NodeRole) -> Environment {
    let var = |name: &str| std::env::var(name).ok();
    let scheduler = var("DMLC_PS_ROOT_URI").zip(var("DMLC_PS_ROOT_PORT")).map(|(host, port)| match host {
        host if host.contains(':') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    });
    let counts = [("DMLC_NUM_WORKER", "cluster.workers"), ("DMLC_NUM_SERVER", "cluster.servers")];
    let overrides = counts.iter().filter_map(|(name, key)| Some(format!("{key}={}", var(name)?))).collect();
    let index = match role {
        NodeRole::Worker => var("DMLC_WORKER_ID"),
        NodeRole::Server | NodeRole::Peer => var("DMLC_SERVER_ID"),
        NodeRole::Scheduler => None,
    };
    Environment { scheduler, overrides, index: index.and_then(|i| i.parse().ok()) }
}
