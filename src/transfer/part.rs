//! The partial file of an incoming book, and the stored core that says which of its blocks are there.
//!
//! Cores are stored by key, and a key is a book's content: two transfers of one content, or a transfer
//! of what this node offers itself, share it. So the database notes which transfer's file the stored
//! data are about; what is about another file is removed before it is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use tokio_util::sync::CancellationToken;

use super::held::{Held, HeldStorage, Room, WholeBook};
use super::message::BookCore;
use super::shelf::Shelf;
use super::state::State;
use super::{landing, table};
use crate::crypto::{Hash, discovery_key};
use crate::error::Result;
use crate::hypercore::storage::StorageErrorKind;
use crate::hypercore::{
    BLOCK_SIZE, BlockSource, Core, CoreError, FileAccess, Manifest, MemoryFile, OpenOptions,
    Storage,
};
use crate::store::{Database, Durability, StoreError};

/// How long to wait for a core that another transfer has open.
const IN_USE: Duration = Duration::from_secs(1);

/// Keeps partial files and their cores together.
pub(super) struct Parts {
    database: Database,
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    room: Room,
}

/// What a download begins with.
pub(super) enum Part {
    /// The core over the partial file.
    Core(Core),
    /// The core of a small book, and the memory it comes into.
    Held(Core, WholeBook),
    /// This node offers the same bytes: the file was copied and is whole.
    Copied,
    /// The book has so many bytes, and not as many as the peer said.
    Lie(u64),
    /// Told to stop while it waited for another transfer of the same book.
    Stopped,
}

impl Parts {
    /// Partial files are in `folder`, which is created.
    pub(super) fn new(
        database: Database,
        storage: Arc<dyn Storage>,
        folder: PathBuf,
    ) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self { database, storage, folder, room: Room::default() })
    }

    /// Where the partial file of a transfer is.
    pub(super) fn path(&self, transfer: &str) -> PathBuf {
        self.folder.join(format!("{transfer}.part"))
    }

    /// Opens the core over the partial file of a transfer.
    pub(super) async fn open(
        &self,
        transfer: &str,
        book: &BookCore,
        shelf: &Shelf,
        stop: &CancellationToken,
    ) -> Result<Part> {
        let path = self.path(transfer);
        loop {
            // What was begun in a file goes on there.
            let held = if path.exists() { None } else { self.room.take(book.byte_length) };
            let opened = match held {
                Some(held) => self.open_held(held, book),
                None => self.try_open(transfer, &path, book).await.map(Part::Core),
            };
            match opened {
                Err(CoreError::AlreadyOpen) => {}
                opened => return Ok(opened?),
            }
            if let Some((offered, byte_length)) = shelf.file_with(&book.key).await {
                if byte_length != book.byte_length {
                    return Ok(Part::Lie(byte_length));
                }
                tokio::fs::copy(offered, &path).await?;
                return Ok(Part::Copied);
            }
            tokio::select! {
                () = tokio::time::sleep(IN_USE) => {}
                () = stop.cancelled() => return Ok(Part::Stopped),
            }
        }
    }

    fn open_held(&self, held: Held, book: &BookCore) -> Result<Part, CoreError> {
        let file = Arc::new(MemoryFile::default());
        let options = OpenOptions {
            manifest: Some(Manifest::fixed(book.hash, book.length)),
            writer: None,
            blocks: BlockSource::Memory {
                file: Arc::clone(&file),
                block_size: BLOCK_SIZE,
                access: FileAccess::Write,
            },
        };
        let core = Core::open(&HeldStorage { names: &*self.storage }, book.key, options)?;
        Ok(Part::Held(core, WholeBook { file, _held: held }))
    }

    async fn try_open(
        &self,
        transfer: &str,
        path: &Path,
        book: &BookCore,
    ) -> Result<Core, CoreError> {
        let is_ours = path.exists() && self.owner(&book.key).as_deref() == Some(transfer);
        if !is_ours {
            self.storage.remove(&discovery_key(&book.key)).await.map_err(|error| {
                match error.kind {
                    StorageErrorKind::AlreadyOpen => CoreError::AlreadyOpen,
                    _ => error.into(),
                }
            })?;
        }
        let options = OpenOptions {
            manifest: Some(Manifest::fixed(book.hash, book.length)),
            writer: None,
            blocks: BlockSource::File {
                path: path.to_owned(),
                block_size: BLOCK_SIZE,
                access: FileAccess::Write,
            },
        };
        let core = Core::open(&*self.storage, book.key, options)?;
        if !is_ours {
            self.own(&book.key, transfer).await;
        }
        Ok(core)
    }

    /// Deletes the partial file of a transfer.
    pub(super) fn delete(&self, transfer: &str) {
        if let Err(error) = landing::remove(&self.path(transfer)) {
            tracing::warn!(%error, "a partial book was not deleted");
        }
    }

    /// Deletes the partial file of a transfer and what is stored about it.
    pub(super) async fn discard(&self, transfer: &str, key: Option<Hash>) {
        self.delete(transfer);
        let Some(key) = key else { return };
        if self.owner(&key).as_deref() != Some(transfer) {
            return;
        }
        // What stays behind is removed by whoever needs the core next: it is about another file.
        if let Err(error) = self.storage.remove(&discovery_key(&key)).await {
            tracing::debug!(%error, "a book's core was not removed");
        }
        disown(&self.database, key).await;
    }

    /// Deletes partial files, and what is stored about them, of transfers that need none any more: a
    /// crash may have come before they were discarded.
    pub(super) async fn sweep(&self) -> Result<()> {
        let owners: Vec<(Hash, String)> = self.database.read(|connection| {
            let mut statement = connection.prepare(
                "SELECT core_key, transfer FROM transfer_parts WHERE transfer NOT IN \
                 (SELECT id FROM transfers WHERE state NOT IN ('completed', 'denied', 'cancelled'))",
            )?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>().map_err(StoreError::from)
        })?;
        for (key, transfer) in owners {
            self.discard(&transfer, Some(key)).await;
        }
        for file in std::fs::read_dir(&self.folder)? {
            let path = file?.path();
            let Some(id) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            let record = self.database.read(|connection| table::get(connection, id))?;
            let is_needed = record
                .is_some_and(|record| !record.state.is_terminal() || record.state == State::Failed);
            if !is_needed && path.extension().is_some_and(|extension| extension == "part") {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn owner(&self, key: &Hash) -> Option<String> {
        let found = self.database.read(|connection| {
            connection
                .prepare_cached("SELECT transfer FROM transfer_parts WHERE core_key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()
                .map_err(StoreError::from)
        });
        found.ok().flatten()
    }

    async fn own(&self, key: &Hash, transfer: &str) {
        let (key, transfer) = (*key, transfer.to_owned());
        let write = self.database.write_with(Durability::Process, move |transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO transfer_parts (core_key, transfer) VALUES (?1, ?2)",
                params![key, transfer],
            )?;
            Ok::<_, StoreError>(())
        });
        if let Err(error) = write.await {
            tracing::debug!(%error, "a partial book will be fetched anew after a restart");
        }
    }
}

/// Notes that the stored data of a core are about no partial file.
pub(super) async fn disown(database: &Database, key: Hash) {
    let write = database.write_with(Durability::Process, move |transaction| {
        transaction.execute("DELETE FROM transfer_parts WHERE core_key = ?1", [key])?;
        Ok::<_, StoreError>(())
    });
    if let Err(error) = write.await {
        tracing::debug!(%error, "a stale note on a partial book stays");
    }
}
