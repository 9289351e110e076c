//! The job's certificate authority and what it issues.
//!
//! Invariants:
//!
//! 1. A leaf certificate that [`JobCa`] issues names exactly one identity, of the CA's own trust domain and job.
//! 2. [`Trust`] accepts a leaf only if it chains to a trusted CA now, through [`MAX_CHAIN`] certificates at most, is no CA itself, may
//!    sign, is good for both ends of TLS, and has exactly one URI name, which is a well-formed identity of the job.
//! 3. Private keys are cleared from memory when dropped, appear in no `Debug` output, and are written to and
//!    read from files that the owner alone can read.
//! 4. A certificate for a [`Request`] has the request's key and identity, the latter confirmed by the operator or by the key of
//!    a certificate that it renews, and nothing else of the request.
//! 5. A CA that was loaded from its directory has a certificate in its [`Register`] before it hands it out.
//!
//! Sources: RFC 5280 (certificates); the X.509-SVID specification,
//! <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>.

mod anchors;
mod ca;
mod certificate;
mod chain;
mod crl;
mod enrol;
mod files;
mod identity;
mod inspect;
mod journal;
mod key;
mod register;
mod request;
mod revocation;
mod token;
mod trust;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use anchors::Anchors;
pub use anchors::{MAX_ANCHOR_BYTES, MAX_ANCHORS};
pub use ca::JobCa;
pub(crate) use certificate::end;
pub(crate) use certificate::to_pem;
pub use certificate::{
    CertificateInfo, bundle_der, bundle_parts, certificate_der, chain_der, describe, describe_all,
};
pub(crate) use chain::Chain;
pub use chain::{MAX_CHAIN, MAX_CHAIN_BYTES};
pub use crl::{
    CRL_FILE, Crl, CrlError, CrlInfo, CrlNumber, LONGEST_CRL, MAX_CRL, Revocation, RevocationList, Serial,
    describe_crl,
};
pub use enrol::{install, renew, request};
pub use files::{
    is_ours, open_secret, read_crl, read_open, read_public, read_secret, trust_owner, write_public,
    write_secret,
};
pub(crate) use identity::Held;
pub use identity::{Identity, identity_files, is_identity_file};
pub use inspect::{Inspected, inspect};
pub(crate) use key::Curve;
pub use register::{Issued, REGISTER_FILE, Register};
pub use request::Request;
pub use revocation::{Installed, RevocationPolicy, SystemClock, WallClock};
pub use token::{JoinToken, TOKENS_FILE, TokenSecret, Tokens};
pub use trust::{Expected, Trust};

use crate::identity::IdentityError;

/// How far apart two nodes' clocks may be: certificates are valid this much before they were issued.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Name of the CA's certificate in a directory.
pub const CA_FILE: &str = "ca.pem";
/// Name of a node's certificate in a directory.
pub const CERT_FILE: &str = "cert.pem";
/// Name of a node's private key in a directory.
pub const KEY_FILE: &str = "key.pem";
/// Name of the key whose certificate has been asked for but is not there yet, in a directory.
pub const NEXT_KEY_FILE: &str = "next-key.pem";
/// Name of a node's first request for a certificate in a directory.
pub const REQUEST_FILE: &str = "request.pem";
/// Name of a node's request to renew its certificate in a directory.
pub const RENEWAL_FILE: &str = "renewal.pem";
/// Name of the CA's private key in a directory.
pub const CA_KEY_FILE: &str = "ca-key.pem";

/// Reads a secret file as keys are read: a regular file (no link) of this user that nobody else can read, of 64 KiB at
/// most.
///
/// # Errors
/// [`PkiError::File`] or [`PkiError::NotPrivate`].
pub fn read_secret_file(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, PkiError> {
    files::read_secret(path)
}

/// What can be wrong with keys and certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        what: String,
    },
    /// A secret file is not private.
    #[error("{}: {what}; make it a regular file of this user with `chmod 600`", path.display())]
    NotPrivate {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Bytes that are not PEM of the right kind.
    #[error("{what} is not in PEM form: {why}")]
    Pem {
        /// What was being read.
        what: &'static str,
        /// The parser's reason.
        why: String,
    },
    /// A certificate that does not have the profile of this system.
    #[error("certificate refused: {0}")]
    Certificate(String),
    /// A certificate of another key than the node's.
    #[error("certificate refused: it is not of the private key beside it")]
    OtherKey,
    /// A request for a certificate that cannot be granted.
    #[error("request refused: {0}")]
    Request(String),
    /// A join token that is not good, or not for this.
    #[error("join token refused: {0}")]
    Token(String),
    /// A certificate that ended while its connection lived.
    #[error("the certificate of {0} has ended, and it has shown no renewed one")]
    Ended(String),
    /// The CA's own certificate has ended.
    #[error("the CA's own certificate has ended; make a new one with `testudo pki init`")]
    CaEnded,
    /// A certificate or request whose name is not an identity.
    #[error("certificate refused: {0}")]
    Identity(#[from] IdentityError),
    /// A good certificate, but not of whom was expected.
    #[error("certificate is {found}'s; expected {expected}")]
    Unexpected {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// A certificate that does not chain to the CA, or not now.
    #[error("certificate does not chain to the job's CA: {0}")]
    Chain(String),
    /// A signature that does not verify.
    #[error("signature does not verify under {0}'s certificate")]
    Signature(String),
    /// A certificate that the CA has taken back.
    #[error("certificate of {id} is revoked (serial number {serial})")]
    Revoked {
        /// Whose it was.
        id: String,
        /// Its serial number, in hexadecimal.
        serial: String,
    },
    /// The CA that issued a certificate has no list of revoked ones, and others have.
    #[error(
        "there is no list of revoked certificates of {issuer}, which certified {id}: give nodes that list, too, or set \
         security.revocation = \"short-lived\""
    )]
    NoList {
        /// Whose certificate it is.
        id: String,
        /// The CA's name.
        issuer: String,
    },
    /// Nobody can tell who is revoked.
    #[error(
        "the list of revoked certificates ended {ago} s ago, so nobody is trusted: put a new one in its place \
         (`testudo pki crl` makes it)"
    )]
    RevocationUnknown {
        /// Seconds since then.
        ago: u64,
    },
    /// A list of revoked certificates that cannot be taken.
    #[error("list of revoked certificates: {0}")]
    Crl(#[from] CrlError),
    /// The cryptographic library refused.
    #[error("{0}")]
    Crypto(&'static str),
    /// The CA was asked for an identity that is not its own to give.
    #[error("the CA of job `{job}` in `{trust_domain}` cannot issue {asked}")]
    NotOurs {
        /// The CA's trust domain.
        trust_domain: String,
        /// The CA's job.
        job: String,
        /// What was asked.
        asked: String,
    },
    /// A validity that no certificate can have.
    #[error("a validity of {0:?} is not possible; give more than none and less than 100 years")]
    Validity(Duration),
    /// A validity that no list of revoked certificates may have.
    #[error(
        "a list of revoked certificates that is good for {0:?} is not possible; give more than none and at most 366 days"
    )]
    ListValidity(Duration),
}
