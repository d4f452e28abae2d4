//! The partial file of an incoming book, and the stored core that says which of its blocks are there.
//!
//! What is stored of a part has a name of its own, made of the transfer and the core: two transfers of one content, or
//! a transfer of what this node offers itself, share nothing. So no peer that sends a book, or says that it will, holds
//! up another that sends the same one, or learns that somebody has it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Transaction;

use super::held::{Held, HeldStorage, Room, WholeBook};
use super::message::BookCore;
use super::state::State;
use super::{landing, table};
use crate::crypto::{Hash, discovery_key, hash};
use crate::error::Result;
use crate::hypercore::storage::{Committing, CoreStorage, Result as StorageResult};
use crate::hypercore::{
    BLOCK_SIZE, BlockSource, Core, CoreError, FileAccess, Manifest, MemoryFile, OpenOptions,
    Storage,
};
use crate::store::{Database, StoreError};

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
}

/// The storage of one transfer's parts.
struct PartStorage<'a> {
    all: &'a dyn Storage,
    transfer: &'a str,
}

impl Storage for PartStorage<'_> {
    fn open(&self, discovery_key: &Hash) -> StorageResult<Box<dyn CoreStorage>> {
        self.all.open(&name(self.transfer, discovery_key))
    }

    fn remove(&self, discovery_key: &Hash) -> Committing {
        self.all.remove(&name(self.transfer, discovery_key))
    }
}

/// Under which name the part of a transfer is stored.
fn name(transfer: &str, discovery_key: &Hash) -> Hash {
    hash(&[b"alex/p2p part", discovery_key, transfer.as_bytes()])
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

    fn storage<'a>(&'a self, transfer: &'a str) -> PartStorage<'a> {
        PartStorage { all: &*self.storage, transfer }
    }

    /// Opens the core over the partial file of a transfer, which must not be open.
    pub(super) async fn open(&self, transfer: &str, book: &BookCore) -> Result<Part> {
        let path = self.path(transfer);
        // What was begun in a file goes on there.
        let held = if path.exists() { None } else { self.room.take(book.byte_length) };
        Ok(match held {
            Some(held) => self.open_held(transfer, held, book)?,
            None => Part::Core(self.open_file(transfer, &path, book).await?),
        })
    }

    fn open_held(&self, transfer: &str, held: Held, book: &BookCore) -> Result<Part, CoreError> {
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
        let names = &self.storage(transfer);
        let core = Core::open(&HeldStorage { names }, book.key, options)?;
        Ok(Part::Held(core, WholeBook { file, _held: held }))
    }

    async fn open_file(
        &self,
        transfer: &str,
        path: &Path,
        book: &BookCore,
    ) -> Result<Core, CoreError> {
        let storage = self.storage(transfer);
        if !path.exists() {
            // What is stored would be about a file that is gone.
            storage.remove(&discovery_key(&book.key)).await?;
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
        Core::open(&storage, book.key, options)
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
        // What stays behind is removed at the next start.
        if let Err(error) = self.storage(transfer).remove(&discovery_key(&key)).await {
            tracing::debug!(%error, "a book's core was not removed");
        }
    }

    /// Deletes partial files, and what is stored about them, of transfers that need none any more: a
    /// crash may have come before they were discarded.
    pub(super) async fn sweep(&self) -> Result<()> {
        self.database.write::<_, StoreError, _>(rename_old_parts).await?;
        for (key, transfer) in self.database.read(table::ended_parts)? {
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
}

/// Gives what an earlier version stored of parts, under the core's own name, the transfer's name.
fn rename_old_parts(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    let mut statement =
        transaction.prepare("DELETE FROM transfer_parts RETURNING core_key, transfer")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (key, transfer) in rows.collect::<Result<Vec<(Hash, String)>, _>>()? {
        let old = discovery_key(&key);
        transaction.execute(
            "UPDATE OR IGNORE cores SET discovery_key = ?2 WHERE discovery_key = ?1",
            [old, name(&transfer, &old)],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercore::StaticTree;
    use crate::store::CoreStore;

    fn parts(dir: &Path) -> (Parts, Database) {
        let database = Database::open(&dir.join("p2p.db")).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(CoreStore::new(database.clone()));
        (Parts::new(database.clone(), storage, dir.join("incoming")).unwrap(), database)
    }

    fn book() -> BookCore {
        let bytes = vec![7; 3_000_000].into();
        let StaticTree { key, hash, length, byte_length, .. } =
            StaticTree::of_bytes(&bytes).unwrap();
        BookCore { key, hash, length, byte_length }
    }

    #[tokio::test]
    async fn two_transfers_of_one_book_share_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, _database) = parts(dir.path());
        let book = book();
        let Part::Core(first) = parts.open("first", &book).await.unwrap() else { panic!() };
        let Part::Core(second) = parts.open("second", &book).await.unwrap() else { panic!() };
        assert!(parts.open("first", &book).await.is_err(), "it is open");
        second.close().await.unwrap();
        parts.discard("second", Some(book.key)).await;
        first.close().await.unwrap();
        assert!(parts.open("first", &book).await.is_ok());
    }

    #[tokio::test]
    async fn a_part_of_an_earlier_version_goes_on_under_its_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, database) = parts(dir.path());
        let (key, book) = (book().key, book());
        let old = discovery_key(&key);
        let insert = move |transaction: &Transaction<'_>| {
            transaction.execute(
                "INSERT INTO cores (discovery_key, key, fork, length, byte_length) VALUES (?1, ?2, 0, 5, 9)",
                [old, key],
            )?;
            let sql = "INSERT INTO transfer_parts (core_key, transfer) VALUES (?1, 'mine')";
            Ok::<_, StoreError>(transaction.execute(sql, [key])?)
        };
        database.write(insert).await.unwrap();
        parts.sweep().await.unwrap();
        let names = database.read(|connection| {
            let mut statement = connection.prepare("SELECT discovery_key FROM cores")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok::<Vec<Hash>, StoreError>(rows.collect::<Result<_, _>>()?)
        });
        assert_eq!(names.unwrap(), [name("mine", &discovery_key(&book.key))]);
    }
}
