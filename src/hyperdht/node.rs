//! A node of the DHT, as programs use it.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::addresses::LocalAddresses;
use super::cache::ExpiringMap;
use super::connect::Connector;
use super::connection::{Connection, Established};
use super::error::{ConnectError, ListenError};
use super::messages::commands;
use super::options::{ConnectOptions, DhtOptions, Firewall, ServerOptions};
use super::punch::throttle::{Permit, Throttle};
use super::relay::session::{RelayPeers, RelaySessions};
use super::router::{self, RELAY_RATE};
use super::rpc::message::NodeId;
use super::rpc::nat::NatView;
use super::rpc::socket::Socket;
use super::rpc::{Answer, Incoming, Rpc, RpcOptions};
use super::server::{Server, ServerShared};
use super::store::{Store, Stored, target_of};
use crate::crypto::{KeyPair, PublicKey};
use crate::rate_limit::RateLimit;
use crate::sync::lock;
use crate::tasks::Spawn;
use crate::udx::{StreamHandle, Udx};

/// How long the nodes that led to a peer are remembered, and of how many peers.
const ROUTE_AGE: Duration = Duration::from_secs(60 * 60);
const MAX_ROUTES: usize = 512;
/// How often stored records are looked through for old ones.
const SWEEP: Duration = Duration::from_secs(60);
/// How long a topic waits for the announcement of the server it names.
const ANNOUNCED_TIMEOUT: Duration = Duration::from_secs(10);

/// A node of the DHT. Clones share it; it ends with [`HyperDht::close`], or silently with the last
/// clone, server and topic.
#[derive(Clone)]
pub struct HyperDht {
    handle: Arc<Handle>,
}

/// Ends the node's tasks when nobody uses it any more.
pub(crate) struct Handle {
    pub inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub rpc: Arc<Rpc>,
    pub udx: Udx,
    pub store: Mutex<Store>,
    pub relay_limit: Mutex<RateLimit>,
    /// Where peers were reached before.
    pub routes: Mutex<ExpiringMap<Vec<SocketAddr>>>,
    keep_alive: Duration,
    key_pair: KeyPair,
    servers: Mutex<HashMap<NodeId, Arc<ServerShared>>>,
    /// Open connections' streams, by id, to be ended with the node.
    streams: Mutex<HashMap<u32, StreamHandle>>,
    local: LocalAddresses,
    random_punches: Throttle,
    pub relays: RelaySessions,
}

/// What a node knows of itself, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DhtStatus {
    /// Whether the first queries are over.
    pub bootstrapped: bool,
    /// Whether this node stores nothing for others.
    pub ephemeral: bool,
    /// Whether nobody is known to reach this node unasked.
    pub firewalled: bool,
    /// Whether a NAT gives this node another port for each destination.
    pub randomized: bool,
    /// The address at which anybody reaches this node, when that is proved.
    pub remote_address: Option<SocketAddr>,
    /// The address others see us at, whether or not they reach us there; without a port when a NAT
    /// changes it.
    pub seen_host: Option<std::net::IpAddr>,
    /// Nodes in the routing table.
    pub nodes: usize,
}

impl HyperDht {
    /// Binds two sockets and starts to find into the network. Must be called inside a tokio runtime;
    /// returns at once, see [`HyperDht::bootstrapped`].
    ///
    /// # Errors
    /// When no socket can be bound.
    pub fn bind(options: DhtOptions) -> std::io::Result<Self> {
        let udx = Udx::new();
        let address = SocketAddr::new(options.host, options.port);
        let (server, client) = Rpc::bind_sockets(&udx, address)?;
        let DhtOptions { direct_only, bootstrap, cached_nodes, .. } = options;
        let (bootstrap, cached_nodes) =
            if direct_only { Default::default() } else { (bootstrap, cached_nodes) };
        let cached_nodes = cached_nodes.iter().filter_map(|node| match node {
            SocketAddr::V4(v4) => Some(*v4),
            SocketAddr::V6(_) => None,
        });
        // The first node of a network has nobody to ask for its address.
        let port = server.local_addr().port();
        let public_address = options.public_address.map(|address| match address.port() {
            0 => SocketAddrV4::new(*address.ip(), port),
            _ => address,
        });
        let sockets = [server.clone(), client.clone()];
        let rpc = Rpc::new(
            server,
            client,
            RpcOptions {
                bootstrap,
                ephemeral: if direct_only { Some(true) } else { options.ephemeral },
                firewalled: options.firewalled,
                quick_firewall: options.quick_firewall,
                public_address,
                cached_nodes: cached_nodes.collect(),
                direct_only,
                tuning: options.tuning,
            },
        );
        let inner = Arc::new(Inner {
            rpc,
            udx,
            store: Mutex::new(Store::new(options.tuning)),
            relay_limit: Mutex::new(RateLimit::new(RELAY_RATE, RELAY_RATE)),
            routes: Mutex::new(ExpiringMap::new(MAX_ROUTES, ROUTE_AGE)),
            keep_alive: options.keep_alive,
            key_pair: options.key_pair,
            servers: Mutex::default(),
            streams: Mutex::default(),
            local: LocalAddresses::default(),
            random_punches: Throttle::new(),
            relays: RelaySessions::default(),
        });
        for socket in sockets {
            inner.receive_from(socket);
        }
        inner.sweep();
        inner.rpc.start();
        Ok(Self { handle: Arc::new(Handle { inner }) })
    }

    /// Waits until the first queries are over, whether or not anybody answered. Cancel safe.
    pub async fn bootstrapped(&self) {
        // The sender lives as long as we do.
        let _ = self.inner().rpc.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The address of the socket that others reach.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner().rpc.io.server.local_addr()
    }

    /// Where peers on the same network reach this node.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        let bound = self.local_addr();
        match bound.ip() {
            std::net::IpAddr::V6(ip) if !ip.is_unspecified() => vec![bound],
            _ => self.inner().local_addresses().into_iter().map(SocketAddr::V4).collect(),
        }
    }

    /// The address at which anybody reaches this node, when others proved it.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.inner().rpc.remote_address().map(SocketAddr::V4)
    }

    /// The nodes in the routing table, those heard from last first: worth keeping for the next start.
    #[must_use]
    pub fn nodes(&self) -> Vec<SocketAddr> {
        let state = lock(&self.inner().rpc.state);
        let nodes = state.table.oldest_first().into_iter().rev();
        nodes.map(|node| SocketAddr::V4(node.address)).collect()
    }

    /// What this node knows of itself.
    #[must_use]
    pub fn status(&self) -> DhtStatus {
        let remote_address = self.remote_addr();
        let state = lock(&self.inner().rpc.state);
        let view = state.nat.view();
        DhtStatus {
            bootstrapped: state.bootstrapped,
            ephemeral: state.ephemeral,
            firewalled: state.firewalled,
            randomized: matches!(view, NatView::Randomized(_)),
            remote_address,
            seen_host: view.host().map(Into::into),
            nodes: state.table.len(),
        }
    }

    /// Whether this node takes no part in the network.
    #[must_use]
    pub fn is_direct_only(&self) -> bool {
        self.inner().rpc.options.direct_only
    }

    /// The key pair of connections that do not bring their own.
    #[must_use]
    pub fn key_pair(&self) -> &KeyPair {
        &self.inner().key_pair
    }

    /// Connects to the peer with this key. Cancel safe: nothing is left behind.
    ///
    /// # Errors
    /// See [`ConnectError`]. A peer that refuses us is silent, so that takes 4 to 12 s to report, as
    /// [`ConnectError::Unanswered`].
    pub async fn connect(
        &self,
        remote: &PublicKey,
        options: ConnectOptions,
    ) -> Result<Connection, ConnectError> {
        let inner = Arc::clone(self.inner());
        let keys = options.key_pair.clone().unwrap_or_else(|| inner.key_pair.clone());
        Connector { inner, keys, remote: *remote, options }.connect().await
    }

    /// Starts to listen under `keys`. `firewall` decides who gets a connection. Returns at once; the
    /// network knows of the server after [`Server::announced`].
    ///
    /// # Errors
    /// When a server of this node listens under these keys, or the node is closed.
    pub fn listen(&self, keys: &KeyPair, firewall: Firewall) -> Result<Server, ListenError> {
        self.listen_with(keys, ServerOptions::new(firewall))
    }

    /// As [`HyperDht::listen`], with all options.
    ///
    /// # Errors
    /// As [`HyperDht::listen`].
    pub fn listen_with(
        &self,
        keys: &KeyPair,
        options: ServerOptions,
    ) -> Result<Server, ListenError> {
        let inner = self.inner();
        if inner.rpc.cancel.is_cancelled() {
            return Err(ListenError::Closed);
        }
        let mut servers = lock(&inner.servers);
        let target = target_of(&keys.public_key());
        if servers.contains_key(&target) {
            return Err(ListenError::AlreadyListening);
        }
        let server = Server::start(Arc::clone(&self.handle), keys, options);
        servers.insert(target, Arc::clone(&server.shared));
        Ok(server)
    }

    /// From now on relays are reached over the connections that `peers` gives, and none are made for that.
    /// Only the first call counts.
    pub fn relay_over_peers(&self, peers: RelayPeers) {
        self.inner().relays.use_peers(peers);
    }

    /// Counts changes of our address as others see it, or of who reaches us.
    pub(crate) fn network_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner().rpc.network_changes.subscribe()
    }

    /// The set of streams of this node.
    pub(crate) fn udx(&self) -> &Udx {
        &self.inner().udx
    }

    /// Nodes that pass a handshake on to the peer with this key; empty when nobody knows it. Cancel
    /// safe.
    pub async fn find_peer(&self, peer: &PublicKey) -> Vec<SocketAddr> {
        let call = super::rpc::Call::new(commands::FIND_PEER, None, None);
        let rpc = Arc::clone(&self.inner().rpc);
        let mut query =
            super::rpc::query::Query::new(rpc, target_of(peer), call, Default::default());
        let mut nodes = Vec::new();
        while let Some(reply) = query.next().await {
            if reply.value.is_some() {
                nodes.push(reply.from);
            }
        }
        nodes
    }

    /// Closes the node: servers unannounce (for at most 2 s), connections that are still open are
    /// destroyed, which their peers are told, and sockets close. Idempotent.
    pub async fn close(&self) {
        let inner = self.inner();
        let servers: Vec<Arc<ServerShared>> = lock(&inner.servers).values().cloned().collect();
        let mut closing = tokio::task::JoinSet::new();
        for server in servers {
            closing.spawn_task(async move { server.close().await });
        }
        while closing.join_next().await.is_some() {}
        let streams: Vec<StreamHandle> = lock(&inner.streams).drain().map(|(_, s)| s).collect();
        streams.iter().for_each(StreamHandle::destroy);
        inner.rpc.close().await;
    }

    /// Waits until the ports are free: after [`HyperDht::close`], when all clones are gone, too.
    pub fn released(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inner().rpc.io.released()
    }

    pub(super) fn handle(&self) -> Arc<Handle> {
        Arc::clone(&self.handle)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }

    #[cfg(test)]
    pub(crate) fn rpc(&self) -> Arc<Rpc> {
        Arc::clone(&self.inner().rpc)
    }

    /// Whether both are the same node.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.rpc.cancel.cancel();
        // Those over the sockets of punches do not end with the node's own sockets.
        let streams: Vec<StreamHandle> =
            lock(&self.inner.streams).drain().map(|(_, stream)| stream).collect();
        streams.iter().for_each(StreamHandle::destroy);
        self.inner.rpc.io.close();
    }
}

impl Inner {
    pub(crate) fn server(&self, target: &NodeId) -> Option<Arc<ServerShared>> {
        lock(&self.servers).get(target).cloned()
    }

    pub(crate) fn remove_server(&self, server: &Arc<ServerShared>) {
        let mut servers = lock(&self.servers);
        if servers.get(&server.target).is_some_and(|known| Arc::ptr_eq(known, server)) {
            servers.remove(&server.target);
        }
    }

    /// Where peers on the same network reach our server socket.
    pub(crate) fn local_addresses(&self) -> Vec<SocketAddrV4> {
        self.local.of(self.rpc.io.server.local_addr())
    }

    /// Allows a punch with random ports, unless there are too many.
    pub(crate) fn random_punch(&self) -> Option<Permit> {
        self.random_punches.allow(*self.rpc.network_changes.borrow())
    }

    /// What a server of ours tells others to reach it, once it is announced.
    pub(crate) async fn relay_addresses_of(&self, key: &PublicKey) -> Vec<SocketAddrV4> {
        let Some(server) = self.server(&target_of(key)) else { return Vec::new() };
        // Without it there is nothing to tell, and the next round will do.
        let _ = tokio::time::timeout(ANNOUNCED_TIMEOUT, server.announcer.announced()).await;
        server.announcer.relay_addresses()
    }

    /// The key pair of connections that do not bring their own.
    pub(crate) fn key_pair(&self) -> &KeyPair {
        &self.key_pair
    }

    /// Makes a connection of an established stream, which ends with the node at the latest.
    pub(crate) fn adopt(self: &Arc<Self>, established: Established) -> Connection {
        let connection = established.into_connection(self.keep_alive);
        let stream = connection.udx.clone();
        lock(&self.streams).insert(stream.local_id(), stream.clone());
        let inner = Arc::clone(self);
        self.rpc.spawn(async move {
            stream.closed().await;
            lock(&inner.streams).remove(&stream.local_id());
        });
        connection
    }

    fn receive_from(self: &Arc<Self>, socket: Socket) {
        let Some(mut datagrams) = socket.udx.take_datagrams() else { return };
        let inner = Arc::clone(self);
        self.rpc.spawn(async move {
            while let Some(datagram) = datagrams.recv().await {
                if let Some(incoming) = inner.rpc.receive(&socket, datagram) {
                    inner.on_command(&incoming);
                }
            }
        });
    }

    fn sweep(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        self.rpc.spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                lock(&inner.store).sweep();
            }
        });
    }

    /// Carries out a command of HyperDHT (`index.js` `onrequest`).
    pub(crate) fn on_command(self: &Arc<Self>, incoming: &Incoming) {
        match incoming.request.command {
            commands::PEER_HANDSHAKE => return router::on_handshake(self, incoming),
            commands::PEER_HOLEPUNCH => return router::on_holepunch(self, incoming),
            _ => {}
        }
        // All others are for persistent nodes.
        let Some(id) = self.rpc.id() else { return self.rpc.refuse_command(incoming) };
        let request = &incoming.request;
        let Some(target) = request.target else { return };
        let value = request.value.as_deref().unwrap_or_default();
        let found = |value: Option<bytes::Bytes>| Answer {
            value,
            token: true,
            closer_nodes: true,
            ..Answer::default()
        };
        let own = || self.server(&target).map(|server| server.record.clone());
        let answer = match request.command {
            commands::FIND_PEER => {
                let stored = lock(&self.store).peer(&target).map(|peer| peer.record.clone());
                found(own().or(stored))
            }
            commands::LOOKUP => {
                let own = own();
                found(lock(&self.store).lookup(&target, own).map(Into::into))
            }
            commands::IMMUTABLE_GET => found(lock(&self.store).immutable(&target)),
            commands::MUTABLE_GET => match lock(&self.store).mutable(&target, value) {
                Ok(value) => found(value.map(Into::into)),
                Err(()) => return,
            },
            commands::ANNOUNCE
            | commands::UNANNOUNCE
            | commands::MUTABLE_PUT
            | commands::IMMUTABLE_PUT => {
                // The token was checked: without one, nothing is stored.
                let Some(token) = request.token else { return };
                let mut store = lock(&self.store);
                let stored = match request.command {
                    commands::ANNOUNCE => {
                        store.announce(incoming.from, &target, &id, &token, value)
                    }
                    commands::UNANNOUNCE => store.unannounce(&target, &id, &token, value),
                    commands::MUTABLE_PUT => store.put_mutable(incoming.from, &target, value),
                    _ => store.put_immutable(incoming.from, &target, value),
                };
                match stored {
                    Stored::Yes => Answer::default(),
                    Stored::Error(error) => Answer { error, ..Answer::default() },
                    Stored::Ignored => return,
                }
            }
            _ => return self.rpc.refuse_command(incoming),
        };
        self.rpc.answer(incoming, answer);
    }
}
