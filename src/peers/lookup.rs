//! Reading the list of peers; nothing here waits.

use tokio::sync::watch;
use tokio::time::Instant;

use super::directory::{Entry, Peers, new_peer};
use super::record::{Discovered, Knock, Peer, PeerStatus, Policy};
use super::table::Stored;
use crate::crypto::PublicKey;
use crate::sync::lock;
use crate::time::now_ms;

impl Peers {
    /// The approved and blocked peers, by name. Keys that knocked are in [`Peers::pending`].
    #[must_use]
    pub fn list(&self) -> Vec<Peer> {
        let mut peers: Vec<_> = {
            let state = lock(&self.inner.state);
            state.peers.iter().map(|(key, entry)| shown(key, entry)).collect()
        };
        peers.sort_by_cached_key(|peer| {
            (
                peer.display_name().is_none(),
                peer.display_name().map(str::to_lowercase),
                peer.key.clone(),
            )
        });
        peers
    }

    /// What is known of a key; one that knocked has the status pending.
    #[must_use]
    pub fn get(&self, key: &PublicKey) -> Option<Peer> {
        let state = lock(&self.inner.state);
        if let Some(entry) = state.peers.get(key) {
            return Some(shown(key, entry));
        }
        let knock = state.knocks.get(key)?;
        let stored = Stored { added_at: knock.first_at, ..new_peer(PeerStatus::Pending) };
        Some(shown(key, &Entry::new(stored)))
    }

    /// The keys that tried to connect and wait for a decision, the latest first; at most 256.
    #[must_use]
    pub fn pending(&self) -> Vec<Knock> {
        lock(&self.inner.state).knocks.list()
    }

    /// The keys found on the topic or the network that are no peers, the latest first; at most 256.
    #[must_use]
    pub fn discovered(&self) -> Vec<Discovered> {
        let state = lock(&self.inner.state);
        state.discovered.list(Instant::now(), |key| !state.peers.contains_key(key))
    }

    /// Whether the key may connect.
    #[must_use]
    pub fn is_approved(&self, key: &PublicKey) -> bool {
        let state = lock(&self.inner.state);
        state.peers.get(key).is_some_and(|entry| entry.stored.status == PeerStatus::Approved)
    }

    /// The approved keys.
    #[must_use]
    pub fn approved(&self) -> Vec<PublicKey> {
        let state = lock(&self.inner.state);
        let approved = state.peers.iter().filter(|(_, e)| e.stored.status == PeerStatus::Approved);
        approved.map(|(key, _)| *key).collect()
    }

    /// The policy set for this peer; `None` for the node's own.
    #[must_use]
    pub fn policy(&self, key: &PublicKey) -> Option<Policy> {
        lock(&self.inner.state).peers.get(key)?.stored.policy
    }

    /// The key of the peer's feed, as it said itself when it was last connected.
    #[must_use]
    pub fn feed_key(&self, key: &PublicKey) -> Option<[u8; 32]> {
        lock(&self.inner.state).peers.get(key)?.stored.feed_key
    }

    /// Changes each time somebody is approved, blocked or removed. Read [`Peers::approved`] after it.
    #[must_use]
    pub fn approvals(&self) -> watch::Receiver<u64> {
        self.inner.approvals.subscribe()
    }
}

pub(super) fn shown(key: &PublicKey, entry: &Entry) -> Peer {
    let Entry { stored, addresses, live, problem } = entry;
    let last_seen_at = if live.is_some() { Some(now_ms()) } else { stored.last_seen_at };
    Peer {
        key: key.to_z32(),
        nickname: stored.nickname.clone(),
        name: stored.name.clone(),
        status: stored.status,
        is_online: live.is_some(),
        added_at: stored.added_at,
        last_seen_at,
        policy: stored.policy,
        feed_key: stored.feed_key.map(|key| z32::encode(&key)),
        address: stored.address.clone(),
        addresses: addresses.shown(stored.address.as_deref(), stored.added_at),
        connection: live.as_ref().map(|live| live()),
        problem: problem.clone(),
    }
}
