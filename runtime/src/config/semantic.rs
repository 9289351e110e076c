//! The rules between keys: what each value may be only in the light of others.
//!
//! A rule is skipped when one of its values was refused already: it could only mislead.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use testudo_actors::job::MAX_LOGICAL_SHARDS;
use testudo_kernels::Precision;
use testudo_transport::Role;

use super::memory::least_credit;
use super::problem::Problem;
use super::read::Values;
use super::{ComputeDevice, Config, Data, Determinism, MatrixProducts, Model, Placement};

/// Least ratio of a timeout to the heartbeat it waits for: one lost heartbeat is no death.
const HEARTBEATS_PER_TIMEOUT: u64 = 2;

/// Reports everything that does not fit together.
pub(super) fn check(config: &Config, values: &Values, problems: &mut Vec<Problem>) {
    let mut report = |paths: &[&str], broken: bool, message: &dyn Fn() -> String| {
        if broken && values.sound(paths) {
            problems.push(Problem { place: values.place(paths), message: message() });
        }
    };
    let (cluster, training, transport) = (&config.cluster, &config.training, &config.transport);

    report(
        &["cluster.workers", "training.logical_shards"],
        cluster.workers > training.logical_shards,
        &|| {
            format!(
                "`cluster.workers` is {} but `training.logical_shards` is {}: the workers beyond that would idle; \
                 use at most {} workers, or more shards",
                cluster.workers, training.logical_shards, training.logical_shards
            )
        },
    );
    let (max, shards) = (cluster.supervision.max_workers.unwrap_or(cluster.workers), training.logical_shards);
    report(&["cluster.max_workers", "cluster.workers"], max < cluster.workers, &|| {
        let workers = cluster.workers;
        format!(
            "`cluster.max_workers` is {max} but `cluster.workers` is {workers}: the job begins with more than it may have"
        )
    });
    report(
        &["cluster.max_workers", "training.logical_shards"],
        max > cluster.workers && max > shards,
        &|| {
            format!(
                "`cluster.max_workers` is {max} but `training.logical_shards` is {shards}: the workers beyond that would idle; use at most \
             {shards}, or more shards"
            )
        },
    );
    report(
        &["cluster.max_workers", "cluster.workers", "training.aggregation"],
        max > cluster.workers && crate::job::aggregation(training).hostile().is_some(),
        &|| {
            format!(
                "`cluster.max_workers` is {max}, but under `training.aggregation` = \"{}\" each of the {} workers has a vote from the \
                 beginning, and no other gets one: leave `cluster.max_workers` out",
                crate::job::aggregation(training),
                cluster.workers
            )
        },
    );
    let colocated = cluster.placement == Placement::Colocated;
    report(
        &["cluster.max_workers", "cluster.workers", "cluster.placement"],
        colocated && max > cluster.workers,
        &|| {
            "`cluster.max_workers` is for workers that are processes of their own, and with `cluster.placement = \"colocated\"` each is \
         beside a server: leave it out"
            .to_owned()
        },
    );
    report(
        &["cluster.servers", "cluster.workers", "cluster.placement"],
        colocated && cluster.servers != cluster.workers,
        &|| {
            format!(
                "`cluster.servers` is {} and `cluster.workers` {}, but with `cluster.placement = \"colocated\"` every process \
                 is one of each: leave `cluster.servers` out, or set it to {}",
                cluster.servers, cluster.workers, cluster.workers
            )
        },
    );
    report(
        &["workers.device", "training.precision"],
        matches!(config.workers.device, ComputeDevice::Cuda(_)) && training.precision != Precision::F32,
        &|| {
            format!(
                "`workers.device` is \"{}\", and GPUs have no kernels for `training.precision = \"bf16\"`: leave that out, or use \
                 \"cpu\" or \"auto\"",
                config.workers.device
            )
        },
    );
    let products = config.workers.products;
    report(
        &["workers.products", "workers.device", "training.determinism", "training.precision"],
        products != MatrixProducts::Exact
            && (config.worker_device() == ComputeDevice::Cpu || training.determinism == Determinism::Strict),
        &|| {
            format!(
                "`workers.products` is \"{}\", which cuBLAS computes on a GPU in bits of its own: it needs a `workers.device` that is \
                 none but a GPU, `training.determinism = \"relaxed\"`, and `training.precision = \"f32\"`",
                products.word()
            )
        },
    );
    report(
        &["training.batch_size", "training.logical_shards"],
        !training.batch_size.is_multiple_of(training.logical_shards),
        &|| {
            let (batch, shards) = (training.batch_size, training.logical_shards);
            let above = batch.div_ceil(shards).max(1).saturating_mul(shards);
            format!(
                "`training.batch_size` is {batch}, no multiple of `training.logical_shards` ({shards}): use for \
                 instance {above}"
            )
        },
    );
    report(&["transport.slice_bytes"], !transport.slice_bytes.is_multiple_of(4), &|| {
        let bytes = transport.slice_bytes;
        format!(
            "`transport.slice_bytes` is {bytes}, no multiple of 4 (the size of an f32): use for instance {}",
            bytes & !3
        )
    });
    report(
        &["transport.max_in_flight_bytes", "transport.slice_bytes"],
        transport.max_in_flight_bytes < least_credit(transport.slice_bytes),
        &|| {
            format!(
                "`transport.max_in_flight_bytes` is {}, too little for one slice and its frame \
                 (`transport.slice_bytes` is {}), which may take three quarters of it; use at least {}",
                transport.max_in_flight_bytes,
                transport.slice_bytes,
                least_credit(transport.slice_bytes)
            )
        },
    );
    report(
        &["training.accumulate", "training.logical_shards"],
        u64::from(training.logical_shards) * u64::from(training.accumulate) > u64::from(MAX_LOGICAL_SHARDS),
        &|| {
            format!(
                "`training.accumulate` is {} and `training.logical_shards` {}: a step sums {MAX_LOGICAL_SHARDS} parts at most",
                training.accumulate, training.logical_shards
            )
        },
    );
    report(
        &["training.patience", "training.evaluate_every"],
        training.patience.is_some() && training.evaluate_every == 0,
        &|| {
            "`training.patience` counts evaluations, and there are none before the end: set `training.evaluate_every`"
                .into()
        },
    );
    no_decay(config, &mut report);
    votes(config, &mut report);
    network(config, &mut report);
    codecs(config, &mut report);
    hosts(config, &mut report);
    let memory = ["limits.memory_mib", "transport.slice_bytes", "cluster.workers", "cluster.servers"];
    let roles = [Role::Scheduler, Role::Server, Role::Worker];
    // How much a worker's data takes is known when it has them.
    if let Some(why) = roles.into_iter().find_map(|role| config.too_little_memory(role, 0)) {
        report(&memory, true, &|| why.clone());
    }
    for (path, timeout) in [
        ("cluster.heartbeat_timeout_ms", cluster.heartbeat_timeout_ms),
        ("transport.idle_timeout_ms", transport.idle_timeout_ms),
    ] {
        let least = cluster.heartbeat_ms.saturating_mul(HEARTBEATS_PER_TIMEOUT);
        report(&[path, "cluster.heartbeat_ms"], timeout < least, &|| {
            format!(
                "`{path}` is {timeout}, less than {HEARTBEATS_PER_TIMEOUT} heartbeats (`cluster.heartbeat_ms` is \
                 {}): one lost heartbeat would look like a dead node; use at least {least}",
                cluster.heartbeat_ms
            )
        });
    }
    let shown = COLLECTOR.iter().filter(|path| values.get(path).is_some()).count();
    report(&COLLECTOR, shown == 1, &|| {
        format!(
            "`{}` and `{}` go together: a certificate is shown with its private key",
            COLLECTOR[0], COLLECTOR[1]
        )
    });
    let given: Vec<_> = SECURITY.iter().filter(|path| values.get(path).is_some()).collect();
    report(&SECURITY, given.len() == 1 || given.len() == 2, &|| {
        let missing: Vec<_> =
            SECURITY.iter().filter(|path| !given.contains(path)).map(|path| format!("`{path}`")).collect();
        format!("{} is missing: the three go together; give all of them, or none", missing.join(" and "))
    });
    for (path, found) in [
        ("network.servers.listen", config.network.servers.listen.len()),
        ("network.servers.advertise", config.network.servers.advertise.len()),
    ] {
        report(&[path, "cluster.servers"], found != 0 && found != cluster.servers as usize, &|| {
            format!(
                "`{path}` has {found} addresses for {} servers (`cluster.servers`): give one for each, or none",
                cluster.servers
            )
        });
    }
    addresses(config, &mut report);
    allowed(config, &mut report);
}

/// A robust rule needs enough votes, one of each worker.
fn votes(config: &Config, report: &mut Report<'_>) {
    let (workers, shards) = (config.cluster.workers, config.training.logical_shards);
    let rule = crate::job::aggregation(&config.training);
    let Some(hostile) = rule.hostile() else { return };
    report(
        &["training.hostile_workers", "cluster.workers", "training.aggregation"],
        u64::from(workers) < rule.least_votes(),
        &|| {
            format!(
                "`training.aggregation` is {rule}, and {workers} workers cannot outvote {hostile} (`training.hostile_workers`): \
                 use at least {} workers{}",
                rule.least_votes(),
                match u64::from(workers).saturating_sub(rule.least_votes() - 2 * u64::from(hostile)) / 2 {
                    0 => String::new(),
                    most => format!(", or say at most {most}"),
                }
            )
        },
    );
    report(&["training.accumulate", "training.aggregation"], config.training.accumulate > 1, &|| {
        format!(
            "`training.accumulate` is {}, but under `training.aggregation` {rule} every worker has one vote a step, on one \
                 part of the batch: leave it out, and use a larger `training.batch_size`",
            config.training.accumulate
        )
    });
    let most = rule.most_votes();
    report(&["cluster.workers", "training.aggregation"], workers > most, &|| {
        format!(
            "`training.aggregation` is {rule}, and takes the votes of {most} workers at most, not of {workers}"
        )
    });
    report(
        &["training.logical_shards", "cluster.workers", "training.aggregation"],
        shards > workers,
        &|| {
            format!(
                "`training.aggregation` is {rule}, under which every worker has one vote, but `training.logical_shards` is \
                 {shards} for {workers} workers: set it to {workers}"
            )
        },
    );
}

/// A network and its data are of one kind, and a GPT has a size that there can be.
fn network(config: &Config, report: &mut Report<'_>) {
    let of_text = matches!(config.model, Model::Gpt { .. });
    let wanted = if of_text { "text" } else { "mnist" };
    report(&["data.kind", "model.kind"], of_text != matches!(config.data, Data::Text { .. }), &|| {
        let kind = if of_text { "continues texts" } else { "classifies examples" };
        format!("this `model.kind` {kind}: it needs `data.kind = \"{wanted}\"`")
    });
    if let Model::Cnn { .. } | Model::ResNet18 { .. } = config.model
        && let Err(why) = crate::job::model(&config.model).parameters()
    {
        report(&["model.image"], true, &|| format!("`model.image`: {why}"));
    }
    if let Model::Gpt { heads, width, attention_dropout, .. } = config.model {
        report(&["model.heads", "model.width"], width % heads.max(1) != 0, &|| {
            format!(
                "`model.heads` is {heads}, which does not divide `model.width` ({width}): use for instance a width of {}",
                width.next_multiple_of(heads.max(1))
            )
        });
        let counted = attention_dropout > 0.0 && width % heads.max(1) == 0;
        if let (true, Err(why)) = (counted, crate::job::model(&config.model).parameters()) {
            report(&["model.attention_dropout"], true, &|| format!("`model.attention_dropout`: {why}"));
        }
    }
}

/// A pattern that names nothing is a mistake in writing it.
fn no_decay(config: &Config, report: &mut Report<'_>) {
    let Ok(parameters) = crate::job::model(&config.model).parameters() else { return };
    for pattern in &config.optimizer.no_decay {
        let spec = config.optimizer.spec().without_decay(&[pattern]);
        report(
            &["optimizer.no_decay", "model.kind"],
            parameters.iter().all(|p| spec.decays(&p.name)),
            &|| {
                let names: Vec<&str> = parameters.iter().map(|p| p.name.as_str()).take(6).collect();
                format!(
                    "`optimizer.no_decay`: no parameter of this model is called \"{pattern}\"; they are {}{}",
                    names.join(", "),
                    if parameters.len() > names.len() { " and so on" } else { "" }
                )
            },
        );
    }
}

/// A codec must work, and nothing may be promised that it does not keep.
fn codecs(config: &Config, report: &mut Report<'_>) {
    let push = crate::job::codecs(&config.transport).push;
    let parameters = ["transport.push_threshold", "transport.push_fraction", "transport.push_codec"];
    if let Err(error) = push.validate() {
        report(&parameters, true, &|| format!("`transport.push_codec` is {push}: {error}"));
    }
    let accumulate = config.training.accumulate;
    report(&["training.accumulate", "transport.push_codec"], accumulate > 1 && push.feeds_back(), &|| {
        format!(
            "`transport.push_codec` is {push}, which keeps a residual of each part of a step, and `training.accumulate` = {accumulate} \
             makes {accumulate} times as many: leave it out, and use a larger `training.batch_size`, or push `f32`, which sends \
             the sum of all parts once"
        )
    });
}

/// There must be hosts, and what is resumed from must be where it is looked for.
fn hosts(config: &Config, report: &mut Report<'_>) {
    let Some(ssh) = &config.ssh else { return };
    report(&["ssh.hosts"], ssh.hosts.is_empty(), &|| "`ssh.hosts` names none: give one at least".into());
    let kept = &config.checkpoint;
    let paths = ["ssh.shared", "checkpoint.every_steps", "checkpoint.at_end"];
    report(&paths, !ssh.shared && (kept.every_steps > 0 || kept.at_end), &|| {
        "training checkpoints are written by servers, on their hosts, and are whole only where all nodes reach the run directory: \
         set `ssh.shared = true` if hosts reach `output.dir` under the same path, or `checkpoint.every_steps = 0` and \
         `checkpoint.at_end = false`"
            .into()
    });
}

/// Who listens on loopback is reached from loopback alone.
fn allowed(config: &Config, report: &mut Report<'_>) {
    let network = &config.network;
    let servers = (0..config.cluster.servers).map(|index| network.server_listen(index));
    let mut bound = std::iter::once(network.scheduler_listen()).chain(servers).map(|address| address.ip());
    let Some(address) = bound.find(|address| address.is_loopback()) else { return };
    let open = network.allow.is_empty() || network.allow.iter().any(|net| net.contains(&address));
    report(&["network.allow", "network.listen"], !open, &|| {
        format!(
            "`network.allow` leaves out {address}, on which a node listens and which only this machine can reach: nobody \
             could ever come in; add {address}/{}",
            if address.is_ipv4() { 32 } else { 128 }
        )
    });
}

const COLLECTOR: [&str; 2] = ["telemetry.client_certificate", "telemetry.client_key"];
const SECURITY: [&str; 3] = ["security.ca", "security.cert", "security.key"];

/// Takes the keys that a rule is about, whether it is broken, and the message for that case.
type Report<'a> = dyn FnMut(&[&str], bool, &dyn Fn() -> String) + 'a;

/// A bound address must be free for one node alone, and reachable under some name.
fn addresses(config: &Config, report: &mut Report<'_>) {
    const PATHS: [&str; 6] = [
        "network.scheduler.listen",
        "network.servers.listen",
        "network.listen",
        "network.scheduler.advertise",
        "network.servers.advertise",
        "cluster.servers",
    ];
    let network = &config.network;
    let mut bound: BTreeMap<SocketAddr, String> = BTreeMap::new();
    let servers = (0..config.cluster.servers).map(|index| {
        (format!("server {index}"), network.server_listen(index), network.server_advertise(index).is_some())
    });
    let advertised = network.scheduler.advertise.is_some();
    let nodes =
        [("the scheduler".to_string(), network.scheduler_listen(), advertised)].into_iter().chain(servers);
    for (node, address, advertised) in nodes {
        if address.ip().is_unspecified() && !advertised {
            return report(&PATHS, true, &|| {
                format!(
                    "{node} listens on {address}, every interface, but nobody can dial that: say where it is reached \
                     in `network.scheduler.advertise` or `network.servers.advertise`, or listen on one address"
                )
            });
        }
        // Nodes that listen on every interface may well be on machines of their own.
        if address.port() == 0 || address.ip().is_unspecified() {
            continue;
        }
        if let Some(other) = bound.insert(address, node.clone()) {
            return report(&PATHS, true, &|| {
                format!(
                    "{other} and {node} would both listen on {address}: give each a port of its own in \
                     `network.scheduler.listen` and `network.servers.listen`, or use port 0"
                )
            });
        }
    }
}
