//! `[limits]`: what anybody may ask of a node.

use serde::Serialize;
use testudo_transport::{CreditConfig, Rate, Role, TransportConfig};

use super::Config;
use super::memory::Shares;

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Handshakes a second with strangers, and again with known addresses.
    pub handshakes_per_second: u32,
    /// Handshakes a second with one address.
    pub handshakes_per_address: u32,
    /// Connections a second that one identity begins.
    pub connections_per_peer: u32,
    /// MiB that a node may occupy in all; `None` for no limit but what its peers' credit comes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

/// Handshakes at once beside a start of the whole cluster: operators, and nodes that come back.
const SPARE_HANDSHAKES: u32 = 64;
/// Seconds' worth of connections that one identity may begin at once.
const PEER_SECONDS: u32 = 16;

impl Config {
    /// Puts these limits into the transport's settings, for a node of that role with `data` bytes of examples.
    pub(crate) fn limit(&self, transport: TransportConfig, role: Role, data: u64) -> TransportConfig {
        // The whole cluster may start at once, each node twice, and from behind one address.
        let nodes = self.cluster.most_workers().saturating_add(self.cluster.servers).saturating_mul(2);
        let start = |per_second: u32| {
            let burst = nodes.saturating_add(SPARE_HANDSHAKES).saturating_add(per_second);
            Rate { per_second, burst }
        };
        let Shares { data_credit, answers, memory } = self.shares(role, data);
        let per_second = self.limits.connections_per_peer;
        TransportConfig {
            allow: self.network.allow.clone(),
            handshakes: start(self.limits.handshakes_per_second),
            handshakes_per_address: start(self.limits.handshakes_per_address),
            handshakes_per_peer: Rate { per_second, burst: per_second.saturating_mul(PEER_SECONDS) },
            answers,
            memory,
            data_credit: CreditConfig { bytes: data_credit, ..transport.data_credit },
            ..transport
        }
    }
}
