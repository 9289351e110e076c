//! Floods by handshakes, and by peers that were let in.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, Runtime, TokioRuntime, UdpPoller};
use testudo_actors::message::{Body, Heartbeat, Load, Push};
use testudo_transport::session::Prelude;
use testudo_transport::{Class, Endpoint, Outgoing, Role, TransportConfig};

use super::{Attack, Attacker, Done, Target};
use crate::raw::{RawEndpoint, client_config};

/// Attempts under way at once: enough that the attacker's core is never idle.
const AT_ONCE: usize = 64;
/// How long an attempt that hears nothing is kept: a little longer than a node waits for a handshake.
const KEPT: Duration = Duration::from_millis(3500);

pub(super) async fn flood(attack: Attack, attacker: &Attacker, targets: &[Target], done: &Arc<Done>) {
    let mut tasks = tokio::task::JoinSet::new();
    let at_once = if attack.is_authenticated() { 2 * targets.len() } else { AT_ONCE };
    for nth in 0..at_once {
        let (attacker, target) = (attacker.clone(), targets[nth % targets.len()].clone());
        let done = Arc::clone(done);
        tasks.spawn(async move {
            while done.goes_on() {
                one(attack, &attacker, &target, &done).await;
                tokio::task::yield_now().await;
            }
        });
    }
    done.stopped().await;
    tasks.shutdown().await;
}

async fn one(attack: Attack, attacker: &Attacker, target: &Target, done: &Done) {
    match attack {
        Attack::Deaf => unheard(attacker, target, done, 0).await,
        Attack::Stalled => unheard(attacker, target, done, 1).await,
        Attack::NoCertificate | Attack::Foreign => {
            let identity = (attack == Attack::Foreign).then_some(&*attacker.foreign);
            let endpoint = quinn::Endpoint::client(SocketAddr::new(attacker.from, 0)).unwrap();
            let connecting = endpoint.connect_with(client_config(identity), target.address, "any").unwrap();
            if let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_secs(2), connecting).await {
                connection.closed().await;
            }
            done.add(1);
        }
        Attack::Control => {
            say(attacker, target, done).await;
        }
        _ => member(attack, attacker, target, done).await,
    }
}

/// Begins a connection through a socket that hears so many datagrams and no more.
async fn unheard(attacker: &Attacker, target: &Target, done: &Done, hears: usize) {
    let socket = UdpSocket::bind(SocketAddr::new(attacker.from, 0)).unwrap();
    let inner = TokioRuntime.wrap_udp_socket(socket).unwrap();
    let socket = Arc::new(Deaf { inner, left: AtomicUsize::new(hears) });
    let config = EndpointConfig::default();
    let endpoint =
        quinn::Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime)).unwrap();
    let connecting = endpoint.connect_with(client_config(None), target.address, "any").unwrap();
    done.add(1);
    let _ = tokio::time::timeout(KEPT, connecting).await;
}

#[derive(Debug)]
struct Deaf {
    inner: Arc<dyn AsyncUdpSocket>,
    left: AtomicUsize,
}

impl AsyncUdpSocket for Deaf {
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
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Poll::Pending;
        }
        let received = self.inner.poll_recv(cx, buffers, meta);
        if let Poll::Ready(Ok(count)) = &received {
            self.left.store(left.saturating_sub(*count), Ordering::Relaxed);
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// One connection of a node of the job, up to its end.
async fn member(attack: Attack, attacker: &Attacker, target: &Target, done: &Done) {
    let endpoint = RawEndpoint::bind_to(attacker.from);
    let Some(peer) = endpoint.try_connect(&attacker.identity, target.address, &target.id).await else {
        return done.add(1);
    };
    let connection = peer.connection().clone();
    let goes_on = || done.goes_on() && connection.close_reason().is_none();
    let mut kept = Vec::new();
    match attack {
        Attack::EmptyStreams => {
            while goes_on() {
                let Ok((mut send, _)) = connection.open_bi().await else { return };
                let _ = send.finish();
                done.add(1);
            }
        }
        Attack::AbandonedStreams => {
            while goes_on() {
                let Some((mut send, _)) = peer.stream_with(&prelude(target).encode()).await else { return };
                let _ = send.reset(7_u32.into());
                done.add(1);
            }
        }
        Attack::HalfFrames => {
            while goes_on() {
                let Some(stream) = peer.stream_with(&prelude(target).encode()).await else { return };
                kept.push(stream);
                done.add(1);
            }
        }
        Attack::BadMacs => {
            let message = [&prelude(target).encode()[..], &[1; 512]].concat();
            let _stream = peer.stream_with(&message).await;
            done.add(1);
            connection.closed().await;
        }
        Attack::Pushes => {
            let prelude = Prelude { kind: Push::KIND, header_len: 300, payload_len: 1 << 20 }.encode();
            let stream = peer.stream_with(&prelude).await;
            let Some((mut send, _)) = stream else { return };
            // Its beginning is an attempt: of the rest, a node that has not heard its sender takes little.
            done.add(1);
            let some = vec![7; 64 << 10];
            while goes_on() && send.write_all(&some).await.is_ok() {
                done.add(1);
            }
        }
        _ => {
            done.add(1);
            connection.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
        }
    }
    drop(kept);
}

/// The first bytes of a message that the target may be told by a worker.
fn prelude(target: &Target) -> Prelude {
    let kind = if target.id.role() == Role::Scheduler { Heartbeat::KIND } else { Push::KIND };
    Prelude { kind, header_len: 300, payload_len: 0 }
}

/// Says it is alive, over and over, as fast as the other end grants.
async fn say(attacker: &Attacker, target: &Target, done: &Done) -> Option<()> {
    let policy = Arc::new(testudo_actors::policy::policy(1 << 20).ok()?);
    let config = TransportConfig { listen: SocketAddr::new(attacker.from, 0), ..TransportConfig::default() };
    let endpoint = Endpoint::bind(&config, (*attacker.identity).clone(), policy).ok()?;
    let connection = endpoint.connect(target.address, &target.id).await.ok()?;
    let (mut sender, _replies) = connection.open(Class::Control, 0).await.ok()?;
    let body = Heartbeat { step: 0, waiting: None, load: Load::default(), served: None }.encode();
    while done.goes_on() {
        sender.send(Outgoing::new(Heartbeat::KIND, 0, body.clone())).await.ok()?;
        done.add(1);
    }
    Some(())
}
