//! A book as the program publishes it.

use serde::{Deserialize, Serialize};

use super::entry::BookEntry;
use crate::transfer::BookSource;

/// A book of this node: what everybody may read, and where its bytes are, which never leaves the
/// machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Book {
    /// The fields that go into the feed. Without `added_at` it is the time of the first publication;
    /// without `size_bytes` it is the file's size.
    #[serde(flatten)]
    pub entry: BookEntry,
    /// Where the bytes are. `None` leaves what was said before; a book that never had a source is
    /// listed, and requests for it are answered `unavailable`.
    #[serde(skip)]
    pub source: Option<BookSource>,
}
