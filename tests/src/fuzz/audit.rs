//! The audit log, which lies on a disk that others may write.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Value, json};
use testudo::audit::{AuditLog, Options, read, verify};
use testudo_actors::SignedJob;
use testudo_actors::audit::{Base64, CheckpointName, Entry, Head, Hex, KEY_NAME, Refusal};
use testudo_observability::audit::{Chain, record_hash};
use testudo_transport::{JobCa, Role};

use super::seeds::{Seed, VALIDITY};
use super::{CA, id};
use crate::toy;

/// What the first byte says the rest is: a log as it stands on the disk.
const LOG: u8 = 0;
/// Records without their places in a chain, one a line: they are chained, as no fuzzer can.
const RECORDS: u8 = 1;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap()
});

/// A file of this thread's own.
fn file(name: &str) -> PathBuf {
    FOLDER.path().join(format!("{name}-{:?}", std::thread::current().id()))
}

/// An audit log. A line has one spelling, and so has what it says; who reads takes no log that does not name its key first, none
/// whose last records nobody signed, and none that a CA did not certify that one trusts.
pub fn audit(input: &[u8]) {
    let Some((&what, bytes)) = input.split_first() else { return };
    let log = match what {
        LOG => bytes.to_vec(),
        RECORDS => chained(bytes),
        _ => return,
    };
    follow(&log);
    let path = file("audit.log");
    std::fs::write(&path, &log).unwrap();
    let unfinished = Options { unfinished: true, ..Options::default() };
    if let Ok(verified) = read(&path, &unfinished, |_, _| {}) {
        let lines = log.iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!(verified.records, lines, "records without a line");
        assert_eq!(verified.sessions.first().map(|session| session.first), Some(0), "no key before the rest");
    }
    if let Ok(verified) = read(&path, &Options::default(), |_, _| {}) {
        assert!(verified.ended && verified.kinds.contains_key("signature"), "a log that nobody signed");
    }
    let ours = Options { cas: vec![CA.trust().ca_der().to_vec()], ..unfinished };
    assert!(read(&path, &ours, |_, _| {}).is_err(), "a key that the CA did not certify");
}

fn follow(log: &[u8]) {
    let mut chain = Chain::new();
    for line in log.split(|byte| *byte == b'\n') {
        let mut again = chain.clone();
        let Ok(record) = chain.follow(line) else { return };
        assert_eq!(chain.head(), record_hash(line));
        let written = again.append(record.at, &json!({ "kind": record.kind, "body": record.body })).unwrap();
        assert_eq!(written.trim_ascii_end().as_bytes(), line, "a record has two spellings");
        if let Ok(entry) = verify::entry(&record) {
            let said = serde_json::to_value(&entry).unwrap();
            assert_eq!(
                said,
                json!({ "kind": record.kind, "body": record.body }),
                "it says more than is read"
            );
        }
    }
}

/// The log that these records make; what is no record is left out.
fn chained(lines: &[u8]) -> Vec<u8> {
    let (mut chain, mut log) = (Chain::new(), Vec::new());
    for line in lines.split(|byte| *byte == b'\n') {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
        let at = value.get("at").and_then(Value::as_u64).unwrap_or_default();
        if let Ok(line) = chain.append(at, &value) {
            log.extend(line.as_bytes());
        }
    }
    log
}

pub(super) fn logs() -> Vec<Seed> {
    let ca = JobCa::create("t", "j", VALIDITY).unwrap();
    let key = ca.issue(&id(Role::Actor, KEY_NAME), VALIDITY).unwrap();
    let worker = ca.issue(&id(Role::Worker, "0"), VALIDITY).unwrap();
    let mut job = toy::job(1, 1, 1, 1);
    (job.trust_domain, job.name) = ("t".to_owned(), "j".to_owned());
    let signed = SignedJob::sign(&job, &ca.issue(&id(Role::Operator, "0"), VALIDITY).unwrap()).unwrap();
    let path = file("seed.log");
    // Another seed of this thread may be there.
    let _ = std::fs::remove_file(&path);
    let log = AuditLog::open(&path, &key, &job, &signed, "operator/0").unwrap();
    entries(Base64(worker.certificate_der().to_vec())).into_iter().for_each(|entry| log.handle().tell(entry));
    log.close().unwrap();
    let log = std::fs::read(&path).unwrap();
    let loose = |line: &[u8]| {
        let mut record: Value = serde_json::from_slice(line).unwrap();
        for place in ["seq", "prev"] {
            record.as_object_mut().unwrap().remove(place);
        }
        serde_json::to_vec(&record).unwrap()
    };
    let lines = log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let records = lines.map(loose).collect::<Vec<_>>().join(&b'\n');
    vec![("log", [&[LOG], &log[..]].concat()), ("records", [&[RECORDS], &records[..]].concat())]
}

/// One of each kind that needs no signature of a member.
fn entries(certificate: Base64) -> Vec<Entry> {
    let (hash, node) = (Hex([7; 32]), "worker/0".to_owned());
    let refused = vec![Refusal { cause: "mac".to_owned(), who: "others".to_owned(), count: 3 }];
    let resumed = CheckpointName { step: 3, manifest_blake3: hash };
    let CheckpointName { step, manifest_blake3 } = resumed;
    let head = Head { record: 1, hash };
    vec![
        Entry::Join { node: node.clone(), incarnation: 1, certificate: Some(certificate) },
        Entry::Command { operator: "operator/0".to_owned(), done: true, answer: "paused".to_owned() },
        Entry::Parameters { step, params_blake3: hash },
        Entry::Refusals { node: "server/0".to_owned(), refused },
        Entry::Revocation { list: "2".to_owned(), revoked: head.record, crl_blake3: head.hash },
        Entry::Checkpoint { step, manifest_blake3 },
        Entry::Deletion { step, manifest_blake3, why: "checkpoint.keep_last is 1".to_owned() },
        Entry::Finding {
            server: "server/0".to_owned(),
            parameter: "fc1.weight".to_owned(),
            slice: 0,
            first: 4,
            elements: 8,
            step: Some(2),
            right_blake3: hash,
            found_blake3: Hex([8; 32]),
            worker: node.clone(),
        },
        Entry::LeftOut { records: 7 },
        Entry::Leave { node, incarnation: 1, reason: "the run is complete".to_owned() },
        Entry::End { steps: 3, params_blake3: Some(hash), failure: None },
        Entry::Reopened { command: "checkpoint prune".to_owned(), torn_bytes: 0 },
        Entry::KeyDestroyed { recipients: vec!["age1".to_owned()] },
    ]
}
