//! What transfers ask about books: what they are, and where this node's own are.

use std::sync::atomic::Ordering;

use super::{BookEntry, Catalog};
use crate::crypto::PublicKey;
use crate::error::Result;
use crate::transfer::{BookSource, Description, Library};

impl Library for Catalog {
    fn own(&self, book_id: &str) -> Result<Option<(Description, Option<BookSource>)>> {
        let Some(book) = self.get(book_id)? else { return Ok(None) };
        let source = self
            .inner
            .options
            .database
            .read(|connection| self.inner.own.providers.resolve(connection, book_id))?;
        Ok(Some((describe(book), source)))
    }

    fn changes(&self) -> u64 {
        self.inner.changes.load(Ordering::Acquire)
    }

    fn of(&self, peer: &PublicKey, book_id: &str) -> Result<Option<Description>> {
        Ok(self.view(*peer).get(book_id)?.map(describe))
    }
}

fn describe(book: BookEntry) -> Description {
    Description {
        title: book.title,
        author: book.author,
        format: book.format,
        size_bytes: book.size_bytes,
    }
}
