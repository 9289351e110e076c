//! The launcher that starts servers and workers on other machines, through the system's OpenSSH.
//!
//! The scheduler, the operator's key and the run's certificate authority stay on this machine; so do the audit log and the
//! metrics. A host gets, for each node, the cluster file and that node's own identity, in a folder of that node alone.
//!
//! 1. A host is who its key in the file of known hosts says (`ssh/client.rs`).
//! 2. Secrets travel on standard input, inside the connection, and stand in no argument and no environment (invariant 4 of
//!    [`super`]).
//! 3. A node ends when its connection does: its standard input is its lease, on which renewed certificates come, too
//!    (`launch/lease.rs`).
//! 4. Nothing that a host sends is believed: its output is an address, a log, which is bounded and has no control characters
//!    (`ssh/log.rs`), and the final model, which is bounded and put in its place only if it is the one that the scheduler reported
//!    (`ssh/arrived.rs`).

mod arrived;
mod client;
mod collector;
mod log;
mod program;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testudo_actors::JobSpec;
use testudo_actors::audit::Hex;
use testudo_actors::message::Finished;
use testudo_observability::Opened;
use testudo_transport::pki::{CA_FILE, CERT_FILE, KEY_FILE, NEXT_KEY_FILE};
use testudo_transport::{Identity, Role};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::process::ChildStdout;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::local::{Local, PURGE_DELAY, PURGE_NAMES};
use super::{Launched, Launcher, Launching, Receiver, ToStart, parcel};
use crate::checkpoint::safetensors::Metadata;
use crate::config::{self, Config, Host};
use crate::error::Failure;
use crate::process::{RunAs, user};
use crate::rundir::RunDir;
use client::Client;
use program::Copy;

/// How long a node may take until it is bound: a connection, and a program from a cold disk.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// How long nodes may take to leave: the final model has to come.
const LEAVE_GRACE: Duration = Duration::from_secs(900);

/// Between two looks whether a certificate has been renewed: far less than what is left of it then.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What a safetensors file has beside its values, at most.
const HEADER_MOST: u64 = 16 << 20;

/// What a node on a host is told, beside its cluster file and its identity.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Orders {
    /// Where the scheduler is.
    pub(crate) scheduler: String,
    /// Where the data is, if it is not where the cluster file says.
    pub(crate) data: Option<String>,
    /// The run directory, if the host reaches it, and the hash of the signed job in it.
    pub(crate) shared: Option<(PathBuf, Hex)>,
    /// Whether the node may be root there.
    pub(crate) allow_root: bool,
}

/// What the parcel's files are called.
pub(crate) mod names {
    pub(crate) const ORDERS: &str = "orders.json";
    pub(crate) const CLUSTER_FILE: &str = "cluster.toml";
    pub(crate) const IDENTITY: &str = "identity";
    pub(crate) const WORKER_IDENTITY: &str = "worker-identity";
    pub(crate) const KEY: &str = "checkpoint-key.txt";
    pub(crate) const MODEL: &str = "model.safetensors";
}

/// What is found out, and opened, while this process may still look around.
#[derive(Debug)]
pub struct Hosts {
    client: Client,
    /// What is copied to hosts; `None` where the cluster file names the program there.
    copy: Option<Copy>,
    /// What the cluster file's collector is spoken to with.
    told: Opened,
}

impl Hosts {
    /// Whatever `config` needs; `None` where nodes are local. `user` is whom the run goes on as, if not this process's; `told`, what was
    /// read for its collector.
    ///
    /// # Errors
    /// [`Failure`] when there is no client, or a file of its cannot be read.
    pub fn find(config: &Config, user: Option<&RunAs>, told: Opened) -> Result<Option<Hosts>, Failure> {
        let Some(ssh) = &config.ssh else { return Ok(None) };
        let copy = if ssh.program.is_none() { Some(Copy::open()?) } else { None };
        let client = user::try_as(user, || Client::new(ssh)).map_err(Failure::misconfigured)??;
        Ok(Some(Hosts { client, copy, told }))
    }

    /// The client's program, which this process goes on starting.
    #[must_use]
    pub fn program(&self) -> &Path {
        self.client.program()
    }

    /// What the client reads, beside what every process may.
    #[must_use]
    pub fn reads(config: &Config) -> Vec<PathBuf> {
        let Some(ssh) = &config.ssh else { return Vec::new() };
        let home = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir);
        let own = home.map(|home| home.join(".ssh")).filter(|folder| folder.is_dir());
        own.into_iter().chain(ssh.key.clone()).chain(ssh.known_hosts.clone()).collect()
    }
}

/// Starts servers and workers on hosts.
#[derive(Debug)]
pub struct Ssh {
    local: Local,
    hosts: Arc<Hosts>,
    config: Config,
    job: JobSpec,
    ssh: config::Ssh,
    run_dir: RunDir,
    allow_root: bool,
    /// The most bytes of a model that are taken.
    model_most: u64,
    /// The nodes that may send one.
    senders: Vec<ToStart>,
    /// The hosts, and the program's path on those that have it.
    places: Vec<(Host, Option<String>)>,
}

impl Ssh {
    /// `local` starts the scheduler, and has what nodes are handed.
    ///
    /// # Errors
    /// [`Failure`] when the cluster file names no hosts, or the job's model is none.
    pub fn new(
        local: Local,
        hosts: Arc<Hosts>,
        config: &Config,
        job: &JobSpec,
        run_dir: &RunDir,
        allow_root: bool,
    ) -> Result<Ssh, Failure> {
        let ssh = config.ssh.clone().ok_or_else(|| Failure::misconfigured("there is no [ssh]"))?;
        let places = ssh.parsed().into_iter().map(|host| (host, ssh.program.clone())).collect();
        let parameters = job.model.parameters().map_err(Failure::misconfigured)?;
        let values: u64 = parameters.iter().map(|spec| 4 * spec.shape.elements() as u64).sum();
        let (config, run_dir) = (config.clone(), run_dir.clone());
        let model_most = values + HEADER_MOST;
        let (job, senders) = (job.clone(), Vec::new());
        Ok(Ssh { local, hosts, config, job, ssh, run_dir, allow_root, model_most, senders, places })
    }

    async fn start(&mut self, node: &ToStart) -> Result<Launched, Failure> {
        let ToStart { role, index, .. } = *node;
        let at = index as usize % self.places.len().max(1);
        let place = self.places.get_mut(at).ok_or_else(|| Failure::misconfigured("there are no hosts"))?;
        let (host, known) = (place.0.clone(), place.1.clone());
        let program = match (known, &self.hosts.copy) {
            (Some(program), _) => program,
            (None, Some(copy)) => copy.put(&self.hosts.client, &host, &self.ssh.folder).await?,
            (None, None) => return Err(Failure::misconfigured("there is no program to copy")),
        };
        if let Some(place) = self.places.get_mut(at) {
            place.1 = Some(program.clone());
        }
        let folders = self.identities(role, index);
        let parcel = self.parcel(node, &folders)?;
        let path = self.run_dir.log(role.as_str(), index);
        let output = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let output = output.map_err(|e| Failure::file(&path, "cannot be written", e))?;
        let mut command = self.hosts.client.command(&host, &self.words(&program, role, index)?);
        command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let not_started =
            |e: std::io::Error| Failure::failed(format!("{role}/{index} cannot be started: {e}"));
        let mut child = command.spawn().map_err(not_started)?;
        let Some(mut stdin) = child.stdin.take() else { return Err(Failure::failed("no standard input")) };
        let telling = child.stderr.take().map(|said| tokio::spawn(log::keep(said, output)));
        // A client that ends at once leaves the reason in the log, which is told when its end is seen.
        let _ = stdin.write_all(&parcel).await;
        let sent = folders.iter().map(|(_, folder)| certificate(folder)).collect();
        let renewing = tokio::spawn(renew(stdin, folders, sent, LOOK_EVERY));
        Ok(Launched { child, lease: Box::new(Lease(renewing)), log: path, telling })
    }

    /// What `host`'s shell is to run. The folder goes with the node, however that ends.
    fn words(&self, program: &str, role: Role, index: u32) -> Result<String, Failure> {
        let mut mark = [0; 8];
        aws_lc_rs::rand::fill(&mut mark).map_err(|_| Failure::failed("there are no random numbers"))?;
        let (job, mark) = (&self.config.job.name, crate::signing::hex(&mark));
        let folder = format!("{}/{job}-{}-{index}-{mark}", self.ssh.folder, role.as_str());
        let hosted = format!("\"{program}\" hosted --role {role} --index {index} --folder \"{folder}\"");
        Ok(shell(&hosted, &folder))
    }

    /// The folders of the node's identities, and what they are called over there.
    fn identities(&self, role: Role, index: u32) -> Vec<(&'static str, PathBuf)> {
        let of = |role: Role| self.run_dir.identity(role.as_str(), index);
        match role {
            Role::Peer => {
                vec![(names::IDENTITY, of(Role::Server)), (names::WORKER_IDENTITY, of(Role::Worker))]
            }
            own => vec![(names::IDENTITY, of(own))],
        }
    }

    fn parcel(
        &self,
        node: &ToStart,
        folders: &[(&'static str, PathBuf)],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let shared = match self.ssh.shared {
            true => {
                let job = self.run_dir.signed_job();
                let bytes = std::fs::read(&job).map_err(|e| Failure::file(&job, "cannot be read", e))?;
                Some((self.run_dir.path().to_owned(), Hex::hash(&bytes)))
            }
            false => None,
        };
        let orders = Orders {
            scheduler: self.scheduler(node.scheduler)?,
            data: self.ssh.data.clone(),
            shared,
            allow_root: self.allow_root,
        };
        // Over there it is one node of a cluster, and nobody's launcher.
        let mut config = self.config.clone();
        (config.ssh, config.cluster.launcher, config.checkpoint.sign_key) =
            (None, config::Launcher::Local, None);
        let secured = collector::files(&mut config.telemetry, &self.hosts.told);
        let config = config.to_toml().map_err(Failure::misconfigured)?;
        let orders = serde_json::to_vec(&orders).map_err(Failure::failed)?;
        let mut files: Vec<(String, Zeroizing<Vec<u8>>)> = vec![
            (names::ORDERS.to_owned(), orders.into()),
            (names::CLUSTER_FILE.to_owned(), config.into_bytes().into()),
        ];
        for (name, folder) in folders {
            for file in [CA_FILE, CERT_FILE, KEY_FILE] {
                files.push((format!("{name}/{file}"), read(&folder.join(file))?));
            }
        }
        if let Some(key) = self.local.key(node.role) {
            files.push((names::KEY.to_owned(), key.bytes().map_err(Failure::failed)?));
        }
        files.extend(secured);
        pack(&files)
    }

    /// What hosts dial for the scheduler.
    fn scheduler(&self, bound: Option<SocketAddr>) -> Result<String, Failure> {
        let network = &self.config.network;
        if let Some(told) = self.config.cluster.scheduler.as_ref().or(network.scheduler.advertise.as_ref()) {
            return Ok(told.clone());
        }
        let bound = bound.ok_or_else(|| Failure::failed("where is the scheduler?"))?;
        let here = |host: &Host| {
            host.name == "localhost" || host.name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        if bound.ip().is_loopback() && !self.places.iter().all(|(host, _)| here(host)) {
            return Err(Failure::misconfigured(format!(
                "the scheduler is bound to {bound}, which no other machine reaches: set network.listen to an address of this one, \
                 such as \"192.0.2.1:0\""
            )));
        }
        Ok(bound.to_string())
    }
}

impl Launcher for Ssh {
    fn launch<'a>(&'a mut self, node: &'a ToStart) -> Launching<'a> {
        match node.role {
            Role::Scheduler => self.local.launch(node),
            _ => Box::pin(self.start(node)),
        }
    }

    fn patience(&self) -> Duration {
        START_DEADLINE
    }

    fn grace(&self) -> Duration {
        LEAVE_GRACE
    }

    /// The final model, of the worker that writes it, if the job exports one.
    fn receiver(&mut self, node: &ToStart) -> Option<Receiver> {
        if !matches!(node.role, Role::Worker | Role::Peer) || self.ssh.shared || !self.job.export {
            return None;
        }
        self.senders.retain(|sender| (sender.role, sender.index) != (node.role, node.index));
        self.senders.push(*node);
        let (run_dir, node, most) = (self.run_dir.clone(), *node, self.model_most);
        Some(Box::new(move |from: BufReader<ChildStdout>| {
            let read = from.buffer().to_vec();
            let Ok(rest) = from.into_inner().into_owned_fd() else { return };
            let mut from = read.as_slice().chain(File::from(rest));
            if let Err(why) = arrived::take(&mut from, &run_dir, &node, most) {
                arrived::refuse(&run_dir, &node, &why);
            }
        }))
    }

    fn settle(&mut self, finished: &Finished) -> Result<(), Failure> {
        if self.ssh.shared || !self.job.export {
            return Ok(());
        }
        let metadata = Metadata {
            job: self.job.name.clone(),
            step: finished.steps,
            params_blake3: finished.params_blake3,
            model: crate::job::description(&self.job.model),
        };
        let senders = std::mem::take(&mut self.senders);
        let placed = arrived::settle(&self.run_dir, senders, &self.job.model, &metadata);
        match placed.map_err(Failure::failed)? {
            true => Ok(()),
            false => Err(Failure::failed(
                "no host sent the model that the scheduler reported; the logs of workers say what was refused",
            )),
        }
    }
}

/// Ends the task that holds a node's standard input, and that with it.
#[derive(Debug)]
struct Lease(JoinHandle<()>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Holds a node's standard input, and sends on it what the run's authority renews.
async fn renew(
    mut to: impl AsyncWrite + Unpin,
    folders: Vec<(&'static str, PathBuf)>,
    mut sent: Vec<Vec<u8>>,
    every: Duration,
) {
    loop {
        tokio::time::sleep(every).await;
        for ((name, folder), sent) in folders.iter().zip(&mut sent) {
            let now = certificate(folder);
            // A folder between its old and its new files is looked at again.
            if now == *sent || Identity::load(folder).is_err() || certificate(folder) != now {
                continue;
            }
            let Ok(parcel) = renewal(name, folder) else { continue };
            if to.write_all(&parcel).await.is_err() {
                return;
            }
            *sent = now;
        }
    }
}

/// Runs `hosted` and removes `folder` after it. What the host's environment says of the allocator comes first.
fn shell(hosted: &str, folder: &str) -> String {
    let (name, value) = PURGE_DELAY;
    let said: String = PURGE_NAMES.map(|name| format!("${{{name}:-}}")).concat();
    let keep = format!("[ -n \"{said}\" ] || export {name}={value}");
    format!("exec sh -c '{keep}; {hosted}; status=$?; rm -rf -- \"{folder}\"; exit $status'")
}

fn renewal(name: &str, folder: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let key = read(&folder.join(KEY_FILE))?;
    let certificate = read(&folder.join(CERT_FILE))?;
    pack(&[(format!("{name}/{NEXT_KEY_FILE}"), key), (format!("{name}/{CERT_FILE}"), certificate)])
}

fn certificate(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join(CERT_FILE)).unwrap_or_default()
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    std::fs::read(path).map(Zeroizing::new).map_err(|e| Failure::file(path, "cannot be read", e))
}

fn pack(files: &[(String, Zeroizing<Vec<u8>>)]) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice())).collect();
    parcel::pack(&files).map(Zeroizing::new).map_err(Failure::failed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testudo_transport::{JobCa, SpiffeId};
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// The status is the node's, the folder is gone, and the allocator is told unless the host has something else.
    #[test]
    fn a_hosts_shell_says_what_the_allocator_keeps_and_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("node");
        for (set, expected) in [
            (None, "10000"),
            (Some("MIMALLOC_PURGE_DELAY"), "7"),
            (Some("mimalloc_purge_delay"), ""),
            (Some("MIMALLOC_RESET_DELAY"), ""),
        ] {
            std::fs::create_dir(&folder).unwrap();
            let words = shell("echo \"$MIMALLOC_PURGE_DELAY\"; (exit 3)", folder.to_str().unwrap());
            let mut command = std::process::Command::new("sh");
            command.args(["-c", &words]);
            for name in PURGE_NAMES {
                command.env_remove(name);
            }
            if let Some(set) = set {
                command.env(set, "7");
            }
            let said = command.output().unwrap();
            assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), expected);
            assert_eq!(said.status.code(), Some(3));
            assert!(!folder.exists());
        }
    }

    /// Invariant 3: what is renewed here is sent, once.
    #[tokio::test]
    async fn renewed_certificates_are_sent_on() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, hour) =
            (JobCa::create("t", "j", Duration::from_secs(7200)).unwrap(), Duration::from_secs(3600));
        let home = folder.path().join("worker-0");
        ca.issue(&SpiffeId::new("t", "j", Role::Worker, "0").unwrap(), hour).unwrap().save(&home).unwrap();
        let sent = vec![certificate(&home)];
        let (to, mut from) = tokio::io::duplex(1 << 20);
        let folders = vec![(names::IDENTITY, home.clone())];
        let renewing = tokio::spawn(renew(to, folders, sent, Duration::from_millis(1)));
        for _ in 0..2 {
            crate::rotation::renew_all(&ca, std::slice::from_ref(&home), hour).unwrap();
            let expected = renewal(names::IDENTITY, &home).unwrap();
            let mut parcel = vec![0; expected.len()];
            from.read_exact(&mut parcel).await.unwrap();
            assert_eq!(parcel, *expected);
        }
        renewing.abort();
        let mut rest = Vec::new();
        from.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "each once");
    }
}
