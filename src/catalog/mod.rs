//! Catalogs: this node's own feed, peers' feeds, and what they say when replayed.

mod book;
mod entry;
mod list;
mod plan;
mod search;
mod view;

pub use book::Book;
pub use entry::BookEntry;
pub use list::{ListOptions, Page};
pub use plan::Changes;
pub use view::{Feed, MAX_BOOKS};

use crate::error::{Error, ErrorCode};
use crate::store::StoreError;

/// Why a catalog did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    /// No catalog of that peer is known yet.
    #[error("no catalog of this peer is known yet; it arrives with the first connection")]
    UnknownCatalog,
    /// The catalog was closed.
    #[error("the catalog is closed")]
    Closed,
}

impl From<CatalogError> for Error {
    fn from(error: CatalogError) -> Self {
        let code = match error {
            CatalogError::Store(error) => return error.into(),
            CatalogError::Closed => return Self::closed(),
            CatalogError::Moved => ErrorCode::Internal,
            CatalogError::InvalidBook { .. } | CatalogError::InvalidCursor => {
                ErrorCode::InvalidArgument
            }
            CatalogError::TooManyBooks => ErrorCode::LimitExceeded,
            CatalogError::UnknownCatalog => ErrorCode::NotFound,
        };
        Self::new(code, error.to_string())
    }
}
