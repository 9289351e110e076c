//! `testudo audit`: is the log of a run what was written, and what does it say?

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use testudo_actors::audit::Hex;
use testudo_transport::pki::{bundle_der, read_public};

use crate::audit::{Options, Verified, read, verify as verify_log};
use crate::error::Failure;
use crate::rundir::RunDir;
use crate::say::say;

/// `testudo audit`
#[derive(Debug, Args)]
pub(crate) struct AuditArguments {
    /// What to do.
    #[command(subcommand)]
    command: AuditCommand,
}

/// The commands of `testudo audit`.
#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check every record, every signature, the end, and what lies beside the log
    #[command(after_help = "Examples:
  testudo audit verify runs/mnist-20261123T081613Z
  testudo audit verify runs/mnist-20261123T081613Z --ca ca/ca.pem --json")]
    Verify {
        /// The run directory
        run_dir: PathBuf,
        /// A head that was noted when it was the log's: the log must hold it still
        #[arg(long, value_name = "HASH")]
        expect_head: Option<Hex>,
        /// The job's CA, in PEM; repeatable, a resumed run has one for each of its parts [default: those that the log names]
        #[arg(long, value_name = "FILE")]
        ca: Vec<PathBuf>,
        /// Take a log that does not come to its end: of a run that is under way, or was killed
        #[arg(long)]
        unfinished: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the records, one a line, as far as they hold
    #[command(after_help = "Examples:
  testudo audit show runs/mnist-20261123T081613Z --kind join --kind refusal")]
    Show {
        /// The run directory
        run_dir: PathBuf,
        /// Only records of this kind, as join, checkpoint or end (repeatable)
        #[arg(long, value_name = "KIND")]
        kind: Vec<String>,
        /// Print one JSON object for each record: seq, at, kind, body
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn audit(arguments: &AuditArguments) -> Result<(), Failure> {
    match &arguments.command {
        AuditCommand::Verify { run_dir, expect_head, ca, unfinished, json } => {
            let cas = ca.iter().map(|file| load_ca(file)).collect::<Result<_, _>>()?;
            let options = Options { expect_head: *expect_head, cas, unfinished: *unfinished };
            verify(&open(run_dir)?, &options, *json)
        }
        AuditCommand::Show { run_dir, kind, json } => show(&open(run_dir)?, kind, *json),
    }
}

fn open(run_dir: &Path) -> Result<RunDir, Failure> {
    let opened = RunDir::open(run_dir).map_err(Failure::misconfigured)?;
    match opened.audit_log().exists() {
        true => Ok(opened),
        false => Err(Failure::misconfigured(format!("{} holds no audit log", run_dir.display()))),
    }
}

/// The certificates of a CA or of a bundle, in DER. Who could change the file would decide whom this trusts.
fn load_ca(file: &Path) -> Result<Vec<u8>, Failure> {
    let pem = read_public(file).map_err(Failure::misconfigured)?;
    bundle_der(&pem).map_err(|e| Failure::misconfigured(format!("{}: {e}", file.display())))
}

fn verify(run_dir: &RunDir, options: &Options, as_json: bool) -> Result<(), Failure> {
    let result = verify_log(run_dir, options);
    if as_json {
        let object = match &result {
            Ok(verified) => report(run_dir, verified),
            Err(error) => {
                json!({ "run_dir": run_dir.path(), "good": false, "problem": error.to_string() })
            }
        };
        say!("{object}");
    }
    let verified = result.map_err(Failure::failed)?;
    if !as_json {
        tell(run_dir, &verified, options);
    }
    Ok(())
}

fn report(run_dir: &RunDir, verified: &Verified) -> serde_json::Value {
    let sessions = verified.sessions.iter().map(|session| {
        json!({
            "first_record": session.first,
            "ca_blake3": session.ca_blake3,
            "certificate_blake3": session.certificate_blake3,
            "resumed_from": session.resumed_from,
        })
    });
    json!({
        "run_dir": run_dir.path(),
        "good": true,
        "records": verified.records,
        "kinds": verified.kinds,
        "head": verified.head,
        "ended": verified.ended,
        "late_signed": verified.late_signed,
        "left_out": verified.left_out,
        "unsigned_deletions": verified.unsigned_deletions,
        "countersigned": verified.countersigned,
        "since_expected": verified.since_expected,
        "sessions": sessions.collect::<Vec<_>>(),
    })
}

fn tell(run_dir: &RunDir, verified: &Verified, options: &Options) {
    say!("{}: {} records, good", run_dir.audit_log().display(), verified.records);
    for session in &verified.sessions {
        let from =
            session.resumed_from.map_or(String::new(), |from| format!(", resumed from step {}", from.step));
        say!("  from record {}: key certified by CA {}{from}", session.first, session.ca_blake3);
    }
    if options.cas.is_empty() {
        say!("  note: the CAs are those that the log names; --ca says which one to trust");
    }
    if let Some(record) = verified.countersigned {
        say!("  counter-signed by nodes up to record {record}");
    }
    if verified.late_signed > 0 {
        say!("  note: {} records were signed by a later run's key alone", verified.late_signed);
    }
    if verified.left_out > 0 {
        say!("  note: {} entries were left out while it could not be written", verified.left_out);
    }
    if verified.unsigned_deletions > 0 {
        say!(
            "  note: {} checkpoints are gone by word of checkpoint/deletions.jsonl alone, which nobody signed",
            verified.unsigned_deletions
        );
    }
    if !verified.ended {
        say!("  note: it does not come to the run's end");
    }
    match verified.since_expected {
        Some(0) => say!("  the head is the expected one"),
        Some(more) => say!("  the expected head is in it; it has grown by {more} records since"),
        None => {}
    }
    if let Some(head) = verified.head {
        say!("  head {head}");
    }
}

fn show(run_dir: &RunDir, kinds: &[String], as_json: bool) -> Result<(), Failure> {
    let options = Options { unfinished: true, ..Options::default() };
    let shown = read(&run_dir.audit_log(), &options, |seen, _| {
        let record = seen.record;
        if kinds.is_empty() || kinds.contains(&record.kind) {
            let at = crate::rundir::timestamp(seen.at());
            let body = serde_json::Value::Object(record.body.clone());
            match as_json {
                true => {
                    say!("{}", json!({ "seq": record.seq, "at": at, "kind": record.kind, "body": body }));
                }
                false => say!("{:>6}  {at}  {:<12} {body}", record.seq, record.kind),
            }
        }
    });
    shown.map(|_| ()).map_err(Failure::failed)
}
