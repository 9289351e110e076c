//! The cluster file as a user meets it: whole files in, a configuration or every problem out.

mod rules;
mod supervision;

use std::collections::BTreeSet;

use super::*;
use testudo_transport::Role;

pub(super) const MINIMAL: &str = r#"
[model]
kind = "mlp"
inputs = 784
classes = 10

[data]
kind = "mnist"
path = "data/mnist"
"#;

/// Every key that can stand beside the others, none at its default.
const FULL: &str = r#"
[job]
name = "full-1"
trust_domain = "example.org"

[cluster]
workers = 2
servers = 2
scheduler = "scheduler.example.org:7000"
placement = "dedicated"
heartbeat_ms = 100
heartbeat_timeout_ms = 900

[network]
listen = "127.0.0.2:0"
mtu = 8952
allow = ["127.0.0.0/8", "2001:db8::/32"]

[network.scheduler]
listen = "0.0.0.0:7000"
advertise = "scheduler.example.org:7000"

[network.servers]
listen = ["10.0.0.1:7001", "10.0.0.2:7001"]
advertise = ["a.example.org:7001", "[2001:db8::1]:7001"]

[training]
seed = 9223372036854775807
epochs = 3
batch_size = 96
logical_shards = 8
accumulate = 2
max_steps = 60
evaluate_every = 20
patience = 3
min_improvement = 0.01
determinism = "relaxed"

[model]
kind = "mlp"
inputs = 16
hidden = []
classes = 3

[optimizer]
kind = "adamw"
learning_rate = 3e-4
weight_decay = 0.05
beta1 = 0.8
beta2 = 0.95
epsilon = 1e-6

[schedule]
kind = "cosine"
warmup_steps = 10
final_fraction = 0.1

[data]
kind = "mnist"
path = "/srv/mnist"
mean = 0
std = 1

[transport]
slice_bytes = 4096
lanes = 3
max_in_flight_bytes = 1_000_000
max_in_flight_messages = 64
key_exchange = "pq-first"
idle_timeout_ms = 3000

[limits]
handshakes_per_second = 100
handshakes_per_address = 20
connections_per_peer = 4
memory_mib = 512

[security]
certificate_hours = 2
ca = "pki/ca.pem"
cert = "pki/cert.pem"
key = "/etc/testudo/key.pem"
crl = "pki/crl.pem"

[checkpoint]
export = false
sign_key = "sign.pem"

[telemetry]
endpoint = "https://127.0.0.1:4317"
certificate = "telemetry-ca.pem"
client_certificate = "telemetry.pem"
client_key = "telemetry.key"
protocol = "grpc"
sample_every = 10
metrics_interval_ms = 500
prometheus_port = 0
tensorboard = false
histogram_every = 7

[output]
dir = "/var/runs"
"#;

/// The smallest file of a network that continues texts.
pub(super) const TEXT: &str = "
[model]
kind = \"gpt\"
[optimizer]
kind = \"adamw\"
[data]
kind = \"text\"
path = \"novel.txt\"
";

/// The smallest file of a network for images.
pub(super) const IMAGES: &str = "
[model]
kind = \"cnn\"
image = [1, 28, 28]
classes = 10
[optimizer]
kind = \"sgd\"
[data]
kind = \"mnist\"
path = \"data\"
";

fn parse(text: &str, overrides: &[&str]) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("/cluster/mnist.toml"), overrides)
}

fn messages(text: &str, overrides: &[&str]) -> Vec<String> {
    match parse(text, overrides) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.problems.into_iter().map(|problem| problem.message).collect(),
    }
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let config = parse(MINIMAL, &[]).unwrap();
    assert_eq!(config.job, Job { name: "job".into(), trust_domain: "testudo.local".into() });
    assert_eq!((config.cluster.workers, config.cluster.servers), (1, 1));
    assert_eq!(config.network.listen.to_string(), "127.0.0.1:0");
    assert_eq!(config.model, Model::Mlp { inputs: 784, hidden: vec![512, 512], classes: 10 });
    assert_eq!(config.optimizer.kind, "momentum");
    assert_eq!(config.optimizer.own, [("momentum".into(), 0.9), ("weight_decay".into(), 0.0)].into());
    assert_eq!(config.transport.slice_bytes, 1 << 20);
    assert_eq!(config.transport.key_exchange, KeyExchange::PqOnly);
    assert_eq!(config.security.files, None);
    assert!(config.checkpoint.export);
    let Data::Mnist { path, mean, std } = config.data else { panic!("MNIST") };
    assert_eq!((path, mean, std), (PathBuf::from("/cluster/data/mnist"), 0.1307, 0.3081));
    assert_eq!(config.output.dir, std::env::current_dir().unwrap().join("runs"));
}

/// Invariant 3, and invariant 3 of `keys`: the fields are the keys.
#[test]
fn the_effective_file_says_the_same() {
    let kinds = [
        (MINIMAL, vec![]),
        (FULL, vec![]),
        (MINIMAL, vec!["optimizer.kind=sgd", "schedule.kind=linear", "training.max_steps=1"]),
        (MINIMAL, vec!["schedule.kind=step", "schedule.every_steps=9", "training.precision=bf16"]),
        (MINIMAL, vec!["schedule.kind=step", "schedule.every_steps=9", "cluster.max_workers=3"]),
        (MINIMAL, vec!["transport.push_codec=bf16", "transport.pull_codec=int8"]),
        (
            MINIMAL,
            vec!["transport.push_codec=topk", "checkpoint.every_steps=5", "transport.push_fraction=0.1"],
        ),
        (MINIMAL, vec!["transport.push_codec=1bit"]),
        (MINIMAL, vec!["transport.push_codec=2bit", "transport.push_threshold=2"]),
        (MINIMAL, vec!["schedule.kind=onecycle", "servers.device=cuda:1", "workers.device=auto"]),
        (MINIMAL, vec!["training.aggregation=trimmed_mean", "cluster.workers=4"]),
        (
            MINIMAL,
            vec!["training.aggregation=geometric_median", "cluster.workers=4", "training.clip_norm=0.5"],
        ),
        (MINIMAL, vec!["training.aggregation=norm_bound", "cluster.workers=4", "training.norm_bound=1"]),
        (
            MINIMAL,
            vec!["training.aggregation=centred_clipping", "cluster.workers=4", "training.clip_radius=2.5"],
        ),
        (MINIMAL, vec!["optimizer.kind=nesterov", "optimizer.learning_rate=1e-300"]),
        (MINIMAL, vec!["optimizer.kind=adam", "optimizer.epsilon=0.1", "data.path=here"]),
        (MINIMAL, vec!["optimizer.no_decay=[\"*.bias\"]", "optimizer.weight_decay=0.1"]),
        (MINIMAL, vec!["optimizer.kind=nadam", "optimizer.constants.momentum_decay=0.1"]),
        (
            MINIMAL,
            vec!["optimizer.kind=program", "optimizer.learning_rate=1", "optimizer.program=w = w - lr * g"],
        ),
        (super::ssh::tests::FILE, vec![]),
        (IMAGES, vec![]),
        (IMAGES, vec!["model.kind=resnet18", "model.image=[3, 32, 32]"]),
        (TEXT, vec![]),
        (TEXT, vec!["data.stride=7", "model.norm=rms", "model.attention_dropout=0.25", "model.layers=2"]),
    ];
    let mut written = BTreeSet::new();
    for (text, overrides) in kinds {
        let config = parse(text, &overrides).unwrap();
        let effective = config.to_toml().unwrap();
        let again = Config::parse(&effective, Path::new("/elsewhere/run/cluster.toml"), &[] as &[&str]);
        assert_eq!(again.unwrap_or_else(|errors| panic!("{errors}\n{effective}")), config);
        collect("", &effective.parse().unwrap(), &mut written);
    }
    let known: BTreeSet<_> = keys::all().map(|key| key.path.to_string()).collect();
    let written: BTreeSet<_> =
        written.iter().map(|path| keys::find(path).unwrap().path.to_string()).collect();
    assert_eq!(written, known);
}

fn collect(prefix: &str, table: &toml::Table, into: &mut BTreeSet<String>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(inner) => collect(&path, inner, into),
            _ => _ = into.insert(path),
        }
    }
}

#[test]
fn texts_have_the_documented_defaults_and_what_does_not_fit_is_refused() {
    let config = parse(TEXT, &[]).unwrap();
    let (layers, heads, norm, dropout) = (4, 4, testudo_kernels::Norm::Layer, 0.0);
    let (context, width, attention_dropout) = (128, 128, dropout);
    assert_eq!(config.model, Model::Gpt { context, layers, heads, width, dropout, attention_dropout, norm });
    let path = PathBuf::from("/cluster/novel.txt");
    assert_eq!(config.data, Data::Text { path, stride: None, test_fraction: 0.1 });
    let bits = config.data.bits_per_byte(std::f64::consts::LN_2);
    assert!(bits.is_some_and(|bits| (bits - 1.0).abs() < 1e-15));
    for (text, set, why) in [
        (TEXT, "model.heads=3", "does not divide `model.width` (128): use for instance a width of 129"),
        (TEXT, "data.kind=mnist", "continues texts: it needs `data.kind = \"text\"`"),
        (MINIMAL, "data.kind=text", "classifies examples: it needs `data.kind = \"mnist\"`"),
        (TEXT, "model.inputs=784", "model.inputs"),
        (TEXT, "data.test_fraction=1.0", "data.test_fraction"),
    ] {
        let found = messages(text, &[set]);
        assert!(found.iter().any(|message| message.contains(why)), "{set}: {found:?}");
    }
    assert_eq!(parse(MINIMAL, &[]).unwrap().data.bits_per_byte(1.0), None);
}

#[test]
fn full_files_reach_every_field() {
    let config = parse(FULL, &[]).unwrap();
    assert_eq!(config.training.seed, i64::MAX as u64);
    assert_eq!(config.training.max_steps, Some(60));
    assert_eq!((config.training.step_examples(), config.training.step_shards()), (192, 16));
    let training = &config.training;
    assert_eq!((training.evaluate_every, training.patience, training.min_improvement), (20, Some(3), 0.01));
    assert_eq!(config.training.determinism, Determinism::Relaxed);
    let constants = [("beta1", 0.8), ("beta2", 0.95), ("epsilon", 1e-6), ("weight_decay", 0.05)];
    assert_eq!(config.optimizer.own, constants.map(|(name, value)| (name.into(), value)).into());
    assert_eq!(config.schedule, Schedule::Cosine { warmup_steps: 10, final_fraction: 0.1 });
    assert_eq!(config.network.scheduler_listen().to_string(), "0.0.0.0:7000");
    assert_eq!(config.network.server_listen(1).to_string(), "10.0.0.2:7001");
    assert_eq!(config.network.server_advertise(1), Some("[2001:db8::1]:7001"));
    let files = config.security.files.unwrap();
    assert_eq!(files.ca, Path::new("/cluster/pki/ca.pem"));
    assert_eq!(files.key, Path::new("/etc/testudo/key.pem"));
    assert!(!config.checkpoint.export);
    let telemetry = &config.telemetry;
    assert_eq!(telemetry.endpoint.as_deref(), Some("https://127.0.0.1:4317"));
    assert_eq!((telemetry.protocol.as_str(), telemetry.sample_every), ("grpc", 10));
    assert_eq!((telemetry.metrics_interval_ms, telemetry.prometheus_port), (500, Some(0)));
    let file = |name: &str| Some(Path::new("/cluster").join(name));
    assert_eq!(telemetry.certificate, file("telemetry-ca.pem"));
    assert_eq!((telemetry.tensorboard, telemetry.histogram_every, telemetry.counted_every()), (false, 7, 0));
}

/// The whole text that a person sees.
#[test]
fn problems_are_shown_all_at_once_with_their_lines() {
    let text = "\
[cluster]
workers = 0
[training]
sede = 1
batch_size = 30
[model]
kind = \"mlp\"
inputs = 784
classes = 10
[data]
kind = \"mnist\"
path = \"d\"
";
    let errors = parse(text, &["training.logical_shards=4", "output.dri=x"]).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "\
/cluster/mnist.toml:2:11: `cluster.workers`: found the integer 0; allowed: an integer from 1 to 4096
  |
2 | workers = 0
  |           ^
/cluster/mnist.toml:4:1: unknown key `training.sede`; did you mean `training.seed`?
  |
4 | sede = 1
  | ^^^^
/cluster/mnist.toml:5:14: `training.batch_size` is 30, no multiple of `training.logical_shards` (4): use for instance 32
  |
5 | batch_size = 30
  |              ^^
--set output.dri=x: unknown key `output.dri`; did you mean `output.dir`?"
    );
}

/// Heartbeats as often as a cluster file may ask for are heard at once: whoever is late over and over is cut off as a flood.
#[test]
fn the_quickest_heartbeats_are_no_flood() {
    let quickest = keys::all().find(|key| key.path == "cluster.heartbeat_ms").unwrap();
    let super::keys::Rule::Integer { min, .. } = quickest.rule else { panic!("milliseconds are numbers") };
    let policy = testudo_actors::policy::policy(1 << 20).unwrap();
    let rate = policy
        .rule(<testudo_actors::message::Heartbeat as testudo_actors::message::Body>::KIND)
        .unwrap()
        .rate
        .unwrap();
    assert!(
        u64::from(rate.per_second) >= 2 * 1000 / u64::try_from(min).unwrap(),
        "{rate:?} for every {min} ms"
    );
}

/// A value that was refused does not start a second complaint.
#[test]
fn refused_values_are_reported_once() {
    assert_eq!(messages(MINIMAL, &["training.logical_shards=0", "cluster.workers=3"]).len(), 1);
    assert_eq!(messages(MINIMAL, &["cluster.heartbeat_ms=9", "transport.idle_timeout_ms=150"]).len(), 1);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Config::load(&path, &[] as &[&str]).unwrap_err().to_string()
    };
    let missing = Config::load(&folder.path().join("none.toml"), &[] as &[&str]).unwrap_err().to_string();
    assert!(missing.contains("none.toml: cannot read the cluster file"), "{missing}");
    assert!(load("latin1.toml", b"[job]\nname = \"\xe4\"\n").contains("line 2"));
    assert!(load("huge.toml", &vec![b'#'; (FILE_MOST + 1) as usize]).contains("no cluster file"));
    assert!(Config::load(folder.path(), &[] as &[&str]).unwrap_err().to_string().contains("cannot read"));
}

/// Invariant 4: damage of every kind gives problems, not panics.
#[test]
fn damaged_files_never_panic() {
    for text in [MINIMAL, FULL] {
        for cut in (0..text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            let _ = parse(&text[..cut], &[]);
        }
        for (index, _) in text.char_indices().step_by(3) {
            for with in ["\"", "[", "]", "=", "\n", "{", "\u{0}", "é", "'''", "."] {
                let mut damaged = text.to_string();
                damaged.insert_str(index, with);
                if let Err(errors) = parse(&damaged, &[]) {
                    assert!(!errors.to_string().is_empty());
                }
            }
        }
    }
    let deep = format!("job.name = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(&deep, &[]).is_err());
    let deep = format!("{}1", "a.".repeat(50_000));
    assert!(parse(&format!("{deep} = 1"), &[]).is_err());
}
