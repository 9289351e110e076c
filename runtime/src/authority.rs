//! The list of revoked certificates in a CA's directory.
//!
//! 1. The list is the record: what it has is never taken out, and each list has the next number. A list that was lost shows,
//!    because nodes refuse one with a lower number than theirs.
//! 2. Two commands at a time on one CA wait for each other.
//! 3. A list is replaced whole, or not at all.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use testudo_actors::JobSpec;
use testudo_transport::pki::{
    CA_KEY_FILE, CERT_FILE, CRL_FILE, Crl, Issued, Register, Revocation, RevocationList, Serial,
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
        Ok(Authority { ca, register: Register::of(dir), path, last, _alone: alone })
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
    fn find(&self, target: &str) -> Result<Vec<(String, Serial)>, Failure> {
        let path = Path::new(target);
        if path.is_dir() {
            return Ok(vec![self.read(&path.join(CERT_FILE))?]);
        }
        if path.exists() {
            return Ok(vec![self.read(path)?]);
        }
        if let Some(id) = self.member(target) {
            return self.issued_to(&id);
        }
        let none = |_| {
            Failure::misconfigured(format!(
                "{target} is no folder of an identity, no certificate's file, no serial number, and no node such as worker/3"
            ))
        };
        Ok(vec![("a certificate".to_owned(), Serial::from_hex(target).map_err(none)?)])
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

    fn issued_to(&self, id: &SpiffeId) -> Result<Vec<(String, Serial)>, Failure> {
        let live = self.register.live(id, SystemTime::now()).map_err(Failure::misconfigured)?;
        if live.is_empty() {
            return Err(Failure::misconfigured(format!(
                "the CA has no record of a certificate of {id} that has not expired"
            )));
        }
        let serial = |issued: Issued| Serial::from_hex(&issued.serial).map_err(Failure::misconfigured);
        live.into_iter().map(|issued| Ok((id.short().to_owned(), serial(issued)?))).collect()
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
        let (mut revoked, mut before) = (Vec::new(), 0);
        for target in targets {
            for (whose, serial) in self.find(target)? {
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
        Ok(Listed { crl, revoked, before })
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
