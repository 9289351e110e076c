//! Class G, hostile headers: parts of a checkpoint that hold what no server wrote, encrypted to the run's own recipient and named by a
//! manifest and a head that the run's scheduler has signed. No hash, tag or signature refuses them: what is left is what the
//! part's safetensors header says.
//!
//! The attacker has the run's keys. What has the right form and other values is told by `testudo replay` (`tests/tests/replay.rs`).

use std::io::{Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use testudo::checkpoint::Layout;
use testudo::checkpoint::head::Head;
use testudo::checkpoint::keys::Identities;
use testudo::checkpoint::manifest::{Hex, Manifest, sign};
use testudo::checkpoint::storage::Disk;
use testudo_tests::files::text;
use testudo_transport::Identity;

use crate::artefacts::{Artefacts, Expected};

/// Steps of the run, and between its checkpoints.
const STEPS: u64 = 20;
const EVERY: u64 = 10;

/// A part's header as JSON, and the bytes behind it.
struct Part {
    header: Value,
    values: Vec<u8>,
}

impl Part {
    fn parse(plaintext: &[u8]) -> Part {
        let (length, rest) = plaintext.split_at(8);
        let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
        let (header, values) = rest.split_at(length);
        Part { header: serde_json::from_slice(header).unwrap(), values: values.to_vec() }
    }

    fn to_bytes(&self) -> Vec<u8> {
        framed(self.header.to_string().as_bytes(), &self.values)
    }

    /// One tensor in the place of all, with as many bytes as it says.
    fn one(mut self, name: &str, dtype: &str, shape: &Value, bytes: usize) -> Vec<u8> {
        let metadata = self.header["__metadata__"].take();
        let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": [0, bytes]});
        self.header = json!({"__metadata__": metadata, name: tensor});
        self.values = vec![0; bytes];
        self.to_bytes()
    }
}

fn framed(header: &[u8], values: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, values].concat()
}

/// What a part is made into.
type Change = fn(Part) -> Vec<u8>;

/// By lie: what is made of server 0's part, and words of the refusal.
const LIES: [(&str, Change, &str); 15] = [
    ("a header of 2^64 - 1 bytes", |_| [&[0xff; 8][..], b"{}"].concat(), "header would have"),
    ("a header of 2^40 bytes", |_| [&(1_u64 << 40).to_le_bytes()[..], b"{}"].concat(), "header would have"),
    ("nothing", |_| Vec::new(), "server-0.part.age: failed to fill whole buffer"),
    ("a header that is no JSON", |_| framed(b"{", &[]), "no safetensors header"),
    (
        "a shape whose elements overflow",
        |part| part.one("weights/fc1.weight@0", "F32", &json!([1_u64 << 63, 8]), 16),
        "no safetensors header",
    ),
    (
        "a shape whose bytes overflow",
        |part| part.one("weights/fc1.weight@0", "F32", &json!([1_u64 << 62]), 16),
        "no safetensors header",
    ),
    (
        "a shape of more bytes",
        |part| part.one("weights/fc1.weight@0", "F32", &json!([5]), 16),
        "no safetensors header",
    ),
    (
        "a shape of fewer bytes",
        |part| part.one("weights/fc1.weight@0", "F32", &json!([3]), 16),
        "no safetensors header",
    ),
    (
        "another shape",
        |part| part.one("weights/fc1.weight@0", "F32", &json!([2, 2]), 16),
        "another shape than a slice",
    ),
    ("another type", |part| part.one("weights/fc1.weight@0", "F64", &json!([2]), 16), "is not f32"),
    (
        "elements beyond the parameter",
        |part| part.one("weights/fc1.weight@18446744073709551615", "F32", &json!([4]), 16),
        "reaches beyond its parameter",
    ),
    (
        "an unknown parameter",
        |part| part.one("weights/fc9.weight@0", "F32", &json!([4]), 16),
        "is none of this job's",
    ),
    (
        "a path",
        |part| part.one("weights/../../../etc/passwd@0", "F32", &json!([4]), 16),
        "is none of this job's",
    ),
    (
        "another step's name",
        |mut part| {
            part.header["__metadata__"]["step"] = "1".into();
            part.to_bytes()
        },
        "its step is",
    ),
    ("a tensor too few", |part| part.one("weights/fc1.weight@0", "F32", &json!([4]), 16), "step"),
];

/// Puts what `change` makes of it in the place of server 0's part at `step`, and has the run's scheduler sign that it is so: the
/// manifest, the manifests that follow it, and the head.
fn forge(run: &Path, keys: &Path, step: u64, change: Change) {
    let layout = Layout::new(&run.join("checkpoint"));
    let opens = Identities::load(&keys.join("key.txt")).unwrap();
    let signer = Identity::load(&keys.join("scheduler")).unwrap();
    let path = layout.part(step, 0);
    let plaintext = decrypted(&path, &keys.join("key.txt"));
    let forged = encrypted(&opens, &change(Part::parse(&plaintext)));
    std::fs::write(&path, &forged).unwrap();
    let mut parent = None;
    for at in layout.steps().unwrap().into_iter().filter(|at| *at >= step) {
        let path = layout.manifest(at);
        let mut manifest = Manifest::parse(&path, &std::fs::read(&path).unwrap(), at).unwrap();
        if at == step {
            manifest.parts[0].bytes = forged.len() as u64;
            manifest.parts[0].blake3 = Hex(*blake3::hash(&forged).as_bytes());
        }
        manifest.parent = parent.or(manifest.parent);
        let bytes = manifest.to_bytes(&path).unwrap();
        let manifest_blake3 = Hex(*blake3::hash(&bytes).as_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let signature = serde_json::to_vec(&sign(&signer, &bytes).unwrap()).unwrap();
        std::fs::write(layout.signature(at), signature).unwrap();
        parent = Some(manifest_blake3);
        let Manifest { job, trust_domain, run, created, .. } = manifest;
        let head = Head { job, trust_domain, run, step: at, manifest_blake3, at: created };
        head.write(&Disk, &layout, &signer).unwrap();
    }
}

fn decrypted(path: &Path, key: &Path) -> Vec<u8> {
    let key = std::fs::read_to_string(key).unwrap();
    let line = key.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    let identity: age::x25519::Identity = line.parse().unwrap();
    let file = std::fs::File::open(path).unwrap();
    let decryptor = age::Decryptor::new(file).unwrap();
    let mut plaintext = Vec::new();
    let mut stream = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).unwrap();
    stream.read_to_end(&mut plaintext).unwrap();
    plaintext
}

fn encrypted(opens: &Identities, plaintext: &[u8]) -> Vec<u8> {
    let recipients = opens.recipients();
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let mut bytes = Vec::new();
    let mut stream = age::Encryptor::with_recipients(recipients).unwrap().wrap_output(&mut bytes).unwrap();
    stream.write_all(plaintext).unwrap();
    stream.finish().unwrap();
    bytes
}

/// The run's keys, copied to where this test may read them whoever the run's nodes were.
fn keys(run: &Path, to: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(to.join("scheduler")).unwrap();
    let private = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    private(&to.join("scheduler"), 0o700);
    for (from, name) in [
        ("checkpoint/key.txt", "key.txt"),
        ("identities/scheduler-0/ca.pem", "scheduler/ca.pem"),
        ("identities/scheduler-0/cert.pem", "scheduler/cert.pem"),
        ("identities/scheduler-0/key.pem", "scheduler/key.pem"),
    ] {
        std::fs::write(to.join(name), std::fs::read(run.join(from)).unwrap()).unwrap();
        private(&to.join(name), 0o600);
    }
}

#[test]
fn class_g_hostile_headers_under_good_signatures() {
    let (steps, every) = (format!("training.max_steps={STEPS}"), format!("checkpoint.every_steps={EVERY}"));
    let mut run = Artefacts::train(&["--set", &steps, "--set", &every]);
    let kept = tempfile::tempdir().unwrap();
    keys(&run.copy(), kept.path());
    let key = kept.path().join("key.txt");
    let verify = ["checkpoint", "verify", "DIR", "--identity-file", text(&key)];
    let resume = [
        "run",
        "--resume",
        "DIR",
        "--quiet",
        "--set",
        "training.max_steps=30",
        "--identity-file",
        text(&key),
    ];
    let step = (EVERY + 1).to_string();
    let replay = ["replay", "DIR", "--step", &step, "--identity-file", text(&key)];

    // What is signed and encrypted anew and says the same is taken: so nothing but the header is why the others are not.
    let same: Change = |part| part.to_bytes();
    run.case(
        "the same again",
        |run| forge(run, kept.path(), STEPS, same),
        &[Expected(&verify, 0, &["step 20: good"])],
    );
    for (lie, change, words) in LIES {
        let says = ["step-000000", words];
        run.case(lie, |run| forge(run, kept.path(), STEPS, change), &[Expected(&verify, 1, &says)]);
        // The audit log names the manifest that was signed first. It is no defence against who moves it away.
        // Its servers find out, when the run has begun anew: with other keys, and the checkpoints as they were.
        run.case_within(
            &format!("{lie}, resumed from"),
            "checkpoint/step-",
            |run| {
                forge(run, kept.path(), STEPS, change);
                for file in ["audit.log", "summary.json"] {
                    std::fs::remove_file(run.join(file)).unwrap();
                }
            },
            &[Expected(&resume, 1, &says)],
        );
        run.case(
            &format!("{lie}, replayed from"),
            |run| forge(run, kept.path(), EVERY, change),
            &[Expected(&replay, 2, &says)],
        );
    }
    run.finish();
}
