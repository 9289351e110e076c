//! Certificates one after the other, in DER: a node's with those that lead from it to a trusted CA's.
//!
//! Invariants:
//!
//! 1. A chain has 1 to [`MAX_CHAIN`] certificates and [`MAX_CHAIN_BYTES`] bytes at most; this is checked before anything in it is
//!    parsed, and long before a signature is.
//! 2. A chain in bytes is its certificates' DER, the node's first: one certificate is the chain of itself.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::asn1_rs::{Any, FromDer as _, Tag};

use super::PkiError;
use super::certificate::not_pem;

/// Most certificates in a chain: a node's and three CAs' below a trusted one. SPIRE has one there, companies two.
pub const MAX_CHAIN: usize = 4;
/// Most bytes in a chain: ours have about 600 for each certificate, RSA's three times that.
pub const MAX_CHAIN_BYTES: usize = 16 * 1024;

/// A node's certificate, and the CAs' that came with it, in whatever order.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    leaf: &'a [u8],
    others: Vec<&'a [u8]>,
}

impl<'a> Chain<'a> {
    /// Puts together what TLS has taken apart.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when there is too much (invariant 1).
    pub(crate) fn of(leaf: &'a [u8], others: &'a [CertificateDer<'_>]) -> Result<Chain<'a>, PkiError> {
        check_count(others.len().saturating_add(1), MAX_CHAIN)?;
        check_bytes(
            others.iter().map(|der| der.len()).fold(leaf.len(), usize::saturating_add),
            MAX_CHAIN_BYTES,
        )?;
        Ok(Chain { leaf, others: others.iter().map(AsRef::as_ref).collect() })
    }

    /// Reads a chain in bytes.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when it is none (invariants 1 and 2).
    pub(crate) fn split(bytes: &'a [u8]) -> Result<Chain<'a>, PkiError> {
        let mut all = split(bytes, MAX_CHAIN, MAX_CHAIN_BYTES)?.into_iter();
        let leaf = all.next().ok_or_else(|| malformed("there is none"))?;
        Ok(Chain { leaf, others: all.collect() })
    }

    /// The node's certificate.
    pub(crate) fn leaf(&self) -> &'a [u8] {
        self.leaf
    }

    /// The others.
    pub(crate) fn others(&self) -> &[&'a [u8]] {
        &self.others
    }
}

/// The first certificate of a chain in bytes, by itself.
///
/// # Errors
/// [`PkiError::Certificate`] when it is no chain.
pub(crate) fn leaf_of(bytes: &[u8]) -> Result<&[u8], PkiError> {
    Chain::split(bytes).map(|chain| chain.leaf())
}

/// The certificates in `bytes`, of `most_bytes` at most in all, `most` at most.
pub(crate) fn split(bytes: &[u8], most: usize, most_bytes: usize) -> Result<Vec<&[u8]>, PkiError> {
    check_bytes(bytes.len(), most_bytes)?;
    let (mut all, mut left) = (Vec::new(), bytes);
    while !left.is_empty() {
        check_count(all.len() + 1, most)?;
        let (rest, found) = Any::from_der(left).map_err(|why| malformed(&why.to_string()))?;
        if found.header.tag() != Tag::Sequence {
            return Err(malformed("it is no sequence"));
        }
        let length = left.len().saturating_sub(rest.len());
        all.push(left.get(..length).unwrap_or_default());
        left = rest;
    }
    Ok(all)
}

/// The certificates of a PEM text, in DER one after the other.
///
/// # Errors
/// [`PkiError::Pem`] when there is none, or one that cannot be read; [`PkiError::Certificate`] when there are more than `most`.
pub(crate) fn from_pem(pem: &[u8], most: usize, most_bytes: usize) -> Result<Vec<u8>, PkiError> {
    let not = |why: String| PkiError::Pem { what: "certificate", why };
    let (mut bytes, mut count) = (Vec::new(), 0);
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|why| not(not_pem(&why).to_owned()))?;
        count += 1;
        check_count(count, most)?;
        check_bytes(bytes.len().saturating_add(der.len()), most_bytes)?;
        bytes.extend_from_slice(&der);
    }
    if count == 0 { Err(not("there is none in it".to_owned())) } else { Ok(bytes) }
}

fn check_count(found: usize, most: usize) -> Result<(), PkiError> {
    if found <= most {
        return Ok(());
    }
    Err(PkiError::Certificate(format!("more than {most} certificates; at most so many are read")))
}

fn check_bytes(found: usize, most: usize) -> Result<(), PkiError> {
    if found <= most {
        return Ok(());
    }
    Err(PkiError::Certificate(format!("{found} bytes; at most {most} are read")))
}

fn malformed(why: &str) -> PkiError {
    PkiError::Certificate(format!("malformed: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(length: u8) -> Vec<u8> {
        let mut der = vec![0x30, length];
        der.resize(2 + usize::from(length), 7);
        der
    }

    /// Invariants 1 and 2.
    #[test]
    fn a_chain_is_its_certificates_and_no_more_than_it_may_have() {
        let (leaf, issuer) = (one(5), one(9));
        let both = [leaf.clone(), issuer.clone()].concat();
        let chain = Chain::split(&both).unwrap();
        assert_eq!((chain.leaf(), chain.others()), (&leaf[..], &[&issuer[..]][..]));
        assert_eq!(leaf_of(&leaf).unwrap(), leaf);
        assert!(Chain::split(&one(3).repeat(MAX_CHAIN)).is_ok());
        assert!(Chain::split(&one(3).repeat(MAX_CHAIN + 1)).is_err());
        assert!(Chain::split(&[0x30; MAX_CHAIN_BYTES + 1]).is_err());
        for cut in 1..leaf.len() {
            assert!(Chain::split(&both[..both.len() - cut]).is_err(), "{cut} bytes are missing");
        }
        assert!(Chain::split(b"").is_err() && Chain::split(&[2, 1, 5]).is_err());
    }

    #[test]
    fn what_tls_took_apart_has_the_same_limits() {
        let (leaf, other) = (one(3), CertificateDer::from(one(3)));
        assert!(Chain::of(&leaf, &vec![other.clone(); MAX_CHAIN - 1]).is_ok());
        let refused = Chain::of(&leaf, &vec![other; MAX_CHAIN]).unwrap_err();
        assert!(refused.to_string().contains("more than 4 certificates"), "{refused}");
    }
}
