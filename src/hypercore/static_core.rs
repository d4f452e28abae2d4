//! Logs whose blocks are a file's bytes and whose key is the file's own merkle root.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CoreError;
use super::manifest::Manifest;
use super::messages::Node;
use crate::crypto::Hash;

/// Bytes a block of a book; the last one is shorter.
pub const BLOCK_SIZE: u64 = 64 * 1024;

/// What a file was when it was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// Its size in bytes.
    pub size: u64,
    /// When it was modified last, in nanoseconds since 1970; 0 where the system does not tell.
    pub modified: i128,
}

/// Told how many bytes of how many are hashed. Called on a blocking thread, about once a mebibyte.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// The tree over a file's blocks.
#[derive(Clone)]
pub struct StaticTree {
    /// The manifest: a prologue and no signers.
    pub manifest: Manifest,
    /// The key of the core.
    pub key: Hash,
    /// The tree hash.
    pub hash: Hash,
    /// The length in blocks.
    pub length: u64,
    /// The length in bytes.
    pub byte_length: u64,
    /// All tree nodes, ascending.
    pub nodes: Vec<Node>,
    /// The file that was hashed.
    pub path: PathBuf,
    /// What it was when it was hashed.
    pub stamp: FileStamp,
}

impl StaticTree {
    /// Hashes the file at `path` on a blocking thread. Dropping the future ends the work soon.
    ///
    /// Fails with [`CoreError::FileChanged`] when the file changes under it, and with
    /// [`CoreError::BlockSize`] when it is empty.
    pub async fn build(path: &Path, progress: Option<Progress>) -> Result<Self, CoreError> {
        let _ = (path, progress);
        Err(CoreError::Cancelled)
    }
}
