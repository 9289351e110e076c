//! The table itself. See [`Key`] for what a row says; rows stand in the order of the reference page, and a
//! selector stands before the keys that depend on it.

use super::super::check;
use super::{Absent, Applies, Base, Key, Rule, limits};

/// The most any count of milliseconds may be: a day.
const DAY_MS: i64 = 86_400_000;
const ADDRESS: Rule =
    Rule::Text { check: check::listen, allowed: "IP address and port; port 0 lets the system choose" };
const DIALED: Rule =
    Rule::Text { check: check::dial, allowed: "host name or IP address, and a port that is not 0" };
const RECIPIENT: Rule =
    Rule::Text { check: check::recipient, allowed: "age recipient, as `age-keygen -y` prints it" };
const POSITIVE: Rule = Rule::Number { min: 0.0, above: true, max: f64::MAX, below: false };
const NOT_NEGATIVE: Rule = Rule::Number { min: 0.0, above: false, max: f64::MAX, below: false };
const BETA: Rule = Rule::Number { min: 0.0, above: false, max: 1.0, below: true };
const FRACTION: Rule = Rule::Number { min: 0.0, above: false, max: 1.0, below: false };
const WIDTH: Rule = Rule::Integer { min: 1, max: 1 << 24 };
/// More servers or workers than any cluster this version was tried on, by far.
const NODES: Rule = Rule::Integer { min: 1, max: 4096 };

const OPTIMIZERS: &[&str] = &["sgd", "momentum", "nesterov", "adam", "adamw"];
const MOMENTA: Option<Applies> =
    Some(Applies { selector: "optimizer.kind", kinds: &["momentum", "nesterov"] });
const ADAMS: Option<Applies> = Some(Applies { selector: "optimizer.kind", kinds: &["adam", "adamw"] });
const ROBUST: Option<Applies> =
    Some(Applies { selector: "training.aggregation", kinds: &["median", "trimmed_mean"] });
const DECAYING: Option<Applies> =
    Some(Applies { selector: "schedule.kind", kinds: &["cosine", "linear", "onecycle"] });
const WARMING: Option<Applies> =
    Some(Applies { selector: "schedule.kind", kinds: &["cosine", "linear", "step"] });
const STEPPED: Option<Applies> = Some(Applies { selector: "schedule.kind", kinds: &["step"] });
const CYCLE: Option<Applies> = Some(Applies { selector: "schedule.kind", kinds: &["onecycle"] });

/// Every key, in the order of the reference page.
pub static KEYS: &[Key] = &[
    Key {
        path: "job.name",
        rule: Rule::Text {
            check: check::name,
            allowed: "1 to 63 of `a-z A-Z 0-9 . _ -`, not starting with a dot",
        },
        absent: Absent::Is("\"job\""),
        applies: None,
        doc: "Names the job: part of every node's identity and of the run directory's name.",
    },
    Key {
        path: "job.trust_domain",
        rule: Rule::Text { check: check::trust_domain, allowed: "1 to 255 of `a-z 0-9 . _ -`" },
        absent: Absent::Is("\"testudo.local\""),
        applies: None,
        doc: "The SPIFFE trust domain of every identity of the job.",
    },
    Key {
        path: "cluster.workers",
        rule: NODES,
        absent: Absent::Is("1"),
        applies: None,
        doc: "How many workers compute gradients; at most `training.logical_shards`. The result does not depend on it, but for the robust rules of `training.aggregation`, under which it is the number of votes.",
    },
    Key {
        path: "cluster.servers",
        rule: NODES,
        absent: Absent::Is("1"),
        applies: None,
        doc: "How many servers hold and update parameters. The result does not depend on it.",
    },
    Key {
        path: "cluster.scheduler",
        rule: DIALED,
        absent: Absent::Unset("a local run fills it in"),
        applies: None,
        doc: "Where nodes find the scheduler.",
    },
    Key {
        path: "cluster.placement",
        rule: Rule::Choice(&["dedicated"]),
        absent: Absent::Is("\"dedicated\""),
        applies: None,
        doc: "Who shares a process: with `dedicated`, every server and every worker is a process of its own.",
    },
    Key {
        path: "cluster.heartbeat_ms",
        // More than twice as long as lies between messages that are heard at once (`actors/src/policy.rs`).
        rule: Rule::Integer { min: 50, max: DAY_MS },
        absent: Absent::Is("500"),
        applies: None,
        doc: "Milliseconds between a node's heartbeats to the scheduler.",
    },
    Key {
        path: "cluster.heartbeat_timeout_ms",
        rule: Rule::Integer { min: 100, max: DAY_MS },
        absent: Absent::Is("5000"),
        applies: None,
        doc: "Milliseconds of silence after which a node counts as dead; at least twice `cluster.heartbeat_ms`.",
    },
    Key {
        path: "network.listen",
        rule: ADDRESS,
        absent: Absent::Is("\"127.0.0.1:0\""),
        applies: None,
        doc: "Address the scheduler and the servers bind unless the two sections below say otherwise. Nothing binds every interface unless this file says so.",
    },
    Key {
        path: "network.mtu",
        rule: Rule::Integer { min: 1200, max: 65_527 },
        absent: Absent::Is("65527"),
        applies: None,
        doc: "Largest UDP payload, in bytes, that path discovery may try. Loopback takes 65527, jumbo Ethernet 8952, plain Ethernet 1452; what the path does not carry is not used.",
    },
    limits::ALLOW,
    Key {
        path: "network.scheduler.listen",
        rule: ADDRESS,
        absent: Absent::Unset("`network.listen`"),
        applies: None,
        doc: "Address the scheduler binds.",
    },
    Key {
        path: "network.scheduler.advertise",
        rule: DIALED,
        absent: Absent::Unset("the bound address"),
        applies: None,
        doc: "Address at which others reach the scheduler, where it is not the bound one.",
    },
    Key {
        path: "network.servers.listen",
        rule: Rule::List { each: &ADDRESS, most: 4096 },
        absent: Absent::Is("[]"),
        applies: None,
        doc: "Addresses the servers bind, by index; none, or one for each of `cluster.servers`.",
    },
    Key {
        path: "network.servers.advertise",
        rule: Rule::List { each: &DIALED, most: 4096 },
        absent: Absent::Is("[]"),
        applies: None,
        doc: "Addresses at which others reach the servers, by index; none, or one for each of `cluster.servers`.",
    },
    Key {
        path: "training.seed",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("42"),
        applies: None,
        doc: "Seeds the initial parameters and every epoch's shuffle. It is no secret and secures nothing.",
    },
    Key {
        path: "training.epochs",
        rule: Rule::Integer { min: 1, max: 1_000_000 },
        absent: Absent::Is("1"),
        applies: None,
        doc: "Passes over the training set.",
    },
    Key {
        path: "training.batch_size",
        rule: Rule::Integer { min: 1, max: 1 << 24 },
        absent: Absent::Is("128"),
        applies: None,
        doc: "Examples a step, over all workers together; a multiple of `training.logical_shards`.",
    },
    Key {
        path: "training.logical_shards",
        rule: Rule::Integer { min: 1, max: 1 << 16 },
        absent: Absent::Is("4"),
        applies: None,
        doc: "Parts a batch is cut into. Gradients belong to these parts and not to workers, which is why the result does not depend on how many workers there are.",
    },
    Key {
        path: "training.aggregation",
        rule: Rule::Choice(&["mean", "median", "trimmed_mean"]),
        absent: Absent::Is("\"mean\""),
        applies: None,
        doc: "How the workers' contributions become one gradient. Under `median` and `trimmed_mean`, every worker has one vote, and a minority that lies cannot bend the result: see [aggregation](aggregation.md). They need `training.logical_shards` to equal `cluster.workers`.",
    },
    Key {
        path: "training.hostile_workers",
        rule: Rule::Integer { min: 1, max: 2047 },
        absent: Absent::Is("1"),
        applies: ROBUST,
        doc: "Votes that may be lies: workers that may be hostile, and workers whose death is to be borne, together; fewer than half of `cluster.workers`. `trimmed_mean` drops as many of each coordinate's votes at either end.",
    },
    Key {
        path: "training.max_steps",
        rule: Rule::Integer { min: 1, max: i64::MAX },
        absent: Absent::Unset("run every epoch"),
        applies: None,
        doc: "Stops the run after this many steps. No schedule reads it: the steps that are taken are those of the full run.",
    },
    Key {
        path: "training.determinism",
        rule: Rule::Choice(&["strict", "relaxed"]),
        absent: Absent::Is("\"strict\""),
        applies: None,
        doc: "With `strict`, a node whose arithmetic could give other bits is refused; with `relaxed`, mixed processors train together and runs may differ in the last bits.",
    },
    Key {
        path: "model.kind",
        rule: Rule::Choice(&["mlp"]),
        absent: Absent::Required,
        applies: None,
        doc: "The network: `mlp` is fully connected layers with ReLU between them.",
    },
    Key {
        path: "model.inputs",
        rule: WIDTH,
        absent: Absent::Required,
        applies: None,
        doc: "Numbers in one example (784 for MNIST).",
    },
    Key {
        path: "model.hidden",
        rule: Rule::List { each: &WIDTH, most: 64 },
        absent: Absent::Is("[512, 512]"),
        applies: None,
        doc: "Widths of the hidden layers, first to last; `[]` makes a linear classifier.",
    },
    Key {
        path: "model.classes",
        rule: Rule::Integer { min: 2, max: 1 << 24 },
        absent: Absent::Required,
        applies: None,
        doc: "Classes to tell apart (10 for MNIST); labels are 0 up to one less.",
    },
    Key {
        path: "optimizer.kind",
        rule: Rule::Choice(OPTIMIZERS),
        absent: Absent::Is("\"momentum\""),
        applies: None,
        doc: "The update rule, each as PyTorch defines it.",
    },
    Key {
        path: "optimizer.learning_rate",
        rule: POSITIVE,
        absent: Absent::ByKind {
            selector: "optimizer.kind",
            cases: &[("adam", "0.001"), ("adamw", "0.001")],
            otherwise: "0.1",
        },
        applies: None,
        doc: "The learning rate before the schedule's factor.",
    },
    Key {
        path: "optimizer.weight_decay",
        rule: NOT_NEGATIVE,
        absent: Absent::ByKind { selector: "optimizer.kind", cases: &[("adamw", "0.01")], otherwise: "0.0" },
        applies: None,
        doc: "Weight decay: decoupled for `adamw`, added to the gradient for the others.",
    },
    Key {
        path: "optimizer.momentum",
        rule: BETA,
        absent: Absent::Is("0.9"),
        applies: MOMENTA,
        doc: "Decay of the velocity.",
    },
    Key {
        path: "optimizer.beta1",
        rule: BETA,
        absent: Absent::Is("0.9"),
        applies: ADAMS,
        doc: "Decay of the gradient's running mean.",
    },
    Key {
        path: "optimizer.beta2",
        rule: BETA,
        absent: Absent::Is("0.999"),
        applies: ADAMS,
        doc: "Decay of the squared gradient's running mean.",
    },
    Key {
        path: "optimizer.epsilon",
        rule: POSITIVE,
        absent: Absent::Is("1e-8"),
        applies: ADAMS,
        doc: "Added to the denominator.",
    },
    Key {
        path: "schedule.kind",
        rule: Rule::Choice(&["constant", "cosine", "linear", "step", "onecycle"]),
        absent: Absent::Is("\"constant\""),
        applies: None,
        doc: "How the learning rate changes over the planned steps (`training.epochs` of them): `cosine` and `linear` fall to `final_fraction` after a warm-up (a constant rate after a warm-up is `linear` with `final_fraction = 1`), `step` falls by `gamma` every `every_steps`, `onecycle` rises and falls by half a cosine each (Smith and Topin, 2019; PyTorch's `OneCycleLR`).",
    },
    Key {
        path: "schedule.warmup_steps",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("0"),
        applies: WARMING,
        doc: "Steps over which the learning rate first rises from 0.",
    },
    Key {
        path: "schedule.final_fraction",
        rule: FRACTION,
        absent: Absent::Is("0.0"),
        applies: DECAYING,
        doc: "The last step's learning rate as a fraction of `optimizer.learning_rate`. PyTorch's `OneCycleLR` ends at `4e-6` of it.",
    },
    Key {
        path: "schedule.every_steps",
        rule: Rule::Integer { min: 1, max: i64::MAX },
        absent: Absent::Required,
        applies: STEPPED,
        doc: "Steps between two falls of the learning rate.",
    },
    Key {
        path: "schedule.gamma",
        rule: FRACTION,
        absent: Absent::Is("0.1"),
        applies: STEPPED,
        doc: "What is left of the learning rate at each fall.",
    },
    Key {
        path: "schedule.rise_fraction",
        rule: FRACTION,
        absent: Absent::Is("0.3"),
        applies: CYCLE,
        doc: "The part of the steps over which the learning rate rises.",
    },
    Key {
        path: "schedule.start_fraction",
        rule: FRACTION,
        absent: Absent::Is("0.04"),
        applies: CYCLE,
        doc: "The first step's learning rate as a fraction of `optimizer.learning_rate`.",
    },
    Key {
        path: "data.kind",
        rule: Rule::Choice(&["mnist"]),
        absent: Absent::Required,
        applies: None,
        doc: "The data set's format: `mnist` is four IDX files, gzipped or not.",
    },
    Key {
        path: "data.path",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Required,
        applies: None,
        doc: "The folder that holds the data set.",
    },
    Key {
        path: "data.mean",
        rule: FRACTION,
        absent: Absent::Is("0.1307"),
        applies: None,
        doc: "Subtracted from each pixel (scaled to 0 to 1); the default is the mean of MNIST's training pixels.",
    },
    Key {
        path: "data.std",
        rule: POSITIVE,
        absent: Absent::Is("0.3081"),
        applies: None,
        doc: "Divides each pixel after that; the default is the standard deviation of MNIST's training pixels.",
    },
    Key {
        path: "transport.slice_bytes",
        rule: Rule::Integer { min: 64, max: 16 << 20 },
        absent: Absent::Is("1048576"),
        applies: None,
        doc: "Bytes of f32 in a slice at most, a multiple of 4: the unit in which tensors travel and are updated.",
    },
    Key {
        path: "transport.lanes",
        rule: Rule::Integer { min: 1, max: 16 },
        absent: Absent::Is("2"),
        applies: None,
        doc: "Streams a connection opens for each priority class; a lost packet holds up one stream only.",
    },
    Key {
        path: "transport.max_in_flight_bytes",
        rule: Rule::Integer { min: 1 << 16, max: 1 << 32 },
        absent: Absent::Is("67108864"),
        applies: None,
        doc: "Bytes that one peer may have on their way to a node that has not taken them yet: its credit, and the memory it can occupy. At least four thirds of `transport.slice_bytes` and 4 KiB.",
    },
    Key {
        path: "transport.max_in_flight_messages",
        rule: Rule::Integer { min: 16, max: 1 << 20 },
        absent: Absent::Is("4096"),
        applies: None,
        doc: "Messages that one peer may have on their way to a node that has not taken them yet.",
    },
    Key {
        path: "transport.key_exchange",
        rule: Rule::Choice(&["pq-only", "pq-first"]),
        absent: Absent::Is("\"pq-only\""),
        applies: None,
        doc: "With `pq-only`, peers agree on keys by X25519MLKEM768 alone; `pq-first` prefers it and takes X25519 from peers that lack it.",
    },
    Key {
        path: "transport.idle_timeout_ms",
        rule: Rule::Integer { min: 100, max: DAY_MS },
        absent: Absent::Is("10000"),
        applies: None,
        doc: "Milliseconds without a packet after which a connection is closed; at least twice `cluster.heartbeat_ms`.",
    },
    limits::HANDSHAKES,
    limits::HANDSHAKES_PER_ADDRESS,
    limits::CONNECTIONS_PER_PEER,
    limits::MEMORY,
    Key {
        path: "security.certificate_hours",
        rule: Rule::Integer { min: 1, max: 8760 },
        absent: Absent::Is("24"),
        applies: None,
        doc: "Life of the certificates that a run issues, in hours.",
    },
    Key {
        path: "security.run_as",
        rule: Rule::Text { check: check::user, allowed: "a user's name or number, not root's" },
        absent: Absent::Is("\"nobody\""),
        applies: None,
        doc: "The user that `testudo run` and `testudo node` go on as when they are started as root: they open their inputs, give the run directory to that user, and become it before a socket opens. Means nothing for others.",
    },
    Key {
        path: "security.ca",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("`--identity` gives it"),
        applies: None,
        doc: "PEM file of the CAs that are trusted, for `testudo node`: the job's own, or a bundle of others (SPIRE's `svid_bundle.pem`), with `job.trust_domain` theirs: see [identities](identities.md). Goes with the next two. `testudo run` makes a CA of its own for each run, and refuses these three.",
    },
    Key {
        path: "security.cert",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("`--identity` gives it"),
        applies: None,
        doc: "PEM file of this node's certificate, and behind it those of the CAs between it and a trusted one, if there are any (SPIRE's `svid.pem`): 4 at most. The file is read again when it changes.",
    },
    Key {
        path: "security.key",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("`--identity` gives it"),
        applies: None,
        doc: "PEM file of this node's private key (PKCS#8, ECDSA on P-256 or P-384; SPIRE's `svid_key.pem`); nobody but its owner may read it.",
    },
    Key {
        path: "security.crl",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("no certificate is revoked"),
        applies: None,
        doc: "File of the CA's list of revoked certificates, PEM or DER, or of several CAs' lists one after the other, for `testudo node` and operators' commands: see [identities](identities.md). It is read again when it changes. Once it has ended, the node trusts nobody until there is a new one.",
    },
    Key {
        path: "security.revocation",
        rule: Rule::Choice(&["required", "short-lived"]),
        absent: Absent::Is("\"required\""),
        applies: None,
        doc: "What of a certificate whose CA has no list of revoked ones, while `security.crl` or an operator has given others': with `required` it is refused, with `short-lived` it is good until it ends. A list that has ended is no list, and refuses either way. Without any list certificates are good until they end.",
    },
    Key {
        path: "checkpoint.export",
        rule: Rule::Boolean,
        absent: Absent::Is("true"),
        applies: None,
        doc: "Whether the final model is written in the clear, to `checkpoint/final/model.safetensors`.",
    },
    Key {
        path: "checkpoint.every_steps",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("0"),
        applies: None,
        doc: "Steps between training checkpoints, which hold everything that training needs to go on; 0 for none on the way. One that falls due while the one before is still being written is skipped, with a notice: training does not wait.",
    },
    Key {
        path: "checkpoint.at_end",
        rule: Rule::Boolean,
        absent: Absent::Is("true"),
        applies: None,
        doc: "Whether a run that is stopped, or has taken its last step, ends with a training checkpoint, so that it can be resumed.",
    },
    Key {
        path: "checkpoint.keep_last",
        rule: Rule::Integer { min: 1, max: 1_000_000 },
        absent: Absent::Is("3"),
        applies: None,
        doc: "How many training checkpoints are kept: with each new one, the oldest beyond that are deleted, which is recorded.",
    },
    Key {
        path: "checkpoint.max_age_hours",
        rule: Rule::Integer { min: 0, max: 1_000_000 },
        absent: Absent::Is("0"),
        applies: None,
        doc: "Hours after which a training checkpoint is deleted when the next is written, but never the last one; 0 for never.",
    },
    Key {
        path: "checkpoint.recipients",
        rule: Rule::List { each: &RECIPIENT, most: 64 },
        absent: Absent::Is("[]"),
        applies: None,
        doc: "age recipients (`age1...`, X25519 public keys) that can read training checkpoints; to resume, give the key with `--identity-file`. Without any, the run makes a key of its own, `checkpoint/key.txt`.",
    },
    Key {
        path: "checkpoint.sign_key",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("a key made for the run, and gone with it"),
        applies: None,
        doc: "PEM file of the private key that signs the final model, as `testudo sign --new-key` makes it; nobody but its owner may read it. `testudo run` alone reads it, no node does.",
    },
    Key {
        path: "audit.hash_every",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("1"),
        applies: None,
        doc: "Steps between hashes of the parameters in the audit log; the first and the last are hashed whatever this is, but for 0: then none are.",
    },
    Key {
        path: "audit.countersign_every",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("100"),
        applies: None,
        doc: "Steps after which every server and worker signs the head of the audit log, so that a log that is cut later has them against it; 0 for never.",
    },
    Key {
        path: "audit.witness_rate",
        rule: FRACTION,
        absent: Absent::Is("0.01"),
        applies: None,
        doc: "Share of the parameters' values whose updates the scheduler computes a second time, from what workers tell it, so that a server that applies wrong updates is named and the run ends; 0 for none. At most 16,384 values are chosen, by chance, anew for each run.",
    },
    Key {
        path: "output.dir",
        rule: Rule::Path { base: Base::Current },
        absent: Absent::Is("\"runs\""),
        applies: None,
        doc: "Folder in which each run makes its own directory, `<job>-<UTC time>`.",
    },
];
