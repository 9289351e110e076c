//! What carries a connection: QUIC, or queues in memory. Everything above is the same for both.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quinn::VarInt;

use super::PathStats;
use crate::memory;

/// A connection's carrier.
#[derive(Debug)]
pub(crate) enum Link {
    Quic(Quic),
    Memory(memory::End),
}

/// A connection of QUIC's.
#[derive(Debug)]
pub(crate) struct Quic {
    connection: quinn::Connection,
    /// The window for what comes, once the peer is heard; None if it is open from the start.
    unheard: Option<VarInt>,
    heard: OnceLock<()>,
}

/// The sending half of a stream.
#[derive(Debug)]
pub(crate) enum Tx {
    Quic(quinn::SendStream),
    Memory(memory::Tx),
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(crate) enum Rx {
    Quic(quinn::RecvStream),
    Memory(memory::Rx),
}

/// How a connection ended.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    ByPeer { code: u32, reason: Arc<str> },
    ByUs,
    Lost(Arc<str>),
}

/// Why a stream does not go on.
#[derive(Debug, Clone)]
pub(crate) enum Broken {
    Connection(Ended),
    Abandoned(u64),
}

impl Link {
    /// A connection of QUIC's, whose receive window becomes `unheard` when the peer is first [heard](Link::heard).
    pub(crate) fn quic(connection: quinn::Connection, unheard: Option<VarInt>) -> Link {
        Link::Quic(Quic { connection, unheard, heard: OnceLock::new() })
    }

    /// The peer has said something that holds up: from now on it may have on its way what it is granted.
    pub(crate) fn heard(&self) {
        if let Link::Quic(Quic { connection, unheard: Some(window), heard }) = self {
            heard.get_or_init(|| connection.set_receive_window(*window));
        }
    }

    pub(crate) async fn open(&self) -> Result<(Tx, Rx), Ended> {
        match self {
            Link::Quic(Quic { connection, .. }) => {
                let (tx, rx) = connection.open_bi().await?;
                Ok((Tx::Quic(tx), Rx::Quic(rx)))
            }
            Link::Memory(end) => end.open().await.map(|(tx, rx)| (Tx::Memory(tx), Rx::Memory(rx))),
        }
    }

    pub(crate) async fn accept(&self) -> Result<(Tx, Rx), Ended> {
        match self {
            Link::Quic(Quic { connection, .. }) => {
                let (tx, rx) = connection.accept_bi().await?;
                Ok((Tx::Quic(tx), Rx::Quic(rx)))
            }
            Link::Memory(end) => end.accept().await.map(|(tx, rx)| (Tx::Memory(tx), Rx::Memory(rx))),
        }
    }

    /// The stream on which this node grants credit.
    pub(crate) async fn open_credit(&self) -> Result<Tx, Ended> {
        match self {
            Link::Quic(Quic { connection, .. }) => Ok(Tx::Quic(connection.open_uni().await?)),
            Link::Memory(end) => end.credit_tx().map(Tx::Memory),
        }
    }

    /// The stream on which the peer grants credit.
    pub(crate) async fn accept_credit(&self) -> Result<Rx, Ended> {
        match self {
            Link::Quic(Quic { connection, .. }) => Ok(Rx::Quic(connection.accept_uni().await?)),
            Link::Memory(end) => end.credit_rx().map(Rx::Memory),
        }
    }

    pub(crate) fn close(&self, code: u32, reason: &str) {
        match self {
            Link::Quic(Quic { connection, .. }) => {
                connection.close(VarInt::from_u32(code), reason.as_bytes())
            }
            Link::Memory(end) => end.close(code, reason),
        }
    }

    pub(crate) fn path(&self) -> PathStats {
        match self {
            Link::Quic(Quic { connection, .. }) => {
                let path = connection.stats().path;
                PathStats {
                    mtu: path.current_mtu,
                    round_trip: path.rtt,
                    packets_lost: path.lost_packets,
                    packets_sent: path.sent_packets,
                    congestion_window: path.cwnd,
                }
            }
            Link::Memory(_) => PathStats::default(),
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Ended> {
        match self {
            Link::Quic(Quic { connection, .. }) => connection.close_reason().map(Ended::from),
            Link::Memory(end) => end.ended(),
        }
    }

    pub(crate) async fn closed(&self) -> Ended {
        match self {
            Link::Quic(Quic { connection, .. }) => connection.closed().await.into(),
            Link::Memory(end) => end.closed().await,
        }
    }
}

impl Tx {
    /// The stream's id: QUIC's, or one that follows QUIC's numbering.
    pub(crate) fn id(&self) -> u64 {
        match self {
            Tx::Quic(stream) => VarInt::from(stream.id()).into_inner(),
            Tx::Memory(stream) => stream.id(),
        }
    }

    /// Sets the stream's place among others; has no effect on a stream that is finished, or in memory.
    pub(crate) fn set_priority(&self, priority: i32) {
        if let Tx::Quic(stream) = self {
            // A finished stream has nothing left to be ordered.
            stream.set_priority(priority).ok();
        }
    }

    /// Writes some of the chunks, at least one byte of them, without a copy; says how many were written
    /// whole. A chunk written in part keeps what is left. Dropping the future writes nothing.
    pub(crate) async fn write(&mut self, chunks: &mut [Bytes]) -> Result<usize, Broken> {
        match self {
            Tx::Quic(stream) => Ok(stream.write_chunks(chunks).await?.chunks),
            Tx::Memory(stream) => stream.write(chunks),
        }
    }

    /// Ends the stream after what was written.
    pub(crate) fn end(&mut self) {
        match self {
            // Only a stream that ended before can refuse.
            Tx::Quic(stream) => drop(stream.finish()),
            Tx::Memory(stream) => stream.end(),
        }
    }

    /// Waits until the peer's transport has everything.
    pub(crate) async fn delivered(&mut self) -> Result<(), Broken> {
        match self {
            Tx::Quic(stream) => match stream.stopped().await {
                Ok(None) => Ok(()),
                Ok(Some(code)) => Err(Broken::Abandoned(code.into_inner())),
                Err(quinn::StoppedError::ConnectionLost(why)) => Err(Broken::Connection(why.into())),
                Err(quinn::StoppedError::ZeroRttRejected) => Err(Broken::Abandoned(0)),
            },
            Tx::Memory(_) => Ok(()),
        }
    }
}

impl Rx {
    /// The stream's id, as for [`Tx::id`].
    pub(crate) fn id(&self) -> u64 {
        match self {
            Rx::Quic(stream) => VarInt::from(stream.id()).into_inner(),
            Rx::Memory(stream) => stream.id(),
        }
    }

    /// Reads what has arrived into the front of `chunks`, waiting for something; says how many chunks, or
    /// none at the stream's end. Dropping the future reads nothing.
    pub(crate) async fn read(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, Broken> {
        match self {
            Rx::Quic(stream) => Ok(stream.read_chunks(chunks).await?),
            Rx::Memory(stream) => stream.read(chunks).await,
        }
    }
}

impl From<quinn::ConnectionError> for Ended {
    fn from(why: quinn::ConnectionError) -> Self {
        match why {
            quinn::ConnectionError::ApplicationClosed(close) => Ended::ByPeer {
                code: u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX),
                reason: String::from_utf8_lossy(&close.reason).as_ref().into(),
            },
            quinn::ConnectionError::LocallyClosed => Ended::ByUs,
            other => Ended::Lost(other.to_string().into()),
        }
    }
}

impl From<quinn::WriteError> for Broken {
    fn from(why: quinn::WriteError) -> Self {
        match why {
            quinn::WriteError::Stopped(code) => Broken::Abandoned(code.into_inner()),
            quinn::WriteError::ConnectionLost(why) => Broken::Connection(why.into()),
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => {
                Broken::Connection(Ended::Lost("write on a finished stream".into()))
            }
        }
    }
}

impl From<quinn::ReadError> for Broken {
    fn from(why: quinn::ReadError) -> Self {
        match why {
            quinn::ReadError::Reset(code) => Broken::Abandoned(code.into_inner()),
            quinn::ReadError::ConnectionLost(why) => Broken::Connection(why.into()),
            quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => {
                Broken::Connection(Ended::Lost("read on a finished stream".into()))
            }
        }
    }
}
