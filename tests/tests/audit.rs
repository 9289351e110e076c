//! The audit log of real runs: whoever changes, drops, moves or cuts something is found, and a third party can check it.

use std::path::{Path, PathBuf};

use testudo::audit::{AuditLogError, Options, Verified, verify};
use testudo::rundir::RunDir;
use testudo_actors::audit::Hex;
use testudo_observability::audit::SIGNATURE;
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, Signal, Started, UNHURRIED, steps};
use testudo_tests::python;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const CHECKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/audit.py");

/// A run with checkpoints, some of them deleted on the way.
const OPTIONS: [&str; 6] = [
    "--set",
    "training.max_steps=12",
    "--set",
    "checkpoint.every_steps=3",
    "--set",
    "checkpoint.keep_last=1",
];

/// More steps than any of these runs takes: they are ended.
const ENDLESS: &str = "training.max_steps=100000000";

/// Who takes part beside the scheduler.
const MEMBERS: [&str; 4] = ["server/0", "server/1", "worker/0", "worker/1"];

struct Run {
    _folder: tempfile::TempDir,
    file: PathBuf,
    dir: PathBuf,
}

impl Run {
    fn place() -> Run {
        let folder = tempfile::tempdir().unwrap();
        let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
        Run { _folder: folder, file, dir }
    }

    fn finished() -> Run {
        let run = Run::place();
        let _ = run.run(&OPTIONS).succeeded();
        run
    }

    fn run(&self, options: &[&str]) -> Ended {
        self.start(options).wait()
    }

    fn start(&self, options: &[&str]) -> Started {
        let fixed = ["run", text(&self.file), "--run-dir", text(&self.dir), "--json", "--quiet"];
        process::start(PROGRAM, &[&fixed[..], &UNHURRIED, options].concat(), &self.dir)
    }

    fn resume(&self, options: &[&str]) -> Ended {
        let fixed = ["run", "--resume", text(&self.dir), "--json", "--quiet"];
        process::run(PROGRAM, &[&fixed, options].concat(), &self.dir)
    }

    fn command(&self, options: &[&str]) -> Ended {
        process::run(PROGRAM, &[&["audit", "verify", text(&self.dir)], options].concat(), &self.dir)
    }

    fn log(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    fn lines(&self) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(self.log()).unwrap();
        bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    fn write(&self, lines: &[Vec<u8>]) {
        std::fs::write(self.log(), lines.concat()).unwrap();
    }

    fn check(&self, options: &Options) -> Result<Verified, AuditLogError> {
        verify(&RunDir::open(&self.dir).unwrap(), options)
    }

    fn head(&self) -> Hex {
        let summary: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.dir.join("summary.json")).unwrap()).unwrap();
        summary["audit_head"].as_str().expect("a head in summary.json").parse().unwrap()
    }
}

#[test]
fn the_log_of_a_run_tells_what_happened_and_summary_names_its_head() {
    let run = Run::finished();
    let verified = run.check(&Options::default()).unwrap();
    assert_eq!(verified.head, Some(run.head()));
    assert!(verified.ended && verified.late_signed == 0);
    assert_eq!(verified.sessions.len(), 1);
    for (kind, count) in [("key", 1), ("job", 1), ("join", 4), ("leave", 4), ("end", 1)] {
        assert_eq!(verified.kinds.get(kind), Some(&count), "{kind}: {:?}", verified.kinds);
    }
    // The first one that falls due is always taken, and the last; of those between, one may be skipped.
    let checkpoints = verified.kinds["checkpoint"];
    assert!((2..=4).contains(&checkpoints), "{checkpoints}");
    assert_eq!(verified.kinds["deletion"], checkpoints - 1, "one is kept");
    assert_eq!(verified.kinds["contributions"], 24, "two workers, twelve steps");
    assert!(verified.kinds[SIGNATURE] >= 2, "the beginning and the end are signed");

    let shown = run.command(&["--json"]).succeeded().json();
    assert_eq!(shown["head"], run.head().to_string());
    assert_eq!(shown["good"], true);
    let shown = process::run(PROGRAM, &["audit", "show", text(&run.dir), "--kind", "join"], &run.dir);
    let shown = shown.succeeded().stdout;
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.contains("worker/1") && shown.contains("certificate"), "{shown}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(run.log()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// `params_blake3` at every step, whatever the number of servers and the slicing; the last one is the exported model's.
#[test]
fn the_hash_of_every_step_is_in_the_log_and_the_last_one_is_the_models() {
    let hashes = |options: &[&str]| {
        let run = Run::place();
        let summary = run.run(&[&OPTIONS, options].concat()).succeeded().json();
        let shown =
            process::run(PROGRAM, &["audit", "show", text(&run.dir), "--kind", "parameters"], &run.dir);
        let shown = shown.succeeded().stdout;
        let hashes: Vec<String> =
            shown.lines().map(|line| line.split_whitespace().last().unwrap().to_owned()).collect();
        let last = hashes.last().expect("there are hashes").clone();
        assert!(last.contains(summary["params_blake3"].as_str().unwrap()), "{last}");
        assert!(last.contains("\"step\":12"), "{last}");
        hashes
    };
    let every = hashes(&[]);
    assert_eq!(every.len(), 13, "the first parameters, and those after each step");
    let other = hashes(&["--servers", "3", "--workers", "1", "--set", "transport.slice_bytes=260"]);
    assert_eq!(every, other);
    let some = hashes(&["--set", "audit.hash_every=5"]);
    let expected: Vec<&String> = [0, 5, 10, 12].iter().map(|step| &every[*step]).collect();
    assert_eq!(some.iter().collect::<Vec<_>>(), expected);
}

/// Invariant 1 of `runtime/src/audit.rs`: bits of every record.
#[test]
fn every_changed_record_is_found() {
    let run = Run::finished();
    let lines = run.lines();
    for at in 0..lines.len() {
        let bits = lines[at].len() * 8;
        for bit in (at % 7..bits).step_by(bits / 24).chain([bits - 1]) {
            let mut changed = lines.clone();
            changed[at][bit / 8] ^= 1 << (bit % 8);
            run.write(&changed);
            let found = run.check(&Options::default());
            assert!(found.is_err(), "line {}, bit {bit}", at + 1);
        }
    }
    run.write(&lines);
    run.check(&Options::default()).unwrap();
}

/// Invariant 1: every record dropped, repeated, and swapped with its neighbour.
#[test]
fn every_dropped_added_or_moved_record_is_found() {
    let run = Run::finished();
    let lines = run.lines();
    for at in 0..lines.len() {
        let mut dropped = lines.clone();
        dropped.remove(at);
        let mut repeated = lines.clone();
        repeated.insert(at, lines[at].clone());
        for changed in [&dropped, &repeated] {
            run.write(changed);
            assert!(run.check(&Options::default()).is_err(), "line {}", at + 1);
        }
        if at > 0 {
            let mut swapped = lines.clone();
            swapped.swap(at - 1, at);
            run.write(&swapped);
            assert!(run.check(&Options::default()).is_err(), "line {}", at + 1);
        }
    }
}

/// Invariant 1: a log cut at every record, and in its middle; by its end, by the summary, and by a head that was noted.
#[test]
fn every_cut_is_found_even_where_the_log_once_was_whole() {
    let run = Run::finished();
    let (lines, head) = (run.lines(), run.head());
    let whole = lines.concat();
    let unfinished = Options { unfinished: true, ..Options::default() };
    let noted = Options { expect_head: Some(head), ..unfinished.clone() };
    let mut at_a_boundary = 0;
    for kept in 0..lines.len() {
        let boundary = lines[..kept].concat().len();
        for length in [boundary, boundary + lines[kept].len() / 2] {
            std::fs::write(run.log(), &whole[..length]).unwrap();
            assert!(run.check(&Options::default()).is_err(), "cut after {length} bytes");
            assert!(run.check(&unfinished).is_err(), "summary.json names the head; cut after {length} bytes");
            assert!(run.check(&noted).is_err(), "cut after {length} bytes");
        }
    }
    std::fs::remove_file(run.dir.join("summary.json")).unwrap();
    for kept in 0..lines.len() {
        run.write(&lines[..kept]);
        assert!(run.check(&noted).is_err(), "{kept} records, and only the head known");
        assert!(run.check(&Options::default()).is_err(), "{kept} records, and nothing known");
        at_a_boundary += usize::from(run.check(&unfinished).is_ok());
    }
    assert!(at_a_boundary > 5, "without a head, a cut log looks like one of a run that was killed");
    run.write(&lines);
    assert_eq!(run.check(&noted).unwrap().since_expected, Some(0));
}

/// Invariant 1, at the command line.
#[test]
fn the_command_says_what_is_wrong_and_fails() {
    let run = Run::finished();
    let (lines, head) = (run.lines(), run.head().to_string());
    let good = run.command(&["--expect-head", &head]).succeeded().stdout;
    assert!(good.contains("the head is the expected one"), "{good}");
    let other = "00".repeat(32);
    let bad = run.command(&["--expect-head", &other]);
    assert_eq!(bad.code(), Some(1));
    assert!(bad.stderr.contains("no record has the expected head"), "{}", bad.stderr);
    let ca = run.dir.join("identities/scheduler-0/ca.pem");
    let _ = run.command(&["--ca", text(&ca)]).succeeded();

    let mut dropped = lines.clone();
    dropped.remove(3);
    run.write(&dropped);
    let bad = run.command(&["--json"]);
    assert_eq!(bad.code(), Some(1));
    assert!(bad.stderr.contains("line 4"), "{}", bad.stderr);
    assert_eq!(bad.json()["good"], false);

    let elsewhere = Run::finished();
    let bad = elsewhere.command(&["--ca", text(&ca)]);
    assert!(bad.stderr.contains("not among those given"), "{}", bad.stderr);
}

/// Whoever can change the file of trusted CAs says whose log is good.
#[test]
fn a_ca_that_others_could_have_written_is_trusted_by_nobody() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let run = Run::finished();
    let ca = run.dir.with_file_name("anchors.pem");
    std::fs::copy(run.dir.join("identities/scheduler-0/ca.pem"), &ca).unwrap();
    let mode = |mode| std::fs::set_permissions(&ca, std::fs::Permissions::from_mode(mode)).unwrap();
    let link = run.dir.with_file_name("link.pem");
    symlink(&ca, &link).unwrap();
    let dir = text(&run.dir);
    for command in [
        &["audit", "verify", dir][..],
        &["checkpoint", "verify", dir],
        &["replay", dir, "--step", "12", "--quiet"],
    ] {
        let given = |file: &Path| process::run(PROGRAM, &[command, &["--ca", text(file)]].concat(), &run.dir);
        mode(0o644);
        let _ = given(&ca).succeeded();
        mode(0o666);
        let refused = given(&ca);
        assert!(
            refused.code() == Some(2) && refused.stderr.contains("others than its owner"),
            "{refused:#?}"
        );
        let refused = given(&link);
        assert!(refused.code() == Some(2) && refused.stderr.contains("symbolic link"), "{refused:#?}");
    }
}

/// Invariant 4.
#[test]
fn what_lies_beside_the_log_must_be_what_it_says() {
    let run = Run::finished();
    let manifest = std::fs::read_dir(run.dir.join("checkpoint")).unwrap().flatten();
    let manifest = manifest.map(|e| e.path().join("manifest.json")).find(|path| path.exists()).unwrap();
    for path in [run.dir.join("job.signed"), run.dir.join("summary.json"), manifest.clone()] {
        let good = std::fs::read(&path).unwrap();
        let bad = String::from_utf8_lossy(&good).replace(&run.head().to_string(), &"0".repeat(64));
        let bad = if bad.as_bytes() == good { [&good[..], b" "].concat() } else { bad.into_bytes() };
        std::fs::write(&path, bad).unwrap();
        let found = run.check(&Options::default());
        assert!(matches!(found, Err(AuditLogError::Differs { .. })), "{}: {found:?}", path.display());
        std::fs::write(&path, good).unwrap();
    }
    run.check(&Options::default()).unwrap();
    std::fs::remove_dir_all(manifest.parent().unwrap()).unwrap();
    let found = run.check(&Options::default());
    assert!(
        matches!(&found, Err(e) if e.to_string().contains("no record says that it was deleted")),
        "{found:?}"
    );
}

/// Invariants 2 and 3.
#[test]
fn a_killed_run_leaves_a_log_that_a_resumed_one_goes_on_with() {
    let run = Run::place();
    let mut started = run.start(&["--set", "checkpoint.every_steps=3", "--set", ENDLESS]);
    let newest = |dir: &Path| {
        let found = std::fs::read_to_string(dir.join("audit.log")).unwrap_or_default();
        (found.contains("\"kind\":\"checkpoint\"") && steps(dir) > 6).then_some(())
    };
    started.until("a checkpoint in the log", |dir| newest(dir));
    started.signal(Signal::KILL);
    drop(started);
    process::assert_nothing_left(&run.dir);
    let killed = run.check(&Options::default());
    assert!(matches!(killed, Err(AuditLogError::Incomplete { .. })), "{killed:?}");
    let before = run.check(&Options { unfinished: true, ..Options::default() }).unwrap();

    // A crash may have cut the last record short.
    let whole = run.lines().concat();
    std::fs::write(run.log(), [&whole[..], b"{\"seq\":"].concat()).unwrap();
    let most = steps(&run.dir) + 9;
    let _ = run.resume(&["--set", &format!("training.max_steps={most}")]).succeeded();
    let after = run.check(&Options { expect_head: before.head, ..Options::default() }).unwrap();
    assert_eq!(after.sessions.len(), 2);
    assert_ne!(after.sessions[0].ca_blake3, after.sessions[1].ca_blake3, "a CA of its own");
    assert!(after.sessions[1].resumed_from.is_some());
    assert_eq!(after.sessions[1].first, before.records);
    assert_eq!(after.since_expected, Some(after.records - before.records));
    assert!(run.lines().concat().starts_with(&whole), "what was written is never changed");
    assert!(String::from_utf8(run.lines().concat()).unwrap().contains("\"torn_bytes\":7"));

    // Invariant 3.
    let mut lines = run.lines();
    lines.remove(2);
    run.write(&lines);
    let refused = run.resume(&["--set", &format!("training.max_steps={}", most + 9)]);
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("audit.log, line 3"), "{}", refused.stderr);
}

/// Every server and worker signs heads on the way, and the log holds their signatures.
#[test]
fn nodes_counter_sign_the_head() {
    let run = Run::place();
    let mut started = run.start(&["--set", ENDLESS, "--set", "audit.countersign_every=1"]);
    // However late a node signs, or what writes the log says where its head is.
    started.until("everybody's signature in the log", |dir| {
        let log = std::fs::read_to_string(dir.join("audit.log")).ok()?;
        let signed = |node: &&str| log.lines().any(|l| l.contains("countersignature") && l.contains(*node));
        MEMBERS.iter().all(signed).then_some(())
    });
    started.signal(Signal::INT);
    let _ = started.wait().succeeded();
    let verified = run.check(&Options::default()).unwrap();
    assert!(verified.kinds["countersignature"] >= 4, "two servers and two workers");
    assert!(verified.countersigned.is_some());
    // A signature by somebody else does not hold, and what was signed was the log as it is.
    let lines = run.lines();
    let text = |line: &[u8]| String::from_utf8(line.to_vec()).unwrap();
    let at = lines.iter().position(|line| text(line).contains("countersignature")).unwrap();
    let said: serde_json::Value = serde_json::from_slice(&lines[at]).unwrap();
    let record = said["body"]["record"].as_u64().unwrap() as usize;
    let hash = testudo_observability::audit::record_hash(lines[record].trim_ascii_end());
    assert_eq!(said["body"]["head"], hash.to_string());
    for node in MEMBERS {
        let log =
            std::fs::read_to_string(run.dir.join(format!("logs/{}.log", node.replace('/', "-")))).unwrap();
        assert!(log.contains("counter-signed the audit log"), "{node} keeps what it signed");
        let in_log = |line: &Vec<u8>| text(line).contains("countersignature") && text(line).contains(node);
        assert!(lines.iter().any(in_log), "{node}");
    }
}

/// A stranger at the door of a real run's scheduler: counted, and recorded with its cause.
#[test]
fn refusals_are_recorded_with_cause_and_count() {
    let run = Run::place();
    let mut started = run.start(&["--set", ENDLESS]);
    started.until("training", |dir| (steps(dir) > 2).then_some(()));
    let control: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.dir.join("control.json")).unwrap()).unwrap();
    let address = control["scheduler"].as_str().or(control["address"].as_str()).expect("an address");
    // An operator of another job: its certificate is none here.
    let other = tempfile::tempdir().unwrap();
    let (ca, ids) = (other.path().join("ca"), other.path().join("ids"));
    let pki =
        |arguments: &[&str]| process::run(PROGRAM, &[&["pki"], arguments].concat(), other.path()).succeeded();
    let _ = pki(&["init", text(&ca), "--job", "small"]);
    let _ =
        pki(&["issue", "--ca", text(&ca), "--role", "operator", "--name", "mallory", "--out", text(&ids)]);
    let refused = ["status", "--scheduler", address, "--identity", text(&ids)];
    assert!(!process::run(PROGRAM, &refused, other.path()).status.success());
    started.until("the refusal in the log", |dir| {
        let log = std::fs::read_to_string(dir.join("audit.log")).unwrap_or_default();
        log.contains("\"kind\":\"refusals\"").then_some(())
    });
    started.signal(Signal::INT);
    let _ = started.wait().succeeded();
    run.check(&Options::default()).unwrap();
    let shown = process::run(PROGRAM, &["audit", "show", text(&run.dir), "--kind", "refusals"], &run.dir);
    let shown = shown.succeeded().stdout;
    assert!(shown.contains("\"scheduler/0\"") && shown.contains("\"cause\":"), "{shown}");
}

/// A reader in another language, with its own cryptography, agrees: `tests/python/audit.py`.
#[test]
fn a_third_party_checks_the_log_in_python() {
    let Some(python) = python::with("blake3, cryptography.x509") else { return };
    let run = Run::finished();
    let lines = run.lines();
    let (log, head) = (run.log(), run.head().to_string());
    let checked =
        |arguments: &[&str]| process::run(&python, &[&[CHECKER, text(&log)], arguments].concat(), &run.dir);
    let said = checked(&[&head]).succeeded().stdout;
    assert!(said.contains(&format!("{} records", lines.len())) && said.contains(&head), "{said}");
    for at in 0..lines.len() {
        let mut changed = lines.clone();
        let middle = changed[at].len() / 2;
        changed[at][middle] ^= 1;
        let mut dropped = lines.clone();
        dropped.remove(at);
        for bad in [changed, dropped] {
            run.write(&bad);
            assert!(!checked(&[&head]).status.success(), "line {}", at + 1);
        }
    }
}
