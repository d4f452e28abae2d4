//! Catalogs: this node's own feed, peers' feeds, and what they say when replayed.
//!
//! | file | idea |
//! |---|---|
//! | `entry.rs` | the JSON of a feed's blocks |
//! | `view.rs` | a feed replayed into SQLite |
//! | `list.rs`, `across.rs`, `have.rs` | pages of one catalog, and of all; which books are here already |
//! | `find.rs`, `walk.rs`, `search.rs`, `fold.rs` | finding books in order; words, and how they compare |
//! | `replay.rs` | follows a feed into the view |
//! | `own.rs`, `plan.rs`, `sources.rs` | this node's feed; what must be appended; where the bytes are |
//! | `feeds.rs` | peers' feeds |

mod across;
mod book;
#[doc(hidden)]
pub mod entry;
mod error;
mod feeds;
mod find;
mod fold;
mod have;
mod list;
mod own;
mod plan;
mod replay;
mod search;
mod sources;
mod view;
mod walk;

use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

pub use across::{CatalogHit, Facets, SearchOptions, SearchPage};
pub use book::Book;
pub use entry::BookEntry;
pub use error::CatalogError;
pub use find::{Counts, Sort};
pub use have::Have;
pub use list::{ListOptions, Page};
pub use plan::Changes;
pub use view::MAX_BOOKS;

use crate::crypto::{KeyPair, PublicKey};
use crate::error::Result;
use crate::events::{EventKind, Events};
use crate::hypercore::Storage;
use crate::hypercore::replicator::{self, CoreHandle, Policy, Replicator};
use crate::store::{Database, StoreError};
use crate::transfer::{BookSource, Description, Library, Provider};

use feeds::PeerFeeds;
use own::OwnFeed;

/// What a catalog works with.
#[derive(Clone)]
pub struct CatalogOptions {
    /// The node's database.
    pub database: Database,
    /// Where cores are kept.
    pub storage: Arc<dyn Storage>,
    /// Sends and fetches feeds.
    pub replicator: Replicator,
    /// The identity: it signs the own feed.
    pub key_pair: KeyPair,
    /// Hears of changes.
    pub events: Events,
}

/// This node's catalog, and those of its peers. Clones share it.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    options: CatalogOptions,
    own: OwnFeed,
    own_handle: CoreHandle,
    peers: PeerFeeds,
    cancel: CancellationToken,
}

/// What is known of a catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CatalogStatus {
    /// Whose catalog it is, z32.
    pub peer: String,
    /// The feed's key, z32.
    pub feed_key: String,
    /// The feed's length as far as it is known, in entries.
    pub length: u64,
    /// How many entries are in the catalog already; less than `length` while it is fetched.
    pub replayed: u64,
    /// How many books are on offer.
    pub books: u64,
    /// How many entries were skipped: bad ones, and those beyond a limit.
    pub skipped: u64,
    /// When the catalog last changed here, in Unix milliseconds.
    pub updated_at: Option<u64>,
}

impl Catalog {
    /// Opens the own feed, making it at the first start, and every peer's feed that is known.
    ///
    /// Fails with `ERR_CORRUPT` when the own feed is damaged: it is never silently written anew. A
    /// peer's feed that cannot be opened is logged and left out; its cached view stays.
    pub async fn open(options: CatalogOptions) -> Result<Self> {
        let own = OwnFeed::open(&options).await?;
        let own_handle = options.replicator.add(own.core.clone(), Policy::serve());
        let cancel = CancellationToken::new();
        tokio::spawn(own.replay.clone().follow(cancel.clone()));
        let peers = PeerFeeds::default();
        let me = options.key_pair.public_key();
        for feed in options.database.read(view::feeds)? {
            if feed.server == me {
                continue;
            }
            if let Err(error) = peers.set(&options, feed.server, feed.key).await {
                tracing::warn!(peer = feed.server.short(), %error, "a peer's feed does not open");
            }
        }
        let inner = Arc::new(Inner { options, own, own_handle, peers, cancel });
        tokio::spawn(watch_for_copies(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// What keeps this node from publishing, for a person; `None` when all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.inner.own.check_single().err().map(|error| error.to_string())
    }

    /// The key of the own feed's core.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        *self.inner.own.core.key()
    }

    /// The length of the own feed, in entries.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.inner.own.core.length()
    }

    /// Adds books to the catalog, or describes them anew. Only what changed is appended, all in one
    /// batch, and it is on disk when this returns. Of two books with the same id the later counts.
    ///
    /// Fails with `ERR_INVALID_ARGUMENT` when a book breaks a limit; then nothing was published.
    /// Cancelled, it publishes all or nothing.
    pub async fn publish(&self, books: Vec<Book>) -> Result<Changes> {
        Ok(self.inner.own.publish(books).await?)
    }

    /// Removes books from the catalog. Ids that are not there are ignored.
    pub async fn unpublish(&self, ids: Vec<String>) -> Result<Changes> {
        Ok(self.inner.own.unpublish(ids).await?)
    }

    /// Makes the catalog exactly these books: what is new or changed is added, what is missing is
    /// removed, what is the same is left alone.
    pub async fn sync(&self, books: Vec<Book>) -> Result<Changes> {
        Ok(self.inner.own.sync(books).await?)
    }

    /// Who is asked for books that were published on demand and whose provider was not registered
    /// since this node started.
    pub fn set_provider(&self, provider: Option<Provider>) {
        self.inner.own.providers.set_fallback(provider);
    }

    /// Lists this node's own catalog.
    pub fn list(&self, options: &ListOptions) -> Result<Page> {
        self.view(self.me()).list(options)
    }

    /// Searches the catalogs of all peers at once. Blocks on disk for a moment.
    ///
    /// Fails with `ERR_INVALID_ARGUMENT` for a cursor of another order, `ERR_INVALID_KEY` for a peer that
    /// is no key.
    pub fn search(&self, options: &SearchOptions) -> Result<SearchPage> {
        let me = self.me();
        let peers = options.peers()?;
        let database = &self.inner.options.database;
        Ok(database
            .read(|connection| across::search(connection, &me, peers.as_deref(), options))?)
    }

    /// One of this node's own books.
    pub fn get(&self, book_id: &str) -> Result<Option<BookEntry>> {
        self.view(self.me()).get(book_id)
    }

    /// What is known of this node's own catalog.
    pub fn status(&self) -> Result<Option<CatalogStatus>> {
        self.view(self.me()).status()
    }

    /// A peer's catalog, also while the peer is offline. Empty until its feed is known.
    #[must_use]
    pub fn of(&self, peer: PublicKey) -> PeerCatalog {
        self.view(peer)
    }

    /// Follows this feed as the peer's catalog from now on: called with the key that an approved peer
    /// says hello with. Another key than before replaces the catalog.
    pub async fn set_feed(&self, peer: PublicKey, feed_key: [u8; 32]) -> Result<()> {
        if feed_key == self.key() || peer == self.me() {
            return Err(CatalogError::ForeignFeed.into());
        }
        Ok(self.inner.peers.set(&self.inner.options, peer, feed_key).await?)
    }

    /// Forgets a peer's catalog: called when the peer is removed.
    pub async fn forget(&self, peer: PublicKey) -> Result<()> {
        Ok(self.inner.peers.remove(&self.inner.options, peer).await?)
    }

    /// Closes all feeds. The database stays open; a second call does nothing.
    pub async fn close(&self) {
        self.inner.cancel.cancel();
        self.inner.own_handle.close();
        self.inner.peers.close().await;
        if let Err(error) = self.inner.own.core.close().await {
            tracing::warn!(%error, "the own feed did not close cleanly");
        }
    }

    fn me(&self) -> PublicKey {
        self.inner.options.key_pair.public_key()
    }

    fn view(&self, server: PublicKey) -> PeerCatalog {
        PeerCatalog { inner: Arc::clone(&self.inner), server }
    }
}

/// Stops publishing when a peer has entries of the own feed that were not written here: two copies of
/// one data directory are running.
async fn watch_for_copies(catalog: Weak<Inner>) {
    let Some((mut events, cancel, key)) = catalog.upgrade().map(|inner| {
        (inner.options.replicator.events(), inner.cancel.clone(), *inner.own.core.key())
    }) else {
        return;
    };
    loop {
        let event = match cancel.run_until_cancelled(events.recv()).await {
            Some(Ok(event)) => event,
            Some(Err(RecvError::Lagged(_))) => continue,
            Some(Err(RecvError::Closed)) | None => return,
        };
        let replicator::EventKind::WrittenElsewhere { .. } = event.kind else { continue };
        let Some(inner) = catalog.upgrade() else { return };
        if event.key == key && inner.own.stop_publishing().await {
            let message = CatalogError::WrittenElsewhere.to_string();
            tracing::error!(peer = event.peer.short(), message, "publishing has stopped");
            let layer = "catalog".to_owned();
            inner.options.events.emit(EventKind::Status { layer, ok: false, message });
        }
    }
}

/// One server's catalog as it is known here.
#[derive(Clone)]
pub struct PeerCatalog {
    inner: Arc<Inner>,
    server: PublicKey,
}

impl PeerCatalog {
    /// Whose catalog it is.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.server
    }

    /// A page of the catalog. Blocks on disk for a moment.
    ///
    /// Fails with `ERR_INVALID_ARGUMENT` for a cursor that is not of this catalog.
    pub fn list(&self, options: &ListOptions) -> Result<Page> {
        let page =
            self.database().read(|connection| match view::feed(connection, &self.server)? {
                Some(feed) => list::list(connection, &feed, options),
                None => Ok(Page::empty()),
            })?;
        Ok(page)
    }

    /// One book, or `None` when it is not on offer (or not known yet).
    pub fn get(&self, book_id: &str) -> Result<Option<BookEntry>> {
        let json =
            self.database().read(|connection| match view::feed(connection, &self.server)? {
                Some(feed) => view::entry_json(connection, feed.number, book_id),
                None => Ok::<_, StoreError>(None),
            })?;
        Ok(json.and_then(|json| entry::decode_book(&json).ok()).map(entry::shown))
    }

    /// What is known of the catalog; `None` until its feed is known.
    pub fn status(&self) -> Result<Option<CatalogStatus>> {
        let feed = self.database().read(|connection| view::feed(connection, &self.server))?;
        let is_own = self.server == self.inner.options.key_pair.public_key();
        let length = if is_own {
            Some(self.inner.own.core.length())
        } else {
            self.inner.peers.length(&self.server)
        };
        Ok(feed.map(|feed| CatalogStatus {
            peer: self.server.to_z32(),
            feed_key: PublicKey::from_bytes(feed.key).to_z32(),
            length: length.unwrap_or(feed.position),
            replayed: feed.position,
            books: feed.books,
            skipped: feed.skipped,
            updated_at: feed.updated_at,
        }))
    }

    fn database(&self) -> &Database {
        &self.inner.options.database
    }
}

impl Library for Catalog {
    fn own(&self, book_id: &str) -> Result<Option<(Description, Option<BookSource>)>> {
        let Some(book) = self.get(book_id)? else { return Ok(None) };
        let source = self
            .inner
            .options
            .database
            .read(|connection| self.inner.own.providers.resolve(connection, book_id))?;
        Ok(Some((describe(book), source)))
    }

    fn of(&self, peer: &PublicKey, book_id: &str) -> Result<Option<Description>> {
        Ok(self.view(*peer).get(book_id)?.map(describe))
    }
}

fn describe(book: BookEntry) -> Description {
    Description {
        title: book.title,
        author: book.author,
        format: book.format,
        size_bytes: book.size_bytes,
    }
}
