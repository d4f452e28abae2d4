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
    #[error("{length} entries are left of {expected}")]
    OwnFeedDamaged {
        /// The feed's length now.
        length: u64,
        /// What had been replayed from it.
        expected: u64,
    },
    /// Another server publishes in the same feed.
    #[error(
        "this server's catalog feed is also written elsewhere: its data directory was copied and both \
         copies run, or it was set back in time. Stop the other copy; then call \
         catalog.startNewFeed() for a feed of this server's own, or catalog.resumePublishing() to \
         fetch the missing entries from peers and go on"
    )]
    WrittenElsewhere,
    /// The node was restored, and nobody has said yet that its feed is not longer elsewhere.
    #[error(
        "this server was restored from a backup, and peers may have entries of its catalog that the \
         backup does not: publishing waits for a peer that has the whole feed. If there is none, call \
         catalog.startNewFeed(), or catalog.resumePublishing() when nothing was published since the backup"
    )]
    Unconfirmed,
    /// The own feed is damaged. What the view has of it can be read.
    #[error(
        "the catalog feed of this server is damaged ({0}): nothing is published. Restore a backup, or \
         call catalog.startNewFeed() to go on with the books that can be read"
    )]
    Damaged(String),
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
    /// This node's own catalog was to be taken for a peer's.
    #[error("the peer names a feed as its own that belongs to another server")]
    ForeignFeed,
    /// The peer was removed or blocked.
    #[error("this server is not an approved peer: its catalog is not followed")]
    NotApproved,
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
            CatalogError::OwnFeedDamaged { .. }
            | CatalogError::WrittenElsewhere
            | CatalogError::Damaged(_) => ErrorCode::Corrupt,
            CatalogError::Unconfirmed => ErrorCode::FeedUnconfirmed,
            CatalogError::InvalidBook { .. } | CatalogError::InvalidCursor => {
                ErrorCode::InvalidArgument
            }
            CatalogError::TooManyBooks => ErrorCode::LimitExceeded,
            CatalogError::ForeignFeed => ErrorCode::Protocol,
            CatalogError::NotApproved => ErrorCode::NotApproved,
        };
        Self::new(code, error.to_string())
    }
}
