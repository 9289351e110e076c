//! `[network]`: where nodes listen, and what others dial.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Serialize;

/// `[network]`: what is bound, and what others are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Address for those that have none of their own below.
    pub listen: SocketAddr,
    /// Largest UDP payload that path discovery may try, in bytes.
    pub mtu: u16,
    /// Networks that others come from; none for all.
    pub allow: Vec<IpNet>,
    /// `[network.scheduler]`
    pub scheduler: SchedulerNetwork,
    /// `[network.servers]`
    pub servers: ServersNetwork,
}

/// `[network.scheduler]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchedulerNetwork {
    /// Address the scheduler binds; `None` for [`Network::listen`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Address at which others reach it, `host:port`; `None` for the bound one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

/// `[network.servers]`, by the servers' index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServersNetwork {
    /// Addresses they bind: none, or one each.
    pub listen: Vec<SocketAddr>,
    /// Addresses at which others reach them, `host:port`: none, or one each.
    pub advertise: Vec<String>,
}

impl Network {
    /// The address the scheduler binds.
    pub fn scheduler_listen(&self) -> SocketAddr {
        self.scheduler.listen.unwrap_or(self.listen)
    }

    /// The address that server `index` binds.
    pub fn server_listen(&self, index: u32) -> SocketAddr {
        self.servers.listen.get(index as usize).copied().unwrap_or(self.listen)
    }

    /// What server `index` tells others to dial; `None` for the bound address.
    pub fn server_advertise(&self, index: u32) -> Option<&str> {
        self.servers.advertise.get(index as usize).map(String::as_str)
    }
}
