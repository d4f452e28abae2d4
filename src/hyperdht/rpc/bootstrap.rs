//! Joining the network, and finding out whether others reach us (`dht-rpc` `_bootstrap`,
//! `_updateNetworkState`, `_checkIfFirewalled`).
//!
//! A node starts firewalled and asks through its client socket. Others that answer to its server
//! socket, to which it never sent anything, prove that it is open.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::io::{Attempts, Reply};
use super::maintain::MORE_STABLE_TICKS;
use super::message::{NodeId, node_id};
use super::nat::{NatSampler, NatView};
use super::query::{Query, QueryOptions};
use super::serve::{FIND_NODE, PING, PING_NAT};
use super::socket::SocketKind;
use super::{Call, Rpc, State};
use crate::hyperdht::options::BootstrapNode;
use crate::sync::lock;
use crate::tasks::Spawn;

/// How many nodes are asked whether they reach us.
const PROBES: usize = 5;

/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long queries wait for the first bootstrap node's address when they know other nodes to ask, and
/// for the others once there is one.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long resolved names are believed.
const RESOLVED_MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// What a lookup of the bootstrap nodes has found so far.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    addresses: Vec<SocketAddrV4>,
    is_complete: bool,
}

impl Rpc {
    /// The first queries; [`Rpc::ready`] turns true afterwards, whether or not anybody answered.
    pub(crate) async fn bootstrap(self: Arc<Self>) {
        let is_forced = self.options.ephemeral == Some(false);
        let quick = self.options.quick_firewall && lock(&self.state).firewalled && !is_forced;
        let rounds = if self.options.direct_only { 0 } else { 2 };
        for _ in 0..rounds {
            let id = lock(&self.state).table.id();
            let is_reachable = self.first_query(id, quick).await;
            if !is_reachable && !is_forced {
                break;
            }
            if !self.update_network_state(!is_forced).await {
                break;
            }
        }
        lock(&self.state).bootstrapped = true;
        self.ready.send_replace(true);
    }

    /// Queries for `id`. With `quick`, the first node to answer is asked to ping our server socket
    /// meanwhile; returns whether that arrived.
    async fn first_query(self: &Arc<Self>, id: NodeId, quick: bool) -> bool {
        let mut query =
            self.find_node(id, QueryOptions { is_background: true, ..Default::default() });
        let mut probe: Option<oneshot::Receiver<bool>> = None;
        while let Some(reply) = query.next().await {
            if quick && probe.is_none() {
                let (sender, receiver) = oneshot::channel();
                probe = Some(receiver);
                let rpc = Arc::clone(self);
                let to = reply.from;
                self.spawn(async move {
                    let call = Call::internal(PING_NAT, Some(rpc.server_port_value()));
                    let arrived = rpc.request(to, call, Attempts::ONCE).await.is_ok();
                    let _ = sender.send(arrived);
                });
            }
        }
        match probe {
            Some(probe) => probe.await.unwrap_or(false),
            None => false,
        }
    }

    /// A query of this layer, for the nodes closest to `target`.
    pub(crate) fn find_node(self: &Arc<Self>, target: NodeId, options: QueryOptions) -> Query {
        Query::new(Arc::clone(self), target, Call::internal(FIND_NODE, None), options)
    }

    /// Looks around `target` without hurry.
    pub(crate) async fn background_query(self: Arc<Self>, target: NodeId) {
        let options = QueryOptions { is_background: true, ..Default::default() };
        self.find_node(target, options).finish().await;
    }

    /// The bootstrap nodes' addresses that are known by now: one whose name server is slow or dead holds
    /// up neither the others nor nodes that are known otherwise. All of them are remembered for 10
    /// minutes. A node given as `ip@name` is asked at its IP address first.
    pub(crate) async fn resolve_bootstrap(self: &Arc<Self>) -> Vec<SocketAddrV4> {
        let cached = lock(&self.state).resolved.clone();
        if let Some((at, addresses)) = cached
            && at.elapsed() < RESOLVED_MAX_AGE
        {
            return addresses;
        }
        let (mut lookup, is_alone) = {
            let mut state = lock(&self.state);
            let under_way = state.resolving.clone();
            let lookup = under_way.unwrap_or_else(|| self.look_up_bootstrap(&mut state));
            (lookup, state.table.len() == 0)
        };
        let first = lookup.wait_for(|found| found.is_complete || !found.addresses.is_empty());
        // Errors mean that the node closes: there is nothing to wait for.
        let _ = if is_alone {
            first.await.map(drop).map_err(drop)
        } else {
            tokio::time::timeout(PATIENCE, first).await.map(drop).map_err(drop)
        };
        let _ = tokio::time::timeout(PATIENCE, lookup.wait_for(|found| found.is_complete)).await;
        lookup.borrow().addresses.clone()
    }

    /// Looks all bootstrap nodes up, whether or not anybody still waits for it.
    fn look_up_bootstrap(self: &Arc<Self>, state: &mut State) -> watch::Receiver<Resolved> {
        let (sender, lookup) = watch::channel(Resolved::default());
        state.resolving = Some(lookup.clone());
        let rpc = Arc::clone(self);
        self.spawn(async move {
            let mut lookups = JoinSet::new();
            for node in rpc.options.bootstrap.clone() {
                let rpc = Arc::clone(&rpc);
                lookups.spawn_task(async move { rpc.resolve(node).await });
            }
            while let Some(outcome) = lookups.join_next().await {
                let found = outcome.ok().flatten();
                sender.send_modify(|resolved| resolved.addresses.extend(found));
            }
            sender.send_modify(|resolved| resolved.is_complete = true);
            let mut state = lock(&rpc.state);
            state.resolving = None;
            let addresses = sender.borrow().addresses.clone();
            if addresses.len() == rpc.options.bootstrap.len() {
                state.resolved = Some((Instant::now(), addresses));
            }
        });
        lookup
    }

    async fn resolve(&self, node: BootstrapNode) -> Option<SocketAddrV4> {
        let known = node.address.map(|ip| SocketAddrV4::new(ip, node.port));
        let Some(host) = node.host else { return known };
        if let Some(address) = known {
            let ping = Call::internal(PING, None);
            if self.request(address.into(), ping, Attempts::ONCE).await.is_ok() {
                return Some(address);
            }
        }
        let lookup = tokio::net::lookup_host((host.as_str(), node.port));
        match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
            Ok(Ok(mut found)) => found.find_map(|address| match address {
                SocketAddr::V4(v4) => Some(v4),
                SocketAddr::V6(_) => None,
            }),
            Ok(Err(error)) => {
                tracing::debug!(host, %error, "a bootstrap node has no address");
                known
            }
            Err(_) => {
                tracing::debug!(host, "looking up a bootstrap node took too long");
                known
            }
        }
    }

    /// Checks whether others reach us, and if they do stops being firewalled; unless
    /// `only_firewall`, becomes a persistent node too. Returns whether anything improved.
    pub(crate) async fn update_network_state(self: &Arc<Self>, only_firewall: bool) -> bool {
        let (view, was_firewalled) = {
            let mut state = lock(&self.state);
            if !state.ephemeral || (only_firewall && !state.firewalled) {
                return false;
            }
            let view = state.nat.view();
            if !only_firewall {
                state.stable_ticks = MORE_STABLE_TICKS;
                state.checked_host = view.host();
            }
            (view, state.firewalled)
        };
        let NatView::Consistent(address) = view else { return false };
        let probed = if was_firewalled {
            match self.probe_firewall(address).await {
                Some(sampler) => Some(sampler),
                None => return false,
            }
        } else {
            None
        };
        let mut state = lock(&self.state);
        state.firewalled = false;
        if !state.ephemeral || state.nat.view() != view {
            return false;
        }
        if let Some(sampler) = probed {
            state.nat = sampler;
            state.ephemeral_samples.clear();
        }
        let NatView::Consistent(address) = state.nat.view() else { return false };
        if !only_firewall {
            state.ephemeral = false;
        }
        let id = node_id(address);
        let is_new = state.table.id() != id;
        if is_new {
            state.table.rekey(id);
        }
        let (bootstrapped, ephemeral) = (state.bootstrapped, state.ephemeral);
        drop(state);
        tracing::debug!(%address, ephemeral, "others reach us");
        self.network_changes.send_modify(|changes| *changes += 1);
        if is_new && bootstrapped {
            self.refresh();
        }
        true
    }

    /// Asks several nodes to answer to our server socket. `None` while firewalled; else what they
    /// saw, which agrees with `address`' host and our server socket's port.
    async fn probe_firewall(self: &Arc<Self>, address: SocketAddrV4) -> Option<NatSampler> {
        let mut nodes: Vec<SocketAddrV4> = {
            let state = lock(&self.state);
            let latest = state.table.oldest_first().into_iter().rev();
            latest.take(PROBES).map(|node| node.address).collect()
        };
        if nodes.len() < PROBES {
            nodes.extend(self.resolve_bootstrap().await);
        }
        nodes.sort_unstable();
        nodes.dedup();
        if nodes.is_empty() {
            return None;
        }
        let needed = if nodes.len() >= PROBES { 3 } else { 1 };
        let mut requests = JoinSet::new();
        for node in nodes {
            let rpc = Arc::clone(self);
            requests.spawn_task(async move {
                let call = Call::internal(PING_NAT, Some(rpc.server_port_value()));
                rpc.request(node.into(), call, Attempts::default()).await
            });
        }
        let mut sampler = NatSampler::default();
        let mut hosts: HashSet<IpAddr> = HashSet::new();
        let mut arrived = 0;
        while let Some(outcome) = requests.join_next().await {
            if let Some((reply, to)) = outcome.ok().and_then(Result::ok).and_then(on_server_socket)
            {
                hosts.insert(reply.from.ip());
                sampler.add(to);
                arrived += 1;
            }
        }
        let port = self.io.server.local_addr().port();
        match sampler.view() {
            NatView::Consistent(seen)
                if arrived >= needed && seen.ip() == address.ip() && seen.port() == port =>
            {
                tracing::debug!(
                    nodes = arrived,
                    hosts = hosts.len(),
                    "nodes reach our server socket"
                );
                Some(sampler)
            }
            _ => None,
        }
    }

    /// Our server socket's port, as PING_NAT wants it.
    fn server_port_value(&self) -> Bytes {
        Bytes::copy_from_slice(&self.io.server.local_addr().port().to_le_bytes())
    }
}

fn on_server_socket(reply: Reply) -> Option<(Reply, SocketAddrV4)> {
    let to = reply.to?;
    (reply.socket == SocketKind::Server).then_some((reply, to))
}

#[cfg(test)]
mod tests {
    use crate::hyperdht::rpc::Rpc;
    use crate::hyperdht::rpc::message::node_id;
    use crate::hyperdht::rpc::table::K;
    use crate::hyperdht::{DhtOptions, HyperDht, Testnet, Tuning};
    use crate::sync::lock;
    use std::net::SocketAddr;
    use std::sync::Arc;

    async fn node(testnet: &Testnet, options: DhtOptions) -> (HyperDht, Arc<Rpc>) {
        let node =
            HyperDht::bind(DhtOptions { bootstrap: testnet.bootstrap(), ..options }).unwrap();
        node.bootstrapped().await;
        let rpc = node.rpc();
        (node, rpc)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stable_reachable_node_becomes_persistent_under_the_id_of_its_address() {
        let testnet = Testnet::start(6).await.unwrap();
        let (node, rpc) = node(&testnet, testnet.options()).await;
        assert_eq!(rpc.id(), None);
        assert!(rpc.update_network_state(false).await);
        let SocketAddr::V4(address) = node.local_addr() else { unreachable!() };
        assert_eq!(rpc.id(), Some(node_id(address)));
        assert!(!node.status().ephemeral);
        node.close().await;
        testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_was_told_to_stay_ephemeral_stays_so_after_its_stable_time() {
        let testnet = Testnet::start(6).await.unwrap();
        let options = DhtOptions { ephemeral: Some(true), ..testnet.options() };
        let (node, rpc) = node(&testnet, options).await;
        lock(&rpc.state).stable_ticks = 1;
        rpc.on_tick(false);
        assert_eq!(rpc.id(), None);
        node.close().await;
        testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn after_sleep_a_node_starts_over_as_ephemeral() {
        let testnet = Testnet::start(6).await.unwrap();
        let (node, rpc) = node(&testnet, testnet.options()).await;
        assert!(rpc.update_network_state(false).await);
        for tick in 0..8 {
            lock(&rpc.state).tick = tick;
            rpc.on_tick(true);
            assert_eq!(rpc.id(), None);
        }
        node.close().await;
        testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_every_bootstrap_node_dead_a_node_comes_up_by_the_nodes_of_its_last_run() {
        let testnet = Testnet::start(6).await.unwrap();
        let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let silent = format!("127.0.0.1:{}", dead.local_addr().unwrap().port());
        let options = |cached_nodes| DhtOptions {
            bootstrap: vec![silent.parse().unwrap(), "nowhere.invalid:1".parse().unwrap()],
            host: [127, 0, 0, 1].into(),
            port: 0,
            cached_nodes,
            ..DhtOptions::default()
        };
        let known = testnet.nodes()[1..].iter().map(HyperDht::local_addr).collect();
        let server = HyperDht::bind(options(known)).unwrap();
        let client = HyperDht::bind(options(vec![testnet.nodes()[2].local_addr()])).unwrap();
        let keys = crate::crypto::KeyPair::generate();
        let listening = server.listen(&keys, Arc::new(|_, _| true)).unwrap();
        let connect = async {
            listening.announced().await;
            client.connect(&keys.public_key(), Default::default()).await.unwrap();
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), connect).await.unwrap();
        assert!(client.status().nodes > 1);
        client.close().await;
        server.close().await;
        testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shorter_timeout_gives_a_silent_network_up_sooner() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = silent.local_addr().unwrap() else { unreachable!() };
        let begun = std::time::Instant::now();
        let node = HyperDht::bind(DhtOptions {
            bootstrap: vec![address.into()],
            host: [127, 0, 0, 1].into(),
            port: 0,
            tuning: Tuning {
                request_timeout: std::time::Duration::from_millis(50),
                ..Tuning::default()
            },
            ..DhtOptions::default()
        })
        .unwrap();
        node.bootstrapped().await;
        // With the default it takes 6 s.
        assert!(begun.elapsed() < std::time::Duration::from_secs(3), "{:?}", begun.elapsed());
        node.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_is_direct_only_knows_nobody_and_is_ready() {
        let testnet = Testnet::start(3).await.unwrap();
        let cached_nodes = vec![testnet.nodes()[0].local_addr()];
        let options = DhtOptions { direct_only: true, cached_nodes, ..testnet.options() };
        let (node, rpc) = node(&testnet, options).await;
        rpc.ping(testnet.nodes()[1].local_addr()).await.unwrap();
        assert_eq!(node.status().nodes, 0);
        assert!(node.find_peer(&node.key_pair().public_key()).await.is_empty());
        node.close().await;
        testnet.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_bootstrap_nodes_a_node_is_ready_at_once_and_alone() {
        let options = DhtOptions {
            bootstrap: Vec::new(),
            host: [127, 0, 0, 1].into(),
            port: 0,
            ..DhtOptions::default()
        };
        let node = HyperDht::bind(options).unwrap();
        node.bootstrapped().await;
        let status = node.status();
        assert!(status.firewalled && status.ephemeral && status.nodes == 0);
        assert!(lock(&node.rpc().state).table.closest(&[0; 32], K).is_empty());
        node.close().await;
    }
}
