//! Catalogs: this node's own feed, peers' feeds, and what they say when replayed.
//!
//! | file | idea |
//! |---|---|
//! | `entry.rs` | the JSON of a feed's blocks |
//! | `view.rs` | a feed replayed into SQLite |
//! | `list.rs`, `across.rs`, `have.rs` | pages of one catalog, and of all; which books are here already |
//! | `find.rs`, `candidates.rs`, `walk.rs`, `search.rs`, `fold.rs` | finding books in order; words, and how they compare |
//! | `replay.rs` | follows a feed into the view |
//! | `own.rs`, `plan.rs`, `sources.rs` | this node's feed; what must be appended; where the bytes are |
//! | `library.rs` | what transfers ask about books |
//! | `halt.rs`, `recovery.rs` | what stops publishing; how it goes on, or with a new feed |
//! | `verify.rs`, `fetch_back.rs` | reads everything again to see that it is whole; puts the own feed right |
//! | `claims.rs`, `proof.rs`, `latest.rs` | the feeds that peers name; whose they are; one piece of work a peer |
//! | `feeds.rs`, `mend.rs`, `moves.rs` | peers' feeds; those that could not be stored; those that go on elsewhere |
//! | `sweep.rs` | what nobody needs any more at the start |

mod across;
mod book;
mod candidates;
mod claims;
#[doc(hidden)]
pub mod entry;
mod error;
mod feeds;
mod fetch_back;
mod find;
mod fold;
mod halt;
mod have;
mod latest;
mod library;
mod list;
mod mend;
mod missing;
mod moves;
mod own;
mod plan;
mod proof;
mod publishing;
mod recovery;
mod replay;
mod salvage;
mod search;
mod sources;
mod sweep;
mod verify;
mod view;
mod walk;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use across::{CatalogHit, Facets, SearchOptions, SearchPage};
pub use book::Book;
pub use entry::BookEntry;
pub use error::CatalogError;
pub use find::{Counts, Sort};
pub use have::Have;
pub use list::{ListOptions, Page};
pub use missing::{MAX_NAMED as MAX_NAMED_MISSING, MissingBook, OnMissing, PublishOptions};
pub use plan::Changes;
pub(crate) use salvage::salvage;
pub use verify::{Verification, VerifyOptions};
pub use view::{MAX_BOOKS, forget_in};

use crate::crypto::{KeyPair, PublicKey};
use crate::error::Result;
use crate::events::{EventKind, Events};
use crate::hypercore::Storage;
use crate::hypercore::replicator::{self, Replicator};
use crate::store::{Database, StoreError};
use crate::transfer::{BookReaders, Provider};

use claims::Claims;
use feeds::PeerFeeds;
use halt::Halt;
use moves::Moves;
use own::OwnFeed;
use proof::FeedRates;

/// How often peers' lengths are compared while a restored feed waits for them.
const COMPARE: Duration = Duration::from_millis(500);
/// How long peers that say they have more of it may take to prove anything of that.
const PROOF: Duration = Duration::from_secs(30);

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
    /// Whether peers' feeds are passed on among all peers, and fetched from any of them.
    pub share_feeds: bool,
}

/// This node's catalog, and those of its peers. Clones share it.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    options: CatalogOptions,
    own: OwnFeed,
    peers: PeerFeeds,
    claims: Claims,
    moves: Moves,
    rates: FeedRates,
    /// Who reads the own books.
    readers: OnceLock<Arc<dyn BookReaders>>,
    /// Counts the changes of the own catalog.
    changes: AtomicU64,
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
    /// Why there is nothing to show though the feed has entries, for a person: none of them can be read, as
    /// when they are encrypted.
    pub trouble: Option<String>,
}

impl Catalog {
    /// Opens the own feed, making it at the first start, and every peer's feed that is known.
    ///
    /// An own feed that is damaged is never silently written anew: [`Catalog::trouble`] says so, the
    /// books that were replayed can be read, and publishing fails. A peer's feed that is damaged is
    /// fetched again; one that cannot be opened is logged and left out, and its cached view stays. The
    /// catalogs of servers that are no peers any more are deleted, and whatever no row points at.
    pub async fn open(options: CatalogOptions) -> Result<Self> {
        let own = OwnFeed::open(&options).await?;
        let cancel = CancellationToken::new();
        let peers = PeerFeeds::default();
        for feed in sweep::sweep(&options).await? {
            if let Err(error) = peers.restore(&options, feed.server, feed.key).await {
                tracing::warn!(peer = feed.server.short(), %error, "a peer's feed does not open");
            }
        }
        let (claims, moves, rates) = (Claims::default(), Moves::default(), FeedRates::default());
        let (readers, changes) = (OnceLock::new(), AtomicU64::new(1));
        let inner =
            Arc::new(Inner { options, own, peers, claims, moves, rates, readers, changes, cancel });
        crate::tasks::spawn(watch_for_copies(Arc::downgrade(&inner)));
        crate::tasks::spawn(confirm(Arc::downgrade(&inner)));
        crate::tasks::spawn(mend::mend(Arc::downgrade(&inner)));
        crate::tasks::spawn(moves::follow(Arc::downgrade(&inner)));
        crate::tasks::spawn(sweep::sweep_books(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// What keeps this node from publishing, for a person; `None` when all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.inner.own.check().err().map(|error| error.to_string())
    }

    /// The peers whose catalogs cannot be shown, each with the reason for a person. Blocks on disk for a
    /// moment.
    pub fn unreadable(&self) -> Result<Vec<(PublicKey, String)>> {
        let feeds = self.inner.options.database.read(view::feeds)?;
        let trouble = |feed: view::Feed| {
            let length = self.inner.peers.length(&feed.server)?;
            Some((feed.server, feed.trouble(length)?))
        };
        Ok(feeds.into_iter().filter_map(trouble).collect())
    }

    /// The key of the own feed's core.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.inner.own.current().key
    }

    /// The key of the own feed's core, and every new one from now on.
    #[must_use]
    pub fn keys(&self) -> watch::Receiver<[u8; 32]> {
        self.inner.own.key.subscribe()
    }

    /// The length of the own feed, in entries.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.inner.own.current().length()
    }

    /// Says that publishing may go on after it was stopped. After a restore it does at once: call this
    /// when nothing was published since the backup, or no peer has seen it. After the feed was found to
    /// be written elsewhere, when the other copy was stopped for good: what peers have of the feed is
    /// fetched first, and then publishing goes on.
    ///
    /// Fails with `ERR_CORRUPT` when the feed is damaged. Not cancel safe.
    pub async fn resume_publishing(&self) -> Result<()> {
        let catalog = self.clone();
        let resuming = crate::tasks::spawn(async move { catalog.inner.own.resume().await });
        Ok(resuming.await.map_err(|_| CatalogError::Closed)??)
    }

    /// Starts a new feed with the books that are on the catalog now, and returns its key. Peers hear of
    /// it in the next hello and follow it instead of the old one, which is deleted here. An old feed that
    /// can still be written ends with an entry that names the new one. Books whose entries were damaged are
    /// left out: publish them again.
    ///
    /// Once begun, it comes to its end also when the caller goes.
    pub async fn start_new_feed(&self) -> Result<[u8; 32]> {
        let catalog = self.clone();
        let starting = crate::tasks::spawn(async move { catalog.inner.own.start_new().await });
        let key = starting.await.map_err(|_| CatalogError::Closed)??;
        self.inner.options.tell(true, "a new catalog feed was started; peers follow it".to_owned());
        Ok(key)
    }

    /// Who is asked for books that were published on demand and whose provider was not registered
    /// since this node started.
    pub fn set_provider(&self, provider: Option<Provider>) {
        self.inner.own.providers.set_fallback(provider);
        self.inner.changes.fetch_add(1, Ordering::AcqRel);
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

    /// Takes note of the key that a peer says hello with. Once it is proven to be a feed that this peer's
    /// own key signs, it is followed as the peer's catalog, if the peer is approved then; it takes the place
    /// of another feed then and not before. Until then nothing is stored or deleted, and nothing of anybody
    /// else is touched, whatever the key names. The latest key of a peer counts; the same again changes
    /// nothing. Some new feeds of a peer are stored in an hour; then the latest waits.
    ///
    /// It does not wait for any of this. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the peer is this node itself.
    pub async fn set_feed(&self, peer: PublicKey, feed_key: [u8; 32]) -> Result<()> {
        if peer == self.me() {
            return Err(CatalogError::ForeignFeed.into());
        }
        claims::claim(&self.inner, peer, feed_key);
        Ok(())
    }

    /// Forgets a peer's catalog: called when the peer was removed, after [`forget_in`]. Ends what is under way
    /// for it, and deletes what was fetched.
    pub async fn forget(&self, peer: PublicKey) -> Result<()> {
        self.inner.claims.stop(&peer).await;
        self.inner.moves.forget(&peer).await;
        self.inner.rates.forget(&peer);
        Ok(self.inner.peers.remove(&self.inner.options, peer).await?)
    }

    /// Closes all feeds. The database stays open; a second call does nothing.
    pub async fn close(&self) {
        self.inner.cancel.cancel();
        self.inner.claims.close().await;
        self.inner.moves.close().await;
        self.inner.peers.close().await;
        let _one = self.inner.own.publishing.lock().await;
        if let Some(live) = &self.inner.own.current().live {
            live.close().await;
        }
    }

    fn me(&self) -> PublicKey {
        self.inner.options.key_pair.public_key()
    }

    fn view(&self, server: PublicKey) -> PeerCatalog {
        PeerCatalog { inner: Arc::clone(&self.inner), server }
    }
}

impl CatalogOptions {
    fn tell(&self, ok: bool, message: String) {
        self.events.emit(EventKind::Status { layer: "catalog".to_owned(), ok, message });
    }
}

/// What the replicator says while the catalog is open.
struct Heard {
    events: broadcast::Receiver<replicator::Event>,
    cancel: CancellationToken,
}

impl Heard {
    /// `None` when the catalog is gone.
    fn of(catalog: &Weak<Inner>) -> Option<Self> {
        let inner = catalog.upgrade()?;
        Some(Self { events: inner.options.replicator.events(), cancel: inner.cancel.clone() })
    }

    /// Goes on after events that were missed.
    async fn next(&mut self) -> Option<replicator::Event> {
        loop {
            match self.cancel.run_until_cancelled(self.events.recv()).await? {
                Ok(event) => return Some(event),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// Stops publishing when a peer has entries of the own feed that were not written here: two copies of
/// one data directory are running, or it was set back in time. Says so of a peer's feed, too.
async fn watch_for_copies(catalog: Weak<Inner>) {
    let Some(mut heard) = Heard::of(&catalog) else { return };
    while let Some(event) = heard.next().await {
        let replicator::EventKind::WrittenElsewhere { .. } = event.kind else { continue };
        let Some(inner) = catalog.upgrade() else { return };
        if event.key == inner.own.current().key {
            if inner.own.stop_publishing(Halt::WrittenElsewhere).await {
                let message = CatalogError::WrittenElsewhere.to_string();
                tracing::error!(peer = event.peer.short(), message, "publishing has stopped");
                inner.options.tell(false, message);
            }
        } else if let Some(peer) = inner.peers.holder(&event.key) {
            tracing::warn!(peer = peer.short(), "a peer's catalog is written twice");
            let peer = peer.to_z32();
            inner.options.tell(false, format!(
                "the server {peer} has published two different catalogs in one feed: its data \
                 directory was copied or set back. What was here first is kept until it starts a new \
                 feed"
            ));
        }
    }
}

/// Lets a restored feed be written again once a peer has confirmed it.
async fn confirm(catalog: Weak<Inner>) {
    let Some((mut halts, cancel)) =
        catalog.upgrade().map(|inner| (inner.own.halt.subscribe(), inner.cancel.clone()))
    else {
        return;
    };
    let mut unchanged = (0, tokio::time::Instant::now());
    loop {
        let waits = halts.wait_for(|halt| *halt == Some(Halt::Restored));
        match cancel.run_until_cancelled(waits).await {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
        if cancel.run_until_cancelled(tokio::time::sleep(COMPARE)).await.is_none() {
            return;
        }
        let Some(inner) = catalog.upgrade() else { return };
        let length = inner.own.current().length();
        if length != unchanged.0 {
            unchanged = (length, tokio::time::Instant::now());
        }
        match inner.own.try_confirm(unchanged.1.elapsed() > PROOF).await {
            Ok(true) => {
                let message = "peers have no more of this server's catalog than it has: books can be \
                               published again";
                tracing::info!(message);
                inner.options.tell(true, message.to_owned());
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "a restored feed could not be written again");
                inner.options.tell(false, error.to_string());
                return;
            }
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
            Some(self.inner.own.current().length())
        } else {
            self.inner.peers.length(&self.server)
        };
        Ok(feed.map(|feed| {
            let length = length.unwrap_or(feed.position);
            CatalogStatus {
                peer: self.server.to_z32(),
                feed_key: PublicKey::from_bytes(feed.key).to_z32(),
                length,
                replayed: feed.position,
                books: feed.books,
                skipped: feed.skipped,
                updated_at: feed.updated_at,
                trouble: feed.trouble(length),
            }
        }))
    }

    fn database(&self) -> &Database {
        &self.inner.options.database
    }
}
