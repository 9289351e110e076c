//! `testudo pki revoke` and `testudo pki crl`: the CA's list of revoked certificates.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::pki::enrol::span;
use crate::authority::Authority;
use crate::error::Failure;

/// `testudo pki revoke`
#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// What to take back: the folder of an identity, a certificate's PEM file, a serial number in hexadecimal, or ROLE/NAME for
    /// every certificate that this node has
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Say in the list that the keys are known or feared to be in other hands
    #[arg(long)]
    compromised: bool,
    #[command(flatten)]
    list: CrlArguments,
}

/// `testudo pki crl`
#[derive(Debug, Args)]
pub(crate) struct CrlArguments {
    /// The certificate authority's folder, where the list is: crl.pem
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// How long the list is good, as in 12h or 7d; nodes trust nobody once it has ended
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = span)]
    valid_for: Duration,
}

pub(super) fn revoke(arguments: &RevokeArguments) -> Result<(), Failure> {
    let RevokeArguments { targets, compromised, list } = arguments;
    write(&list.ca, targets, *compromised, list.valid_for)
}

pub(super) fn crl(arguments: &CrlArguments) -> Result<(), Failure> {
    write(&arguments.ca, &[], false, arguments.valid_for)
}

fn write(ca: &Path, targets: &[String], compromised: bool, validity: Duration) -> Result<(), Failure> {
    let authority = Authority::open(ca)?;
    let listed = authority.list(targets, compromised, validity)?;
    for (whose, serial) in &listed.revoked {
        println!("revoked {whose} (serial number {serial})");
    }
    if listed.before > 0 {
        println!("revoked before: {}", listed.before);
    }
    println!(
        "list {} in {}: {} revoked, good until {}; nodes take it from the file that security.crl names",
        listed.crl.number(),
        authority.path().display(),
        listed.crl.len(),
        listed.crl.end()
    );
    Ok(())
}
