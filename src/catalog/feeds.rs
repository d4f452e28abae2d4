//! Peers' feeds: fetched live while the peer is connected, replayed, kept while it is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::proof::{admits, is_too_long};
use super::replay::Replay;
use super::view::{self, Standing};
use super::{CatalogError, CatalogOptions};
use crate::crypto::{PublicKey, discovery_key};
use crate::error::{Error, ErrorCode};
use crate::hypercore::replicator::{CoreHandle, Download, Policy};
use crate::hypercore::static_core::Progress;
use crate::hypercore::{Core, CoreError, Manifest, OpenOptions};
use crate::sync::lock;

/// Every peer's feed that is open.
#[derive(Default)]
pub(super) struct PeerFeeds {
    open: Mutex<HashMap<PublicKey, Arc<PeerFeed>>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    /// Counts the feeds that were let go.
    gone: watch::Sender<u64>,
    /// Books of feeds that were forgotten may be left.
    pub(super) leftovers: Arc<Notify>,
}

/// One peer's feed.
struct PeerFeed {
    key: [u8; 32],
    core: Core,
    /// Another one when it is fetched again after it could not be stored.
    handle: Mutex<CoreHandle>,
    cancel: CancellationToken,
}

impl PeerFeed {
    async fn close(&self) {
        self.cancel.cancel();
        lock(&self.handle).close();
        if let Err(error) = self.core.close().await {
            tracing::warn!(%error, "a peer's feed did not close cleanly");
        }
    }

    /// Closes the feed and deletes what was fetched of it.
    async fn delete(&self, options: &CatalogOptions) {
        self.close().await;
        if let Err(error) = options.storage.remove(self.core.discovery_key()).await {
            tracing::warn!(%error, "what was fetched of a peer's feed was not deleted");
        }
    }
}

impl PeerFeeds {
    /// The length of a peer's feed as far as it is known, in entries.
    pub(super) fn length(&self, peer: &PublicKey) -> Option<u64> {
        lock(&self.open).get(peer).map(|feed| feed.core.length())
    }

    /// The core of a feed, while it is followed as the peer's.
    pub(super) fn core(&self, peer: &PublicKey, key: &[u8; 32]) -> Option<Core> {
        let open = lock(&self.open);
        open.get(peer).filter(|feed| feed.key == *key).map(|feed| feed.core.clone())
    }

    /// Changes whenever a feed was let go.
    pub(super) fn gone(&self) -> watch::Receiver<u64> {
        self.gone.subscribe()
    }

    /// Whether this feed is followed as the peer's, once what is being changed is.
    pub(super) async fn follows(&self, peer: &PublicKey, key: &[u8; 32]) -> bool {
        // One that is opened again is closed for a moment.
        let _one = self.changing.lock().await;
        self.is_open(peer, key)
    }

    /// The core of the feed that is followed as the peer's.
    pub(super) fn core_of(&self, peer: &PublicKey) -> Option<Core> {
        lock(&self.open).get(peer).map(|feed| feed.core.clone())
    }

    /// Whose feeds are followed.
    pub(super) fn holders(&self) -> Vec<PublicKey> {
        lock(&self.open).keys().copied().collect()
    }

    /// Fetches a feed again that could not be stored.
    pub(super) fn share_anew(&self, options: &CatalogOptions, peer: &PublicKey, key: &[u8; 32]) {
        let open = lock(&self.open);
        let Some(feed) = open.get(peer).filter(|feed| feed.key == *key) else { return };
        *lock(&feed.handle) = share(options, *peer, &feed.core);
    }

    /// Whose feed has this key.
    pub(super) fn holder(&self, key: &[u8; 32]) -> Option<PublicKey> {
        let open = lock(&self.open);
        open.iter().find(|(_, feed)| feed.key == *key).map(|(peer, _)| *peer)
    }

    /// Follows a feed that is proven to be the peer's from now on. The same key again changes nothing;
    /// another key replaces the view. Fails, and changes nothing, when the peer is not approved.
    ///
    /// Not cancel safe: a task of its own does it.
    pub(super) async fn set(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
        key: [u8; 32],
        manifest: Manifest,
    ) -> Result<(), CatalogError> {
        let _one = self.changing.lock().await;
        if self.is_open(&peer, &key) {
            return Ok(());
        }
        // Asked again in the transaction that stores the feed; here, so that nothing is deleted in vain.
        if options.database.read(|c| view::standing(c, &peer))? != Standing::Approved {
            return Err(CatalogError::NotApproved);
        }
        if lock(&self.open).contains_key(&peer) {
            tracing::info!(peer = peer.short(), "a peer has a new feed");
            self.delete_one(options, &peer).await;
        }
        self.open(options, peer, key, Some(manifest)).await
    }

    /// Opens a feed that was stored as the peer's in an earlier run.
    pub(super) async fn restore(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
        key: [u8; 32],
    ) -> Result<(), CatalogError> {
        let _one = self.changing.lock().await;
        self.open(options, peer, key, None).await
    }

    /// Opens a peer's feed; one that is damaged here is dropped, to be fetched again.
    async fn open(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
        key: [u8; 32],
        manifest: Option<Manifest>,
    ) -> Result<(), CatalogError> {
        match self.open_new(options, peer, key, manifest.clone()).await {
            Err(CatalogError::Core(error)) if is_damage(&error) => {
                tracing::warn!(peer = peer.short(), %error, "a peer's feed is fetched again");
                self.open_emptied(options, peer, key, manifest).await
            }
            outcome => outcome,
        }
    }

    /// Forgets what is here of a closed feed, and opens it to be fetched from the start.
    async fn open_emptied(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
        key: [u8; 32],
        manifest: Option<Manifest>,
    ) -> Result<(), CatalogError> {
        options.storage.remove(&discovery_key(&key)).await.map_err(CoreError::from)?;
        options.database.write(move |transaction| view::empty(transaction, &peer, &key)).await?;
        self.leftovers.notify_one();
        self.open_new(options, peer, key, manifest).await
    }

    /// Whether this is the feed that is followed as the peer's.
    pub(super) fn is_open(&self, peer: &PublicKey, key: &[u8; 32]) -> bool {
        lock(&self.open).get(peer).is_some_and(|feed| feed.key == *key)
    }

    async fn open_new(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
        key: [u8; 32],
        manifest: Option<Manifest>,
    ) -> Result<(), CatalogError> {
        let open = OpenOptions { manifest, ..OpenOptions::default() };
        let core = Core::open(&*options.storage, key, open)?;
        let length = core.length();
        let feed = options
            .database
            .write(move |transaction| {
                // A peer that was removed or blocked meanwhile comes back with nothing.
                let feed = view::set_peer_feed(transaction, &peer, &key)?;
                if feed.position <= length {
                    return Ok(feed);
                }
                // What was replayed is gone from the core: it is fetched and replayed again.
                view::empty(transaction, &peer, &key)?;
                Ok::<_, CatalogError>(view::set_feed(transaction, &peer, &key)?)
            })
            .await?;
        self.leftovers.notify_one();
        let handle = share(options, peer, &core);
        let cancel = CancellationToken::new();
        let replay =
            Replay::new(options.database.clone(), core.clone(), options.events.clone(), feed);
        crate::tasks::spawn(replay.follow(cancel.clone()));
        let feed = Arc::new(PeerFeed { key, core, handle: Mutex::new(handle), cancel });
        lock(&self.open).insert(peer, feed);
        Ok(())
    }

    /// Stops following a peer's feed, and forgets everything of it.
    pub(super) async fn remove(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
    ) -> Result<(), CatalogError> {
        let _one = self.changing.lock().await;
        self.delete_one(options, &peer).await;
        options.database.write(move |transaction| view::remove(transaction, &peer)).await?;
        self.leftovers.notify_one();
        Ok(())
    }

    /// Reads every peer's feed again; says of each whether it was damaged. Damaged entries are forgotten
    /// and fetched again; a feed whose tree is damaged is dropped and fetched anew.
    pub(super) async fn verify(
        &self,
        options: &CatalogOptions,
        progress: Option<Progress>,
    ) -> Result<Vec<(PublicKey, bool)>, CatalogError> {
        let open: Vec<_> =
            lock(&self.open).iter().map(|(peer, feed)| (*peer, Arc::clone(feed))).collect();
        let mut found = Vec::with_capacity(open.len());
        for (peer, feed) in open {
            let damaged = match feed.core.verify(progress.clone()).await {
                Ok(verified) if verified.bad.is_empty() => false,
                // What peers sent would be compared with what is damaged here.
                Ok(verified) if !verified.is_proven => {
                    self.fetch_anew(options, peer, feed.key).await?;
                    true
                }
                Ok(_) => {
                    self.reopen(options, peer, feed.key).await?;
                    true
                }
                // It was replaced meanwhile.
                Err(CoreError::Closed) => false,
                Err(error) if is_damage(&error) => {
                    self.fetch_anew(options, peer, feed.key).await?;
                    true
                }
                Err(error) => return Err(error.into()),
            };
            if damaged {
                tracing::warn!(
                    peer = peer.short(),
                    "a peer's feed was damaged; it is fetched again"
                );
            }
            found.push((peer, damaged));
        }
        Ok(found)
    }

    /// Opens a feed again, so that what is missing in the middle of it is asked for.
    async fn reopen(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
        key: [u8; 32],
    ) -> Result<(), CatalogError> {
        let _one = self.changing.lock().await;
        if !self.is_open(&peer, &key) {
            return Ok(());
        }
        let manifest = self.close_one(&peer).await;
        self.open(options, peer, key, manifest).await
    }

    async fn fetch_anew(
        &self,
        options: &CatalogOptions,
        peer: PublicKey,
        key: [u8; 32],
    ) -> Result<(), CatalogError> {
        let _one = self.changing.lock().await;
        if !self.is_open(&peer, &key) {
            return Ok(());
        }
        let manifest = self.close_one(&peer).await;
        self.open_emptied(options, peer, key, manifest).await
    }

    /// Closes a feed. Gives its manifest, with which it may be opened again.
    async fn close_one(&self, peer: &PublicKey) -> Option<Manifest> {
        let feed = lock(&self.open).remove(peer)?;
        feed.close().await;
        self.gone.send_modify(|count| *count += 1);
        feed.core.manifest().map(Arc::unwrap_or_clone)
    }

    async fn delete_one(&self, options: &CatalogOptions, peer: &PublicKey) {
        let feed = lock(&self.open).remove(peer);
        if let Some(feed) = feed {
            feed.delete(options).await;
            self.gone.send_modify(|count| *count += 1);
        }
    }

    /// Closes every feed; views stay.
    pub(super) async fn close(&self) {
        let _one = self.changing.lock().await;
        let open: Vec<_> = lock(&self.open).drain().map(|(_, feed)| feed).collect();
        for feed in open {
            feed.close().await;
        }
    }
}

/// Whether a core cannot be read any more, but could be fetched again.
pub(super) fn is_damage(error: &CoreError) -> bool {
    Error::from(error.clone()).code == ErrorCode::Corrupt
}

/// Fetches a peer's feed, as far as a catalog can be long. Whatever is stored of a peer's feed comes this way.
pub(super) fn share(options: &CatalogOptions, peer: PublicKey, core: &Core) -> CoreHandle {
    let download = match is_too_long(&core.state()) {
        true => Download::None,
        false => Download::All,
    };
    let admits = admits(options, peer);
    let policy = Policy { download, upload: Arc::clone(&admits), peers: Some(admits) };
    let handle = options.replicator.add(core.clone(), policy);
    crate::tasks::spawn(limit(handle.clone(), peer));
    handle
}

/// Stops fetching a feed that outgrows what a catalog can be.
async fn limit(handle: CoreHandle, peer: PublicKey) {
    let core = handle.core();
    // It fails when the feed is not shared any more.
    let Ok(state) = handle.until(|| Ok(Some(core.state()).filter(is_too_long))).await else {
        return;
    };
    tracing::warn!(
        peer = peer.short(),
        length = state.length,
        bytes = state.byte_length,
        "a peer's feed is too long; it is followed no further"
    );
    handle.set_download(Download::None);
}
