//! Where a catalog goes on: the last entry of a feed that was left names the new feed.
//!
//! `{"type":"feed-moved","key","movedAt"}` is signed as every entry is, so also a reader that has the old
//! feed from others learns of the new one. Until that is here entirely, the old catalog is shown.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::entry::{self, Entry};
use super::feeds::{is_damage, share, signed_by};
use super::own::Live;
use super::{CatalogError, Inner};
use crate::crypto::{PublicKey, discovery_key};
use crate::events::EventKind;
use crate::hypercore::replicator::CoreHandle;
use crate::hypercore::{Core, CoreError, OpenOptions};
use crate::sync::lock;
use crate::time::{now_ms, rfc3339};

const TYPE: &str = "feed-moved";
/// How long a new feed rests that could not be opened or stored, doubled each time up to the second.
const RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(5 * 60);
/// How long connected peers are given to hear of a new feed.
const HEAR: Duration = Duration::from_secs(2);
/// How many feeds that were left are remembered, so that two that name each other are not followed around,
/// and how many that were refused.
const MAX_REMEMBERED: usize = 1024;

#[derive(Deserialize)]
struct Fields {
    r#type: String,
    key: String,
}

/// The entry that names the feed `key`.
pub(super) fn encode(key: &[u8; 32]) -> Bytes {
    let key = PublicKey::from_bytes(*key).to_z32();
    let entry = serde_json::json!({ "type": TYPE, "key": key, "movedAt": rfc3339(now_ms()) });
    entry.to_string().into()
}

/// The feed that an entry names.
pub(super) fn decode(block: &[u8]) -> Option<[u8; 32]> {
    // What is too long or too deep is no entry.
    let Ok(Entry::Unknown) = entry::decode(block) else { return None };
    let fields: Fields = serde_json::from_slice(block).ok()?;
    let key = PublicKey::from_z32(&fields.key).filter(|_| fields.r#type == TYPE)?;
    Some(*key.as_bytes())
}

/// New feeds that are being fetched: of each peer the one that its feed names now.
#[derive(Default)]
pub(super) struct Moves {
    pending: Mutex<HashMap<PublicKey, Pending>>,
    left: Mutex<HashSet<[u8; 32]>>,
    /// Feeds that a peer named and another server signs.
    refused: Mutex<HashSet<(PublicKey, [u8; 32])>>,
}

struct Pending {
    key: [u8; 32],
    stop: CancellationToken,
    done: JoinHandle<()>,
}

impl Moves {
    /// Lets go of a new feed, so that somebody else may open it.
    pub(super) async fn stop(&self, key: &[u8; 32]) {
        ended(self.take(|_, pending| pending.key == *key)).await;
    }

    /// Lets go of all of them.
    pub(super) async fn close(&self) {
        ended(self.take(|_, _| true)).await;
    }

    /// Takes out those that `which` says, and stops them.
    fn take(&self, mut which: impl FnMut(&PublicKey, &mut Pending) -> bool) -> Vec<Pending> {
        let mut pending = lock(&self.pending);
        let taken = pending.extract_if(|peer, pending| which(peer, pending));
        let taken: Vec<_> = taken.map(|(_, pending)| pending).collect();
        taken.iter().for_each(|pending| pending.stop.cancel());
        taken
    }

    /// Forgets one that came to its end.
    fn finish(&self, peer: &PublicKey, stop: &CancellationToken) {
        let mut pending = lock(&self.pending);
        // Stopped, it is out already, and another may be in its place.
        if !stop.is_cancelled() {
            pending.remove(peer);
        }
    }
}

/// Waits until all have let go of their cores.
async fn ended(stopped: Vec<Pending>) {
    for pending in stopped {
        // A panic was reported where it happened.
        let _ = pending.done.await;
    }
}

fn remember<T: std::hash::Hash + Eq>(set: &Mutex<HashSet<T>>, item: T) {
    let mut set = lock(set);
    if set.len() >= MAX_REMEMBERED {
        set.clear();
    }
    set.insert(item);
}

/// Looks at every feed that changes, and at those that are here at the start.
pub(super) async fn follow(catalog: Weak<Inner>) {
    let Some((mut events, cancel, peers)) = catalog.upgrade().map(|inner| {
        (inner.options.events.subscribe(None), inner.cancel.clone(), inner.peers.holders())
    }) else {
        return;
    };
    for peer in peers {
        look_at(&catalog, peer);
    }
    while let Some(Some(event)) = cancel.run_until_cancelled(events.next()).await {
        let EventKind::CatalogUpdated { peer, .. } = &event.kind else { continue };
        if let Some(peer) = PublicKey::from_z32(peer) {
            look_at(&catalog, peer);
        }
    }
}

/// Fetches the feed that the last entry of a peer's feed names, if it names one.
fn look_at(catalog: &Weak<Inner>, peer: PublicKey) {
    let Some(inner) = catalog.upgrade() else { return };
    let Some(old) = inner.peers.core_of(&peer) else { return };
    let state = old.state();
    if state.length == 0 || state.contiguous_length != state.length {
        return;
    }
    let Ok(Some(last)) = old.get(state.length - 1) else { return };
    let Some(key) = decode(&last) else { return };
    let moves = &inner.moves;
    let wanted = Wanted { peer, old: *old.key(), key };
    let is_named = lock(&moves.pending).get(&peer).is_some_and(|pending| pending.key == key);
    if inner.cancel.is_cancelled()
        || is_named
        || lock(&moves.left).contains(&key)
        || lock(&moves.refused).contains(&(peer, key))
        || key == wanted.old
        || key == inner.own.current().key
        || inner.peers.holder(&key).is_some()
    {
        return;
    }
    // What the peer named before does not count any more. And a core is open once: what others have named
    // must not keep this peer from it.
    let before = moves.take(|other, pending| *other == peer || pending.key == key);
    let stop = inner.cancel.child_token();
    let fetching = fetch(catalog.clone(), wanted, stop.clone());
    let catalog = catalog.clone();
    // Held, so that it is in before it can be out again.
    let mut pending = lock(&moves.pending);
    let done = crate::tasks::spawn(async move {
        let others = before.iter().map(|pending| pending.key).filter(|other| *other != key);
        let others: Vec<_> = others.collect();
        ended(before).await;
        for other in others {
            forget(&catalog, &other).await;
        }
        fetching.await;
    });
    pending.insert(peer, Pending { key, stop, done });
}

/// A feed in which a peer's catalog goes on.
#[derive(Clone, Copy)]
struct Wanted {
    peer: PublicKey,
    old: [u8; 32],
    key: [u8; 32],
}

/// What became of a new feed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// All of it is here.
    Whole,
    /// Another server signs it.
    Foreign,
    /// It is of no use any more, or the catalog closes.
    Over,
    /// It could not be opened or stored now.
    Failed,
}

/// Fetches a new feed, and follows it as the peer's once it is here.
async fn fetch(catalog: Weak<Inner>, wanted: Wanted, stop: CancellationToken) {
    let mut rest = RETRY;
    let arrival = loop {
        let arrival = attempt(&catalog, wanted, &stop).await;
        if arrival != Arrival::Failed {
            break arrival;
        }
        if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
            break Arrival::Over;
        }
        rest = (rest * 2).min(LAST_RETRY);
    };
    let Some(inner) = catalog.upgrade() else { return };
    let Wanted { peer, old, key } = wanted;
    match arrival {
        Arrival::Whole => {
            remember(&inner.moves.left, old);
            if let Err(error) = inner.peers.set(&inner.options, peer, key).await {
                tracing::warn!(peer = peer.short(), %error, "a peer's new feed is not followed");
            }
        }
        Arrival::Foreign => {
            tracing::warn!(
                peer = peer.short(),
                "a peer's feed names one that another server signs"
            );
            remember(&inner.moves.refused, (peer, key));
            forget(&catalog, &key).await;
        }
        Arrival::Over | Arrival::Failed => {}
    }
    inner.moves.finish(&peer, &stop);
}

/// Deletes what was fetched of a feed that nobody follows.
async fn forget(catalog: &Weak<Inner>, key: &[u8; 32]) {
    let Some(inner) = catalog.upgrade() else { return };
    if inner.peers.holder(key).is_none()
        && let Err(error) = inner.options.storage.remove(&discovery_key(key)).await
    {
        tracing::warn!(%error, "what was fetched of a new feed was not deleted");
    }
}

/// Fetches a new feed as long as it can be stored.
async fn attempt(catalog: &Weak<Inner>, wanted: Wanted, stop: &CancellationToken) -> Arrival {
    let Some(inner) = catalog.upgrade() else { return Arrival::Over };
    let Wanted { peer, key, .. } = wanted;
    if stop.is_cancelled() || inner.peers.holder(&key).is_some() {
        return Arrival::Over;
    }
    let storage = &inner.options.storage;
    let mut opened = Core::open(&**storage, key, OpenOptions::default());
    if let Err(error) = &opened
        && is_damage(error)
    {
        tracing::warn!(peer = peer.short(), %error, "a peer's new feed is fetched anew");
        if storage.remove(&discovery_key(&key)).await.is_ok() {
            opened = Core::open(&**storage, key, OpenOptions::default());
        }
    }
    let core = match opened {
        Ok(core) => core,
        Err(error) => {
            tracing::warn!(peer = peer.short(), %error, "a peer's new feed does not open");
            return Arrival::Failed;
        }
    };
    let handle = share(&inner.options, peer, &core);
    drop(inner);
    let arrival = tokio::select! {
        arrival = arrival(&handle, &peer) => arrival,
        () = gone(catalog, wanted) => Arrival::Over,
        () = stop.cancelled() => Arrival::Over,
    };
    handle.close();
    if let Err(error) = core.close().await {
        tracing::warn!(%error, "a peer's new feed did not close cleanly");
        return if arrival == Arrival::Whole { Arrival::Failed } else { arrival };
    }
    arrival
}

/// Waits until the feed that was left is not followed any more.
async fn gone(catalog: &Weak<Inner>, Wanted { peer, old, .. }: Wanted) {
    let Some(mut gone) = catalog.upgrade().map(|inner| inner.peers.gone()) else { return };
    loop {
        gone.mark_unchanged();
        let Some(inner) = catalog.upgrade() else { return };
        if !inner.peers.follows(&peer, &old).await {
            return;
        }
        drop(inner);
        if gone.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until all of a feed is here, or it shows that it is not the peer's.
async fn arrival(handle: &CoreHandle, peer: &PublicKey) -> Arrival {
    let core = handle.core();
    let look = || {
        let state = core.state();
        if state.has_manifest && !signed_by(core, peer) {
            return Ok(Some(Arrival::Foreign));
        }
        let is_whole = state.length > 0 && state.contiguous_length == state.length;
        Ok(is_whole.then_some(Arrival::Whole))
    };
    handle.until(look).await.unwrap_or_else(|error| {
        if matches!(error, CoreError::Closed) {
            return Arrival::Over;
        }
        tracing::warn!(peer = peer.short(), %error, "a peer's new feed could not be stored");
        Arrival::Failed
    })
}

/// Says in an own feed where the catalog goes on, and gives connected peers a moment to hear it.
pub(super) async fn announce(live: &Live, key: &[u8; 32]) -> Result<(), CatalogError> {
    let length = live.core.append(vec![encode(key)]).await?;
    live.replay.catch_up().await?;
    let heard = live.handle.until(|| {
        let peers = live.handle.peers();
        Ok(peers.iter().all(|peer| peer.remote_contiguous_length >= length).then_some(()))
    });
    if !matches!(tokio::time::timeout(HEAR, heard).await, Ok(Ok(()))) {
        tracing::debug!("not every peer has heard of the new feed before it begins");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_a_feed() {
        assert_eq!(decode(&encode(&[7; 32])), Some([7; 32]));
        for other in [
            r#"{"type":"book-removed","id":"a"}"#,
            r#"{"type":"feed-moved"}"#,
            r#"{"type":"feed-moved","key":7}"#,
            r#"{"type":"feed-moved","key":"abc"}"#,
            "[]",
        ] {
            assert_eq!(decode(other.as_bytes()), None, "{other}");
        }
    }
}
