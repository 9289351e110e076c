use std::path::Path;

use testudo_actors::placement::SliceMap;

use super::*;
use crate::config::tests::{IMAGES, MINIMAL, TEXT};

const ROLES: [Role; 3] = [Role::Scheduler, Role::Server, Role::Worker];

fn parse(overrides: &[&str]) -> Config {
    Config::parse(MINIMAL, Path::new("/cluster/mnist.toml"), overrides).unwrap()
}

/// What the transport would promise to one connection.
fn promise(config: &Config, role: Role, data: u64) -> TransportConfig {
    config.limit(TransportConfig::default(), role, data)
}

const JOBS: [&[&str]; 9] = [
    &[],
    &["cluster.servers=3", "optimizer.kind=lamb"],
    &["cluster.workers=4", "cluster.servers=3", "optimizer.kind=adam"],
    &["cluster.workers=4", "training.aggregation=median"],
    &["cluster.workers=4", "training.aggregation=centred_clipping", "training.clip_radius=1"],
    &["training.clip_norm=1"],
    &["training.logical_shards=64", "model.hidden=[4096, 4096]"],
    &["transport.slice_bytes=64", "model.hidden=[]"],
    &["transport.max_in_flight_bytes=65536", "transport.slice_bytes=4096", "checkpoint.at_end=false"],
];

/// Invariants 1 and 2, at the least that is taken and above.
#[test]
fn what_is_shared_out_and_what_a_node_needs_come_to_the_limit_at_most() {
    for (job, role, data) in JOBS.iter().flat_map(|job| ROLES.map(|role| (job, role, 55 << 20))) {
        let mut config = parse(job);
        let (least, own) = config.least_mib(role, data);
        config.limits.memory_mib = Some(least - 1);
        let why = config.too_little_memory(role, data).unwrap();
        assert!(why.contains(&format!("use at least {least}")) && why.contains(role.as_str()), "{why}");
        for limit in [least, least + 1, 2 * least, 100 * least] {
            config.limits.memory_mib = Some(limit);
            assert_eq!(config.too_little_memory(role, data), None);
            let granted = promise(&config, role, data);
            let all = granted.promise() * config.connections(role);
            assert!(all <= granted.memory, "{job:?} {role} {limit}: {all} of {granted:?}");
            let taken = config.own_bytes(role, data) + granted.memory;
            assert!(taken <= limit << 20, "{job:?} {role} {limit}: {taken}, {own} MiB its own");
            let credit = least_credit(config.transport.slice_bytes).min(config.transport.max_in_flight_bytes);
            assert!(granted.data_credit.bytes >= credit, "{job:?} {role} {limit}: {granted:?}");
        }
    }
}

/// What whole gradients take is counted: votes as under the median, and beside them the aggregate before, in memory and in the
/// snapshot, and products.
#[test]
fn what_whole_gradients_take_is_counted() {
    const SEVEN: [&str; 4] = [
        "cluster.workers=7",
        "training.logical_shards=7",
        "training.batch_size=70",
        "checkpoint.at_end=true",
    ];
    let own = |overrides: &[&str], role| parse(&[&SEVEN[..], overrides].concat()).own_bytes(role, 0);
    let median = |role| own(&["training.aggregation=median"], role);
    let krum = |role| own(&["training.aggregation=krum"], role);
    let centred = ["training.aggregation=centred_clipping", "training.clip_radius=1"];
    let kept = parse(&[&SEVEN[..], &centred].concat()).server_bytes();
    for role in [Role::Server, Role::Scheduler] {
        assert_eq!(krum(role) - median(role), 4 * 80 * 7 * 8 / 2);
    }
    assert_eq!(own(&centred, Role::Server) - median(Role::Server), 2 * kept + 4 * 80 * 8 * 9 / 2);
    assert_eq!(krum(Role::Worker), median(Role::Worker));
}

/// Servers count where their file says so; a scheduler has room for what they tell whatever its own says. Of more servers' parts it
/// keeps more.
#[test]
fn histograms_are_counted() {
    let own = |role, overrides: &[&str]| parse(overrides).own_bytes(role, 0);
    let elements = [784 * 512, 512, 512 * 512, 512, 512 * 10, 10];
    let counted = testudo_actors::server::histogram_bytes(elements);
    // Six tensors: of each two times 897 counts of 8 bytes, in three versions at least.
    assert!(counted > 6 * 2 * 897 * 8 * 3, "{counted}");
    for off in ["telemetry.histogram_every=0", "telemetry.tensorboard=false"] {
        assert_eq!(own(Role::Server, &[]) - own(Role::Server, &[off]), counted);
        assert_eq!(own(Role::Scheduler, &[]), own(Role::Scheduler, &[off]));
        assert_eq!(own(Role::Worker, &[]), own(Role::Worker, &[off]));
    }
    let config = parse(&["cluster.servers=2"]);
    let parts = [(784 * 512, 2), (512, 1), (512 * 512, 1), (512, 1), (512 * 10, 1), (10, 1)];
    let kept = testudo_actors::scheduler::histogram_bytes(parts);
    assert_eq!(config.histogram_bytes(Role::Scheduler), kept);
    assert!(kept > parse(&[]).histogram_bytes(Role::Scheduler));
    let others = config.slices() * SLICE_AT_SCHEDULER + config.products_bytes() + config.told_bytes();
    assert_eq!(config.own_bytes(Role::Scheduler, 0), others + PROGRAM + kept);
}

/// On a GPU, activations are there, and the driver and pinned memory are here; with `auto`, either may be.
#[test]
fn what_a_gpu_takes_on_the_host_is_counted_and_what_is_on_it_is_not() {
    let own = |role, overrides: &[&str]| parse(overrides).own_bytes(role, 0);
    let shared = (512 + 8) << 20;
    for device in ["cuda:0", "auto"] {
        let server = format!("servers.device={device}");
        assert_eq!(own(Role::Server, &[&server]) - own(Role::Server, &[]), shared);
        for role in [Role::Scheduler, Role::Worker] {
            assert_eq!(own(role, &[&server]), own(role, &[]));
        }
    }
    // From 784 numbers to 10: two sizes of gradients, five of each.
    let small = ["model.hidden=[]", "training.batch_size=4096"];
    let pinned = 5 * 4 * (784 * 10 + 10);
    let worker = |device: &str| own(Role::Worker, &[&small[..], &[device]].concat());
    let (cpu, auto, gpu) =
        (worker("workers.device=cpu"), worker("workers.device=auto"), worker("workers.device=cuda:0"));
    assert_eq!(auto - cpu, shared + pinned);
    let config = parse(&small);
    let shard = 4096 / u64::from(config.training.logical_shards);
    let activations = config.activation_bytes(shard) - config.given_bytes(shard);
    assert!(activations > 4 * 10 * shard);
    assert_eq!(auto - gpu, activations);
}

/// Without a limit every peer has the credit that is configured, and room for it.
#[test]
fn without_a_limit_there_is_room_for_every_peers_credit() {
    for (job, role) in JOBS.iter().flat_map(|job| ROLES.map(|role| (job, role))) {
        let config = parse(job);
        assert_eq!(config.too_little_memory(role, u64::MAX), None);
        let granted = promise(&config, role, u64::MAX);
        assert_eq!(granted.data_credit.bytes, config.transport.max_in_flight_bytes);
        assert!(granted.promise() * config.connections(role) <= granted.memory, "{job:?} {role}");
    }
}

/// What is set aside for a server's answers is what it may let wait: all of its parameters.
#[test]
fn answers_have_room_for_all_that_a_server_keeps() {
    for job in JOBS {
        let config = parse(job);
        let parameters = crate::job::model(&config.model).parameters().unwrap();
        let elements: Vec<usize> = parameters.iter().map(|p| p.shape.elements()).collect();
        let servers: Vec<u32> = (0..config.cluster.servers).collect();
        let whole = config.optimizer.spec().parse().unwrap().needs_whole_tensor();
        let map = SliceMap::cut(&elements, config.transport.slice_bytes, &servers, whole).unwrap();
        for server in servers {
            let kept: usize = map.of_server(server).map(|slice| slice.elements * 4).sum();
            assert!(kept as u64 <= config.answer_bytes(Role::Server), "{job:?}: {kept}");
        }
    }
}

/// A text's windows and what is computed of them: more with more of anything, and with more of it in a shard.
#[test]
fn what_a_gpt_computes_is_counted() {
    let needs = |overrides: &[&str]| {
        let config = Config::parse(TEXT, Path::new("/cluster/gpt.toml"), overrides).unwrap();
        config.own_bytes(Role::Worker, 0)
    };
    let least = needs(&["training.batch_size=32", "training.logical_shards=2"]);
    for more in ["model.context=256", "model.layers=8", "model.width=256", "training.batch_size=64"] {
        let found = needs(&["training.batch_size=32", "training.logical_shards=2", more]);
        assert!(found > least, "{more}: {found}, not above {least}");
    }
    let shards = needs(&["training.batch_size=32", "training.logical_shards=8"]);
    assert!(shards < least, "{shards} for small shards, {least} for large ones");
}

/// What a network for images makes of a shard is far more than the shard, and counts.
#[test]
fn activations_of_images_are_counted() {
    let own = |batch: u32| {
        let overrides = [format!("training.batch_size={batch}"), "training.logical_shards=1".into()];
        let config = Config::parse(IMAGES, Path::new("/cluster/mnist.toml"), &overrides).unwrap();
        config.own_bytes(Role::Worker, 0)
    };
    let each = (own(768) - own(512)) / 256;
    // What both convolutions make, and the gradients of the larger, twice.
    let least = (26 * 26 * 32 + 3 * 24 * 24 * 64) * 4;
    assert!((least..2 * least).contains(&each), "{each}");
    // A smaller shard than is evaluated at a time changes nothing.
    assert_eq!(own(16), own(32));
}

/// Many small slices take more than their values.
#[test]
fn small_slices_have_their_tables_counted() {
    let own =
        |slice_bytes: u32, role| parse(&[&format!("transport.slice_bytes={slice_bytes}")]).own_bytes(role, 0);
    let least = parse(&["transport.slice_bytes=64"]).slices();
    assert!(least > 1000, "{least}");
    for (role, each) in [(Role::Server, SLICE_AT_SERVER), (Role::Scheduler, SLICE_AT_SCHEDULER)] {
        let (small, large) = (own(64, role), own(1 << 20, role));
        assert!(
            small + (1 << 20) > large + each * (least - 8) && small < large + each * least,
            "{role:?}: {small}, {large}"
        );
    }
}

/// Residuals of every shard, which the last survivor would hold, and their copy while a checkpoint of them is being written.
#[test]
fn residuals_are_counted_and_so_is_their_copy() {
    let own = |overrides: &[&str]| parse(overrides).own_bytes(Role::Worker, 0);
    let config = parse(&[]);
    let copies = u64::from(config.training.step_shards()) * config.parameter_bytes();
    let (kept, lost) =
        (&["transport.push_codec=int8"][..], &["transport.push_codec=int8", "checkpoint.at_end=false"]);
    assert_eq!(own(lost) - own(&["transport.push_codec=bf16"]), copies);
    assert_eq!(own(kept) - own(lost), copies);
}
