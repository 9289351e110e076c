//! Floods: what a source that holds no certificate, or one of the job's own, can throw at a node, as fast as it can.
//!
//! Each attack runs until it is told to stop, on whatever cores its process has. The figures of the program `flood` are
//! measured with it, and a bounded one runs in every test run.

mod datagrams;
pub mod inside;
mod peers;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use testudo_transport::{Identity, SpiffeId};

/// Between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(10);

/// One kind of flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Nothing is sent: one core computes in a loop, to tell what the machine itself loses by that.
    Busy,
    /// Bytes that are no QUIC, 100 a datagram.
    Garbage,
    /// The same, sixty at a time by segmentation offload.
    GarbageBatched,
    /// Short headers with random connection ids.
    Strays,
    /// First packets of connections, with random connection ids and nothing that decrypts.
    Beginnings,
    /// Beginnings that decrypt, from a source that hears no answer.
    Deaf,
    /// Handshakes that prove their address and then stall.
    Stalled,
    /// Whole handshakes without a certificate.
    NoCertificate,
    /// Whole handshakes with a certificate of another CA.
    Foreign,
    /// A node of the job connects and closes.
    Reconnect,
    /// It opens streams and finishes them with nothing said.
    EmptyStreams,
    /// It opens streams and abandons them in the middle of a message.
    AbandonedStreams,
    /// It says something allowed, over and over, as fast as it is granted.
    Control,
    /// It keeps streams open with half a message each.
    HalfFrames,
    /// It sends messages with MACs that do not verify, and connects again.
    BadMacs,
    /// It pushes without a lease, as much as it is granted, and connects again.
    Pushes,
    /// A worker that takes part ([`inside`]) pushes what it has pushed, over and over.
    Duplicates,
    /// It pulls what it has, over and over, and reads it.
    Pulls,
    /// It pulls on every stream that it may have, and reads nothing.
    NeverReads,
    /// It keeps streams open with half a push each.
    HalfPushes,
    /// It reports what nobody asked for.
    Reports,
    /// It says that it lives, over and over.
    Heartbeats,
}

impl Attack {
    /// What a worker that takes part does, by the name it goes by; see [`inside`].
    pub const INSIDE: [(&'static str, Attack); 6] = [
        ("duplicates", Attack::Duplicates),
        ("pulls", Attack::Pulls),
        ("never-reads", Attack::NeverReads),
        ("half-pushes", Attack::HalfPushes),
        ("reports", Attack::Reports),
        ("heartbeats", Attack::Heartbeats),
    ];

    /// Every other attack, by the name it goes by.
    pub const ALL: [(&'static str, Attack); 16] = [
        ("busy", Attack::Busy),
        ("garbage", Attack::Garbage),
        ("garbage-batched", Attack::GarbageBatched),
        ("strays", Attack::Strays),
        ("beginnings", Attack::Beginnings),
        ("deaf", Attack::Deaf),
        ("stalled", Attack::Stalled),
        ("no-certificate", Attack::NoCertificate),
        ("foreign", Attack::Foreign),
        ("reconnect", Attack::Reconnect),
        ("empty-streams", Attack::EmptyStreams),
        ("abandoned-streams", Attack::AbandonedStreams),
        ("control", Attack::Control),
        ("half-frames", Attack::HalfFrames),
        ("bad-macs", Attack::BadMacs),
        ("pushes", Attack::Pushes),
    ];

    /// Whether it takes a certificate of the job.
    #[must_use]
    pub fn is_authenticated(self) -> bool {
        Attack::ALL.iter().position(|(_, attack)| *attack == self) >= Some(9)
    }
}

/// Who is flooded.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who it is.
    pub id: SpiffeId,
}

/// Who floods, and with what.
#[derive(Debug, Clone)]
pub struct Attacker {
    /// The address that it sends from.
    pub from: IpAddr,
    /// Its certificate.
    pub identity: Arc<Identity>,
    /// A certificate of another CA.
    pub foreign: Arc<Identity>,
}

/// What an attack did.
#[derive(Debug, Default)]
pub struct Done {
    /// Datagrams sent, or streams, or messages; connections where it is about those.
    pub sent: AtomicU64,
    /// Set to end it.
    pub stop: AtomicBool,
}

impl Done {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Until it is over: whoever is kept waiting stops as well.
    async fn stopped(&self) {
        while self.goes_on() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn add(&self, count: u64) {
        self.sent.fetch_add(count, Ordering::Relaxed);
    }
}

/// Attacks every target by turns, until `done` says stop; what a worker that takes part does is [`inside`]'s.
pub fn run(attack: Attack, attacker: &Attacker, targets: &[Target], done: &Arc<Done>) {
    match attack {
        Attack::Busy => {
            while done.goes_on() {
                (0..1000).for_each(|_| std::hint::spin_loop());
                done.add(1);
            }
        }
        Attack::Garbage | Attack::GarbageBatched | Attack::Strays | Attack::Beginnings => {
            datagrams::flood(attack, attacker.from, targets, done);
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(peers::flood(attack, attacker, targets, done));
        }
    }
}
