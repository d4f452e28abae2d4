//! One log: opened, appended to, read, proven, and extended by what peers prove.

mod append;
mod apply;
mod check;
mod clear;
mod commit;
#[cfg(test)]
mod fixture;
mod noted;
mod open;
mod read;
mod reorg;
mod snapshot;
mod state;
mod truncate;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::block_file::{BlockFile, MemoryFile};
use super::disk_file::FileAccess;
use super::manifest::Manifest;
use crate::crypto::{Hash, KeyPair};

pub(super) use check::CancelOnDrop;
pub use check::Verified;
pub(super) use reorg::{Path, Reorg};
pub use snapshot::Snapshot;

/// A log. Clones share it.
///
/// Methods that are not `async` may block on disk for a moment.
#[derive(Clone)]
pub struct Core {
    inner: Arc<state::Inner>,
}

/// Where a core's blocks are.
#[derive(Debug, Clone, Default)]
pub enum BlockSource {
    /// In the storage.
    #[default]
    Storage,
    /// In a file, one after the other.
    File {
        /// The file.
        path: PathBuf,
        /// Bytes a block; only the last one is shorter. [`super::BLOCK_SIZE`] for books.
        block_size: u64,
        /// Whether blocks are only read from the file or also written to it.
        access: FileAccess,
    },
    /// In memory, as in a file; gone with it.
    Memory {
        /// The bytes.
        file: Arc<MemoryFile>,
        /// Bytes a block; only the last one is shorter.
        block_size: u64,
        /// Whether blocks are only read or also written.
        access: FileAccess,
    },
}

/// How a new core is made. Its key follows from the manifest.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Who may sign.
    pub manifest: Manifest,
    /// Signs appends; must be the manifest's one signer.
    pub writer: Option<KeyPair>,
    /// Whether the key is the signer's key itself, as before manifests.
    pub compat: bool,
}

/// How an existing core is opened, or a place for a remote one made.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The manifest, when it is known and not stored yet.
    pub manifest: Option<Manifest>,
    /// Signs appends; must be the manifest's one signer.
    pub writer: Option<KeyPair>,
    /// Where the blocks are.
    pub blocks: BlockSource,
}

/// What a core is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CoreChange {
    /// The fork.
    pub fork: u64,
    /// The length in blocks.
    pub length: u64,
    /// The length in bytes.
    pub byte_length: u64,
    /// Every block below is here.
    pub contiguous_length: u64,
    /// How many blocks are here.
    pub blocks: u64,
    /// Whether the manifest is known.
    pub has_manifest: bool,
    /// Whether the core was closed.
    pub closed: bool,
}

/// What applying a peer's data has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// The new length, when the log is longer now.
    pub upgraded: Option<u64>,
    /// The block that came, when it was not here yet.
    pub block: Option<u64>,
    /// Whether the manifest became known.
    pub manifest: bool,
    /// More than a commit's worth waits for the disk: call [`Core::room`] before the next one.
    pub full: bool,
}

/// Where a byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// In this block, that many bytes from its start.
    Block {
        /// The block's index.
        index: u64,
        /// Bytes into the block.
        offset: u64,
    },
    /// In one of these blocks: the tree is not known well enough; ask peers with a seek.
    Between {
        /// The first block it may be in.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// Behind the end.
    End,
}

impl Core {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &Hash {
        &self.inner.key
    }

    /// The key's public name.
    #[must_use]
    pub fn discovery_key(&self) -> &Hash {
        &self.inner.discovery_key
    }

    /// Everything that changes, at this moment.
    #[must_use]
    pub fn state(&self) -> CoreChange {
        *self.inner.changes.borrow()
    }

    /// Told of every change. Copy what `borrow` gives before asking the core anything (in the closure of
    /// `wait_for`, do not): it cannot change while that is looked at, and asking it may wait for ever.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<CoreChange> {
        self.inner.changes.subscribe()
    }

    /// The length in blocks.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.state().length
    }

    /// The length in bytes.
    #[must_use]
    pub fn byte_length(&self) -> u64 {
        self.state().byte_length
    }

    /// Every block below is here.
    #[must_use]
    pub fn contiguous_length(&self) -> u64 {
        self.state().contiguous_length
    }

    /// The fork.
    #[must_use]
    pub fn fork(&self) -> u64 {
        self.state().fork
    }

    /// How many blocks the log surely has in common with what it was at an earlier fork; the last few
    /// forks since it was opened are remembered.
    #[must_use]
    pub fn common_since(&self, fork: u64) -> u64 {
        self.locked(|state| state.common_since(fork))
    }

    /// Whether [`Core::append`] and [`Core::truncate`] can work.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.inner.writer.is_some() && self.inner.file.is_none()
    }

    /// The manifest, once it is known.
    #[must_use]
    pub fn manifest(&self) -> Option<Arc<Manifest>> {
        self.locked(|state| state.manifest.as_ref().map(|known| Arc::clone(&known.manifest)))
    }

    /// Whether block `index` is here.
    #[must_use]
    pub fn has(&self, index: u64) -> bool {
        self.locked(|state| state.bits.has(index))
    }

    /// The first block at or after `from` that is not here; may be beyond the length.
    #[must_use]
    pub fn next_missing(&self, from: u64) -> u64 {
        self.locked(|state| state.bits.next_missing(from))
    }

    /// The first block at or after `from` that is here.
    #[must_use]
    pub fn next_present(&self, from: u64) -> Option<u64> {
        self.locked(|state| state.bits.next_present(from))
    }

    /// `count` bitfield words of 32 blocks from `start` (a multiple of 32), without zeros at the end.
    #[must_use]
    pub fn bitfield_words(&self, start: u64, count: usize) -> Vec<u32> {
        self.locked(|state| state.bits.words(start, count))
    }

    /// Whether its blocks are in memory, so that reading them takes no time.
    pub(in crate::hypercore) fn is_in_memory(&self) -> bool {
        self.inner.file.as_ref().is_some_and(BlockFile::is_in_memory)
    }

    /// The file on disk whose bytes are the blocks, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&std::path::Path> {
        self.inner.file.as_ref().and_then(BlockFile::path)
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = crate::crypto::PublicKey::from_bytes(self.inner.key);
        f.debug_struct("Core").field("key", &key.short()).field("state", &self.state()).finish()
    }
}
