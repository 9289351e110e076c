//! Heads of the audit log, counter-signed: every server and worker vouches for what the scheduler showed it.
//!
//! Who keeps a log can cut it and sign a shorter one. A node therefore signs, now and then, the head that it is shown, together
//! with the one that it signed before. The signatures go into the log; a log from which some of them were cut has
//! nodes against it that remember more, in their own logs and in what they sign next.
//!
//! 1. A node signs no head of a shorter log than one that it signed before, nor two heads of one length.
//! 2. Each signature names the one before it, so those of one node make a chain of their own through the log.

use crate::audit::Hex;
use crate::message::{AuditHead, Countersigned, HeadName, NewCertificate};
use crate::signer::Signer;

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
#[derive(Debug, Default)]
pub(crate) struct Countersigner {
    last: Option<HeadName>,
}

impl Countersigner {
    /// Signs `shown` with the key of `signer`, whose new certificate, if there is one, is to be told first.
    ///
    /// # Errors
    /// When it is not of a longer log than the last one (invariant 1): the scheduler shows another log.
    pub(crate) fn sign(
        &mut self,
        signer: &mut Signer,
        shown: &AuditHead,
    ) -> Result<(Option<NewCertificate>, Countersigned), String> {
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
        let (renewed, signature) = signer.sign(&message).map_err(|e| e.to_string())?;
        tracing::info!(record = head.record, head = %Hex(head.hash), "counter-signed the audit log");
        let before = self.last.replace(head);
        Ok((renewed, Countersigned { head, before, signature }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use testudo_transport::{Expected, JobCa, Role, SpiffeId, Trust};

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
        let (mut signer, mut key) = (Countersigner::default(), Signer::new(Arc::clone(&identity)));
        let (told, first) = signer.sign(&mut key, &head(3, 1)).unwrap();
        assert_eq!(first.before, None);
        assert_eq!(told.unwrap().certificate, identity.certificate_der());
        for (record, byte) in [(3, 1), (3, 2), (2, 1), (0, 0)] {
            assert!(signer.sign(&mut key, &head(record, byte)).is_err(), "{record} after 3");
        }
        let (told, second) = signer.sign(&mut key, &head(4, 9)).unwrap();
        assert_eq!(told, None, "the scheduler knows it");
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
        // A node that has renewed its certificate signs with the new one, and says so once.
        let renewed = ca.issue(&id, 2 * hour).unwrap();
        assert_eq!(identity.succeed(&renewed), Ok(true));
        let (told, third) = signer.sign(&mut key, &head(5, 1)).unwrap();
        assert_eq!(told.unwrap().certificate, renewed.certificate_der());
        let message = signed_bytes(&third.head, third.before.as_ref());
        assert_eq!(Trust::verify_with(renewed.certificate_der(), &message, &third.signature), Ok(()));
        assert_eq!(signer.sign(&mut key, &head(6, 1)).unwrap().0, None);
    }
}
