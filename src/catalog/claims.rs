//! The feeds that peers name when they say hello, until they have proven them.
//!
//! What a peer names opens, holds and deletes nothing of anybody: the feed that is followed as the peer's
//! stays until another one is proven to be the peer's own, and what the peer sees of a claim is the same
//! whatever is here under that key. The latest claim of a peer counts, and waits for nobody else's.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::latest::Latest;
use super::proof::{Finding, examine, has_room};
use super::{CatalogError, CatalogOptions, Inner};
use crate::crypto::PublicKey;
use crate::error::Error;
use crate::hypercore::Manifest;
use crate::hypercore::replicator::PeerFilter;

/// How long a feed rests that could not be stored, doubled each time up to the second.
const RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(5 * 60);

/// The keys that peers have named.
pub(super) type Claims = Latest<[u8; 32]>;

/// Follows `key` as the peer's feed once it is proven to be that. Does not wait.
pub(super) fn claim(catalog: &Arc<Inner>, peer: PublicKey, key: [u8; 32]) {
    let weak = Arc::downgrade(catalog);
    let work = move |key, given_up| settle(weak.clone(), peer, key, given_up);
    catalog.claims.want(peer, key, &catalog.cancel, work);
}

/// Finds out what a peer's claim is worth, and follows the feed if it is the peer's.
async fn settle(catalog: Weak<Inner>, peer: PublicKey, key: [u8; 32], given_up: CancellationToken) {
    let found = given_up.run_until_cancelled(proven(&catalog, peer, key)).await.flatten();
    if let Some(manifest) = found {
        follow(&catalog, peer, key, manifest, &given_up).await;
    }
}

/// The manifest of the feed, when it is the peer's and may be stored now.
async fn proven(catalog: &Weak<Inner>, peer: PublicKey, key: [u8; 32]) -> Option<Manifest> {
    let (options, moves) = {
        let inner = catalog.upgrade()?;
        if inner.peers.is_open(&peer, &key) {
            return None;
        }
        (inner.options.clone(), inner.moves.clone())
    };
    // The feed that is left names it, too: now it is the catalog at once, and not when it is here entirely.
    if moves.wanted(&peer) == Some(key) {
        moves.stop(&peer).await;
    }
    let asked: PeerFilter = Arc::new(move |asking| *asking == peer);
    match examine(&options, peer, key, asked).await {
        Ok(Finding::Theirs(manifest, bytes)) => {
            catalog.upgrade()?.rates.turn(&peer).await;
            wait_for_room(&options, peer, bytes).await;
            return Some(manifest);
        }
        Ok(Finding::Foreign) => {
            tracing::warn!(peer = peer.short(), "a peer names a feed that another server signs");
        }
        Ok(Finding::TooLong) => {
            tracing::warn!(peer = peer.short(), "a peer's feed is too long; it is not followed");
            tell_too_long(&options, &peer);
        }
        Err(error) => {
            tracing::warn!(peer = peer.short(), %error, "a peer's feed cannot be asked about");
        }
    }
    None
}

/// Tells a person why a catalog does not come.
pub(super) fn tell_too_long(options: &CatalogOptions, peer: &PublicKey) {
    let peer = peer.to_z32();
    options.tell(false, format!("the catalog of the server {peer} is too long to be fetched"));
}

/// Waits until the disk has room for a feed, and says so when it has none.
pub(super) async fn wait_for_room(options: &CatalogOptions, peer: PublicKey, bytes: u64) {
    let mut is_told = false;
    while !has_room(options, bytes) {
        if !std::mem::replace(&mut is_told, true) {
            let peer = peer.to_z32();
            let message =
                format!("the disk has no room for the catalog of the server {peer}: make room");
            options.tell(false, message);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Follows a feed that is the peer's, again and again while the disk refuses that. What was begun is not left
/// half done.
async fn follow(
    catalog: &Weak<Inner>,
    peer: PublicKey,
    key: [u8; 32],
    manifest: Manifest,
    given_up: &CancellationToken,
) {
    let (mut rest, mut was_refused) = (RETRY, false);
    loop {
        let Some(inner) = catalog.upgrade() else { return };
        inner.moves.stop(&peer).await;
        let error = match inner.peers.set(&inner.options, peer, key, manifest.clone()).await {
            Ok(()) if was_refused => {
                return inner.options.tell(true, "peers' catalogs can be saved again".to_owned());
            }
            Ok(()) | Err(CatalogError::NotApproved | CatalogError::Closed) => return,
            Err(error) => Error::from(error),
        };
        tracing::warn!(peer = peer.short(), %error, "a peer's feed is not followed");
        let is_full = error.code.is_disk();
        if is_full && !std::mem::replace(&mut was_refused, true) {
            let peer = peer.to_z32();
            let message = format!("the catalog of the server {peer} is not saved: {error}");
            inner.options.tell(false, message);
        }
        drop(inner);
        if given_up.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
            return;
        }
        rest = (rest * 2).min(LAST_RETRY);
    }
}
