//! How a node, a connection and a topic are set up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::tuning::Tuning;
use crate::crypto::{KeyPair, PublicKey};

/// The port on which the reference listens.
pub const DEFAULT_PORT: u16 = 49737;

/// The public HyperDHT's bootstrap nodes (`hyperdht` `lib/constants.js`).
pub const DEFAULT_BOOTSTRAP: [&str; 3] = [
    "88.99.3.86@node1.hyperdht.org:49737",
    "142.93.90.113@node2.hyperdht.org:49737",
    "138.68.147.8@node3.hyperdht.org:49737",
];

/// Decides inside the handshake, before any reply, whether a key gets a connection; `true` admits it.
///
/// It is called with the remote's key, proved by the handshake, and its address, which a node that
/// passed the handshake on may have made up. It must not block.
pub type Firewall = Arc<dyn Fn(&PublicKey, SocketAddr) -> bool + Send + Sync>;

/// Chooses the relay over which a connection may come about, if any, each time one is made. A server is
/// told which one the client named: with `None` for an answer, that one is taken.
pub type RelayThrough = Arc<dyn Fn(Option<&PublicKey>) -> Option<PublicKey> + Send + Sync>;

/// A node through which others find into the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BootstrapNode {
    /// An address to try before looking up the name.
    pub address: Option<Ipv4Addr>,
    /// A name to look up.
    pub host: Option<String>,
    /// The UDP port.
    pub port: u16,
}

/// A bootstrap node that is not written `host:port` or `address@host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a bootstrap node: write host:port or address@host:port")]
pub struct InvalidBootstrapNode(String);

impl FromStr for BootstrapNode {
    type Err = InvalidBootstrapNode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidBootstrapNode(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().map_err(|_| invalid())?;
        let (address, host) = match host.split_once('@') {
            Some((address, host)) => (Some(address.parse().map_err(|_| invalid())?), Some(host)),
            None => match host.parse() {
                Ok(address) => (Some(address), None),
                Err(_) => (None, Some(host)),
            },
        };
        let is_name = |host: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed)
        };
        if port == 0 || host.is_some_and(|host| !is_name(host)) {
            return Err(invalid());
        }
        Ok(Self { address, host: host.map(str::to_owned), port })
    }
}

impl fmt::Display for BootstrapNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, &self.host) {
            (Some(address), Some(host)) => write!(f, "{address}@{host}:{}", self.port),
            (Some(address), None) => write!(f, "{address}:{}", self.port),
            (None, host) => write!(f, "{}:{}", host.as_deref().unwrap_or_default(), self.port),
        }
    }
}

impl From<SocketAddrV4> for BootstrapNode {
    fn from(address: SocketAddrV4) -> Self {
        Self { address: Some(*address.ip()), host: None, port: address.port() }
    }
}

/// How a [`HyperDht`](super::HyperDht) node is set up. Start from [`DhtOptions::default`].
#[derive(Debug, Clone)]
pub struct DhtOptions {
    /// Nodes to find into the network through; empty for the first node of a private network, or to
    /// connect by known addresses only. The default is the public network.
    pub bootstrap: Vec<BootstrapNode>,
    /// The host to bind to; the default is all IPv4 hosts. With an IPv6 host, direct connections use
    /// IPv6, and the DHT is reached where the system maps IPv4 onto it.
    pub host: IpAddr,
    /// The wanted port; one of the next four or any is taken when it is not free. 0 for any.
    pub port: u16,
    /// The key pair for connections and servers that do not bring their own.
    pub key_pair: KeyPair,
    /// `Some(true)`: never store for others. `Some(false)`: do so from the start. `None`: once this
    /// node proved to be reachable and stable, after about 20 minutes.
    pub ephemeral: Option<bool>,
    /// Whether to assume that nobody reaches us until others proved that they do.
    pub firewalled: bool,
    /// Whether to have that proved right at the start, instead of once the node is stable.
    pub quick_firewall: bool,
    /// The address at which others reach us, when it is known without asking.
    pub public_address: Option<SocketAddrV4>,
    /// Nodes known from an earlier run.
    pub cached_nodes: Vec<SocketAddr>,
    /// Whether to take no part in the network: nothing is looked up, announced or stored, and connections
    /// come about by known addresses only.
    pub direct_only: bool,
    /// Timeouts, sizes and ages.
    pub tuning: Tuning,
    /// How long connections may be idle before an empty message keeps them alive.
    pub keep_alive: Duration,
}

impl Default for DhtOptions {
    fn default() -> Self {
        Self {
            bootstrap: DEFAULT_BOOTSTRAP.iter().filter_map(|node| node.parse().ok()).collect(),
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: DEFAULT_PORT,
            key_pair: KeyPair::generate(),
            ephemeral: None,
            firewalled: true,
            quick_firewall: true,
            public_address: None,
            cached_nodes: Vec::new(),
            direct_only: false,
            tuning: Tuning::default(),
            keep_alive: Duration::from_secs(5),
        }
    }
}

/// How to connect to a peer.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Who we are towards the peer, if not the node's key pair.
    pub key_pair: Option<KeyPair>,
    /// Addresses at which the peer itself may answer, or nodes that pass our handshake on to it.
    /// They are tried at once, before the network is asked.
    pub addresses: Vec<SocketAddr>,
    /// Whether to try these addresses and nothing else, and only as the peer's own: nobody passes the
    /// handshake on.
    pub direct_only: bool,
    /// How long connecting may take in all. Only a hole punch through a NAT that changes ports takes
    /// more than a few seconds: up to 35 s with a peer that runs JavaScript.
    pub timeout: Duration,
    /// A relay to go over while there is no direct path, with a peer that names none itself.
    pub relay_through: Option<RelayThrough>,
    /// Whether to go over no relay, also not over one that the peer names.
    pub no_relay: bool,
}

/// How to listen. Start from [`ServerOptions::new`].
#[derive(Clone)]
pub struct ServerOptions {
    /// Who gets a connection.
    pub firewall: Firewall,
    /// A relay to go over while there is no direct path. The client uses it whatever it named itself.
    pub relay_through: Option<RelayThrough>,
}

impl ServerOptions {
    /// No relay of our own.
    #[must_use]
    pub fn new(firewall: Firewall) -> Self {
        Self { firewall, relay_through: None }
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            key_pair: None,
            addresses: Vec::new(),
            direct_only: false,
            timeout: Duration::from_secs(50),
            relay_through: None,
            no_relay: false,
        }
    }
}

/// How to take part in a topic.
#[derive(Debug, Clone, Default)]
pub struct JoinOptions {
    /// Announce ourselves under this key pair, which a server should listen with.
    pub announce: Option<KeyPair>,
    /// Look for others.
    pub lookup: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_nodes_read_back_as_they_were_written() {
        for text in ["88.99.3.86@node1.hyperdht.org:49737", "127.0.0.1:1", "localhost:65535"] {
            assert_eq!(text.parse::<BootstrapNode>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_bootstrap_node_is_refused() {
        for text in ["", "host", "host:", "host:0", "host:65536", "x@host:1", ":1", "a b:1", "@h:1"]
        {
            assert!(text.parse::<BootstrapNode>().is_err(), "{text}");
        }
    }

    #[test]
    fn all_public_bootstrap_nodes_parse() {
        assert_eq!(DhtOptions::default().bootstrap.len(), DEFAULT_BOOTSTRAP.len());
    }
}
