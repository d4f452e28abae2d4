//! What can go wrong with a catalog.

use super::MAX_BOOKS;
use crate::error::{Error, ErrorCode};
use crate::hypercore::CoreError;
use crate::store::StoreError;

/// Why a catalog did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The feed's log failed.
    #[error("the catalog's feed failed: {0}")]
    Core(CoreError),
    /// The own feed is shorter than what was published before: part of it was lost.
    #[error(
        "the catalog feed of this node is damaged: {length} entries are left of {expected}; restore \
         p2p.db from a backup, or remove it to start a new feed"
    )]
    OwnFeedDamaged {
        /// The feed's length now.
        length: u64,
        /// What had been replayed from it.
        expected: u64,
    },
    /// Another server publishes in the same feed.
    #[error(
        "this server's catalog feed is also written elsewhere: its data directory was copied and both \
         copies run. Stop one of them; on the other, close the node, remove p2p.db and publish again"
    )]
    WrittenElsewhere,
    /// The feed was replayed further, or replaced, by somebody else.
    #[error("the catalog changed meanwhile")]
    Moved,
    /// A book cannot be published as it is.
    #[error("the book {id:?} cannot be published: {reason}")]
    InvalidBook {
        /// The book's id, shortened.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A cursor that no page of this catalog gave.
    #[error("this cursor is not of this catalog; list again without a cursor")]
    InvalidCursor,
    /// More books than a catalog may have.
    #[error("a catalog has at most {MAX_BOOKS} books")]
    TooManyBooks,
    /// A peer names a feed as its own that is this node's, or another peer's.
    #[error("the peer names a feed as its own that belongs to another server")]
    ForeignFeed,
    /// The catalog was closed.
    #[error("the catalog is closed")]
    Closed,
}

impl From<CoreError> for CatalogError {
    fn from(error: CoreError) -> Self {
        match error {
            CoreError::Closed => Self::Closed,
            error => Self::Core(error),
        }
    }
}

impl From<rusqlite::Error> for CatalogError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(StoreError::Sqlite(error))
    }
}

impl From<CatalogError> for Error {
    fn from(error: CatalogError) -> Self {
        let code = match error {
            CatalogError::Store(error) => return error.into(),
            CatalogError::Core(error) => return error.into(),
            CatalogError::Closed => return Self::closed(),
            CatalogError::Moved => ErrorCode::Internal,
            CatalogError::OwnFeedDamaged { .. } | CatalogError::WrittenElsewhere => {
                ErrorCode::Corrupt
            }
            CatalogError::InvalidBook { .. } | CatalogError::InvalidCursor => {
                ErrorCode::InvalidArgument
            }
            CatalogError::TooManyBooks => ErrorCode::LimitExceeded,
            CatalogError::ForeignFeed => ErrorCode::Protocol,
        };
        Self::new(code, error.to_string())
    }
}
