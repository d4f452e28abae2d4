//! Keeping a server announced: at three nodes close to its key, which pass handshakes on to it
//! (`hyperdht` `lib/announcer.js`).
//!
//! A node that takes an announcement and then does not pass a handshake on is none of these, and the next
//! closest is asked instead: where some nodes lie, all three might otherwise.
//!
//! The nodes are pinged every 3 s. That keeps a NAT's mapping towards them alive, and shows when one
//! of them is gone or sees us at another address; then, and every 5 minutes, we announce anew.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::messages::commands;
use super::messages::handshake::{Handshake, RelayInfo};
use super::messages::records::Announce;
use super::node::Inner;
use super::rpc::io::{Attempts, Reply};
use super::rpc::message::NodeId;
use super::rpc::query::{Query, QueryOptions};
use super::rpc::{Call, Rpc};
use crate::crypto::{self, KeyPair};
use crate::sync::lock;
use crate::tasks::Spawn;

/// Nodes that pass handshakes on to a server.
const RELAYS: usize = 3;
/// Nodes that are asked to be one, closest first.
const MAX_ASKED: usize = 4 * RELAYS;
/// Relays of earlier rounds that still count: those of two rounds.
const FORMER_RELAYS: usize = 2 * RELAYS;
/// How long a node may take before the next closest is asked beside it, here and when connecting.
pub(super) const PROMPT: Duration = Duration::from_millis(500);
/// Bytes of a handshake that we send to ourselves: as many as a client's has.
const PROBE_SIZE: usize = 160;
/// How often it is sent again.
const PROBE_RETRIES: u32 = 2;
/// How often they are pinged.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// After how many pings a server announces itself anew: about 5 minutes.
const PINGS: usize = 100;
/// The longest pause while no node took the announcement.
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How long changes of our address may pile up before they are acted on.
const SETTLE: Duration = Duration::from_millis(50);
/// How long unannouncing may take when a server closes.
const UNANNOUNCE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a relay's answer to a ping says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    There,
    Elsewhere,
    Silent,
}

#[derive(Debug, Default)]
struct State {
    relays: Vec<RelayInfo>,
    /// Other nodes that may have our announcement: those asked in a round that is not over, and former
    /// relays that were not told yet.
    loose: HashSet<SocketAddrV4>,
    /// What clients are told to try first next time.
    relay_addresses: Vec<SocketAddrV4>,
    closest: Vec<SocketAddrV4>,
    /// The relays of the rounds before: clients still come through them.
    former: VecDeque<SocketAddrV4>,
}

/// One server's announcements.
#[derive(Debug)]
pub(crate) struct Announcer {
    keys: KeyPair,
    target: NodeId,
    state: Mutex<State>,
    /// Held while rounds are made.
    running: tokio::sync::Mutex<()>,
    /// Announcements under way.
    commits: TaskTracker,
    /// Handshakes that we sent to ourselves, and who waits for each.
    probes: Mutex<HashMap<Probe, oneshot::Sender<()>>>,
    /// Counts finished rounds.
    rounds: watch::Sender<u64>,
}

type Probe = [u8; PROBE_SIZE];

impl Announcer {
    pub(crate) fn new(keys: KeyPair, target: NodeId) -> Self {
        let (state, running, commits, probes) = Default::default();
        Self { keys, target, state, running, commits, probes, rounds: watch::Sender::new(0) }
    }

    /// The nodes that pass handshakes on, and where they see us.
    pub(crate) fn relays(&self) -> Vec<RelayInfo> {
        lock(&self.state).relays.clone()
    }

    /// Addresses to tell others, at which a handshake reaches us or is passed on.
    pub(crate) fn relay_addresses(&self) -> Vec<SocketAddrV4> {
        lock(&self.state).relay_addresses.clone()
    }

    /// Whether we announced ourselves at `node`, now or shortly before.
    pub(crate) fn is_relay(&self, node: SocketAddr) -> bool {
        let state = lock(&self.state);
        let current = state.relays.iter().map(|relay| relay.relay_address);
        current.chain(state.former.iter().copied()).any(|relay| SocketAddr::V4(relay) == node)
    }

    /// Waits until the first round is over, whether or not a node took the announcement.
    pub(crate) async fn announced(&self) {
        // The sender lives as long as we do.
        let _ = self.rounds.subscribe().wait_for(|rounds| *rounds > 0).await;
    }

    /// Takes a handshake that we sent to ourselves.
    pub(crate) fn is_probe(&self, noise: &[u8]) -> bool {
        let Some(waiting) =
            noise.try_into().ok().and_then(|probe: Probe| lock(&self.probes).remove(&probe))
        else {
            return false;
        };
        let _ = waiting.send(());
        true
    }

    /// Announces until cancelled.
    pub(crate) async fn run(self: &Arc<Self>, inner: &Arc<Inner>) {
        let _running = self.running.lock().await;
        if inner.rpc.options.direct_only {
            self.rounds.send_modify(|rounds| *rounds += 1);
            return std::future::pending().await;
        }
        let mut changes = inner.rpc.network_changes.subscribe();
        let mut retry = PING_INTERVAL;
        loop {
            changes.mark_unchanged();
            self.announce(&inner.rpc).await;
            self.rounds.send_modify(|rounds| *rounds += 1);
            if lock(&self.state).relays.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(retry) => {}
                    _ = changes.changed() => tokio::time::sleep(SETTLE).await,
                }
                retry = (retry * 2).min(MAX_RETRY);
                continue;
            }
            retry = PING_INTERVAL;
            for _ in 0..PINGS {
                tokio::select! {
                    () = tokio::time::sleep(PING_INTERVAL) => {}
                    _ = changes.changed() => {
                        tokio::time::sleep(SETTLE).await;
                        break;
                    }
                }
                if !self.ping_relays(&inner.rpc).await {
                    break;
                }
            }
        }
    }

    /// Whether all relays answer and see us where they did.
    async fn ping_relays(&self, rpc: &Arc<Rpc>) -> bool {
        let mut pings = JoinSet::new();
        let relays = self.relays();
        // One that lies must not make us dial everybody.
        let witnesses = relays.len().min(2);
        for relay in relays {
            let rpc = Arc::clone(rpc);
            pings.spawn_task(async move {
                match rpc.ping(relay.relay_address.into()).await {
                    Ok(Some(seen)) if seen != relay.peer_address => {
                        tracing::debug!(was = %relay.peer_address, is = %seen, "our address drifted");
                        Seen::Elsewhere
                    }
                    Ok(_) => Seen::There,
                    Err(_) => Seen::Silent,
                }
            });
        }
        let (mut all_well, mut elsewhere) = (true, 0);
        while let Some(outcome) = pings.join_next().await {
            let seen = outcome.unwrap_or(Seen::Silent);
            all_well &= seen == Seen::There;
            elsewhere += usize::from(seen == Seen::Elsewhere);
        }
        if elsewhere > 0 && elsewhere >= witnesses {
            rpc.network_changes.send_modify(|changes| *changes += 1);
        }
        all_well
    }

    /// One round: find the closest nodes, announce at the best three, leave the others.
    async fn announce(self: &Arc<Self>, rpc: &Arc<Rpc>) {
        let nodes = lock(&self.state).closest.clone();
        let call = Call::new(commands::FIND_PEER, None, None);
        let options = QueryOptions { nodes, ..QueryOptions::default() };
        let replies = Query::new(Arc::clone(rpc), self.target, call, options).finish().await;

        let mut candidates = replies.iter().take(MAX_ASKED);
        let mut relays: Vec<RelayInfo> = Vec::new();
        let mut commits = JoinSet::new();
        // One that is silent must not hold up the others.
        let mut late = 0;
        loop {
            while relays.len() + commits.len() < RELAYS + late {
                let Some(reply) = candidates.next() else { break };
                lock(&self.state).loose.extend(v4(reply.from));
                let (announcer, rpc, reply) =
                    (Arc::clone(self), Arc::clone(rpc), Arc::clone(reply));
                let commits_of = &self.commits;
                commits.spawn_task(commits_of.track_future(async move {
                    let (keys, target) = (&announcer.keys, announcer.target);
                    let relay = commit(&rpc, keys, target, Vec::new(), &reply).await?;
                    announcer.is_passed_on(&rpc, reply.from).await.then_some(relay)
                }));
            }
            match tokio::time::timeout(PROMPT, commits.join_next()).await {
                Ok(None) => break,
                Ok(Some(outcome)) => {
                    relays.extend(outcome.ok().flatten());
                    late = late.min(commits.len());
                }
                Err(_) => late = commits.len(),
            }
            if relays.len() >= RELAYS {
                break;
            }
        }
        drop(commits);
        let mut relay_addresses: Vec<SocketAddrV4> = rpc.remote_address().into_iter().collect();
        relay_addresses.extend(relays.iter().map(|relay| relay.relay_address));
        relay_addresses.truncate(RELAYS);
        tracing::debug!(relays = relays.len(), "announced a server");

        let kept: HashSet<SocketAddrV4> = relays.iter().map(|relay| relay.relay_address).collect();
        let closest = replies.iter().filter_map(|reply| v4(reply.from)).collect();
        let loose: Vec<SocketAddrV4> = {
            let mut state = lock(&self.state);
            let before = std::mem::replace(&mut state.relays, relays);
            let before = before.into_iter().map(|relay| relay.relay_address);
            before.for_each(|relay| {
                state.former.push_back(relay);
                state.loose.insert(relay);
            });
            let excess = state.former.len().saturating_sub(FORMER_RELAYS);
            state.former.drain(..excess);
            (state.relay_addresses, state.closest) = (relay_addresses, closest);
            state.loose.retain(|address| !kept.contains(address));
            state.loose.iter().copied().collect()
        };
        self.unannounce(rpc, loose).await;
        lock(&self.state).loose.clear();
    }

    /// Whether `node` passes a handshake on to us. To it, ours is one like any other.
    async fn is_passed_on(&self, rpc: &Rpc, node: SocketAddr) -> bool {
        let probe: Probe = crypto::random();
        let (arrived, waiting) = oneshot::channel();
        lock(&self.probes).insert(probe, arrived);
        let _forget = Forget { announcer: self, probe };
        let value = Some(Handshake::from_client(probe.to_vec()).encode().into());
        let call = Call::new(commands::PEER_HANDSHAKE, Some(self.target), value);
        // Only one that does not know us answers.
        tokio::select! {
            arrived = waiting => arrived.is_ok(),
            _ = rpc.request(node, call, Attempts { retries: PROBE_RETRIES }) => false,
        }
    }

    /// Takes the announcement back from all nodes that have it, for at most 2 s. [`Announcer::run`] has to
    /// be cancelled: it may be in the middle of a step still.
    pub(crate) async fn stop(&self, rpc: &Arc<Rpc>) {
        let _over = self.running.lock().await;
        // One that was broken off may be about to send still.
        self.commits.close();
        self.commits.wait().await;
        let state = std::mem::take(&mut *lock(&self.state));
        let relays = state.relays.into_iter().map(|relay| relay.relay_address);
        // Those of a round that was broken off may have it, too.
        let relays: HashSet<SocketAddrV4> = relays.chain(state.loose).collect();
        let relays = relays.into_iter().collect();
        // What could not be taken back ends by itself after 20 minutes.
        let _ = tokio::time::timeout(UNANNOUNCE_TIMEOUT, self.unannounce(rpc, relays)).await;
    }

    async fn unannounce(&self, rpc: &Arc<Rpc>, nodes: Vec<SocketAddrV4>) {
        let mut requests = JoinSet::new();
        for node in nodes {
            let rpc = Arc::clone(rpc);
            let (keys, target) = (self.keys.clone(), self.target);
            requests.spawn_task(async move {
                let find = Call::new(commands::FIND_PEER, Some(target), None);
                let Ok(reply) = rpc.request(node.into(), find, Attempts::default()).await else {
                    return;
                };
                if reply.value.is_some() {
                    unannounce_at(&rpc, &keys, target, &reply).await;
                }
            });
        }
        while requests.join_next().await.is_some() {}
    }
}

/// Forgets a handshake that nobody waits for any more.
struct Forget<'a> {
    announcer: &'a Announcer,
    probe: Probe,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.announcer.probes).remove(&self.probe);
    }
}

/// Announces at the node that gave `reply`. Returns it as a relay when it accepted.
pub(crate) async fn commit(
    rpc: &Rpc,
    keys: &KeyPair,
    target: NodeId,
    relay_addresses: Vec<SocketAddrV4>,
    reply: &Reply,
) -> Option<RelayInfo> {
    let (id, token) = (reply.id?, reply.token?);
    let announce =
        Announce::signed(commands::ANNOUNCE, keys, relay_addresses, &target, &id, &token);
    let value = Some(announce.encode().into());
    let call = Call::new(commands::ANNOUNCE, Some(target), value).with_token(token);
    let answer = rpc.request(reply.from, call, Attempts::default()).await.ok()?;
    if answer.error != 0 {
        return None;
    }
    let peer_address = answer.to.or(reply.to)?;
    Some(RelayInfo { relay_address: v4(reply.from)?, peer_address })
}

/// Takes an announcement back at the node that gave `reply`.
pub(crate) async fn unannounce_at(rpc: &Rpc, keys: &KeyPair, target: NodeId, reply: &Reply) {
    let (Some(id), Some(token)) = (reply.id, reply.token) else { return };
    let unannounce = Announce::signed(commands::UNANNOUNCE, keys, Vec::new(), &target, &id, &token);
    let value = Some(unannounce.encode().into());
    let call = Call::new(commands::UNANNOUNCE, Some(target), value).with_token(token);
    if let Err(error) = rpc.request(reply.from, call, Attempts::default()).await {
        tracing::debug!(node = %reply.from, %error, "an announcement was not taken back");
    }
}

fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(v4) => Some(v4),
        SocketAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use crate::crypto::KeyPair;
    use crate::hyperdht::{HyperDht, Server, Testnet};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_closes_in_the_middle_of_a_round_leaves_no_announcement() {
        let testnet = Testnet::start(8).await.unwrap();
        let (node, other) = (
            HyperDht::bind(testnet.options()).unwrap(),
            HyperDht::bind(testnet.options()).unwrap(),
        );
        node.bootstrapped().await;
        other.bootstrapped().await;
        for round in 0..40 {
            let keys = KeyPair::generate();
            let server = node.listen(&keys, std::sync::Arc::new(|_, _| true)).unwrap();
            // From before the first packet to after the last.
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_micros(50 * round) {
                tokio::task::yield_now().await;
            }
            server.close().await;
            let found = other.find_peer(&keys.public_key()).await;
            assert!(found.is_empty(), "round {round}: {found:?}");
        }
        node.close().await;
        other.close().await;
        testnet.close().await;
    }

    async fn relays_change(server: &Server, gone: SocketAddr) {
        let changed = async {
            while server.addresses().is_empty() || server.addresses().contains(&gone) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), changed).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_leaves_a_relay_that_went_away() {
        let testnet = Testnet::start(8).await.unwrap();
        let node = HyperDht::bind(testnet.options()).unwrap();
        node.bootstrapped().await;
        let server = node.listen(&KeyPair::generate(), std::sync::Arc::new(|_, _| true)).unwrap();
        server.announced().await;
        let relay = server.shared.announcer.relays()[0].relay_address.into();
        let gone = testnet.nodes().iter().find(|node| node.local_addr() == relay).unwrap();
        gone.close().await;
        relays_change(&server, relay).await;
        node.close().await;
        testnet.close().await;
    }
}
