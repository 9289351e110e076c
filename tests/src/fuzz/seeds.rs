//! What the fuzzers start from: real encodings, so that they need not find the formats by chance.

use std::path::Path;
use std::time::Duration;

use testudo_actors::SignedJob;
use testudo_actors::audit::Refusal;
use testudo_actors::histogram::Tally;
use testudo_actors::message::{
    AuditHead, Body, Contributions, Countersigned, Evaluated, Given, HeadName, Heartbeat, Histograms, Join,
    Load, MemberRole, Membership, NewCertificate, NodeDone, NodeLoss, ParameterPieces, Phase, Pull, Push,
    PushRefusal, PushRefused, RefusalReport, ServerMember, StatusReport, StepTimes, TensorHistograms,
    Testimony, Welcome, Witnessed, WorkerMember,
};
use testudo_actors::params_hash::Piece;
use testudo_actors::placement::SliceId;
use testudo_actors::tree::Node;
use testudo_actors::witness::Key;
use testudo_transport::{Address, Identity, JobCa, Role, encode};

use super::{audit, envelope, files, id, papers, program, sealed, sealer};
use crate::toy;

/// A seed's name and bytes.
pub type Seed = (&'static str, Vec<u8>);

pub(super) const VALIDITY: Duration = Duration::from_secs(3600);

/// The seeds of a target; none for a name that is no target's.
#[must_use]
pub fn seeds(target: &str) -> Vec<Seed> {
    match target {
        "frame" => frames(),
        "header" => headers(),
        "config" => configs(),
        "codecs" => codecs(),
        "certificate" => certificates(),
        "checkpoint" => files::checkpoints(),
        "bundle" => files::bundles(),
        "audit" => audit::logs(),
        "crl" => papers::crls(),
        "request" => papers::requests(),
        "token" => papers::tokens(),
        "chain" => papers::chains(),
        "program" => program::programs(),
        _ => Vec::new(),
    }
}

fn node() -> Node {
    Node { first: 4, leaves: 4 }
}

fn slice() -> SliceId {
    SliceId { parameter: 1, index: 2 }
}

fn operator() -> (Identity, Identity) {
    let ca = JobCa::create("t", "j", VALIDITY).unwrap();
    let operator = ca.issue(&id(Role::Operator, "0"), VALIDITY).unwrap();
    (ca.issue(&id(Role::Worker, "0"), VALIDITY).unwrap(), operator)
}

fn signed_job() -> SignedJob {
    let (_, operator) = operator();
    let mut job = toy::job(1, 1, 1, 1);
    (job.trust_domain, job.name) = ("t".to_owned(), "j".to_owned());
    SignedJob::sign(&job, &operator).unwrap()
}

/// A kind and an encoded body.
fn bodies() -> Vec<(&'static str, u8, Vec<u8>)> {
    fn of<B: Body>(name: &'static str, body: &B) -> (&'static str, u8, Vec<u8>) {
        (name, B::KIND, body.encode())
    }
    let times = StepTimes {
        compute_us: 1,
        send_us: 2,
        wait_us: 300,
        ready_ago_us: 400,
        began_ago_us: 90,
        said_at_us: 70_000,
    };
    let loss = NodeLoss { node: node(), loss_sum: 0.5, correct: 1, examples: 2 };
    let worker = MemberRole::Worker;
    vec![
        of("push", &Push { epoch: 3, step: 700, slice: slice(), node: node(), codec: 0 }),
        of("pull", &Pull { slice: slice(), version: 70_000, exact: false }),
        of("push-refused", &PushRefused { reason: PushRefusal::WrongLength { expected: 4, found: 5 } }),
        of(
            "join",
            &Join {
                release: "0.1.0".into(),
                fingerprint: "x".into(),
                address: Some("[::1]:1".into()),
                commitment: [7; 32],
            },
        ),
        of("heartbeat", &Heartbeat { step: 9, waiting: None, load: Load::default(), served: None }),
        of("ended", &testudo_actors::message::Ended { role: worker, index: 3, exit: "signal 9".into() }),
        of(
            "membership",
            &Membership {
                epoch: 1,
                servers: vec![ServerMember { index: 0, address: "127.0.0.1:1".into() }],
                workers: vec![WorkerMember { index: 1, incarnation: 2, commitment: [7; 32], start: 0 }],
                leases: Vec::new(),
                until: 4,
            },
        ),
        of("node-done", &node_done(loss, times)),
        of("welcome", &Welcome { incarnation: 1, job: signed_job() }),
        of("report", &report()),
        of("pieces", &pieces()),
        of("histograms", &histograms()),
        of("witnessed", &Witnessed { key: Key::known([9; 32]) }),
        of("testimony", &Testimony { step: 700, node: node() }),
        of("given", &Given { version: 70_000 }),
        of("contributions", &Contributions { step: 5, count: 9, digest: [1; 32], signature: vec![2; 71] }),
        of("audit-head", &AuditHead { head: head() }),
        of("countersigned", &Countersigned { head: head(), before: Some(head()), signature: vec![3; 70] }),
        of("new-certificate", &NewCertificate { certificate: operator().1.certificate_der().to_vec() }),
        of("refusals", &refusals()),
    ]
}

fn head() -> HeadName {
    HeadName { record: 700, hash: [6; 32] }
}

fn refusals() -> RefusalReport {
    let line = Refusal { cause: "mac".into(), who: "worker/1".into(), count: 3 };
    RefusalReport { refused: vec![line.clone(), line] }
}

fn pieces() -> ParameterPieces {
    let piece = Piece { slice: slice(), edges: vec![1, 2, 3], nodes: vec![[4; 32], [5; 32]] };
    ParameterPieces { version: 300, pieces: vec![piece.clone(), piece] }
}

fn histograms() -> Histograms {
    let mut tally = Tally::default();
    tally.count([0.5, -2.0, 0.0, 1e-30]);
    let (gradient, values) = (Some(tally.histogram()), tally.histogram());
    Histograms { version: 300, tensors: vec![TensorHistograms { parameter: 1, gradient, values }] }
}

fn node_done(loss: NodeLoss, times: StepTimes) -> NodeDone {
    NodeDone {
        step: 3,
        nodes: vec![loss, loss],
        times,
        bytes_sent: 1 << 40,
        bytes_received: 7,
        pushed: Default::default(),
    }
}

fn report() -> StatusReport {
    StatusReport {
        phase: Phase::Training,
        steps_done: 3,
        steps: 10,
        epoch: 0,
        epochs: 2,
        loss: Some(0.25),
        evaluated: Some(Evaluated { step: 2, loss: 0.5, accuracy: 0.75 }),
        samples_per_second: 1e4,
        stalled: Some("worker/1".into()),
        paused: true,
        stopping: false,
        membership_epoch: 2,
        until: 7,
        workers_lost: 1,
        workers_wanted: 2,
        joins_refused: 0,
        operators: 1,
        load: Load::default(),
        nodes: Vec::new(),
        timeline: None,
        outcome: None,
    }
}

fn frames() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let whole = |pieces: u8, messages: Vec<(u8, Vec<u8>, Vec<u8>)>| {
        let mut sealer = sealer();
        let mut bytes = vec![pieces];
        for (kind, body, payload) in messages {
            let header = [encode(&envelope()), body].concat();
            bytes.extend(sealed(&mut sealer, kind, &header, &payload));
        }
        bytes
    };
    let push = || (Push::KIND, Push { epoch: 1, step: 2, slice: slice(), node: node(), codec: 0 }.encode());
    let (kind, body) = push();
    seeds.push(("push", whole(255, vec![(kind, body.clone(), vec![7; 16])])));
    seeds.push(("two-pushes", whole(13, vec![(kind, body.clone(), vec![1; 3]), (kind, body, Vec::new())])));
    let pull = Pull { slice: slice(), version: 3, exact: false }.encode();
    seeds.push(("pulls-byte-by-byte", whole(1, vec![(Pull::KIND, pull, Vec::new()); 3])));
    seeds.push(("announced-2-to-the-64", {
        let mut bytes = whole(255, vec![(Push::KIND, Vec::new(), Vec::new())]);
        bytes[9..17].fill(0xff);
        bytes
    }));
    seeds
}

fn headers() -> Vec<Seed> {
    let bare = bodies().into_iter().map(|(name, kind, body)| (name, [vec![kind], body].concat()));
    let (_, kind, body) = bodies().swap_remove(0);
    bare.chain([("enveloped", [vec![kind], encode(&envelope()), body].concat())]).collect()
}

fn configs() -> Vec<Seed> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mnist = std::fs::read(examples.join("mnist.toml")).unwrap();
    let adam = "[job]\nname = \"x\"\n[optimizer]\nkind = \"adam\"\nbeta1 = 0.9\nlearning_rate = 1e-3\n\
                [schedule]\nkind = \"cosine\"\nwarmup_steps = 5\n[network]\nlisten = \"[::1]:0\"\n";
    let wrong = "[job]\nnam = 1\n[model]\nkind = \"mpl\"\nhidden = [0, \"a\"]\n[[x]]\ny.z = {a = 1}\n";
    vec![("mnist", mnist), ("adam", adam.into()), ("wrong", wrong.into())]
}

fn codecs() -> Vec<Seed> {
    let with = |id: u8, bytes: &[u8]| [&[id], bytes].concat();
    let address = Address::from(id(Role::Worker, "0"));
    vec![
        ("f32", with(0, bytemuck::cast_slice(&[1.0_f32, f32::NAN, -0.0, 1e-45]))),
        ("f16", with(1, &[0, 0x3c, 0xff, 0x7b, 1, 0x80, 0, 0x7c])),
        ("bf16", with(2, &[0x80, 0x3f, 0xc0, 0x7f, 1, 0])),
        ("int8", with(3, &[0, 0, 0, 0x3f, 127, 0x81, 0, 41])),
        ("2bit", with(4, &[0xe0, 0xc8, 0, 0, 0x8c, 0, 0, 0])),
        ("1bit", with(5, &[0x90, 0, 0, 0xff])),
        ("topk", with(6, bytemuck::cast_slice(&[1_u32, 5, 0xc000_0000, 0xc040_0000]))),
        ("signed-job", with(9, &signed_job().to_bytes())),
        ("address", with(9, &encode(&address))),
        ("prelude", with(9, &frames().swap_remove(0).1[1..])),
    ]
}

fn certificates() -> Vec<Seed> {
    let (node, operator) = operator();
    vec![
        ("leaf-der", node.certificate_der().to_vec()),
        ("operator-der", operator.certificate_der().to_vec()),
        ("leaf-pem", node.certificate_pem().as_bytes().to_vec()),
        ("ca-pem", node.ca_pem().as_bytes().to_vec()),
        ("spiffe", b"spiffe://t/job/j/worker/3".to_vec()),
        ("spiffe-actor", b"spiffe://t/job/j/actor/metrics".to_vec()),
    ]
}
