//! Heads of the audit log, counter-signed: every server and worker vouches for what the scheduler showed it.
//!
//! Who keeps a log can cut it and sign a shorter one. A node therefore signs, now and then, the head that it is shown, together
//! with the one that it signed before. The signatures go into the log; a log from which some of them were cut has
//! nodes against it that remember more, in their own logs and in what they sign next.
//!
//! 1. A node signs no head of a shorter log than one that it signed before, nor two heads of one length.
//! 2. Each signature names the one before it, so those of one node make a chain of their own through the log.

use std::sync::Arc;

use testudo_transport::Identity;

use crate::audit::Hex;
use crate::message::{AuditHead, Countersigned, HeadName};

/// Domain separation of the signature.
const CONTEXT: &[u8] = b"testudo audit counter-signature, format 1\0";

/// What a node signs.
#[must_use]
pub fn signed_bytes(head: &HeadName, before: Option<&HeadName>) -> Vec<u8> {
    let none = HeadName { record: 0, hash: [0; 32] };
    let has_before = [u8::from(before.is_some())];
    let before = before.unwrap_or(&none);
    [CONTEXT, &head.record.to_be_bytes(), &head.hash, &has_before, &before.record.to_be_bytes(), &before.hash]
        .concat()
}

/// Signs the heads that one node is shown.
#[derive(Debug)]
pub struct Countersigner {
    identity: Arc<Identity>,
    last: Option<HeadName>,
}

impl Countersigner {
    /// With the key of `identity`; nothing is signed yet.
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Countersigner {
        Countersigner { identity, last: None }
    }

    /// Signs `shown`.
    ///
    /// # Errors
    /// When it is not of a longer log than the last one (invariant 1): the scheduler shows another log.
    pub fn sign(&mut self, shown: &AuditHead) -> Result<Countersigned, String> {
        let head = shown.head;
        if let Some(last) = self.last
            && head.record <= last.record
        {
            return Err(format!(
                "it shows the audit log at record {} ({}), after record {} ({}): the log was cut or is another one",
                head.record,
                Hex(head.hash),
                last.record,
                Hex(last.hash)
            ));
        }
        let message = signed_bytes(&head, self.last.as_ref());
        let signature = self.identity.sign(&message).map_err(|e| e.to_string())?;
        tracing::info!(record = head.record, head = %Hex(head.hash), "counter-signed the audit log");
        let before = self.last.replace(head);
        Ok(Countersigned { head, before, signature })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testudo_transport::{Expected, JobCa, Role, SpiffeId};

    use super::*;

    fn head(record: u64, byte: u8) -> AuditHead {
        AuditHead { head: HeadName { record, hash: [byte; 32] } }
    }

    /// Invariants 1 and 2.
    #[test]
    fn heads_are_signed_in_one_growing_line() {
        let hour = Duration::from_secs(3600);
        let ca = JobCa::create("t", "j", hour).unwrap();
        let id = SpiffeId::new("t", "j", Role::Server, "0").unwrap();
        let identity = Arc::new(ca.issue(&id, hour).unwrap());
        let mut signer = Countersigner::new(Arc::clone(&identity));
        let first = signer.sign(&head(3, 1)).unwrap();
        assert_eq!(first.before, None);
        for (record, byte) in [(3, 1), (3, 2), (2, 1), (0, 0)] {
            assert!(signer.sign(&head(record, byte)).is_err(), "{record} after 3");
        }
        let second = signer.sign(&head(4, 9)).unwrap();
        assert_eq!(second.before, Some(first.head), "and what was refused left no trace");
        for signed in [&first, &second] {
            let holds = |before: Option<&HeadName>| {
                let (der, message) = (identity.certificate_der(), signed_bytes(&signed.head, before));
                let expected = Expected::Node(id.clone());
                ca.trust().verify_signature(der, &expected, &message, &signed.signature).is_ok()
            };
            assert!(holds(signed.before.as_ref()));
            assert!(!holds(Some(&HeadName { record: 1, hash: [1; 32] })));
        }
    }
}
