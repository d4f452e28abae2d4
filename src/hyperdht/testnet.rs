//! A private DHT in this process, for tests and demonstrations (`hyperdht` `testnet.js`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::node::HyperDht;
use super::options::{BootstrapNode, DhtOptions};

/// Persistent nodes on 127.0.0.1 that know each other.
pub struct Testnet {
    nodes: Vec<HyperDht>,
    bootstrap: Vec<BootstrapNode>,
}

impl Testnet {
    /// Starts `size` nodes, one after the other.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub async fn start(size: usize) -> std::io::Result<Self> {
        Self::extend(size, Vec::new()).await
    }

    /// Adds `size` nodes to the network that `bootstrap` leads to.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub async fn extend(size: usize, mut bootstrap: Vec<BootstrapNode>) -> std::io::Result<Self> {
        let mut nodes = Vec::with_capacity(size);
        for _ in 0..size {
            let node = HyperDht::bind(DhtOptions {
                bootstrap: bootstrap.clone(),
                host: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: 0,
                ephemeral: Some(false),
                firewalled: false,
                public_address: Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)),
                ..DhtOptions::default()
            })?;
            node.bootstrapped().await;
            if bootstrap.is_empty()
                && let SocketAddr::V4(address) = node.local_addr()
            {
                bootstrap.push(address.into());
            }
            nodes.push(node);
        }
        Ok(Self { nodes, bootstrap })
    }

    /// How to find into this network.
    #[must_use]
    pub fn bootstrap(&self) -> Vec<BootstrapNode> {
        self.bootstrap.clone()
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[HyperDht] {
        &self.nodes
    }

    /// Options for a node of one's own in this network, on 127.0.0.1.
    #[must_use]
    pub fn options(&self) -> DhtOptions {
        DhtOptions {
            bootstrap: self.bootstrap(),
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            ..DhtOptions::default()
        }
    }

    /// Closes all nodes. Idempotent.
    pub async fn close(&self) {
        for node in &self.nodes {
            node.close().await;
        }
    }
}
