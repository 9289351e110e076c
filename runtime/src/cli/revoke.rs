//! `testudo pki revoke` and `testudo pki crl`: the CA's list of revoked certificates. `testudo revoke`: the same, and at once in
//! force in a run.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use testudo_transport::Identity;
use testudo_transport::pki::{LONGEST_CRL, PkiError, read_crl};

use super::operate::{Found, Target, answered, over};
use super::pki::enrol::span;
use crate::authority::{Authority, Listed};
use crate::error::Failure;
use crate::rundir::RunDir;
use crate::say::say;

/// `testudo pki revoke`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki revoke worker/3 --ca ca
  testudo pki revoke identities/worker-3 --ca ca --compromised")]
pub(crate) struct RevokeArguments {
    /// What to take back: the folder of an identity, a certificate's PEM file, a serial number in hexadecimal, or ROLE/NAME for
    /// every certificate that this node has, and every join token
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Say in the list that the keys are known or feared to be in other hands
    #[arg(long)]
    compromised: bool,
    #[command(flatten)]
    list: CrlArguments,
}

/// How long a list is good if nothing else is said: a week to make the next one in.
const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// `testudo revoke`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo revoke runs/mnist-20261123T081613Z worker/1
  testudo revoke --scheduler 10.0.0.1:4800 --identity identities/operator-0 --ca ca worker/3
  testudo revoke --scheduler 10.0.0.1:4800 --identity identities/operator-0 --crl crl.pem")]
pub(crate) struct RunRevokeArguments {
    #[command(flatten)]
    target: Target,
    /// Whom to revoke: ROLE/INDEX for every certificate that this node has, the folder of an identity, a certificate's PEM file,
    /// or a serial number in hexadecimal
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// The certificate authority's folder, which signs [default: the run directory's]
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// Hand in this list, which the CA has signed elsewhere; or several CAs' lists in one file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "ca", "compromised", "valid_for"])]
    crl: Option<PathBuf>,
    /// Say in the list that the keys are known or feared to be in other hands
    #[arg(long)]
    compromised: bool,
    /// How long the list is good, as in 12h or 7d; nodes trust nobody once it has ended [default: 7d; a run's own CA: as long as
    /// that is good]
    #[arg(long, value_name = "TIME", value_parser = span)]
    valid_for: Option<Duration>,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    json: bool,
}

impl RunRevokeArguments {
    /// The run and the nodes: without a run directory, the first word is a node's.
    fn whom(&self) -> (Target, Vec<String>) {
        let (mut target, mut nodes) = (self.target.clone(), self.nodes.clone());
        if target.scheduler.is_some()
            && let Some(word) = target.run_dir.take_if(|word| !word.is_dir())
        {
            nodes.insert(0, word.to_string_lossy().into_owned());
        }
        (target, nodes)
    }

    /// The list to hand in, in DER: read (and then there may be several), or signed by the CA that was named, or by the run's own.
    /// Beside it, what a program is told of one that was signed here.
    fn list(
        &self,
        run_dir: Option<&RunDir>,
        nodes: &[String],
        operator: &Identity,
    ) -> Result<(Vec<u8>, Value), Failure> {
        if let Some(file) = &self.crl {
            let wrong = |e: PkiError| Failure::misconfigured(format!("{}: {e}", file.display()));
            let bytes = read_crl(file).map_err(Failure::misconfigured)?;
            let lists = operator.trust().read_crls(&bytes).map_err(wrong)?;
            return Ok((lists.iter().flat_map(|crl| crl.der().to_vec()).collect(), json!({})));
        }
        if nodes.is_empty() {
            return Err(Failure::misconfigured(
                "whom? name a node, as in worker/3, or give a list with --crl",
            ));
        }
        let (authority, validity) = match (&self.ca, run_dir) {
            (Some(ca), _) => (Authority::open(ca)?, VALID_FOR),
            (None, Some(run_dir)) => {
                let authority = Authority::open(&run_dir.authority())?;
                let rest = authority.rest()?.min(LONGEST_CRL);
                (authority, rest)
            }
            (None, None) => {
                return Err(Failure::misconfigured(
                    "who signs? give the CA's folder with --ca, or a list that it has signed with --crl",
                ));
            }
        };
        let validity = self.valid_for.unwrap_or(validity);
        let listed = authority.list(nodes, self.compromised, validity)?;
        if !self.json {
            tell(&authority, &listed);
        }
        Ok((listed.crl.der().to_vec(), object(&authority, &listed)))
    }
}

pub(super) fn in_run(arguments: &RunRevokeArguments) -> Result<(), Failure> {
    let (target, nodes) = arguments.whom();
    let found = target.find_and(|run_dir, operator| arguments.list(run_dir, &nodes, operator))?;
    let (Found::Scheduler(site), Some((crl, object))) = found else { return Err(over(&target)) };
    answered(site.run(async |line| line.revoke(crl).await)?, arguments.json.then_some(object))
}

/// `testudo pki crl`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki crl --ca ca
  testudo pki crl --ca ca --valid-for 12h")]
pub(crate) struct CrlArguments {
    /// The certificate authority's folder, where the list is: crl.pem
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// How long the list is good, as in 12h or 7d; nodes trust nobody once it has ended
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = span)]
    valid_for: Duration,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn revoke(arguments: &RevokeArguments) -> Result<(), Failure> {
    write(&arguments.list, &arguments.targets, arguments.compromised)
}

pub(super) fn crl(arguments: &CrlArguments) -> Result<(), Failure> {
    write(arguments, &[], false)
}

/// Writes the CA's next list, with `targets` in it.
fn write(arguments: &CrlArguments, targets: &[String], compromised: bool) -> Result<(), Failure> {
    let authority = Authority::open(&arguments.ca)?;
    let listed = authority.list(targets, compromised, arguments.valid_for)?;
    if arguments.json {
        say!("{}", object(&authority, &listed));
    } else {
        tell(&authority, &listed);
        say!("nodes take it from the file that security.crl names");
    }
    Ok(())
}

/// What was listed, for a person.
fn tell(authority: &Authority, listed: &Listed) {
    for (whose, serial) in &listed.revoked {
        say!("revoked {whose} (serial number {serial})");
    }
    if listed.withdrawn > 0 {
        say!("withdrawn: {} join token(s)", listed.withdrawn);
    }
    if listed.before > 0 {
        say!("revoked before: {}", listed.before);
    }
    say!(
        "list {} in {}: {} revoked, good until {}",
        listed.crl.number(),
        authority.path().display(),
        listed.crl.len(),
        listed.crl.end()
    );
}

/// The same, for a program.
fn object(authority: &Authority, listed: &Listed) -> Value {
    let revoked = listed.revoked.iter();
    let revoked = revoked.map(|(whose, serial)| json!({ "whose": whose, "serial": serial.to_string() }));
    json!({
        "list": authority.path(),
        "number": listed.crl.number().to_string(),
        "next_update": listed.crl.next_update(),
        "revoked": revoked.collect::<Vec<_>>(),
        "revoked_before": listed.before,
        "revoked_in_all": listed.crl.len(),
        "tokens_withdrawn": listed.withdrawn,
    })
}
