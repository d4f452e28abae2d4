//! One log: opened, appended to, read, proven, and extended by what peers prove.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::error::{ApplyError, CoreError};
use super::manifest::Manifest;
use super::messages::{Data, Request};
use super::static_core::StaticTree;
use super::storage::Storage;
use crate::crypto::{Hash, KeyPair};

/// A log. Clones share it.
///
/// Methods that are not `async` may block on disk for a moment.
#[derive(Clone)]
pub struct Core {
    inner: Arc<Inner>,
}

struct Inner {
    key: Hash,
    discovery_key: Hash,
    changes: watch::Sender<CoreChange>,
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
}

/// What may be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Blocks are read. A peer's blocks are refused.
    Read,
    /// Blocks are read and written; the file is created when it is missing.
    Write,
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
    /// Makes a new core. Blocks on disk. Nothing is stored before the first append.
    ///
    /// Fails with [`CoreError::Exists`] when the storage has it already.
    pub fn create(storage: &dyn Storage, options: CreateOptions) -> Result<Self, CoreError> {
        let key = options.manifest.key();
        let _ = storage.open(&crate::crypto::discovery_key(&key))?;
        Err(CoreError::Closed)
    }

    /// Opens the core with this key, or makes a place for it. Blocks on disk.
    ///
    /// Fails with [`CoreError::ManifestMismatch`] when a manifest does not hash to the key, and with
    /// [`CoreError::NotWritable`] when `writer` is not its signer.
    pub fn open(storage: &dyn Storage, key: Hash, options: OpenOptions) -> Result<Self, CoreError> {
        let _ = (storage, key, options);
        Err(CoreError::Closed)
    }

    /// Makes or opens the core of a hashed file, with all its blocks, and returns when that is on disk.
    pub async fn open_static(storage: &dyn Storage, tree: &StaticTree) -> Result<Self, CoreError> {
        let _ = (storage, tree);
        Err(CoreError::Closed)
    }

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

    /// Told of every change.
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

    /// Whether [`Core::append`] can work.
    #[must_use]
    pub fn writable(&self) -> bool {
        false
    }

    /// The manifest, once it is known.
    #[must_use]
    pub fn manifest(&self) -> Option<Arc<Manifest>> {
        None
    }

    /// Whether block `index` is here.
    #[must_use]
    pub fn has(&self, index: u64) -> bool {
        let _ = index;
        false
    }

    /// The first block at or after `from` that is not here; may be beyond the length.
    #[must_use]
    pub fn next_missing(&self, from: u64) -> u64 {
        from
    }

    /// `count` bitfield words of 32 blocks from `start` (a multiple of 32), without zeros at the end.
    #[must_use]
    pub fn bitfield_words(&self, start: u64, count: usize) -> Vec<u32> {
        let _ = (start, count);
        Vec::new()
    }

    /// Appends blocks and returns the new length when they are synced to disk.
    ///
    /// Appends that wait at the same time share one commit and one signature. Cancelled, it may or
    /// may not have appended.
    pub async fn append(&self, blocks: Vec<Bytes>) -> Result<u64, CoreError> {
        let _ = blocks;
        Err(CoreError::NotWritable)
    }

    /// A block, or `None` when it is not here. Blocks from files are checked against the tree.
    pub fn get(&self, index: u64) -> Result<Option<Bytes>, CoreError> {
        let _ = index;
        Ok(None)
    }

    /// Blocks from the start of `range`, up to the first that is not here, its end, or `max_bytes`
    /// (but at least one).
    pub fn range(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, CoreError> {
        let _ = (range, max_bytes);
        Ok(Vec::new())
    }

    /// Answers a request, or `None` when what it asks for is not here (npm: `noData`). The answer's
    /// `request` is the request's `id`.
    ///
    /// [`CoreError::InvalidRequest`] means that no honest peer asks this.
    pub fn prove(&self, request: &Request) -> Result<Option<Data>, CoreError> {
        let _ = request;
        Ok(None)
    }

    /// Verifies what a peer sent and takes it over. Reads see it at once; it is on disk within about
    /// 50 ms or 512 KiB, see [`Core::flush`]. Needs a tokio runtime.
    pub fn apply(&self, data: &Data) -> Result<Applied, ApplyError> {
        let _ = data;
        Err(CoreError::Closed.into())
    }

    /// Returns when less than a commit's worth waits for the disk, or the storage fails.
    pub async fn room(&self) -> Result<(), CoreError> {
        Ok(())
    }

    /// Returns when everything applied so far is on disk.
    pub async fn flush(&self) -> Result<(), CoreError> {
        Ok(())
    }

    /// How many levels above tree node `index` nothing is known: `nodes` of a request for it.
    pub fn missing_nodes(&self, index: u64) -> Result<u64, CoreError> {
        let _ = index;
        Ok(0)
    }

    /// Whether an upgrade from `length` can be proven.
    pub fn can_upgrade_from(&self, length: u64) -> Result<bool, CoreError> {
        let _ = length;
        Ok(false)
    }

    /// Where the byte at `offset` is.
    pub fn seek(&self, offset: u64) -> Result<Position, CoreError> {
        let _ = offset;
        Ok(Position::End)
    }

    /// Whether a proof of an upgrade from 0, at most as long as this log, is validly signed and says
    /// something else: the log was written twice.
    pub fn contradicts(&self, data: &Data) -> Result<bool, ApplyError> {
        let _ = data;
        Ok(false)
    }

    /// Finishes writing and closes; later calls fail with [`CoreError::Closed`]. A second call does
    /// nothing.
    pub async fn close(&self) -> Result<(), CoreError> {
        Ok(())
    }
}
