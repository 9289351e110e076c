//! A hosted node's end of its launcher's line: standard input, on which its renewed certificates come, and whose end is its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use testudo_transport::pki::{CERT_FILE, KEY_FILE, NEXT_KEY_FILE};
use zeroize::Zeroizing;

use super::parcel;
use super::ssh::names;
use crate::checkpoint::storage::{Disk, replace};

/// Longest file of a renewal: a short chain of certificates.
const MOST: u64 = 64 << 10;

/// Follows standard input in a thread of its own: puts renewed identities into `folder`, and ends this process when the launcher is
/// gone, or says what none would.
pub(crate) fn follow(folder: PathBuf) {
    std::thread::spawn(move || {
        let mut from = io::stdin();
        loop {
            match take(&mut from, &folder) {
                Ok(true) => tracing::info!("the launcher sent a renewed certificate"),
                Ok(false) => break tracing::error!("the launcher is gone; ending"),
                Err(why) => break tracing::error!(%why, "what the launcher sent is no renewal; ending"),
            }
        }
        std::process::exit(1);
    });
}

/// Takes one renewal: the new key waits beside the old one until its certificate is in place, so that a reader finds a whole identity
/// at any time.
fn take(from: &mut impl io::Read, folder: &Path) -> Result<bool, parcel::ParcelError> {
    let mut renewed = Vec::new();
    let whole = parcel::take(from, MOST, &mut |name, contents| {
        let refused = || io::Error::other(format!("a renewal has no {name}"));
        let (identity, file) = name.split_once('/').ok_or_else(refused)?;
        let known = [names::IDENTITY, names::WORKER_IDENTITY].contains(&identity);
        if !known || ![NEXT_KEY_FILE, CERT_FILE].contains(&file) {
            return Err(refused());
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST as usize));
        contents.read_to_end(&mut bytes)?;
        replace(&Disk, &folder.join(name), &bytes)?;
        renewed.push(folder.join(identity));
        Ok(())
    })?;
    for identity in renewed {
        match fs::rename(identity.join(NEXT_KEY_FILE), identity.join(KEY_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(whole)
}

/// Takes the first parcel, from standard input, into a new folder that only its owner can enter.
///
/// # Errors
/// [`parcel::ParcelError`], also when the stream ends before it.
pub(crate) fn receive(folder: &Path) -> Result<(), parcel::ParcelError> {
    receive_from(&mut io::stdin(), folder)
}

fn receive_from(from: &mut impl io::Read, folder: &Path) -> Result<(), parcel::ParcelError> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    let private =
        |recursive: bool, path: &Path| fs::DirBuilder::new().recursive(recursive).mode(0o700).create(path);
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        private(true, parent)?;
    }
    private(false, folder)?;
    let came = parcel::take(from, crate::config::FILE_MOST, &mut |name, contents| {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            private(true, parent)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        io::copy(contents, &mut file).map(|_| ())
    })?;
    if came { Ok(()) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) }
}

/// Sends the model, if there is one, to the launcher.
///
/// # Errors
/// [`parcel::ParcelError`].
pub(crate) fn send(model: &Path) -> Result<(), parcel::ParcelError> {
    let mut to = io::stdout().lock();
    match fs::File::open(model) {
        Ok(mut file) => {
            let bytes = file.metadata()?.len();
            parcel::send(&mut to, Some((names::MODEL, bytes, &mut file)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => parcel::send(&mut to, None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use testudo_transport::{Identity, JobCa, Role, SpiffeId};

    use super::*;

    #[test]
    fn what_comes_is_the_owners_alone_and_renewals_leave_a_whole_identity() {
        let place = tempfile::tempdir().unwrap();
        let (ca, hour) =
            (JobCa::create("t", "j", Duration::from_secs(7200)).unwrap(), Duration::from_secs(3600));
        let issue = |name: &str| {
            let home = place.path().join(name);
            ca.issue(&SpiffeId::new("t", "j", Role::Worker, "0").unwrap(), hour)
                .unwrap()
                .save(&home)
                .unwrap();
            move |file: &str| fs::read(home.join(file)).unwrap()
        };
        let (old, new) = (issue("old"), issue("new"));
        let folder = place.path().join("deep/er");
        let parcel = parcel::pack(&[
            ("cluster.toml", b"x"),
            ("identity/ca.pem", &old("ca.pem")),
            ("identity/cert.pem", &old("cert.pem")),
            ("identity/key.pem", &old("key.pem")),
        ]);
        let parcel = parcel.unwrap();
        receive_from(&mut parcel.as_slice(), &folder).unwrap();
        assert!(receive_from(&mut parcel.as_slice(), &folder).is_err(), "a folder is never used twice");
        assert!(receive_from(&mut &b""[..], &place.path().join("other")).is_err());
        for (path, mode) in
            [("", 0o700), ("identity", 0o700), ("identity/key.pem", 0o600), ("cluster.toml", 0o600)]
        {
            let found = fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{path}");
        }
        let pem =
            || Identity::load(&folder.join("identity")).unwrap().certificate_pem().to_owned().into_bytes();
        assert_eq!(pem(), old("cert.pem"));
        let renewal = parcel::pack(&[
            ("identity/next-key.pem", &new("key.pem")),
            ("identity/cert.pem", &new("cert.pem")),
        ]);
        assert!(take(&mut renewal.unwrap().as_slice(), &folder).unwrap());
        assert_eq!(pem(), new("cert.pem"));
        assert!(!folder.join("identity/next-key.pem").exists());
        for name in ["cluster.toml", "identity/ca.pem", "checkpoint/key.pem"] {
            let other = parcel::pack(&[(name, b"y")]).unwrap();
            assert!(take(&mut other.as_slice(), &folder).is_err(), "{name}");
        }
        assert!(!take(&mut &b""[..], &folder).unwrap(), "the launcher is gone");
    }
}
