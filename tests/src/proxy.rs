//! A UDP forwarder that keeps a copy of every datagram: what somebody on the network sees of a run.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Larger than any datagram.
const DATAGRAM: usize = 65_536;

/// How often a forwarder looks whether it is to stop.
const PAUSE: Duration = Duration::from_millis(20);

/// Every datagram that was forwarded, in either direction.
#[derive(Clone, Debug, Default)]
pub struct Record(Arc<Mutex<Vec<Vec<u8>>>>);

impl Record {
    /// What was forwarded so far.
    #[must_use]
    pub fn datagrams(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }

    fn keep(&self, datagram: &[u8]) {
        self.0.lock().unwrap().push(datagram.to_vec());
    }
}

/// Forwards between whoever sends to it and one node, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where to send instead of to the node.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of `node`, keeping what passes in `record`.
    #[must_use]
    pub fn start(node: SocketAddr, record: Record) -> Proxy {
        let front = socket();
        let address = front.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || forward(&front, node, &record, &stopping));
        Proxy { address, stop, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PAUSE)).unwrap();
    socket
}

/// One socket towards the node for each sender, so that the node can tell them apart.
fn forward(front: &UdpSocket, node: SocketAddr, record: &Record, stop: &Arc<AtomicBool>) {
    let mut senders: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = front.recv_from(&mut buffer) else { continue };
            record.keep(&buffer[..len]);
            let back = senders.entry(from).or_insert_with(|| {
                let back = socket();
                let answers = back.try_clone().unwrap();
                scope.spawn(move || give_back(&answers, front, from, record, stop));
                back
            });
            // A datagram that does not get through is lost, as on any network.
            let _ = back.send_to(&buffer[..len], node);
        }
    });
}

fn give_back(answers: &UdpSocket, front: &UdpSocket, to: SocketAddr, record: &Record, stop: &AtomicBool) {
    let mut buffer = vec![0; DATAGRAM];
    while !stop.load(Ordering::Relaxed) {
        let Ok(len) = answers.recv(&mut buffer) else { continue };
        record.keep(&buffer[..len]);
        let _ = front.send_to(&buffer[..len], to);
    }
}
