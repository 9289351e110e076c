//! The sending half of a stream.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::{Handle, Inner, Tx};
use crate::codec::encode;
use crate::error::{Error, Misuse};
use crate::identity::{Address, SpiffeId};
use crate::memory::Frame;
use crate::message::{Envelope, Outgoing};
use crate::policy::Class;
use crate::session::{EMPTY_PAYLOAD_HASH, MAC_LEN, PRELUDE_LEN, Prelude, Sealer, Take};

/// Payload bytes hashed and then handed to the network at once, while they are in the cache.
const WRITE_STEP: usize = 64 * 1024;
/// Added to every control stream's priority, so that control goes before data.
const CONTROL_PRIORITY: i32 = 1 << 20;
/// Priorities are cut to this, so that none of data reaches one of control.
const PRIORITY_LIMIT: i32 = (1 << 19) - 1;

/// Sends messages on one stream, in order.
pub struct Sender {
    handle: Arc<Handle>,
    // None only after `finish` or while dropping.
    outlet: Option<Outlet>,
}

impl Sender {
    pub(super) fn new(handle: Arc<Handle>, tx: Tx, class: Option<Class>, priority: i32) -> Self {
        let sealer = handle.0.sealer(tx.id());
        let bound = OnceLock::new();
        if let Some(class) = class {
            tx.set_priority(absolute_priority(class, priority));
            // The cell is new.
            bound.set(class).ok();
        }
        let flight = Flight::default();
        let inner = Arc::clone(&handle.0);
        Sender { handle, outlet: Some(Outlet { inner, tx, sealer, bound, priority, flight }) }
    }

    /// Sends a message, waiting for credit and for room. Returns when the message is handed to the network,
    /// not when it is delivered. A peer that grants no credit or takes nothing for the stall timeout is cut
    /// off. If the future is dropped while it waits for credit, nothing is sent; later, the message is
    /// completed in the background or by the next call.
    ///
    /// # Errors
    /// [`Error::Misuse`] when this node may not send this; anything else means that the connection is over.
    pub async fn send(&mut self, message: Outgoing) -> Result<(), Error> {
        let inner = &self.handle.0;
        let outlet = self.outlet.as_mut().ok_or_else(|| inner.misuse(Misuse::Finished))?;
        outlet.send(message).await
    }

    /// Ends the stream and waits until the peer's transport has all of it.
    ///
    /// # Errors
    /// [`Error`] when the connection ends first, or the peer takes nothing for the stall timeout.
    pub async fn finish(&mut self) -> Result<(), Error> {
        let Some(outlet) = self.outlet.as_mut() else { return Ok(()) };
        outlet.flush().await?;
        outlet.tx.end();
        let inner = &self.handle.0;
        let delivered = timeout(inner.stall_timeout, outlet.tx.delivered()).await;
        let delivered = delivered.map_err(|_| inner.stalled("did not acknowledge the end of a stream"))?;
        self.outlet = None;
        delivered.map_err(|why| inner.broken(why))
    }

    /// Ends the stream without waiting for delivery.
    ///
    /// # Errors
    /// [`Error`] when the connection ended before everything was written.
    pub async fn end(&mut self) -> Result<(), Error> {
        let Some(outlet) = self.outlet.as_mut() else { return Ok(()) };
        outlet.flush().await?;
        outlet.tx.end();
        self.outlet = None;
        Ok(())
    }

    /// Changes the stream's priority within its class.
    pub fn set_priority(&mut self, priority: i32) {
        if let Some(outlet) = &mut self.outlet {
            outlet.priority = priority;
            if let Some(class) = outlet.bound.get() {
                outlet.tx.set_priority(absolute_priority(*class, priority));
            }
        }
    }

    /// The node at the other end.
    pub fn peer(&self) -> &SpiffeId {
        &self.handle.0.peer
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender(to {})", self.peer().short())
    }
}

/// Invariant 3 of the connection: what is in flight is completed, then the stream ends.
impl Drop for Sender {
    fn drop(&mut self) {
        let Some(mut outlet) = self.outlet.take() else { return };
        if outlet.flight.is_empty() {
            outlet.tx.end();
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if outlet.flush().await.is_ok() {
                    outlet.tx.end();
                }
            });
        }
    }
}

struct Outlet {
    inner: Arc<Inner>,
    tx: Tx,
    sealer: Option<Sealer>,
    bound: OnceLock<Class>,
    priority: i32,
    flight: Flight,
}

impl Outlet {
    async fn send(&mut self, message: Outgoing) -> Result<(), Error> {
        let inner = &self.inner;
        if let Some(error) = inner.failure.get() {
            return Err(error.clone());
        }
        let from = address(&inner.local, message.from_part).map_err(|what| inner.misuse(what))?;
        let to = address(&inner.peer, message.to_part).map_err(|what| inner.misuse(what))?;
        let (kind, request, traceparent) = (message.kind, message.request, message.traceparent);
        let envelope = Envelope { from, to, request, traceparent };

        let header = encode(&envelope);
        let header_len = u32::try_from(header.len() + message.body.len()).unwrap_or(u32::MAX);
        let prelude = Prelude { kind, header_len, payload_len: message.payload.len() as u64 };
        let class = self.check(&prelude, &envelope)?;

        self.flush().await?;
        self.take_credit(class, prelude.frame_len()).await?;

        self.inner.count_sent(prelude.frame_len());
        let Outgoing { body, payload, payload_hash, .. } = message;
        match &mut self.sealer {
            Some(sealer) => {
                let known = if payload.is_empty() { Some(EMPTY_PAYLOAD_HASH) } else { payload_hash };
                let mut head = BytesMut::with_capacity(PRELUDE_LEN + header.len() + body.len() + MAC_LEN);
                head.extend_from_slice(&prelude.encode());
                head.extend_from_slice(&header);
                head.extend_from_slice(&body);
                self.flight.start(head, payload, known, sealer);
            }
            None => {
                let hash = payload_hash.unwrap_or_else(|| blake3::hash(&payload).into());
                let frame = Frame { prelude, envelope, body, payload, payload_hash: hash };
                if let Tx::Memory(stream) = &mut self.tx {
                    stream.send_frame(frame).map_err(|why| self.inner.broken(why))?;
                }
            }
        }
        self.flush().await
    }

    fn check(&self, prelude: &Prelude, envelope: &Envelope) -> Result<Class, Error> {
        let inner = &self.inner;
        let Prelude { kind, header_len, payload_len } = *prelude;
        let rule = inner.policy.check(kind, &inner.local, &inner.peer, header_len, payload_len);
        let class = rule.map_err(|violation| inner.misuse(violation))?.class;
        let actors = inner.policy.check_actors(kind, &envelope.from, &envelope.to);
        actors.map_err(|violation| inner.misuse(violation))?;
        let mut is_first = false;
        let expected = *self.bound.get_or_init(|| {
            is_first = true;
            class
        });
        if is_first {
            self.tx.set_priority(absolute_priority(class, self.priority));
        }
        if expected != class {
            return Err(inner.misuse(Misuse::MixedClasses { expected, found: class }));
        }
        Ok(class)
    }

    async fn take_credit(&self, class: Class, bytes: u64) -> Result<(), Error> {
        let inner = &self.inner;
        let too_large = |limit| inner.misuse(Misuse::TooLarge { bytes, limit });
        match inner.outbound.take_now(class, bytes) {
            Take::Taken => return Ok(()),
            Take::TooLarge { limit } => return Err(too_large(limit)),
            Take::Wait => {}
        }
        let granted = async {
            let turn = inner.outbound.turn(class).await;
            timeout(inner.stall_timeout, turn.take(bytes)).await
        };
        tokio::select! {
            biased;
            why = inner.link.closed() => Err(inner.lost(why)),
            granted = granted => match granted {
                Ok(taken) => taken.map_err(too_large),
                Err(_) => Err(inner.stalled("granted too little credit")),
            },
        }
    }

    // Writes what is in flight; can be dropped and called again at any await.
    async fn flush(&mut self) -> Result<(), Error> {
        let inner = &self.inner;
        while let Some(sealer) = &mut self.sealer {
            let chunks = self.flight.next(sealer);
            if chunks.is_empty() {
                break;
            }
            let written = timeout(inner.stall_timeout, self.tx.write(chunks)).await;
            let written = written.map_err(|_| inner.stalled("took nothing in"))?;
            let written = written.map_err(|why| inner.broken(why))?;
            self.flight.chunks.drain(..written);
        }
        Ok(())
    }
}

/// What of the current message is not written yet.
#[derive(Default)]
struct Flight {
    // Ready to write.
    chunks: Vec<Bytes>,
    // Not hashed and not written.
    payload: Bytes,
    hasher: Option<Box<blake3::Hasher>>,
    // What the MAC covers, until it is made: prelude and header.
    head: Option<Bytes>,
}

impl Flight {
    fn start(&mut self, head: BytesMut, payload: Bytes, hash: Option<[u8; 32]>, sealer: &mut Sealer) {
        let head = head.freeze();
        self.payload = payload;
        self.chunks.push(head.clone());
        match hash {
            Some(hash) => {
                // Everything is known: written in whole steps, so that acknowledged memory is given back.
                while !self.payload.is_empty() {
                    let step = self.payload.len().min(WRITE_STEP);
                    self.chunks.push(self.payload.split_to(step));
                }
                self.chunks.push(mac(sealer, &head, &hash));
            }
            None => {
                self.head = Some(head);
                self.hasher = Some(Box::default());
            }
        }
    }

    // The chunks to write now; hashes the next step of payload just before it is written. Empty when done.
    fn next(&mut self, sealer: &mut Sealer) -> &mut [Bytes] {
        if self.chunks.len() <= 1
            && let (Some(hasher), Some(head)) = (&mut self.hasher, &self.head)
        {
            let step = self.payload.split_to(self.payload.len().min(WRITE_STEP));
            hasher.update(&step);
            self.chunks.push(step);
            if self.payload.is_empty() {
                let mac = mac(sealer, head, hasher.finalize().as_bytes());
                self.chunks.push(mac);
                (self.hasher, self.head) = (None, None);
            }
        }
        &mut self.chunks
    }

    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.head.is_none()
    }
}

fn mac(sealer: &mut Sealer, head: &Bytes, payload_hash: &[u8; 32]) -> Bytes {
    let (prelude, header) = head.split_first_chunk::<PRELUDE_LEN>().unwrap_or((&[0; PRELUDE_LEN], &[]));
    Bytes::copy_from_slice(&sealer.seal(prelude, header, payload_hash))
}

fn address(id: &SpiffeId, part: Option<crate::identity::Role>) -> Result<Address, Misuse> {
    Address::new(id.clone(), part).map_err(|_| Misuse::Part(id.short().to_owned()))
}

fn absolute_priority(class: Class, priority: i32) -> i32 {
    let priority = priority.clamp(-PRIORITY_LIMIT, PRIORITY_LIMIT);
    match class {
        Class::Control => CONTROL_PRIORITY + priority,
        Class::Data => priority,
    }
}
