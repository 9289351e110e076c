//! `testudo sign`: an OpenSSF model signature, and the key for it.

mod reported;

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde_json::json;

use crate::error::Failure;
use crate::say::say;
use crate::signing::key::public_path;
use crate::signing::{SIGNATURE_FILE, SigningKey, export, sign as sign_model};
use reported::ReportedArguments;

/// `testudo sign`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo sign --new-key release.pem
  testudo sign model --key release.pem")]
#[command(group(ArgGroup::new("what").required(true).args(["key", "new_key"])))]
pub(crate) struct SignArguments {
    /// The model's folder
    #[arg(required_unless_present = "new_key")]
    dir: Option<PathBuf>,
    /// The private key: ECDSA P-256 in PEM, readable by its owner alone
    #[arg(long, value_name = "KEY.pem", requires = "dir")]
    key: Option<PathBuf>,
    /// Make a key first: KEY.pem, which nobody but you can read, and KEY.pub.pem for those who verify
    #[arg(long, value_name = "KEY.pem")]
    new_key: Option<PathBuf>,
    /// Where to write the signature [default: DIR/model.sig]
    #[arg(long, value_name = "FILE", requires = "dir")]
    signature: Option<PathBuf>,
    #[command(flatten)]
    reported: ReportedArguments,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn sign(arguments: &SignArguments) -> Result<(), Failure> {
    // Before a key is made for nothing.
    let reported = arguments.reported.model()?;
    let key = match (&arguments.key, &arguments.new_key) {
        (Some(path), _) => SigningKey::load(path).map_err(Failure::misconfigured)?,
        (None, Some(path)) => {
            let key = SigningKey::create(path).map_err(Failure::misconfigured)?;
            if !arguments.json {
                say!(
                    "key {} in {}, its public key in {}",
                    key.public().hint(),
                    path.display(),
                    public_path(path).display()
                );
            }
            key
        }
        (None, None) => return Err(Failure::misconfigured("a key is needed: --key or --new-key")),
    };
    let mut object = json!({ "key": key.public().hint() });
    if let Some(path) = &arguments.new_key {
        object["new_key"] = json!(path);
        object["public_key"] = json!(public_path(path));
    }
    let Some(dir) = &arguments.dir else {
        if arguments.json {
            say!("{object}");
        }
        return Ok(());
    };
    let signature = arguments.signature.clone().unwrap_or_else(|| dir.join(SIGNATURE_FILE));
    let signed = match &reported {
        Some((model, metadata)) => export::sign(dir, model, metadata, &key).map_err(Failure::failed),
        None => sign_model(dir, &signature, &key).map_err(Failure::failed),
    };
    if let (Err(_), Some(path)) = (&signed, &arguments.new_key) {
        // The key of a moment ago has signed nothing, and would be in the way of the same command, given again.
        for made in [path.clone(), public_path(path)] {
            if let Err(e) = std::fs::remove_file(&made) {
                tracing::warn!("{}: the key that signed nothing could not be removed: {e}", made.display());
            }
        }
    }
    let manifest = signed?;
    let files = manifest.files.len();
    if arguments.json {
        object["dir"] = json!(dir);
        object["files"] = json!(files);
        object["signature"] = json!(signature);
        say!("{object}");
        return Ok(());
    }
    let plural = if files == 1 { "" } else { "s" };
    say!(
        "{files} file{plural} of {} signed with key {} in {}",
        dir.display(),
        key.public().hint(),
        signature.display()
    );
    Ok(())
}
