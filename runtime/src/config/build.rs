//! From checked values to the typed [`Config`].
//!
//! A value that was refused or is missing has been reported already; a stand-in takes its place here, so
//! that the rules between keys can still be checked. A configuration with stand-ins is never handed out.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use testudo_kernels::{Norm, Precision};

use super::keys::{self, Base, Rule};
use super::problem::{Place, Problem};
use super::read::Values;
use super::value::Value;
use super::{
    Aggregation, Audit, Checkpoint, Cluster, ComputeDevice, Config, Data, Determinism, Job, KeyExchange,
    Launcher, Limits, MatrixProducts, Model, Network, Optimizer, Output, Placement, PullCodec, PushCodec,
    Revocation, Schedule, SchedulerNetwork, Security, SecurityFiles, Servers, ServersNetwork, Ssh,
    Supervision, Telemetry, Training, Transport, Workers,
};

/// Builds the configuration; `path` is the cluster file's. Reports paths that cannot be made absolute.
pub(super) fn config(values: &Values, path: &Path, problems: &mut Vec<Problem>) -> Config {
    let mut from = Builder { values, folder: path.parent().unwrap_or(Path::new("")), problems };
    let placement = match from.text("cluster.placement").as_str() {
        "colocated" => Placement::Colocated,
        _ => Placement::Dedicated,
    };
    let launcher = match from.text("cluster.launcher").as_str() {
        "ssh" => Launcher::Ssh,
        _ => Launcher::Local,
    };
    Config {
        job: Job { name: from.text("job.name"), trust_domain: from.text("job.trust_domain") },
        cluster: Cluster {
            workers: from.integer("cluster.workers"),
            servers: match (values.get("cluster.servers"), placement) {
                (Some(_), _) => from.integer("cluster.servers"),
                (None, Placement::Colocated) => from.integer("cluster.workers"),
                (None, Placement::Dedicated) => 1,
            },
            scheduler: from.optional_text("cluster.scheduler"),
            placement,
            launcher,
            heartbeat_ms: from.integer("cluster.heartbeat_ms"),
            heartbeat_timeout_ms: from.integer("cluster.heartbeat_timeout_ms"),
            supervision: Supervision {
                max_workers: values.get("cluster.max_workers").map(|_| from.integer("cluster.max_workers")),
                restarts: from.integer("cluster.restarts"),
                worker_restarts: from.integer("cluster.worker_restarts"),
                worker_return_ms: from.integer("cluster.worker_return_ms"),
            },
        },
        network: Network {
            listen: address(values.text("network.listen")).unwrap_or(STAND_IN),
            mtu: from.integer("network.mtu"),
            allow: from.texts("network.allow").filter_map(|text| text.parse().ok()).collect(),
            scheduler: SchedulerNetwork {
                listen: address(values.text("network.scheduler.listen")),
                advertise: from.optional_text("network.scheduler.advertise"),
            },
            servers: ServersNetwork {
                listen: from.texts("network.servers.listen").filter_map(|text| address(Some(text))).collect(),
                advertise: from.texts("network.servers.advertise").map(str::to_string).collect(),
            },
        },
        servers: Servers { device: from.device("servers.device") },
        workers: Workers {
            device: from.device("workers.device"),
            products: match from.text("workers.products").as_str() {
                "f32" => MatrixProducts::F32,
                "tf32" => MatrixProducts::Tf32,
                "bf16" => MatrixProducts::Bf16,
                _ => MatrixProducts::Exact,
            },
        },
        training: Training {
            seed: from.integer("training.seed"),
            epochs: from.integer("training.epochs"),
            batch_size: from.integer("training.batch_size"),
            logical_shards: from.integer("training.logical_shards"),
            accumulate: from.integer("training.accumulate"),
            aggregation: from.aggregation(),
            clip_norm: values.get("training.clip_norm").map(|_| from.number("training.clip_norm")),
            max_steps: values.get("training.max_steps").map(|_| from.integer("training.max_steps")),
            evaluate_every: from.integer("training.evaluate_every"),
            patience: values.get("training.patience").map(|_| from.integer("training.patience")),
            min_improvement: from.number("training.min_improvement"),
            precision: if from.text("training.precision") == "bf16" {
                Precision::Bf16
            } else {
                Precision::F32
            },
            determinism: match from.text("training.determinism").as_str() {
                "relaxed" => Determinism::Relaxed,
                _ => Determinism::Strict,
            },
        },
        model: from.model(),
        optimizer: from.optimizer(),
        schedule: from.schedule(),
        data: from.data(),
        transport: Transport {
            slice_bytes: from.integer("transport.slice_bytes"),
            push: from.push_codec(),
            pull_codec: match from.text("transport.pull_codec").as_str() {
                "f16" => PullCodec::F16,
                "bf16" => PullCodec::Bf16,
                "int8" => PullCodec::Int8,
                _ => PullCodec::F32,
            },
            lanes: from.integer("transport.lanes"),
            max_in_flight_bytes: from.integer("transport.max_in_flight_bytes"),
            max_in_flight_messages: from.integer("transport.max_in_flight_messages"),
            key_exchange: match from.text("transport.key_exchange").as_str() {
                "pq-first" => KeyExchange::PqFirst,
                _ => KeyExchange::PqOnly,
            },
            idle_timeout_ms: from.integer("transport.idle_timeout_ms"),
        },
        limits: Limits {
            handshakes_per_second: from.integer("limits.handshakes_per_second"),
            handshakes_per_address: from.integer("limits.handshakes_per_address"),
            connections_per_peer: from.integer("limits.connections_per_peer"),
            memory_mib: values.get("limits.memory_mib").map(|_| from.integer("limits.memory_mib")),
        },
        security: Security {
            certificate_hours: from.integer("security.certificate_hours"),
            run_as: from.text("security.run_as"),
            files: match (from.path("security.ca"), from.path("security.cert"), from.path("security.key")) {
                (Some(ca), Some(cert), Some(key)) => Some(SecurityFiles { ca, cert, key }),
                _ => None,
            },
            crl: from.path("security.crl"),
            revocation: match from.text("security.revocation").as_str() {
                "short-lived" => Revocation::ShortLived,
                _ => Revocation::Required,
            },
        },
        ssh: (launcher == Launcher::Ssh).then(|| from.ssh()),
        checkpoint: Checkpoint {
            export: matches!(values.get("checkpoint.export"), Some(Value::Boolean(true))),
            every_steps: from.integer("checkpoint.every_steps"),
            at_end: matches!(values.get("checkpoint.at_end"), Some(Value::Boolean(true))),
            keep_last: from.integer("checkpoint.keep_last"),
            max_age_hours: from.integer("checkpoint.max_age_hours"),
            recipients: from.texts("checkpoint.recipients").map(str::to_string).collect(),
            sign_key: from.path("checkpoint.sign_key"),
        },
        audit: Audit {
            hash_every: from.integer("audit.hash_every"),
            witness_rate: from.number("audit.witness_rate"),
            countersign_every: from.integer("audit.countersign_every"),
        },
        telemetry: Telemetry {
            endpoint: from.optional_text("telemetry.endpoint"),
            protocol: from.text("telemetry.protocol"),
            certificate: from.path("telemetry.certificate"),
            client_certificate: from.path("telemetry.client_certificate"),
            client_key: from.path("telemetry.client_key"),
            sample_every: from.integer("telemetry.sample_every"),
            metrics_interval_ms: from.integer("telemetry.metrics_interval_ms"),
            prometheus_port: values
                .get("telemetry.prometheus_port")
                .map(|_| from.integer("telemetry.prometheus_port")),
            tensorboard: matches!(values.get("telemetry.tensorboard"), Some(Value::Boolean(true))),
            histogram_every: from.integer("telemetry.histogram_every"),
        },
        output: Output { dir: from.path("output.dir").unwrap_or_default() },
    }
}

/// In place of an image that was refused: one that every network takes.
const STAND_IN_IMAGE: [usize; 3] = [1, 28, 28];

/// In place of an address that was refused.
const STAND_IN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn address(text: Option<&str>) -> Option<SocketAddr> {
    text.and_then(|text| text.parse().ok())
}

struct Builder<'a> {
    values: &'a Values,
    folder: &'a Path,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Builder<'a> {
    fn text(&self, path: &str) -> String {
        self.values.text(path).unwrap_or_default().to_string()
    }

    fn device(&self, path: &str) -> ComputeDevice {
        self.values.text(path).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    fn optional_text(&self, path: &str) -> Option<String> {
        self.values.text(path).map(str::to_string)
    }

    fn texts(&self, path: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.values.texts(path)
    }

    fn integer<T: TryFrom<i64> + From<u8>>(&self, path: &str) -> T {
        match self.values.get(path) {
            Some(Value::Integer(number)) => T::try_from(*number).unwrap_or_else(|_| T::from(1)),
            _ => T::from(1),
        }
    }

    fn integers(&self, path: &str) -> Vec<usize> {
        let items: &[Value] = match self.values.get(path) {
            Some(Value::List(items)) => items,
            _ => &[],
        };
        items
            .iter()
            .filter_map(|item| match item {
                Value::Integer(number) => usize::try_from(*number).ok(),
                _ => None,
            })
            .collect()
    }

    fn number(&self, path: &str) -> f64 {
        match self.values.get(path) {
            Some(Value::Number(number)) => *number,
            _ => 1.0,
        }
    }

    fn model(&mut self) -> Model {
        match self.text("model.kind").as_str() {
            "cnn" => Model::Cnn {
                image: self.image(),
                classes: self.integer("model.classes"),
                label_smoothing: self.number("model.label_smoothing"),
            },
            "resnet18" => Model::ResNet18 {
                image: self.image(),
                classes: self.integer("model.classes"),
                label_smoothing: self.number("model.label_smoothing"),
            },
            "gpt" => Model::Gpt {
                context: self.integer("model.context"),
                layers: self.integer("model.layers"),
                heads: self.integer("model.heads"),
                width: self.integer("model.width"),
                dropout: self.number("model.dropout"),
                attention_dropout: self.number("model.attention_dropout"),
                norm: if self.text("model.norm") == "rms" { Norm::Rms } else { Norm::Layer },
            },
            _ => Model::Mlp {
                inputs: self.integer("model.inputs"),
                hidden: self.integers("model.hidden"),
                classes: self.integer("model.classes"),
            },
        }
    }

    /// An image's channels, height and width. Reports lists of another length.
    fn image(&mut self) -> [usize; 3] {
        const KEY: &str = "model.image";
        let found = self.integers(KEY);
        let count = found.len();
        found.try_into().unwrap_or_else(|_| {
            if matches!(self.values.get(KEY), Some(Value::List(_))) {
                let message = format!(
                    "`{KEY}` has {count} numbers; it takes three: channels, height and width, like [1, 28, 28]"
                );
                self.problems.push(Problem { place: self.values.place(&[KEY]), message });
            }
            STAND_IN_IMAGE
        })
    }

    fn data(&mut self) -> Data {
        let path = self.path("data.path").unwrap_or_default();
        match self.text("data.kind").as_str() {
            "text" => Data::Text {
                path,
                stride: self.values.get("data.stride").map(|_| self.integer("data.stride")),
                test_fraction: self.number("data.test_fraction"),
            },
            _ => Data::Mnist { path, mean: self.number("data.mean"), std: self.number("data.std") },
        }
    }

    fn aggregation(&self) -> Aggregation {
        let hostile_workers = || self.integer("training.hostile_workers");
        match self.text("training.aggregation").as_str() {
            "median" => Aggregation::Median { hostile_workers: hostile_workers() },
            "trimmed_mean" => Aggregation::TrimmedMean { hostile_workers: hostile_workers() },
            "krum" => Aggregation::Krum { hostile_workers: hostile_workers() },
            "multi_krum" => Aggregation::MultiKrum { hostile_workers: hostile_workers() },
            "geometric_median" => Aggregation::GeometricMedian { hostile_workers: hostile_workers() },
            "centred_clipping" => Aggregation::CentredClipping {
                hostile_workers: hostile_workers(),
                clip_radius: self.number("training.clip_radius"),
            },
            "norm_bound" => Aggregation::NormBound {
                hostile_workers: hostile_workers(),
                norm_bound: self.number("training.norm_bound"),
            },
            _ => Aggregation::Mean,
        }
    }

    fn push_codec(&self) -> PushCodec {
        let push_threshold = self.number("transport.push_threshold");
        match self.text("transport.push_codec").as_str() {
            "f16" => PushCodec::F16,
            "bf16" => PushCodec::Bf16,
            "int8" => PushCodec::Int8,
            "2bit" => PushCodec::TwoBit { push_threshold },
            "1bit" => PushCodec::OneBit { push_threshold },
            "topk" => PushCodec::TopK { push_fraction: self.number("transport.push_fraction") },
            _ => PushCodec::F32,
        }
    }

    fn ssh(&mut self) -> Ssh {
        Ssh {
            hosts: self.texts("ssh.hosts").map(str::to_string).collect(),
            key: self.path("ssh.key"),
            known_hosts: self.path("ssh.known_hosts"),
            folder: self.text("ssh.folder"),
            program: self.optional_text("ssh.program"),
            data: self.optional_text("ssh.data"),
            shared: matches!(self.values.get("ssh.shared"), Some(Value::Boolean(true))),
        }
    }

    fn optimizer(&mut self) -> Optimizer {
        let learning_rate = self.number("optimizer.learning_rate");
        super::optimizer::optimizer(self.values, learning_rate, self.problems)
    }

    fn schedule(&self) -> Schedule {
        let warmup_steps = self.integer("schedule.warmup_steps");
        let final_fraction = self.number("schedule.final_fraction");
        match self.values.text("schedule.kind") {
            Some("cosine") => Schedule::Cosine { warmup_steps, final_fraction },
            Some("linear") => Schedule::Linear { warmup_steps, final_fraction },
            Some("step") => {
                let (every_steps, gamma) =
                    (self.integer("schedule.every_steps"), self.number("schedule.gamma"));
                Schedule::Step { warmup_steps, every_steps, gamma }
            }
            Some("onecycle") => Schedule::OneCycle {
                rise_fraction: self.number("schedule.rise_fraction"),
                start_fraction: self.number("schedule.start_fraction"),
                final_fraction,
            },
            _ => Schedule::Constant,
        }
    }

    /// The path at `key`, absolute.
    fn path(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.values.text(key)?;
        let place = self.values.place(&[key]);
        let base = match keys::find(key).map(|key| &key.rule) {
            Some(Rule::Path { base: Base::File }) if matches!(place, Place::File { .. }) => self.folder,
            _ => Path::new(""),
        };
        let absolute = std::path::absolute(base.join(text));
        match absolute {
            Ok(path) if path.to_str().is_some() => Some(path),
            Ok(path) => {
                let message = format!("`{key}`: {} is not UTF-8: rename the folder", path.display());
                self.problems.push(Problem { place, message });
                None
            }
            Err(error) => {
                self.problems.push(Problem { place, message: format!("`{key}`: no absolute path: {error}") });
                None
            }
        }
    }
}
