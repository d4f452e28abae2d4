//! The books that peers may read now: files hashed into static cores, opened while somebody has a
//! grant, and served by [`Grants`] block for block.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{OptionalExtension, params};
use tokio::io::AsyncWriteExt;

use super::held::{self, Held, HeldStorage, Room};
use super::library::{BookSource, Provided};
use super::message::BookCore;
use super::part::disown;
use crate::crypto::{Hash, PublicKey, random};
use crate::error::{Error, ErrorCode, Result};
use crate::hypercore::replicator::{CoreHandle, Download, PeerInfo, Policy, Replicator};
use crate::hypercore::{
    BLOCK_SIZE, BlockSource, Core, FileAccess, Manifest, OpenOptions, StaticTree, Storage,
};
use crate::store::{Database, Durability, StoreError};
use crate::sync::lock;

/// How long a program's provider may take to answer, and then between two pieces of the book.
const PROVIDER_PATIENCE: Duration = Duration::from_secs(60);
/// How much of a streamed book is read at once.
const CHUNK: usize = 64 * 1024;

/// Who may read which core, for which transfer.
#[derive(Default)]
pub(super) struct Grants {
    held: Mutex<HashMap<(PublicKey, Hash), HashSet<String>>>,
}

impl Grants {
    /// Whether `peer` may have blocks of the core with this key. Asked for every block.
    pub(super) fn allows(&self, peer: &PublicKey, key: &Hash) -> bool {
        lock(&self.held).contains_key(&(*peer, *key))
    }

    fn add(&self, peer: PublicKey, key: Hash, transfer: String) {
        lock(&self.held).entry((peer, key)).or_default().insert(transfer);
    }

    fn remove(&self, peer: PublicKey, key: Hash, transfer: &str) {
        let mut held = lock(&self.held);
        if let Some(transfers) = held.get_mut(&(peer, key)) {
            transfers.remove(transfer);
            if transfers.is_empty() {
                held.remove(&(peer, key));
            }
        }
    }
}

/// The open book cores.
pub(super) struct Shelf {
    database: Database,
    storage: Arc<dyn Storage>,
    replicator: Replicator,
    folder: PathBuf,
    max_book_bytes: u64,
    grants: Arc<Grants>,
    next_ticket: AtomicU64,
    open: tokio::sync::Mutex<HashMap<Hash, OpenBook>>,
    /// How many files are hashed at a time.
    hashing: tokio::sync::Semaphore,
    /// For small books that are open.
    room: Room,
}

struct OpenBook {
    core: Core,
    handle: CoreHandle,
    path: PathBuf,
    tickets: HashSet<u64>,
    /// A file that was written for this and goes with it.
    spooled: Option<PathBuf>,
    /// A small book is in memory.
    _held: Option<Held>,
}

/// Files are hashed on two threads each; several at once keep those busy while others wait for the disk.
const HASHED_AT_ONCE: usize = 4;

/// The right to an open book core, until it is given back with [`Shelf::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) book: BookCore,
    number: u64,
}

impl Shelf {
    /// Spools streamed books into `folder`; what an earlier run left there is deleted.
    pub(super) fn new(
        database: Database,
        storage: Arc<dyn Storage>,
        replicator: Replicator,
        folder: PathBuf,
        max_book_bytes: u64,
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
            grants: Arc::default(),
            next_ticket: AtomicU64::new(0),
            open: tokio::sync::Mutex::default(),
            hashing: tokio::sync::Semaphore::new(HASHED_AT_ONCE),
            room: Room::default(),
        })
    }

    /// Makes the book's core ready to be served; hashes the file if that was not done before. Nobody
    /// may read it yet.
    pub(super) async fn prepare(&self, book_id: &str, source: BookSource) -> Result<Ticket> {
        let (path, is_spooled) = self.file_of(book_id, source).await?;
        let prepared = self.prepare_file(&path, is_spooled).await;
        if prepared.is_err() && is_spooled {
            remove_quietly(&path);
        }
        prepared
    }

    async fn prepare_file(&self, path: &Path, is_spooled: bool) -> Result<Ticket> {
        let _turn = self.hashing.acquire().await.map_err(|_| Error::closed())?;
        let stamp = stamp(path, self.max_book_bytes)?;
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
                let (core, (), remembered) = tokio::join!(
                    Core::open_static(&*self.storage, &tree),
                    disown(&self.database, book.key),
                    async {
                        if is_spooled { Ok(()) } else { self.remember(path, stamp, book).await }
                    },
                );
                let core = core?;
                remembered?;
                (book, core)
            }
        };
        let spooled = is_spooled.then(|| path.to_owned());
        Ok(self.offer(&mut open, book, core, path, spooled, None))
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
        Ok(self.offer(&mut open, book, core, path, spooled, Some(held)))
    }

    /// Has a core ready for whoever gets a grant.
    fn offer(
        &self,
        open: &mut HashMap<Hash, OpenBook>,
        book: BookCore,
        core: Core,
        path: &Path,
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
            path: path.to_owned(),
            tickets: HashSet::new(),
            spooled,
            _held: held,
        });
        self.ticket(entry, book)
    }

    fn ticket(&self, entry: &mut OpenBook, book: BookCore) -> Ticket {
        let number = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        entry.tickets.insert(number);
        Ticket { book, number }
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

    /// Lets `peer` read the core for this transfer.
    pub(super) async fn grant(&self, ticket: Ticket, peer: PublicKey, transfer: &str) {
        self.grants.add(peer, ticket.book.key, transfer.to_owned());
        self.refresh(&ticket.book.key).await;
    }

    /// Takes the right to read back, at once. [`Shelf::release`] then closes what nobody reads.
    pub(super) fn revoke(&self, key: Hash, peer: PublicKey, transfer: &str) {
        self.grants.remove(peer, key, transfer);
    }

    async fn refresh(&self, key: &Hash) {
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

    /// The file of a core that is open here.
    pub(super) async fn path_of(&self, key: &Hash) -> Option<PathBuf> {
        self.open.lock().await.get(key).map(|entry| entry.path.clone())
    }

    /// How `peer` does with the core.
    pub(super) async fn reader(&self, key: &Hash, peer: &PublicKey) -> Option<PeerInfo> {
        let open = self.open.lock().await;
        open.get(key)?.handle.peers().into_iter().find(|info| info.public_key == *peer)
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
                let path = self.folder.join(format!("{}.book", z32::encode(&random::<16>())));
                let spooled = spool(reader, &path, self.max_book_bytes).await;
                if spooled.is_err() {
                    remove_quietly(&path);
                }
                spooled.map(|()| (path, true))
            }
        }
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
    let modified = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let nanos = modified.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0);
    Ok((file.len(), nanos))
}

/// Writes a streamed book into a file.
async fn spool(
    mut reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
    path: &Path,
    max_bytes: u64,
) -> Result<()> {
    use tokio::io::AsyncReadExt;
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let mut file = tokio::fs::File::create_new(path).await?;
    let (mut chunk, mut total) = (vec![0; CHUNK], 0u64);
    loop {
        let read = tokio::time::timeout(PROVIDER_PATIENCE, reader.read(&mut chunk))
            .await
            .map_err(|_| unavailable("the program stopped providing the book halfway"))?
            .map_err(|error| {
                unavailable(&format!("the program did not provide the book: {error}"))
            })?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        total += read as u64;
        if total > max_bytes {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                "the book is larger than books may be",
            ));
        }
        file.write_all(bytes).await?;
    }
    file.flush().await?;
    Ok(())
}

fn unavailable(message: &str) -> Error {
    Error::new(ErrorCode::Unavailable, message)
}

fn remove_quietly(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, "a spooled book was not deleted");
    }
}
