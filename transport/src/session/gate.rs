//! What a message must pass besides its MAC, on every kind of link: policy, class, credit, and an envelope
//! that says who is really speaking.

use std::sync::{Arc, OnceLock};

use super::credit::{Charge, Inbound};
use super::prelude::Prelude;
use super::{CREDIT_KIND, CREDIT_MAX_HEADER, RENEWAL_KIND, RENEWAL_MAX_HEADER};
use crate::codec::decode_prefix;
use crate::error::Fault;
use crate::identity::SpiffeId;
use crate::message::Envelope;
use crate::policy::{Class, Policy};

/// What a stream is for.
#[derive(Debug, Clone)]
pub enum Stream {
    /// The transport's own, which carries credit and renewed certificates.
    Credit,
    /// Actors' messages, all of one class: the first one's.
    Messages(Arc<OnceLock<Class>>),
}

impl Stream {
    /// A stream of messages whose class is not known yet.
    pub fn messages() -> Stream {
        Stream::Messages(Arc::default())
    }
}

/// The checks on one incoming direction of one stream.
#[derive(Debug, Clone)]
pub struct Gate {
    /// Who may say what.
    pub policy: Arc<Policy>,
    /// The authenticated peer.
    pub from: SpiffeId,
    /// This node.
    pub to: SpiffeId,
    /// What the peer may still send.
    pub credit: Arc<Inbound>,
    /// What the stream is for.
    pub stream: Stream,
}

impl Gate {
    /// Checks what a message announces, before anything is allocated for it, and charges it to the peer.
    ///
    /// # Errors
    /// The peer's [`Fault`].
    pub fn admit(&self, prelude: &Prelude) -> Result<Option<Charge>, Fault> {
        let Prelude { kind, header_len, payload_len } = *prelude;
        let Stream::Messages(bound) = &self.stream else {
            let most = match kind {
                CREDIT_KIND => CREDIT_MAX_HEADER,
                RENEWAL_KIND => RENEWAL_MAX_HEADER,
                _ => return Err(Fault::CreditStream("a message that is not credit")),
            };
            let good = header_len <= most && payload_len == 0;
            return if good { Ok(None) } else { Err(Fault::CreditStream("a message that is too long")) };
        };
        let rule = self.policy.check(kind, &self.from, &self.to, header_len, payload_len)?;
        let expected = *bound.get_or_init(|| rule.class);
        if expected != rule.class {
            return Err(Fault::MixedClasses { expected, found: rule.class });
        }
        Ok(Some(self.credit.charge(rule.class, prelude.frame_len())?))
    }

    /// Splits an authenticated header into its envelope and the kind's own fields, and checks that the
    /// envelope's actors are on this connection and may exchange this kind.
    ///
    /// # Errors
    /// The peer's [`Fault`].
    pub fn read_header(&self, kind: u8, header: &[u8]) -> Result<(Envelope, Vec<u8>), Fault> {
        let (envelope, body) = decode_prefix::<Envelope>(header)?;
        self.check_envelope(kind, &envelope)?;
        Ok((envelope, body.to_vec()))
    }

    /// The part of [`Gate::read_header`] that does not decode.
    ///
    /// # Errors
    /// The peer's [`Fault`].
    pub fn check_envelope(&self, kind: u8, envelope: &Envelope) -> Result<(), Fault> {
        if envelope.from.id != self.from {
            return Err(Fault::From { claimed: envelope.from.to_string() });
        }
        if envelope.to.id != self.to {
            return Err(Fault::To { claimed: envelope.to.to_string() });
        }
        match self.stream {
            Stream::Credit => Ok(()),
            Stream::Messages(_) => Ok(self.policy.check_actors(kind, &envelope.from, &envelope.to)?),
        }
    }
}
