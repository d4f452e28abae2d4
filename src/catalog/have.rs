//! Which of the books that others offer are here already, and how that is known.

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::entry::BookEntry;
use super::fold::isbn;
use super::search::{filter_word, hash};
use super::view::{self, Feed};
use crate::crypto::PublicKey;
use crate::store::StoreError;

/// A book that is here already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum Have {
    /// It came from this very peer.
    Transfer {
        /// The transfer's id.
        transfer_id: String,
    },
    /// A book of the own catalog has the same content hash: the same file.
    Hash {
        /// That book's id.
        book_id: String,
    },
    /// A book of the own catalog has the same ISBN: the same edition, as both say.
    Isbn {
        /// That book's id.
        book_id: String,
    },
}

/// How `book`, which `peer` offers, is here already; the surest way counts.
pub(super) fn have(
    connection: &Connection,
    own: Option<&Feed>,
    peer: &PublicKey,
    book: &BookEntry,
) -> Result<Option<Have>, StoreError> {
    let mut transfer = connection.prepare_cached(
        "SELECT id FROM transfers WHERE peer = ?1 AND book_id = ?2 AND direction = 'incoming' \
         AND state = 'completed' LIMIT 1",
    )?;
    let id = transfer.query_row(params![peer.as_bytes(), book.id], |row| row.get(0)).optional()?;
    if let Some(transfer_id) = id {
        return Ok(Some(Have::Transfer { transfer_id }));
    }
    let Some(own) = own else { return Ok(None) };
    if let Some(hash) = hash(book)
        && let Some(book_id) = own_book(connection, own, &filter_word('h', &hash))?
    {
        return Ok(Some(Have::Hash { book_id }));
    }
    if let Some(isbn) = book.isbn.as_deref().and_then(isbn)
        && let Some(book_id) = own_book(connection, own, &isbn)?
    {
        return Ok(Some(Have::Isbn { book_id }));
    }
    Ok(None)
}

/// An own book that has `word`, which has neither quotes nor spaces.
fn own_book(connection: &Connection, own: &Feed, word: &str) -> Result<Option<String>, StoreError> {
    let (first, last) = view::rows_of(own.number);
    let mut statement = connection.prepare_cached(
        "SELECT book_id FROM catalog_books WHERE row = (SELECT rowid FROM catalog_search \
         WHERE catalog_search MATCH ?1 AND rowid BETWEEN ?2 AND ?3 LIMIT 1)",
    )?;
    let found = statement.query_row(params![format!("\"{word}\""), first, last], |row| row.get(0));
    Ok(found.optional()?)
}
