//! The UDP socket: large kernel buffers, offload batches that the kernel accepts, and the sieve before anything else sees a
//! datagram.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::ops::DerefMut;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

use super::sieve::{LOWER_AFTER, Sieve};

/// Most bytes of a batch that the kernel segments: 64 KiB less the headers.
const MAX_BATCH: usize = 65_000;
/// Most bytes that the kernel hands over as one coalesced datagram.
const MAX_COALESCED: usize = 1 << 16;

/// A bound socket.
pub(super) struct Opened {
    pub(super) socket: Arc<CappedSocket>,
    /// Bytes of datagrams that a burst may have without being dropped, by the kernel's own account.
    pub(super) burst: usize,
}

/// Binds `address` with kernel buffers of `buffer` bytes each way, for UDP payloads of up to `mtu` bytes, behind `sieve`,
/// whose time starts now.
pub(super) fn open(address: SocketAddr, buffer: usize, mtu: u16, sieve: Sieve) -> io::Result<Opened> {
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
    let filtered = socket.try_clone()?;
    let inner = TokioRuntime.wrap_udp_socket(UdpSocket::from(socket))?;
    let mtu = usize::from(mtu);
    let socket = Arc::new(CappedSocket {
        transmit: (MAX_BATCH / mtu).max(1).min(inner.max_transmit_segments()),
        receive: MAX_COALESCED.div_ceil(mtu).min(inner.max_receive_segments()),
        inner,
        filtered,
        sieve: Arc::new(Mutex::new(sieve)),
        since: Instant::now(),
    });
    // Linux doubles what is asked, to pay for its own bookkeeping.
    Ok(Opened { socket, burst: receive / 2 })
}

/// A socket whose offload batches fit 64 KiB. quinn batches ten datagrams of whatever size; with jumbo
/// datagrams the kernel would refuse the batch, and quinn would take that for loss. And quinn allocates
/// room to receive as many datagrams as could be coalesced if all were small: bytes are the true bound.
#[derive(Debug)]
pub(super) struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    transmit: usize,
    receive: usize,
    /// The same socket, to put filters on.
    filtered: Socket,
    sieve: Arc<Mutex<Sieve>>,
    since: Instant,
}

impl CappedSocket {
    pub(super) fn sieve(&self) -> Arc<Mutex<Sieve>> {
        Arc::clone(&self.sieve)
    }

    /// Takes out what does not pass. What is left of a batch that the kernel put together stays together; of one from which
    /// nothing is left, no byte is.
    fn sift(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let now = self.since.elapsed();
        let mut sieve = self.sieve.lock().unwrap_or_else(PoisonError::into_inner);
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            meta.len = sift_one(&mut sieve, now, buffer.deref_mut(), meta);
        }
        self.adjust(&mut sieve, now);
    }

    fn adjust(&self, sieve: &mut Sieve, now: Duration) {
        if sieve.adjusted(now) {
            filter(&self.filtered, sieve);
        }
    }
}

/// Opens the kernel's filter again when a flood is over: it may keep out whatever else would be the occasion.
pub(super) async fn reopen(socket: Weak<CappedSocket>) {
    loop {
        tokio::time::sleep(LOWER_AFTER).await;
        let Some(socket) = socket.upgrade() else { return };
        let mut sieve = socket.sieve.lock().unwrap_or_else(PoisonError::into_inner);
        socket.adjust(&mut sieve, socket.since.elapsed());
    }
}

fn sift_one(sieve: &mut Sieve, now: Duration, buffer: &mut [u8], meta: &RecvMeta) -> usize {
    let (end, stride) = (meta.len.min(buffer.len()), meta.stride.max(1));
    let (mut from, mut kept) = (0, 0);
    while from < end {
        let to = from.saturating_add(stride).min(end);
        let passes = buffer.get(from..to).is_some_and(|datagram| sieve.passes(now, meta.addr.ip(), datagram));
        if passes {
            if kept < from {
                buffer.copy_within(from..to, kept);
            }
            kept += to - from;
        }
        from = to;
    }
    kept
}

/// Has the kernel drop what the sieve would. Where it cannot, the sieve drops it all the same, only dearer.
#[cfg(target_os = "linux")]
fn filter(socket: &Socket, sieve: &Sieve) {
    use socket2::SockFilter;
    let notch = sieve.stats().notch;
    let done = match sieve.program() {
        Some(program) => {
            let filters =
                program.iter().map(|it| SockFilter::new(it.code, it.if_true, it.if_false, it.operand));
            socket.attach_filter(&filters.collect::<Vec<_>>())
        }
        None => socket.detach_filter(),
    };
    match done {
        Ok(()) => tracing::debug!(notch, "the kernel's packet filter was changed"),
        Err(why) => tracing::debug!(notch, %why, "the kernel takes no packet filter"),
    }
}

#[cfg(not(target_os = "linux"))]
fn filter(_: &Socket, _: &Sieve) {}

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
        let received = self.inner.poll_recv(cx, buffers, meta);
        if let Poll::Ready(Ok(count)) = &received {
            self.sift(buffers, meta.get_mut(..*count).unwrap_or_default());
        }
        received
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
