//! What a person is told of a list.

use std::fmt;

use x509_parser::time::ASN1Time;

use super::{Crl, CrlError, CrlNumber, Serial, to_der};

/// What a person wants to know of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlInfo {
    /// Whose it is.
    pub issuer: String,
    /// Its number.
    pub number: CrlNumber,
    /// When it was made, in seconds since 1970 UTC.
    pub this_update: i64,
    /// When it ends, in seconds since 1970 UTC.
    pub next_update: i64,
    /// The certificates in it.
    pub revoked: Vec<Serial>,
}

impl fmt::Display for CrlInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kind         list of revoked certificates")?;
        writeln!(f, "issuer       {}", self.issuer)?;
        writeln!(f, "number       {}", self.number)?;
        writeln!(f, "valid        {} to {}", date(self.this_update), date(self.next_update))?;
        write!(f, "revoked      {}", self.revoked.len())?;
        self.revoked.iter().try_for_each(|serial| write!(f, "\n  serial     {serial}"))
    }
}

/// Describes lists that stand one after the other; says nothing of whether to trust them.
///
/// # Errors
/// [`CrlError::Malformed`].
pub fn describe_crl(bytes: &[u8]) -> Result<Vec<CrlInfo>, CrlError> {
    let describe = |der| {
        let crl = Crl::read_if(der, |_, _| Ok(None))?;
        let issuer = crl.issuer_name();
        let Crl { number, this_update, next_update, revoked, .. } = crl;
        Ok(CrlInfo { issuer, number, this_update, next_update, revoked: revoked.into_iter().collect() })
    };
    to_der(bytes)?.into_iter().map(describe).collect()
}

pub(super) fn date(seconds: i64) -> String {
    let time = ASN1Time::from_timestamp(seconds).ok();
    time.and_then(|time| time.to_rfc2822().ok()).unwrap_or_else(|| format!("{seconds} s since 1970"))
}
