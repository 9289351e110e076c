//! Join tokens: leave for one node, whose key nobody knows yet, to get one certificate.
//!
//! Invariants:
//!
//! 1. The CA's directory holds a hash of a token's secret and nothing that opens anything: who reads it can neither join
//!    nor make a request that is believed.
//! 2. A token is good for one identity, until it ends, and for the first key that uses it; what its user gets if it asks
//!    again with that key is the same certificate.
//! 3. A request that comes with a token carries a MAC under a key derived from the secret, over the request: a request that
//!    was swapped or touched is refused.
//! 4. The secret is in no `Debug` output, and is cleared from memory.
//! 5. Who shows a secret that is none makes nobody read the record: the names in it are remembered, and read again when the
//!    file has changed.
//! 6. When an identity's certificates are revoked, so are the tokens that were made for it until then.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::journal::{Journal, Stamp};
use super::register::hex;
use super::{JobCa, PkiError, Request};
use crate::identity::SpiffeId;

/// Name of the record of tokens in a CA's directory.
pub const TOKENS_FILE: &str = "tokens.jsonl";
/// What a token's text begins with.
const PREFIX: &str = "testudo-join-1.";
/// Longest text: two hashes and an identity of 2 KiB, in Base64.
const MAX_TEXT: usize = 4096;
/// Contexts of the keys that are derived from a token's secret, one for each use.
const RECORD_CONTEXT: &str = "testudo 2026-11 join token: name in the CA's record";
const MAC_CONTEXT: &str = "testudo 2026-11 join token: MAC of a request";

/// A secret of 256 random bits; knows how to show itself, and nothing else does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct TokenSecret([u8; 32]);

/// A token as it is handed to a node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    secret: TokenSecret,
    ca: [u8; 32],
    id: SpiffeId,
}

impl TokenSecret {
    fn new() -> Result<Self, PkiError> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PkiError::Crypto("no randomness for a token"))?;
        Ok(TokenSecret(bytes))
    }

    /// What the CA's record calls it (invariant 1).
    fn name(&self) -> String {
        hex(&self.name_bytes())
    }

    fn name_bytes(&self) -> [u8; 32] {
        blake3::derive_key(RECORD_CONTEXT, &self.0)
    }

    /// Invariant 3.
    pub fn mac(&self, request_der: &[u8]) -> [u8; 32] {
        let key = Zeroizing::new(blake3::derive_key(MAC_CONTEXT, &self.0));
        *blake3::keyed_hash(&key, request_der).as_bytes()
    }
}

impl JoinToken {
    /// Who may join with it.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Its secret.
    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// BLAKE3 of the certificate (DER) of the CA that it is good at.
    pub fn ca(&self) -> &[u8; 32] {
        &self.ca
    }

    /// Its text: to be handed over as a secret is.
    pub fn to_text(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(crate::codec::encode(self));
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes));
        Zeroizing::new(format!("{PREFIX}{}", encoded.as_str()))
    }
}

impl FromStr for JoinToken {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let bad = || PkiError::Token("this is no join token, or not all of it".to_owned());
        let encoded =
            text.trim().strip_prefix(PREFIX).filter(|rest| rest.len() <= MAX_TEXT).ok_or_else(bad)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| bad())?);
        crate::codec::decode_canonical(&bytes).map_err(|_| bad())
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// One line of the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    /// A token was made.
    Made {
        token: String,
        id: SpiffeId,
        not_after: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        key_sha256: Option<String>,
    },
    /// It was used, by a key that got this certificate.
    Used { token: String, key_sha256: String, certificate: String },
    /// The operator took it back.
    Withdrawn { token: String },
}

/// The tokens of the CA in one directory.
#[derive(Debug, Clone)]
pub struct Tokens {
    journal: Journal<Entry>,
    known: Arc<Mutex<Known>>,
}

/// The names in the record as it was when its file had this stamp; they take some 40 bytes each.
#[derive(Default)]
struct Known {
    stamp: Option<Stamp>,
    names: HashSet<blake3::Hash>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({} tokens)", self.names.len())
    }
}

impl Tokens {
    /// Those of the CA in `directory`.
    #[must_use]
    pub fn of(directory: &Path) -> Tokens {
        Tokens { journal: Journal::at(directory.join(TOKENS_FILE)), known: Arc::default() }
    }

    /// Makes a token for `id`, good for `valid_for`; if `key_sha256` is given (64 digits, as [`Request::key_sha256`] gives them),
    /// good for that key alone.
    ///
    /// # Errors
    /// [`PkiError::NotOurs`] for another job's identity, [`PkiError::Token`] for a key's hash that is none,
    /// [`PkiError::Validity`], or [`PkiError::File`].
    pub fn make(
        &self,
        ca: &JobCa,
        id: &SpiffeId,
        valid_for: Duration,
        key_sha256: Option<&str>,
    ) -> Result<JoinToken, PkiError> {
        ca.check_ours(id)?;
        if let Some(key) = key_sha256
            && (key.len() != 64 || !key.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')))
        {
            let what = format!("`{key}` is no SHA-256 of a key, which has 64 hexadecimal digits");
            return Err(PkiError::Token(what));
        }
        let end = since_1970(SystemTime::now()).checked_add(valid_for.as_secs());
        let not_after = end.filter(|_| !valid_for.is_zero()).ok_or(PkiError::Validity(valid_for))?;
        let secret = TokenSecret::new()?;
        let entry = Entry::Made {
            token: secret.name(),
            id: id.clone(),
            not_after,
            key_sha256: key_sha256.map(str::to_owned),
        };
        self.journal.lock()?.append(&entry)?;
        let ca = *blake3::hash(&ca.trust().ca_der()).as_bytes();
        Ok(JoinToken { secret, ca, id: id.clone() })
    }

    /// Gives the certificate (PEM) for a request that came with a token. The record is locked meanwhile, so that two requests
    /// with one token are judged one after the other.
    ///
    /// # Errors
    /// [`PkiError::Token`] or [`PkiError::Request`] saying why not.
    pub fn redeem(
        &self,
        ca: &JobCa,
        secret: &TokenSecret,
        request_der: &[u8],
        mac: &[u8; 32],
        valid_for: Duration,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let refuse = |what: &str| Err(PkiError::Token(what.to_owned()));
        if !self.knows(secret)? {
            return refuse("it is not known here");
        }
        // Before the record, as who revokes does.
        let _alone = ca.alone()?;
        let mut record = self.journal.lock()?;
        let name = secret.name();
        let (mut made, mut used, mut withdrawn) = (None, None, false);
        for entry in record.read()? {
            match entry {
                Entry::Made { token, id, not_after, key_sha256 } if token == name => {
                    made = Some((id, not_after, key_sha256));
                }
                Entry::Used { token, key_sha256, certificate } if token == name => {
                    used = Some((key_sha256, certificate));
                }
                Entry::Withdrawn { token } if token == name => withdrawn = true,
                _ => {}
            }
        }
        let Some((id, not_after, bound)) = made else {
            return refuse("it is not known here");
        };
        if withdrawn {
            return refuse(
                "it was withdrawn when the identity's certificates were revoked; ask the operator for another",
            );
        }
        if since_1970(now) > not_after {
            return refuse("it has expired; ask the operator for another");
        }
        // Hashes of BLAKE3 compare in constant time.
        if blake3::Hash::from_bytes(secret.mac(request_der)) != blake3::Hash::from_bytes(*mac) {
            return refuse("the request's MAC is not of this token");
        }
        let request = Request::from_der(request_der)?;
        if *request.id() != id {
            let what = format!("it is for {}, and the request asks for {}", id.short(), request.id().short());
            return Err(PkiError::Token(what));
        }
        let key = request.key_sha256();
        if bound.is_some_and(|bound| bound != key) {
            return refuse("it is for another key than that of the request");
        }
        match used {
            Some((first, certificate)) if first == key => return Ok(certificate),
            Some(_) => {
                return refuse("it has been used by another key; if that was not you, tell the operator");
            }
            None => {}
        }
        let certificate = ca.issue_alone(&request, Some(&id), valid_for)?;
        record.append(&Entry::Used { token: name, key_sha256: key, certificate: certificate.clone() })?;
        Ok(certificate)
    }

    /// Whether a token with this secret was ever made (invariant 5).
    fn knows(&self, secret: &TokenSecret) -> Result<bool, PkiError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before the record is read: what is added meanwhile changes it.
        let stamp = self.journal.stamp()?;
        if known.stamp != stamp {
            let made = self.journal.read()?.into_iter().filter_map(|entry| match entry {
                Entry::Made { token, .. } => blake3::Hash::from_hex(token).ok(),
                Entry::Used { .. } | Entry::Withdrawn { .. } => None,
            });
            *known = Known { stamp, names: made.collect() };
        }
        Ok(known.names.contains(&blake3::Hash::from_bytes(secret.name_bytes())))
    }

    /// Withdraws the tokens for `id` that have not ended; says how many. No certificate is given for one from then on.
    ///
    /// # Errors
    /// [`PkiError::File`] or [`PkiError::NotPrivate`].
    pub fn withdraw(&self, id: &SpiffeId, now: SystemTime) -> Result<usize, PkiError> {
        if self.journal.read()?.is_empty() {
            return Ok(0);
        }
        let mut record = self.journal.lock()?;
        let mut open = BTreeSet::new();
        for entry in record.read()? {
            match entry {
                Entry::Made { token, id: whose, not_after, .. }
                    if whose == *id && since_1970(now) <= not_after =>
                {
                    open.insert(token);
                }
                Entry::Withdrawn { token } => {
                    open.remove(&token);
                }
                _ => {}
            }
        }
        for token in &open {
            record.append(&Entry::Withdrawn { token: token.clone() })?;
        }
        Ok(open.len())
    }
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Invariant 5.
    #[test]
    fn a_secret_that_is_none_makes_nobody_read_the_record() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, tokens) = (JobCa::create("t.test", "job", HOUR).unwrap(), Tokens::of(directory.path()));
        let id = SpiffeId::new("t.test", "job", Role::Worker, "0").unwrap();
        let judged = |secret: &TokenSecret| {
            tokens.redeem(&ca, secret, b"", &[0; 32], HOUR, SystemTime::now()).unwrap_err().to_string()
        };
        let stranger = TokenSecret::new().unwrap();
        assert!(judged(&stranger).contains("not known"));
        assert!(!directory.path().join(TOKENS_FILE).exists(), "nor make one");
        let first = tokens.make(&ca, &id, HOUR, None).unwrap();
        assert!(judged(first.secret()).contains("MAC"), "a record that has changed is read");
        // The same file by its stamp, which nobody could read.
        let path = directory.path().join(TOKENS_FILE);
        let found = std::fs::metadata(&path).unwrap();
        std::fs::write(&path, vec![b'x'; found.len() as usize]).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(found.modified().unwrap())
            .unwrap();
        assert!(judged(&stranger).contains("not known"));
    }
}
