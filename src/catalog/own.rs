//! This node's own feed: published, synchronized, and replayed like any other.

use std::sync::{Arc, PoisonError, RwLock};

use rusqlite::{Connection, OptionalExtension, Row};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::book::Book;
use super::halt::Halt;
use super::missing::{self, PublishOptions};
use super::plan::{self, Changes, Plan};
use super::replay::Replay;
use super::sources::{self, Providers};
use super::view::{self, Feed};
use super::{CatalogError, CatalogOptions};
use crate::crypto::{PublicKey, random};
use crate::error::{Error, ErrorCode};
use crate::hypercore::replicator::{CoreHandle, Policy};
use crate::hypercore::{Core, Manifest, OpenOptions};
use crate::store::StoreError;
use crate::text;
use crate::time::now_ms;
use crate::transfer::BookSource;

/// The row of `meta` with the namespace under which the identity signs the feed. It is random, so that
/// a lost database gives a new feed and never a second one with the same key.
pub(super) const NAMESPACE: &str = "catalog_namespace";

/// The own feed.
pub(super) struct OwnFeed {
    pub(super) providers: Providers,
    pub(super) options: CatalogOptions,
    current: RwLock<Arc<Current>>,
    /// One change at a time: each is planned against what the one before it left.
    pub(super) publishing: Mutex<()>,
    /// What keeps this node from publishing.
    pub(super) halt: watch::Sender<Option<Halt>>,
    /// The feed's key, which changes when a new feed is started.
    pub(super) key: watch::Sender<[u8; 32]>,
}

/// The feed as it is now.
pub(super) struct Current {
    pub(super) key: [u8; 32],
    /// How many entries had been replayed when it was opened.
    position: u64,
    /// `None` for a feed that is too damaged to open: what the view has of it is still read.
    pub(super) live: Option<Live>,
}

/// An open feed.
pub(super) struct Live {
    pub(super) core: Core,
    pub(super) replay: Replay,
    pub(super) handle: CoreHandle,
    cancel: CancellationToken,
}

impl Current {
    pub(super) fn length(&self) -> u64 {
        self.live.as_ref().map_or(self.position, |live| live.core.length())
    }
}

impl Live {
    /// Opens the feed, brings the view up to date with it, and shares it. Without `writes` its key pair
    /// signs nothing, and entries of it that peers have are fetched.
    pub(super) async fn open(
        options: &CatalogOptions,
        manifest: Manifest,
        feed: Feed,
        writes: bool,
    ) -> Result<Self, CatalogError> {
        let open = OpenOptions {
            manifest: Some(manifest),
            writer: writes.then(|| options.key_pair.clone()),
            ..OpenOptions::default()
        };
        let core = Core::open(&*options.storage, feed.key, open)?;
        if core.length() < feed.position {
            return Err(CatalogError::OwnFeedDamaged {
                length: core.length(),
                expected: feed.position,
            });
        }
        let (database, events) = (options.database.clone(), options.events.clone());
        let replay = Replay::new(database, core.clone(), events, feed);
        replay.catch_up().await?;
        let policy = if writes { Policy::serve() } else { Policy::fetch() };
        let handle = options.replicator.add(core.clone(), policy);
        let cancel = CancellationToken::new();
        crate::tasks::spawn(replay.clone().follow(cancel.clone()));
        Ok(Self { core, replay, handle, cancel })
    }

    pub(super) async fn close(&self) {
        self.cancel.cancel();
        self.handle.close();
        if let Err(error) = self.core.close().await {
            tracing::warn!(%error, "the own feed did not close cleanly");
        }
    }
}

impl OwnFeed {
    /// Opens the own feed and brings the view up to date with it. A damaged one is read as far as the
    /// view has it, and not written.
    pub(super) async fn open(options: &CatalogOptions) -> Result<Self, CatalogError> {
        let server = options.key_pair.public_key();
        let (manifest, feed, halt) = options
            .database
            .write(move |transaction| {
                let halt = Halt::read(transaction)?;
                let is_named = meta(transaction, NAMESPACE)?.is_some();
                let namespace = match namespace(transaction, &server)? {
                    Some(namespace) => namespace,
                    // Nobody could follow a second feed in the place of one that may be there.
                    None if is_named && let Some(feed) = view::feed(transaction, &server)? => {
                        return Ok((None, feed, halt));
                    }
                    None => random(),
                };
                transaction.execute(
                    "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) \
                     DO UPDATE SET value = excluded.value WHERE value IS NOT excluded.value",
                    (NAMESPACE, namespace),
                )?;
                let manifest = Manifest::single_in(server, namespace);
                let feed = view::set_feed(transaction, &server, &manifest.key())?;
                Ok::<_, CatalogError>((Some(manifest), feed, halt))
            })
            .await?;
        let (key, position) = (feed.key, feed.position);
        let writes = halt != Some(Halt::Restored);
        let opened = match manifest {
            Some(manifest) => Live::open(options, manifest, feed, writes).await,
            None => Err(CatalogError::Damaged(
                "it is not known any more how its entries are signed".into(),
            )),
        };
        let (live, halt) = match opened {
            Ok(live) => (Some(live), halt),
            Err(error) => (None, Some(damage(error)?)),
        };
        Ok(Self {
            providers: Providers::default(),
            options: options.clone(),
            current: RwLock::new(Arc::new(Current { key, position, live })),
            publishing: Mutex::new(()),
            halt: watch::Sender::new(halt),
            key: watch::Sender::new(key),
        })
    }

    /// The feed as it is now.
    pub(super) fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a feed in place of the one before.
    pub(super) fn replace(&self, feed: (&[u8; 32], u64), live: Option<Live>) {
        let (key, position) = (*feed.0, feed.1);
        let current = Arc::new(Current { key, position, live });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        self.key.send_if_modified(|known| std::mem::replace(known, key) != key);
    }

    /// Fails when nothing may be published, with what to do.
    pub(super) fn check(&self) -> Result<(), CatalogError> {
        self.halt.borrow().as_ref().map_or(Ok(()), |halt| Err(halt.error()))
    }

    /// Nothing is published from now on, also after a restart. True when that is new.
    pub(super) async fn stop_publishing(&self, halt: Halt) -> bool {
        let is_new = self.halt.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(&halt);
            *known = Some(halt.clone());
            is_new
        });
        if is_new && let Err(error) = self.write_halt(Some(halt)).await {
            tracing::warn!(%error, "why publishing stopped was not written down");
        }
        is_new
    }

    /// Writes down what keeps this node from publishing.
    pub(super) async fn write_halt(&self, halt: Option<Halt>) -> Result<(), StoreError> {
        self.options.database.write(move |t| Halt::write(t, halt.as_ref())).await
    }

    /// Has `books` in the catalog, as given.
    pub(super) async fn publish(
        &self,
        books: Vec<Book>,
        options: PublishOptions,
    ) -> Result<Changes, CatalogError> {
        let plan =
            |c: &Connection, feed: &Feed, books: &[Book]| plan::publish(c, feed, books, now_ms());
        self.change_looking(books, options, plan).await
    }

    /// Has exactly `books` in the catalog.
    pub(super) async fn sync(
        &self,
        books: Vec<Book>,
        options: PublishOptions,
    ) -> Result<Changes, CatalogError> {
        let plan =
            |c: &Connection, feed: &Feed, books: &[Book]| plan::sync(c, feed, books, now_ms());
        self.change_looking(books, options, plan).await
    }

    /// Has none of the books with these ids in the catalog.
    pub(super) async fn unpublish(&self, ids: Vec<String>) -> Result<Changes, CatalogError> {
        self.change(Arc::default(), move |c, feed, _| plan::unpublish(c, feed, &ids, now_ms()))
            .await
    }

    /// [`OwnFeed::change`], and looks for the books' files: before it is this call's turn, or meanwhile, so
    /// that a disk that does not answer holds nobody else up.
    async fn change_looking(
        &self,
        mut books: Vec<Book>,
        options: PublishOptions,
        plan: impl FnOnce(&Connection, &Feed, &[Book]) -> Result<Plan, CatalogError> + Send + 'static,
    ) -> Result<Changes, CatalogError> {
        fix_places(&mut books);
        let (changes, missing) = if missing::comes_first(&books, options) {
            let look = move || {
                let missing = missing::check_first(&mut books, options);
                (books, missing)
            };
            let looked = crate::tasks::blocking(look).await;
            let (books, missing) = looked.map_err(|_| CatalogError::Closed)?;
            (self.change(Arc::new(books), plan).await?, missing)
        } else {
            let books = Arc::new(books);
            let looked = Arc::clone(&books);
            let looked = crate::tasks::blocking(move || missing::check(&looked));
            let (changes, missing) = tokio::join!(self.change(books, plan), looked);
            (changes?, missing.map_err(|_| CatalogError::Closed)?)
        };
        Ok(Changes { missing: missing.named, missing_count: missing.count, ..changes })
    }

    /// Plans, then writes in this order: where the bytes are, the feed, the view. A crash in between
    /// leaves a feed that the next start replays.
    async fn change(
        &self,
        books: Arc<Vec<Book>>,
        plan: impl FnOnce(&Connection, &Feed, &[Book]) -> Result<Plan, CatalogError> + Send + 'static,
    ) -> Result<Changes, CatalogError> {
        let _one = self.publishing.lock().await;
        self.check()?;
        let current = self.current();
        let live = current.live.as_ref().ok_or(CatalogError::Closed)?;
        live.replay.catch_up().await?;
        let (feed, database) = (live.replay.feed().await, self.options.database.clone());
        let planned = Arc::clone(&books);
        let (plan, places) = crate::tasks::blocking(move || {
            let plan = database.read(|connection| plan(connection, &feed, &planned))?;
            let places = sources::places(&planned).map_err(|id| CatalogError::InvalidBook {
                id: text::clean(&id, 40),
                reason: "its path is not valid Unicode".into(),
            })?;
            Ok::<_, CatalogError>((plan, places))
        })
        .await
        .map_err(|_| CatalogError::Closed)??;
        if !places.is_empty() {
            let write = move |t: &rusqlite::Transaction<'_>| sources::put(t, &places);
            self.options.database.write(write).await?;
        }
        self.providers.note(&books);
        if !plan.entries.is_empty() {
            live.core.append(plan.entries).await?;
            live.replay.catch_up().await?;
        }
        if !plan.removed.is_empty() {
            self.providers.forget(&plan.removed);
            let removed = plan.removed;
            let write = move |t: &rusqlite::Transaction<'_>| sources::remove(t, &removed);
            self.options.database.write(write).await?;
        }
        Ok(plan.changes)
    }
}

/// Relative paths are those of the moment of the call.
fn fix_places(books: &mut [Book]) {
    for book in books {
        if let Some(BookSource::Path(path)) = &mut book.source
            && path.is_relative()
            && let Ok(absolute) = std::path::absolute(&*path)
        {
            *path = absolute;
        }
    }
}

/// A failure that is damage, as what keeps this node from publishing; any other is an error still.
pub(super) fn damage(error: CatalogError) -> Result<Halt, CatalogError> {
    let message = error.to_string();
    let is_damage = match &error {
        CatalogError::OwnFeedDamaged { .. } | CatalogError::Damaged(_) => true,
        CatalogError::Core(error) => Error::from(error.clone()).code == ErrorCode::Corrupt,
        CatalogError::Store(error) => error.is_corrupt(),
        _ => false,
    };
    if is_damage { Ok(Halt::Damaged(message)) } else { Err(error) }
}

/// The bytes of a row of `meta`; none when its value is a number, which nothing here writes.
pub(super) fn meta(connection: &Connection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    let bytes = |row: &Row<'_>| Ok(row.get_ref(0)?.as_bytes().unwrap_or_default().to_vec());
    Ok(statement.query_row([name], bytes).optional()?)
}

/// The namespace of the own feed; `None` when its row cannot be read and nothing else tells it.
pub(super) fn namespace(
    connection: &Connection,
    server: &PublicKey,
) -> Result<Option<[u8; 32]>, StoreError> {
    let known = meta(connection, NAMESPACE)?.and_then(|bytes| bytes.try_into().ok());
    if known.is_some() {
        return Ok(known);
    }
    // The feed's own manifest has it, too.
    let sql = "SELECT manifest FROM cores JOIN catalog_feeds ON key = feed_key WHERE server = ?1";
    let bytes = |row: &Row<'_>| Ok(row.get_ref(0)?.as_bytes().unwrap_or_default().to_vec());
    let stored = connection.query_row(sql, [server.as_bytes()], bytes).optional()?;
    let manifest = stored.and_then(|bytes| Manifest::decode(&bytes).ok());
    Ok(manifest.and_then(|manifest| {
        let namespace = manifest.signers.first()?.namespace;
        (Manifest::single_in(*server, namespace) == manifest).then_some(namespace)
    }))
}
