//! `[security]`: identities and processes.

use std::path::PathBuf;

use serde::Serialize;

/// `[security]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Security {
    /// Life of the certificates that a run issues, in hours.
    pub certificate_hours: u32,
    /// The user that processes which are started as root go on as.
    pub run_as: String,
    /// The three files of a cluster that has a CA of its own; `None` where the run makes one.
    #[serde(flatten)]
    pub files: Option<SecurityFiles>,
    /// The CAs' lists of revoked certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crl: Option<PathBuf>,
    /// What of a certificate whose CA has no list, while others have.
    pub revocation: Revocation,
}

/// What is done with a certificate whose CA has no list of revoked ones, while others have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// It is refused.
    Required,
    /// It is good until it ends.
    ShortLived,
}

/// The files of a cluster that has CAs of its own; absolute paths to PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecurityFiles {
    /// The CAs' certificates.
    pub ca: PathBuf,
    /// This node's certificate, with those of the CAs between it and a trusted one.
    pub cert: PathBuf,
    /// This node's private key.
    pub key: PathBuf,
}
