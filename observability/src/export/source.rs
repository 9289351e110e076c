//! The PEM files that an `https://` collector is spoken to with: who names them, and how they are read.
//!
//! Invariants:
//! 1. A file is opened once, and what is checked is what is read: whoever swaps the name meanwhile, for a pipe even, changes and holds up
//!    nothing.
//! 2. A private key is no link, and a file of its reader's own that nobody else has access to; a file of CAs, which decides whom a node
//!    trusts, is one that nobody but its owner may write.
//! 3. No message shows anything of what is in a file, and no copy of a key outlives its reading here.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::setup::InitError;

/// The largest file that is taken: the bundle of a system's CAs has a quarter of a mebibyte.
pub(super) const MOST: u64 = 1 << 20;

/// What is said of a file that the parser refuses. The parser's own words hold lines of the file, a key's among them.
pub(super) const NO_PEM: &str = "it is not in PEM, or not whole: are all its line breaks there?";

/// The PEM files that an `https://` collector is spoken to with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The certificates of the CAs that its own may lead to; without one, the system's.
    pub certificate: Option<PathBuf>,
    /// The certificate that it is shown, and behind it those of the CAs between it and one that the collector trusts.
    pub client_certificate: Option<PathBuf>,
    /// The private key of that.
    pub client_key: Option<PathBuf>,
}

/// A file's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Certificate,
    ClientCertificate,
    ClientKey,
}

impl Part {
    /// Who names it.
    const fn named_by(self) -> &'static str {
        match self {
            Part::Certificate => {
                "OTEL_EXPORTER_OTLP_CERTIFICATE (or, of one signal, OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE, _METRICS_ or _LOGS_), or \
                 telemetry.certificate"
            }
            Part::ClientCertificate => {
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE (or, of one signal, OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE, _METRICS_ or \
                 _LOGS_), or telemetry.client_certificate"
            }
            Part::ClientKey => {
                "OTEL_EXPORTER_OTLP_CLIENT_KEY (or, of one signal, OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY, _METRICS_ or _LOGS_), or \
                 telemetry.client_key"
            }
        }
    }

    /// The key of the cluster file that names it.
    const fn key(self) -> &'static str {
        match self {
            Part::Certificate => "telemetry.certificate",
            Part::ClientCertificate => "telemetry.client_certificate",
            Part::ClientKey => "telemetry.client_key",
        }
    }

    fn of(self, files: &Files) -> Option<&PathBuf> {
        match self {
            Part::Certificate => files.certificate.as_ref(),
            Part::ClientCertificate => files.client_certificate.as_ref(),
            Part::ClientKey => files.client_key.as_ref(),
        }
    }

    /// Invariant 2, of the open file.
    fn check(self, found: &Metadata, is_ours: impl Fn(u32) -> bool) -> Result<(), String> {
        let mode = found.mode() & 0o7777;
        match self {
            Part::ClientKey if mode & 0o077 != 0 => {
                Err(format!("others than its owner may use it (mode {mode:o}): chmod 600"))
            }
            Part::ClientKey if !is_ours(found.uid()) => Err("it is another user's, who knows the key".into()),
            Part::Certificate if mode & 0o022 != 0 => {
                Err(format!("others than its owner may change it (mode {mode:o}): chmod go-w"))
            }
            _ => Ok(()),
        }
    }
}

/// A file that is to be read for a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    part: Part,
    path: PathBuf,
    in_file: bool,
}

impl Source {
    /// The CAs in `path`, which nobody names.
    pub(super) fn of_the_system(path: &Path) -> Source {
        Source { part: Part::Certificate, path: path.to_owned(), in_file: false }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key of the cluster file that names it; `None` where a variable of this process's environment does.
    #[must_use]
    pub fn key(&self) -> Option<&'static str> {
        self.in_file.then_some(self.part.key())
    }

    /// What is in it. A private key must belong to a user of whom `is_ours` says that it counts as this process's own.
    ///
    /// # Errors
    /// [`InitError::Credentials`].
    pub fn read(&self, is_ours: impl Fn(u32) -> bool) -> Result<Zeroizing<String>, InitError> {
        let mut bytes = self.bytes(is_ours).map_err(|reason| self.unusable(reason))?;
        String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|error| {
            error.into_bytes().zeroize();
            self.unusable("it is no text, and so not in PEM")
        })
    }

    fn bytes(&self, is_ours: impl Fn(u32) -> bool) -> Result<Zeroizing<Vec<u8>>, String> {
        let file = self.open()?;
        let found = file.metadata().map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("it is no file".into());
        }
        self.part.check(&found, is_ours)?;
        // Sized once: a buffer that grows leaves copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::<u8>::with_capacity(MOST as usize + 1));
        file.take(MOST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() as u64 > MOST {
            return Err(format!("it has more than {} MiB", MOST >> 20));
        }
        Ok(bytes)
    }

    fn open(&self) -> Result<File, String> {
        let is_key = self.part == Part::ClientKey;
        // Nobody waits for whoever would write to a pipe of that name.
        let flags = if is_key { OFlags::NONBLOCK | OFlags::NOFOLLOW } else { OFlags::NONBLOCK };
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&self.path);
        opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::LOOP) if is_key => "it is a symbolic link: name the key itself".into(),
            _ => error.to_string(),
        })
    }

    pub(super) fn unusable(&self, reason: impl fmt::Display) -> InitError {
        let (path, named_by) = (self.path.clone(), self.part.named_by());
        InitError::Credentials { path, named_by, reason: reason.to_string() }
    }

    /// The certificates in `pem`, which was in it.
    pub(super) fn certificates(&self, pem: &str) -> Result<Vec<CertificateDer<'static>>, InitError> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        match all {
            Ok(all) if all.is_empty() => Err(self.unusable("it holds no certificate in PEM")),
            Ok(all) => Ok(all),
            // Invariant 3.
            Err(_) => Err(self.unusable(NO_PEM)),
        }
    }
}

/// The files of one signal's collector, and who names each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named([Option<Source>; 3]);

impl Named {
    /// `own`, and those of the cluster file where that says nothing.
    pub(super) fn new(own: &Files, in_file: &Files) -> Named {
        let all = [Part::Certificate, Part::ClientCertificate, Part::ClientKey];
        Named(all.map(|part| {
            let (own, said) = (part.of(own), part.of(in_file));
            let path = own.or(said)?.clone();
            Some(Source { part, path, in_file: own.is_none() })
        }))
    }

    pub(super) const fn get(&self, part: Part) -> Option<&Source> {
        self.0[part as usize].as_ref()
    }

    /// The file of `part`, or one without a name: what was handed over was another process's.
    pub(super) fn of(&self, part: Part) -> Source {
        let unnamed = || Source { part, path: PathBuf::new(), in_file: false };
        self.get(part).cloned().unwrap_or_else(unnamed)
    }
}

/// Whether `uid` is the user as whom this process opens files.
pub(super) fn is_mine(uid: u32) -> bool {
    uid == rustix::process::geteuid().as_raw()
}
