//! `testudo pki token|serve|join`: nodes that the operator does not reach by hand.

use std::fs::DirBuilder;
use std::io::Read;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use testudo_observability as observability;
use testudo_transport::JobCa;
use testudo_transport::join::{self, JoinError, JoinLimits};
use testudo_transport::pki::{self, JoinToken, Tokens};
use tracing::level_filters::LevelFilter;
use zeroize::Zeroizing;

use super::enrol::{issued, named, span};
use crate::error::Failure;
use crate::process::paths::Needs;
use crate::process::{Protections, RunAs, calls, confine, user};
use crate::say::{note, say};
use crate::telemetry;

/// Longest token read, in bytes.
const MAX_TOKEN: u64 = 8 << 10;

/// `testudo pki token`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki token --ca ca --role worker/3 --out worker-3.token
  testudo pki token --ca ca --role worker/3 --valid-for 30m --key-hash 5f0c...")]
pub(crate) struct TokenArguments {
    /// The certificate authority's folder
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// Who may join with it, such as worker/3
    #[arg(long, value_name = "ROLE/INDEX")]
    role: String,
    /// How long it may be used, such as 30m or 1h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
    valid_for: Duration,
    /// The SHA-256 that `testudo pki request` printed on the node: the token is good for that key alone
    #[arg(long, value_name = "SHA256")]
    key_hash: Option<String>,
    /// Write it to this new file, which the owner alone can read, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object on the last line of standard output: id, and token, or out if it goes to a file
    #[arg(long)]
    json: bool,
}

/// `testudo pki serve`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki serve --ca ca --listen 10.0.0.1:4900")]
pub(crate) struct ServeArguments {
    /// The certificate authority's folder
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// The address to listen at (UDP)
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// How long the certificates that it issues are good
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span)]
    valid_for: Duration,
    /// Go on as root where the authority's folder is root's
    #[arg(long)]
    allow_root: bool,
}

/// `testudo pki join`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo pki join worker-3.token --address 10.0.0.1:4900 --out identities/worker-3")]
pub(crate) struct JoinArguments {
    /// The file with the token, or - for standard input
    token: PathBuf,
    /// Where the enrolment service is
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// The node's folder: its key is made in it, or taken from it if there is one without a certificate
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON object on the last line of standard output: id, out, serial, not_after
    #[arg(long)]
    json: bool,
}

pub(super) fn token(arguments: &TokenArguments) -> Result<(), Failure> {
    let ca = JobCa::load(&arguments.ca).map_err(Failure::misconfigured)?;
    let id = named(&arguments.role, ca.trust().trust_domain(), ca.trust().job())?;
    let made = Tokens::of(&arguments.ca).make(&ca, &id, arguments.valid_for, arguments.key_hash.as_deref());
    let token = made.map_err(Failure::misconfigured)?;
    let text = Zeroizing::new(token.to_text().as_str().to_owned() + "\n");
    match &arguments.out {
        Some(file) => {
            pki::write_secret(file, text.as_bytes()).map_err(Failure::failed)?;
            if arguments.json {
                say!("{}", json!({ "id": id, "out": file }));
            }
        }
        // Written by hand: a JSON value would keep a copy of the token, none of whose characters needs to be escaped.
        None if arguments.json => {
            say!("{{\"id\":{},\"token\":\"{}\"}}", json!(id), text.trim_end());
        }
        None => crate::say::out(format_args!("{}", text.as_str())),
    }
    note!("for {id}, once; hand it over as you would a password");
    Ok(())
}

pub(super) fn serve(arguments: &ServeArguments) -> Result<(), Failure> {
    let told =
        observability::Environment::from_process().open(pki::is_ours).map_err(Failure::misconfigured)?;
    confine_to(&arguments.ca, arguments.allow_root)?;
    let options = observability::Options::new("enrolment")
        .with_log_writer(std::io::stderr())
        .with_stderr(LevelFilter::OFF);
    let guard = observability::init_with(options, &told).map_err(Failure::misconfigured)?;
    tracing::info!("{}", Protections::read());
    runtime()?.block_on(async {
        let service =
            join::serve(&arguments.ca, arguments.listen, arguments.valid_for, JoinLimits::default())
                .map_err(Failure::misconfigured)?;
        telemetry::enrolment(&guard.meter(), service.refusals());
        say!("listening {}", service.local_addr());
        // Until a signal ends the process: nothing is half done between two exchanges.
        std::future::pending::<()>().await;
        drop(service);
        Ok(())
    })
}

/// The authority's key is needed as long as this runs, and must be nobody's else: so this runs as its owner, with no capability, and
/// with that one folder. Root it is only when told so.
fn confine_to(ca: &Path, allow_root: bool) -> Result<(), Failure> {
    let owner = std::fs::metadata(ca).map_err(|e| Failure::file(ca, "cannot be read", e))?.uid();
    if user::is_root() && owner == 0 && !allow_root {
        return Err(Failure::misconfigured(format!(
            "{} is root's, and nothing serves as root: give it to the user that nodes run as (security.run_as; chown -R {} {}), \
             whom this then becomes, or say --allow-root",
            ca.display(),
            user::NOBODY,
            ca.display()
        )));
    }
    go_on_as(owner)?;
    let tcp = observability::exports();
    confine(calls::Role::Node, Needs { write: vec![ca.into()], tcp, ..Needs::default() });
    Ok(())
}

/// Becomes the owner of a folder, where this is root and the folder is not; whoever it is, it keeps no capability.
fn go_on_as(owner: u32) -> Result<(), Failure> {
    if user::is_root() && owner != 0 {
        let owner = RunAs::find(&owner.to_string()).map_err(Failure::misconfigured)?;
        return owner.take_over().map_err(Failure::misconfigured);
    }
    user::keep_no_capability();
    Ok(())
}

pub(super) fn join(arguments: &JoinArguments) -> Result<(), Failure> {
    let text = read_token(&arguments.token)?;
    let token: JoinToken = text.parse().map_err(Failure::misconfigured)?;
    let unresolved = |why: &dyn std::fmt::Display| {
        Failure::misconfigured(format!("{} cannot be resolved: {why}", arguments.address))
    };
    let mut addresses = arguments.address.to_socket_addrs().map_err(|why| unresolved(&why))?;
    let address = addresses.next().ok_or_else(|| unresolved(&"it has no address"))?;
    confine_to_identity(&arguments.out)?;
    let joined = runtime()?.block_on(join::join(&token, address, &arguments.out));
    let identity = joined.map_err(|why| match why {
        JoinError::Refused(_) | JoinError::Pki(_) => Failure::misconfigured(why),
        _ => Failure::failed(why),
    })?;
    match arguments.json {
        true => say!("{}", issued(identity.id(), &arguments.out, identity.certificate_pem())?),
        false => say!("{} in {}", identity.id(), arguments.out.display()),
    }
    Ok(())
}

/// Whoever answers is a stranger until it has proved itself, so what listens to it keeps no capability and the one folder.
fn confine_to_identity(out: &Path) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(out);
    let owner = made.and_then(|()| std::fs::symlink_metadata(out)).map(|found| found.uid());
    go_on_as(owner.map_err(|e| Failure::file(out, "cannot be made", e))?)?;
    confine(calls::Role::Node, Needs { write: vec![out.into()], ..Needs::default() });
    Ok(())
}

/// From a file that nobody else can read, or from standard input; never from the command line, which everybody can.
fn read_token(from: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = if from == Path::new("-") {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TOKEN as usize));
        let read = std::io::stdin().take(MAX_TOKEN).read_to_end(&mut bytes);
        read.map_err(|e| Failure::misconfigured(format!("standard input cannot be read: {e}")))?;
        bytes
    } else {
        pki::read_secret(from).map_err(Failure::misconfigured)?
    };
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no runtime could be started: {e}")))
}
