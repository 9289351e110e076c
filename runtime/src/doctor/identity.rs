//! A node's certificate and key: who may read them, whose they are, how long they last.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use testudo_transport::pki::{CA_KEY_FILE, PkiError, identity_files, inspect, is_ours};
use zeroize::Zeroizing;

use super::folder::head;
use super::{Found, Report, quoted, shown};

/// Longest key or certificate file that is looked at.
const FILE_MOST: u64 = 64 << 10;
/// A certificate that ends sooner is worth a word: long runs take hours.
const SOON_SECONDS: i64 = 3600;
/// Any permission of group or others.
const OTHERS: u32 = 0o077;
/// Permission to write, of group or others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// How private a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The owner alone may read it.
    Secret,
    /// The owner alone may write it.
    Public,
}

/// The files of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

impl Files {
    pub(super) fn in_folder(folder: &Path) -> Files {
        let [ca, cert, key] = identity_files(folder);
        Files { ca, cert, key }
    }
}

/// Looks at an identity's files; says whose it is, if it can be told.
pub(super) fn look(report: &mut Report, files: &Files, now: SystemTime) -> Option<Found> {
    if let Some(folder) = files.key.parent()
        && let Ok(found) = fs::metadata(folder)
        && found.mode() & WRITABLE_BY_OTHERS != 0
    {
        let what = format!("its mode is {:o}, so others can swap the files in it", found.mode() & 0o7777);
        report.problem(shown(folder), what, format!("chmod 700 {}", quoted(folder)));
    }
    for (path, kind) in [(&files.key, Kind::Secret), (&files.cert, Kind::Public), (&files.ca, Kind::Public)] {
        privacy(report, path, kind);
    }
    let [key, cert, ca] = [&files.key, &files.cert, &files.ca].map(|path| text(path));
    let slice = |text: &Option<Zeroizing<Vec<u8>>>| text.as_ref().map(|t| t.to_vec());
    let (cert_text, ca_text) = (slice(&cert), slice(&ca));
    let found = inspect(cert_text.as_deref(), ca_text.as_deref(), key.as_ref().map(|k| k.as_slice()), now);
    for fault in &found.faults {
        let place = match fault {
            PkiError::Crypto(_) | PkiError::Pem { what: "private key", .. } => &files.key,
            _ => &files.cert,
        };
        let fix =
            "have the operator issue the identity anew (`testudo pki issue`), and take over all three files";
        report.problem(shown(place), fault, fix);
    }
    let place = shown(&files.cert);
    match (found.seconds_left, found.seconds_to_begin) {
        (Some(left), _) if left <= 0 => {
            let what = format!("the certificate expired {} ago", span(-left));
            report.problem(place, what, "have the operator issue a new one");
        }
        (_, Some(ahead)) if ahead > 0 => {
            let what = format!("the certificate begins only in {}", span(ahead));
            report.problem(
                place,
                what,
                "set this machine's clock (`timedatectl`): it is behind the operator's",
            );
        }
        (Some(left), _) if left < SOON_SECONDS => {
            let what = format!("the certificate expires in {}", span(left));
            report.warning(place, what, "have the operator issue a new one before a long run");
        }
        (Some(left), _) if found.faults.is_empty() => {
            let id = found.id.as_ref().map(|id| id.short().to_owned()).unwrap_or_default();
            report.good(place, format!("{id}, for {} more", span(left)));
        }
        _ => {}
    }
    let place = files.cert.parent().unwrap_or(&files.cert).to_owned();
    found.id.map(|id| Found { place, id, files: files.clone() })
}

/// Two holders of one identity lock each other out, if one CA certified both: a run beside the cluster has its own.
pub(super) fn compare(report: &mut Report, identities: &[Found]) {
    let mut seen: BTreeMap<(&str, String), &Found> = BTreeMap::new();
    for found in identities {
        let holder = (found.id.as_str(), head(&found.files.ca));
        if let Some(first) = seen.get(&holder) {
            let what = format!("is {} too, as {} is", found.id.short(), shown(&first.place));
            let fix = "one identity is one node: issue another for the second";
            report.problem(shown(&found.place), what, fix);
        } else {
            seen.insert(holder, found);
        }
    }
}

/// A CA's key must be private, and belongs on no node.
pub(super) fn authority(report: &mut Report, folder: &Path, identities: &[PathBuf]) {
    let key = folder.join(CA_KEY_FILE);
    privacy(report, &key, Kind::Secret);
    if identities.iter().any(|other| other == folder) {
        let what =
            "the CA's key lies in a node's identity folder: who breaks into the node can make any identity";
        report.problem(shown(&key), what, "move the CA to a machine of the operator's, and make a new one");
    } else if !identities.is_empty() {
        let what = "the CA's key lies beside nodes' identities";
        report.warning(shown(&key), what, "keep it on a machine that takes no part in the cluster");
    }
}

/// Whether `path` is a regular file of this user with the permissions that it must have.
pub(super) fn privacy(report: &mut Report, path: &Path, kind: Kind) {
    let place = shown(path);
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(why) => {
            let fix =
                "an identity is the three files ca.pem, cert.pem and key.pem: take over what is missing";
            return report.problem(place, format!("cannot be read: {why}"), fix);
        }
    };
    if !found.is_file() {
        let what = if found.is_symlink() { "is a symbolic link" } else { "is no regular file" };
        return report.problem(place, what, "put the file itself there");
    }
    let me = rustix::process::geteuid().as_raw();
    let is_owner = is_ours(found.uid()) || kind == Kind::Public && found.uid() == 0;
    if !is_owner {
        let what = format!("belongs to user {}, and this is user {me}", found.uid());
        report.problem(&place, what, format!("chown {me} {}", quoted(path)));
    }
    let (bad, mode, what) = match kind {
        Kind::Secret => (OTHERS, 600, "so others than its owner have access"),
        Kind::Public => (WRITABLE_BY_OTHERS, 644, "so others than its owner can change it"),
    };
    if found.mode() & bad != 0 {
        let what = format!("its mode is {:o}, {what}", found.mode() & 0o7777);
        report.problem(place, what, format!("chmod {mode} {}", quoted(path)));
    }
}

/// A small regular file's bytes, whatever its permissions.
fn text(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    // Sized once: a buffer that grows leaves copies of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MOST as usize + 1));
    file.take(FILE_MOST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// A number of seconds for a person.
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_well() {
        let spans = [(5, "5 s"), (150, "2 min"), (7200, "2 h"), (200_000, "2 days")];
        assert!(spans.iter().all(|(seconds, text)| span(*seconds) == *text));
    }
}
