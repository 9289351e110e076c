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
}

/// Connections at once beside a start of the whole cluster: operators, and nodes that come back.
const SPARE_HANDSHAKES: u32 = 64;

impl Config {
    /// Handshakes that may come at once: those of the whole cluster, each node twice.
    pub(super) fn handshake_burst(&self) -> u32 {
        let nodes = self.cluster.workers.saturating_add(self.cluster.servers);
        nodes.saturating_mul(2).saturating_add(SPARE_HANDSHAKES)
    }

    /// Puts these limits into the transport's settings.
    pub(crate) fn limit(&self, transport: TransportConfig) -> TransportConfig {
        let burst = self.handshake_burst();
        TransportConfig {
            allow: self.network.allow.clone(),
            handshakes: Rate { per_second: self.limits.handshakes_per_second, burst },
            handshakes_per_address: Rate { per_second: self.limits.handshakes_per_address, burst },
            ..transport
        }
    }
}
