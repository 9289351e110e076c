//! Floods of single datagrams.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;

use quinn::udp::{Transmit, UdpSocketState};

use super::{Attack, Done, Target};

/// Datagrams of a batch: Linux takes 64.
const BATCH: usize = 60;
/// Datagrams between two looks at the time to stop.
const BURST: usize = 256;
const SMALL: usize = 100;
/// The least that a connection may begin with.
const BEGINNING: usize = 1200;

pub(super) fn flood(attack: Attack, from: IpAddr, targets: &[Target], done: &Done) {
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let state = UdpSocketState::new((&socket).into()).unwrap();
    let (size, batch) = match attack {
        Attack::GarbageBatched => (SMALL, BATCH),
        Attack::Beginnings => (BEGINNING, 1),
        _ => (SMALL, 1),
    };
    let mut bytes = vec![0x5a; size * batch];
    // Xorshift64: all that is asked of these numbers is that they differ.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    while done.goes_on() {
        for count in 0..BURST {
            let target = &targets[count % targets.len()];
            match attack {
                Attack::Beginnings => {
                    bytes[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
                    bytes[6..14].copy_from_slice(&next().to_be_bytes());
                    // A source id of eight bytes, no token, and a length that fills the datagram.
                    bytes[14] = 8;
                    bytes[15..23].copy_from_slice(&next().to_be_bytes());
                    bytes[23] = 0;
                    let len = (BEGINNING - 26) as u16 | 0x4000;
                    bytes[24..26].copy_from_slice(&len.to_be_bytes());
                }
                Attack::Strays => {
                    bytes[0] = 0x41;
                    bytes[1..9].copy_from_slice(&next().to_be_bytes());
                }
                _ => {
                    for datagram in bytes.chunks_mut(size) {
                        datagram[..8].copy_from_slice(&next().to_be_bytes());
                    }
                }
            }
            let transmit = Transmit {
                destination: target.address,
                ecn: None,
                contents: &bytes,
                segment_size: (batch > 1).then_some(size),
                src_ip: None,
            };
            // What the kernel does not take is lost, as it is on a network.
            if state.try_send((&socket).into(), &transmit).is_ok() {
                done.sent.fetch_add(batch as u64, Ordering::Relaxed);
            }
        }
    }
}
