//! Certificates that change while a node runs: whoever renews puts new files in the place of the old, and the node goes on
//! with them, without losing a connection.
//!
//! 1. What is taken is whole and good: key and certificate of each other, of this identity, under the same CA, valid now.
//!    Anything else is logged once and changes nothing.
//! 2. A local run renews its nodes' certificates itself, when half of their life is over.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testudo_transport::pki::{self, PkiError, describe};
use testudo_transport::{Identity, JobCa};

use crate::config::SecurityFiles;

/// Between two looks at the files: a renewal takes effect within this, and a look costs less than a millisecond.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A certificate that has no more than this part of its life left is worth a warning.
const LATE: i64 = 5;

/// Where an identity is read from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder with `ca.pem`, `cert.pem` and `key.pem`.
    Folder(PathBuf),
    /// Three files.
    Files(SecurityFiles),
}

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// As for [`Identity::load`].
    pub fn load(&self) -> Result<Identity, PkiError> {
        match self {
            Source::Folder(folder) => Identity::load(folder),
            Source::Files(files) => Identity::load_files(&files.ca, &files.cert, &files.key),
        }
    }

    /// The folders in which its files lie.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        match self {
            Source::Folder(folder) => vec![folder.clone()],
            Source::Files(files) => {
                let of = |file: &PathBuf| file.parent().map(Path::to_path_buf);
                [&files.ca, &files.cert, &files.key].into_iter().filter_map(of).collect()
            }
        }
    }
}

/// Follows the files of `identity` for as long as the runtime lives.
pub async fn follow(identity: Identity, source: Source) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_fault = None;
    let mut warned_of = None;
    loop {
        every.tick().await;
        let (ours, from) = (identity.clone(), source.clone());
        // Files may lie on a network's disk.
        let Ok(looked) = tokio::task::spawn_blocking(move || look(&ours, &from)).await else { return };
        match looked {
            Ok(true) => {
                tracing::info!(
                    whose = identity.id().short(),
                    "the certificate has been renewed; connections go on with the new one"
                );
            }
            Ok(false) => {}
            Err(why) if last_fault.as_ref() != Some(&why) => {
                tracing::warn!(
                    %why,
                    "the identity's files cannot be taken; the certificate in use stays, and no renewed one is seen until the user \
                     that this process runs as can read them"
                );
                last_fault = Some(why);
                continue;
            }
            Err(_) => continue,
        }
        last_fault = None;
        let now = identity.latest();
        if let Some(left) = running_out(now.certificate_pem(), SystemTime::now())
            && warned_of.as_deref() != Some(now.certificate_pem())
        {
            warned_of = Some(now.certificate_pem().to_owned());
            tracing::warn!(
                seconds = left,
                whose = now.id().short(),
                "the certificate ends soon, and connections with it; renew it with `testudo pki renew`"
            );
        }
    }
}

/// Takes over what is in the files; says whether it is new. A renewal that is under way between its two files is not there yet.
fn look(identity: &Identity, source: &Source) -> Result<bool, PkiError> {
    identity.succeed(&source.load()?)
}

/// Seconds that a certificate has left, if they are few for it.
fn running_out(certificate_pem: &str, now: SystemTime) -> Option<i64> {
    let info = describe(certificate_pem.as_bytes()).ok()?;
    let now = i64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).ok()?;
    let left = info.not_after - now;
    (left < (info.not_after - info.not_before) / LATE).then_some(left)
}

/// Held while an identity is renewed: the next key lies in its folder under one name, and a worker that is started again may be renewed
/// just when all are.
static RENEWING: Mutex<()> = Mutex::new(());

/// Renews the identity in `folder` with a CA whose key this process has, for a new key; one at a time.
///
/// # Errors
/// [`PkiError::Revoked`] if the CA has revoked it, and whatever else is wrong.
pub fn renew(ca: &JobCa, folder: &Path, validity: Duration) -> Result<(), PkiError> {
    let _alone = RENEWING.lock().unwrap_or_else(PoisonError::into_inner);
    let request = pki::renew(folder, false)?;
    let certificate = ca.issue_for(&request, None, validity)?;
    pki::install(folder, certificate.as_bytes(), None).map(|_| ())
}

/// Renews the identities in `folders` with a CA whose key this process has, each for a new key. One that was revoked is passed
/// over; what is wrong with one keeps no other from being renewed.
///
/// # Errors
/// What is wrong, for each folder that is not renewed.
pub fn renew_all(ca: &JobCa, folders: &[PathBuf], validity: Duration) -> Result<(), String> {
    let mut faults = Vec::new();
    for folder in folders {
        match renew(ca, folder, validity) {
            Ok(()) | Err(PkiError::Revoked { .. }) => {}
            Err(why) => faults.push(format!("{}: {why}", folder.display())),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// The folders of the identities that are renewed; more may come.
pub type Folders = Arc<Mutex<Vec<PathBuf>>>;

/// Renews the identities of a local run in time, for as long as it is polled; `own` is this process's.
pub async fn keep_fresh(
    ca: Arc<JobCa>,
    folders: Folders,
    own: (Identity, Source),
    validity: Duration,
) -> Infallible {
    renew_every(validity / 2, ca, folders, own, validity).await
}

async fn renew_every(
    pause: Duration,
    ca: Arc<JobCa>,
    folders: Folders,
    own: (Identity, Source),
    validity: Duration,
) -> Infallible {
    let mut wait = pause;
    loop {
        tokio::time::sleep(wait).await;
        let folders = folders.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ca = Arc::clone(&ca);
        let done = tokio::task::spawn_blocking(move || renew_all(&ca, &folders, validity)).await;
        let done = done.unwrap_or_else(|why| Err(why.to_string()));
        let taken = look(&own.0, &own.1).map_err(|why| why.to_string());
        // Once more before the certificates end, if that can mend it.
        wait = if done.is_ok() { pause } else { pause / 4 };
        for why in [done.err(), taken.err()].into_iter().flatten() {
            tracing::error!(why, "not all of the run's certificates can be renewed");
        }
    }
}

#[cfg(test)]
mod tests {
    use testudo_transport::{Role, SpiffeId};

    use super::*;
    use crate::authority::Authority;

    const HOUR: Duration = Duration::from_secs(3600);

    fn place() -> (tempfile::TempDir, JobCa, PathBuf, Identity) {
        let folder = tempfile::tempdir().unwrap();
        let ca = JobCa::create("t", "j", 100 * HOUR).unwrap();
        let home = folder.path().join("worker-0");
        let identity = ca.issue(&SpiffeId::new("t", "j", Role::Worker, "0").unwrap(), HOUR).unwrap();
        identity.save(&home).unwrap();
        (folder, ca, home, identity)
    }

    /// 1 and 2 of the module.
    #[test]
    fn renewed_files_are_taken_over_and_bad_ones_are_not() {
        let (_folder, ca, home, identity) = place();
        let source = Source::Folder(home.clone());
        assert_eq!(look(&identity, &source), Ok(false), "nothing is new");
        renew_all(&ca, std::slice::from_ref(&home), 2 * HOUR).unwrap();
        let before = identity.certificate_pem().to_owned();
        assert_eq!((look(&identity, &source), look(&identity, &source)), (Ok(true), Ok(false)));
        let latest = identity.latest();
        assert!(latest.certificate_pem() != before && identity.certificate_pem() == before);
        assert_eq!(latest.certificate_pem(), Identity::load(&home).unwrap().certificate_pem());
        // Clones, and what the newest came from, have one succession.
        assert_eq!(identity.clone().latest().latest().certificate_pem(), latest.certificate_pem());
        let signature = latest.sign(b"x").unwrap();
        let node = testudo_transport::Expected::Member;
        assert!(ca.trust().verify_signature(latest.certificate_der(), &node, b"x", &signature).is_ok());

        // Another node's files, another CA's, half of a renewal.
        let (_other_folder, _, others, _) = place();
        assert!(look(&identity, &Source::Folder(others)).is_err());
        let sister = ca.issue(&SpiffeId::new("t", "j", Role::Worker, "1").unwrap(), HOUR).unwrap();
        sister.save(&home.join("sister")).unwrap();
        let unexpected = look(&identity, &Source::Folder(home.join("sister")));
        assert!(matches!(unexpected, Err(PkiError::Unexpected { .. })), "{unexpected:?}");
        std::fs::copy(home.join("sister/cert.pem"), home.join("cert.pem")).unwrap();
        assert!(matches!(look(&identity, &source), Err(PkiError::OtherKey)));
        assert_eq!(identity.latest().certificate_pem(), latest.certificate_pem());
    }

    #[test]
    fn two_renewals_at_a_time_wait_for_each_other() {
        let (_folder, ca, home, _) = place();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..8).for_each(|_| renew(&ca, &home, HOUR).unwrap()));
            }
        });
        Identity::load(&home).unwrap();
    }

    /// One that was revoked, and one whose files are damaged: the others are renewed all the same.
    #[test]
    fn one_that_cannot_be_renewed_keeps_no_other_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("ca");
        JobCa::create("t", "j", 100 * HOUR).unwrap().save(&authority).unwrap();
        let ca = JobCa::load(&authority).unwrap();
        let folders: Vec<PathBuf> = (0..4)
            .map(|index| {
                let home = folder.path().join(format!("worker-{index}"));
                let id = SpiffeId::new("t", "j", Role::Worker, &index.to_string()).unwrap();
                ca.issue(&id, HOUR).unwrap().save(&home).unwrap();
                home
            })
            .collect();
        let held = || folders.iter().map(|home| std::fs::read(home.join("cert.pem")).unwrap());
        let before: Vec<Vec<u8>> = held().collect();
        let alone = Authority::open(&authority).unwrap();
        assert_eq!(alone.list(&["worker/0".to_owned()], false, HOUR).unwrap().revoked.len(), 1);
        drop(alone);
        let renewed = || held().zip(&before).map(|(now, then)| now != *then).collect::<Vec<bool>>();
        renew_all(&ca, &folders, 2 * HOUR).unwrap();
        assert_eq!(renewed(), [false, true, true, true]);
        let before: Vec<Vec<u8>> = held().collect();
        std::fs::write(folders[1].join("cert.pem"), "no certificate").unwrap();
        let fault = renew_all(&ca, &folders, 2 * HOUR).unwrap_err();
        assert!(fault.contains("worker-1") && !fault.contains("worker-0"), "{fault}");
        assert_eq!(
            held().zip(&before).skip(2).map(|(now, then)| now != *then).collect::<Vec<_>>(),
            [true, true]
        );
    }

    #[tokio::test]
    async fn a_node_follows_its_files() {
        let (_folder, ca, home, identity) = place();
        let following = tokio::spawn(follow(identity.clone(), Source::Folder(home.clone())));
        renew_all(&ca, &[home], 2 * HOUR).unwrap();
        let mut changes = 0;
        while identity.latest().certificate_pem() == identity.certificate_pem() {
            changes += 1;
            assert!(changes < 6000, "waited in vain");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        following.abort();
    }

    /// 2 of the module, again and again: what is renewed can be renewed, and this process's own identity follows its files.
    #[tokio::test]
    async fn a_local_runs_certificates_are_renewed_again_and_again() {
        let (_folder, ca, home, identity) = place();
        let other = home.with_file_name("server-0");
        ca.issue(&SpiffeId::new("t", "j", Role::Server, "0").unwrap(), HOUR).unwrap().save(&other).unwrap();
        let server = Identity::load(&other).unwrap();
        let (folders, own) = (vec![home.clone(), other.clone()], (identity.clone(), Source::Folder(home)));
        let renewing = tokio::spawn(renew_every(
            Duration::from_millis(1),
            Arc::new(ca),
            Arc::new(Mutex::new(folders)),
            own,
            HOUR,
        ));
        let mut changes = identity.clone();
        for _ in 0..3 {
            let mut looks = 0;
            while identity.latest().certificate_pem() == changes.certificate_pem() {
                looks += 1;
                assert!(looks < 6000, "waited in vain");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            changes = identity.latest();
        }
        renewing.abort();
        assert_eq!(look(&server, &Source::Folder(other)), Ok(true), "the others' files are new, too");
    }

    #[test]
    fn a_certificate_near_its_end_is_worth_a_warning() {
        let (_folder, _, _, identity) = place();
        let now = SystemTime::now();
        assert_eq!(running_out(identity.certificate_pem(), now), None);
        let left = running_out(identity.certificate_pem(), now + HOUR - Duration::from_secs(60)).unwrap();
        assert!((50..=60).contains(&left), "{left}");
    }
}
