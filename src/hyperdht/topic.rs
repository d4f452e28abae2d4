//! Announcements under any target, and taking part in a topic as npm `hyperswarm` does
//! (`lib/peer-discovery.js`).

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::announcer::{commit, unannounce_at};
use super::error::AnnounceError;
use super::messages::commands;
use super::messages::records::{LookupReply, PeerRecord};
use super::node::{Handle, HyperDht, Inner};
use super::options::JoinOptions;
use super::rpc::io::Reply;
use super::rpc::maintain::random_below;
use super::rpc::message::NodeId;
use super::rpc::query::{Query, QueryOptions};
use super::rpc::{Call, Rpc};
use crate::crypto::{KeyPair, PublicKey};
use crate::tasks::Spawn;

/// How often a topic is announced and looked up, and how much later at random.
const REFRESH: Duration = Duration::from_secs(10 * 60);
const JITTER: Duration = Duration::from_secs(2 * 60);
/// How soon a lookup is repeated that no node answered.
const RETRY: Duration = Duration::from_secs(15);
/// Different peers of one lookup.
const MAX_FOUND: usize = 1024;
/// Found peers that wait for [`Topic::next`]; more are dropped, and found again later.
const MAX_WAITING: usize = 256;
/// Relays of one found peer.
const MAX_RELAYS: usize = 8;
/// How long taking an announcement back may take.
const UNANNOUNCE_TIMEOUT: Duration = Duration::from_secs(2);

/// A peer that announced itself under a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Its key, as it claims: a connection proves it.
    pub public_key: PublicKey,
    /// Nodes that pass a handshake on to it, for [`super::ConnectOptions::addresses`].
    pub addresses: Vec<SocketAddr>,
}

impl From<PeerRecord> for Announcement {
    fn from(record: PeerRecord) -> Self {
        let addresses = record.relay_addresses.into_iter().filter(|address| address.port() != 0);
        let addresses = addresses.take(MAX_RELAYS).map(SocketAddr::V4).collect();
        Self { public_key: record.public_key, addresses }
    }
}

impl HyperDht {
    /// Everybody who announced themselves under `topic`. Cancel safe.
    pub async fn lookup(&self, topic: &[u8; 32]) -> Vec<Announcement> {
        lookup(&self.inner().rpc, *topic).await
    }

    /// Announces `keys` under `topic` for 20 minutes, with at most 3 nodes that pass handshakes on
    /// ([`super::Server::addresses`]). Returns how many nodes took it.
    ///
    /// # Errors
    /// When no node took it.
    pub async fn announce(
        &self,
        topic: &[u8; 32],
        keys: &KeyPair,
        addresses: &[SocketAddr],
    ) -> Result<usize, AnnounceError> {
        let relays: Vec<SocketAddrV4> = addresses
            .iter()
            .filter_map(|address| match address {
                SocketAddr::V4(v4) => Some(*v4),
                SocketAddr::V6(_) => None,
            })
            .take(3)
            .collect();
        announce(&self.inner().rpc, *topic, keys, &relays).await
    }

    /// Takes the announcement of `keys` under `topic` back.
    pub async fn unannounce(&self, topic: &[u8; 32], keys: &KeyPair) {
        unannounce(&self.inner().rpc, *topic, keys).await;
    }

    /// Takes part in a topic until the returned [`Topic`] is closed or dropped.
    #[must_use]
    pub fn join(&self, topic: &[u8; 32], options: JoinOptions) -> Topic {
        Topic::join(self.handle(), *topic, options)
    }
}

/// One round over the nodes closest to a topic.
struct Round {
    /// The replies of the closest nodes, with tokens.
    closest: Vec<Arc<Reply>>,
    found: HashMap<PublicKey, Announcement>,
}

/// Asks for everybody under `target`; `on_found` hears of each key once, as soon as a node names it.
async fn look_up(
    rpc: &Arc<Rpc>,
    target: NodeId,
    nodes: Vec<SocketAddrV4>,
    mut on_found: impl FnMut(&Announcement),
) -> Round {
    let call = Call::new(commands::LOOKUP, None, None);
    let options = QueryOptions { nodes, ..QueryOptions::default() };
    let mut query = Query::new(Arc::clone(rpc), target, call, options);
    let mut found: HashMap<PublicKey, Announcement> = HashMap::new();
    while let Some(reply) = query.next().await {
        let Some(value) = &reply.value else { continue };
        let Ok(reply) = LookupReply::decode(value) else { continue };
        for record in reply.peers {
            if found.len() >= MAX_FOUND || found.contains_key(&record.public_key) {
                continue;
            }
            let announcement = Announcement::from(record);
            on_found(&announcement);
            found.insert(announcement.public_key, announcement);
        }
    }
    Round { closest: query.into_closest(), found }
}

/// Everybody announced under `target`.
pub(crate) async fn lookup(rpc: &Arc<Rpc>, target: NodeId) -> Vec<Announcement> {
    look_up(rpc, target, Vec::new(), |_| {}).await.found.into_values().collect()
}

/// Announces `keys` under `target` at the closest nodes. Returns how many took it.
pub(crate) async fn announce(
    rpc: &Arc<Rpc>,
    target: NodeId,
    keys: &KeyPair,
    relay_addresses: &[SocketAddrV4],
) -> Result<usize, AnnounceError> {
    let round = look_up(rpc, target, Vec::new(), |_| {}).await;
    announce_at(rpc, target, keys, relay_addresses, &round.closest).await
}

async fn announce_at(
    rpc: &Arc<Rpc>,
    target: NodeId,
    keys: &KeyPair,
    relay_addresses: &[SocketAddrV4],
    closest: &[Arc<Reply>],
) -> Result<usize, AnnounceError> {
    let mut commits = JoinSet::new();
    for reply in closest {
        let (rpc, reply, keys) = (Arc::clone(rpc), Arc::clone(reply), keys.clone());
        let relays = relay_addresses.to_vec();
        commits
            .spawn_task(async move { commit(&rpc, &keys, target, relays, &reply).await.is_some() });
    }
    let mut accepted = 0;
    while let Some(outcome) = commits.join_next().await {
        accepted += usize::from(outcome.unwrap_or(false));
    }
    match accepted {
        0 if rpc.cancel.is_cancelled() => Err(AnnounceError::Closed),
        0 => Err(AnnounceError::NoNodes),
        accepted => Ok(accepted),
    }
}

/// Takes the announcement of `keys` under `target` back where it is found.
pub(crate) async fn unannounce(rpc: &Arc<Rpc>, target: NodeId, keys: &KeyPair) {
    let round = look_up(rpc, target, Vec::new(), |_| {}).await;
    unannounce_all(rpc, target, keys, &round.closest).await;
}

async fn unannounce_all(rpc: &Arc<Rpc>, target: NodeId, keys: &KeyPair, closest: &[Arc<Reply>]) {
    let key = keys.public_key();
    let mut requests = JoinSet::new();
    for reply in closest {
        let named = reply.value.as_deref().and_then(|value| LookupReply::decode(value).ok());
        // A node names 20 peers: we may be the one it left out.
        let may_know = named.is_some_and(|named| {
            named.peers.len() >= 20 || named.peers.iter().any(|peer| peer.public_key == key)
        });
        if may_know {
            let (rpc, reply, keys) = (Arc::clone(rpc), Arc::clone(reply), keys.clone());
            requests.spawn_task(async move { unannounce_at(&rpc, &keys, target, &reply).await });
        }
    }
    while requests.join_next().await.is_some() {}
}

/// Taking part in a topic, until closed or dropped.
pub struct Topic {
    topic: NodeId,
    found: mpsc::Receiver<Announcement>,
    rounds: watch::Receiver<u64>,
    refresh: mpsc::Sender<()>,
    cancel: CancellationToken,
    announce: Option<KeyPair>,
    node: Arc<Handle>,
}

impl Topic {
    pub(crate) fn join(node: Arc<Handle>, topic: NodeId, options: JoinOptions) -> Self {
        let (sender, found) = mpsc::channel(MAX_WAITING);
        let (round, rounds) = watch::channel(0);
        let (refresh, refreshes) = mpsc::channel(1);
        let cancel = node.inner.rpc.cancel.child_token();
        let driver = Driver {
            inner: Arc::clone(&node.inner),
            topic,
            options: options.clone(),
            found: sender,
            round,
            refreshes,
        };
        let cancelled = cancel.clone();
        node.inner.rpc.tasks.spawn_task(async move {
            tokio::select! {
                () = cancelled.cancelled() => {}
                () = driver.run() => {}
            }
        });
        Self { topic, found, rounds, refresh, cancel, announce: options.announce, node }
    }

    /// The next peer of a lookup; the same peer comes again with every round in which it is found.
    /// `None` once the topic or its node is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Announcement> {
        tokio::select! {
            () = self.cancel.cancelled() => None,
            found = self.found.recv() => found,
        }
    }

    /// Waits until the first round is over: announced, and looked up once. Cancel safe.
    pub async fn flushed(&mut self) {
        // An error means that the node was closed: there is nothing to wait for.
        let _ = self.rounds.wait_for(|rounds| *rounds > 0).await;
    }

    /// Announces and looks up now instead of at the next turn.
    pub fn refresh(&self) {
        // One that waits already will do.
        let _ = self.refresh.try_send(());
    }

    /// Leaves the topic, and takes the announcement back (for at most 2 s).
    pub async fn close(self) {
        self.cancel.cancel();
        if let Some(keys) = &self.announce {
            let work = unannounce(&self.node.inner.rpc, self.topic, keys);
            // What could not be taken back ends by itself after 20 minutes.
            let _ = tokio::time::timeout(UNANNOUNCE_TIMEOUT, work).await;
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

struct Driver {
    inner: Arc<Inner>,
    topic: NodeId,
    options: JoinOptions,
    found: mpsc::Sender<Announcement>,
    round: watch::Sender<u64>,
    refreshes: mpsc::Receiver<()>,
}

impl Driver {
    async fn run(mut self) {
        let mut nodes = Vec::new();
        let own = self.options.announce.as_ref().map(KeyPair::public_key);
        loop {
            let on_found = |announcement: &Announcement| {
                let is_own = own == Some(announcement.public_key);
                if self.options.lookup
                    && !is_own
                    && self.found.try_send(announcement.clone()).is_err()
                {
                    tracing::debug!("a found peer was dropped because nobody takes found peers");
                }
            };
            let round = look_up(&self.inner.rpc, self.topic, nodes, on_found).await;
            nodes = round
                .closest
                .iter()
                .filter_map(|reply| match reply.from {
                    SocketAddr::V4(v4) => Some(v4),
                    SocketAddr::V6(_) => None,
                })
                .collect();
            let mut is_done = !round.closest.is_empty();
            if let Some(keys) = &self.options.announce {
                let relays = self.inner.relay_addresses_of(&keys.public_key()).await;
                let outcome =
                    announce_at(&self.inner.rpc, self.topic, keys, &relays, &round.closest).await;
                is_done &= outcome.is_ok() && !relays.is_empty();
            }
            self.round.send_modify(|rounds| *rounds += 1);
            let jitter = Duration::from_millis(random_below(JITTER.as_millis() as u64));
            let pause = if is_done { REFRESH + jitter } else { RETRY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                refresh = self.refreshes.recv() => if refresh.is_none() { return },
            }
        }
    }
}
