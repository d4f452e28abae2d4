//! Follows a feed: every new entry goes into the view, in batches, from where the last run stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::CatalogError;
use super::view::{self, Feed, Step};
use crate::crypto::PublicKey;
use crate::events::{EventKind, Events};
use crate::hypercore::Core;
use crate::store::{Database, Durability};
use crate::time::now_ms;

/// How many entries one transaction takes at most.
const BATCH_ENTRIES: u64 = 2000;
/// Fewer entries are read where they are asked for.
const FEW_ENTRIES: u64 = 16;
/// How many bytes of entries one transaction takes at most (but at least one entry).
const BATCH_BYTES: usize = 1024 * 1024;
/// From how many entries on a transaction is a large one.
const LARGE_BATCH: usize = 500;
/// How long after the last entries memory for large batches is given back.
const REST: Duration = Duration::from_secs(1);
/// The shortest time between two `catalog-updated` events of one feed during a long replay.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// How long to gather entries between two batches.
const GATHER: Duration = Duration::from_millis(20);
/// How long to wait after a failure of the database before trying again.
const RETRY: Duration = Duration::from_secs(5);

/// How many large batches there are at once in this process, whatever the number of feeds: each takes some
/// megabytes.
static LARGE_BATCHES: Semaphore = Semaphore::const_new(4);

/// Entries that were read, and what they take of the large batches.
struct Batch {
    steps: Vec<Step>,
    _large: Option<SemaphorePermit<'static>>,
}

/// Replays one feed. Clones share the position.
#[derive(Clone)]
pub(super) struct Replay {
    database: Database,
    core: Core,
    events: Events,
    feed: Arc<Mutex<Feed>>,
    /// The fork that the feed is replayed at.
    fork: Arc<AtomicU64>,
    /// Whether the database was given more memory.
    is_wide: Arc<AtomicBool>,
    /// Whether it was said that nothing of the feed can be read.
    is_told: Arc<AtomicBool>,
}

impl Replay {
    pub(super) fn new(database: Database, core: Core, events: Events, feed: Feed) -> Self {
        let fork = Arc::new(AtomicU64::new(core.fork()));
        let (is_wide, is_told) = (Arc::default(), Arc::default());
        Self { database, core, events, feed: Arc::new(Mutex::new(feed)), fork, is_wide, is_told }
    }

    /// The feed as the view has it.
    pub(super) async fn feed(&self) -> Feed {
        self.feed.lock().await.clone()
    }

    /// Follows the feed until `cancel`, or until its core is closed.
    pub(super) async fn follow(self, cancel: CancellationToken) {
        let mut changes = self.core.subscribe();
        loop {
            changes.borrow_and_update();
            let retry = match self.catch_up().await {
                Ok(()) => false,
                Err(CatalogError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "replaying a catalog failed");
                    true
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = changes.changed() => {
                    if changed.is_err() || changes.borrow().closed {
                        return;
                    }
                }
                () = tokio::time::sleep(RETRY), if retry => {}
                () = tokio::time::sleep(REST), if self.is_wide.load(Ordering::Relaxed) => {
                    self.is_wide.store(false, Ordering::Relaxed);
                    if let Err(error) = self.database.narrow().await {
                        tracing::warn!(%error, "memory of the database was not given back");
                    }
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(GATHER) => {}
            }
        }
    }

    /// Replays every entry that is here. Cancelled, it may have replayed some.
    pub(super) async fn catch_up(&self) -> Result<(), CatalogError> {
        let mut feed = self.feed.lock().await;
        let fork = self.core.fork();
        if self.fork.load(Ordering::Relaxed) != fork {
            // The commit that stores the fork empties the view of the one before.
            self.core.flush().await?;
            let server = feed.server;
            let emptied = self.database.read(|connection| view::feed(connection, &server))?;
            *feed = emptied.ok_or(CatalogError::Moved)?;
            self.fork.store(fork, Ordering::Relaxed);
        }
        let mut reported = Instant::now();
        let mut changed = false;
        let mut batch = self.read(feed.position, fork).await?;
        while !batch.steps.is_empty() {
            // The view points at entries in the core: they must be there first.
            self.core.flush().await?;
            let (number, from) = (feed.number, feed.position);
            let after = from + batch.steps.len() as u64;
            let is_large = batch.steps.len() >= LARGE_BATCH;
            self.is_wide.fetch_or(is_large, Ordering::Relaxed);
            let core = self.core.clone();
            let write = self.database.write_with(Durability::Process, move |transaction| {
                // Gone when it is written: the next one may wait for its room.
                let Batch { steps, _large } = batch;
                if core.fork() != fork {
                    return Err(CatalogError::Moved);
                }
                if is_large {
                    Database::widen(transaction)?;
                }
                view::apply(transaction, number, from, &steps, now_ms())
            });
            // The next batch is read while the writer thread works on this one.
            let (written, next) = tokio::join!(write, self.read(after, fork));
            match written {
                Ok(moved) => *feed = moved,
                // The change is heard of, and the new fork replayed, in the next turn.
                Err(CatalogError::Moved) if self.core.fork() != fork => return Ok(()),
                // Somebody who stopped waiting for it has replayed this part.
                Err(CatalogError::Moved) => {
                    drop(next);
                    let found = self.database.read(|c| view::feed(c, &feed.server))?;
                    let is_ahead = |found: &Feed| found.number == number && found.position > from;
                    *feed = found.filter(is_ahead).ok_or(CatalogError::Moved)?;
                    batch = self.read(feed.position, fork).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            batch = next?;
            changed = true;
            if reported.elapsed() >= REPORT_INTERVAL {
                self.report(&feed.server, feed.position);
                (reported, changed) = (Instant::now(), false);
            }
        }
        if changed {
            self.report(&feed.server, feed.position);
        }
        self.complain(&feed);
        Ok(())
    }

    /// Says once that nothing of the feed can be read.
    fn complain(&self, feed: &Feed) {
        let trouble = feed.trouble(self.core.length());
        let is_told = self.is_told.swap(trouble.is_some(), Ordering::Relaxed);
        let Some(trouble) = trouble.filter(|_| !is_told) else { return };
        tracing::warn!(peer = feed.server.short(), "no entry of a peer's catalog can be read");
        let message = format!("the server {}: {trouble}", feed.server.to_z32());
        self.events.emit(EventKind::Status { layer: "catalog".to_owned(), ok: false, message });
    }

    /// The next entries of a fork; none when the core is at another by now. Many are read on a thread
    /// of their own: the network does not wait for them.
    async fn read(&self, from: u64, fork: u64) -> Result<Batch, CatalogError> {
        let end = self.core.length().min(from.saturating_add(BATCH_ENTRIES));
        if end <= from {
            return Ok(Batch { steps: Vec::new(), _large: None });
        }
        let is_large = (end - from) as usize >= LARGE_BATCH;
        let large = if is_large { LARGE_BATCHES.acquire().await.ok() } else { None };
        let core = self.core.clone();
        let read = move || {
            let blocks: Vec<Bytes> = core.range(from..end, BATCH_BYTES)?;
            let mut steps: Vec<Step> = blocks.iter().map(|block| Step::read(block)).collect();
            if core.fork() != fork {
                steps.clear();
            }
            Ok(Batch { steps, _large: large })
        };
        if end - from < FEW_ENTRIES {
            return read();
        }
        crate::tasks::blocking(read).await.map_err(|_| CatalogError::Closed)?
    }

    fn report(&self, server: &PublicKey, length: u64) {
        self.events.emit(EventKind::CatalogUpdated { peer: server.to_z32(), length });
    }
}
