//! What is deleted after a run, and by its resumption, stands in the signed audit log; where nobody can sign, that is said.

use std::path::{Path, PathBuf};

use testudo::audit::{AuditLogError, Options, Verified, go_on, verify};
use testudo::rundir::RunDir;
use testudo_actors::audit::{Entry, Hex};
use testudo_tests::process::{self, Ended, UNHURRIED};
use testudo_tests::{files, python};
use testudo_transport::Identity;
use testudo_transport::pki::trust_owner;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const CHECKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/audit.py");

struct Run {
    _folder: tempfile::TempDir,
    dir: PathBuf,
}

impl Run {
    /// Twelve steps, and a checkpoint after every second one: one may be skipped while another is written.
    fn finished() -> Run {
        let folder = tempfile::tempdir().unwrap();
        let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
        let fixed = ["run", text(&file), "--run-dir", text(&dir), "--json", "--quiet"];
        let options = [
            ["--set", "training.max_steps=12"],
            ["--set", "checkpoint.every_steps=2"],
            ["--set", "checkpoint.keep_last=9"],
        ];
        let all = [&fixed[..], &UNHURRIED, &options.concat()].concat();
        let _ = process::run(PROGRAM, &all, &dir).succeeded();
        Run { _folder: folder, dir }
    }

    fn command(&self, words: &[&str], options: &[&str]) -> Ended {
        process::run(PROGRAM, &[words, &[text(&self.dir)], options].concat(), &self.dir)
    }

    fn check(&self, options: &Options) -> Result<Verified, AuditLogError> {
        verify(&RunDir::open(&self.dir).unwrap(), options)
    }

    fn deletions(&self) -> u64 {
        self.check(&Options::default()).unwrap().kinds.get("deletion").copied().unwrap_or_default()
    }

    /// The head that the summary names.
    fn head(&self) -> Hex {
        let summary = std::fs::read(self.dir.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
        summary["audit_head"].as_str().unwrap().parse().unwrap()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    fn steps(&self) -> Vec<u64> {
        let listed = self.command(&["checkpoint", "list"], &["--json"]).succeeded().json();
        listed["checkpoints"].as_array().unwrap().iter().map(|row| row["step"].as_u64().unwrap()).collect()
    }

    fn audit_key(&self) -> Identity {
        let folder = self.dir.join("identities/audit");
        // A run that root started is another user's.
        trust_owner(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&folder).unwrap()));
        Identity::load(&folder).unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Invariant 4 of `runtime/src/audit.rs`.
#[test]
fn what_is_pruned_is_signed_in_the_log_and_the_noted_head_stays_good() {
    let run = Run::finished();
    let (noted, before, steps) = (run.head(), std::fs::read(run.log()).unwrap(), run.steps());
    let pruned = run.command(&["checkpoint", "prune"], &["--keep", "1", "--destroy-key", "--yes", "--json"]);
    let pruned = pruned.succeeded().json();
    let gone = steps.len() as u64 - 1;
    assert!(gone >= 1 && pruned["deleted"].as_array().unwrap().len() as u64 == gone, "{steps:?}, {pruned}");

    let log = std::fs::read(run.log()).unwrap();
    assert!(log.starts_with(&before) && log.len() > before.len(), "what was written is never changed");
    let verified = run.check(&Options { expect_head: Some(noted), ..Options::default() }).unwrap();
    assert_eq!(pruned["audit_head"], verified.head.unwrap().to_string());
    // The command, each deletion, the key, and a signature.
    assert_eq!(verified.since_expected, Some(gone + 3));
    assert_eq!((verified.kinds["deletion"], verified.kinds["key_destroyed"]), (gone, 1));
    assert!(verified.ended && verified.unsigned_deletions == 0);
    let said = run.command(&["audit", "verify"], &["--expect-head", &noted.to_string()]).succeeded().stdout;
    assert!(
        said.contains(&format!("the expected head is in it; it has grown by {} records", gone + 3)),
        "{said}"
    );
    let shown = run.command(&["audit", "show"], &["--kind", "key_destroyed"]).succeeded().stdout;
    assert!(shown.contains("age1"), "{shown}");

    // The log alone excuses what is gone; and the record beside the checkpoints is not needed for that.
    std::fs::remove_file(run.dir.join("checkpoint/deletions.jsonl")).unwrap();
    run.check(&Options::default()).unwrap();
    if let Some(python) = python::with("blake3, cryptography.x509") {
        let noted = noted.to_string();
        let said = process::run(&python, &[CHECKER, text(&run.log()), &noted], &run.dir).succeeded().stdout;
        assert!(said.contains(&format!("{} records", verified.records)), "{said}");
    }
    // Nothing is due: nothing is added.
    let again = run.command(&["checkpoint", "prune"], &["--keep", "1", "--json"]).succeeded().json();
    assert_eq!(again["audit_head"], verified.head.unwrap().to_string());
    // Whoever cuts what came after the run is seen by the later head, as ever.
    std::fs::write(run.log(), &before).unwrap();
    let later = run.check(&Options { expect_head: verified.head, ..Options::default() });
    assert!(matches!(later, Err(AuditLogError::Incomplete { .. })), "{later:?}");
    assert!(run.check(&Options::default()).is_err(), "a checkpoint is gone, and nothing says so any more");
}

/// A step is replayed from the log as before, and the log is gone on with when the run is resumed.
#[test]
fn a_pruned_run_is_replayed_and_resumed() {
    let run = Run::finished();
    let steps = run.steps();
    let _ = run.command(&["checkpoint", "prune"], &["--keep", "2"]).succeeded();
    let (first, gone) = (steps[steps.len() - 2], steps.len() as u64 - 2);
    let _ = run.command(&["replay"], &["--step", &(first + 1).to_string()]).succeeded();
    // Resumed from the earlier of the two, the run leaves the later one behind.
    let resumed = run.command(
        &["run", "--resume"],
        &["--step", &first.to_string(), "--set", "training.max_steps=14", "--json", "--quiet"],
    );
    let _ = resumed.succeeded();
    let shown = run.command(&["audit", "show"], &["--kind", "deletion"]).succeeded().stdout;
    assert!(shown.contains(&format!("superseded: the run was resumed from step {first}")), "{shown}");
    assert_eq!(run.deletions(), gone + 1);
    std::fs::remove_file(run.dir.join("checkpoint/deletions.jsonl")).unwrap();
    assert_eq!(run.check(&Options::default()).unwrap().sessions.len(), 2);
}

/// Without the key nothing can be signed: that is said, what can be recorded is, and the next run that has a key makes up for it.
#[test]
fn a_deletion_that_nobody_can_sign_is_told_as_such_and_recorded_later() {
    let run = Run::finished();
    let steps = run.steps();
    let before = std::fs::read(run.log()).unwrap();
    let (key, aside) = (run.dir.join("identities/audit"), run.dir.join("aside"));
    std::fs::rename(&key, &aside).unwrap();
    let pruned = run.command(&["checkpoint", "prune"], &["--keep", "1"]).succeeded();
    assert!(pruned.stderr.contains("the audit log does not tell of this"), "{}", pruned.stderr);
    assert_eq!(std::fs::read(run.log()).unwrap(), before);
    let gone = steps.len() as u64 - 1;
    assert_eq!(run.check(&Options::default()).unwrap().unsigned_deletions, gone);
    let said = run.command(&["audit", "verify"], &[]).succeeded().stdout;
    assert!(said.contains("which nobody signed"), "{said}");
    // Another run's key is none.
    let other = Run::finished();
    let named =
        ["--keep", "1", "--audit-identity", text(&other.dir.join("identities/audit"))].map(str::to_owned);
    let refused = run.command(&["checkpoint", "prune"], &named.each_ref().map(String::as_str)).succeeded();
    assert!(refused.stderr.contains("signed by another key"), "{}", refused.stderr);
    assert_eq!(std::fs::read(run.log()).unwrap(), before);

    let _ = run
        .command(&["run", "--resume"], &["--set", "training.max_steps=14", "--json", "--quiet"])
        .succeeded();
    let verified = run.check(&Options::default()).unwrap();
    assert_eq!((verified.kinds["deletion"], verified.unsigned_deletions), (gone, 0));
}

/// Invariants 3 and 4: one writer at a time, the end of a killed run mended, and nothing but deletions after the end.
#[test]
fn a_log_is_gone_on_with_by_one_writer_with_its_own_key_and_for_deletions_alone() {
    let run = Run::finished();
    let (log, key) = (run.log(), run.audit_key());
    let whole = std::fs::read(&log).unwrap();
    let destroyed = [Entry::KeyDestroyed { recipients: Vec::new() }];
    let held = std::fs::File::options().append(true).open(&log).unwrap();
    held.try_lock().unwrap();
    let busy = go_on(&log, &key, "a test", &[], &destroyed).unwrap_err().to_string();
    assert!(busy.contains("another process is writing it"), "{busy}");
    drop(held);
    // A record that a crash cut short is removed, and its length told.
    std::fs::write(&log, [&whole[..], b"{\"se"].concat()).unwrap();
    go_on(&log, &key, "a test", &[], &destroyed).unwrap();
    let text = String::from_utf8(std::fs::read(&log).unwrap()).unwrap();
    assert!(text.contains("{\"command\":\"a test\",\"torn_bytes\":4}"), "{text}");
    run.check(&Options::default()).unwrap();
    // What has lost its signature, as on a full disk, is signed though nothing is added; what has not is left alone.
    let without = text.trim_end().rsplit_once('\n').unwrap().0;
    std::fs::write(&log, format!("{without}\n")).unwrap();
    assert!(run.check(&Options::default()).is_err());
    go_on(&log, &key, "a test", &[], &[]).unwrap();
    let again = std::fs::read_to_string(&log).unwrap();
    run.check(&Options::default()).unwrap();
    go_on(&log, &key, "a test", &[], &[]).unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), again);
    // The key signs whatever it is given; who reads takes nothing of a run that is over.
    let steps = Entry::Parameters { step: 13, params_blake3: Hex([0; 32]) };
    go_on(&log, &key, "a test", &[], &[steps]).unwrap();
    let found = run.check(&Options::default()).unwrap_err().to_string();
    assert!(found.contains("the run was over, and no other began"), "{found}");
    // A damaged log is not gone on with.
    let mut damaged = whole.clone();
    damaged[200] ^= 1;
    std::fs::write(&log, &damaged).unwrap();
    assert!(matches!(go_on(&log, &key, "a test", &[], &destroyed), Err(AuditLogError::Damaged { .. })));
    assert_eq!(std::fs::read(&log).unwrap(), damaged);
}
