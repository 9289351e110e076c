//! What stands on disks that others may write: checkpoints and the bundles of signed models.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use testudo::checkpoint::keys::Identities;
use testudo::checkpoint::manifest::{DataPosition, Hex, Manifest, PartEntry, ResidualEntry, Signature};
use testudo::checkpoint::part::{self, Frame, Holder};
use testudo::checkpoint::safetensors::{self, Metadata, Tensor};
use testudo::signing::bundle::{open, seal};
use testudo::signing::key::SigningKey;
use testudo::signing::statement;
use testudo_actors::checkpoint::PartReceipt;

use super::seeds::Seed;

/// What the first byte of a checkpoint's input says the rest is.
const MANIFEST: u8 = 0;
const EXPORT: u8 = 1;
const PART_HEADER: u8 = 2;
const PART: u8 = 3;
const SIGNATURE: u8 = 4;
const RESIDUALS_HEADER: u8 = 5;

/// The step of the folder that the inputs stand in.
const STEP: u64 = 7;
const SERVER: u32 = 1;
const WORKER: u32 = 2;
const SHARDS: [u32; 2] = [0, 3];

fn nowhere() -> &'static Path {
    Path::new("/run/checkpoint/file")
}

fn frame() -> Frame {
    Frame {
        job: "j".to_owned(),
        step: STEP,
        parameters: vec![("fc.weight".to_owned(), 12), ("fc.bias".to_owned(), 3)],
        kinds: vec!["weights".to_owned(), "velocity".to_owned()],
        scalars: vec!["product".to_owned()],
    }
}

/// A key that opens parts, and a file to put them in.
struct Disk {
    folder: tempfile::TempDir,
    identities: Identities,
}

static DISK: LazyLock<Disk> = LazyLock::new(|| {
    let shared = Path::new("/dev/shm");
    let folder = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap();
    let key = folder.path().join("key");
    let mut file = create(&key);
    // A key of these tests alone.
    file.write_all(b"AGE-SECRET-KEY-1963APY70QMRE46LMGRSH9L7HK4ALW7UNDNNCPZZKNHX2FV4EF5EQKGPLHA\n").unwrap();
    let identities = Identities::load(&key).unwrap();
    Disk { folder, identities }
});

fn create(path: &Path) -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap()
}

/// A file of this thread's own that holds `bytes`, with its size and hash.
fn stored(bytes: &[u8]) -> (PathBuf, PartReceipt) {
    let path = DISK.folder.path().join(format!("{:?}", std::thread::current().id()));
    create(&path).write_all(bytes).unwrap();
    (path, PartReceipt { bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() })
}

/// What a checkpoint consists of; the first byte says which of it: a manifest, an export, a server's part's header, a part, the
/// manifest's signature, a worker's part's header.
///
/// A manifest names nothing outside its folder and means the same when it is written again; runs stay inside their
/// parameters; an export holds no more values than bytes; what nobody encrypted to the key, and what no scheduler signed, is
/// refused.
pub fn checkpoint(input: &[u8]) {
    let Some((&what, bytes)) = input.split_first() else { return };
    match what {
        MANIFEST => {
            let Ok(manifest) = Manifest::parse(nowhere(), bytes, STEP) else { return };
            for (name, _) in manifest.files() {
                let plain = Path::new(name).components().count() == 1 && !name.contains("..");
                assert!(plain, "{name:?} is outside");
            }
            let written = manifest.to_bytes(nowhere()).unwrap();
            assert_eq!(Manifest::parse(nowhere(), &written, STEP).unwrap(), manifest);
            let _ = (manifest.created_at(), Frame::of(&manifest), Frame::model(&manifest));
        }
        EXPORT => {
            let Ok(export) = safetensors::parse(nowhere(), bytes) else { return };
            let values: usize = export.tensors.iter().map(|tensor| tensor.values.len()).sum();
            assert!(values * 4 <= bytes.len(), "{values} values in {} bytes", bytes.len());
            for tensor in &export.tensors {
                assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len());
            }
        }
        PART_HEADER | RESIDUALS_HEADER => {
            let (frame, holder) = match what {
                PART_HEADER => (frame(), Holder::Server(SERVER)),
                _ => (frame().of_residuals(&SHARDS), Holder::Worker(WORKER)),
            };
            for run in part::parse_header(bytes, &frame, holder).unwrap_or_default() {
                let (_, elements) = &frame.parameters[run.parameter];
                assert!(run.kind < frame.kinds.len() + frame.scalars.len() && run.elements > 0);
                assert!(run.first.checked_add(run.elements).is_some_and(|end| end <= *elements));
            }
        }
        PART => {
            let (path, receipt) = stored(bytes);
            let mut values = 0;
            let mut take = |_, _, piece: &[f32]| values += piece.len();
            let holder = Holder::Server(SERVER);
            let read = part::read(&path, receipt, &DISK.identities, &frame(), holder, &mut take);
            assert!(values * 4 <= bytes.len(), "{values} values out of {} bytes", bytes.len());
            if read.is_err() {
                let other = PartReceipt { bytes: receipt.bytes, blake3: [0; 32] };
                assert!(part::check(&path, other).is_err());
            }
        }
        _ => {
            let Ok(signature) = serde_json::from_slice::<Signature>(bytes) else { return };
            let now = std::time::SystemTime::now();
            let trusted = [super::CA.trust().clone()];
            assert!(signature.check(nowhere(), &trusted, b"context", b"manifest", now).is_err());
        }
    }
}

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().unwrap());

/// The bundle of a signed model: as a bundle, and as the statement inside one.
///
/// Nothing that the key did not sign is a bundle of its; a statement that is taken names no file outside the model, and means
/// the same when it is written and signed again.
pub fn bundle(input: &[u8]) {
    let key = KEY.public();
    assert!(open(input, &key).is_err(), "a bundle that nobody signed");
    let Ok(manifest) = statement::Manifest::from_payload(input) else { return };
    for (name, _) in &manifest.files {
        let path = Path::new(name);
        let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        assert!(plain && !name.contains('\0'), "{name:?} is outside");
    }
    let payload = manifest.to_payload().unwrap();
    let sealed = seal(&payload, &KEY).unwrap();
    let opened = open(sealed.as_bytes(), &key).unwrap();
    assert_eq!(
        statement::Manifest::from_payload(&opened).unwrap(),
        manifest,
        "a statement changes its meaning"
    );
}

fn hex(byte: u8) -> Hex {
    Hex([byte; 32])
}

pub(super) fn checkpoints() -> Vec<Seed> {
    let with = |what: u8, bytes: &[u8]| [&[what], bytes].concat();
    let (format, hash, encryption, tensors) = Manifest::formats();
    let part = |server: u32| PartEntry {
        name: testudo::checkpoint::layout::part_name(server),
        server,
        slices: 2,
        bytes: 900,
        blake3: hex(3),
    };
    let manifest = Manifest {
        format,
        job: "j".to_owned(),
        trust_domain: "t".to_owned(),
        run: hex(1),
        job_blake3: hex(2),
        step: STEP,
        parent: Some(hex(4)),
        parts: vec![part(0), part(1)],
        residuals: Vec::new(),
        settings: testudo::checkpoint::resume::settings(&crate::toy::job(1, 1, 1, 1)),
        data: DataPosition { epoch: 1, first: 64 },
        samples: 4096,
        last_loss: Some(0.25),
        best: None,
        created: 1_800_000_000,
        recipients: DISK.identities.recipients().iter().map(ToString::to_string).collect(),
        hash,
        encryption,
        tensors,
    };
    let residuals = |worker: u32, shards: &[u32]| ResidualEntry {
        name: testudo::checkpoint::layout::residuals_name(worker),
        worker,
        shards: shards.to_vec(),
        bytes: 900,
        blake3: hex(5),
    };
    let lossy = Manifest { residuals: vec![residuals(0, &[0, 2]), residuals(2, &[1])], ..manifest.clone() };
    let (weights, shape) = ([0.5_f32; 6], [2_usize, 3]);
    let tensor = Tensor { name: "fc.weight", shape: &shape, values: &weights };
    let said =
        Metadata { job: "j".to_owned(), step: STEP, params_blake3: [1; 32], model: Some("{}".to_owned()) };
    let export = DISK.folder.path().join("seed.safetensors");
    safetensors::write(&export, &[tensor], &said).unwrap();
    let header = format!(
        "{{\"__metadata__\":{{\"format\":\"{}\",\"job\":\"j\",\"step\":\"{STEP}\",\"server\":\"{SERVER}\",\"extra\":\"0\"}},\
         \"weights/fc.bias@0\":{{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}}}",
        part::FORMAT
    );
    let kept = header
        .replace(&format!("\"server\":\"{SERVER}\""), &format!("\"worker\":\"{WORKER}\""))
        .replace("weights/", "residual-3/");
    let plain = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12]].concat();
    let recipients = DISK.identities.recipients();
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let mut encrypted = Vec::new();
    let mut writer =
        age::Encryptor::with_recipients(recipients).unwrap().wrap_output(&mut encrypted).unwrap();
    writer.write_all(&plain).unwrap();
    writer.finish().unwrap();
    let signature = Signature::make(&super::NODE, b"context", b"another manifest").unwrap();
    vec![
        ("manifest", with(MANIFEST, &manifest.to_bytes(nowhere()).unwrap())),
        ("manifest-residuals", with(MANIFEST, &lossy.to_bytes(nowhere()).unwrap())),
        ("residuals-header", with(RESIDUALS_HEADER, kept.as_bytes())),
        ("export", with(EXPORT, &std::fs::read(export).unwrap())),
        ("part-header", with(PART_HEADER, header.as_bytes())),
        ("part", with(PART, &encrypted)),
        ("part-truncated", with(PART, &encrypted[..encrypted.len() - 20])),
        ("signature", with(SIGNATURE, &serde_json::to_vec(&signature).unwrap())),
    ]
}

pub(super) fn bundles() -> Vec<Seed> {
    let files = vec![("a/model.safetensors".to_owned(), [1; 32]), ("config.json".to_owned(), [2; 32])];
    let manifest = statement::Manifest { name: "model".to_owned(), files, ignored: vec![".git".to_owned()] };
    let payload = manifest.to_payload().unwrap();
    let other = SigningKey::generate().unwrap();
    vec![("bundle", seal(&payload, &other).unwrap().into_bytes()), ("statement", payload)]
}
