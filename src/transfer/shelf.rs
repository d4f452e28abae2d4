//! The books that peers may read now: files hashed into static cores, opened while somebody has a
//! grant, and served by [`Grants`] block for block.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{OptionalExtension, params};
use tokio::io::AsyncWriteExt;

use super::grants::Grants;
use super::held::{self, Held, HeldStorage, Room};
use super::library::{BookSource, Description, Provided};
use super::message::BookCore;
use super::permission::{edition_of_file, edition_on_demand};
use super::policy::PeerRules;
use super::space::{Reservation, Space};
use crate::crypto::{Hash, PublicKey, random};
use crate::error::{Error, ErrorCode, Result};
use crate::hypercore::replicator::{CoreHandle, Download, Policy, Replicator};
use crate::hypercore::{
    BLOCK_SIZE, BlockSource, Core, CoreError, FileAccess, Manifest, OpenOptions, StaticTree,
    Storage,
};
use crate::store::{Database, Durability, StoreError};

/// How long a program's provider may take to answer, and then between two pieces of the book.
const PROVIDER_PATIENCE: Duration = Duration::from_secs(60);
/// How much of a streamed book is read at once.
const CHUNK: usize = 64 * 1024;

/// The open book cores.
pub(super) struct Shelf {
    database: Database,
    storage: Arc<dyn Storage>,
    replicator: Replicator,
    folder: PathBuf,
    max_book_bytes: u64,
    pub(super) grants: Arc<Grants>,
    space: Space,
    next_ticket: AtomicU64,
    open: tokio::sync::Mutex<HashMap<Hash, OpenBook>>,
    /// How many files are hashed at a time.
    hashing: tokio::sync::Semaphore,
    /// How many streamed books are written down at a time.
    spooling: tokio::sync::Semaphore,
    /// For small books that are open.
    room: Room,
}

struct OpenBook {
    core: Core,
    handle: CoreHandle,
    tickets: HashSet<u64>,
    /// A file that was written for this and goes with it.
    spooled: Option<PathBuf>,
    /// A small book is in memory.
    _held: Option<Held>,
}

/// Files are hashed on two threads each; several at once keep those busy while others wait for the disk.
const HASHED_AT_ONCE: usize = 4;
/// Streamed books that are written down at once, for all peers together.
const SPOOLED_AT_ONCE: usize = 4;
/// For how many bytes at a time a streamed book asks whether the disk has room.
const SPOOL_STEP: u64 = 8 << 20;

/// The right to an open book core, until it is given back with [`Shelf::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) book: BookCore,
    /// The edition of the book that the bytes are of.
    pub(super) edition: Hash,
    number: u64,
}

/// How far a reader of a core is.
pub(super) struct Reader {
    /// It says that it has all blocks below.
    pub(super) claimed_blocks: u64,
    /// So many bytes of blocks were sent to it since the core was opened.
    pub(super) sent_bytes: u64,
}

/// A book whose core is to be made ready.
pub(super) struct Wanted<'a> {
    pub(super) book_id: &'a str,
    pub(super) book: &'a Description,
    pub(super) source: BookSource,
}

impl Shelf {
    /// Spools streamed books into `folder`; what an earlier run left there is deleted.
    pub(super) fn new(
        database: Database,
        storage: Arc<dyn Storage>,
        replicator: Replicator,
        folder: PathBuf,
        max_book_bytes: u64,
        rules: Arc<dyn PeerRules>,
        space: Space,
    ) -> std::io::Result<Self> {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            database,
            storage,
            replicator,
            folder,
            max_book_bytes,
            grants: Arc::new(Grants::new(rules)),
            space,
            next_ticket: AtomicU64::new(0),
            open: tokio::sync::Mutex::default(),
            hashing: tokio::sync::Semaphore::new(HASHED_AT_ONCE),
            spooling: tokio::sync::Semaphore::new(SPOOLED_AT_ONCE),
            room: Room::default(),
        })
    }

    /// Makes the book's core ready to be served; hashes the file if that was not done before. Nobody
    /// may read it yet.
    pub(super) async fn prepare(&self, wanted: Wanted<'_>) -> Result<Ticket> {
        let on_demand = match &wanted.source {
            BookSource::Path(_) => None,
            BookSource::OnDemand(_) => Some(edition_on_demand(wanted.book_id, wanted.book)),
        };
        let (path, is_spooled) = self.file_of(wanted.book_id, wanted.source).await?;
        let _turn = self.hashing.acquire().await.map_err(|_| Error::closed())?;
        let prepared = match stamp(&path, self.max_book_bytes) {
            Ok(stamp) => {
                let of_file = || edition_of_file(&path.to_string_lossy(), Some(stamp));
                let edition = on_demand.unwrap_or_else(of_file);
                let prepared = self.prepare_file(&path, is_spooled, stamp).await;
                prepared.map(|ticket| Ticket { edition, ..ticket })
            }
            Err(error) => Err(error),
        };
        if prepared.is_err() && is_spooled {
            remove_quietly(&path);
        }
        prepared
    }

    async fn prepare_file(
        &self,
        path: &Path,
        is_spooled: bool,
        stamp: (u64, i64),
    ) -> Result<Ticket> {
        if let Some(held) = self.room.take(stamp.0) {
            return self.prepare_small(path, is_spooled, stamp.0, held).await;
        }
        let known = if is_spooled { None } else { self.known(path, stamp)? };
        let mut open = self.open.lock().await;
        if let Some(book) = known
            && let Some(entry) = open.get_mut(&book.key)
        {
            return Ok(self.ticket(entry, book));
        }
        let reopened = known.and_then(|book| Some((book, self.reopen(path, &book)?)));
        let (book, core) = match reopened {
            Some(reopened) => reopened,
            None => {
                drop(open);
                let tree = StaticTree::build(path, None).await?;
                let book = core_of(&tree);
                open = self.open.lock().await;
                if let Some(entry) = open.get_mut(&book.key) {
                    if is_spooled {
                        remove_quietly(path);
                    }
                    return Ok(self.ticket(entry, book));
                }
                // Together, for the database writes in one go what comes at one time.
                let (core, remembered) =
                    tokio::join!(Core::open_static(&*self.storage, &tree), async {
                        if is_spooled { Ok(()) } else { self.remember(path, stamp, book).await }
                    },);
                let core = core?;
                remembered?;
                (book, core)
            }
        };
        let spooled = is_spooled.then(|| path.to_owned());
        Ok(self.offer(&mut open, book, core, spooled, None))
    }

    /// As [`Shelf::prepare_file`], through memory. Neither the tree nor the key is worth keeping.
    async fn prepare_small(
        &self,
        path: &Path,
        is_spooled: bool,
        size: u64,
        held: Held,
    ) -> Result<Ticket> {
        let from = path.to_owned();
        let tree = crate::tasks::blocking(move || held::tree_of(&from, size)).await;
        let tree = tree.map_err(|_| Error::closed())??;
        let book = core_of(&tree);
        let mut open = self.open.lock().await;
        if let Some(entry) = open.get_mut(&book.key) {
            if is_spooled {
                remove_quietly(path);
            }
            return Ok(self.ticket(entry, book));
        }
        let core = Core::open_static(&HeldStorage { names: &*self.storage }, &tree).await?;
        let spooled = is_spooled.then(|| path.to_owned());
        Ok(self.offer(&mut open, book, core, spooled, Some(held)))
    }

    /// Has a core ready for whoever gets a grant.
    fn offer(
        &self,
        open: &mut HashMap<Hash, OpenBook>,
        book: BookCore,
        core: Core,
        spooled: Option<PathBuf>,
        held: Option<Held>,
    ) -> Ticket {
        let (grants, key) = (Arc::clone(&self.grants), book.key);
        let admits: Arc<dyn Fn(&PublicKey) -> bool + Send + Sync> =
            Arc::new(move |peer| grants.allows(peer, &key));
        let policy =
            Policy { download: Download::None, upload: Arc::clone(&admits), peers: Some(admits) };
        let handle = self.replicator.add(core.clone(), policy);
        let entry = open.entry(key).or_insert(OpenBook {
            core,
            handle,
            tickets: HashSet::new(),
            spooled,
            _held: held,
        });
        self.ticket(entry, book)
    }

    fn ticket(&self, entry: &mut OpenBook, book: BookCore) -> Ticket {
        let number = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        entry.tickets.insert(number);
        Ticket { book, edition: [0; 32], number }
    }

    /// The core of a file that was hashed in an earlier run; `None` when its data are gone.
    fn reopen(&self, path: &Path, book: &BookCore) -> Option<Core> {
        let options = OpenOptions {
            manifest: Some(Manifest::fixed(book.hash, book.length)),
            writer: None,
            blocks: BlockSource::File {
                path: path.to_owned(),
                block_size: BLOCK_SIZE,
                access: FileAccess::Read,
            },
        };
        let core = Core::open(&*self.storage, book.key, options).ok()?;
        (core.contiguous_length() == book.length).then_some(core)
    }

    /// Has whoever waits for the core with this key look at the grants again.
    pub(super) async fn refresh(&self, key: &Hash) {
        if let Some(entry) = self.open.lock().await.get(key) {
            entry.handle.refresh();
        }
    }

    /// Gives a ticket back. A core without tickets is closed, and a spooled file deleted.
    pub(super) async fn release(&self, ticket: Ticket) {
        let mut open = self.open.lock().await;
        let Some(entry) = open.get_mut(&ticket.book.key) else { return };
        entry.tickets.remove(&ticket.number);
        if !entry.tickets.is_empty() {
            entry.handle.refresh();
            return;
        }
        if let Some(entry) = open.remove(&ticket.book.key) {
            entry.close().await;
        }
    }

    /// How many blocks `peer` says it has, and how many bytes it was sent; `None` when the core is not open.
    pub(super) async fn reader(&self, key: &Hash, peer: &PublicKey) -> Option<Reader> {
        let open = self.open.lock().await;
        let handle = &open.get(key)?.handle;
        let info = handle.peers().into_iter().find(|info| info.public_key == *peer);
        let claimed_blocks = info.map_or(0, |info| info.remote_contiguous_length);
        Some(Reader { claimed_blocks, sent_bytes: handle.uploaded_bytes(peer) })
    }

    /// Why a block of the core could not be read for `peer`, if so; said once.
    pub(super) async fn take_unreadable(&self, key: &Hash, peer: &PublicKey) -> Option<CoreError> {
        self.open.lock().await.get(key)?.handle.take_unreadable(peer)
    }

    /// Closes every core.
    pub(super) async fn close(&self) {
        let mut open = self.open.lock().await;
        for (_, entry) in open.drain() {
            entry.close().await;
        }
    }

    /// The file with the book's bytes, and whether it was written just for this.
    async fn file_of(&self, book_id: &str, source: BookSource) -> Result<(PathBuf, bool)> {
        let provider = match source {
            BookSource::Path(path) => return Ok((path, false)),
            BookSource::OnDemand(provider) => provider,
        };
        let provided = tokio::time::timeout(PROVIDER_PATIENCE, provider(book_id.to_owned()))
            .await
            .map_err(|_| unavailable("the program did not provide the book in time"))?
            .map_err(|reason| {
                unavailable(&format!("the program did not provide the book: {reason}"))
            })?;
        match provided {
            Provided::Path(path) => Ok((path, false)),
            Provided::Reader(reader) => {
                let _turn = self.spooling.acquire().await.map_err(|_| Error::closed())?;
                let path = self.folder.join(format!("{}.book", z32::encode(&random::<16>())));
                let spooled = self.spool(reader, &path).await;
                if spooled.is_err() {
                    remove_quietly(&path);
                }
                spooled.map(|()| (path, true))
            }
        }
    }

    /// Writes a streamed book into a file. How large it is shows at its end, so it asks for room step by step.
    async fn spool(
        &self,
        mut reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
        path: &Path,
    ) -> Result<()> {
        use tokio::io::AsyncReadExt;
        tokio::fs::create_dir_all(&self.folder).await?;
        let mut file = tokio::fs::File::create_new(path).await?;
        let (mut chunk, mut total) = (vec![0; CHUNK], 0u64);
        let mut room = self.room_to_spool().await?;
        let mut room_until = SPOOL_STEP;
        loop {
            let read = tokio::time::timeout(PROVIDER_PATIENCE, reader.read(&mut chunk))
                .await
                .map_err(|_| unavailable("the program stopped providing the book halfway"))?
                .map_err(|error| {
                    unavailable(&format!("the program did not provide the book: {error}"))
                })?;
            let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            total += read as u64;
            if total > self.max_book_bytes {
                return Err(Error::new(
                    ErrorCode::LimitExceeded,
                    "the book is larger than books may be",
                ));
            }
            if total > room_until {
                // What was written is not free any more.
                file.flush().await?;
                room.shrink_to(0);
                room = self.room_to_spool().await?;
                room_until = total + SPOOL_STEP;
            }
            file.write_all(bytes).await?;
        }
        file.flush().await?;
        Ok(())
    }

    async fn room_to_spool(&self) -> Result<Reservation> {
        let (space, folder) = (self.space.clone(), self.folder.clone());
        let room = crate::tasks::blocking(move || space.reserve(&[(&folder, SPOOL_STEP)])).await;
        room.map_err(|_| Error::closed())?
    }

    fn known(&self, path: &Path, (size, modified): (u64, i64)) -> Result<Option<BookCore>> {
        let known = self.database.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT core_key, tree_hash, length FROM transfer_files \
                     WHERE path = ?1 AND size = ?2 AND modified_ns = ?3",
                )?
                .query_row(params![path.to_string_lossy(), size, modified], |row| {
                    Ok(BookCore {
                        key: row.get(0)?,
                        hash: row.get(1)?,
                        length: row.get(2)?,
                        byte_length: size,
                    })
                })
                .optional()
                .map_err(StoreError::from)
        })?;
        Ok(known)
    }

    async fn remember(&self, path: &Path, stamp: (u64, i64), book: BookCore) -> Result<()> {
        let path = path.to_string_lossy().into_owned();
        let (size, modified) = stamp;
        let write = self.database.write_with(Durability::Process, move |transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO transfer_files \
                 (path, size, modified_ns, core_key, tree_hash, length) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![path, size, modified, book.key, book.hash, book.length],
            )?;
            Ok::<_, StoreError>(())
        });
        Ok(write.await?)
    }
}

impl OpenBook {
    async fn close(self) {
        self.handle.close();
        if let Err(error) = self.core.close().await {
            tracing::warn!(%error, "a book's core did not close cleanly");
        }
        if let Some(path) = self.spooled {
            remove_quietly(&path);
        }
    }
}

fn core_of(tree: &StaticTree) -> BookCore {
    BookCore { key: tree.key, hash: tree.hash, length: tree.length, byte_length: tree.byte_length }
}

/// Size and time of change in nanoseconds, by which a file is known again.
fn stamp(path: &Path, max_bytes: u64) -> Result<(u64, i64)> {
    let file = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => unavailable("the book's file is not there any more"),
        _ => Error::from(error),
    })?;
    if !file.is_file() || file.len() == 0 {
        return Err(unavailable("the book's file is empty or not a file"));
    }
    if file.len() > max_bytes {
        return Err(Error::new(ErrorCode::LimitExceeded, "the book is larger than books may be"));
    }
    Ok(stamp_in(&file))
}

/// A file's size and time of change; `None` when there is no file. Blocks on disk.
pub(super) fn stamp_of(path: &Path) -> Option<(u64, i64)> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| stamp_in(&file))
}

fn stamp_in(file: &std::fs::Metadata) -> (u64, i64) {
    let modified = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let nanos = modified.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0);
    (file.len(), nanos)
}

fn unavailable(message: &str) -> Error {
    Error::new(ErrorCode::Unavailable, message)
}

fn remove_quietly(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, "a spooled book was not deleted");
    }
}
