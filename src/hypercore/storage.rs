//! Where a core's bytes are kept: what any storage must do.
//!
//! A storage is told what changed in whole commits, and a commit that was acknowledged is whole or,
//! after a crash, absent. It holds no key pairs.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::bitfield::Page;
use super::messages::Node;
use crate::crypto::Hash;

/// The most blocks a log may have here: 2^39. Storages may pack an index into fewer bits than 64.
pub const MAX_LENGTH: u64 = 1 << 39;

/// The most bytes a block may have: what fits a message of the secret stream, with its proof.
pub const MAX_BLOCK_BYTES: usize = 15 * 1024 * 1024;

/// What a storage failed with.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the storage failed: {message}")]
pub struct StorageError {
    /// The kind of failure, for programs.
    pub kind: StorageErrorKind,
    /// The failure, for people.
    pub message: String,
}

/// The kinds of storage failures that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// The disk is full.
    Full,
    /// Stored data cannot be read as what it is.
    Corrupt,
    /// The operating system failed to read or write.
    Io,
    /// Another program holds the storage.
    Busy,
    /// The storage was closed.
    Closed,
    /// The core is open already.
    AlreadyOpen,
    /// Anything else.
    Other,
}

impl StorageError {
    /// An error of a kind.
    pub fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// What a storage returns.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// A commit on its way to disk.
pub type Committing = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What an acknowledged commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// The end of the process. For what can be fetched again.
    Process,
    /// Power loss.
    Power,
}

/// What a core is, apart from its tree and blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The core's key.
    pub key: Hash,
    /// The manifest, encoded, once it is known.
    pub manifest: Option<Bytes>,
    /// The fork.
    pub fork: u64,
    /// The length in blocks.
    pub length: u64,
    /// The length in bytes.
    pub byte_length: u64,
    /// The signature over the tree at `length`; static cores have none.
    pub signature: Option<Bytes>,
}

/// What changes together.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The new header, when it changed.
    pub header: Option<Header>,
    /// Before anything else of the commit: everything is forgotten that is about this block or a later
    /// one, which is to say the blocks, their bits, and every tree node above any of them.
    pub truncate: Option<u64>,
    /// New tree nodes, by index. Shared, because those of a large book take megabytes.
    pub nodes: Arc<Vec<Node>>,
    /// New blocks, in order.
    pub blocks: Vec<(u64, Bytes)>,
    /// Blocks to forget.
    pub removed_blocks: Vec<u64>,
    /// Bitfield pages that changed, with their numbers.
    pub pages: Vec<(u64, Box<Page>)>,
    /// What it must survive.
    pub survives: Survives,
}

/// An append that is written down until a commit has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The fork.
    pub fork: u64,
    /// The length before, in blocks.
    pub start: u64,
    /// The signature over the tree with the blocks. It also proves that a note is what was written.
    pub signature: Bytes,
    /// The blocks.
    pub blocks: Vec<Bytes>,
}

impl Note {
    /// The length that the log has with it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.blocks.len() as u64
    }
}

/// A place that keeps many cores.
pub trait Storage: Send + Sync {
    /// Opens the place of one core, whether or not anything is stored there yet. Fails with
    /// [`StorageErrorKind::AlreadyOpen`] until an earlier handle was dropped or closed.
    fn open(&self, discovery_key: &Hash) -> Result<Box<dyn CoreStorage>>;
    /// Removes all that is stored of a core, which must not be open. Removing nothing is no error.
    fn remove(&self, discovery_key: &Hash) -> Committing;
}

/// The place of one core. Reads may block on disk for a moment; they see acknowledged commits.
pub trait CoreStorage: Send + Sync {
    /// The header, or `None` when nothing is stored.
    fn header(&self) -> Result<Option<Header>>;
    /// A tree node.
    fn node(&self, index: u64) -> Result<Option<Node>>;
    /// A block.
    fn block(&self, index: u64) -> Result<Option<Bytes>>;
    /// The blocks that are stored from `start` to one before `end`, in order, with their indexes;
    /// as many as have `max_bytes` together, and at least one if any.
    fn blocks(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<(u64, Bytes)>>;
    /// Every bitfield page with its number.
    fn pages(&self) -> Result<Vec<(u64, Box<Page>)>>;
    /// Stores a commit, entirely or not at all. Dropping the future does not undo it. One with a header
    /// takes the place of all notes.
    fn commit(&self, commit: Arc<Commit>) -> Committing;
    /// Whether [`CoreStorage::note`] would take a note now.
    fn takes_notes(&self) -> bool {
        false
    }
    /// Writes an append down, at once and where it survives the end of the process, until a commit has it.
    /// `false` when it has to be committed instead.
    fn note(&self, note: &Note) -> bool {
        let _ = note;
        false
    }
    /// The notes that no commit has, oldest first, among others that one has or that are damaged.
    fn notes(&self) -> Result<Vec<Note>> {
        Ok(Vec::new())
    }
    /// Allows the core to be opened again. Later calls of the other methods may fail.
    fn close(&self);
}
