//! The UDP socket: large kernel buffers, and offload batches that the kernel accepts.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

/// Most bytes of a batch that the kernel segments: 64 KiB less the headers.
const MAX_BATCH: usize = 65_000;
/// Most bytes that the kernel hands over as one coalesced datagram.
const MAX_COALESCED: usize = 1 << 16;

/// A bound socket.
pub(super) struct Opened {
    pub(super) socket: Arc<dyn AsyncUdpSocket>,
    /// Bytes of datagrams that a burst may have without being dropped, by the kernel's own account.
    pub(super) burst: usize,
}

/// Binds `address` with kernel buffers of `buffer` bytes each way, for UDP payloads of up to `mtu` bytes.
pub(super) fn open(address: SocketAddr, buffer: usize, mtu: u16) -> io::Result<Opened> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(buffer)?;
    socket.set_send_buffer_size(buffer)?;
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive < buffer || send < buffer {
        tracing::warn!(
            asked = buffer,
            receive,
            send,
            "the kernel gives smaller UDP buffers than asked, so bursts may be dropped; raise net.core.rmem_max and \
             net.core.wmem_max"
        );
    }
    socket.bind(&address.into())?;
    let inner = TokioRuntime.wrap_udp_socket(UdpSocket::from(socket))?;
    let mtu = usize::from(mtu);
    let socket = Arc::new(CappedSocket {
        transmit: (MAX_BATCH / mtu).max(1).min(inner.max_transmit_segments()),
        receive: MAX_COALESCED.div_ceil(mtu).min(inner.max_receive_segments()),
        inner,
    });
    // Linux doubles what is asked, to pay for its own bookkeeping.
    Ok(Opened { socket, burst: receive / 2 })
}

/// A socket whose offload batches fit 64 KiB. quinn batches ten datagrams of whatever size; with jumbo
/// datagrams the kernel would refuse the batch, and quinn would take that for loss. And quinn allocates
/// room to receive as many datagrams as could be coalesced if all were small: bytes are the true bound.
#[derive(Debug)]
struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    transmit: usize,
    receive: usize,
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        // The kernel may have switched offload off since.
        self.transmit.min(self.inner.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.receive
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
