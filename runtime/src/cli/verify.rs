//! `testudo verify`: is a model what was signed?

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::error::Failure;
use crate::rundir::in_words;
use crate::say::{note, say};
use crate::signing::{PublicKey, SIGNATURE_FILE, SigningError, verify as verify_model};

/// `testudo verify`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo verify runs/mnist-20261123T081613Z/checkpoint/final --public-key runs/mnist-20261123T081613Z/checkpoint/model.pub.pem")]
pub(crate) struct VerifyArguments {
    /// The model's folder
    dir: PathBuf,
    /// The signer's public key, in PEM
    #[arg(long, value_name = "PUB.pem")]
    public_key: PathBuf,
    /// Where the signature is [default: DIR/model.sig]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn verify(arguments: &VerifyArguments) -> Result<(), Failure> {
    let key = PublicKey::load(&arguments.public_key).map_err(Failure::misconfigured)?;
    let signature = arguments.signature.clone().unwrap_or_else(|| arguments.dir.join(SIGNATURE_FILE));
    let verified = verify_model(&arguments.dir, &signature, &key).map_err(|error| match error {
        SigningError::Differs { .. } => Failure::failed(error),
        error => Failure::failed(format!("{}: {error}", signature.display())),
    });
    if arguments.json {
        let mut object = json!({
            "dir": arguments.dir, "signature": signature, "key": key.hint(), "good": verified.is_ok(),
        });
        match &verified {
            Ok(verified) => {
                object["files"] = json!(verified.manifest().files.len());
                object["uncovered"] = json!(verified.uncovered());
            }
            Err(failure) => object["problem"] = json!(in_words(&failure.message)),
        }
        say!("{object}");
        return verified.map(|_| ());
    }
    let verified = verified?;
    for name in verified.uncovered() {
        note!("note: {name:?} is there, but not covered by the signature");
    }
    let files = verified.manifest().files.len();
    let plural = if files == 1 { "" } else { "s" };
    say!("{files} file{plural} of {} as signed with key {}", arguments.dir.display(), key.hint());
    Ok(())
}
