//! Signed models: a folder of files, and beside them `model.sig`, which says whose they are and that none has changed.
//!
//! The form is OpenSSF Model Signing v1.0 (<https://github.com/ossf/model-signing-spec>), as PyPI's `model-signing` 1.1
//! reads and writes it: a Sigstore bundle v0.3 ([`bundle`]) around a DSSE envelope around an in-toto statement
//! ([`statement`]) that lists every file with its SHA-256. Keys are ECDSA P-256 ([`key`]).
//!
//! Invariants:
//! 1. A folder verifies only if every file that is signed is there with the signed content, and no other file is there
//!    but the signature itself and what the signer put on the list of ignored paths.
//! 2. No link is followed below the folder, and nothing but regular files and folders is read ([`tree`]).
//! 3. A bundle is refused unless it has exactly one meaning: no key stands twice in any object, nothing is nested deep,
//!    Base64 is canonical, names are plain relative paths, there is one signature and one subject.
//! 4. What is read through [`Verified`] is hashed as it was read: a file that changes after the check is refused.
//! 5. Files are hashed as a stream; a bundle is at most [`bundle::BYTES_MOST`] long.
//! 6. `model.sig` is written whole or not at all.
//!
//! A signature says that the holder of a key signed these files. It does not say when, nor that the model is any good.

pub mod bundle;
pub mod export;
mod json;
pub mod key;
pub mod statement;
pub mod tree;
mod verify;

use std::fmt;
use std::path::{Path, PathBuf};

use testudo_transport::PkiError;

pub use key::{PublicKey, SigningKey};
pub use statement::Manifest;
pub(crate) use verify::read as read_file;
pub use verify::{Difference, Verified, verify};

use tree::Tree;

/// Name of a model's signature in its folder.
pub const SIGNATURE_FILE: &str = "model.sig";

/// What no signature covers, as the public tool has it: what a version control system keeps beside a model.
pub const IGNORED: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// Differences that a message names; the rest are counted.
const NAMED_MOST: usize = 100;

/// Why a model was not signed, or did not verify.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// A key's file.
    #[error(transparent)]
    KeyFile(#[from] PkiError),
    /// A key that is not of the one kind that is taken.
    #[error(
        "{what}: {why}. Keys are ECDSA P-256 in PEM: `testudo sign --new-key KEY.pem` makes one, and so does `openssl \
         ecparam -name prime256v1 -genkey -noout`"
    )]
    Key {
        /// Which.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The operating system refused.
    #[error("{}: {what}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder holds what no model may hold.
    #[error("{}: {why}", path.display())]
    Model {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The bundle, or what it signs, is not of the form.
    #[error("the signature is malformed: {0}")]
    Malformed(String),
    /// The bundle says that it was made with another key.
    #[error("signed with another key: the signature names {signed}, the key given is {given}")]
    OtherKey {
        /// The hint in the bundle.
        signed: String,
        /// The hint of the key given.
        given: String,
    },
    /// The signature is not this key's over this content.
    #[error("the signature does not verify: it or what it signs was altered")]
    Forged,
    /// The files are not those that were signed.
    #[error("{} is not what was signed:{}", path.display(), Listed(differences))]
    Differs {
        /// The folder.
        path: PathBuf,
        /// How they differ, by name.
        differences: Vec<Difference>,
    },
}

struct Listed<'a>(&'a [Difference]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in self.0.iter().take(NAMED_MOST) {
            write!(f, "\n  {difference}")?;
        }
        match self.0.len().saturating_sub(NAMED_MOST) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// Signs the model in the folder `dir` and writes the bundle to `signature`, replacing one that is there. Returns what was
/// signed.
///
/// # Errors
/// [`SigningError`]; then the signature's file is as it was.
pub fn sign(dir: &Path, signature: &Path, key: &SigningKey) -> Result<Manifest, SigningError> {
    let tree = Tree::open(dir)?;
    let mut ignored: Vec<String> = vec![SIGNATURE_FILE.to_owned()];
    ignored.extend(tree.name_of(signature).filter(|name| name != SIGNATURE_FILE));
    ignored.extend(IGNORED.map(str::to_owned));
    let mut files = Vec::new();
    for name in tree.files(&ignored)? {
        let digest = tree.sha256(&name)?;
        files.push((name, digest));
    }
    if files.is_empty() {
        let why = "holds no file that could be signed".to_owned();
        return Err(SigningError::Model { path: dir.to_owned(), why });
    }
    let manifest = Manifest { name: tree.model_name()?, files, ignored };
    write_signed(&manifest, signature, key)?;
    Ok(manifest)
}

fn write_signed(manifest: &Manifest, signature: &Path, key: &SigningKey) -> Result<(), SigningError> {
    let bundle = bundle::seal(&manifest.to_payload()?, key)?;
    write_whole(signature, bundle.as_bytes()).map_err(|source| SigningError::File {
        path: signature.to_owned(),
        what: "cannot be written",
        source,
    })
}

/// Writes a file that all can read, so that a crash at any moment leaves the old one or the new one.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    write_whole_as(path, bytes, 0o644)
}

/// Writes a file of this mode so that a crash at any moment leaves the old one or the new one.
pub(crate) fn write_whole_as(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

/// Hexadecimal, lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The 32 bytes that 64 lower-case hexadecimal digits say; no other spelling is taken.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests;
