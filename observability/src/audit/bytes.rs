//! Bytes in JSON, in one spelling each.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// 32 bytes in lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex(pub [u8; 32]);

impl Hex {
    /// The BLAKE3 hash of `bytes`.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> Hex {
        Hex(*blake3::hash(bytes).as_bytes())
    }
}

impl From<Hex> for String {
    fn from(hex: Hex) -> String {
        blake3::Hash::from_bytes(hex.0).to_hex().to_string()
    }
}

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Hex, String> {
        match blake3::Hash::from_hex(&text) {
            Ok(hash) if hash.to_hex().as_str() == text => Ok(Hex(*hash.as_bytes())),
            _ => Err("not 64 hexadecimal digits in lower case".to_owned()),
        }
    }
}

impl std::str::FromStr for Hex {
    type Err = String;

    fn from_str(text: &str) -> Result<Hex, String> {
        Hex::try_from(text.to_owned())
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(*self))
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes in base64, padded (RFC 4648, section 4).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Base64(pub Vec<u8>);

impl From<Base64> for String {
    fn from(bytes: Base64) -> String {
        STANDARD.encode(bytes.0)
    }
}

impl TryFrom<String> for Base64 {
    type Error = String;

    fn try_from(text: String) -> Result<Base64, String> {
        // The engine refuses bits that no byte has, so a text that decodes is the one spelling.
        STANDARD.decode(text).map(Base64).map_err(|why| format!("no base64: {why}"))
    }
}

impl fmt::Debug for Base64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
