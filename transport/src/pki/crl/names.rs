//! What lists call each other and certificates by: numbers and serials.

use std::fmt;

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::CrlError;
use crate::pki::PkiError;

/// Longest serial and list number that RFC 5280 allows (sections 4.1.2.2 and 5.2.3).
const MAX_NUMBER: usize = 20;

/// The number of a list: a later one has a higher one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CrlNumber([u8; MAX_NUMBER]);

impl CrlNumber {
    /// From big-endian bytes; `None` if there are too many.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<CrlNumber> {
        let mut number = [0; MAX_NUMBER];
        let bytes = trimmed(bytes);
        number.get_mut(MAX_NUMBER.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
        Some(CrlNumber(number))
    }

    /// The next one; the highest has none.
    #[must_use]
    pub fn next(self) -> Option<CrlNumber> {
        let mut number = self.0;
        for byte in number.iter_mut().rev() {
            let (sum, carried) = byte.overflowing_add(1);
            *byte = sum;
            if !carried {
                return Some(CrlNumber(number));
            }
        }
        None
    }

    pub(super) fn bytes(&self) -> &[u8] {
        trimmed(&self.0)
    }
}

impl fmt::Display for CrlNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes().iter().try_fold(0_u64, |all, byte| Some(all.checked_mul(256)? + u64::from(*byte)))
        {
            Some(small) => write!(f, "{small}"),
            None => write!(f, "0x{}", hex(self.bytes())),
        }
    }
}

impl fmt::Debug for CrlNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A certificate's serial number, as a list has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// From the bytes of the DER integer; zeroes in front say nothing.
    ///
    /// # Errors
    /// [`CrlError::Malformed`] when there are more than RFC 5280 allows.
    pub fn new(bytes: &[u8]) -> Result<Serial, CrlError> {
        let bytes = trimmed(bytes);
        // A CA may use one more than it should; it is no more than a longer name.
        if bytes.len() > MAX_NUMBER + 1 {
            return Err(CrlError::Malformed(format!("a serial number of {} bytes", bytes.len())));
        }
        Ok(Serial(bytes.into()))
    }

    /// From hexadecimal digits, with or without colons.
    ///
    /// # Errors
    /// [`CrlError::Malformed`].
    pub fn from_hex(text: &str) -> Result<Serial, CrlError> {
        let bad =
            || CrlError::Malformed("a serial number is hexadecimal digits, two for each byte".to_owned());
        let digits: Vec<u8> = text.bytes().filter(|c| *c != b':').take(4 * MAX_NUMBER).collect();
        let pairs = digits.chunks(2).map(|pair| {
            let pair = <[u8; 2]>::try_from(pair).ok()?;
            let value = |c: u8| (c as char).to_digit(16);
            u8::try_from(value(pair[0])? << 4 | value(pair[1])?).ok()
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(bad).and_then(|bytes| Serial::new(&bytes))
    }

    /// That of a certificate in DER.
    pub(crate) fn of(certificate_der: &[u8]) -> Result<Serial, PkiError> {
        let malformed = |why: String| PkiError::Certificate(format!("malformed: {why}"));
        let (_, certificate) =
            X509Certificate::from_der(certificate_der).map_err(|why| malformed(why.to_string()))?;
        Serial::new(certificate.raw_serial()).map_err(|why| malformed(why.to_string()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let zeroes = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeroes..).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
