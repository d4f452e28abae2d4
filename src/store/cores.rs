//! Cores in the database: what [`crate::hypercore`] keeps of its logs.
//!
//! Tree nodes are packed 96 to a row, because a download or an append touches neighbours; the pages
//! used last are kept in memory for all cores together.

mod copy;
mod pages;
mod rows;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rusqlite::Connection;

pub(crate) use self::copy::copy_core;
use self::pages::{NodePage, PAGE_NODES, PageCache};
use super::tail::Tail;
use super::{Database, Durability, StoreError};
use crate::crypto::Hash;
use crate::error::{Error, ErrorCode};
use crate::hypercore::Node;
use crate::hypercore::bitfield::Page;
use crate::hypercore::storage::{
    Commit, Committing, CoreStorage, Header, Note, Result, Storage, StorageError, StorageErrorKind,
    Survives,
};
use crate::sync::lock;

/// The cores of a database. Clones share it, and what is open.
#[derive(Clone)]
pub struct CoreStore {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    open: Mutex<HashSet<Hash>>,
    cache: Mutex<PageCache>,
    tail: Tail,
}

/// The place of one core.
struct Place {
    shared: Arc<Shared>,
    discovery_key: Hash,
    /// The row's id; 0 until it is known.
    id: Arc<AtomicI64>,
    ahead: Arc<Mutex<ReadAhead>>,
    closed: AtomicBool,
}

/// Blocks that were read because those before them were asked for one after the other: one query for
/// many is several times faster.
#[derive(Default)]
struct ReadAhead {
    blocks: HashMap<u64, Bytes>,
    next: u64,
    /// Counts removals of blocks, so that a read that one overtook is not kept.
    generation: u64,
}

/// How many blocks, and how many bytes of them, are read ahead.
const AHEAD_BLOCKS: u64 = 128;
const AHEAD_BYTES: usize = 64 * 1024;

impl From<StoreError> for StorageError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        let kind = match Error::from(error).code {
            ErrorCode::DiskFull => StorageErrorKind::Full,
            ErrorCode::Corrupt => StorageErrorKind::Corrupt,
            ErrorCode::Io => StorageErrorKind::Io,
            ErrorCode::Busy => StorageErrorKind::Busy,
            ErrorCode::Closed => StorageErrorKind::Closed,
            _ => StorageErrorKind::Other,
        };
        Self::new(kind, message)
    }
}

impl CoreStore {
    /// The cores of `database`. One is enough for all: only its clones know what is open.
    #[must_use]
    pub fn new(database: Database) -> Self {
        let tail = Tail::of(&database.inner.path);
        let (open, cache) = (Mutex::default(), Mutex::new(PageCache::default()));
        Self { shared: Arc::new(Shared { database, open, cache, tail }) }
    }
}

impl Storage for CoreStore {
    fn open(&self, discovery_key: &Hash) -> Result<Box<dyn CoreStorage>> {
        if !lock(&self.shared.open).insert(*discovery_key) {
            let kind = StorageErrorKind::AlreadyOpen;
            return Err(StorageError::new(kind, "the core is open already"));
        }
        Ok(Box::new(Place {
            shared: Arc::clone(&self.shared),
            discovery_key: *discovery_key,
            id: Arc::new(AtomicI64::new(0)),
            ahead: Arc::default(),
            closed: AtomicBool::new(false),
        }))
    }

    fn remove(&self, discovery_key: &Hash) -> Committing {
        let (shared, key) = (Arc::clone(&self.shared), *discovery_key);
        if !lock(&shared.open).insert(key) {
            let error = StorageError::new(StorageErrorKind::AlreadyOpen, "the core is open");
            return Box::pin(std::future::ready(Err(error)));
        }
        detached(async move {
            let is_there =
                shared.database.read(|c| Ok::<_, StoreError>(rows::id(c, &key)?.is_some()));
            if let Ok(false) = is_there {
                lock(&shared.open).remove(&key);
                return Ok(());
            }
            let removed = shared
                .database
                .write_with(Durability::Process, move |transaction| {
                    Ok::<_, StoreError>(rows::remove(transaction, &key)?)
                })
                .await;
            if let Ok(Some(id)) = removed {
                lock(&shared.cache).forget(id);
                shared.tail.forget(&key);
            }
            lock(&shared.open).remove(&key);
            Ok(removed.map(drop)?)
        })
    }
}

impl Place {
    fn read<T>(
        &self,
        work: impl FnOnce(&Connection, i64) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let read = self.shared.database.read(|connection| {
            let id = match self.id.load(Ordering::Relaxed) {
                0 => match rows::id(connection, &self.discovery_key)? {
                    Some(id) => id,
                    None => return Ok(None),
                },
                id => id,
            };
            self.id.store(id, Ordering::Relaxed);
            Ok::<_, StoreError>(Some(work(connection, id)?))
        })?;
        Ok(read)
    }

    fn page(&self, number: u64) -> Result<Option<NodePage>> {
        let id = self.id.load(Ordering::Relaxed);
        let generation = {
            let cache = lock(&self.shared.cache);
            if let Some(page) = cache.get(id, number) {
                return Ok(Some(page));
            }
            cache.generation()
        };
        let found = self.read(|connection, id| Ok((id, rows::page(connection, id, number)?)))?;
        let Some((id, page)) = found else { return Ok(None) };
        lock(&self.shared.cache).insert_read(id, number, page.clone(), generation);
        Ok(Some(page))
    }
}

impl CoreStorage for Place {
    fn header(&self) -> Result<Option<Header>> {
        self.read(rows::header)
    }

    fn node(&self, index: u64) -> Result<Option<Node>> {
        let page = self.page(index / PAGE_NODES)?;
        Ok(page.and_then(|page| page.node(index)))
    }

    fn block(&self, index: u64) -> Result<Option<Bytes>> {
        let (in_order, generation) = {
            let mut ahead = lock(&self.ahead);
            let in_order = std::mem::replace(&mut ahead.next, index.saturating_add(1)) == index;
            if let Some(block) = ahead.blocks.remove(&index) {
                return Ok(Some(block));
            }
            (in_order, ahead.generation)
        };
        if in_order {
            let end = index.saturating_add(AHEAD_BLOCKS);
            let mut blocks: HashMap<u64, Bytes> =
                self.blocks(index, end, AHEAD_BYTES)?.into_iter().collect();
            let block = blocks.remove(&index);
            let mut ahead = lock(&self.ahead);
            if ahead.generation == generation {
                ahead.blocks = blocks;
            }
            return Ok(block);
        }
        Ok(self.read(|connection, id| rows::block(connection, id, index))?.flatten())
    }

    fn blocks(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<(u64, Bytes)>> {
        let blocks =
            self.read(|connection, id| rows::blocks(connection, id, start, end, max_bytes))?;
        Ok(blocks.unwrap_or_default())
    }

    fn pages(&self) -> Result<Vec<(u64, Box<Page>)>> {
        self.read(rows::bits)?.unwrap_or_else(|| Ok(Vec::new()))
    }

    fn commit(&self, commit: Arc<Commit>) -> Committing {
        let (shared, key) = (Arc::clone(&self.shared), self.discovery_key);
        let (known, ahead) = (Arc::clone(&self.id), Arc::clone(&self.ahead));
        let removes = commit.truncate.is_some() || !commit.removed_blocks.is_empty();
        let truncates = commit.truncate.is_some();
        let has_header = commit.header.is_some();
        let durability = match commit.survives {
            Survives::Process => Durability::Process,
            Survives::Power => Durability::Power,
        };
        detached(async move {
            let write = move |transaction: &rusqlite::Transaction<'_>| {
                rows::commit(transaction, &key, &commit).map_err(StoreError::from)
            };
            let (id, pages) = shared.database.write_with(durability, write).await?;
            // Not before it is committed, or a reader could put the old page back.
            {
                let mut cache = lock(&shared.cache);
                if truncates {
                    cache.forget(id);
                }
                cache.insert_written(id, pages);
            }
            known.store(id, Ordering::Relaxed);
            if has_header {
                shared.tail.forget(&key);
            }
            if removes {
                let mut ahead = lock(&ahead);
                ahead.generation += 1;
                ahead.blocks.clear();
            }
            Ok(())
        })
    }

    fn takes_notes(&self) -> bool {
        self.shared.tail.takes()
    }

    fn note(&self, note: &Note) -> bool {
        self.shared.tail.put(&self.discovery_key, note)
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.shared.tail.notes(&self.discovery_key)
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            let mut open = lock(&self.shared.open);
            open.remove(&self.discovery_key);
            if open.is_empty() {
                self.shared.tail.tidy();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs to its end whether or not it is waited for: the cache must see what the database has.
fn detached(work: impl Future<Output = Result<()>> + Send + 'static) -> Committing {
    let task = crate::tasks::spawn(work);
    Box::pin(async move {
        task.await.unwrap_or_else(|error| {
            Err(StorageError::new(StorageErrorKind::Other, error.to_string()))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;
    use crate::hypercore::messages::{RequestNode, RequestUpgrade};
    use crate::hypercore::{Core, CoreError, CreateOptions, Manifest, OpenOptions, Request};

    fn store(dir: &tempfile::TempDir) -> (Database, CoreStore) {
        let database = Database::open(&dir.path().join("p2p.db")).unwrap();
        (database.clone(), CoreStore::new(database))
    }

    fn pair() -> KeyPair {
        KeyPair::from_seed(&[5; 32])
    }

    fn manifest(core: u8) -> Manifest {
        Manifest::single_in(pair().public_key(), [core; 32])
    }

    fn create(store: &CoreStore, core: u8) -> Core {
        let options =
            CreateOptions { manifest: manifest(core), writer: Some(pair()), compat: false };
        Core::create(store, options).unwrap()
    }

    fn open(store: &CoreStore, core: u8) -> Core {
        let (manifest, writer) = (Some(manifest(core)), Some(pair()));
        let key = manifest.as_ref().map(Manifest::key).unwrap();
        Core::open(store, key, OpenOptions { manifest, writer, ..OpenOptions::default() }).unwrap()
    }

    fn block(core: u8, index: u64) -> Bytes {
        format!("{core}:{index}").into()
    }

    fn download(reader: &Core, source: &Core) {
        let start = reader.length();
        let upgrade = Some(RequestUpgrade { start, length: source.length() - start });
        let request = Request { id: 1, upgrade, manifest: true, ..Request::default() };
        reader.apply(&source.prove(&request).unwrap().unwrap()).unwrap();
        for index in 0..source.length() {
            let nodes = reader.missing_nodes(2 * index).unwrap();
            let block = Some(RequestNode { index, nodes });
            let request = Request { id: 1, block, ..Request::default() };
            reader.apply(&source.prove(&request).unwrap().unwrap()).unwrap();
        }
    }

    #[tokio::test]
    async fn many_cores_share_a_database_and_are_there_when_it_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (database, cores) = store(&dir);
        for core in 0..5 {
            let log = create(&cores, core);
            for round in 0..3 {
                let blocks = (0..100).map(|index| block(core, round * 100 + index)).collect();
                log.append(blocks).await.unwrap();
            }
        }
        database.close();
        let (_database, cores) = store(&dir);
        for core in 0..5 {
            let log = open(&cores, core);
            assert_eq!((log.length(), log.contiguous_length()), (300, 300));
            let blocks: Vec<_> = (0..300).map(|index| block(core, index)).collect();
            assert_eq!(log.range(0..900, usize::MAX).unwrap(), blocks);
            assert_eq!(log.get(299).unwrap(), Some(block(core, 299)));
            assert_eq!(log.append(vec![block(core, 300)]).await.unwrap(), 301);
        }
    }

    #[tokio::test]
    async fn a_download_is_there_after_it_was_flushed() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (_source_db, sources) = store(&here);
        let source = create(&sources, 1);
        source.append((0..1_000).map(|index| block(1, index)).collect()).await.unwrap();
        let (database, cores) = store(&there);
        let copy = Core::open(&cores, *source.key(), OpenOptions::default()).unwrap();
        download(&copy, &source);
        copy.flush().await.unwrap();
        drop(copy);
        database.close();
        let (_database, cores) = store(&there);
        let copy = Core::open(&cores, *source.key(), OpenOptions::default()).unwrap();
        assert_eq!(copy.state(), source.state());
        assert!(copy.verify(None).await.unwrap().whole);
    }

    #[tokio::test]
    async fn a_removed_core_is_gone_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (database, cores) = store(&dir);
        for core in 0..3 {
            create(&cores, core).append(vec![block(core, 0); 200]).await.unwrap();
        }
        let key = crate::crypto::discovery_key(&manifest(1).key());
        let held = open(&cores, 1);
        let refused = cores.remove(&key).await.unwrap_err();
        assert_eq!(refused.kind, StorageErrorKind::AlreadyOpen);
        drop(held);
        cores.remove(&key).await.unwrap();
        cores.remove(&key).await.unwrap();
        assert_eq!([0, 1, 2].map(|core| open(&cores, core).length()), [200, 0, 200]);
        let rows = |table: &str| {
            let sql = format!("SELECT count(*) FROM {table}");
            database
                .read(|c| Ok::<i64, StoreError>(c.query_row(&sql, [], |row| row.get(0))?))
                .unwrap()
        };
        assert_eq!((rows("core_blocks"), rows("cores"), rows("core_bits")), (400, 2, 2));
        create(&cores, 3).append(vec![block(3, 0)]).await.unwrap();
        assert_eq!(open(&cores, 3).get(0).unwrap(), Some(block(3, 0)));
    }

    #[tokio::test]
    async fn damage_to_the_database_is_an_error_with_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let (database, cores) = store(&dir);
        let log = create(&cores, 1);
        log.append((0..300).map(|index| block(1, index)).collect()).await.unwrap();
        database
            .write(|t| {
                t.execute("UPDATE core_blocks SET bytes = x'00' WHERE place % 300 = 3", [])?;
                t.execute("DELETE FROM core_blocks WHERE place % 1000 = 900", [])?;
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        let damaged: Vec<_> = (0..300).filter(|index| log.get(*index).is_err()).collect();
        assert!(!damaged.is_empty());
        for index in &damaged {
            let error = log.get(*index).unwrap_err();
            let named = matches!(error, CoreError::CorruptBlock(_) | CoreError::MissingBlock(_));
            assert!(named, "{error}");
        }
        assert_eq!(log.verify(None).await.unwrap().bad, damaged);
        assert!(!log.has(damaged[0]));
        log.close().await.unwrap();
        database
            .write(|t| {
                t.execute("UPDATE core_nodes SET nodes = zeroblob(length(nodes))", [])?;
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        let cores = CoreStore::new(database);
        let refused = Core::open(&cores, manifest(1).key(), OpenOptions::default());
        assert!(matches!(refused, Err(CoreError::MissingNode(_))), "{refused:?}");
    }
}
