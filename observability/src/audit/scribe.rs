//! The writer's decisions: what goes to the file, and when a signature is due. Pure: time comes in as milliseconds since
//! 1970, bytes go out.

use serde::Serialize;

use super::{AuditError, Chain, Hex, Signer};

/// Records that may wait for a signature.
pub const SIGN_EVERY: u64 = 256;

/// Milliseconds that a record may wait for one.
pub const SIGN_AFTER_MS: u64 = 1000;

/// Writes the log.
pub struct Scribe {
    chain: Chain,
    signer: Box<dyn Signer>,
    pending: Vec<u8>,
    unsigned: u64,
    since: u64,
}

impl std::fmt::Debug for Scribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scribe").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl Scribe {
    /// Goes on at the end of `chain`.
    #[must_use]
    pub fn new(chain: Chain, signer: Box<dyn Signer>) -> Scribe {
        Scribe { chain, signer, pending: Vec::new(), unsigned: 0, since: 0 }
    }

    /// The hash of the last record.
    #[must_use]
    pub fn head(&self) -> Hex {
        self.chain.head()
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.chain.next()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// As [`Chain::append`].
    pub fn entry(&mut self, now: u64, entry: &impl Serialize) -> Result<(), AuditError> {
        let line = self.chain.append(now, entry)?;
        if self.unsigned == 0 {
            self.since = now;
        }
        self.unsigned += 1;
        self.pending.extend(line.as_bytes());
        Ok(())
    }

    /// When a signature is due, if anything waits for one.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.unsigned {
            0 => None,
            SIGN_EVERY.. => Some(0),
            _ => Some(self.since.saturating_add(SIGN_AFTER_MS)),
        }
    }

    /// Signs what waits, if that is due; says whether it did.
    ///
    /// # Errors
    /// As [`Chain::sign`].
    pub fn sign_if_due(&mut self, now: u64) -> Result<bool, AuditError> {
        match self.poll_timeout() {
            // A clock that was set back must not keep a record waiting.
            Some(due) if now >= due || now < self.since => self.sign(now).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Signs what waits.
    ///
    /// # Errors
    /// As [`Chain::sign`].
    pub fn sign(&mut self, now: u64) -> Result<(), AuditError> {
        if self.unsigned > 0 {
            let line = self.chain.sign(now, self.signer.as_ref())?;
            self.pending.extend(line.as_bytes());
            self.unsigned = 0;
        }
        Ok(())
    }

    /// What is to be written at the end of the file, in order.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Signer for Nobody {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
            Ok(message.to_vec())
        }
    }

    fn entry(n: u64) -> serde_json::Value {
        serde_json::json!({ "kind": "test", "body": { "n": n } })
    }

    /// Invariant 4.
    #[test]
    fn a_signature_is_due_after_a_while_and_after_many_records() {
        let mut scribe = Scribe::new(Chain::new(), Box::new(Nobody));
        assert_eq!(scribe.poll_timeout(), None);
        assert!(!scribe.sign_if_due(u64::MAX).unwrap(), "nothing waits");
        scribe.entry(5000, &entry(0)).unwrap();
        scribe.entry(5900, &entry(1)).unwrap();
        assert_eq!(scribe.poll_timeout(), Some(6000), "from the first that waits");
        assert!(!scribe.sign_if_due(5999).unwrap());
        assert!(scribe.sign_if_due(6000).unwrap());
        assert_eq!(scribe.poll_timeout(), None);
        for n in 0..SIGN_EVERY {
            assert!(!scribe.sign_if_due(7000).unwrap(), "{n} wait");
            scribe.entry(7000, &entry(n)).unwrap();
        }
        assert!(scribe.sign_if_due(7000).unwrap());
        scribe.entry(7000, &entry(0)).unwrap();
        assert!(scribe.sign_if_due(10).unwrap(), "a clock that was set back delays nothing");
        let text = String::from_utf8(scribe.take()).unwrap();
        assert_eq!(text.lines().count() as u64, scribe.records());
        assert_eq!(text.lines().filter(|line| line.contains("\"signature\"")).count(), 3);
        assert!(scribe.take().is_empty());
    }
}
