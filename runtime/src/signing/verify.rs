//! Whether a folder is what was signed.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

use super::statement::sha256;
use super::tree::Tree;
use super::{Manifest, PublicKey, SigningError, bundle};

/// How a folder differs from what was signed. Names are paths in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A file has another content.
    Changed(String),
    /// A file is there that was not signed.
    Added(String),
    /// A file is gone.
    Removed(String),
    /// A file is gone, and its content is there under a name that was not signed.
    Renamed {
        /// Its signed name.
        from: String,
        /// The name that it has.
        to: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names in quotes, with what could forge a terminal's lines escaped.
        match self {
            Difference::Changed(name) => write!(f, "changed: {name:?}"),
            Difference::Added(name) => write!(f, "added: {name:?}"),
            Difference::Removed(name) => write!(f, "removed: {name:?}"),
            Difference::Renamed { from, to } => write!(f, "renamed: {from:?} to {to:?}"),
        }
    }
}

/// A folder that was found to be what was signed.
#[derive(Debug)]
pub struct Verified {
    tree: Tree,
    manifest: Manifest,
    uncovered: Vec<String>,
}

/// Checks that `dir` is what the bundle in the file `signature` says, and that `key` signed it.
///
/// # Errors
/// [`SigningError::Differs`] names every file that is not as signed.
pub fn verify(dir: &Path, signature: &Path, key: &PublicKey) -> Result<Verified, SigningError> {
    let manifest = Manifest::from_payload(&bundle::open(&bundle::read(signature)?, key)?)?;
    let tree = Tree::open(dir)?;
    let of_signature = tree.name_of(signature);
    let mut ignored = manifest.ignored.clone();
    ignored.extend(of_signature.clone());
    let mut signed: BTreeMap<&str, [u8; 32]> =
        manifest.files.iter().map(|(name, digest)| (name.as_str(), *digest)).collect();
    let mut differences = Vec::new();
    let mut added = Vec::new();
    for name in tree.files(&ignored)? {
        match signed.remove(name.as_str()) {
            None => added.push(name),
            Some(digest) if tree.sha256(&name)? != digest => differences.push(Difference::Changed(name)),
            Some(_) => {}
        }
    }
    differences.extend(moved(&tree, signed, added)?);
    if !differences.is_empty() {
        return Err(SigningError::Differs { path: dir.to_owned(), differences });
    }
    let is_signature = |name: &String| Some(name) == of_signature.as_ref();
    let uncovered = manifest.ignored.iter().filter(|name| !is_signature(name) && tree.has(name));
    let uncovered = uncovered.cloned().collect();
    Ok(Verified { tree, manifest, uncovered })
}

/// What became of files that are gone, and where files that were not signed come from.
fn moved(
    tree: &Tree,
    removed: BTreeMap<&str, [u8; 32]>,
    added: Vec<String>,
) -> Result<Vec<Difference>, SigningError> {
    let mut by_content: BTreeMap<[u8; 32], Vec<&str>> = BTreeMap::new();
    for (name, digest) in &removed {
        by_content.entry(*digest).or_default().push(name);
    }
    let mut differences = Vec::new();
    let mut gone = removed.clone();
    for to in added {
        // Nothing is gone: no need to know what the new ones are.
        let content = if removed.is_empty() { None } else { Some(tree.sha256(&to)?) };
        match content.and_then(|digest| by_content.get_mut(&digest)?.pop()) {
            Some(from) => {
                gone.remove(from);
                differences.push(Difference::Renamed { from: from.to_owned(), to });
            }
            None => differences.push(Difference::Added(to)),
        }
    }
    differences.extend(gone.into_keys().map(|name| Difference::Removed(name.to_owned())));
    Ok(differences)
}

impl Verified {
    /// What was signed.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What lies in the folder and was left out by the signer, beside the signature itself.
    #[must_use]
    pub fn uncovered(&self) -> &[String] {
        &self.uncovered
    }

    /// The content of the signed file `name`, hashed again as it was read: these bytes are what was signed, whatever
    /// happens to the file.
    ///
    /// # Errors
    /// It was not signed, has changed, or is longer than `most` bytes.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, SigningError> {
        let refused =
            |why: &str| SigningError::Model { path: self.tree.path().join(name), why: why.to_owned() };
        let (_, digest) = self
            .manifest
            .files
            .iter()
            .find(|(signed, _)| signed == name)
            .ok_or_else(|| refused("is not among the signed files"))?;
        let bytes = read(&self.tree, name, most)?;
        let mut context = Context::new(&SHA256);
        context.update(&bytes);
        match sha256(context) == *digest {
            true => Ok(bytes),
            false => Err(refused("has changed since it was checked")),
        }
    }
}

/// A file's content, whoever wrote it.
///
/// # Errors
/// It is no regular file, or longer than `most` bytes.
pub(crate) fn read(tree: &Tree, name: &str, most: u64) -> Result<Vec<u8>, SigningError> {
    let path = tree.path().join(name);
    let mut bytes = Vec::new();
    tree.open_file(name)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| SigningError::File { path: path.clone(), what: "cannot be read", source })?;
    match bytes.len() as u64 > most {
        true => Err(SigningError::Model { path, why: format!("is longer than {most} bytes") }),
        false => Ok(bytes),
    }
}
