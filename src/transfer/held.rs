//! Small books, which go through memory: making, syncing and reading files of 100 KB would take longer than
//! the network. A crash costs the few blocks of them that were here.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::crypto::Hash;
use crate::hypercore::storage::{Commit, Committing, CoreStorage, Header, Result};
use crate::hypercore::{
    BLOCK_SIZE, CoreError, MemoryFile, MemoryStorage, Node, StaticTree, Storage,
};

/// The largest book that is held in memory, in bytes.
pub(super) const SMALL_BOOK: u64 = 8 * BLOCK_SIZE;
/// How many bytes are held at once; what comes then goes over the disk.
const HELD_BYTES: usize = 8 << 20;

/// Room for small books.
pub(super) struct Room(Arc<Semaphore>);

/// A part of the room, until it is dropped.
pub(super) type Held = OwnedSemaphorePermit;

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(HELD_BYTES)))
    }
}

impl Room {
    /// Room for a book of so many bytes; `None` when it is too large, or others take all of it.
    pub(super) fn take(&self, bytes: u64) -> Option<Held> {
        let count = u32::try_from(bytes).ok().filter(|_| bytes <= SMALL_BOOK)?;
        Arc::clone(&self.0).try_acquire_many_owned(count).ok()
    }
}

/// A small book that is whole and verified, on its way to the disk.
pub(super) struct WholeBook {
    pub(super) file: Arc<MemoryFile>,
    pub(super) _held: Held,
}

/// The tree of a small file, which must have `size` bytes.
pub(super) fn tree_of(path: &Path, size: u64) -> Result<StaticTree, CoreError> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
    File::open(path)?.take(size + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size {
        StaticTree::of_bytes(&bytes.into())
    } else {
        Err(CoreError::FileChanged)
    }
}

/// Keeps what belongs to a core in memory as long as it is open; `names` says what is open already.
pub(super) struct HeldStorage<'a> {
    pub(super) names: &'a dyn Storage,
}

struct Place {
    /// Open, so that nobody else opens the core.
    name: Box<dyn CoreStorage>,
    memory: Box<dyn CoreStorage>,
}

impl Storage for HeldStorage<'_> {
    fn open(&self, discovery_key: &Hash) -> Result<Box<dyn CoreStorage>> {
        let name = self.names.open(discovery_key)?;
        let memory = MemoryStorage::new().open(discovery_key)?;
        Ok(Box::new(Place { name, memory }))
    }

    fn remove(&self, discovery_key: &Hash) -> Committing {
        self.names.remove(discovery_key)
    }
}

impl CoreStorage for Place {
    fn header(&self) -> Result<Option<Header>> {
        self.memory.header()
    }

    fn node(&self, index: u64) -> Result<Option<Node>> {
        self.memory.node(index)
    }

    fn block(&self, index: u64) -> Result<Option<Bytes>> {
        self.memory.block(index)
    }

    fn blocks(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<(u64, Bytes)>> {
        self.memory.blocks(start, end, max_bytes)
    }

    fn pages(&self) -> Result<Vec<(u64, Box<crate::hypercore::bitfield::Page>)>> {
        self.memory.pages()
    }

    fn commit(&self, commit: Arc<Commit>) -> Committing {
        self.memory.commit(commit)
    }

    fn close(&self) {
        self.memory.close();
        self.name.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_books_are_held_and_only_so_many() {
        let room = Room::default();
        assert!(room.take(SMALL_BOOK + 1).is_none());
        let held: Vec<_> = std::iter::from_fn(|| room.take(SMALL_BOOK)).collect();
        assert_eq!(held.len() as u64, HELD_BYTES as u64 / SMALL_BOOK);
        drop(held);
        assert!(room.take(SMALL_BOOK).is_some());
    }

    #[test]
    fn a_core_that_is_held_is_open_for_everybody() {
        let names = MemoryStorage::new();
        let place = HeldStorage { names: &names }.open(&[1; 32]).unwrap();
        assert!(names.open(&[1; 32]).is_err());
        assert!(HeldStorage { names: &names }.open(&[1; 32]).is_err());
        place.close();
        assert!(names.open(&[1; 32]).is_ok());
    }
}
