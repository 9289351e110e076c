//! What an `https://` collector is spoken to with: whose certificates are trusted, and what shows the collector who speaks.
//!
//! Invariants:
//! 1. A collector hears something only if its certificate is for the URL's host and leads to a CA of the file that is named, or to
//!    one of the system's where none is. Nothing turns this off, and no URL is changed to `http://`.
//! 2. Every file is read when [`Environment::open`](super::Environment::open) asks, before a process is confined, or by a launcher that
//!    hands over what was in it ([`Opened`]); it is bounded, and what cannot be used ends the start.
//! 3. A private key that others may read is refused, and no message shows one.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use opentelemetry_otlp::tonic_types::transport::{ClientTlsConfig, Identity};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};

use crate::setup::InitError;

/// The largest file that is taken: the bundle of a system's CAs has a quarter of a mebibyte.
const MOST: u64 = 1 << 20;

/// Where systems keep the CAs that they trust: Debian, Fedora, openSUSE, NixOS, Alpine.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

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

impl Files {
    /// These, and `others` where nothing is said here.
    pub(super) fn or(&self, others: &Files) -> Files {
        let either = |one: &Option<PathBuf>, other: &Option<PathBuf>| one.clone().or_else(|| other.clone());
        Files {
            certificate: either(&self.certificate, &others.certificate),
            client_certificate: either(&self.client_certificate, &others.client_certificate),
            client_key: either(&self.client_key, &others.client_key),
        }
    }
}

/// What the files hold, in PEM.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pem {
    /// The CAs; `None` for the system's.
    pub certificate: Option<String>,
    /// What the collector is shown, and the key of it.
    pub client: Option<(String, String)>,
}

/// Invariant 3.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pem")
    }
}

impl Pem {
    fn read(files: &Files) -> Result<Pem, InitError> {
        let certificate = files.certificate.as_ref().map(|path| Part::Certificate.read(path)).transpose()?;
        let client = match (&files.client_certificate, &files.client_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let certificate = Part::ClientCertificate.read(certificate)?;
                private(key).map_err(|reason| Part::ClientKey.unusable(key, reason))?;
                Some((certificate, Part::ClientKey.read(key)?))
            }
            (Some(path), None) => {
                return Err(Part::ClientCertificate.unusable(path, "its private key is not named"));
            }
            (None, Some(path)) => {
                return Err(Part::ClientKey.unusable(path, "its certificate is not named"));
            }
        };
        Ok(Pem { certificate, client })
    }
}

/// A file's part.
#[derive(Debug, Clone, Copy)]
enum Part {
    Certificate,
    ClientCertificate,
    ClientKey,
}

impl Part {
    /// Who names it.
    const fn named_by(self) -> &'static str {
        match self {
            Part::Certificate => "OTEL_EXPORTER_OTLP_CERTIFICATE, or telemetry.certificate",
            Part::ClientCertificate => {
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, or telemetry.client_certificate"
            }
            Part::ClientKey => "OTEL_EXPORTER_OTLP_CLIENT_KEY, or telemetry.client_key",
        }
    }

    fn unusable(self, path: &Path, reason: impl fmt::Display) -> InitError {
        let reason = reason.to_string();
        InitError::Credentials { path: path.to_owned(), named_by: self.named_by(), reason }
    }

    fn read(self, path: &Path) -> Result<String, InitError> {
        let open = || {
            // Nobody waits for whoever would write to a pipe of that name.
            if !std::fs::metadata(path)?.is_file() {
                return Err(std::io::Error::other("it is no file"));
            }
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = open().map_err(|error| self.unusable(path, error))?;
        if bytes.len() as u64 > MOST {
            return Err(self.unusable(path, format!("it has more than {} MiB", MOST >> 20)));
        }
        String::from_utf8(bytes).map_err(|_| self.unusable(path, "it is no text, and so not in PEM"))
    }

    fn certificates(self, path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, InitError> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        match all {
            Ok(all) if all.is_empty() => Err(self.unusable(path, "it holds no certificate in PEM")),
            Ok(all) => Ok(all),
            Err(error) => Err(self.unusable(path, error)),
        }
    }
}

/// What both protocols' clients need of it.
#[derive(Clone)]
pub(super) struct Credentials {
    /// Over HTTP.
    pub(super) http: ClientConfig,
    /// Over gRPC.
    pub(super) grpc: ClientTlsConfig,
}

impl Credentials {
    /// Of `pem`, which was in `files`.
    fn new(pem: &Pem, files: &Files) -> Result<Credentials, InitError> {
        let path_of = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
        let roots = match &pem.certificate {
            Some(pem) => named(&path_of(&files.certificate), pem)?,
            None => of_the_system(&SYSTEM)?,
        };
        let mut grpc = ClientTlsConfig::new().trust_anchors(roots.roots.iter().cloned());
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| InitError::Tls { reason: error.to_string() })?
            .with_root_certificates(roots);
        let http = match &pem.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let shown = path_of(&files.client_certificate);
                let chain = Part::ClientCertificate.certificates(&shown, certificate)?;
                let unusable = |reason: &dyn fmt::Display| {
                    Part::ClientKey.unusable(&path_of(&files.client_key), reason.to_string())
                };
                let parsed =
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unusable(&error))?;
                grpc = grpc.identity(Identity::from_pem(certificate, key));
                builder.with_client_auth_cert(chain, parsed).map_err(|error| unusable(&error))?
            }
        };
        Ok(Credentials { http, grpc })
    }
}

fn named(path: &Path, pem: &str) -> Result<RootCertStore, InitError> {
    let part = Part::Certificate;
    let mut roots = RootCertStore::empty();
    for certificate in part.certificates(path, pem)? {
        roots.add(certificate).map_err(|error| part.unusable(path, error))?;
    }
    Ok(roots)
}

fn of_the_system(places: &[&str]) -> Result<RootCertStore, InitError> {
    let Some(path) = places.iter().map(Path::new).find(|path| path.is_file()) else {
        return Err(InitError::NoRoots { looked_at: places.join(", ") });
    };
    let (part, mut roots) = (Part::Certificate, RootCertStore::empty());
    // A system's bundle may have one that this build cannot read: those it was made for are others.
    let (taken, _) = roots.add_parsable_certificates(part.certificates(path, &part.read(path)?)?);
    if taken == 0 { Err(part.unusable(path, "none of its certificates can be used")) } else { Ok(roots) }
}

/// Whether a key is its owner's alone (invariant 3).
fn private(key: &Path) -> Result<(), String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(key).map_err(|error| error.to_string())?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(format!("others than its owner may use it (mode {:o}): chmod 600", mode & 0o777));
        }
    }
    Ok(())
}

/// What was read, and what was made of it.
pub(super) struct Secured {
    pem: Pem,
    pub(super) credentials: Credentials,
}

impl Secured {
    pub(super) fn read(files: &Files) -> Result<Secured, InitError> {
        Secured::new(Pem::read(files)?, files)
    }

    pub(super) fn new(pem: Pem, files: &Files) -> Result<Secured, InitError> {
        let credentials = Credentials::new(&pem, files)?;
        Ok(Secured { pem, credentials })
    }
}

/// What was read, by signal; nothing of it is shown.
#[derive(Clone, Default)]
pub struct Opened(pub(super) [Option<Arc<Secured>>; 3]);

impl Opened {
    /// What was read for the first signal whose collector is spoken to over TLS.
    #[must_use]
    pub fn pem(&self) -> Option<&Pem> {
        self.0.iter().flatten().map(|secured| &secured.pem).next()
    }

    /// All of it, for another process's [`Environment::handed`](super::Environment::handed); `None` where nothing was read.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        self.pem()?;
        let all = self.0.each_ref().map(|secured| secured.as_ref().map(|secured| &secured.pem));
        serde_json::to_vec(&all).ok()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

#[cfg(test)]
mod tests;
