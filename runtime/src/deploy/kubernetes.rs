//! Manifests for Kubernetes: an Indexed Job for each role, in one namespace.
//!
//! 1. Nothing runs as root, gains a privilege, has a capability, or writes but to the claim and to memory; system calls are what the
//!    runtime's default allows; no pod gets a token for the cluster's API. That is the `restricted` Pod Security Standard, and more.
//! 2. Nobody but the job's pods reaches a pod, at the two UDP ports of scheduler and servers; and pods reach nobody else but the
//!    resolver of names.
//! 3. Identities are in Secrets that their owner makes. A container has its own node's files alone: a first container, which sees one
//!    folder of the Secret, copies them into memory, where they are the node's user's and nobody else's.
//!    The claim is different: all pods write to all of it, so what one role's pods leave there another's can change.
//! 4. The cluster file is the job's, but for what is elsewhere in a pod: the data, the addresses and the run directory.
//! 5. No scheduler's pod begins a job again of which a step was taken, as far as the claim tells (invariant 3): it goes on as an operator's
//!    identity has signed, or the job ends (`lives`).

mod lives;
mod workload;

use std::path::PathBuf;

use serde_json::{Value, json};
use testudo_transport::Role;

use super::{processes, yaml};
use workload::{closed, resources};

use crate::config::{Config, Data, Placement};

/// The scheduler's and the servers' UDP ports.
const SCHEDULER_PORT: u16 = 4800;
const SERVER_PORT: u16 = 4801;

/// The user and the group that pods run as: distroless images' "nonroot", and no user of a node.
const USER: u32 = 65_532;

/// Where things are in a pod.
const CONFIG: &str = "/config";
const IDENTITY: &str = "/identity";
const SECRET: &str = "/secret";
const JOB: &str = "/job";
const DATA: &str = "/data";
const RUN: &str = "/run-dir";
const SIGNED: &str = "/signed";

/// How long pods may well take to come back: a delay, a place, an image, and sometimes a machine.
const RETURN_MS: u64 = 15 * 60 * 1000;

/// Longest name of a Kubernetes object here: a pod's host name is it with the role and the index, a label of 63 characters.
const NAME_MOST: usize = 40;

/// What the cluster file does not say.
#[derive(Debug, Clone)]
pub struct Options {
    /// The image with `testudo`.
    pub image: String,
    /// The size of the claim for the run directory, as Kubernetes writes quantities.
    pub storage: String,
}

/// Why there are no manifests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// Pods need a limit.
    #[error(
        "limits.memory_mib is not set: a pod without a limit can take its machine's memory; set it (`testudo doctor` says what a node \
         needs)"
    )]
    Memory,
    /// Nothing is left of the job's name.
    #[error(
        "the job is called `{0}`, of which no name of a Kubernetes object can be made: it needs a letter first"
    )]
    Name(String),
    /// No pod would have the list, and none would be told of a new one.
    #[error(
        "security.crl is set, and pods have no list of revoked certificates: remove it from the cluster file, and let certificates be \
         short-lived (security.certificate_hours)"
    )]
    Revoked,
    /// The cluster file cannot be written out.
    #[error("the cluster file cannot be written: {0}")]
    Config(#[from] toml::ser::Error),
}

/// The manifests, one YAML document after the other.
///
/// # Errors
/// [`DeployError`].
pub fn manifests(config: &Config, options: &Options) -> Result<String, DeployError> {
    let memory = config.limits.memory_mib.ok_or(DeployError::Memory)?;
    if config.security.crl.is_some() {
        return Err(DeployError::Revoked);
    }
    let job = Job { name: name(&config.job.name)?, config, options, memory };
    let mut text = job.heading();
    for object in [job.cluster_file()?, job.service(), job.policy(), job.claim()] {
        text += &yaml::document(&object);
    }
    text += &yaml::document(&job.role(Role::Scheduler, 1));
    for (role, count) in processes(config) {
        text += &yaml::document(&job.role(role, count));
    }
    Ok(text)
}

/// What the cluster file asks for that does nothing in pods as they are written.
#[must_use]
pub fn warnings(config: &Config) -> Vec<String> {
    let told = &config.telemetry;
    let mut warnings = Vec::new();
    let waits = config.cluster.supervision.worker_return_ms;
    if config.cluster.placement == Placement::Dedicated && waits < RETURN_MS {
        warnings.push(format!(
            "cluster.worker_return_ms: the job has failed for good when no worker has been there for {} s, and pods take minutes to come \
             back, longer each time; {RETURN_MS} or more gives them that, in the cluster file that the operator signs",
            waits / 1000
        ));
    }
    if told.endpoint.is_some() {
        warnings.push(
            "telemetry.endpoint: the NetworkPolicy lets no pod reach a collector; add one that does, and name the collector as pods \
             reach it"
                .to_owned(),
        );
    }
    if told.certificate.is_some() {
        warnings.push(
            "telemetry.certificate: nodes look for it under this path in their pod, so mount a ConfigMap that holds it there"
                .to_owned(),
        );
    }
    if told.client_certificate.is_some() {
        warnings.push(
            "telemetry.client_certificate and client_key: a key that is mounted is root's, or a link, or its group may read it, and nodes \
             refuse it; have an init container copy it, under umask 077 and as the nodes' user, into a volume of the pod's memory that \
             has this path, or name a collector that asks for no certificate"
                .to_owned(),
        );
    }
    if told.prometheus_port.is_some() {
        warnings.push(
            "telemetry.prometheus_port: it is a port of each pod's own 127.0.0.1, which no other pod reaches"
                .to_owned(),
        );
    }
    warnings
}

/// The cluster file as pods read it (invariant 4).
///
/// # Errors
/// As [`manifests`].
pub fn cluster_file(config: &Config) -> Result<String, DeployError> {
    let service = name(&config.job.name)?;
    let mut config = config.clone();
    let host = |role: Role, index: u32| format!("{service}-{role}-{index}.{service}");
    let any = |port: u16| std::net::SocketAddr::from(([0, 0, 0, 0], port));
    let server = if config.cluster.placement == Placement::Colocated { Role::Peer } else { Role::Server };
    config.cluster.scheduler = Some(format!("{}:{SCHEDULER_PORT}", host(Role::Scheduler, 0)));
    (config.cluster.launcher, config.ssh) = (crate::config::Launcher::Local, None);
    config.network.listen = any(0);
    config.network.scheduler.listen = Some(any(SCHEDULER_PORT));
    config.network.scheduler.advertise.clone_from(&config.cluster.scheduler);
    let servers = 0..config.cluster.servers;
    config.network.servers.listen = servers.clone().map(|_| any(SERVER_PORT)).collect();
    config.network.servers.advertise =
        servers.map(|index| format!("{}:{SERVER_PORT}", host(server, index))).collect();
    let data = PathBuf::from(DATA);
    match &mut config.data {
        Data::Mnist { path, .. } => *path = data,
        Data::Text { path, .. } => *path = path.file_name().map_or(data.clone(), |file| data.join(file)),
    }
    config.security.files = None;
    config.checkpoint.sign_key = None;
    config.output.dir = RUN.into();
    Ok(config.to_toml()?)
}

/// A label of RFC 1123 that begins with a letter, of a job's name.
fn name(job: &str) -> Result<String, DeployError> {
    let made: String =
        job.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let made: String = made.trim_matches('-').chars().take(NAME_MOST).collect();
    let made = made.trim_end_matches('-');
    match made.starts_with(|c: char| c.is_ascii_lowercase()) {
        true => Ok(made.to_owned()),
        false => Err(DeployError::Name(job.to_owned())),
    }
}

/// What a job's objects are made of.
struct Job<'a> {
    name: String,
    config: &'a Config,
    options: &'a Options,
    memory: u64,
}

impl Job<'_> {
    fn heading(&self) -> String {
        let name = &self.name;
        let mut text = format!(
            "# A training job of Testudo for Kubernetes, as `testudo deploy` wrote it: `kubectl apply -f FILE`, in a namespace of its own.\n\
             #\n# It needs, in that namespace, a claim `{name}-data` with the data, and what its operator makes beside cluster.toml (the\n\
             # cluster file that stands below, with `data.path` as it is on the operator's machine):\n#\n"
        );
        for line in super::preparation(self.config) {
            text += &format!("#   {line}\n");
        }
        text += &format!("#   kubectl create configmap {name}-job --from-file=cluster.job\n");
        for (role, count) in super::nodes(self.config) {
            text += &format!(
                "#   kubectl create secret generic {name}-{role} $(for n in $(seq 0 {}); do for f in ca cert key; do echo \
                 --from-file={role}-$n.$f.pem=identities/{role}-$n/$f.pem; done; done)\n",
                count - 1
            );
        }
        text += &lives::preparation(self.config, name);
        text += "#\n# Keep ca/ca-key.pem and identities/operator-0 off the cluster.\n";
        for warning in warnings(self.config) {
            text += &format!("#\n# Warning: {warning}.\n");
        }
        text
    }

    fn metadata(&self, name: &str) -> Value {
        json!({ "name": name, "labels": self.labels() })
    }

    fn labels(&self) -> Value {
        json!({ "app.kubernetes.io/name": "testudo", "app.kubernetes.io/instance": self.name })
    }

    fn cluster_file(&self) -> Result<Value, DeployError> {
        Ok(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": self.metadata(&format!("{}-config", self.name)),
            "data": { "cluster.toml": cluster_file(self.config)? },
        }))
    }

    /// Gives pods names, before they are ready: that is how they find each other.
    fn service(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": self.metadata(&self.name),
            "spec": {
                "clusterIP": "None", "publishNotReadyAddresses": true, "selector": self.labels(),
                "ports": [
                    { "name": "scheduler", "port": SCHEDULER_PORT, "protocol": "UDP" },
                    { "name": "server", "port": SERVER_PORT, "protocol": "UDP" },
                ],
            },
        })
    }

    /// Invariant 2.
    fn policy(&self) -> Value {
        let pods = json!([{ "podSelector": { "matchLabels": self.labels() } }]);
        let ports = json!([
            { "port": SCHEDULER_PORT, "protocol": "UDP" },
            { "port": SERVER_PORT, "protocol": "UDP" },
        ]);
        let resolver = json!([{
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
            "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
        }]);
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": self.metadata(&self.name),
            "spec": {
                "podSelector": { "matchLabels": self.labels() },
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{ "from": pods, "ports": ports }],
                "egress": [
                    { "to": pods, "ports": ports },
                    { "to": resolver, "ports": [{ "port": 53, "protocol": "UDP" }, { "port": 53, "protocol": "TCP" }] },
                ],
            },
        })
    }

    fn claim(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": self.metadata(&format!("{}-run", self.name)),
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": { "requests": { "storage": self.options.storage } },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILE: &str = "[job]\nname = \"My_job.1\"\n[cluster]\nworkers = 3\nservers = 2\n[limits]\nmemory_mib = 512\n[model]\nkind = \"mlp\"\n\
                        inputs = 4\nclasses = 2\n[data]\nkind = \"mnist\"\npath = \"data\"\n";

    pub(super) fn config(set: &[&str]) -> Config {
        Config::parse(FILE, Path::new("/srv/mnist.toml"), set).unwrap()
    }

    /// Invariant 4: what pods read is a cluster file, and the same job.
    #[test]
    fn pods_read_the_same_job() {
        let config = config(&[]);
        let text = cluster_file(&config).unwrap();
        let pods = Config::parse(&text, Path::new("/config/cluster.toml"), &[] as &[&str]).unwrap();
        assert_eq!(pods.cluster.scheduler.as_deref(), Some("my-job-1-scheduler-0.my-job-1:4800"));
        assert_eq!(pods.network.server_advertise(1), Some("my-job-1-server-1.my-job-1:4801"));
        let data = testudo_actors::DataSpec { train_examples: 8, test_examples: 8, blake3: [1; 32] };
        assert_eq!(crate::job::spec(&pods, data.clone()), crate::job::spec(&config, data));
    }

    #[test]
    fn the_image_has_the_user_that_pods_run_as() {
        let image = include_str!("../../../Containerfile");
        assert_eq!(
            image.lines().filter(|line| line.starts_with("USER ")).collect::<Vec<_>>(),
            [format!("USER {USER}:{USER}")]
        );
    }

    #[test]
    fn names_are_labels() {
        for (job, made) in
            [("mnist", "mnist"), ("My_job.1", "my-job-1"), ("a--", "a"), (&"x".repeat(63), &"x".repeat(40))]
        {
            assert_eq!(name(job).unwrap(), *made);
        }
        for bad in ["1", "---", "_1"] {
            assert!(matches!(name(bad), Err(DeployError::Name(_))), "{bad}");
        }
    }

    /// What would do nothing is not passed over.
    #[test]
    fn what_pods_lack_is_refused_or_said() {
        let options = Options { image: "testudo".into(), storage: "1Gi".into() };
        let long = config(&["security.certificate_hours=100", "cluster.worker_return_ms=900000"]);
        let text = manifests(&long, &options).unwrap();
        assert!(text.matches("--valid-for 100h").count() == 4 && !text.contains("Warning"), "{text}");
        let refused = manifests(&config(&["security.crl=/srv/crl.pem"]), &options);
        assert!(matches!(refused, Err(DeployError::Revoked)));
        let told = config(&[
            "telemetry.endpoint=https://c:4318",
            "telemetry.certificate=/ca.pem",
            "telemetry.prometheus_port=9464",
        ]);
        let text = manifests(&told, &options).unwrap();
        for key in ["telemetry.endpoint", "telemetry.certificate", "telemetry.prometheus_port"] {
            assert!(text.contains(&format!("# Warning: {key}")), "{text}");
        }
        let waits = "# Warning: cluster.worker_return_ms: the job has failed for good when no worker has been there for 60 s";
        assert!(text.contains(waits), "{text}");
        // No peer is waited for.
        let text =
            manifests(&config(&["cluster.placement=colocated", "cluster.servers=3"]), &options).unwrap();
        assert!(!text.contains("Warning"), "{text}");
    }

    #[test]
    fn a_pod_without_a_limit_is_refused_and_peers_have_two_identities() {
        let options = Options { image: "testudo".into(), storage: "1Gi".into() };
        let mut unlimited = config(&[]);
        unlimited.limits.memory_mib = None;
        assert!(matches!(manifests(&unlimited, &options), Err(DeployError::Memory)));
        let colocated = config(&["cluster.placement=colocated", "cluster.servers=3"]);
        let text = manifests(&colocated, &options).unwrap();
        assert!(
            text.contains("\"--worker-identity\"")
                && text.contains("server-$(INDEX)")
                && text.contains("my-job-1-peer-2.my-job-1:4801")
        );
    }
}
