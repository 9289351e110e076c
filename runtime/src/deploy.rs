//! A job written out for a cluster's own scheduler: a script for Slurm, manifests for Kubernetes.
//!
//! Which machine runs what is that scheduler's to say, and Testudo has none of its own.
//!
//! 1. Nothing that is written holds a secret: identities are named, and are where their owner has put them.
//! 2. What a cluster file says reaches no shell and no document but as text: names are checked, paths are quoted.

pub mod kubernetes;
pub mod slurm;
mod yaml;

use testudo_transport::Role;

use crate::config::{self, Config, Placement};

/// The processes of a job beside the scheduler: roles, and how many of each.
fn processes(config: &Config) -> Vec<(Role, u32)> {
    match config.cluster.placement {
        Placement::Dedicated => {
            vec![(Role::Server, config.cluster.servers), (Role::Worker, config.cluster.workers)]
        }
        Placement::Colocated => vec![(Role::Peer, config.cluster.workers)],
    }
}

/// Whose identities a process of that role has: a peer is a server and a worker.
fn identities(role: Role) -> &'static [Role] {
    match role {
        Role::Peer => &[Role::Server, Role::Worker],
        Role::Server => &[Role::Server],
        Role::Worker => &[Role::Worker],
        _ => &[Role::Scheduler],
    }
}

/// The commands that make the job's authority, its identities and the signed job, one a line, for a folder of the operator's own in
/// which `cluster.toml` is. `job` and trust domain are names without characters that a shell interprets (`config/check.rs`).
/// Certificates last as `security.certificate_hours` says, and nobody renews them.
fn preparation(config: &Config) -> Vec<String> {
    let config::Job { name, trust_domain } = &config.job;
    let issue = issue(config);
    let mut lines = vec![
        format!("testudo pki init ca --job {name} --trust-domain {trust_domain}"),
        format!("{issue} --role operator --name 0 --out identities/operator-0"),
    ];
    for (role, count) in nodes(config) {
        lines.push(format!(
            "for n in $(seq 0 {}); do {issue} --role {role} --name $n --out identities/{role}-$n; done",
            count - 1
        ));
    }
    lines.push("testudo job cluster.toml --identity identities/operator-0".to_owned());
    lines
}

/// The beginning of the command that makes an identity.
fn issue(config: &Config) -> String {
    format!("testudo pki issue --ca ca --valid-for {}h", config.security.certificate_hours)
}

/// The job's nodes, each of which has an identity: roles, and how many of each.
fn nodes(config: &Config) -> [(Role, u32); 3] {
    [(Role::Scheduler, 1), (Role::Server, config.cluster.servers), (Role::Worker, config.cluster.workers)]
}
