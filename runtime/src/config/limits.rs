//! `[limits]`: what anybody may ask of a node.

use serde::Serialize;
use testudo_transport::{CreditConfig, Rate, TransportConfig};

use super::Config;

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Handshakes a second with strangers, and again with known addresses.
    pub handshakes_per_second: u32,
    /// Handshakes a second with one address.
    pub handshakes_per_address: u32,
    /// Connections a second that one identity begins.
    pub connections_per_peer: u32,
    /// MiB that all peers together may make a node hold; `None` for what their credit comes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

/// Handshakes at once beside a start of the whole cluster: operators, and nodes that come back.
const SPARE_HANDSHAKES: u32 = 64;
/// Seconds' worth of connections that one identity may begin at once.
const PEER_SECONDS: u32 = 16;

/// Peers beside the nodes of the cluster: operators, and the scheduler.
const SPARE_PEERS: u64 = 8;
/// Connections that each peer may have without taking another's memory: one that lives, and one that has not timed out yet.
const CONNECTIONS_EACH: u64 = 2;

/// How memory is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// A peer's credit for data.
    pub(super) data_credit: u64,
    /// What all peers together may occupy.
    pub(super) memory: u64,
}

impl Config {
    /// Bytes of votes that a server keeps at most, under a robust rule: all workers' for what it holds, which is an eighth
    /// above its part of the parameters at most, and a slice. Under the mean, contributions are summed as they come: 0.
    pub(super) fn votes_bytes(&self) -> u64 {
        if crate::job::aggregation(&self.training).hostile().is_none() {
            return 0;
        }
        // A model that is none is refused elsewhere.
        let parameters = crate::job::model(&self.model).parameters().unwrap_or_default();
        let elements = parameters.iter().fold(0_u64, |sum, p| sum.saturating_add(p.shape.elements() as u64));
        let part = elements.saturating_mul(4) / u64::from(self.cluster.servers).max(1);
        let held = part.saturating_add(part / 8).saturating_add(u64::from(self.transport.slice_bytes));
        held.min(elements.saturating_mul(4)).saturating_mul(u64::from(self.cluster.workers))
    }

    /// A node's memory for its peers: as much as is configured, less what votes take, a peer's credit cut to its share of it; or
    /// what their credit comes to.
    pub(super) fn shares(&self) -> Shares {
        let nodes = u64::from(self.cluster.workers) + u64::from(self.cluster.servers);
        let connections = (nodes + SPARE_PEERS) * CONNECTIONS_EACH;
        let control = TransportConfig::DEFAULT_CONTROL_CREDIT.bytes;
        let asked = self.transport.max_in_flight_bytes;
        match self.limits.memory_mib {
            None => Shares { data_credit: asked, memory: connections * 2 * (control + asked) },
            Some(mib) => {
                let memory = (mib << 20).saturating_sub(self.votes_bytes());
                // What comes and what goes each take the credit of both classes.
                let share = (memory / connections / 2).saturating_sub(control);
                Shares { data_credit: asked.min(share), memory }
            }
        }
    }

    /// Puts these limits into the transport's settings.
    pub(crate) fn limit(&self, transport: TransportConfig) -> TransportConfig {
        // The whole cluster may start at once, each node twice, and from behind one address.
        let nodes = self.cluster.workers.saturating_add(self.cluster.servers).saturating_mul(2);
        let start = |per_second: u32| {
            let burst = nodes.saturating_add(SPARE_HANDSHAKES).saturating_add(per_second);
            Rate { per_second, burst }
        };
        let Shares { data_credit, memory } = self.shares();
        let per_second = self.limits.connections_per_peer;
        TransportConfig {
            allow: self.network.allow.clone(),
            handshakes: start(self.limits.handshakes_per_second),
            handshakes_per_address: start(self.limits.handshakes_per_address),
            handshakes_per_peer: Rate { per_second, burst: per_second.saturating_mul(PEER_SECONDS) },
            memory,
            data_credit: CreditConfig { bytes: data_credit, ..transport.data_credit },
            ..transport
        }
    }
}
