//! Answers: what was asked for, or why it is not to be had.

use testudo_transport::message::Traceparent;
use testudo_transport::{Outgoing, WireError};

use super::grants::REASON;
use super::message::{Message, TO_ANSWER};
use crate::audit::printable;
use crate::outbox::Outbox;

/// Characters of a reason: of four bytes at most, and a little for what is around them.
const REASON_CHARACTERS: usize = (REASON - 8) / 4;

/// What whoever asked is told when nothing else was.
const NO_ANSWER: &str = "the actor failed or stopped before it answered";

/// The bytes of an answer; of a reason, if the answer is larger than it may be.
pub(super) fn encode<M: Message>(answer: Result<M::Answer, String>) -> Vec<u8> {
    let bytes = match answer {
        Ok(answer) => testudo_transport::encode(&Ok::<M::Answer, String>(answer)),
        Err(reason) => return refusal(&reason),
    };
    // One byte says that it is an answer.
    if bytes.len() > M::MOST_ANSWER as usize + 1 {
        tracing::error!(
            message = M::NAME,
            bytes = bytes.len(),
            most = M::MOST_ANSWER,
            "an answer is too large"
        );
        return refusal(&format!("the answer is larger than the {} bytes that it may have", M::MOST_ANSWER));
    }
    bytes
}

/// The last message of a stream that is whole: neither an item, which begins with 0, nor a reason, which begins with 1.
pub(super) const WHOLE: &[u8] = &[2];

/// The bytes of a reason, which are the same whatever was asked for.
pub(super) fn refusal(reason: &str) -> Vec<u8> {
    testudo_transport::encode(&Err::<(), String>(printable(reason, REASON_CHARACTERS)))
}

/// Reads an answer.
pub(super) fn decode<M: Message>(bytes: &[u8]) -> Result<Result<M::Answer, String>, WireError> {
    testudo_transport::decode_canonical(bytes)
}

/// Where an answer goes. One that is dropped tells whoever asked that no answer comes.
#[derive(Debug)]
pub(super) struct ReplyTo {
    outbox: Outbox,
    kind: u8,
    /// 0 where nobody asked.
    request: u64,
    trace: Option<Traceparent>,
}

impl ReplyTo {
    pub(super) fn new(outbox: Outbox, kind: u8, request: u64, trace: Option<Traceparent>) -> ReplyTo {
        ReplyTo { outbox, kind, request, trace }
    }

    pub(super) fn answer<M: Message>(mut self, answer: Result<M::Answer, String>) {
        if self.request != 0 {
            self.post(encode::<M>(answer));
        }
    }

    fn post(&mut self, body: Vec<u8>) {
        let message = Outgoing::new(self.kind + TO_ANSWER, self.request, body).with_traceparent(self.trace);
        self.outbox.post(message);
        self.request = 0;
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if self.request != 0 {
            self.post(refusal(NO_ANSWER));
        }
    }
}
