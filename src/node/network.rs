//! The node on the network: made when it opens, taken down while it is suspended, and made anew.
//!
//! That is how npm's hyperdht suspends, too: servers unannounce, streams end, sockets close; it comes
//! back on the same port with the nodes that it knew.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::crypto::PublicKey;
use crate::discovery::{Discovery, DiscoveryOptions, Parts, known_nodes};
use crate::error::{Error, ErrorCode, Result};
use crate::hyperdht::{DhtOptions, HyperDht, RelayOptions, RelayServer};
use crate::identity::Identity;
use crate::peers::{Attach, Connections, Peers};
use crate::store::Database;
use crate::sync::lock;

/// How many peers that were reached before serve as ways into the network.
const WAYS_IN: usize = 16;

/// How long a port may take to become free, so that the node gets it again when it resumes: whoever was
/// about to use a socket has to see first that it is closed.
const RELEASE: Duration = Duration::from_secs(2);

/// What there is while the node is online. Clones share it.
#[derive(Clone)]
pub(super) struct Online {
    pub dht: HyperDht,
    pub connections: Connections,
    pub discovery: Discovery,
    pub relay: Option<RelayServer>,
}

/// What is needed to go online, again and again.
pub(super) struct Network {
    pub options: DhtOptions,
    pub discovery: DiscoveryOptions,
    pub identity: Identity,
    pub peers: Peers,
    pub database: Database,
    /// What is passed on for peers, if anything.
    pub relay: Option<RelayOptions>,
    /// The peers that connections may go over.
    pub relays: Vec<PublicKey>,
    pub attach: Attach,
}

/// A node's place on the network, if it has one now.
pub(super) struct Place {
    network: Network,
    online: Mutex<Option<Online>>,
    /// Going online and offline happens one after the other.
    switching: tokio::sync::Mutex<Kept>,
}

/// What is kept from one time online to the next.
struct Kept {
    port: u16,
    nodes: Vec<SocketAddr>,
    is_closed: bool,
}

impl Place {
    /// Goes online. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// `ERR_NETWORK` when no socket can be bound.
    pub(super) fn open(network: Network) -> Result<Self> {
        let mut kept = Kept { port: network.options.port, nodes: Vec::new(), is_closed: false };
        let online = network.go_online(&mut kept)?;
        Ok(Self {
            network,
            online: Mutex::new(Some(online)),
            switching: tokio::sync::Mutex::new(kept),
        })
    }

    /// What there is now; `None` while the node is suspended or closed.
    pub(super) fn online(&self) -> Option<Online> {
        lock(&self.online).clone()
    }

    /// Goes offline. `false` when it was.
    pub(super) async fn suspend(&self) -> bool {
        let mut kept = self.switching.lock().await;
        self.go_offline(&mut kept).await
    }

    /// Goes online again, unless it is, or closed. `false` then.
    ///
    /// # Errors
    ///
    /// `ERR_NETWORK` when no socket can be bound.
    pub(super) async fn resume(&self) -> Result<bool> {
        let mut kept = self.switching.lock().await;
        if kept.is_closed || lock(&self.online).is_some() {
            return Ok(false);
        }
        let online = self.network.go_online(&mut kept)?;
        *lock(&self.online) = Some(online);
        Ok(true)
    }

    /// Goes offline for good.
    pub(super) async fn close(&self) {
        let mut kept = self.switching.lock().await;
        kept.is_closed = true;
        self.go_offline(&mut kept).await;
    }

    async fn go_offline(&self, kept: &mut Kept) -> bool {
        // Taken out last: cancelled, it goes on where it was.
        let Some(online) = self.online() else { return false };
        online.discovery.close().await;
        online.connections.close().await;
        kept.port = online.dht.local_addr().port();
        kept.nodes = online.dht.nodes();
        online.dht.close().await;
        let released = online.dht.released();
        lock(&self.online).take();
        drop(online);
        if tokio::time::timeout(RELEASE, released).await.is_err() {
            tracing::debug!("a socket outlives the node's time online");
        }
        true
    }
}

impl Network {
    fn go_online(&self, kept: &mut Kept) -> Result<Online> {
        let mut options = DhtOptions { port: kept.port, ..self.options.clone() };
        options.cached_nodes = std::mem::take(&mut kept.nodes);
        if options.cached_nodes.is_empty() {
            options.cached_nodes = known_nodes(&self.database, &options.bootstrap);
        }
        // Peers are nodes of the DHT as well.
        options.cached_nodes.extend(self.peers.reached_addresses().into_iter().take(WAYS_IN));
        let dht = HyperDht::bind(options).map_err(|error| {
            let message = format!(
                "no UDP socket could be opened: {error}; choose another host or port, or free it"
            );
            Error::new(ErrorCode::Network, message)
        })?;
        let relay = self.relay.map(|options| RelayServer::new(&dht, options));
        let attach = self.attach_to(relay.clone());
        let connections = Connections::start(&dht, &self.identity, &self.peers, attach)?;
        connections.relay_through(self.relays.clone());
        let parts = Parts {
            dht: dht.clone(),
            bootstrap: self.options.bootstrap.clone(),
            identity: self.identity.clone(),
            peers: self.peers.clone(),
            connections: connections.clone(),
            database: self.database.clone(),
        };
        let discovery = Discovery::start(&parts, self.discovery);
        Ok(Online { dht, connections, discovery, relay })
    }

    /// What is served on each connection.
    fn attach_to(&self, relay: Option<RelayServer>) -> Attach {
        let attach = Arc::clone(&self.attach);
        let Some(relay) = relay else { return attach };
        Arc::new(move |connection| {
            attach(connection);
            relay.attach(&connection.mux);
        })
    }
}
