//! Streams of a link in memory, and the link's own operations. A stream's queue has no bound of its own: all
//! that is ever in it was charged to credit first, which is the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{Closing, End, Frame, PoisonError, Side};
use crate::connection::{Broken, Ended};

/// What a queue carries: bytes on a secured link, messages on an unsecured one.
#[derive(Debug)]
enum Item {
    Bytes(Bytes),
    Frame(Box<Frame>),
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Tx {
    id: u64,
    side: Side,
    queue: Option<mpsc::UnboundedSender<Item>>,
    ended: Arc<AtomicBool>,
    closing: Arc<watch::Sender<Option<Closing>>>,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Rx {
    id: u64,
    side: Side,
    queue: mpsc::UnboundedReceiver<Item>,
    // Whether the sender ended the stream in good order, rather than with the connection.
    ended: Arc<AtomicBool>,
    closing: Arc<watch::Sender<Option<Closing>>>,
}

/// A direction of a stream, sent into by `side`.
pub(super) fn channel(id: u64, closing: &Arc<watch::Sender<Option<Closing>>>, side: Side) -> (Tx, Rx) {
    let (sender, queue) = mpsc::unbounded_channel();
    let ended = Arc::new(AtomicBool::new(false));
    let tx = Tx { id, side, queue: Some(sender), ended: Arc::clone(&ended), closing: Arc::clone(closing) };
    (tx, Rx { id, side: side.other(), queue, ended, closing: Arc::clone(closing) })
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Initiator => Side::Acceptor,
            Side::Acceptor => Side::Initiator,
        }
    }
}

impl End {
    /// Nobody can close the link until what this gives is dropped.
    #[cfg(test)]
    pub(crate) fn held_open(&self) -> impl Sized + '_ {
        self.closing.borrow()
    }

    pub(crate) async fn open(&self) -> Result<(Tx, Rx), Ended> {
        let mut opened = tokio::select! {
            opened = self.opened.lock() => opened,
            ended = self.closed() => return Err(ended),
        };
        let place = tokio::select! {
            biased;
            ended = self.closed() => return Err(ended),
            place = self.to_peer.reserve() => place.map_err(|_| gone())?,
        };
        // QUIC's numbering of bidirectional streams (RFC 9000, section 2.1).
        let id = *opened * 4 + u64::from(self.side == Side::Acceptor);
        *opened += 1;
        let (tx, peer_rx) = channel(id, &self.closing, self.side);
        let (peer_tx, rx) = channel(id, &self.closing, self.side.other());
        place.send((peer_tx, peer_rx));
        Ok((tx, rx))
    }

    pub(crate) async fn accept(&self) -> Result<(Tx, Rx), Ended> {
        let mut queue = tokio::select! {
            queue = self.from_peer.lock() => queue,
            ended = self.closed() => return Err(ended),
        };
        tokio::select! {
            biased;
            ended = self.closed() => Err(ended),
            stream = queue.recv() => stream.ok_or_else(gone),
        }
    }

    pub(crate) fn credit_tx(&self) -> Result<Tx, Ended> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner).0.take().ok_or_else(gone)
    }

    pub(crate) fn credit_rx(&self) -> Result<Rx, Ended> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner).1.take().ok_or_else(gone)
    }

    pub(crate) fn close(&self, code: u32, reason: &str) {
        self.closing.send_if_modified(|closing| {
            let is_first = closing.is_none();
            if is_first {
                *closing = Some(Closing { by: self.side, code, reason: reason.into() });
            }
            is_first
        });
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.closing.borrow().as_ref().map(|closing| closing.seen_by(self.side))
    }

    pub(crate) async fn closed(&self) -> Ended {
        closed(&self.closing, self.side).await
    }
}

impl Tx {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn end(&mut self) {
        if self.closing.borrow().is_none() {
            self.ended.store(true, Ordering::Release);
        }
        self.queue = None;
    }

    /// As [`crate::connection::Tx::write`], but never waits.
    pub(crate) fn write(&mut self, chunks: &mut [Bytes]) -> Result<usize, Broken> {
        for chunk in chunks.iter_mut().filter(|chunk| !chunk.is_empty()) {
            self.queue(Item::Bytes(std::mem::take(chunk)))?;
        }
        Ok(chunks.len())
    }

    /// Sends a whole message.
    pub(crate) fn send_frame(&mut self, frame: Frame) -> Result<(), Broken> {
        self.queue(Item::Frame(Box::new(frame)))
    }

    fn queue(&self, item: Item) -> Result<(), Broken> {
        if let Some(closing) = &*self.closing.borrow() {
            return Err(Broken::Connection(closing.seen_by(self.side)));
        }
        let queue = self.queue.as_ref().ok_or_else(|| Broken::Connection(gone()))?;
        queue.send(item).map_err(|_| Broken::Abandoned(0))
    }
}

impl Rx {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// As [`crate::connection::Rx::read`].
    pub(crate) async fn read(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, Broken> {
        match (self.receive().await?, chunks.first_mut()) {
            (Some(Item::Bytes(bytes)), Some(slot)) => {
                *slot = bytes;
                Ok(Some(1))
            }
            (Some(_), _) => Err(Broken::Abandoned(0)),
            (None, _) => Ok(None),
        }
    }

    /// The next whole message; `None` at the stream's end.
    pub(crate) async fn receive_frame(&mut self) -> Result<Option<Frame>, Broken> {
        match self.receive().await? {
            Some(Item::Frame(frame)) => Ok(Some(*frame)),
            Some(Item::Bytes(_)) => Err(Broken::Abandoned(0)),
            None => Ok(None),
        }
    }

    // What is queued is read even after the connection closed, as QUIC does with what has arrived.
    async fn receive(&mut self) -> Result<Option<Item>, Broken> {
        let received = tokio::select! {
            biased;
            item = self.queue.recv() => item,
            ended = closed(&self.closing, self.side) => return Err(Broken::Connection(ended)),
        };
        if received.is_some() || self.ended.load(Ordering::Acquire) {
            return Ok(received);
        }
        let closing = self.closing.borrow().is_some();
        Err(if closing {
            Broken::Connection(closed(&self.closing, self.side).await)
        } else {
            Broken::Abandoned(0)
        })
    }
}

async fn closed(closing: &watch::Sender<Option<Closing>>, side: Side) -> Ended {
    let mut watched = closing.subscribe();
    let found = watched.wait_for(Option::is_some).await;
    match found.ok().as_deref() {
        Some(Some(closing)) => closing.seen_by(side),
        _ => gone(),
    }
}

impl Closing {
    fn seen_by(&self, side: Side) -> Ended {
        if self.by == side {
            return Ended::ByUs;
        }
        Ended::ByPeer { code: self.code, reason: Arc::clone(&self.reason) }
    }
}

fn gone() -> Ended {
    Ended::Lost("the other end is gone".into())
}
