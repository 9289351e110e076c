//! The receiving half of a stream.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};

use super::{Handle, Inner, Rx};
use crate::error::Error;
use crate::identity::SpiffeId;
use crate::message::Message;
use crate::payload::Payload;
use crate::session::{Gate, Opener, Stream};

/// Chunks taken from the network at once: enough that locks do not count, few enough to stay in the cache.
const READ_BATCH: usize = 32;

/// Receives messages from one stream, in order.
pub struct Receiver {
    handle: Arc<Handle>,
    // None only while dropping.
    intake: Option<Intake>,
}

impl Receiver {
    pub(super) fn new(handle: Arc<Handle>, rx: Rx) -> Self {
        let intake = Intake::new(Arc::clone(&handle.0), rx, Stream::messages());
        Receiver { handle, intake: Some(intake) }
    }

    /// The next message; `None` when the peer ended the stream in good order. The future can be dropped at
    /// any time without losing anything.
    ///
    /// # Errors
    /// [`Error::Peer`] when what came is not an authentic, allowed message, which closes the connection;
    /// otherwise what became of the connection.
    pub async fn recv(&mut self) -> Result<Option<Message>, Error> {
        match &mut self.intake {
            Some(intake) => intake.next().await,
            None => Ok(None),
        }
    }

    /// The node at the other end.
    pub fn peer(&self) -> &SpiffeId {
        &self.handle.0.peer
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver(from {})", self.peer().short())
    }
}

/// Invariant 4 of the connection: what still comes is checked, counted and discarded.
impl Drop for Receiver {
    fn drop(&mut self) {
        let Some(mut intake) = self.intake.take().filter(|intake| !intake.ended || intake.late.is_some())
        else {
            return;
        };
        let is_last = Arc::strong_count(&self.handle) == 1;
        if let (false, Ok(runtime)) = (is_last, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { while let Ok(Some(_)) = intake.next().await {} });
        }
    }
}

/// Turns a stream's bytes into messages.
pub(super) struct Intake {
    inner: Arc<Inner>,
    rx: Rx,
    opening: Opening,
    // Whether its messages are the actors' and so count in the statistics.
    counted: bool,
    chunks: VecDeque<Bytes>,
    batch: [Bytes; READ_BATCH],
    // When the first bytes of the message that is arriving were looked at.
    began: Option<Instant>,
    // A message that came faster than its kind needs, and when it is heard.
    late: Option<(Message, tokio::time::Instant)>,
    ended: bool,
}

enum Opening {
    // Bytes, with MACs.
    Sealed(Box<Opener>),
    // Whole messages that never left this process's memory.
    Direct(Gate),
}

impl Intake {
    pub(super) fn new(inner: Arc<Inner>, rx: Rx, stream: Stream) -> Self {
        let counted = matches!(stream, Stream::Messages(_));
        let gate = inner.gate(stream);
        let opening = match inner.opener(rx.id(), gate.clone()) {
            Some(opener) => Opening::Sealed(Box::new(opener)),
            None => Opening::Direct(gate),
        };
        let (chunks, batch) = (VecDeque::with_capacity(READ_BATCH), [const { Bytes::new() }; READ_BATCH]);
        Intake { inner, rx, opening, counted, chunks, batch, began: None, late: None, ended: false }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Message>, Error> {
        if self.late.is_none() {
            let Some(message) = self.arrived().await? else { return Ok(None) };
            if !self.counted {
                return Ok(Some(message));
            }
            self.inner.link.heard();
            let wait = self.inner.wait_for(message.kind);
            if wait.is_zero() {
                return Ok(Some(message));
            }
            if !self.inner.pace.late() {
                self.ended = true;
                return Err(self.inner.floods(message.kind));
            }
            self.late = Some((message, tokio::time::Instant::now() + wait));
        }
        if let Some((_, at)) = &self.late {
            tokio::time::sleep_until(*at).await;
        }
        // While it waited its peer may have been cut off: then it is not heard (invariant 5 of the connection).
        if let Some(why) = self.inner.cut_off() {
            self.late = None;
            self.ended = true;
            return Err(why);
        }
        Ok(self.late.take().map(|(message, _)| message))
    }

    async fn arrived(&mut self) -> Result<Option<Message>, Error> {
        if self.ended {
            return Ok(None);
        }
        if let Some(why) = self.inner.cut_off() {
            self.ended = true;
            return Err(why);
        }
        let result = match &mut self.opening {
            Opening::Sealed(_) => self.next_sealed().await,
            Opening::Direct(_) => self.next_direct().await,
        };
        self.ended = !matches!(result, Ok(Some(_)));
        result
    }

    async fn next_sealed(&mut self) -> Result<Option<Message>, Error> {
        let Opening::Sealed(opener) = &mut self.opening else { return Ok(None) };
        loop {
            while let Some(chunk) = self.chunks.front_mut() {
                self.began.get_or_insert_with(Instant::now);
                let used = opener.handle(chunk).map_err(|fault| self.inner.fail(fault))?;
                if used == chunk.len() {
                    self.chunks.pop_front();
                } else {
                    chunk.advance(used);
                }
                if let Some(message) = opener.poll() {
                    if self.counted {
                        self.inner.count_received(opener.opened_len());
                    }
                    return Ok(Some(Message { began: self.began.take(), ..message }));
                }
            }
            let read = self.rx.read(&mut self.batch).await.map_err(|why| self.inner.broken(why))?;
            let Some(count) = read else {
                opener.finish().map_err(|fault| self.inner.fail(fault))?;
                return Ok(None);
            };
            self.chunks.extend(self.batch.iter_mut().take(count).map(std::mem::take));
        }
    }

    async fn next_direct(&mut self) -> Result<Option<Message>, Error> {
        let (Opening::Direct(gate), Rx::Memory(stream)) = (&self.opening, &mut self.rx) else {
            return Ok(None);
        };
        let received = stream.receive_frame().await.map_err(|why| self.inner.broken(why))?;
        let Some(frame) = received else { return Ok(None) };
        let charge = gate.admit(&frame.prelude).map_err(|fault| self.inner.fail(fault))?;
        let kind = frame.prelude.kind;
        gate.check_envelope(kind, &frame.envelope).map_err(|fault| self.inner.fail(fault))?;
        if self.counted {
            self.inner.count_received(frame.prelude.frame_len());
        }
        let payload = Payload::copy_from(&frame.payload).charged(charge);
        let (envelope, body, payload_hash) = (frame.envelope, frame.body, frame.payload_hash);
        Ok(Some(Message { kind, envelope, body, payload, payload_hash, began: None }))
    }
}
