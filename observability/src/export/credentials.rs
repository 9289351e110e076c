//! What an `https://` collector is spoken to with: whose certificates are trusted, and what shows the collector who speaks.
//!
//! Invariants:
//! 1. A collector hears something only if its certificate is for the URL's host and leads to a CA of the file that is named, or to
//!    one of the system's where none is. Nothing turns this off, and no URL is changed to `http://`.
//! 2. Every file is read when [`Environment::open`](super::Environment::open) asks, before a process is confined, or by a launcher that
//!    hands over what was in it ([`Opened`]); it is bounded, and what cannot be used ends the start.
//! 3. A private key that others may read is refused, and no message shows one. Only a launcher keeps its text, for others; the clients have
//!    copies of their own, for as long as they may have to connect.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use opentelemetry_otlp::tonic_types::transport::{ClientTlsConfig, Identity};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::source::{NO_PEM, Named, Part, Source, is_mine};
use crate::setup::InitError;

/// Where systems keep the CAs that they trust: Debian, Fedora, openSUSE, NixOS, Alpine.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The length, in [`Opened::to_bytes`], of a text that is not there: no file is as long.
const NONE: u32 = u32::MAX;

/// What the files hold, in PEM.
#[derive(Clone)]
pub struct Pem {
    /// The CAs; `None` for the system's.
    pub certificate: Option<Zeroizing<String>>,
    /// What the collector is shown, and the key of it.
    pub client: Option<(Zeroizing<String>, Zeroizing<String>)>,
}

/// Invariant 3.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pem")
    }
}

impl Pem {
    /// What `read` finds in the files that are `named`.
    pub(super) fn read<E: From<InitError>>(
        named: &Named,
        mut read: impl FnMut(&Source) -> Result<Zeroizing<String>, E>,
    ) -> Result<Pem, E> {
        let certificate = named.get(Part::Certificate).map(&mut read).transpose()?;
        let client = match (named.get(Part::ClientCertificate), named.get(Part::ClientKey)) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (Some(certificate), None) => {
                return Err(certificate.unusable("its private key is not named").into());
            }
            (None, Some(key)) => return Err(key.unusable("its certificate is not named").into()),
        };
        Ok(Pem { certificate, client })
    }

    fn parts(&self) -> [Option<&str>; 3] {
        let client = self.client.as_ref();
        let certificate = self.certificate.as_ref().map(|text| text.as_str());
        [certificate, client.map(|(shown, _)| shown.as_str()), client.map(|(_, key)| key.as_str())]
    }

    /// What [`Opened::to_bytes`] wrote, by signal; `None` if it did not write that.
    pub(super) fn all(mut bytes: &[u8]) -> Option<[Option<Pem>; 3]> {
        let mut all = [None, None, None];
        for pem in &mut all {
            *pem = match take(&mut bytes, 1)? {
                [0] => None,
                [1] => Some(Pem::next(&mut bytes)?),
                _ => return None,
            };
        }
        bytes.is_empty().then_some(all)
    }

    fn next(bytes: &mut &[u8]) -> Option<Pem> {
        let certificate = text(bytes)?;
        let client = match (text(bytes)?, text(bytes)?) {
            (None, None) => None,
            (Some(shown), Some(key)) => Some((shown, key)),
            _ => return None,
        };
        Some(Pem { certificate, client })
    }
}

/// The next text, if one is there; `None` for what is no text.
fn text(bytes: &mut &[u8]) -> Option<Option<Zeroizing<String>>> {
    let length = u32::from_le_bytes(take(bytes, size_of::<u32>())?.try_into().ok()?);
    if length == NONE {
        return Some(None);
    }
    let text = std::str::from_utf8(take(bytes, length as usize)?).ok()?;
    Some(Some(Zeroizing::new(text.to_owned())))
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
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
    /// Of `pem`, which was in the files that are `named`.
    fn new(pem: &Pem, named: &Named) -> Result<Credentials, InitError> {
        let roots = match &pem.certificate {
            Some(pem) => trusted(&named.of(Part::Certificate), pem)?,
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
                let chain = named.of(Part::ClientCertificate).certificates(certificate)?;
                let source = named.of(Part::ClientKey);
                // Invariant 3: what else the parser says holds the line that it refuses.
                let unusable = |error| match error {
                    pem::Error::NoItemsFound => source.unusable("it holds no private key in PEM"),
                    _ => source.unusable(NO_PEM),
                };
                let parsed = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(unusable)?;
                grpc = grpc.identity(Identity::from_pem(certificate.as_bytes(), key.as_bytes()));
                builder.with_client_auth_cert(chain, parsed).map_err(|error| source.unusable(error))?
            }
        };
        Ok(Credentials { http, grpc })
    }
}

fn trusted(source: &Source, pem: &str) -> Result<RootCertStore, InitError> {
    let mut roots = RootCertStore::empty();
    for certificate in source.certificates(pem)? {
        roots.add(certificate).map_err(|error| source.unusable(error))?;
    }
    Ok(roots)
}

fn of_the_system(places: &[&str]) -> Result<RootCertStore, InitError> {
    let Some(path) = places.iter().map(Path::new).find(|path| path.is_file()) else {
        return Err(InitError::NoRoots { looked_at: places.join(", ") });
    };
    let (source, mut roots) = (Source::of_the_system(path), RootCertStore::empty());
    // A system's bundle may have one that this build cannot read: those it was made for are others.
    let (taken, _) = roots.add_parsable_certificates(source.certificates(&source.read(is_mine)?)?);
    if taken == 0 { Err(source.unusable("none of its certificates can be used")) } else { Ok(roots) }
}

/// What was made of what was read, and that, where it is for other processes too.
pub(super) struct Secured {
    pem: Option<Pem>,
    pub(super) credentials: Credentials,
}

impl Secured {
    /// Keeps `pem` only if that is said.
    pub(super) fn new(pem: Pem, named: &Named, keep: bool) -> Result<Secured, InitError> {
        let credentials = Credentials::new(&pem, named)?;
        Ok(Secured { pem: keep.then_some(pem), credentials })
    }
}

/// What was read, by signal; nothing of it is shown.
#[derive(Clone, Default)]
pub struct Opened(pub(super) [Option<Arc<Secured>>; 3]);

impl Opened {
    /// What was read for the first signal whose collector is spoken to over TLS, where it is for other processes
    /// ([`Environment::open_for_others`](super::Environment::open_for_others)).
    #[must_use]
    pub fn pem(&self) -> Option<&Pem> {
        self.all().flatten().next()
    }

    /// All of it, for another process's [`Environment::handed`](super::Environment::handed); `None` where nothing was read for others. Of each
    /// signal one byte, whether it has some; then of each file the length, four bytes from the lowest, and its text.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        self.pem()?;
        let texts: usize = self.all().flatten().flat_map(Pem::parts).flatten().map(str::len).sum();
        // Sized once: a buffer that grows leaves copies of the key behind.
        let room = self.0.len() * (1 + 3 * size_of::<u32>());
        let mut bytes = Zeroizing::new(Vec::with_capacity(texts + room));
        for pem in self.all() {
            bytes.push(u8::from(pem.is_some()));
            for part in pem.map(Pem::parts).into_iter().flatten() {
                let length = part.map_or(NONE, |part| part.len() as u32);
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(part.unwrap_or_default().as_bytes());
            }
        }
        Some(bytes)
    }

    fn all(&self) -> impl Iterator<Item = Option<&Pem>> {
        self.0.iter().map(|secured| secured.as_ref().and_then(|secured| secured.pem.as_ref()))
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

#[cfg(test)]
mod tests;
