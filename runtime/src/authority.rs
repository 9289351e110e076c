//! The list of revoked certificates in a CA's directory.
//!
//! 1. The list is the record: what it has is never taken out, and each list has the next number. A list that was lost shows,
//!    because nodes refuse one with a lower number than theirs.
//! 2. Two commands at a time on one CA wait for each other.
//! 3. A list is replaced whole, or not at all.
//! 4. Who revokes every certificate that a node has withdraws its join tokens too.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use testudo_actors::JobSpec;
use testudo_transport::pki::{
    CA_KEY_FILE, CERT_FILE, CRL_FILE, Crl, Issued, Register, Revocation, RevocationList, Serial, Tokens,
    certificate_der, describe, read_crl, read_public,
};
use testudo_transport::{Expected, JobCa, SpiffeId};

use crate::checkpoint::storage::{Disk, replace};
use crate::error::Failure;
use crate::rundir::RunDir;

/// A list is for everybody to read: nodes may run as other users.
const LIST_MODE: u32 = 0o644;

/// A CA's directory, alone with it.
#[derive(Debug)]
pub(crate) struct Authority {
    ca: JobCa,
    register: Register,
    tokens: Tokens,
    path: PathBuf,
    last: Option<Crl>,
    _alone: File,
}

/// What was done.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The list, signed and written.
    pub(crate) crl: Crl,
    /// The certificates that were revoked just now, by whose they were.
    pub(crate) revoked: Vec<(String, Serial)>,
    /// How many of those that were named had been revoked before.
    pub(crate) before: usize,
    /// Join tokens that were withdrawn.
    pub(crate) withdrawn: usize,
}

/// What a person means by a target.
#[derive(Debug, Default)]
struct Found {
    /// Certificates, by whose they are.
    certificates: Vec<(String, Serial)>,
    /// Join tokens that were withdrawn.
    withdrawn: usize,
}

impl Authority {
    /// Opens the CA in `dir`, and waits until no other command has it.
    pub(crate) fn open(dir: &Path) -> Result<Authority, Failure> {
        let failed = |e: std::io::Error| Failure::file(dir, "cannot be locked", e);
        let alone = File::open(dir).map_err(|e| Failure::file(dir, "cannot be read", e))?;
        flock(&alone, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        let ca = JobCa::load(dir).map_err(Failure::misconfigured)?;
        let path = dir.join(CRL_FILE);
        let last = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            _ => {
                let bytes = read_crl(&path).map_err(Failure::misconfigured)?;
                let read = Crl::read(&bytes, &ca.trust().ca_der());
                Some(read.map_err(|e| Failure::misconfigured(format!("{}: {e}", path.display())))?)
            }
        };
        let (register, tokens) = (Register::of(dir), Tokens::of(dir));
        Ok(Authority { ca, register, tokens, path, last, _alone: alone })
    }

    /// How long the CA's own certificate is good still.
    pub(crate) fn rest(&self) -> Result<Duration, Failure> {
        let end = describe(self.ca.certificate_pem().as_bytes()).map_err(Failure::misconfigured)?.not_after;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
        Ok(Duration::from_secs(u64::try_from(end.saturating_sub(now)).unwrap_or_default()))
    }

    /// Where the list is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The certificates that a person means by the folder of an identity, a PEM file, a serial number's digits, or a node's role
    /// and name.
    fn find(&self, target: &str) -> Result<Found, Failure> {
        let path = Path::new(target);
        let one = |certificate| Found { certificates: vec![certificate], withdrawn: 0 };
        if path.is_dir() {
            return Ok(one(self.read(&path.join(CERT_FILE))?));
        }
        if path.exists() {
            return Ok(one(self.read(path)?));
        }
        if let Some(id) = self.member(target) {
            return self.issued_to(&id);
        }
        let none = |_| {
            Failure::misconfigured(format!(
                "{target} is no folder of an identity, no certificate's file, no serial number, and no node such as worker/3"
            ))
        };
        Ok(one(("a certificate".to_owned(), Serial::from_hex(target).map_err(none)?)))
    }

    /// `worker/3`, or a whole SPIFFE ID.
    fn member(&self, text: &str) -> Option<SpiffeId> {
        if let Ok(id) = SpiffeId::parse(text) {
            return Some(id);
        }
        let (role, name) = text.split_once('/')?;
        let trust = self.ca.trust();
        SpiffeId::new(trust.trust_domain(), trust.job(), role.parse().ok()?, name).ok()
    }

    fn issued_to(&self, id: &SpiffeId) -> Result<Found, Failure> {
        let now = SystemTime::now();
        let withdrawn = self.tokens.withdraw(id, now).map_err(Failure::misconfigured)?;
        let live = self.register.live(id, now).map_err(Failure::misconfigured)?;
        if live.is_empty() && withdrawn == 0 {
            return Err(Failure::misconfigured(format!(
                "the CA has no record of a certificate or a join token of {id} that has not expired"
            )));
        }
        let serial = |issued: Issued| Serial::from_hex(&issued.serial).map_err(Failure::misconfigured);
        let named = |issued| Ok((id.short().to_owned(), serial(issued)?));
        Ok(Found { certificates: live.into_iter().map(named).collect::<Result<_, Failure>>()?, withdrawn })
    }

    /// The certificate in a file, if this CA issued it.
    fn read(&self, file: &Path) -> Result<(String, Serial), Failure> {
        let wrong = |e: &dyn std::fmt::Display| Failure::misconfigured(format!("{}: {e}", file.display()));
        let pem = read_public(file).map_err(|e| wrong(&e))?;
        let info = describe(&pem).map_err(|e| wrong(&e))?;
        // Who asks to revoke another CA's certificate is in the wrong folder, and the right one would stay good.
        let der = certificate_der(&pem).map_err(|e| wrong(&e))?;
        let id = self.ca.trust().verify(&der, &Expected::Member).map_err(|e| wrong(&e))?;
        let serial = Serial::from_hex(&info.serial).map_err(|e| wrong(&e))?;
        Ok((id.short().to_owned(), serial))
    }

    /// Revokes what `targets` name, and writes the next list, good for `validity`.
    pub(crate) fn list(
        &self,
        targets: &[String],
        compromised: bool,
        validity: Duration,
    ) -> Result<Listed, Failure> {
        let mut list = match &self.last {
            Some(last) => RevocationList::after(last).map_err(Failure::misconfigured)?,
            None => RevocationList::default(),
        };
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
        let (mut revoked, mut before, mut withdrawn) = (Vec::new(), 0, 0);
        for target in targets {
            let found = self.find(target)?;
            withdrawn += found.withdrawn;
            for (whose, serial) in found.certificates {
                match list.revoke(serial.clone(), Revocation { at, compromised }) {
                    true => revoked.push((whose, serial)),
                    false => before += 1,
                }
            }
        }
        let crl = self.ca.sign_crl(&list, validity).map_err(Failure::misconfigured)?;
        replace(&Disk, &self.path, crl.to_pem().as_bytes())
            .and_then(|()| std::fs::set_permissions(&self.path, Permissions::from_mode(LIST_MODE)))
            .map_err(|e| Failure::file(&self.path, "cannot be written", e))?;
        Ok(Listed { crl, revoked, before, withdrawn })
    }
}

/// The certificate authority of one run on this machine. Its key lies in the run directory as long as this lives.
#[derive(Debug)]
pub(crate) struct RunAuthority {
    ca: Arc<JobCa>,
    key: PathBuf,
}

impl RunAuthority {
    /// Makes one for `job`, in the directory of its run.
    pub(crate) fn make(job: &JobSpec, run_dir: &RunDir, validity: Duration) -> Result<RunAuthority, Failure> {
        let dir = run_dir.authority();
        let made = JobCa::create(&job.trust_domain, &job.name, validity).map_err(Failure::misconfigured)?;
        made.save(&dir).map_err(Failure::failed)?;
        // From its directory it keeps a record of what it issues.
        let ca = Arc::new(JobCa::load(&dir).map_err(Failure::failed)?);
        Ok(RunAuthority { ca, key: dir.join(CA_KEY_FILE) })
    }

    pub(crate) fn ca(&self) -> &Arc<JobCa> {
        &self.ca
    }
}

impl Drop for RunAuthority {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.key) {
            tracing::warn!(%error, key = %self.key.display(), "the key of the run's CA could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use testudo_transport::{PkiError, Role, pki};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Invariant 4: also where the node has no certificate yet; other nodes' tokens, and later ones, are good.
    #[test]
    fn whoever_revokes_a_node_withdraws_its_join_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        JobCa::create("t", "j", 100 * HOUR).unwrap().save(&dir).unwrap();
        let (ca, tokens) = (JobCa::load(&dir).unwrap(), Tokens::of(&dir));
        let id = |name: &str| SpiffeId::new("t", "j", Role::Worker, name).unwrap();
        let make = |name: &str| tokens.make(&ca, &id(name), HOUR, None).unwrap();
        let redeem = |token: &pki::JoinToken, folder_name: &str| {
            let request = pki::request(&folder.path().join(folder_name), token.id()).unwrap();
            let mac = token.secret().mac(request.der());
            tokens.redeem(&ca, token.secret(), request.der(), &mac, HOUR, SystemTime::now())
        };
        let (used, open, other) = (make("3"), make("3"), make("4"));
        redeem(&used, "first").unwrap();
        let revoke = |target: &str| Authority::open(&dir).unwrap().list(&[target.to_owned()], true, HOUR);
        let listed = revoke("worker/3").unwrap();
        assert_eq!((listed.revoked.len(), listed.withdrawn), (1, 2));
        let refused = redeem(&open, "second").unwrap_err();
        assert!(matches!(&refused, PkiError::Token(why) if why.contains("withdrawn")), "{refused}");
        assert!(redeem(&make("3"), "third").is_ok(), "one that was made since");
        assert_eq!(revoke("worker/4").unwrap().withdrawn, 1, "it has no certificate yet");
        assert!(redeem(&other, "fourth").is_err());
        assert!(revoke("worker/4").is_err(), "there is nothing left to revoke");
    }
}
