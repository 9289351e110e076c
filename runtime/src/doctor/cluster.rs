//! A cluster file: what is wrong in it, and whether its addresses, names, identity and data are there.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use testudo_actors::{DataSpec, JobSpec};
use testudo_transport::Role;

use super::{Found, Report, identity, revocation, shown};
use crate::config::{Config, ConfigErrors, Place};

/// A cluster file that could be read, and its data.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) file: PathBuf,
    pub(super) config: Config,
    pub(super) data: Option<DataSpec>,
}

impl Read {
    /// The job that it describes, if its data could be read.
    pub(super) fn job(&self) -> Option<JobSpec> {
        Some(crate::job::spec(&self.config, self.data.clone()?))
    }
}

/// Looks at the cluster file `file`. Identities that it names join `identities`.
pub(super) fn look(
    report: &mut Report,
    file: &Path,
    identities: &mut Vec<Found>,
    now: SystemTime,
) -> Option<Read> {
    let config = match Config::load::<&str>(file, &[]) {
        Ok(config) => config,
        Err(errors) => {
            written(report, &errors);
            return None;
        }
    };
    report.good(shown(file), "every key is known and has a value that it may have");
    addresses(report, file, &config);
    names(report, file, &config);
    if let Some(files) = &config.security.files {
        let files =
            identity::Files { ca: files.ca.clone(), cert: files.cert.clone(), key: files.key.clone() };
        if !identities.iter().any(|found| found.files == files) {
            identities.extend(identity::look(report, &files, now));
        }
    }
    if let Some(list) = &config.security.crl {
        revocation::look(report, list, config.security.revocation, identities, now);
    }
    for found in identities.iter() {
        let (job, domain) = (&config.job.name, &config.job.trust_domain);
        if found.id.job() != job || found.id.trust_domain() != domain {
            let what = format!("{} is not of job `{job}` in `{domain}`, as {} has it", found.id, shown(file));
            let fix = "issue an identity for this job, or set job.name and job.trust_domain";
            report.problem(shown(&found.place), what, fix);
        }
    }
    devices(report, file, &config);
    let data = match crate::node::data(&config) {
        Ok(data) => Some(data.spec()),
        Err(why) => {
            let fix =
                "put the data there, or set data.path (relative paths start at the cluster file's folder)";
            report.problem(shown(file), why, fix);
            None
        }
    };
    memory(report, file, &config);
    if let Some(data) = &data {
        let what = format!("data: {} training and {} test examples", data.train_examples, data.test_examples);
        report.good(shown(file), what);
    }
    Some(Read { file: file.to_owned(), config, data })
}

fn written(report: &mut Report, errors: &ConfigErrors) {
    for problem in &errors.problems {
        let place = match &problem.place {
            Place::File { line, column, .. } => format!("{}:{line}:{column}", shown(&errors.path)),
            Place::Whole | Place::Override(_) => shown(&errors.path),
        };
        report.problem(place, &problem.message, "docs/config.md describes every key");
    }
}

/// What nodes are to compute on, as far as that can be seen without starting the driver.
fn devices(report: &mut Report, file: &Path, config: &Config) {
    match crate::device::look(config) {
        Ok(notes) => notes.iter().for_each(|note| report.good(shown(file), note)),
        Err(failure) => {
            let fix = "set it to \"auto\" or \"cpu\" where there is no GPU, or install what was looked for";
            report.problem(shown(file), failure.message, fix);
        }
    }
}

/// The least that nodes can live with.
fn memory(report: &mut Report, file: &Path, config: &Config) {
    let data = crate::node::data_files(config).map_or(0, |files| files.announced_bytes());
    let each = [(Role::Scheduler, 0), (Role::Server, 0), (Role::Worker, data)].map(|(role, data)| {
        let (least, _) = config.least_mib(role, data);
        format!("a {role} {least} MiB")
    });
    let limit = match config.limits.memory_mib {
        Some(limit) => format!("limits.memory_mib is {limit}"),
        None => "limits.memory_mib is not set".into(),
    };
    report.good(shown(file), format!("memory: {} at least; {limit}", each.join(", ")));
}

fn addresses(report: &mut Report, file: &Path, config: &Config) {
    let servers = (0..config.cluster.servers).map(|index| {
        (format!("network.servers.listen, server {index}"), config.network.server_listen(index))
    });
    let scheduler = ("the scheduler's address".to_owned(), config.network.scheduler_listen());
    let workers = ("network.listen".to_owned(), config.network.listen);
    let mut seen: Vec<SocketAddr> = Vec::new();
    for (name, address) in [scheduler, workers].into_iter().chain(servers) {
        if seen.contains(&address) {
            continue;
        }
        seen.push(address);
        let place = format!("{} ({name})", shown(file));
        if address.ip().is_unspecified() {
            let what = format!("{address} listens on every interface of the machine");
            report.warning(&place, what, "write the one address that the other nodes reach");
        }
        if let Err(why) = UdpSocket::bind(address) {
            match why.kind() {
                std::io::ErrorKind::AddrNotAvailable => {
                    let what = format!("{address} is no address of this machine");
                    report.warning(place, what, "right if that node runs elsewhere; otherwise correct it");
                }
                std::io::ErrorKind::AddrInUse => {
                    let what = format!("{address} is in use");
                    report.problem(
                        place,
                        what,
                        "stop who has it (`ss -lunp` names it), or write another port",
                    );
                }
                _ => report.problem(
                    place,
                    format!("{address} cannot be bound: {why}"),
                    "write another address",
                ),
            }
        }
    }
}

fn names(report: &mut Report, file: &Path, config: &Config) {
    let servers = (0..config.cluster.servers).filter_map(|index| config.network.server_advertise(index));
    let scheduler = [config.cluster.scheduler.as_deref(), config.network.scheduler.advertise.as_deref()];
    let mut seen: Vec<&str> = Vec::new();
    for name in scheduler.into_iter().flatten().chain(servers) {
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        let place = shown(file);
        match name.to_socket_addrs().map(|mut addresses| addresses.next()) {
            Ok(Some(_)) => {}
            Ok(None) => report.problem(place, format!("{name} has no address"), "correct the name"),
            Err(why) => {
                let fix = "correct the name, or add it to /etc/hosts or the name server";
                report.problem(place, format!("{name} cannot be resolved: {why}"), fix);
            }
        }
    }
}
