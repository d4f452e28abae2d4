//! This node's own feed: published, synchronized, and replayed like any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::Mutex;

use super::book::Book;
use super::plan::{self, Changes, Plan};
use super::replay::Replay;
use super::sources::{self, Providers};
use super::view::{self, Feed};
use super::{CatalogError, CatalogOptions};
use crate::crypto::random;
use crate::hypercore::{Core, Manifest, OpenOptions};
use crate::store::{Database, StoreError};
use crate::text;
use crate::time::now_ms;

/// The row of `meta` with the namespace under which the identity signs the feed. It is random, so that
/// a lost database gives a new feed and never a second one with the same key.
const NAMESPACE: &str = "catalog_namespace";

/// The row of `meta` that says that the feed was also written elsewhere, once that is known.
const ELSEWHERE: &str = "catalog_written_elsewhere";

/// The own feed.
pub(super) struct OwnFeed {
    pub(super) core: Core,
    pub(super) replay: Replay,
    pub(super) providers: Providers,
    database: Database,
    /// One change at a time: each is planned against what the one before it left.
    publishing: Mutex<()>,
    /// A peer has entries of this feed that were not written here.
    written_elsewhere: AtomicBool,
}

impl OwnFeed {
    /// Opens the own feed and brings the view up to date with it.
    pub(super) async fn open(options: &CatalogOptions) -> Result<Self, CatalogError> {
        let server = options.key_pair.public_key();
        let (manifest, feed) = options
            .database
            .write(move |transaction| {
                let namespace = match meta(transaction, NAMESPACE)? {
                    Some(namespace) => namespace,
                    None => {
                        let namespace: [u8; 32] = random();
                        transaction.execute(
                            "INSERT INTO meta (name, value) VALUES (?1, ?2)",
                            (NAMESPACE, namespace),
                        )?;
                        namespace
                    }
                };
                let manifest = Manifest::single_in(server, namespace);
                let feed = view::set_feed(transaction, &server, &manifest.key())?;
                Ok::<_, CatalogError>((manifest, feed))
            })
            .await?;
        let open = OpenOptions {
            manifest: Some(manifest),
            writer: Some(options.key_pair.clone()),
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
        let replay = Replay::new(database.clone(), core.clone(), events, feed);
        replay.catch_up().await?;
        let elsewhere: Option<Vec<u8>> = database.read(|connection| meta(connection, ELSEWHERE))?;
        Ok(Self {
            core,
            replay,
            providers: Providers::default(),
            database,
            publishing: Mutex::new(()),
            written_elsewhere: AtomicBool::new(elsewhere.is_some()),
        })
    }

    /// Fails when a peer has shown that this feed is also written elsewhere.
    pub(super) fn check_single(&self) -> Result<(), CatalogError> {
        if self.written_elsewhere.load(Ordering::Acquire) {
            return Err(CatalogError::WrittenElsewhere);
        }
        Ok(())
    }

    /// A peer has shown that this feed is also written elsewhere: nothing is published from now on,
    /// also after a restart. True the first time.
    pub(super) async fn stop_publishing(&self) -> bool {
        if self.written_elsewhere.swap(true, Ordering::AcqRel) {
            return false;
        }
        let write = self.database.write(|transaction| {
            transaction
                .execute(
                    "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, x'01')",
                    [ELSEWHERE],
                )
                .map_err(StoreError::from)
        });
        if let Err(error) = write.await {
            tracing::warn!(%error, "that the feed is written elsewhere was not written down");
        }
        true
    }

    /// Has `books` in the catalog, as given.
    pub(super) async fn publish(&self, books: Vec<Book>) -> Result<Changes, CatalogError> {
        self.change(books, |c, feed, books| plan::publish(c, feed, books, now_ms())).await
    }

    /// Has exactly `books` in the catalog.
    pub(super) async fn sync(&self, books: Vec<Book>) -> Result<Changes, CatalogError> {
        self.change(books, |c, feed, books| plan::sync(c, feed, books, now_ms())).await
    }

    /// Has none of the books with these ids in the catalog.
    pub(super) async fn unpublish(&self, ids: Vec<String>) -> Result<Changes, CatalogError> {
        self.change(Vec::new(), move |c, feed, _| plan::unpublish(c, feed, &ids, now_ms())).await
    }

    /// Plans, then writes in this order: where the bytes are, the feed, the view. A crash in between
    /// leaves a feed that the next start replays.
    async fn change(
        &self,
        books: Vec<Book>,
        plan: impl FnOnce(&Connection, &Feed, &[Book]) -> Result<Plan, CatalogError> + Send + 'static,
    ) -> Result<Changes, CatalogError> {
        let _one = self.publishing.lock().await;
        self.check_single()?;
        self.replay.catch_up().await?;
        let (feed, database) = (self.replay.feed().await, self.database.clone());
        let books = Arc::new(books);
        let planned = Arc::clone(&books);
        let (plan, places) = tokio::task::spawn_blocking(move || {
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
            self.database.write(move |transaction| sources::put(transaction, &places)).await?;
        }
        self.providers.note(&books);
        if !plan.entries.is_empty() {
            self.core.append(plan.entries).await?;
            self.replay.catch_up().await?;
        }
        if !plan.removed.is_empty() {
            self.providers.forget(&plan.removed);
            let removed = plan.removed;
            self.database.write(move |transaction| sources::remove(transaction, &removed)).await?;
        }
        Ok(plan.changes)
    }
}

fn meta<T: FromSql>(connection: &Connection, name: &str) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?)
}
