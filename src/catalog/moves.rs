//! Where a catalog goes on: the last entry of a feed that was left names the new feed.
//!
//! `{"type":"feed-moved","key","movedAt"}` is signed as every entry is, so also a reader that has the old
//! feed from others learns of the new one. Until that is here entirely, the old catalog is shown. The new feed
//! has to be the same server's as the old one, which is proven before anything of it is stored.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::claims::{tell_too_long, wait_for_room};
use super::entry::{self, Entry};
use super::feeds::{is_damage, share};
use super::latest::Latest;
use super::own::Live;
use super::proof::{Finding, admits, examine, is_too_long};
use super::{CatalogError, Inner};
use crate::crypto::{PublicKey, discovery_key};
use crate::events::EventKind;
use crate::hypercore::replicator::CoreHandle;
use crate::hypercore::{Core, CoreError, Manifest, OpenOptions};
use crate::sync::lock;
use crate::time::{now_ms, rfc3339};

const TYPE: &str = "feed-moved";
/// How long a new feed rests that could not be opened or stored, doubled each time up to the second.
const RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(5 * 60);
/// How long connected peers are given to hear of a new feed.
const HEAR: Duration = Duration::from_secs(2);
/// How many feeds of a peer are remembered that are not gone to (again).
const MAX_REMEMBERED: usize = 16;

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

/// New feeds that are being fetched: of each peer the one that its feed names now. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Moves {
    underway: Latest<Wanted>,
    /// By peer, what its feeds lead to no more: feeds that were left, so that two that name each other are not
    /// followed around, and feeds that are not its own, or too long.
    done_with: Arc<Mutex<HashMap<PublicKey, VecDeque<[u8; 32]>>>>,
}

impl Moves {
    /// The new feed of a peer that is being fetched.
    pub(super) fn wanted(&self, peer: &PublicKey) -> Option<[u8; 32]> {
        self.underway.wanted(peer).map(|wanted| wanted.key)
    }

    /// Lets go of a peer's new feed.
    pub(super) async fn stop(&self, peer: &PublicKey) {
        self.underway.stop(peer).await;
    }

    /// Forgets a peer that was removed.
    pub(super) async fn forget(&self, peer: &PublicKey) {
        self.stop(peer).await;
        lock(&self.done_with).remove(peer);
    }

    /// Lets go of all of them.
    pub(super) async fn close(&self) {
        self.underway.close().await;
    }

    fn is_done_with(&self, peer: &PublicKey, key: &[u8; 32]) -> bool {
        lock(&self.done_with).get(peer).is_some_and(|keys| keys.contains(key))
    }

    fn remember(&self, peer: PublicKey, key: [u8; 32]) {
        let mut all = lock(&self.done_with);
        let keys = all.entry(peer).or_default();
        keys.truncate(MAX_REMEMBERED - 1);
        keys.push_front(key);
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
    let wanted = Wanted { peer, old: *old.key(), key };
    // Whose it is besides is no matter here: the peer sees the same whatever it names.
    if key == wanted.old
        || inner.claims.wanted(&peer) == Some(key)
        || inner.moves.is_done_with(&peer, &key)
    {
        return;
    }
    let catalog = catalog.clone();
    let work = move |wanted, given_up| fetch(catalog.clone(), wanted, given_up);
    inner.moves.underway.want(peer, wanted, &inner.cancel, work);
}

/// A feed in which a peer's catalog goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wanted {
    peer: PublicKey,
    old: [u8; 32],
    key: [u8; 32],
}

/// What became of a new feed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// It is the peer's feed now.
    Followed,
    /// Another server signs it, or it is longer than a catalog may be.
    Refused,
    /// It is of no use any more, or the catalog closes.
    Over,
    /// It could not be opened or stored now.
    Failed,
}

/// Fetches a new feed, and follows it as the peer's once it is here.
async fn fetch(catalog: Weak<Inner>, wanted: Wanted, given_up: CancellationToken) {
    let Wanted { peer, old, key } = wanted;
    let mut rest = RETRY;
    let mut proven = None;
    let arrival = loop {
        let arrival = attempt(&catalog, wanted, &mut proven, &given_up).await;
        if arrival != Arrival::Failed {
            break arrival;
        }
        if given_up.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
            break Arrival::Over;
        }
        rest = (rest * 2).min(LAST_RETRY);
    };
    let Some(inner) = catalog.upgrade() else { return };
    match arrival {
        Arrival::Followed => return inner.moves.remember(peer, old),
        Arrival::Refused => inner.moves.remember(peer, key),
        Arrival::Over | Arrival::Failed => {}
    }
    // What is not proven was not stored here: under that key may be something of another's.
    if proven.is_some() && !inner.peers.follows(&peer, &key).await {
        let removed = inner.options.storage.remove(&discovery_key(&key)).await;
        if let Err(error) = removed {
            tracing::warn!(%error, "what was fetched of a new feed was not deleted");
        }
    }
}

/// Proves that a new feed is the peer's, and fetches it as long as it can be stored.
async fn attempt(
    catalog: &Weak<Inner>,
    wanted: Wanted,
    proven: &mut Option<Manifest>,
    given_up: &CancellationToken,
) -> Arrival {
    let Wanted { peer, key, .. } = wanted;
    let work = async {
        let manifest = match proven {
            Some(manifest) => manifest.clone(),
            None => match prove(catalog, peer, key).await {
                Ok(manifest) => proven.insert(manifest).clone(),
                Err(arrival) => return Err(arrival),
            },
        };
        Ok(manifest)
    };
    let manifest = tokio::select! {
        manifest = work => match manifest {
            Ok(manifest) => manifest,
            Err(arrival) => return arrival,
        },
        () = gone(catalog, wanted) => return Arrival::Over,
        () = given_up.cancelled() => return Arrival::Over,
    };
    let arrival = store(catalog, wanted, &manifest, given_up).await;
    if arrival != Arrival::Followed {
        return arrival;
    }
    let Some(inner) = catalog.upgrade() else { return Arrival::Over };
    match inner.peers.set(&inner.options, peer, key, manifest).await {
        Ok(()) => Arrival::Followed,
        Err(CatalogError::NotApproved | CatalogError::Closed) => Arrival::Over,
        Err(error) => {
            tracing::warn!(peer = peer.short(), %error, "a peer's new feed is not followed");
            Arrival::Failed
        }
    }
}

/// The manifest of a new feed, when it is the peer's and may be stored now.
async fn prove(catalog: &Weak<Inner>, peer: PublicKey, key: [u8; 32]) -> Result<Manifest, Arrival> {
    let Some(options) = catalog.upgrade().map(|inner| inner.options.clone()) else {
        return Err(Arrival::Over);
    };
    match examine(&options, peer, key, admits(&options, peer)).await {
        Ok(Finding::Theirs(manifest, bytes)) => {
            let Some(inner) = catalog.upgrade() else { return Err(Arrival::Over) };
            inner.rates.turn(&peer).await;
            wait_for_room(&options, peer, bytes).await;
            Ok(manifest)
        }
        Ok(Finding::Foreign) => {
            tracing::warn!(peer = peer.short(), "a peer's feed names one that it does not sign");
            Err(Arrival::Refused)
        }
        Ok(Finding::TooLong) => {
            tracing::warn!(peer = peer.short(), "a peer's new feed is too long");
            tell_too_long(&options, &peer);
            Err(Arrival::Refused)
        }
        Err(error) => {
            tracing::warn!(peer = peer.short(), %error, "a peer's new feed cannot be asked about");
            Err(Arrival::Failed)
        }
    }
}

/// Stores all of a feed that is the peer's. [`Arrival::Followed`] says that it is whole.
async fn store(
    catalog: &Weak<Inner>,
    wanted: Wanted,
    manifest: &Manifest,
    given_up: &CancellationToken,
) -> Arrival {
    let Some(inner) = catalog.upgrade() else { return Arrival::Over };
    let Wanted { peer, key, .. } = wanted;
    if given_up.is_cancelled() || inner.peers.is_open(&peer, &key) {
        return Arrival::Over;
    }
    let storage = &inner.options.storage;
    let open = || {
        let manifest = Some(manifest.clone());
        Core::open(&**storage, key, OpenOptions { manifest, ..OpenOptions::default() })
    };
    let mut opened = open();
    if let Err(error) = &opened
        && is_damage(error)
    {
        tracing::warn!(peer = peer.short(), %error, "a peer's new feed is fetched again");
        if storage.remove(&discovery_key(&key)).await.is_ok() {
            opened = open();
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
        () = given_up.cancelled() => Arrival::Over,
    };
    handle.close();
    if let Err(error) = core.close().await {
        tracing::warn!(%error, "a peer's new feed did not close cleanly");
        return if arrival == Arrival::Followed { Arrival::Failed } else { arrival };
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

/// Waits until all of a feed is here, or it has grown longer than a catalog may be.
async fn arrival(handle: &CoreHandle, peer: &PublicKey) -> Arrival {
    let core = handle.core();
    let look = || {
        let state = core.state();
        if is_too_long(&state) {
            return Ok(Some(Arrival::Refused));
        }
        let is_whole = state.length > 0 && state.contiguous_length == state.length;
        Ok(is_whole.then_some(Arrival::Followed))
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
