//! What is signed: an in-toto statement that lists a model's files.
//!
//! Sources: in-toto Statement v1, <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>; the predicate
//! `https://model_signing/signature/v1.0`.
//!
//! The public tool builds the statement's members in the order in which they stand here, and files in the order of their
//! names' components, so that `a/b` stands before `a.b`. It writes the predicate's members through a map without an order
//! of its own, so they come out in another one each time; readers must not care, and we do not.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;

use super::json::{self, Json};
use super::{SigningError, hex, unhex};

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
const METHOD: &str = "files";
const HASH: &str = "sha256";
/// Longest name of a file, in bytes: what Linux takes for a path.
const NAME_MOST: usize = 4096;

/// A model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What the signer called the model: its folder's name. It says nothing about where the model is now.
    pub name: String,
    /// Every file with its SHA-256, by its path in the folder; in order of the components of their names, where we signed.
    pub files: Vec<(String, [u8; 32])>,
    /// Paths in the folder that the signature leaves out: files, or folders with all that is in them.
    pub ignored: Vec<String>,
}

#[derive(Serialize)]
struct Statement<'a> {
    _type: &'a str,
    subject: [Subject<'a>; 1],
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    predicate: Predicate<'a>,
}

#[derive(Serialize)]
struct Subject<'a> {
    name: &'a str,
    digest: Digest,
}

#[derive(Serialize)]
struct Digest {
    sha256: String,
}

#[derive(Serialize)]
struct Predicate<'a> {
    serialization: Serialization<'a>,
    resources: Vec<Resource<'a>>,
}

#[derive(Serialize)]
struct Serialization<'a> {
    method: &'a str,
    hash_type: &'a str,
    allow_symlinks: bool,
    ignore_paths: &'a [String],
}

#[derive(Serialize)]
struct Resource<'a> {
    name: &'a str,
    algorithm: &'a str,
    digest: String,
}

impl Manifest {
    /// The payload to sign.
    ///
    /// # Errors
    /// A name that cannot be signed.
    pub fn to_payload(&self) -> Result<Vec<u8>, SigningError> {
        for (name, _) in &self.files {
            check_name(name)?;
        }
        let resource = |(name, digest): &'_ (String, [u8; 32])| (name.clone(), hex(digest));
        let listed: Vec<(String, String)> = self.files.iter().map(resource).collect();
        let statement = Statement {
            _type: STATEMENT_TYPE,
            subject: [Subject { name: &self.name, digest: Digest { sha256: hex(&self.digest()) } }],
            predicate_type: PREDICATE_TYPE,
            predicate: Predicate {
                serialization: Serialization {
                    method: METHOD,
                    hash_type: HASH,
                    allow_symlinks: false,
                    ignore_paths: &self.ignored,
                },
                resources: listed
                    .iter()
                    .map(|(name, digest)| Resource { name, algorithm: HASH, digest: digest.clone() })
                    .collect(),
            },
        };
        let text = serde_json::to_string_pretty(&statement)
            .map_err(|why| SigningError::Malformed(format!("the statement cannot be written: {why}")))?;
        Ok(ascii(&text).into_bytes())
    }

    /// Reads a payload that a signature was found good for.
    ///
    /// # Errors
    /// A statement of another kind, or one that contradicts itself.
    pub fn from_payload(payload: &[u8]) -> Result<Manifest, SigningError> {
        let mut statement = json::parse("the statement", payload)?.object("the statement")?;
        statement.fixed("_type", STATEMENT_TYPE)?;
        statement.fixed("predicateType", PREDICATE_TYPE)?;
        let mut subject = statement.only("subject")?;
        let name = subject.text("name")?;
        let mut digest = subject.object("digest")?;
        let said = digest.text(HASH)?;
        digest.end()?;
        subject.end()?;
        // Members of the predicate that version 1.0 does not name are to be passed over.
        let mut predicate = statement.object("predicate")?;
        statement.end()?;
        let mut serialization = predicate.object("serialization")?;
        serialization.fixed("method", METHOD)?;
        serialization.fixed("hash_type", HASH)?;
        // Whether the signer would have followed links; here none is.
        match serialization.take("allow_symlinks")? {
            Json::Bool(_) => {}
            _ => return Err(SigningError::Malformed("allow_symlinks is neither true nor false".to_owned())),
        }
        let mut ignored = Vec::new();
        if let Some(paths) = serialization.optional("ignore_paths") {
            for path in paths.list("ignore_paths")? {
                let path = path.text("a path in ignore_paths")?;
                check_name(&path)?;
                ignored.push(path);
            }
        }
        serialization.end()?;
        let mut files = Vec::new();
        let mut names = BTreeSet::new();
        for resource in predicate.list("resources")? {
            let mut resource = resource.object("a resource")?;
            let name = resource.text("name")?;
            check_name(&name)?;
            resource.fixed("algorithm", HASH)?;
            let digest = resource.text("digest")?;
            resource.end()?;
            let digest = unhex(&digest).ok_or_else(|| {
                SigningError::Malformed(format!("the digest of {name:?} is no SHA-256 in hex"))
            })?;
            if !names.insert(name.clone()) {
                return Err(SigningError::Malformed(format!("the file {name:?} is listed twice")));
            }
            if is_ignored(&name, &ignored) {
                return Err(SigningError::Malformed(format!("the file {name:?} is both listed and ignored")));
            }
            files.push((name, digest));
        }
        if files.is_empty() {
            return Err(SigningError::Malformed("it lists no files".to_owned()));
        }
        let manifest = Manifest { name, files, ignored };
        match unhex(&said) == Some(manifest.digest()) {
            true => Ok(manifest),
            false => Err(SigningError::Malformed(
                "the subject's digest is not that of the listed files".to_owned(),
            )),
        }
    }

    /// SHA-256 over the files' digests in their order.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        for (_, digest) in &self.files {
            context.update(digest);
        }
        sha256(context)
    }
}

/// What a finished hash is.
pub(super) fn sha256(context: Context) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// That a name is a plain path that stays in its folder: no `..`, no `.`, nothing empty, not absolute.
fn check_name(name: &str) -> Result<(), SigningError> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    match name.len() <= NAME_MOST && name.split('/').all(plain) {
        true => Ok(()),
        false => {
            let shown: String = name.chars().take(80).collect();
            Err(SigningError::Malformed(format!("{shown:?} is no plain path in the model's folder")))
        }
    }
}

/// Whether `name` is one of the paths `ignored`, or lies below one.
pub(super) fn is_ignored(name: &str, ignored: &[String]) -> bool {
    ignored.iter().any(|path| {
        name.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// The same JSON in ASCII, as the public tool writes it.
fn ascii(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut units = [0; 2];
    for character in text.chars() {
        // Beyond these, JSON's own characters and line feeds are all that can be here.
        if character <= '~' {
            plain.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut units) {
            plain.push_str(&format!("\\u{unit:04x}"));
        }
    }
    plain
}
