//! `testudo pki request|issue|install|renew`: certificates for keys that stay where they were made.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use testudo_transport::pki::{self, Request};
use testudo_transport::{JobCa, Role, SpiffeId};

use crate::error::Failure;
use crate::process::user;
use crate::say::{note, say};

/// Seconds in the units that a span of time may be given in.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];

/// `testudo pki request`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki request --job mnist --role worker/0 --out identities/worker-0")]
pub(crate) struct RequestArguments {
    /// The job's name, as job.name in the cluster file
    #[arg(long)]
    job: String,
    /// The trust domain, as job.trust_domain in the cluster file
    #[arg(long, default_value = "testudo.local")]
    trust_domain: String,
    /// Who this node is, such as worker/0
    #[arg(long, value_name = "ROLE/INDEX")]
    role: String,
    /// The node's folder: key.pem and request.pem are put in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON object on the last line of standard output: id, key_sha256, request
    #[arg(long)]
    json: bool,
}

/// `testudo pki issue`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki issue request.pem --ca ca --as worker/0 --out cert.pem
  testudo pki issue --ca ca --role operator --name alice --out identities/alice
  testudo pki issue renewal.pem --ca ca --out cert.pem --valid-for 7d")]
pub(crate) struct IssueArguments {
    /// The request to grant (request.pem or renewal.pem of a node); without one a key is made here too, for an identity
    /// that stays on this machine
    request: Option<PathBuf>,
    /// The certificate authority's folder
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// Whose request it is: you know that this node has the key in it. A renewal needs no confirmation
    #[arg(long = "as", value_name = "ROLE/INDEX", requires = "request")]
    confirmed: Option<String>,
    /// Without a request: scheduler, server, worker, peer, operator or actor
    #[arg(long, conflicts_with = "request", required_unless_present = "request")]
    role: Option<String>,
    /// Without a request: the node's index, or an operator's or actor's name
    #[arg(long, default_value = "0", conflicts_with = "request")]
    name: String,
    /// For a request the certificate's file; without one the folder to put ca.pem, cert.pem and key.pem in
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How long it is good, such as 90m, 24h or 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span)]
    valid_for: Duration,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    json: bool,
}

/// `testudo pki install`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki install identities/worker-0 --cert cert.pem --ca ca.pem")]
pub(crate) struct InstallArguments {
    /// The node's folder
    dir: PathBuf,
    /// The certificate that was issued
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The CA's certificate, the first time
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print one JSON object on the last line of standard output: id, out, serial, not_after
    #[arg(long)]
    json: bool,
}

/// `testudo pki renew`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki renew identities/worker-0")]
pub(crate) struct RenewArguments {
    /// The node's folder, with an identity that is good now
    dir: PathBuf,
    /// Keep the key, instead of making a new one
    #[arg(long)]
    same_key: bool,
    /// Print one JSON object on the last line of standard output: id, key_sha256, request
    #[arg(long)]
    json: bool,
}

pub(super) fn request(arguments: &RequestArguments) -> Result<(), Failure> {
    let RequestArguments { job, trust_domain, role, out, json } = arguments;
    let id = named(role, trust_domain, job)?;
    trust_owner_of(out);
    let request = pki::request(out, &id).map_err(Failure::misconfigured)?;
    let file = out.join(pki::REQUEST_FILE);
    if *json {
        say!("{}", requested(&request, &file));
        return Ok(());
    }
    say!("{id}\nkey sha256 {}\nrequest in {}", request.key_sha256(), file.display());
    say!(
        "take it to the operator: testudo pki issue {} --ca CA --as {} --out CERT",
        file.display(),
        id.short()
    );
    say!("and what comes back here: testudo pki install {} --cert CERT --ca CA.pem", out.display());
    Ok(())
}

pub(super) fn issue(arguments: &IssueArguments) -> Result<(), Failure> {
    let ca = JobCa::load(&arguments.ca).map_err(Failure::misconfigured)?;
    let (trust_domain, job) = (ca.trust().trust_domain().to_owned(), ca.trust().job().to_owned());
    match (&arguments.request, &arguments.role) {
        (Some(request), _) => grant(arguments, &ca, request),
        (None, Some(role)) => {
            let role: Role = role.parse().map_err(Failure::misconfigured)?;
            let id =
                SpiffeId::new(&trust_domain, &job, role, &arguments.name).map_err(Failure::misconfigured)?;
            let identity = ca.issue(&id, arguments.valid_for).map_err(Failure::failed)?;
            identity.save(&arguments.out).map_err(Failure::failed)?;
            match arguments.json {
                true => say!("{}", issued(&id, &arguments.out, identity.certificate_pem())?),
                false => say!("{id} in {}", arguments.out.display()),
            }
            if role != Role::Operator {
                note!(
                    "its key was made here, and has to travel if the node is on another machine; it does not where it is made there: \
                     testudo pki request --job {job} --role {} --out DIR on the node, and here: testudo pki issue REQUEST",
                    id.short()
                );
            }
            Ok(())
        }
        // The parser of arguments asks for one of them.
        (None, None) => Err(Failure::misconfigured("give a request, or --role")),
    }
}

fn grant(arguments: &IssueArguments, ca: &JobCa, file: &Path) -> Result<(), Failure> {
    let at = |why: pki::PkiError| Failure::misconfigured(format!("{}: {why}", file.display()));
    let pem = pki::read_public(file).map_err(Failure::misconfigured)?;
    let request = Request::from_pem(&pem).map_err(at)?;
    let (id, key) = (request.id(), request.key_sha256());
    let confirmed = match &arguments.confirmed {
        Some(text) => Some(named(text, ca.trust().trust_domain(), ca.trust().job())?),
        None if request.is_renewal() => None,
        None => {
            return Err(Failure::misconfigured(format!(
                "{} asks to be {id} with the key\n  sha256 {key}\ncompare that with what `testudo pki request` printed on \
                 the node; if it is the node's, confirm it with --as {}",
                file.display(),
                id.short()
            )));
        }
    };
    heed_own_list(ca, &arguments.ca)?;
    let certificate = ca.issue_for(&request, confirmed.as_ref(), arguments.valid_for).map_err(at)?;
    pki::write_public(&arguments.out, certificate.as_bytes()).map_err(Failure::failed)?;
    if arguments.json {
        let mut object = issued(id, &arguments.out, &certificate)?;
        object["key_sha256"] = key.into();
        say!("{object}");
        return Ok(());
    }
    say!("{id}\nkey sha256 {key}\ncertificate in {}", arguments.out.display());
    Ok(())
}

/// A request that was made, for a program.
fn requested(request: &Request, file: &Path) -> Value {
    json!({ "id": request.id(), "key_sha256": request.key_sha256(), "request": file })
}

/// A certificate that was issued, for a program.
pub(super) fn issued(id: &SpiffeId, out: &Path, certificate_pem: &str) -> Result<Value, Failure> {
    let info = pki::describe(certificate_pem.as_bytes()).map_err(Failure::failed)?;
    Ok(json!({ "id": id, "out": out, "serial": info.serial, "not_after": info.not_after }))
}

/// What the CA has taken back renews nothing.
fn heed_own_list(ca: &JobCa, dir: &Path) -> Result<(), Failure> {
    let list = dir.join(pki::CRL_FILE);
    if list.exists() {
        let installed = pki::read_crl(&list).and_then(|bytes| ca.trust().install_crl(&bytes));
        installed.map_err(|why| Failure::misconfigured(format!("{}: {why}", list.display())))?;
    }
    Ok(())
}

/// Root's commands take the files of whose folder it names like its own: a node's that runs as another user than root.
fn trust_owner_of(folder: &Path) {
    if user::is_root()
        && let Ok(found) = std::fs::symlink_metadata(folder)
        && found.is_dir()
        && found.uid() != 0
    {
        pki::trust_owner(found.uid());
    }
}

pub(super) fn install(arguments: &InstallArguments) -> Result<(), Failure> {
    trust_owner_of(&arguments.dir);
    let cert = pki::read_public(&arguments.cert).map_err(Failure::misconfigured)?;
    let ca = match &arguments.ca {
        Some(file) => Some(pki::read_public(file).map_err(Failure::misconfigured)?),
        None => None,
    };
    let installed =
        pki::install(&arguments.dir, &cert, ca.as_deref()).map_err(|why| Failure::misconfigured(&why))?;
    match arguments.json {
        true => say!("{}", issued(installed.id(), &arguments.dir, installed.certificate_pem())?),
        false => say!("{} in {}", installed.id(), arguments.dir.display()),
    }
    Ok(())
}

pub(super) fn renew(arguments: &RenewArguments) -> Result<(), Failure> {
    trust_owner_of(&arguments.dir);
    let request = pki::renew(&arguments.dir, arguments.same_key).map_err(Failure::misconfigured)?;
    let file = arguments.dir.join(pki::RENEWAL_FILE);
    if arguments.json {
        say!("{}", requested(&request, &file));
        return Ok(());
    }
    say!("{}\nkey sha256 {}\nrequest in {}", request.id(), request.key_sha256(), file.display());
    say!("take it to the operator: testudo pki issue {} --ca CA --out CERT", file.display());
    say!("and what comes back here: testudo pki install {} --cert CERT", arguments.dir.display());
    Ok(())
}

/// The identity `ROLE/NAME` of a job.
pub(super) fn named(text: &str, trust_domain: &str, job: &str) -> Result<SpiffeId, Failure> {
    let (role, name) = text.split_once('/').ok_or_else(|| {
        Failure::misconfigured(format!(
            "`{text}` is no ROLE/INDEX; write it as in worker/0 or operator/alice"
        ))
    })?;
    let role: Role = role.parse().map_err(Failure::misconfigured)?;
    SpiffeId::new(trust_domain, job, role, name).map_err(Failure::misconfigured)
}

/// A span of time as people write it: `90m`, `24h`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no span of time; write a number and s, m, h or d, as in 90m or 24h");
    let mut characters = text.chars();
    let unit = characters.next_back().ok_or_else(wrong)?;
    let number = characters.as_str();
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(*seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_read_as_people_write_them() {
        let read = |text| span(text).map(|time| time.as_secs());
        assert_eq!((read("45s"), read("90m")), (Ok(45), Ok(5400)));
        assert_eq!((read("24h"), read("7d")), (Ok(86_400), Ok(604_800)));
        for wrong in ["", "h", "24", "1.5h", "-1h", "+1h", "24 h", "1w", "24hh", "999999999999999999d"] {
            assert!(span(wrong).unwrap_err().contains("no span of time"), "{wrong}");
        }
    }
}
