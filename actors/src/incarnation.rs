//! Which of the processes that hold one identity's key is the one that takes part.
//!
//! A certificate says who somebody is. It cannot tell a node from its own former process, nor from a thief of its key. So each
//! process makes a secret when it joins and tells the scheduler a commitment to it; the scheduler admits one process for an
//! identity at a time and names its commitment in every membership; and whoever speaks to a server first shows the secret.
//!
//! 1. A server serves the process that the scheduler admitted, and no other holder of the same key.
//! 2. What a commitment tells (to every member) is no help in showing its secret.

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::message::Hello;

/// Domain separation: commitments mean nothing elsewhere.
const CONTEXT: &str = "testudo 2026-11 incarnation commitment";

/// What one process alone can show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new one, from the operating system's random source.
    ///
    /// # Errors
    /// When that source fails.
    pub fn new() -> Result<Secret, String> {
        let mut secret = Secret([0; 32]);
        aws_lc_rs::rand::fill(&mut secret.0).map_err(|_| "the system gives no random bytes".to_owned())?;
        Ok(secret)
    }

    /// One that is known: for tests and simulations.
    #[must_use]
    pub fn known(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    /// What the scheduler is told of it.
    #[must_use]
    pub fn commitment(&self) -> [u8; 32] {
        blake3::derive_key(CONTEXT, &self.0)
    }

    /// What a server is told.
    #[must_use]
    pub fn hello(&self) -> Hello {
        Hello { secret: self.clone() }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Whether two commitments are one, in a time that does not tell how far they agree.
#[must_use]
pub fn same(left: &[u8; 32], right: &[u8; 32]) -> bool {
    blake3::Hash::from(*left) == blake3::Hash::from(*right)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 and 2, and no secret in `Debug`.
    #[test]
    fn only_the_secret_fits_its_commitment() {
        let (one, other) = (Secret::new().unwrap(), Secret::new().unwrap());
        assert!(same(&one.hello().secret.commitment(), &one.commitment()));
        assert!(!same(&one.commitment(), &other.commitment()));
        let guess = Secret::known(one.commitment());
        assert!(!same(&guess.commitment(), &one.commitment()), "the commitment itself shows nothing");
        assert_eq!(format!("{:?}", one.hello()), "Hello { secret: Secret(..) }");
    }
}
