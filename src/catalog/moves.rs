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
use super::feeds::{share, signed_by};
use super::own::Live;
use super::{CatalogError, Inner};
use crate::crypto::PublicKey;
use crate::events::EventKind;
use crate::hypercore::{Core, OpenOptions};
use crate::sync::lock;
use crate::time::{now_ms, rfc3339};

const TYPE: &str = "feed-moved";
/// How often a new feed that does not come is thought about.
const TICK: Duration = Duration::from_secs(2);
/// How long connected peers are given to hear of a new feed, and how often they are looked at.
const HEAR: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);
/// How many feeds that were left are remembered, so that two that name each other are not followed around.
const MAX_LEFT: usize = 1024;

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

/// New feeds that are being fetched.
#[derive(Default)]
pub(super) struct Moves {
    pending: Mutex<HashMap<[u8; 32], Pending>>,
    left: Mutex<HashSet<[u8; 32]>>,
}

struct Pending {
    stop: CancellationToken,
    done: JoinHandle<()>,
}

impl Moves {
    /// Lets go of a new feed, so that somebody else may open it.
    pub(super) async fn stop(&self, key: &[u8; 32]) {
        let pending = lock(&self.pending).remove(key);
        if let Some(Pending { stop, done }) = pending {
            stop.cancel();
            // A panic was reported where it happened.
            let _ = done.await;
        }
    }

    /// Lets go of all of them.
    pub(super) async fn close(&self) {
        let keys: Vec<_> = lock(&self.pending).keys().copied().collect();
        for key in keys {
            self.stop(&key).await;
        }
    }

    fn leave(&self, key: [u8; 32]) {
        let mut left = lock(&self.left);
        if left.len() >= MAX_LEFT {
            left.clear();
        }
        left.insert(key);
    }
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
    let mut pending = lock(&moves.pending);
    if inner.cancel.is_cancelled()
        || pending.contains_key(&key)
        || lock(&moves.left).contains(&key)
        || key == *old.key()
        || key == inner.own.current().key
        || inner.peers.holder(&key).is_some()
    {
        return;
    }
    let stop = inner.cancel.child_token();
    let done = crate::tasks::spawn(fetch(catalog.clone(), peer, *old.key(), key, stop.clone()));
    pending.insert(key, Pending { stop, done });
}

/// Fetches a new feed, and follows it as the peer's once it is here.
async fn fetch(
    catalog: Weak<Inner>,
    peer: PublicKey,
    old: [u8; 32],
    key: [u8; 32],
    stop: CancellationToken,
) {
    let Some(inner) = catalog.upgrade() else { return };
    let core = match Core::open(&*inner.options.storage, key, OpenOptions::default()) {
        Ok(core) => core,
        Err(error) => {
            tracing::warn!(peer = peer.short(), %error, "a peer's new feed does not open");
            return;
        }
    };
    let handle = share(&inner.options, peer, &core);
    drop(inner);
    let is_here = stop.run_until_cancelled(arrival(&catalog, peer, old, &core)).await;
    handle.close();
    if let Err(error) = core.close().await {
        tracing::warn!(%error, "a peer's new feed did not close cleanly");
    }
    let Some(inner) = catalog.upgrade() else { return };
    if is_here != Some(true) {
        return;
    }
    inner.moves.leave(old);
    if let Err(error) = inner.peers.set(&inner.options, peer, key).await {
        tracing::warn!(peer = peer.short(), %error, "a peer's new feed is not followed");
    }
    lock(&inner.moves.pending).remove(&key);
}

/// Waits until all of a feed is here. False when it is not the peer's, or the old one is not followed any
/// more.
async fn arrival(catalog: &Weak<Inner>, peer: PublicKey, old: [u8; 32], core: &Core) -> bool {
    let mut changes = core.subscribe();
    loop {
        let state = *changes.borrow_and_update();
        if state.has_manifest && !signed_by(core, &peer) {
            tracing::warn!(
                peer = peer.short(),
                "a peer's feed names one that another server signs"
            );
            return false;
        }
        if state.length > 0 && state.contiguous_length == state.length {
            return true;
        }
        if state.closed || catalog.upgrade().is_none_or(|i| i.peers.core(&peer, &old).is_none()) {
            return false;
        }
        let _ = tokio::time::timeout(TICK, changes.changed()).await;
    }
}

/// Says in an own feed where the catalog goes on, and gives connected peers a moment to hear it.
pub(super) async fn announce(live: &Live, key: &[u8; 32]) -> Result<(), CatalogError> {
    let length = live.core.append(vec![encode(key)]).await?;
    live.replay.catch_up().await?;
    let heard = async {
        while live.handle.peers().iter().any(|peer| peer.remote_contiguous_length < length) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(HEAR, heard).await.is_err() {
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
