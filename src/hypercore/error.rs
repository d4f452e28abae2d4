//! What can go wrong with a log: reading, writing, and applying what a peer sent.

use crate::error::{Error, ErrorCode};

use super::manifest::ManifestError;
use super::storage::{StorageError, StorageErrorKind};

/// Why a core could not be opened, read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The core was closed.
    #[error("the core is closed")]
    Closed,
    /// This core is already open; it has one owner at a time.
    #[error("the core is already open")]
    AlreadyOpen,
    /// A core with this key exists already.
    #[error("the core exists already")]
    Exists,
    /// The manifest does not hash to the key.
    #[error("the manifest does not hash to the core's key")]
    ManifestMismatch,
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Appending needs the key pair of the core's one signer.
    #[error("the core is not writable here")]
    NotWritable,
    /// The log cannot be cut so.
    #[error("the log cannot be truncated: {0}")]
    Truncation(&'static str),
    /// A block above [`super::storage::MAX_BLOCK_BYTES`], or an empty file, which has no block.
    #[error("a block has {0} bytes; 1 to 15 MiB are allowed")]
    BlockSize(usize),
    /// The log would exceed [`super::storage::MAX_LENGTH`].
    #[error("the log is too long")]
    TooLong,
    /// A request asks for what cannot exist.
    #[error("the request is not valid: {0}")]
    InvalidRequest(&'static str),
    /// A tree node that the log needs is not in the storage: local damage.
    #[error("tree node {0} is missing from the storage")]
    MissingNode(u64),
    /// A block that the bitfield has is not in the storage: local damage.
    #[error("block {0} is missing from the storage")]
    MissingBlock(u64),
    /// A block does not have the hash in the tree: the storage is damaged.
    #[error("block {0} does not match its hash: the storage is damaged")]
    CorruptBlock(u64),
    /// Stored data contradicts itself.
    #[error("the storage is damaged: {0}")]
    Corrupt(&'static str),
    /// The file whose bytes are the blocks is not the file that was hashed any more.
    #[error("the file has changed since it was hashed")]
    FileChanged,
    /// Reading or writing the file whose bytes are the blocks failed.
    #[error("the file could not be read or written: {message}")]
    File {
        /// The kind of failure.
        kind: std::io::ErrorKind,
        /// What the operating system said.
        message: String,
    },
    /// The log was cut since the snapshot was taken, and says something else now.
    #[error("block {0} of the snapshot is gone: the log was cut since")]
    SnapshotGone(u64),
    /// The caller's signal ended the work.
    #[error("the work was cancelled")]
    Cancelled,
}

impl From<std::io::Error> for CoreError {
    fn from(error: std::io::Error) -> Self {
        Self::File { kind: error.kind(), message: error.to_string() }
    }
}

impl From<CoreError> for Error {
    fn from(error: CoreError) -> Self {
        use std::io::ErrorKind;
        let code = match &error {
            CoreError::Storage(storage) => match storage.kind {
                StorageErrorKind::Full => ErrorCode::DiskFull,
                StorageErrorKind::Corrupt => ErrorCode::Corrupt,
                StorageErrorKind::Io => ErrorCode::Io,
                StorageErrorKind::Busy => ErrorCode::Busy,
                StorageErrorKind::Closed => return Self::closed(),
                StorageErrorKind::AlreadyOpen => ErrorCode::InvalidState,
                StorageErrorKind::Other => ErrorCode::Internal,
            },
            CoreError::Closed => return Self::closed(),
            CoreError::AlreadyOpen | CoreError::Exists => ErrorCode::InvalidState,
            CoreError::ManifestMismatch | CoreError::Manifest(_) => ErrorCode::InvalidKey,
            CoreError::NotWritable | CoreError::Truncation(_) => ErrorCode::InvalidState,
            CoreError::BlockSize(_) | CoreError::TooLong => ErrorCode::LimitExceeded,
            CoreError::InvalidRequest(_) => ErrorCode::Protocol,
            CoreError::MissingNode(_)
            | CoreError::MissingBlock(_)
            | CoreError::CorruptBlock(_)
            | CoreError::Corrupt(_) => ErrorCode::Corrupt,
            CoreError::FileChanged | CoreError::SnapshotGone(_) => ErrorCode::Unavailable,
            CoreError::File { kind, .. } => match kind {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
                ErrorKind::NotFound => ErrorCode::NotFound,
                _ => ErrorCode::Io,
            },
            CoreError::Cancelled => ErrorCode::Aborted,
        };
        Self::of_disk(code, error)
    }
}

/// Why what a peer sent was not applied. [`ApplyError::is_violation`] tells an attack from a race.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// A local failure; the data may be asked for again.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The data is about another fork.
    #[error("the data is about fork {theirs}, this core is at fork {ours}")]
    Fork {
        /// This core's fork.
        ours: u64,
        /// The data's fork.
        theirs: u64,
    },
    /// The upgrade starts from a length this core no longer has: it was overtaken by another.
    #[error("the upgrade was overtaken by another")]
    Stale,
    /// The proof leads to a tree node that this core does not have: it was asked for too little.
    #[error("the proof ends at tree node {0}, which is not known here")]
    Unconnected(u64),
    /// Nodes are missing, superfluous or in a wrong order, or a number is out of range.
    #[error("the proof is not well-formed: {0}")]
    Malformed(&'static str),
    /// The block and the hashes do not lead to the hash that this core has.
    #[error("the proof does not match at tree node {0}")]
    Checksum(u64),
    /// The manifest does not hash to the core's key, or is not valid.
    #[error("the manifest is not this core's")]
    Manifest,
    /// The signature is not valid for the tree and the manifest.
    #[error("the signature is not valid")]
    Signature,
    /// The log the peer proves is validly signed and contradicts ours, or is a continuation of ours
    /// that was not written here although the writing key is: two writers share a key.
    #[error("the log was also written elsewhere, to length {length}")]
    WrittenElsewhere {
        /// The length that the peer proves.
        length: u64,
    },
    /// A block does not have the size that its place in the file demands.
    #[error("block {0} does not have the size that its place in the file demands")]
    Layout(u64),
}

impl ApplyError {
    /// Whether an honest peer never sends this, so that the connection should be closed.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        match self {
            Self::Malformed(_)
            | Self::Checksum(_)
            | Self::Manifest
            | Self::Signature
            | Self::Layout(_) => true,
            Self::Core(_)
            | Self::Fork { .. }
            | Self::Stale
            | Self::Unconnected(_)
            | Self::WrittenElsewhere { .. } => false,
        }
    }
}
