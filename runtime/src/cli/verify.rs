//! `testudo verify`: is a model what was signed?

use std::path::PathBuf;

use clap::Args;

use crate::error::Failure;
use crate::signing::{PublicKey, SIGNATURE_FILE, SigningError, verify as verify_model};

/// `testudo verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// The model's folder
    dir: PathBuf,
    /// The signer's public key, in PEM
    #[arg(long, value_name = "PUB.pem")]
    public_key: PathBuf,
    /// Where the signature is [default: DIR/model.sig]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

pub(super) fn verify(arguments: &VerifyArguments) -> Result<(), Failure> {
    let key = PublicKey::load(&arguments.public_key).map_err(Failure::misconfigured)?;
    let signature = arguments.signature.clone().unwrap_or_else(|| arguments.dir.join(SIGNATURE_FILE));
    let verified = verify_model(&arguments.dir, &signature, &key).map_err(|error| match error {
        SigningError::Differs { .. } => Failure::failed(error),
        error => Failure::failed(format!("{}: {error}", signature.display())),
    })?;
    for name in verified.uncovered() {
        eprintln!("note: {name:?} is there, but not covered by the signature");
    }
    let files = verified.manifest().files.len();
    let plural = if files == 1 { "" } else { "s" };
    println!("{files} file{plural} of {} as signed with key {}", arguments.dir.display(), key.hint());
    Ok(())
}
