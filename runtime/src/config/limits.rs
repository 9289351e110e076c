//! `[limits]`: what anybody may ask of a node.

use serde::Serialize;
use testudo_transport::{Rate, TransportConfig};

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
}

/// Handshakes at once beside a start of the whole cluster: operators, and nodes that come back.
const SPARE_HANDSHAKES: u32 = 64;
/// Seconds' worth of connections that one identity may begin at once.
const PEER_SECONDS: u32 = 16;

impl Config {
    /// Puts these limits into the transport's settings.
    pub(crate) fn limit(&self, transport: TransportConfig) -> TransportConfig {
        // The whole cluster may start at once, each node twice, and from behind one address.
        let nodes = self.cluster.workers.saturating_add(self.cluster.servers).saturating_mul(2);
        let start = |per_second: u32| {
            let burst = nodes.saturating_add(SPARE_HANDSHAKES).saturating_add(per_second);
            Rate { per_second, burst }
        };
        let per_second = self.limits.connections_per_peer;
        TransportConfig {
            allow: self.network.allow.clone(),
            handshakes: start(self.limits.handshakes_per_second),
            handshakes_per_address: start(self.limits.handshakes_per_address),
            handshakes_per_peer: Rate { per_second, burst: per_second.saturating_mul(PEER_SECONDS) },
            ..transport
        }
    }
}
